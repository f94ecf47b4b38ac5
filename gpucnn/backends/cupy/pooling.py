"""Pooling: one thread per output, in the backward pass one per input."""

from typing import Any

import cupy
import numpy as np

from gpucnn.backends.cupy import kernels
from gpucnn.backends.cupy.kernels import aligned, geometry, vector_width
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

MAX_WINDOW_AREA = 255  # elements: a switch is a byte, and one value of it means none


def max_pool(x: Array, window: Window, relu: bool) -> tuple[Array, Array]:
    """Return the maximum of each window, y (N, OH, OW, C), and the switches, uint8: its index in the window."""
    x = aligned(x)
    y = _outputs(x, window)
    switches = cupy.empty(y.shape, np.uint8)
    _launch("max_pool", y, window, x.shape[1:], x, y, switches, numbers=(np.int32(relu),))
    return y, switches


def max_pool_gradient(dy: Array, switches: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (N, H, W, C): dy (N, OH, OW, C) at the maxima."""
    dy = aligned(dy)
    dx = cupy.empty((dy.shape[0], *image_size, dy.shape[3]), dy.dtype)
    _launch("max_pool_gradient", dx, window, dx.shape[1:], dy, switches, dx)
    return dx


def average_pool(x: Array, window: Window) -> Array:
    """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
    x = aligned(x)
    y = _outputs(x, window)
    _launch("average_pool", y, window, x.shape[1:], x, y)
    return y


def average_pool_gradient(dy: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Distribute dy (N, OH, OW, C) over the elements of each window: dx (N, H, W, C)."""
    dy = aligned(dy)
    dx = cupy.empty((dy.shape[0], *image_size, dy.shape[3]), dy.dtype)
    _launch("average_pool_gradient", dx, window, dx.shape[1:], dy, dx)
    return dx


def _outputs(x: Array, window: Window) -> Array:
    N, H, W, C = x.shape
    return cupy.empty((N, *window.output_size((H, W)), C), x.dtype)


def _launch(name: str, written: Array, window: Window, image: Any, *pointers: Array, numbers: Any = ()) -> None:
    """Launch a kernel with one thread per pack of the array that it writes, for a window on images (H, W, C)."""
    C = written.shape[3]
    width, pixels = vector_width(written.dtype, C), np.uint32(written.size // C)
    arguments = *pointers, pixels, *numbers, *geometry(window, *image)
    kernels.launch_elements(name, written.dtype, width, written.size // width, *arguments)
