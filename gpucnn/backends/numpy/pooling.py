"""Pooling: a chain of elementwise operations over strided views, one for each element of the window.

The views look at pixels, (1, H, W, C·N) with the batch innermost and (N, H, W, C) otherwise (see `order.pixels`): every
operation runs over long rows. Output rows are taken a block at a time, so that what a block needs is read into the
cache once. Max pooling keeps no switches: its gradient compares again, which costs less than writing them. A ReLU is
one more operation on each block. Where windows do not overlap, each gradient is written once, not added to zeros.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.backends.numpy import memory, scratch
from gpucnn.backends.numpy.order import blocks, images, pixels
from gpucnn.backends.window import Window

Array = Any
Index = tuple[slice, slice, slice]
Kept = tuple[Array, Array, bool]  # padded pixels, the largest of them, and whether 0 stands for what is negative

BLOCK = 1 << 20  # bytes of output rows at once


def largest(x: Array, window: Window, relu: bool) -> tuple[Array, Kept]:
    """Return the largest element of each window of x (N, H, W, C), y (N, OH, OW, C); a NaN is passed on.

    With `relu` 0 stands for what is negative.
    """
    padded, (OH, OW) = _padded(x, window, -np.inf), window.output_size(x.shape[1:3])
    y = memory.empty((len(padded), OH, OW, padded.shape[3]), x.dtype)
    for rows in _row_blocks(y):
        out = y[:, rows]
        first, *others = (padded[at] for at in _places(window, rows, OW))
        np.maximum(first, others[0] if others else first, out=out)  # of itself where the window is one element
        for other in others[1:]:
            np.maximum(out, other, out=out)
        if relu:
            np.maximum(out, 0, out=out)
    return images(y, len(x)), (padded, y, relu)


def largest_gradient(dy: Array, kept: Kept, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (N, H, W, C): dy goes to the first element that equals the largest, if no ReLU cut it off."""
    padded, y, relu = kept
    dy_pixels, OW = pixels(dy), y.shape[2]
    dpadded, apart = _gradient_of(padded.shape, dy_pixels, window)
    for rows in _row_blocks(y):
        largest_here, dy_here = y[:, rows], dy_pixels[:, rows]
        share = None if apart else scratch.take("share", dy_here.shape, dy.dtype)
        won, free = (scratch.take(name, dy_here.shape, np.bool_) for name in ("won", "free"))
        if relu:
            np.greater(largest_here, 0, out=free)  # where dy counts, and no element of the window has won it yet
        else:
            free[...] = True
        *earlier, last = _places(window, rows, OW)
        for at in earlier:
            np.equal(padded[at], largest_here, out=won)
            won &= free
            free ^= won
            _give(dpadded, at, dy_here, won, share)
        _give(dpadded, last, dy_here, free, share)  # one of them is the largest: where no other has won, the last has
    return images(_interior(dpadded, image_size, window), len(dy))


def _give(dpadded: Array, at: Index, dy: Array, to: Array, share: Array | None) -> None:
    """Give dy to the elements at a place where `to` says so: to elements that get no other, or added to their share."""
    if share is None:
        np.multiply(dy, to, out=dpadded[at])
    else:
        dpadded[at] += np.multiply(dy, to, out=share)


def average(x: Array, window: Window) -> Array:
    """Return the average of each window of x (N, H, W, C) over its elements inside the image, y (N, OH, OW, C)."""
    image_size = x.shape[1:3]
    padded, (OH, OW), factor = _padded(x, window, 0), window.output_size(image_size), _factor(image_size, window, x)
    y = memory.empty((len(padded), OH, OW, padded.shape[3]), x.dtype)
    for rows in _row_blocks(y):
        out = y[:, rows]
        total, *others = (padded[at] for at in _places(window, rows, OW))
        for other in others:
            total = np.add(total, other, out=out)
        np.multiply(total, factor[rows] if isinstance(factor, np.ndarray) else factor, out=out)
    return images(y, len(x))


def average_gradient(dy: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (N, H, W, C): each element of a window gets the window's dy, divided by their number."""
    dy_pixels, factor = pixels(dy), _factor(image_size, window, dy)
    G, _, OW, run = dy_pixels.shape
    dpadded, apart = _gradient_of((G, *window.padded_size(image_size), run), dy_pixels, window)
    for rows in _row_blocks(dy_pixels):
        share = scratch.take("share", dy_pixels[:, rows].shape, dy.dtype)
        np.multiply(dy_pixels[:, rows], factor[rows] if isinstance(factor, np.ndarray) else factor, out=share)
        for at in _places(window, rows, OW):
            if apart:
                dpadded[at] = share
            else:
                dpadded[at] += share
    return images(_interior(dpadded, image_size, window), len(dy))


def _factor(image_size: tuple[int, int], window: Window, like: Array) -> Any:
    """Return what each element of a window counts for in its average: a number, or (OH, OW, 1) with padding."""
    if window.padding == ((0, 0), (0, 0)):
        return 1.0 / window.area
    return (1.0 / window.real_counts(np, image_size)).astype(like.dtype)


def _places(window: Window, rows: slice, OW: int) -> Iterator[Index]:
    """Yield where padded pixels hold what each element of the window sees, for some output rows."""
    (SH, SW), (DH, DW) = window.strides, window.dilation
    for i, j in window.offsets():
        down = slice(rows.start * SH + i * DH, (rows.stop - 1) * SH + i * DH + 1, SH)
        yield slice(None), down, slice(j * DW, j * DW + SW * (OW - 1) + 1, SW)


def _row_blocks(y: Array) -> Iterator[slice]:
    """Cut output rows (G, OH, OW, run) into blocks."""
    return blocks(y.shape[1], y[:, :1].nbytes, BLOCK)


def _padded(x: Array, window: Window, fill: float) -> Array:
    """Return the pixels of x (N, H, W, C), with the window's padding."""
    inner = pixels(x)
    if window.padding == ((0, 0), (0, 0)):
        return inner
    G, H, W, run = inner.shape
    padded = memory.empty((G, *window.padded_size((H, W)), run), x.dtype)
    padded[...] = fill
    padded[window.interior((H, W))] = inner
    return padded


def _interior(padded: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return padded pixels without their padding."""
    return padded if window.padding == ((0, 0), (0, 0)) else np.ascontiguousarray(padded[window.interior(image_size)])


def _gradient_of(padded_shape: tuple[int, ...], dy: Array, window: Window) -> tuple[Array, bool]:
    """Return an array for the gradient of padded pixels, and whether the windows lie apart.

    Where they do, each element is written at most once; what no window sees is 0 already.
    """
    apart = all(stride >= size for stride, size in zip(window.strides, window.extent, strict=True))
    covered = [stride * count for stride, count in zip(window.strides, dy.shape[1:3], strict=True)]
    dpadded = memory.empty(padded_shape, dy.dtype)
    if not apart or window.strides != window.size or list(padded_shape[1:3]) != covered:
        dpadded[...] = 0
    return dpadded, apart
