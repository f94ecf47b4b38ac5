"""Elementwise kernels in memory that was used before, a cache-sized block at a time where there are several operations.

Arrays that lie alike are looked at as one long row, whatever their axes are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.base import INV_SQRT_2PI, SQRT_HALF
from gpucnn.backends.numpy import memory, scratch
from gpucnn.backends.numpy.order import batch_first, batch_innermost, batch_last, blocks

Array = Any

BLOCK = 1 << 18  # numbers at once
GELU_BLOCK = 1 << 15  # the same where twenty operations pass over a block: it stays in the second-level cache

# 1 − erf(z) = (a₁t + … + a₅t⁵)·exp(−z²) with t = 1 / (1 + pz), for z ≥ 0, to 1.5e-7 (Abramowitz & Stegun, 1964, 7.1.26)
ERF_P = 0.3275911
ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


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


def gelu(x: Array) -> tuple[Array, Array]:
    """Return x·Φ(x), Φ the normal distribution, and its slope Φ(x) + x·φ(x), for float32.

    What lies beyond |x|, the tail 1 − Φ(|x|), is a polynomial times exp(−x²/2), which is wanted for φ as well. Then
    y = max(x, 0) − |x|·tail and Φ = ½ ± (½ − tail), with the sign of x.
    """
    row, (flat,) = _alike(x)
    y, slope = memory.empty(flat.shape, x.dtype), memory.empty(flat.shape, x.dtype)
    for part in blocks(len(flat), 1, GELU_BLOCK):
        xs, ys, slopes = flat[part], y[part], slope[part]
        size, bell, tail = (scratch.take(purpose, xs.shape, xs.dtype) for purpose in ("size", "bell", "tail"))
        np.abs(xs, out=size)
        _tail(xs, size, bell, tail)
        np.maximum(xs, 0, out=ys)
        size *= tail
        ys -= size
        np.subtract(0.5, tail, out=slopes)
        np.copysign(slopes, xs, out=slopes)
        slopes += 0.5
        bell *= INV_SQRT_2PI
        bell *= xs
        slopes += bell
    return row(y), row(slope)


def _tail(x: Array, size: Array, bell: Array, tail: Array) -> None:
    """Set bell to exp(−x²/2) and tail to 1 − Φ(|x|), from x and its size |x|."""
    t = bell  # the same memory: t is needed before the bell is
    np.multiply(size, ERF_P * SQRT_HALF, out=t)
    t += 1
    np.reciprocal(t, out=t)
    np.multiply(t, 0.5 * ERF_A[-1], out=tail)
    for coefficient in ERF_A[-2::-1]:
        tail += 0.5 * coefficient
        tail *= t
    np.multiply(x, x, out=bell)
    bell *= -0.5
    np.exp(bell, out=bell)
    tail *= bell


def gelu_gradient(dy: Array, slope: Array) -> Array:
    """Return dy times the slope."""
    row, (dy_flat, slope_flat) = _alike(dy, slope)
    dx = memory.empty(dy_flat.shape, dy.dtype)
    np.multiply(dy_flat, slope_flat, out=dx)
    return row(dx)


def _alike(*arrays: Array) -> tuple[Callable[[Array], Array], list[Array]]:
    """Return arrays of one shape as long rows in one order, and the function that gives such a row the shape back."""
    shape = arrays[0].shape
    if len(shape) != 4 or not batch_innermost(shape[0]):
        return (lambda row: row.reshape(shape)), [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    N, H, W, C = shape
    return (lambda row: batch_first(row.reshape(H, W, C, N))), [batch_last(array).reshape(-1) for array in arrays]
