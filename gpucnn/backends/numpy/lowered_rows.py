"""Convolution in HWCN: rows lowered once, then one batched product over overlapping views.

A block of output rows is lowered along the kernel's rows only, a KH-fold copy instead of im2col's KH·KW-fold one:

    lowered[oh, w] = x[oh … oh + KH − 1, w]          (KH·C, n), contiguous for each oh and each w

This is for stride 1; with another the rows are SH apart. The window of output pixel (oh, ow) is
lowered[oh, ow … ow + KW − 1]: the KW blocks lie side by side in memory, so they are one matrix (KW·KH·C, n), and
neighbouring pixels' matrices overlap. One `matmul` of the weight (F, KW·KH·C) with this stack gives the output
(OH, OW, F, n) in the engine's layout.

The weight gradient sums over pixels and images, so these two axes become innermost:

    by_channel[h, c] = x[h, :, c]                     (W·n), contiguous for each h and c

The rows under a kernel are KH·C such runs, and a step to the right is a shift by n numbers: the gradient of kernel
column j is one product of (KH·C, OW·n), shifted by j·n, with dy (OW·n, F), for each output row. With a stride S each
run holds the pixels 0, S, 2S, … first, then 1, S + 1, …: the inputs of a column are neighbours again.

The input gradient adds each window's gradient back to the image; for stride 1 without dilation the kernel's rows are
summed within the product. Often it is a convolution of dy instead (see `convolution.py`).

All arrays are (H, W, C, n) and one group of channels here; `convolution.py` splits groups and batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpucnn.backends.numpy import kernel_row_gemm, memory, workspace
from gpucnn.backends.numpy.memory_layout import blocks, contiguous, strided
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

BLOCK = 1 << 21  # bytes of lowered rows: about what a core's second-level cache holds
PRODUCT_BLOCK = 1 << 19  # bytes of products that are summed at once
GRADIENT_BLOCK = 5 << 18  # bytes of the weight gradient's rearranged inputs
UNPACKED_GEMM_MAX = 8e5  # multiplications of one product, up to which OpenBLAS computes without packing
MIN_FILTERS_TO_TRANSPOSE = 32  # from which on dy is transposed for the weight gradient, filters innermost
MIN_PIXELS = 4  # pixels per product at least; with fewer, packing costs less


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (KH, KW, C, F), bias (F,); yield each finished block of rows.

    The bias is the weight of one more row in each window, of ones.
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
    unpacked = int(UNPACKED_GEMM_MAX / (KH * C * F * n))  # pixels
    width = unpacked if MIN_PIXELS <= unpacked < OW else OW  # pixels that one product sums over
    image_row = window.strides[0] * window.padded_size(x.shape[:2])[1] * C * n
    row_size = max(image_row, OW * F * n, KW * KH * C * F)  # of the copies of x and dy, and of the products
    for rows in blocks(len(dy), row_size * x.itemsize, GRADIENT_BLOCK):
        dy_rows = _pixels_by_filter(dy[rows])[:, None, None]
        for columns, inputs in _windows_by_channel(x, window, rows):
            products = workspace.get("products", (*inputs.shape[:4], F), x.dtype)  # (rows, columns, 1, KH·C, F)
            for start in range(0, OW, width):
                part = slice(start * n, min(start + width, OW) * n)  # of the pixels of a row, and the images
                np.matmul(inputs[..., part], dy_rows[..., part, :], out=products)
                total[columns] += products.reshape(*inputs.shape[:2], -1).sum(axis=0)
        if bias:
            dbias += (ones @ dy_rows[:, 0, 0]).sum(axis=0)
    return total.reshape(KW, KH, C, F).transpose(1, 0, 2, 3), dbias.astype(x.dtype) if bias else None


def _gradients_by_pixel(x: Array, dy: Array, window: Window, bias: bool) -> tuple[Array, Array | None]:
    """Return the results of `parameter_gradients` for a 1×1 kernel: one product per pixel, without copies."""
    (OH, OW, F, _), C = dy.shape, x.shape[2]
    inputs = x[:: window.strides[0], :: window.strides[1]]
    total, dbias = memory.zeros((C * F,), x.dtype), memory.zeros((F,), np.float64)
    for rows in blocks(OH, OW * C * F * x.itemsize, PRODUCT_BLOCK):
        for columns in blocks(OW, C * F * x.itemsize, PRODUCT_BLOCK):
            part = dy[rows, columns]
            products = workspace.get("products", (*part.shape[:2], C, F), x.dtype)
            np.matmul(inputs[rows, columns], part.swapaxes(2, 3), out=products)
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
    return _crop(padded, image_size, window)


def input_gradient_by_rows(dy: Array, weight: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (H, W, C, n) for stride 1 without dilation, summing over the kernel's rows within the products.

    Row h of dx depends on rows h − KH + 1 … h of dy, which are contiguous as (KH·F, OW·n) with the pixels last. One
    product with the weight (KW·C, KH·F) gives the contribution of each kernel column to the row; these are added.
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
        inputs = strided(by_channel, (count, KH * F, OW * n), (row, line, item))
        shifts = workspace.get("sums", (count, KW, C, OW, n), dy.dtype)
        np.matmul(kernel, inputs, out=shifts.reshape(count, KW * C, OW * n))
        for j in range(KW):
            dx[rows, j : j + OW].transpose(0, 2, 1, 3)[...] += shifts[:, j]
    return _crop(dx, image_size, window)


def input_gradient_by_phase(dy: Array, weight: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return dx (H, W, C, n) for strides without dilation: a convolution of dy for each phase of the pixels.

    Along an axis with stride S, pixel r + S·q of the padded image is an input only of the kernel's elements r, r + S, …
    for outputs q, q − 1, …: that is a convolution with every S-th element, flipped (a polyphase decomposition). Each
    pixel is written once, where adding windows back reads and writes it once for each of the kernel's elements.
    """
    C, n = weight.shape[2], dy.shape[3]
    dx = memory.empty((*image_size, C, n), dy.dtype)
    row_phases, column_phases = (
        [
            _Phase.of(r, image_size[axis], dy.shape[axis], window.size[axis], stride, window.padding[axis][0])
            for r in range(stride)
        ]
        for axis, stride in enumerate(window.strides)
    )
    for row_phase in row_phases:
        for column_phase in column_phases:
            out, part = dx[row_phase.pixels, column_phase.pixels], dy[row_phase.outputs, column_phase.outputs]
            kernel = weight[row_phase.elements, column_phase.elements][::-1, ::-1].swapaxes(2, 3)
            if not (out.size and part.size and kernel.size):
                out[...] = 0  # in no window
                continue
            phase_window = Window((kernel.shape[0], kernel.shape[1]), padding=(row_phase.padding, column_phase.padding))
            by_kernel_row = kernel_row_gemm.is_profitable(phase_window, *kernel.shape[2:])
            algorithm = kernel_row_gemm.convolve if by_kernel_row else convolve
            for _ in algorithm(contiguous(part), kernel, None, phase_window, out):
                pass
    return dx


@dataclass(frozen=True)
class _Phase:
    """Along one axis: the pixels of one phase, and the kernel's elements and the outputs that depend on them."""

    pixels: slice
    elements: slice
    outputs: slice
    padding: tuple[int, int]  # of the outputs, so that each pixel has as many of them as there are elements

    @classmethod
    def of(cls, phase: int, size: int, outputs: int, kernel: int, stride: int, before: int) -> "_Phase":
        first = (phase - before) % stride
        count, elements = len(range(first, size, stride)), len(range(phase, kernel, stride))
        nearest = (first + before - phase) // stride  # the last output for the first pixel, and for the last
        last = nearest + count - 1
        start, stop = max(0, nearest - (elements - 1)), max(0, min(outputs, last + 1))
        padding = max(0, elements - 1 - nearest), max(0, last + 1 - outputs)
        return cls(slice(first, size, stride), slice(phase, kernel, stride), slice(start, stop), padding)


def _crop(padded: Array, image_size: tuple[int, int], window: Window) -> Array:
    """Return padded images (H, W, C, n) without their padding."""
    _, rows, columns = window.interior(image_size)
    return contiguous(padded[rows, columns])


def _windows(x: Array, window: Window, rows: slice, with_ones: bool) -> Array:
    """Return the windows of a block of output rows as a stack of matrices (rows, OW, KW·KH·C, n).

    With `with_ones`, each of the KW blocks of a window ends with a row of ones.
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
        inputs = strided(x[first:], (count, W, KH, C * n), (SH * line, x.strides[1], DH * line, item))
        inner[:, :, : KH * C].reshape(count, W, KH, C * n)[...] = inputs
    else:
        for i in range(KH):
            _copy_rows(x, inner[:, :, i * C : (i + 1) * C], first + i * DH, SH)
    row, pixel, number, item = lowered.strides
    if DW == 1:
        return strided(lowered, (count, OW, KW * height, n), (row, SW * pixel, number, item))
    # dilated columns are not neighbours: they are gathered, KW times the lowered rows
    shape, strides = (count, OW, KW, height, n), (row, SW * pixel, DW * pixel, number, item)
    gathered = workspace.get("sums", shape, x.dtype)
    gathered[...] = strided(lowered, shape, strides)
    return gathered.reshape(count, OW, KW * height, n)


def _pixels_by_filter(dy: Array) -> Array:
    """Return rows of dy (rows, OW, F, n) as matrices (rows, OW·n, F).

    Many filters are made innermost, which takes longer than to make the pixels so, but multiplies faster.
    """
    count, OW, F, n = dy.shape
    if F < MIN_FILTERS_TO_TRANSPOSE:
        by_filter = workspace.get("output", (count, F, OW, n), dy.dtype)
        by_filter[...] = dy.transpose(0, 2, 1, 3)
        return by_filter.reshape(count, F, OW * n).swapaxes(1, 2)
    by_image = workspace.get("output", (count, OW, n, F), dy.dtype)
    np.copyto(by_image.swapaxes(2, 3), dy)
    return by_image.reshape(count, OW * n, F)


def _windows_by_channel(x: Array, window: Window, rows: slice) -> Iterator[tuple[slice, Array]]:
    """Yield columns of the kernel and their inputs in a block of output rows.

    The inputs are a view (rows, columns, 1, KH·C, OW·n), or with dilation (rows, columns, KH, C, OW·n). Without a
    stride they are those of all columns. With one, the inputs of each column are of one phase, made contiguous.
    """
    H, W, C, n = x.shape
    (KH, KW), (SH, SW), (DH, DW) = window.size, window.strides, window.dilation
    (top, _), (left, _) = window.padding
    count, OW = rows.stop - rows.start, window.output_size((H, W))[1]
    height, width = SH * (count - 1) + window.extent[0], -(-window.padded_size((H, W))[1] // SW)
    by_channel = workspace.get("input", (height, C, SW, width, n), x.dtype)
    for phase in range(SW):
        first, last = (min(max(0, -(-(edge - phase) // SW)), width) for edge in (left, left + W))
        line = by_channel[:, :, phase]
        line[:, :, :first], line[:, :, last:] = 0, 0
        image = x[:, phase + SW * first - left :: SW][:, : last - first].transpose(0, 2, 1, 3)
        _copy_rows(image, line[:, :, first:last], rows.start * SH - top, 1)
    shape = (count, KW if SW == 1 else 1, *((1, KH * C) if DH == 1 else (KH, C)), OW * n)
    row, channel, phase_stride, pixel, item = by_channel.strides
    strides = (SH * row, DW * pixel, DH * row, channel, item)
    if SW == 1:
        yield slice(0, KW), strided(by_channel, shape, strides)
        return
    for column in range(KW):
        step, phase = divmod(column * DW, SW)
        yield slice(column, column + 1), strided(by_channel, shape, strides, phase * phase_stride + step * pixel)


def _copy_rows(image: Array, out: Array, first: int, step: int) -> None:
    """Copy the rows first, first + step, … of an image to the rows of out; 0 outside the image."""
    count, H = len(out), len(image)
    above = min(count, max(0, -(first // step)))  # rows of out above the image
    inside = max(above, min(count, (H - 1 - first) // step + 1))
    if above > 0 or inside < count:
        out[:above], out[inside:] = 0, 0
    if inside > above:
        out[above:inside] = image[first + above * step : first + (inside - 1) * step + 1 : step]


def _row_blocks(x: Array, window: Window, gathered: bool) -> tuple[slice, ...]:
    """Split the output rows so that a block's lowered rows, and what is gathered of them, fit the workspace."""
    H, W, C, n = x.shape
    OH, OW = window.output_size((H, W))
    KH, KW = window.size
    row_size = max(window.padded_size((H, W))[1] * KH * C * n, KW * KH * OW * C * n if gathered else 0)
    return blocks(OH, row_size * x.itemsize, BLOCK)
