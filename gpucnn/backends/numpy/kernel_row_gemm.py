"""Convolution in HWCN: one product per row of the kernel, without copies.

The input of a row of the kernel is KW neighbouring pixels, which lie in memory as one matrix (KW·C, n), and the
matrices of neighbouring windows are SW pixels apart:

    x[h]      [pixel 0: C·n][pixel 1: C·n][pixel 2: C·n][pixel 3: C·n][pixel 4: C·n] …
    windows   ╰───────────── ow = 0 ─────────────╯
                                          ╰───────────── ow = 1 ─────────────╯              KW = 3, SW = 2

So the sum over the kernel's rows i

    out[oh, ow] = Σ_i  weight[i] as (F, KW·C)  @  x[oh·SH + i − top, ow·SW − left …] as (KW·C, n)

is a batched product over overlapping views for each row of the kernel, accumulated while a block of the output is in
the cache. `lowered_rows.py` copies the image instead, KH-fold for a stride of 1, and needs only one product.

Windows that extend over the left or the right edge have fewer inputs: such columns get separate products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gpucnn.backends.numpy import workspace
from gpucnn.backends.numpy.memory_layout import blocks, strided
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

BLOCK = 1 << 19  # bytes of output: it, and what is added to it, stay in a core's second-level cache
MAX_ROW_BYTES = 3 << 20  # of the output; where a row would be larger, the batch is split
MIN_ROW_INPUTS = 24  # numbers; products of fewer are slow


@dataclass(frozen=True)
class Columns:
    """Neighbouring columns of the output whose windows use the same elements of a row of the kernel."""

    outputs: slice
    elements: slice
    first: int  # input pixel of the first window


@dataclass(frozen=True)
class KernelRow:
    """A row of the kernel, the rows of the output for which it lies inside the image, and its first row there."""

    number: int
    outputs: slice
    first: int


def supports(window: Window) -> bool:
    """Return whether the inputs of each window are neighbours in each row of the image, at least one of them inside."""
    return window.dilation[1] == 1 and max(window.padding[1]) < window.size[1]


def is_profitable(window: Window, channels: int, filters: int) -> bool:
    """Return whether this beats `lowered_rows.py`: products are large enough, and adding costs less than copying.

    For each pixel of the output, KH − 1 times F numbers are added here, and about KH·C·SW copied there.
    """
    (KH, KW), SW = window.size, window.strides[1]
    return supports(window) and KW * channels >= MIN_ROW_INPUTS and (KH - 1) * filters <= KH * channels * SW


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (KH, KW, C, F), bias (F,); yield each finished block of rows.

    x is contiguous, and the window is supported.
    """
    (H, W, C, n), (OH, OW, F, _), KW = x.shape, out.shape, window.size[1]
    kernel = weight.transpose(0, 3, 1, 2).reshape(-1, F, KW * C)
    columns = _columns(W, OW, KW, window.strides[1], window.padding[1][0])
    for block in blocks(OH, OW * F * n * x.itemsize, BLOCK):
        part, rows = out[block], _kernel_rows(window, H, block.start, block.stop)
        if rows and rows[0].outputs == block:
            _multiply(x, kernel, rows[0], columns, window, part)
            rows = rows[1:]
        else:
            part[...] = 0
        for row in rows:
            count = row.outputs.stop - row.outputs.start
            term = workspace.get("sums", (count, OW, F, n), x.dtype)
            _multiply(x, kernel, row, columns, window, term)
            out[row.outputs] += term
        if bias is not None:
            part += bias[:, None]
        yield part


def _multiply(
    x: Array, kernel: Array, row: KernelRow, columns: tuple[Columns, ...], window: Window, out: Array
) -> None:
    """Write the product of one row of the kernel (KH, F, KW·C) with x to out (rows, OW, F, n)."""
    _, W, C, n = x.shape
    (SH, SW), item = window.strides, x.itemsize
    pixel = C * n * item
    line = W * pixel
    for group in columns:
        elements = slice(group.elements.start * C, group.elements.stop * C)
        shape = len(out), group.outputs.stop - group.outputs.start, elements.stop - elements.start, n
        inputs = strided(x, shape, (SH * line, SW * pixel, n * item, item), row.first * line + group.first * pixel)
        np.matmul(kernel[row.number, :, elements], inputs, out=out[:, group.outputs])


@lru_cache(maxsize=1024)
def _kernel_rows(window: Window, height: int, start: int, stop: int) -> tuple[KernelRow, ...]:
    """Return the kernel's rows that lie inside the image for some rows of the output; the one with most rows first."""
    (KH, _), (SH, _), (DH, _), top = window.size, window.strides, window.dilation, window.padding[0][0]
    rows = []
    for number in range(KH):
        shift = number * DH - top  # its row of the image for the first row of the output
        first, last = max(start, -(shift // SH)), min(stop, (height - 1 - shift) // SH + 1)
        if first < last:
            rows.append(KernelRow(number, slice(first, last), first * SH + shift))
    return tuple(sorted(rows, key=lambda row: row.outputs.start - row.outputs.stop))


@lru_cache(maxsize=1024)
def _columns(width: int, outputs: int, elements: int, stride: int, before: int) -> tuple[Columns, ...]:
    """Return the output's columns, neighbours merged where they use the same elements of a kernel's row."""
    merged: list[Columns] = []
    for column in range(outputs):
        at = column * stride - before
        inputs = slice(max(0, -at), min(elements, width - at))
        last = merged[-1] if merged else None
        if last is not None and last.elements == inputs:
            merged[-1] = Columns(slice(last.outputs.start, column + 1), inputs, last.first)
        else:
            merged.append(Columns(slice(column, column + 1), inputs, at + inputs.start))
    return tuple(merged)
