"""Per-channel operations: batch normalisation, sums, scale and shift."""

from typing import Any

import cupy
import numpy as np

from gpucnn.backends.cupy import kernels
from gpucnn.backends.cupy.kernels import aligned, compute_dtype, vector_width
from gpucnn.backends.reference import Array


def _matrix(x: Array) -> tuple[int, int, int]:
    """Return rows and channels of x (…, C), and the vector width."""
    C = x.shape[-1]
    return x.size // C, C, vector_width(x.dtype, C)


def batch_norm(
    x: Array, scale: Array, shift: Array, epsilon: float, relu: bool = False
) -> tuple[Array, Array, Array, Any]:
    """Return y (…, C), the batch's mean and variance (C,), and what is saved for the gradient."""
    x = aligned(x)
    rows, C, width = _matrix(x)
    dtype = compute_dtype(x.dtype)
    scale, shift = aligned(scale, dtype), aligned(shift, dtype)
    partial, parts = kernels.column_sums("batch_norm_sums", x.dtype, width, rows, C, x, np.int32(C), sums=2)
    mean, variance, y = cupy.empty(C, dtype), cupy.empty(C, dtype), cupy.empty_like(x)
    sizes = np.int32(parts), np.int64(rows), np.int32(C)
    kernels.launch_columns("batch_norm_statistics", x.dtype, C, partial, x, mean, variance, *sizes)
    numbers = np.int64(rows), np.int32(C), np.float64(epsilon), np.int32(relu)
    kernels.launch_rows("batch_norm", x.dtype, width, rows, C, x, mean, variance, scale, shift, y, *numbers)
    return y, mean, variance, (x, mean, shift, relu)


def batch_norm_gradient(
    dy: Array, saved: Any, variance: Array, scale: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return dx (…, C), dscale (C,) and dshift (C,) of `batch_norm`."""
    x, mean, shift, relu = saved
    dy, scale = aligned(dy, x.dtype), aligned(scale, mean.dtype)
    rows, C, width = _matrix(x)
    matrix, numbers = (x.dtype, width, rows, C), (np.int32(C), np.float64(epsilon), np.int32(relu))
    pointers = dy, x, mean, variance, scale, shift
    partial, parts = kernels.column_sums("batch_norm_gradient_sums", *matrix, *pointers, *numbers, sums=2)
    totals, dx = kernels.totals(partial, parts, x.dtype), cupy.empty_like(x)
    kernels.launch_rows("batch_norm_input_gradient", *matrix, *pointers, totals, dx, np.int64(rows), *numbers)
    return dx, totals[C:], totals[:C]


def scale_and_shift(x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
    """Return scale·x + shift of x (…, C) with per-channel numbers (C,), clamped at 0 with `relu`."""
    x = aligned(x)
    rows, C, width = _matrix(x)
    dtype = compute_dtype(x.dtype)
    y = cupy.empty_like(x)
    numbers = np.int64(rows), np.int32(C), np.int32(relu)
    pointers = x, aligned(scale, dtype), aligned(shift, dtype), y
    kernels.launch_rows("scale_and_shift", x.dtype, width, rows, C, *pointers, *numbers)
    return y


def channel_sums(x: Array) -> Array:
    """Return the sum of each channel of x (…, C), (C,); in float32 for float16."""
    x = aligned(x)
    rows, C, width = _matrix(x)
    partial, parts = kernels.column_sums("channel_sums", x.dtype, width, rows, C, x, np.int32(C))
    return kernels.totals(partial, parts, x.dtype)
