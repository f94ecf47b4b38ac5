"""Pooling: forward one reduction over a strided view of all windows, backward one product of it with the gradient.

Images are taken as rows, (1, H, W, C·N) in HWCN and (N, H, W, C) otherwise (see `memory_layout.as_rows`), so that every
operation runs over long rows. All windows are one view of them,

    windows (G, OH, KH, OW, KW, run)                  overlapping where windows do, reduced over KH and KW

Output rows are computed block by block, so that the inputs of a block are read into the cache once. Max pooling saves
no switches: its gradient compares again, which costs less than writing them. A ReLU is one more operation per block.
Where windows do not overlap, each gradient is written once, through such a view; else it is added offset by offset.
"""

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory_layout import as_rows, blocks, contiguous, from_rows, pad, strided
from gpucnn.backends.numpy.tracer import as_single_call
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

Switches = tuple[Array, Array, bool]  # padded rows, their maxima, and whether these are clamped at 0

BLOCK = 1 << 22  # bytes of windows


def max_pool(x: Array, window: Window, relu: bool = False) -> tuple[Array, Switches]:
    """Return the largest element of each window of x (N, H, W, C), y (N, OH, OW, C); NaN propagates.

    With `relu`, negative results are clamped at 0.
    """
    padded, (OH, OW) = pad(as_rows(x), window, 1, -np.inf), window.output_size(x.shape[1:3])
    y = memory.empty((len(padded), OH, OW, padded.shape[3]), x.dtype)
    windows = _windows(padded, window, y)
    for rows in _row_blocks(windows):
        out = np.maximum.reduce(windows[:, rows], axis=(2, 4), out=y[:, rows])
        if relu:
            np.maximum(out, 0, out=out)
    return from_rows(y, len(x)), (padded, y, relu)


def max_pool_gradient(dy: Array, switches: Switches, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (N, H, W, C): dy goes to the first element that equals the maximum, unless a ReLU clamped it."""
    padded, y, relu = switches
    windows, dy_rows = _windows(padded, window, y), as_rows(dy)
    dpadded = _new_gradient(padded.shape, dy_rows, window)
    for rows in _row_blocks(windows):
        mask = workspace.get("mask", windows[:, rows].shape, np.bool_)
        np.equal(windows[:, rows], _broadcast_outputs(y[:, rows]), out=mask)
        positive = None
        if relu:
            positive = np.greater(y[:, rows], 0, out=workspace.get("positive", y[:, rows].shape, np.bool_))
            mask &= _broadcast_outputs(positive)
        _keep_first(mask, positive)
        _scatter(dpadded, window, rows, dy_rows, mask)
    return from_rows(_interior(dpadded, image_size, window), len(dy))


def average_pool(x: Array, window: Window) -> Array:
    """Return the average of each window of x (N, H, W, C) over its elements inside the image, y (N, OH, OW, C)."""
    image_size = x.shape[1:3]
    padded, (OH, OW) = pad(as_rows(x), window, 1), window.output_size(image_size)
    factor = _factor(image_size, window, x)
    y = memory.empty((len(padded), OH, OW, padded.shape[3]), x.dtype)
    windows = _windows(padded, window, y)
    for rows in _row_blocks(windows):
        out = np.add.reduce(windows[:, rows], axis=(2, 4), out=y[:, rows])
        out *= factor[rows]
    return from_rows(y, len(x))


def average_pool_gradient(dy: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (N, H, W, C): each element of a window gets the window's dy, divided by their number."""
    dy_rows, factor = as_rows(dy), _factor(image_size, window, dy)
    G, _, _, run = dy_rows.shape
    dpadded = _new_gradient((G, *window.padded_size(image_size), run), dy_rows, window)
    for rows in _row_blocks(_windows(dpadded, window, dy_rows)):
        _scatter(dpadded, window, rows, dy_rows, _broadcast_outputs(factor[None, rows]))
    return from_rows(_interior(dpadded, image_size, window), len(dy))


def _windows(padded: Array, window: Window, y: Array) -> Array:
    """Return all windows of padded rows (G, H, W, run): a view (G, OH, KH, OW, KW, run)."""
    (KH, KW), (SH, SW), (DH, DW) = window.size, window.strides, window.dilation
    G, OH, OW, run = y.shape
    image, row, pixel, item = padded.strides
    return strided(padded, (G, OH, KH, OW, KW, run), (image, SH * row, DH * row, SW * pixel, DW * pixel, item))


def _broadcast_outputs(y: Array) -> Array:
    """Return outputs (G, rows, OW, run) as they broadcast against their windows."""
    return y[:, :, None, :, None]


@as_single_call
def _keep_first(mask: Array, positive: Array | None) -> None:
    """Keep only the first maximum of each window, in place, in a mask (G, rows, KH, OW, KW, run).

    With `positive` (G, rows, OW, run), only windows whose maximum is positive have one.
    """
    G, rows, _, OW, _, run = mask.shape
    maxima = G * rows * OW * run if positive is None else np.count_nonzero(positive)
    if np.count_nonzero(mask) <= maxima:
        return
    found = np.zeros_like(mask[:, :, 0, :, 0])
    for i in range(mask.shape[2]):
        for j in range(mask.shape[4]):
            place = mask[:, :, i, :, j]
            np.greater(place, found, out=place)
            found |= place


def _scatter(dpadded: Array, window: Window, rows: slice, dy: Array, weight: Array) -> None:
    """Add dy times a weight to each window's elements, for some output rows; the weight broadcasts to the windows."""
    dwindows, dy_rows = _windows(dpadded, window, dy)[:, rows], _broadcast_outputs(dy[:, rows])
    if _is_disjoint(window):
        np.multiply(dy_rows, weight, out=dwindows)
        return
    weights = np.broadcast_to(weight, dwindows.shape)
    for i, j in window.offsets():
        term = workspace.get("term", dy[:, rows].shape, dy.dtype)
        dwindows[:, :, i, :, j] += np.multiply(dy[:, rows], weights[:, :, i, :, j], out=term)


def _is_disjoint(window: Window) -> bool:
    """Return whether no two windows overlap, so that each pixel belongs to at most one."""
    return all(stride >= extent for stride, extent in zip(window.strides, window.extent, strict=True))


def _factor(image_size: tuple[int, int], window: Window, like: Array) -> Array:
    """Return the weight of each element in its window's average, for each output pixel (OH, OW or 1, 1)."""
    if window.padding == ((0, 0), (0, 0)):
        return constant(np.full((window.output_size(image_size)[0], 1, 1), 1.0 / window.area, like.dtype))
    return constant((1.0 / window.valid_counts(np, image_size)).astype(like.dtype))


def _row_blocks(windows: Array) -> tuple[slice, ...]:
    """Split the output rows by the size of their windows (G, OH, KH, OW, KW, run)."""
    return blocks(windows.shape[1], windows[:, :1].nbytes, BLOCK)


def _interior(padded: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return padded rows without their padding."""
    return padded if window.padding == ((0, 0), (0, 0)) else contiguous(padded[window.interior(image_size)])


def _new_gradient(padded_shape: tuple[int, ...], dy: Array, window: Window) -> Array:
    """Return an array for the gradient of padded rows: zeros, unless every element will be written."""
    covered = tuple(stride * count for stride, count in zip(window.strides, dy.shape[1:3], strict=True))
    tiled = window.strides == window.extent == window.size and padded_shape[1:3] == covered
    return memory.empty(padded_shape, dy.dtype) if tiled else memory.zeros(padded_shape, dy.dtype)
