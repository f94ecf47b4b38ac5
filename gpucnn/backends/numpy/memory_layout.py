"""The order in which the engine keeps images in memory.

Logically every image array is (N, H, W, C). With 8 images or more it lies in memory as (H, W, C, N), the batch
innermost:

    pixel (0, 0)                                  pixel (0, 1)
    [c0: n0 n1 n2 …][c1: n0 n1 n2 …] …            [c0: n0 n1 n2 …] …

NumPy's inner loops then run over C·N numbers instead of C, a row of pixels is one contiguous run, and what belongs to
one channel and one pixel is a vector over the batch. With fewer images the channels lie innermost.
NumPy's elementwise functions keep the order of what they are given, so images are laid out anew where they enter a
network, and where a layer of the user's own returns them in another order, and nowhere else.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.numpy import memory
from gpucnn.backends.numpy.traced_array import viewed

Array = Any

LINE = 16  # images whose float32 numbers fill a cache line
LEAST_BATCH = 8  # images; with fewer the inner loops would be short again
AT_ONCE = 32  # images whose order is changed together: more would be in each other's way in the cache


def batch_innermost(batch: int) -> bool:
    """Tell whether the engine keeps such arrays with the batch innermost."""
    return batch >= LEAST_BATCH


def batch_last(x: Array) -> Array:
    """Return x (N, H, W, C) as a contiguous (H, W, C, N): a view where the batch is innermost already."""
    lying = x.transpose(1, 2, 3, 0)
    if lying.flags.c_contiguous:
        return lying
    y = memory.empty(lying.shape, x.dtype)
    for images in blocks(len(x), 1, AT_ONCE):
        y[..., images] = lying[..., images]
    return y


def batch_first(x: Array) -> Array:
    """Return x (H, W, C, N) as (N, H, W, C): a view."""
    return x.transpose(3, 0, 1, 2)


def pixels(x: Array) -> Array:
    """Return x (N, H, W, C) as it lies in the engine's memory: (1, H, W, C·N), or (N, H, W, C) with few images."""
    if not batch_innermost(len(x)):
        return contiguous(x)
    N, H, W, C = x.shape
    return batch_last(x).reshape(1, H, W, C * N)


def images(pixels: Array, batch: int) -> Array:
    """Return pixels of so many images as (N, H, W, C)."""
    if not batch_innermost(batch):
        return pixels
    _, H, W, run = pixels.shape
    return batch_first(pixels.reshape(H, W, run // batch, batch))


def contiguous(array: Array) -> Array:
    """Return an array whose numbers lie in the order of its axes: itself, or a copy.

    NumPy's own `ascontiguousarray` copies past a recorder.
    """
    return array if array.flags.c_contiguous else array.copy()


def strided(array: Array, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Array:
    """Return another view of a contiguous array's memory, from so many bytes on.

    NumPy's own `as_strided` takes ten times as long to make one.
    """
    return viewed(array, lambda own: np.ndarray(shape, own.dtype, own, offset, strides))


@lru_cache(maxsize=4096)
def blocks(rows: int, a_row: int, most: int) -> tuple[slice, ...]:
    """Cut rows, each taking `a_row` (bytes, say), into blocks that take at most so much, but of one row at least."""
    step = max(1, most // max(1, a_row))
    return tuple(slice(start, min(start + step, rows)) for start in range(0, rows, step))


@lru_cache(maxsize=4096)
def equal_parts(length: int, parts: int) -> tuple[slice, ...]:
    """Cut a length into so many parts of nearly the same size."""
    return tuple(slice(length * k // parts, length * (k + 1) // parts) for k in range(parts))


@lru_cache(maxsize=4096)
def image_slices(batch: int, most: int) -> tuple[slice, ...]:
    """Cut a batch into slices of at most so many images, but never of fewer than the engine keeps innermost.

    Slices of more than `LINE` images begin on a cache line: on a multiple of `LINE`, where the batch does.
    """
    count = min(-(-batch // max(1, most)), max(1, batch // LEAST_BATCH))
    if count == 1 or most < LINE:
        return equal_parts(batch, count)
    step = most // LINE * LINE
    lines = equal_parts(-(-batch // LINE), -(-batch // step))
    return tuple(slice(part.start * LINE, min(part.stop * LINE, batch)) for part in lines)


def image_slice(array: Array, images: slice) -> Array:
    """Return some images of an array (…, N) as a contiguous one: itself where these are all."""
    return contiguous(array[..., images])
