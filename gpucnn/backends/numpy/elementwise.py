"""Elementwise kernels in memory that was used before, a cache-sized block at a time where there are several operations.

Arrays that lie alike are looked at as one long row, whatever their axes are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.numpy import memory, scratch
from gpucnn.backends.numpy.order import batch_first, batch_innermost, batch_last, blocks

Array = Any

BLOCK = 1 << 18  # numbers at once


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    row, (flat,) = _alike(x)
    y = memory.empty(flat.shape, x.dtype)
    np.maximum(flat, 0, out=y)
    return row(y)


def relu_gradient(dy: Array, y: Array) -> Array:
    """Return dy where y is positive, else 0."""
    row, (dy_flat, y_flat) = _alike(dy, y)
    dx = memory.empty(dy_flat.shape, dy.dtype)
    for part in blocks(len(dx), 1, BLOCK):
        positive = np.greater(y_flat[part], 0, out=scratch.take("positive", dx[part].shape, np.bool_))
        np.multiply(dy_flat[part], positive, out=dx[part])
    return row(dx)


def add(a: Array, b: Array, relu: bool) -> Array:
    """Return a + b, and what is negative set to 0 with `relu`."""
    row, (a_flat, b_flat) = _alike(a, b)
    y = memory.empty(a_flat.shape, a.dtype)
    for part in blocks(len(y), 1, BLOCK):
        np.add(a_flat[part], b_flat[part], out=y[part])
        if relu:
            np.maximum(y[part], 0, out=y[part])
    return row(y)


def _alike(*arrays: Array) -> tuple[Callable[[Array], Array], list[Array]]:
    """Return arrays of one shape as long rows in one order, and the function that gives such a row the shape back."""
    shape = arrays[0].shape
    if len(shape) != 4 or not batch_innermost(shape[0]):
        return (lambda row: row.reshape(shape)), [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    N, H, W, C = shape
    return (lambda row: batch_first(row.reshape(H, W, C, N))), [batch_last(array).reshape(-1) for array in arrays]
