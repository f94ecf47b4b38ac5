"""Poolings: a thread for each output, and on the way back one for each input."""

from typing import Any

import cupy
import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.cupy import kernels
from gpucnn.backends.cupy.kernels import geometry, plain, widest
from gpucnn.backends.window import Window

LARGEST_WINDOW = 255  # elements: the winner's number is kept in a byte, of which one value says that none won


def largest(x: Array, window: Window, relu: bool) -> tuple[Array, Array]:
    """Take the largest element of each window: y (N, OH, OW, C), and the number of the winner, a byte each."""
    x = plain(x)
    y = _outputs(x, window)
    winners = cupy.empty(y.shape, np.uint8)
    numbers = np.uint32(y.size // y.shape[3]), np.int32(relu), *geometry(window, *x.shape[1:])
    _launch("max_pool", y, x, y, winners, *numbers)
    return y, winners


def largest_gradient(dy: Array, winners: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Send dy (N, OH, OW, C) back to the elements that won: dx (N, H, W, C)."""
    dy = plain(dy)
    dx = cupy.empty((dy.shape[0], *image_size, dy.shape[3]), dy.dtype)
    numbers = np.uint32(dx.size // dx.shape[3]), *geometry(window, *dx.shape[1:])
    _launch("max_pool_gradient", dx, dy, winners, dx, *numbers)
    return dx


def average(x: Array, window: Window) -> Array:
    """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
    x = plain(x)
    y = _outputs(x, window)
    _launch("average_pool", y, x, y, np.uint32(y.size // y.shape[3]), *geometry(window, *x.shape[1:]))
    return y


def average_gradient(dy: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Share dy (N, OH, OW, C) among the elements of each window: dx (N, H, W, C)."""
    dy = plain(dy)
    dx = cupy.empty((dy.shape[0], *image_size, dy.shape[3]), dy.dtype)
    numbers = np.uint32(dx.size // dx.shape[3]), *geometry(window, *dx.shape[1:])
    _launch("average_pool_gradient", dx, dy, dx, *numbers)
    return dx


def _outputs(x: Array, window: Window) -> Array:
    N, H, W, C = x.shape
    return cupy.empty((N, *window.output_size((H, W)), C), x.dtype)


def _launch(name: str, written: Array, *arguments: Any) -> None:
    """Launch a kernel with a thread for each pack of the array that it writes."""
    width = widest(written.dtype, written.shape[3])
    kernels.over_elements(name, written.dtype, width, written.size // width, *arguments)
