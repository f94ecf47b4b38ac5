"""Pooling: a chain of elementwise operations over strided views, one for each element of the window.

The views keep the order of the array they look at, so with the batch innermost every operation runs over long rows.
Output rows are taken a block at a time, so that what a block needs is read into the cache once. Max pooling keeps no
switches: its gradient compares again, which costs less than writing them. Where windows do not overlap, each gradient
is written once, not added to zeros.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.backends.numpy import masks, memory, scratch
from gpucnn.backends.window import Window

Array = Any
Index = tuple[slice, ...]

Kept = tuple[Array, Array]  # the padded images and the largest elements: the engine's form of the switches

BLOCK = 1 << 20  # bytes of output rows at once


def largest(padded: Array, window: Window, output_size: tuple[int, int]) -> Array:
    """Return the largest element of each window (N, OH, OW, C) of padded images; a NaN is passed on."""
    y = _like(padded, output_size)
    for rows in _row_blocks(y):
        out = y[:, rows]
        first, *others = (padded[at] for at in _places(window, rows, output_size[1]))
        if not others:
            out[...] = first
            continue
        np.maximum(first, others[0], out=out)
        for other in others[1:]:
            np.maximum(out, other, out=out)
    return y


def largest_gradient(dy: Array, kept: Kept, window: Window) -> Array:
    """Return the gradient of padded images: dy goes to the first element that equals the largest."""
    padded, y = kept
    dpadded, alone = _gradient_of(padded, dy, window)
    for rows in _row_blocks(y):
        largest_here = y[:, rows]
        dy_here = dy[:, rows]
        share = None if alone else _scratch("share", largest_here, y.dtype)
        won, free = (_scratch(name, largest_here, bool) for name in ("won", "free"))
        free[...] = True  # no element of the window has won yet
        *earlier, last = _places(window, rows, y.shape[2])
        for at in earlier:
            np.equal(padded[at], largest_here, out=won)
            won &= free
            free ^= won
            _give(dpadded, at, dy_here, won, share)
        _give(dpadded, last, dy_here, free, share)  # who else
    return dpadded


def _give(dpadded: Array, at: Index, dy: Array, to: Array, share: Array | None) -> None:
    """Give dy to the elements at a place where `to` says so: to elements that get no other, or added to their share."""
    if share is None:
        masks.keep(dy, to, dpadded[at])
    else:
        dpadded[at] += masks.keep(dy, to, share)


def total(padded: Array, window: Window, output_size: tuple[int, int], factor: Any) -> Array:
    """Return the sum of each window (N, OH, OW, C) of padded images, times a factor: a number or (OH, OW, 1)."""
    y = _like(padded, output_size)
    for rows in _row_blocks(y):
        out = y[:, rows]
        for number, at in enumerate(_places(window, rows, output_size[1])):
            if number == 0:
                out[...] = padded[at]
            else:
                out += padded[at]
        out *= factor[rows] if isinstance(factor, np.ndarray) else factor
    return y


def total_gradient(dy: Array, factor: Any, padded_size: tuple[int, int], window: Window) -> Array:
    """Return the gradient of padded images: each element of a window gets the window's dy times the factor."""
    dpadded, alone = _gradient_of(_like(dy, padded_size), dy, window)
    for rows in _row_blocks(dy):
        share = _scratch("share", dy[:, rows], dy.dtype)
        np.multiply(dy[:, rows], factor[rows] if isinstance(factor, np.ndarray) else factor, out=share)
        for at in _places(window, rows, dy.shape[2]):
            if alone:
                dpadded[at] = share
            else:
                dpadded[at] += share
    return dpadded


def _places(window: Window, rows: slice, OW: int) -> Iterator[Index]:
    """Yield where a padded image holds what each element of the window sees, for some output rows."""
    (SH, SW) = window.strides
    for i, j in window.offsets():
        yield (
            slice(None),
            slice(rows.start * SH + i, (rows.stop - 1) * SH + i + 1, SH),
            slice(j, j + SW * (OW - 1) + 1, SW),
        )


def _row_blocks(y: Array) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, y[:, :1].nbytes))
    for start in range(0, y.shape[1], step):
        yield slice(start, min(start + step, y.shape[1]))


def _gradient_of(padded: Array, dy: Array, window: Window) -> tuple[Array, bool]:
    """Return an array for the gradient of padded images, and whether each of its elements is written at most once."""
    alone = all(stride >= size for stride, size in zip(window.strides, window.size, strict=True))
    covered = [stride * count for stride, count in zip(window.strides, dy.shape[1:3], strict=True)]
    dpadded = _like(padded, padded.shape[1:3])
    if not alone or window.strides != window.size or list(padded.shape[1:3]) != covered:
        dpadded[...] = 0
    return dpadded, alone


def _like(images: Array, image_size: tuple[int, int]) -> Array:
    """Return uninitialised images (N, *image_size, C) in the order of others."""
    N, C = images.shape[0], images.shape[3]
    if images.strides[0] > images.strides[3]:
        return memory.empty((N, *image_size, C), images.dtype)
    return memory.empty((*image_size, C, N), images.dtype).transpose(3, 0, 1, 2)


def _scratch(purpose: str, like: Array, dtype: Any) -> Array:
    """Return a scratch array of the shape and order of some images."""
    N, H, W, C = like.shape
    if like.strides[0] > like.strides[3]:
        return scratch.take(purpose, like.shape, dtype)
    return scratch.take(purpose, (H, W, C, N), dtype).transpose(3, 0, 1, 2)
