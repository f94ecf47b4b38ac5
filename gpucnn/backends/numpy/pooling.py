"""Pooling: a chain of elementwise operations over strided views, one for each element of the window.

The views keep the order of the array they look at, so with the batch innermost every operation runs over long rows.
Max pooling keeps no switches: its gradient compares again, which costs less than writing them. Where windows do not
overlap, each gradient is written once, not added to zeros.
"""

from typing import Any

import numpy as np

from gpucnn.backends.window import Window

Array = Any

Kept = tuple[Array, Array]  # the padded images and the largest elements: the engine's form of the switches


def largest(padded: Array, window: Window, output_size: tuple[int, int]) -> Array:
    """Return the largest element of each window (N, OH, OW, C) of padded images; a NaN is passed on."""
    views = [padded[window.slices(i, j, output_size)] for i, j in window.offsets()]
    if len(views) == 1:
        return np.copy(views[0], order="K")
    y = np.maximum(views[0], views[1])
    for view in views[2:]:
        np.maximum(y, view, out=y)
    return y


def largest_gradient(dy: Array, kept: Kept, window: Window) -> Array:
    """Return the gradient of padded images: dy goes to the first element that equals the largest."""
    padded, y = kept
    dpadded, add = _gradient_like(padded, window)
    remaining = np.copy(dy, order="K")  # what no element has taken yet
    share = np.empty_like(remaining)
    for i, j in window.offsets():
        at = window.slices(i, j, y.shape[1:3])
        np.multiply(remaining, padded[at] == y, out=share)
        remaining -= share
        add(dpadded, at, share)
    return dpadded


def total(padded: Array, window: Window, output_size: tuple[int, int]) -> Array:
    """Return the sum of each window (N, OH, OW, C) of padded images."""
    views = [padded[window.slices(i, j, output_size)] for i, j in window.offsets()]
    y = np.copy(views[0], order="K")
    for view in views[1:]:
        y += view
    return y


def total_gradient(dy: Array, padded_shape: tuple[int, ...], window: Window) -> Array:
    """Return the gradient of padded images: each element of a window gets the window's dy."""
    dpadded, add = _gradient_like(dy, window, padded_shape)
    for i, j in window.offsets():
        add(dpadded, window.slices(i, j, dy.shape[1:3]), dy)
    return dpadded


def _gradient_like(array: Array, window: Window, shape: tuple[int, ...] | None = None) -> tuple[Array, Any]:
    """Return an array to collect gradients in, in the order of `array`, and how to put some of them there."""
    shape = array.shape if shape is None else shape
    apart = all(stride >= size for stride, size in zip(window.strides, window.size, strict=True))
    if not apart:
        return np.zeros_like(array, shape=shape), _add
    whole = window.strides == window.size and all(
        side % size == 0 for side, size in zip(shape[1:3], window.size, strict=True)
    )
    return (np.empty_like if whole else np.zeros_like)(array, shape=shape), _put


def _add(gradient: Array, at: tuple[slice, ...], share: Array) -> None:
    gradient[at] += share


def _put(gradient: Array, at: tuple[slice, ...], share: Array) -> None:
    gradient[at] = share
