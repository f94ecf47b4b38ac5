"""Convolution of few images, or with very large kernels: im2col, one block at a time, in reused buffers.

The channels lie innermost. For a block of images (or, where one image is too much, of its output rows) the windows are
copied into a workspace of about `BLOCK` bytes, a row at least, and multiplied at once:

    columns (n·rows·OW, KH·KW·C) @ kernel (KH·KW·C, F)  →  y[images, rows]

so the columns, KH·KW times the image, never exist as a whole, and the weight gradient builds them again. A 1×1
convolution without stride and padding needs no columns: its images are the matrix. BLAS uses its own threads here,
except in a team.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.memory_layout import blocks, contiguous, even_slices, pad
from gpucnn.backends.reference import Array, column_groups, filter_groups, kernel_groups
from gpucnn.backends.window import Window

BLOCK = 1 << 20  # bytes of columns: about half of a core's second-level cache
MAX_BLOCKS = 4  # multiplied at once where the kernel is as large, so that it is not read from memory over and over


_padded = partial(workspace.get, "padded")


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, groups: int, relu: bool) -> Array:
    """Return y (N, OH, OW, F) of x (N, H, W, C) and weight (KH, KW, C/groups, F)."""
    x, F = contiguous(x), weight.shape[-1]
    y = memory.empty((len(x), *window.output_size(x.shape[1:3]), F), x.dtype)
    kernels = kernel_groups(weight, groups)
    for images, rows, columns in _columns(x, window, _block_bytes(weight)):
        out = y[images, rows]  # contiguous: a block is either whole images or rows of one
        parts = zip(column_groups(columns, groups), kernels, even_slices(F, groups), strict=True)
        for group_rows, kernel, filters in parts:
            np.matmul(group_rows, kernel, out=out.reshape(-1, F)[:, filters])
        if bias is not None:
            out += bias
        if relu:
            np.maximum(out, 0, out=out)
    return y


def weight_gradient(x: Array, dy: Array, window: Window, groups: int) -> Array:
    """Return dweight (KH, KW, C/groups, F): the sum over all blocks of columns (…, KH·KW·C)ᵀ @ dy (…, F)."""
    x, dy = contiguous(x), contiguous(dy)
    F, C = dy.shape[-1], x.shape[-1]
    total = memory.zeros((window.area * C // groups, F), x.dtype)
    for images, rows, columns in _columns(x, window, _block_bytes(total)):
        dy_groups = filter_groups(dy[images, rows].reshape(-1, F), groups)
        parts = zip(column_groups(columns, groups), dy_groups, even_slices(F, groups), strict=True)
        for group_rows, dy_group, filters in parts:
            total[:, filters] += group_rows.T @ dy_group
    return total.reshape(*window.size, C // groups, F)


def input_gradient(dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int) -> Array:
    """Return dx (N, H, W, C): the columns' gradients dy @ kernelᵀ, added back window by window in a fixed order."""
    dy, F = contiguous(dy), dy.shape[-1]
    N, OH, OW = dy.shape[:3]
    C = weight.shape[2] * groups
    dx = memory.empty((N, *image_size, C), dy.dtype)
    kernels = kernel_groups(weight, groups)
    row_size, max_size = OW * window.area * C * dy.itemsize, _block_bytes(weight)
    for images in blocks(N, OH * row_size, max_size):
        padded = workspace.get("padded", (images.stop - images.start, *window.padded_size(image_size), C), dy.dtype)
        padded[...] = 0
        for rows in blocks(OH, (images.stop - images.start) * row_size, max_size):
            shape = images.stop - images.start, rows.stop - rows.start, OW, *window.size, C
            columns = workspace.get("input", shape, dy.dtype)
            dy_groups = filter_groups(dy[images, rows].reshape(-1, F), groups)
            for dy_group, kernel, channels in zip(dy_groups, kernels, even_slices(C, groups), strict=True):
                columns[..., channels] = (dy_group @ kernel.T).reshape(*shape[:5], -1)
            inputs = padded[:, rows.start * window.strides[0] :]
            for i, j in window.offsets():
                inputs[window.slices(i, j, shape[1:3])] += columns[:, :, :, i, j]
        dx[images] = padded[window.interior(image_size)]
    return dx


def _block_bytes(kernel: Array) -> int:
    """Return how many bytes of columns are multiplied with a kernel at once."""
    return min(max(BLOCK, kernel.nbytes), MAX_BLOCKS * BLOCK)


def _columns(x: Array, window: Window, max_size: int) -> Iterator[tuple[slice, slice, Array]]:
    """Yield blocks of images and output rows with their columns (n, rows, OW, KH, KW, C), at most `max_size` bytes."""
    N, H, W, C = x.shape
    OH, OW = window.output_size((H, W))
    (SH, SW), (DH, DW) = window.strides, window.dilation
    row_size = OW * window.area * C * x.itemsize
    pointwise = window.area == 1 and window.strides == (1, 1) and window.padding == ((0, 0), (0, 0))
    for part in blocks(N, OH * row_size, max_size):
        if pointwise:
            yield part, slice(0, OH), x[part][:, :, :, None, None]
            continue
        views = sliding_window_view(pad(x[part], window, 1, allocate=_padded), window.extent, axis=(1, 2))
        views = views[:, ::SH, ::SW, :, ::DH, ::DW].transpose(0, 1, 2, 4, 5, 3)
        for rows in blocks(OH, row_size, max_size):
            shape = part.stop - part.start, rows.stop - rows.start, OW, *window.size, C
            columns = workspace.get("input", shape, x.dtype)
            np.copyto(columns, views[:, rows])
            yield part, rows, columns
