"""Convolution of few images, or with very large kernels: im2col some at a time, in buffers that are used again.

The channels lie innermost. For a chunk of images (or, where one image is too much, for a block of its output rows) the
windows are copied into a scratch buffer of about `CHUNK` bytes, a row at least, and multiplied at once:

    columns (n·rows·OW, KH·KW·C) @ kernel (KH·KW·C, F)  →  y[images, rows]

so the columns, KH·KW times the image, never exist as a whole, and the weight gradient builds them again. A 1×1
convolution without stride and padding needs no columns: its images are the matrix. Threads are BLAS' own, unless a team
is at work.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gpucnn.backends.base import column_groups, filter_groups, kernel_groups
from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.memory_layout import blocks, contiguous, even_slices
from gpucnn.backends.window import Window

Array = Any

CHUNK = 1 << 20  # bytes of columns at once: about half of a core's second-level cache
WIDE = 4  # so many chunks at once where the kernel is as large, lest it be read from memory over and over


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, groups: int, relu: bool) -> Array:
    """Return y (N, OH, OW, F) of x (N, H, W, C) and weight (KH, KW, C/groups, F)."""
    x, F = contiguous(x), weight.shape[-1]
    y = memory.empty((len(x), *window.output_size(x.shape[1:3]), F), x.dtype)
    kernels = kernel_groups(weight, groups)
    for images, rows, columns in _columns(x, window, _chunk(weight)):
        out = y[images, rows]  # contiguous: a chunk is either whole images or rows of one
        for rows_of_group, kernel, filters in zip(
            column_groups(columns, groups), kernels, even_slices(F, groups), strict=True
        ):
            np.matmul(rows_of_group, kernel, out=out.reshape(-1, F)[:, filters])
        if bias is not None:
            out += bias
        if relu:
            np.maximum(out, 0, out=out)
    return y


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    """Return dweight (KH, KW, C/groups, F): the sum over all chunks of columns (…, KH·KW·C)ᵀ @ dy (…, F)."""
    x, dy = contiguous(x), contiguous(dy)
    F, C = dy.shape[-1], x.shape[-1]
    total = memory.zeros((window.area * C // groups, F), x.dtype)
    for images, rows, columns in _columns(x, window, _chunk(total)):
        of_groups = filter_groups(dy[images, rows].reshape(-1, F), groups)
        for rows_of_group, dy_group, filters in zip(
            column_groups(columns, groups), of_groups, even_slices(F, groups), strict=True
        ):
            total[:, filters] += rows_of_group.T @ dy_group
    return total.reshape(*window.size, C // groups, F)


def input_gradient(dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int) -> Array:
    """Return dx (N, H, W, C): the columns' gradients dy @ kernelᵀ, added back window by window in a fixed order."""
    dy, F = contiguous(dy), dy.shape[-1]
    N, OH, OW = dy.shape[:3]
    C = weight.shape[2] * groups
    dx = memory.empty((N, *image_size, C), dy.dtype)
    kernels = kernel_groups(weight, groups)
    a_row, most = OW * window.area * C * dy.itemsize, _chunk(weight)
    for images in blocks(N, OH * a_row, most):
        padded = workspace.get("padded", (images.stop - images.start, *window.padded_size(image_size), C), dy.dtype)
        padded[...] = 0
        for rows in blocks(OH, (images.stop - images.start) * a_row, most):
            shape = images.stop - images.start, rows.stop - rows.start, OW, *window.size, C
            columns = workspace.get("input", shape, dy.dtype)
            of_groups = filter_groups(dy[images, rows].reshape(-1, F), groups)
            for dy_group, kernel, channels in zip(of_groups, kernels, even_slices(C, groups), strict=True):
                columns[..., channels] = (dy_group @ kernel.T).reshape(*shape[:5], -1)
            seen = padded[:, rows.start * window.strides[0] :]
            for i, j in window.offsets():
                seen[window.slices(i, j, shape[1:3])] += columns[:, :, :, i, j]
        dx[images] = padded[window.interior(image_size)]
    return dx


def _chunk(kernel: Array) -> int:
    """Return how many bytes of columns meet such a kernel at once."""
    return min(max(CHUNK, kernel.nbytes), WIDE * CHUNK)


def _columns(x: Array, window: Window, most: int) -> Iterator[tuple[slice, slice, Array]]:
    """Yield images and output rows, so many bytes at a time, with their columns (n, rows, OW, KH, KW, C)."""
    N, H, W, C = x.shape
    OH, OW = window.output_size((H, W))
    (SH, SW), (DH, DW) = window.strides, window.dilation
    a_row = OW * window.area * C * x.itemsize
    alone = window.area == 1 and window.strides == (1, 1) and window.padding == ((0, 0), (0, 0))
    for part in blocks(N, OH * a_row, most):
        if alone:
            yield part, slice(0, OH), x[part][:, :, :, None, None]
            continue
        views = sliding_window_view(_padded(x[part], window), window.extent, axis=(1, 2))
        views = views[:, ::SH, ::SW, :, ::DH, ::DW].transpose(0, 1, 2, 4, 5, 3)
        for rows in blocks(OH, a_row, most):
            shape = part.stop - part.start, rows.stop - rows.start, OW, *window.size, C
            columns = workspace.get("input", shape, x.dtype)
            np.copyto(columns, views[:, rows])
            yield part, rows, columns


def _padded(x: Array, window: Window) -> Array:
    """Return images with their padding, in the scratch; the images themselves where there is none."""
    if window.padding == ((0, 0), (0, 0)):
        return x
    N, H, W, C = x.shape
    padded = workspace.get("padded", (N, *window.padded_size((H, W)), C), x.dtype)
    padded[...] = 0
    padded[window.interior((H, W))] = x
    return padded
