"""How the engine lays out images in memory.

Logically every image array is (N, H, W, C). With 8 images or more it lies in memory as (H, W, C, N): HWCN, with the
batch innermost:

    pixel (0, 0)                                  pixel (0, 1)
    [c0: n0 n1 n2 …][c1: n0 n1 n2 …] …            [c0: n0 n1 n2 …] …

NumPy's inner loops then run over C·N numbers instead of C, a row of pixels is one contiguous run, and the numbers of
one channel and one pixel are a vector over the batch. With fewer images the channels lie innermost.
NumPy's elementwise functions keep the layout of their inputs, so images are transposed only where they enter a network
and where a custom layer returns them in another layout.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.traced_array import viewed
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

CACHE_LINE_IMAGES = 16  # images whose float32 numbers fill a cache line
MIN_HWCN_BATCH = 8  # images; with fewer the inner loops would be short again
TRANSPOSE_BLOCK = 32  # images that are transposed together: more would evict each other from the cache


def uses_hwcn(batch: int) -> bool:
    """Return whether the engine lays out a batch of that size as HWCN."""
    return batch >= MIN_HWCN_BATCH


def to_hwcn(x: Array) -> Array:
    """Return x (N, H, W, C) as a contiguous (H, W, C, N): a view where it is laid out as HWCN already."""
    hwcn = x.transpose(1, 2, 3, 0)
    if hwcn.flags.c_contiguous:
        return hwcn
    y = memory.empty(hwcn.shape, x.dtype)
    for images in blocks(len(x), 1, TRANSPOSE_BLOCK):
        y[..., images] = hwcn[..., images]
    return y


def to_nhwc(x: Array) -> Array:
    """Return x (H, W, C, N) as (N, H, W, C): a view."""
    return x.transpose(3, 0, 1, 2)


def as_rows(x: Array) -> Array:
    """Return x (N, H, W, C) in the engine's layout: (1, H, W, C·N), or (N, H, W, C) with few images."""
    if not uses_hwcn(len(x)):
        return contiguous(x)
    N, H, W, C = x.shape
    return to_hwcn(x).reshape(1, H, W, C * N)


def from_rows(rows: Array, batch: int) -> Array:
    """Return what `as_rows` would make of `batch` images as those images, (N, H, W, C)."""
    if not uses_hwcn(batch):
        return rows
    _, H, W, run = rows.shape
    return to_nhwc(rows.reshape(H, W, run // batch, batch))


def contiguous(array: Array) -> Array:
    """Return an array whose numbers lie in the order of its axes: itself, or a copy.

    The copies of NumPy's own `ascontiguousarray` are invisible to a tracer.
    """
    return array if array.flags.c_contiguous else array.copy()


def strided(array: Array, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Array:
    """Return another view of a contiguous array's memory, from an offset in bytes on.

    NumPy's own `as_strided` takes ten times as long to make one.
    """
    return viewed(array, lambda own: np.ndarray(shape, own.dtype, own, offset, strides))


@lru_cache(maxsize=4096)
def blocks(rows: int, row_size: int, max_size: int) -> tuple[slice, ...]:
    """Split rows of a size, in bytes say, into blocks of at most `max_size`, but of one row at least."""
    step = max(1, max_size // max(1, row_size))
    return tuple(slice(start, min(start + step, rows)) for start in range(0, rows, step))


@lru_cache(maxsize=4096)
def even_slices(length: int, parts: int) -> tuple[slice, ...]:
    """Split a length into a number of parts of nearly the same size."""
    return tuple(slice(length * k // parts, length * (k + 1) // parts) for k in range(parts))


@lru_cache(maxsize=4096)
def batch_slices(batch: int, max_images: int) -> tuple[slice, ...]:
    """Split a batch into slices of at most `max_images`, but never of too few images for HWCN.

    Slices of more than a cache line of images begin on a cache line, where the batch does.
    """
    line = CACHE_LINE_IMAGES
    count = min(-(-batch // max(1, max_images)), max(1, batch // MIN_HWCN_BATCH))
    if count == 1 or max_images < line:
        return even_slices(batch, count)
    step = max_images // line * line
    parts = even_slices(-(-batch // line), -(-batch // step))
    return tuple(slice(part.start * line, min(part.stop * line, batch)) for part in parts)


def batch_slice(array: Array, images: slice) -> Array:
    """Return some images of an array (…, N) as a contiguous array: itself where these are all."""
    return contiguous(array[..., images])


def pad(x: Array, window: Window, axis: int, fill: float = 0.0, allocate: Any = memory.empty) -> Array:
    """Return an array whose axes `axis` and `axis` + 1 are H and W with the window's padding; itself without any."""
    if window.padding == ((0, 0), (0, 0)):
        return x
    H, W = x.shape[axis : axis + 2]
    padded = allocate((*x.shape[:axis], *window.padded_size((H, W)), *x.shape[axis + 2 :]), x.dtype)
    padded[...] = fill
    padded[window.interior((H, W))[1 - axis :]] = x
    return padded
