"""Convolution with the batch innermost: rows lowered once, then one stacked product over overlapping views.

A block of output rows is lowered along the kernel's rows only, a KH-fold copy instead of im2col's KH·KW-fold one:

    lowered[oh, w] = x[oh … oh + KH − 1, w]          (KH·C, n) numbers in a row for each oh and each w

This is for stride 1; with another the rows are SH apart. The window of output pixel (oh, ow) is
lowered[oh, ow … ow + KW − 1]: the KW blocks lie side by side in memory, so they are one matrix (KW·KH·C, n), and
neighbouring pixels' matrices overlap. One `matmul` of the weight (F, KW·KH·C) with this stack gives the output
(OH, OW, F, n), in the order in which it is kept.

The weight gradient sums over pixels and images, so there these two lie innermost together:

    by_channel[h, c] = x[h, :, c]                     (W·n) numbers in a row for each h and c

The rows of the image that a kernel sees are KH·C such runs, and a step to the right is a shift by n numbers: the
gradient of kernel column j is one product of (KH·C, OW·n), shifted by j·n, with dy (OW·n, F), for each output row. With
a stride S the pixels 0, S, 2S, … are laid first in a run, then 1, S + 1, …: what a column sees lies side by side again.

The input gradient adds back what each pixel of dy meant for its window; for stride 1 without dilation the kernel's rows
are added up within the product. Often it is a convolution of dy instead (see `convolution.py`).

All arrays are (H, W, C, n) and one group of channels here; `convolution.py` cuts groups and batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends.numpy import kernel_row_gemm, memory, workspace
from gpucnn.backends.numpy.memory_layout import blocks, contiguous, strided
from gpucnn.backends.window import Window

Array = Any

BLOCK = 1 << 21  # bytes of lowered rows at once: about what a core's second-level cache holds
PRODUCTS = 1 << 19  # bytes of products that are added up at once
GRADIENT_BLOCK = 5 << 18  # bytes of what the weight gradient lays anew at once
SMALL = 8e5  # multiplications of one product: up to this size OpenBLAS takes its path without packing
MANY_FILTERS = 32  # from which on they are laid side by side for the weight gradient
LEAST = 4  # pixels whose products are added up by one product at least; with fewer, packing costs less


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (KH, KW, C, F), bias (F,); yield each finished block of rows.

    The bias is the weight of one more row of numbers in each window, all ones.
    """
    KH, KW, C, F = weight.shape
    kernel = memory.zeros((F, KW, KH * C + (bias is not None)), weight.dtype)
    kernel[:, :, : KH * C] = weight.transpose(3, 1, 0, 2).reshape(F, KW, KH * C)
    if bias is not None:
        kernel[:, 0, -1] = bias
    kernel = kernel.reshape(F, -1)
    for rows in _row_blocks(x, window, gathered=window.dilation[1] > 1):
        part = out[rows]
        np.matmul(kernel, _windows(x, window, rows, bias is not None), out=part)
        yield part


def parameter_gradients(x: Array, dy: Array, window: Window, bias: bool) -> tuple[Array, Array | None]:
    """Return dweight (KH, KW, C, F) and, with `bias`, dbias (F,) from x (H, W, C, n) and dy (OH, OW, F, n)."""
    if window.area == 1 and window.padding == ((0, 0), (0, 0)):
        return _gradients_by_pixel(x, dy, window, bias)
    (_, OW, F, n), C = dy.shape, x.shape[2]
    KH, KW = window.size
    total = memory.zeros((KW, KH * C * F), x.dtype)
    dbias, ones = memory.zeros((F,), np.float64), workspace.ones(OW * n, x.dtype)
    small = int(SMALL / (KH * C * F * n))
    width = small if LEAST <= small < OW else OW  # pixels that one product adds up
    of_image = window.strides[0] * window.padded_size(x.shape[:2])[1] * C * n
    a_row = max(of_image, OW * F * n, KW * KH * C * F)  # of the copies of x and of dy, and of the products
    for rows in blocks(len(dy), a_row * x.itemsize, GRADIENT_BLOCK):
        dy_rows = _pixels_by_filter(dy[rows])[:, None, None]
        for columns, seen in _windows_by_channel(x, window, rows):
            products = workspace.get("products", (*seen.shape[:4], F), x.dtype)  # (rows, columns, 1, KH·C, F)
            for start in range(0, OW, width):
                part = slice(start * n, min(start + width, OW) * n)  # of the pixels of a row, and the images
                np.matmul(seen[..., part], dy_rows[..., part, :], out=products)
                total[columns] += products.reshape(*seen.shape[:2], -1).sum(axis=0)
        if bias:
            dbias += (ones @ dy_rows[:, 0, 0]).sum(axis=0)
    return total.reshape(KW, KH, C, F).transpose(1, 0, 2, 3), dbias.astype(x.dtype) if bias else None


def _gradients_by_pixel(x: Array, dy: Array, window: Window, bias: bool) -> tuple[Array, Array | None]:
    """Return what `parameter_gradients` does for a kernel of 1×1: a product for each pixel, and nothing is copied."""
    (OH, OW, F, _), C = dy.shape, x.shape[2]
    seen = x[:: window.strides[0], :: window.strides[1]]
    total, dbias = memory.zeros((C * F,), x.dtype), memory.zeros((F,), np.float64)
    for rows in blocks(OH, OW * C * F * x.itemsize, PRODUCTS):
        for columns in blocks(OW, C * F * x.itemsize, PRODUCTS):
            part = dy[rows, columns]
            products = workspace.get("products", (*part.shape[:2], C, F), x.dtype)
            np.matmul(seen[rows, columns], part.swapaxes(2, 3), out=products)
            products = products.reshape(-1, C * F)
            total += workspace.ones(len(products), x.dtype) @ products
            if bias:
                dbias += part.sum(axis=(0, 1, 3))
    return total.reshape(1, 1, C, F), dbias.astype(x.dtype) if bias else None


def input_gradient(dy: Array, weight: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (H, W, C, n): the windows' gradients kernelᵀ @ dy, added back offset by offset in a fixed order."""
    OH, OW, _, n = dy.shape
    KH, KW, C, F = weight.shape
    (SH, SW), (DH, DW) = window.strides, window.dilation
    kernel = weight.reshape(KH * KW * C, F)
    padded = memory.zeros((*window.padded_size(image_size), C, n), dy.dtype)
    for rows in blocks(OH, OW * KH * KW * C * n * dy.itemsize, BLOCK):
        count = rows.stop - rows.start
        windows = workspace.get("sums", (count, OW, KH, KW, C, n), dy.dtype)
        np.matmul(kernel, dy[rows], out=windows.reshape(count, OW, -1, n))
        for i, j in window.offsets():
            top, left = rows.start * SH + i * DH, j * DW
            padded[top : top + SH * (count - 1) + 1 : SH, left : left + SW * (OW - 1) + 1 : SW] += windows[:, :, i, j]
    return _inner(padded, image_size, window)


def input_gradient_by_rows(dy: Array, weight: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (H, W, C, n) for stride 1 without dilation, adding up over the kernel's rows within the products.

    Row h of dx meets rows h − KH + 1 … h of dy, which lie side by side as (KH·F, OW·n) with the pixels last. One
    product with the weight (KW·C, KH·F) gives what each kernel column adds to the row; these shifts are then added.
    """
    _, OW, F, n = dy.shape
    KH, KW, C, _ = weight.shape
    height, width = window.padded_size(image_size)
    kernel = contiguous(weight[::-1].transpose(1, 2, 0, 3)).reshape(KW * C, KH * F)
    dx = memory.zeros((height, width, C, n), dy.dtype)
    for rows in blocks(height, max(KW * C, F) * OW * n * dy.itemsize, BLOCK):
        count = rows.stop - rows.start
        by_channel = workspace.get("output", (count + KH - 1, F, OW, n), dy.dtype)
        _copy_rows(dy.transpose(0, 2, 1, 3), by_channel, rows.start - (KH - 1), 1)
        row, line, _, item = by_channel.strides
        seen = strided(by_channel, (count, KH * F, OW * n), (row, line, item))
        shifts = workspace.get("sums", (count, KW, C, OW, n), dy.dtype)
        np.matmul(kernel, seen, out=shifts.reshape(count, KW * C, OW * n))
        for j in range(KW):
            dx[rows, j : j + OW].transpose(0, 2, 1, 3)[...] += shifts[:, j]
    return _inner(dx, image_size, window)


def input_gradient_by_residue(dy: Array, weight: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (H, W, C, n) for strides without dilation: a convolution of dy for each residue of the pixels.

    Along an axis with stride S, pixel r + S·q of the padded image is seen by the kernel's elements r, r + S, … alone,
    and by outputs q, q − 1, …: that is a convolution with every S-th element, turned. Each pixel is written once, where
    adding windows back reads and writes it once for each of the kernel's elements.
    """
    C, n = weight.shape[2], dy.shape[3]
    dx = memory.empty((*image_size, C, n), dy.dtype)
    down, across = (
        [
            _Residue.of(r, image_size[axis], dy.shape[axis], window.size[axis], stride, window.padding[axis][0])
            for r in range(stride)
        ]
        for axis, stride in enumerate(window.strides)
    )
    for one in down:
        for other in across:
            out, part = dx[one.pixels, other.pixels], dy[one.outputs, other.outputs]
            kernel = weight[one.elements, other.elements][::-1, ::-1].swapaxes(2, 3)
            if not (out.size and part.size and kernel.size):
                out[...] = 0  # no window sees them
                continue
            small = Window((kernel.shape[0], kernel.shape[1]), padding=(one.padding, other.padding))
            convolved = kernel_row_gemm.convolve if kernel_row_gemm.pays(small, *kernel.shape[2:]) else convolve
            for _ in convolved(contiguous(part), kernel, None, small, out):
                pass
    return dx


@dataclass(frozen=True)
class _Residue:
    """Along one axis: the pixels of one residue, the kernel's elements that see them, and the outputs that do."""

    pixels: slice
    elements: slice
    outputs: slice
    padding: tuple[int, int]  # of the outputs, so that each pixel has as many as there are elements

    @classmethod
    def of(cls, residue: int, size: int, outputs: int, kernel: int, stride: int, before: int) -> "_Residue":
        first = (residue - before) % stride
        count, elements = len(range(first, size, stride)), len(range(residue, kernel, stride))
        nearest = (first + before - residue) // stride  # the last output that sees the first pixel, and the last one's
        last = nearest + count - 1
        start, stop = max(0, nearest - (elements - 1)), max(0, min(outputs, last + 1))
        padding = max(0, elements - 1 - nearest), max(0, last + 1 - outputs)
        return cls(slice(first, size, stride), slice(residue, kernel, stride), slice(start, stop), padding)


def _inner(padded: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return padded images (H, W, C, n) without their padding."""
    _, rows, columns = window.interior(image_size)
    return contiguous(padded[rows, columns])


def _windows(x: Array, window: Window, rows: slice, with_ones: bool) -> Array:
    """Return the windows of a block of output rows as a stack of matrices (rows, OW, KW·KH·C, n).

    With ones, each of the KW blocks of a window ends with a row of them.
    """
    H, W, C, n = x.shape
    (KH, KW), (SH, SW), (DH, DW) = window.size, window.strides, window.dilation
    count, OW = rows.stop - rows.start, window.output_size((H, W))[1]
    if window.area == 1 and window.padding == ((0, 0), (0, 0)) and not with_ones:
        return x[rows.start * SH : (rows.stop - 1) * SH + 1 : SH, : SW * (OW - 1) + 1 : SW]  # nothing to lower
    left, height = window.padding[1][0], KH * C + with_ones
    lowered = workspace.get("input", (count, window.padded_size((H, W))[1], height, n), x.dtype)
    lowered[:, :left], lowered[:, left + W :] = 0, 0
    lowered[:, :, KH * C :] = 1
    inner, first = lowered[:, left : left + W], rows.start * SH - window.padding[0][0]
    if first >= 0 and first + SH * (count - 1) + DH * (KH - 1) < H and x.flags.c_contiguous:
        line, item = x.strides[0], x.itemsize  # no padding above or below: all of the kernel's rows in one copy
        seen = strided(x[first:], (count, W, KH, C * n), (SH * line, x.strides[1], DH * line, item))
        inner[:, :, : KH * C].reshape(count, W, KH, C * n)[...] = seen
    else:
        for i in range(KH):
            _copy_rows(x, inner[:, :, i * C : (i + 1) * C], first + i * DH, SH)
    row, pixel, number, item = lowered.strides
    if DW == 1:
        return strided(lowered, (count, OW, KW * height, n), (row, SW * pixel, number, item))
    # dilated columns do not lie side by side: they are gathered, KW times what was lowered
    shape, strides = (count, OW, KW, height, n), (row, SW * pixel, DW * pixel, number, item)
    gathered = workspace.get("sums", shape, x.dtype)
    gathered[...] = strided(lowered, shape, strides)
    return gathered.reshape(count, OW, KW * height, n)


def _pixels_by_filter(dy: Array) -> Array:
    """Return rows of dy (rows, OW, F, n) as matrices (rows, OW·n, F).

    Many filters are laid side by side, which takes longer than to lay pixels so, but multiplies faster.
    """
    count, OW, F, n = dy.shape
    if F < MANY_FILTERS:
        by_filter = workspace.get("output", (count, F, OW, n), dy.dtype)
        by_filter[...] = dy.transpose(0, 2, 1, 3)
        return by_filter.reshape(count, F, OW * n).swapaxes(1, 2)
    by_image = workspace.get("output", (count, OW, n, F), dy.dtype)
    np.copyto(by_image.swapaxes(2, 3), dy)
    return by_image.reshape(count, OW * n, F)


def _windows_by_channel(x: Array, window: Window, rows: slice) -> Iterator[tuple[slice, Array]]:
    """Yield what some of the kernel's columns see in a block of output rows, and which columns those are.

    That is a view (rows, columns, 1, KH·C, OW·n), or with dilation (rows, columns, KH, C, OW·n). Without a stride it is
    all columns at once. With one, each column sees pixels of one residue, which are laid side by side.
    """
    H, W, C, n = x.shape
    (KH, KW), (SH, SW), (DH, DW) = window.size, window.strides, window.dilation
    (top, _), (left, _) = window.padding
    count, OW = rows.stop - rows.start, window.output_size((H, W))[1]
    height, width = SH * (count - 1) + window.extent[0], -(-window.padded_size((H, W))[1] // SW)
    by_channel = workspace.get("input", (height, C, SW, width, n), x.dtype)
    for residue in range(SW):
        first, last = (min(max(0, -(-(edge - residue) // SW)), width) for edge in (left, left + W))
        line = by_channel[:, :, residue]
        line[:, :, :first], line[:, :, last:] = 0, 0
        image = x[:, residue + SW * first - left :: SW][:, : last - first].transpose(0, 2, 1, 3)
        _copy_rows(image, line[:, :, first:last], rows.start * SH - top, 1)
    shape = (count, KW if SW == 1 else 1, *((1, KH * C) if DH == 1 else (KH, C)), OW * n)
    row, channel, of_residue, pixel, item = by_channel.strides
    strides = (SH * row, DW * pixel, DH * row, channel, item)
    if SW == 1:
        yield slice(0, KW), strided(by_channel, shape, strides)
        return
    for column in range(KW):
        step, residue = divmod(column * DW, SW)
        yield slice(column, column + 1), strided(by_channel, shape, strides, residue * of_residue + step * pixel)


def _copy_rows(image: Array, out: Array, first: int, step: int) -> None:
    """Copy the rows first, first + step, … of an image to out, one for each of its rows; 0 outside the image."""
    count, H = len(out), len(image)
    above = min(count, max(0, -(first // step)))  # rows of out that lie above the image
    inside = max(above, min(count, (H - 1 - first) // step + 1))
    if above > 0 or inside < count:
        out[:above], out[inside:] = 0, 0
    if inside > above:
        out[above:inside] = image[first + above * step : first + (inside - 1) * step + 1 : step]


def _row_blocks(x: Array, window: Window, gathered: bool) -> tuple[slice, ...]:
    """Cut the output rows into blocks of which the scratch can hold the lowered rows, and what is gathered of them."""
    H, W, C, n = x.shape
    OH, OW = window.output_size((H, W))
    KH, KW = window.size
    a_row = max(window.padded_size((H, W))[1] * KH * C * n, KW * KH * OW * C * n if gathered else 0)
    return blocks(OH, a_row * x.itemsize, BLOCK)
