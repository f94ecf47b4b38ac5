"""Elementwise kernels in reused memory, one cache-sized block at a time where there are several operations.

Arrays of one layout are viewed as one long row, whatever their axes are.
"""

from collections.abc import Callable

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.memory_layout import blocks, contiguous, to_hwcn, to_nhwc, uses_hwcn
from gpucnn.backends.reference import INV_SQRT_2PI, Array

BLOCK = 1 << 18  # numbers
GELU_BLOCK = 1 << 16  # the same for twenty operations per block: it stays in the second-level cache
ZERO_ROW = 1 << 13  # numbers of a row of zeros: the size of NumPy's buffer for broadcasting

# Φ(x) = ½ + ½·tanh(x·P(x²)) to 3e-8, coefficients of P from the lowest on: the minimax fit up to 5.6; beyond that
# P keeps growing, and tanh is 1 within float32
GELU_P = (7.97884941e-1, 3.63330844e-2, -3.25947295e-5, -5.53063238e-5, 3.96477459e-6, -1.32266404e-7, 1.75628122e-9)


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    row, (flat,) = _flatten(x)
    y = memory.empty(flat.shape, x.dtype)
    clamp_at_zero(flat, y)
    return row(y)


def clamp_at_zero(x: Array, out: Array) -> None:
    """Write max(x, 0) to out, which has the shape of x; x itself may be given.

    NumPy's `maximum` takes half as long with a row of zeros as with the number 0, if the row fills its buffer: a
    shorter one is first repeated there.
    """
    if not (x.flags.c_contiguous and out.flags.c_contiguous):
        np.maximum(x, 0, out=out)
        return
    x, out = x.reshape(-1), out.reshape(-1)
    whole = len(x) // ZERO_ROW * ZERO_ROW
    rows, out_rows = (array[:whole].reshape(-1, ZERO_ROW) for array in (x, out))
    np.maximum(rows, workspace.zeros(ZERO_ROW, x.dtype), out=out_rows)
    if whole < len(x):
        np.maximum(x[whole:], 0, out=out[whole:])


def relu_gradient(dy: Array, y: Array) -> Array:
    """Return dy where y is positive, else 0."""
    row, (dy_flat, y_flat) = _flatten(dy, y)
    dx = memory.empty(dy_flat.shape, dy.dtype)
    for part in blocks(len(dx), 1, BLOCK):
        positive = np.greater(y_flat[part], 0, out=workspace.get("positive", dx[part].shape, np.bool_))
        np.multiply(dy_flat[part], positive, out=dx[part])
    return row(dx)


def add(a: Array, b: Array, relu: bool = False) -> Array:
    """Return a + b, clamped at 0 with `relu`."""
    row, (a_flat, b_flat) = _flatten(a, b)
    y = memory.empty(a_flat.shape, a.dtype)
    for part in blocks(len(y), 1, BLOCK):
        np.add(a_flat[part], b_flat[part], out=y[part])
        if relu:
            clamp_at_zero(y[part], y[part])
    return row(y)


def gelu(x: Array) -> tuple[Array, Array]:
    """Return x·Φ(x), Φ the normal distribution, and its derivative Φ(x) + x·φ(x), for float32.

    Both share x². NumPy's tanh costs no more than two multiplications, which is why Φ is written with it.
    """
    row, (flat,) = _flatten(x)
    y, derivative = memory.empty(flat.shape, x.dtype), memory.empty(flat.shape, x.dtype)
    with np.errstate(over="ignore"):  # for large x, P is infinite and tanh 1
        for part in blocks(len(flat), 1, GELU_BLOCK):
            xs, pdf = flat[part], derivative[part]
            square, cdf = (workspace.get(name, xs.shape, xs.dtype) for name in ("square", "cdf"))
            np.multiply(xs, xs, out=square)
            np.multiply(square, GELU_P[-1], out=cdf)
            for coefficient in GELU_P[-2:0:-1]:
                cdf += coefficient
                cdf *= square
            cdf += GELU_P[0]
            cdf *= xs
            np.tanh(cdf, out=cdf)
            cdf *= 0.5
            cdf += 0.5  # Φ(x)
            np.multiply(xs, cdf, out=y[part])
            square *= -0.5
            np.exp(square, out=pdf)
            pdf *= INV_SQRT_2PI
            pdf *= xs
            pdf += cdf
    return row(y), row(derivative)


def gelu_gradient(dy: Array, derivative: Array) -> Array:
    """Return dy times the derivative."""
    row, (dy_flat, derivative_flat) = _flatten(dy, derivative)
    dx = memory.empty(dy_flat.shape, dy.dtype)
    np.multiply(dy_flat, derivative_flat, out=dx)
    return row(dx)


def _flatten(*arrays: Array) -> tuple[Callable[[Array], Array], list[Array]]:
    """Return a function that restores the shape of a row, and arrays of one shape as long rows in one layout."""
    shape = arrays[0].shape
    if len(shape) != 4 or not uses_hwcn(shape[0]):
        return (lambda row: row.reshape(shape)), [contiguous(array).reshape(-1) for array in arrays]
    N, H, W, C = shape
    return (lambda row: to_nhwc(row.reshape(H, W, C, N))), [to_hwcn(array).reshape(-1) for array in arrays]
