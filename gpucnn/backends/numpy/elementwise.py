"""Elementwise kernels in memory that was used before, a cache-sized block at a time where there are several operations.

Arrays that lie alike are looked at as one long row, whatever their axes are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.base import INV_SQRT_2PI
from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.memory_layout import blocks, contiguous, to_hwcn, to_nhwc, uses_hwcn

Array = Any

BLOCK = 1 << 18  # numbers at once
GELU_BLOCK = 1 << 16  # the same where twenty operations pass over a block: it stays in the second-level cache
ZEROS = 1 << 13  # numbers of a row of zeros: as many as NumPy's buffer for what it repeats has

# Φ(x) = ½ + ½·tanh(x·P(x²)) to 3e-8, coefficients of P from the lowest on: the fit of least greatest error up to 5.6;
# beyond that P goes on growing, and tanh is 1 within float32
GELU_P = (7.97884941e-1, 3.63330844e-2, -3.25947295e-5, -5.53063238e-5, 3.96477459e-6, -1.32266404e-7, 1.75628122e-9)


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    row, (flat,) = _alike(x)
    y = memory.empty(flat.shape, x.dtype)
    cut_off(flat, y)
    return row(y)


def cut_off(x: Array, out: Array) -> None:
    """Write max(x, 0) to out, which has the shape of x; x itself may be given.

    NumPy's `maximum` takes half as long with a row of zeros as with the number 0, if the row fills its buffer: a
    shorter one is repeated there first.
    """
    if not (x.flags.c_contiguous and out.flags.c_contiguous):
        np.maximum(x, 0, out=out)
        return
    x, out = x.reshape(-1), out.reshape(-1)
    whole = len(x) // ZEROS * ZEROS
    np.maximum(x[:whole].reshape(-1, ZEROS), workspace.zeros(ZEROS, x.dtype), out=out[:whole].reshape(-1, ZEROS))
    if whole < len(x):
        np.maximum(x[whole:], 0, out=out[whole:])


def relu_gradient(dy: Array, y: Array) -> Array:
    """Return dy where y is positive, else 0."""
    row, (dy_flat, y_flat) = _alike(dy, y)
    dx = memory.empty(dy_flat.shape, dy.dtype)
    for part in blocks(len(dx), 1, BLOCK):
        positive = np.greater(y_flat[part], 0, out=workspace.get("positive", dx[part].shape, np.bool_))
        np.multiply(dy_flat[part], positive, out=dx[part])
    return row(dx)


def add(a: Array, b: Array, relu: bool) -> Array:
    """Return a + b, and what is negative set to 0 with `relu`."""
    row, (a_flat, b_flat) = _alike(a, b)
    y = memory.empty(a_flat.shape, a.dtype)
    for part in blocks(len(y), 1, BLOCK):
        np.add(a_flat[part], b_flat[part], out=y[part])
        if relu:
            cut_off(y[part], y[part])
    return row(y)


def gelu(x: Array) -> tuple[Array, Array]:
    """Return x·Φ(x), Φ the normal distribution, and its slope Φ(x) + x·φ(x), for float32.

    Both share x². NumPy's tanh costs no more than two multiplications, which is why Φ is written with it.
    """
    row, (flat,) = _alike(x)
    y, slope = memory.empty(flat.shape, x.dtype), memory.empty(flat.shape, x.dtype)
    with np.errstate(over="ignore"):  # far out P is infinite, and tanh 1
        for part in blocks(len(flat), 1, GELU_BLOCK):
            xs, bell = flat[part], slope[part]
            square, below = (workspace.get(purpose, xs.shape, xs.dtype) for purpose in ("square", "below"))
            np.multiply(xs, xs, out=square)
            np.multiply(square, GELU_P[-1], out=below)
            for coefficient in GELU_P[-2:0:-1]:
                below += coefficient
                below *= square
            below += GELU_P[0]
            below *= xs
            np.tanh(below, out=below)
            below *= 0.5
            below += 0.5  # Φ(x), the share of the normal distribution that lies below x
            np.multiply(xs, below, out=y[part])
            square *= -0.5
            np.exp(square, out=bell)
            bell *= INV_SQRT_2PI
            bell *= xs
            bell += below
    return row(y), row(slope)


def gelu_gradient(dy: Array, slope: Array) -> Array:
    """Return dy times the slope."""
    row, (dy_flat, slope_flat) = _alike(dy, slope)
    dx = memory.empty(dy_flat.shape, dy.dtype)
    np.multiply(dy_flat, slope_flat, out=dx)
    return row(dx)


def _alike(*arrays: Array) -> tuple[Callable[[Array], Array], list[Array]]:
    """Return arrays of one shape as long rows in one order, and the function that gives such a row the shape back."""
    shape = arrays[0].shape
    if len(shape) != 4 or not uses_hwcn(shape[0]):
        return (lambda row: row.reshape(shape)), [contiguous(array).reshape(-1) for array in arrays]
    N, H, W, C = shape
    return (lambda row: to_nhwc(row.reshape(H, W, C, N))), [to_hwcn(array).reshape(-1) for array in arrays]
