"""Pooling: one reduction over a strided view of all windows, one product with the gradient to send it back.

Images are taken as rows, (1, H, W, C·N) in HWCN and (N, H, W, C) otherwise (see `memory_layout.as_rows`), so that every
operation runs over long rows. All windows are one view of them,

    windows (G, OH, KH, OW, KW, run)                  overlapping where windows do, reduced over KH and KW

Output rows are taken a block at a time, so that what a block needs is read into the cache once. Max pooling keeps no
switches: its gradient compares again, which costs less than writing them. A ReLU is one more operation on each block.
Where windows do not overlap, each gradient is written once, through such a view; else it is added place by place.
"""

from typing import Any

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory_layout import as_rows, blocks, contiguous, from_rows, strided
from gpucnn.backends.numpy.tracer import as_single_call
from gpucnn.backends.window import Window

Array = Any
Kept = tuple[Array, Array, bool]  # padded pixels, the largest of them, and whether 0 stands for what is negative

BLOCK = 1 << 22  # bytes of windows at once


def largest(x: Array, window: Window, relu: bool) -> tuple[Array, Kept]:
    """Return the largest element of each window of x (N, H, W, C), y (N, OH, OW, C); a NaN is passed on.

    With `relu` 0 stands for what is negative.
    """
    padded, (OH, OW) = _padded(x, window, -np.inf), window.output_size(x.shape[1:3])
    y = memory.empty((len(padded), OH, OW, padded.shape[3]), x.dtype)
    windows = _windows(padded, window, y)
    for rows in _row_blocks(windows):
        out = np.maximum.reduce(windows[:, rows], axis=(2, 4), out=y[:, rows])
        if relu:
            np.maximum(out, 0, out=out)
    return from_rows(y, len(x)), (padded, y, relu)


def largest_gradient(dy: Array, kept: Kept, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (N, H, W, C): dy goes to the first element that equals the largest, if no ReLU cut it off."""
    padded, y, relu = kept
    windows, dy_pixels = _windows(padded, window, y), as_rows(dy)
    dpadded = _gradient_of(padded.shape, dy_pixels, window)
    for rows in _row_blocks(windows):
        won = workspace.get("won", windows[:, rows].shape, np.bool_)
        np.equal(windows[:, rows], _for_each_window(y[:, rows]), out=won)
        positive = None
        if relu:
            positive = np.greater(y[:, rows], 0, out=workspace.get("positive", y[:, rows].shape, np.bool_))
            won &= _for_each_window(positive)
        _first_alone(won, positive)
        _give(dpadded, window, rows, dy_pixels, won)
    return from_rows(_interior(dpadded, image_size, window), len(dy))


def average(x: Array, window: Window) -> Array:
    """Return the average of each window of x (N, H, W, C) over its elements inside the image, y (N, OH, OW, C)."""
    image_size = x.shape[1:3]
    padded, (OH, OW), factor = _padded(x, window, 0), window.output_size(image_size), _factor(image_size, window, x)
    y = memory.empty((len(padded), OH, OW, padded.shape[3]), x.dtype)
    windows = _windows(padded, window, y)
    for rows in _row_blocks(windows):
        out = np.add.reduce(windows[:, rows], axis=(2, 4), out=y[:, rows])
        out *= factor[rows]
    return from_rows(y, len(x))


def average_gradient(dy: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (N, H, W, C): each element of a window gets the window's dy, divided by their number."""
    dy_pixels, factor = as_rows(dy), _factor(image_size, window, dy)
    G, _, _, run = dy_pixels.shape
    dpadded = _gradient_of((G, *window.padded_size(image_size), run), dy_pixels, window)
    for rows in _row_blocks(_windows(dpadded, window, dy_pixels)):
        _give(dpadded, window, rows, dy_pixels, _for_each_window(factor[None, rows]))
    return from_rows(_interior(dpadded, image_size, window), len(dy))


def _windows(padded: Array, window: Window, y: Array) -> Array:
    """Return what the windows see of padded pixels (G, H, W, run): a view (G, OH, KH, OW, KW, run)."""
    (KH, KW), (SH, SW), (DH, DW) = window.size, window.strides, window.dilation
    G, OH, OW, run = y.shape
    image, row, pixel, item = padded.strides
    return strided(padded, (G, OH, KH, OW, KW, run), (image, SH * row, DH * row, SW * pixel, DW * pixel, item))


def _for_each_window(y: Array) -> Array:
    """Return outputs (G, rows, OW, run) so that they meet what their windows see."""
    return y[:, :, None, :, None]


@as_single_call
def _first_alone(won: Array, positive: Array | None) -> None:
    """Leave of several elements of a window that won the first, in won (G, rows, KH, OW, KW, run).

    Only windows count whose largest element is positive, if these are given (G, rows, OW, run).
    """
    G, rows, _, OW, _, run = won.shape
    winners = G * rows * OW * run if positive is None else np.count_nonzero(positive)
    if np.count_nonzero(won) <= winners:
        return
    taken = np.zeros_like(won[:, :, 0, :, 0])
    for i in range(won.shape[2]):
        for j in range(won.shape[4]):
            place = won[:, :, i, :, j]
            np.greater(place, taken, out=place)
            taken |= place


def _give(dpadded: Array, window: Window, rows: slice, dy: Array, share: Array) -> None:
    """Give each window's elements their share of dy, for some output rows: share (G, rows, KH, OW, KW, run) or less."""
    dwindows, dy_rows = _windows(dpadded, window, dy)[:, rows], _for_each_window(dy[:, rows])
    if _lie_apart(window):
        np.multiply(dy_rows, share, out=dwindows)
        return
    shares = np.broadcast_to(share, dwindows.shape)
    for i, j in window.offsets():
        term = workspace.get("term", dy[:, rows].shape, dy.dtype)
        dwindows[:, :, i, :, j] += np.multiply(dy[:, rows], shares[:, :, i, :, j], out=term)


def _lie_apart(window: Window) -> bool:
    """Tell whether no two windows overlap, so that each pixel is one window's."""
    return all(stride >= extent for stride, extent in zip(window.strides, window.extent, strict=True))


def _factor(image_size: tuple[int, int], window: Window, like: Array) -> Array:
    """Return what each element of a window counts for in its average, for each output pixel (OH, OW or 1, 1)."""
    if window.padding == ((0, 0), (0, 0)):
        return constant(np.full((window.output_size(image_size)[0], 1, 1), 1.0 / window.area, like.dtype))
    return constant((1.0 / window.valid_counts(np, image_size)).astype(like.dtype))


def _row_blocks(windows: Array) -> tuple[slice, ...]:
    """Cut output rows into blocks by what their windows see (G, OH, KH, OW, KW, run)."""
    return blocks(windows.shape[1], windows[:, :1].nbytes, BLOCK)


def _padded(x: Array, window: Window, fill: float) -> Array:
    """Return the pixels of x (N, H, W, C), with the window's padding."""
    inner = as_rows(x)
    if window.padding == ((0, 0), (0, 0)):
        return inner
    G, H, W, run = inner.shape
    padded = memory.empty((G, *window.padded_size((H, W)), run), x.dtype)
    padded[...] = fill
    padded[window.interior((H, W))] = inner
    return padded


def _interior(padded: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return padded pixels without their padding."""
    return padded if window.padding == ((0, 0), (0, 0)) else contiguous(padded[window.interior(image_size)])


def _gradient_of(padded_shape: tuple[int, ...], dy: Array, window: Window) -> Array:
    """Return an array for the gradient of padded pixels: zeros, unless each is some window's and will be written."""
    covered = tuple(stride * count for stride, count in zip(window.strides, dy.shape[1:3], strict=True))
    tiled = window.strides == window.extent == window.size and padded_shape[1:3] == covered
    return memory.empty(padded_shape, dy.dtype) if tiled else memory.zeros(padded_shape, dy.dtype)
