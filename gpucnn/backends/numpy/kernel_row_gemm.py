"""Convolution with the batch innermost: one product for each row of the kernel, and nothing is copied.

What a row of the kernel sees is KW pixels side by side, which lie in memory as one matrix (KW·C, n), and the matrices
of neighbouring windows are SW pixels apart:

    x[h]      [pixel 0: C·n][pixel 1: C·n][pixel 2: C·n][pixel 3: C·n][pixel 4: C·n] …
    windows   ╰───────────── ow = 0 ─────────────╯
                                          ╰───────────── ow = 1 ─────────────╯              KW = 3, SW = 2

So the sum over the kernel's rows i

    out[oh, ow] = Σ_i  weight[i] as (F, KW·C)  @  x[oh·SH + i − top, ow·SW − left …] as (KW·C, n)

is a stacked product over overlapping views for each row of the kernel, added up while a block of the output is in the
cache. `rows.py` copies the image instead, KH-fold for a stride of 1, and gets by with one product.

Windows that reach over the left or the right edge see fewer pixels: such columns have products of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.numpy import workspace
from gpucnn.backends.numpy.memory_layout import blocks, strided
from gpucnn.backends.window import Window

Array = Any

BLOCK = 1 << 19  # bytes of output at once: it, and what is added to it, stay in a core's second-level cache
ROW = 3 << 20  # bytes of a row of the output at most; where it would be more, some of the images are taken at a time
LEAST = 24  # numbers that a row of the kernel sees; products of fewer are slow


@dataclass(frozen=True)
class Columns:
    """Neighbouring columns of the output whose windows see the same elements of a row of the kernel."""

    outputs: slice
    elements: slice
    first: int  # the first pixel that the first of the windows sees


@dataclass(frozen=True)
class KernelRow:
    """A row of the kernel, the rows of the output for which it sees the image, and the first one that it sees."""

    number: int
    outputs: slice
    first: int


def serves(window: Window) -> bool:
    """Tell whether each window sees pixels that lie side by side in each row of the image, and at least one of them."""
    return window.dilation[1] == 1 and max(window.padding[1]) < window.size[1]


def pays(window: Window, channels: int, filters: int) -> bool:
    """Tell whether this beats `rows.py`: where products are large enough, and adding costs less than copying.

    For each pixel of the output KH − 1 times F numbers are added here, and about KH·C·SW copied there.
    """
    (KH, KW), SW = window.size, window.strides[1]
    return serves(window) and KW * channels >= LEAST and (KH - 1) * filters <= KH * channels * SW


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (KH, KW, C, F), bias (F,); yield each finished block of rows.

    x is contiguous, and the window one that this path serves.
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
    """Write what one row of the kernel (KH, F, KW·C) makes of x to out (rows, OW, F, n)."""
    _, W, C, n = x.shape
    (SH, SW), item = window.strides, x.itemsize
    pixel = C * n * item
    line = W * pixel
    for some in columns:
        elements = slice(some.elements.start * C, some.elements.stop * C)
        shape = len(out), some.outputs.stop - some.outputs.start, elements.stop - elements.start, n
        seen = strided(x, shape, (SH * line, SW * pixel, n * item, item), row.first * line + some.first * pixel)
        np.matmul(kernel[row.number, :, elements], seen, out=out[:, some.outputs])


@lru_cache(maxsize=1024)
def _kernel_rows(window: Window, height: int, start: int, stop: int) -> tuple[KernelRow, ...]:
    """Return the kernel's rows that see the image for some rows of the output: first one that does so for the most."""
    (KH, _), (SH, _), (DH, _), top = window.size, window.strides, window.dilation, window.padding[0][0]
    rows = []
    for number in range(KH):
        shift = number * DH - top  # the row of the image that it sees for the first row of the output
        first, last = max(start, -(shift // SH)), min(stop, (height - 1 - shift) // SH + 1)
        if first < last:
            rows.append(KernelRow(number, slice(first, last), first * SH + shift))
    return tuple(sorted(rows, key=lambda row: row.outputs.start - row.outputs.stop))


@lru_cache(maxsize=1024)
def _columns(width: int, outputs: int, elements: int, stride: int, before: int) -> tuple[Columns, ...]:
    """Return the output's columns, neighbours together where they see all elements of a kernel's row."""
    together: list[Columns] = []
    for column in range(outputs):
        at = column * stride - before
        seen = slice(max(0, -at), min(elements, width - at))
        last = together[-1] if together else None
        if last is not None and last.elements == seen:
            together[-1] = Columns(slice(last.outputs.start, column + 1), seen, last.first)
        else:
            together.append(Columns(slice(column, column + 1), seen, at + seen.start))
    return tuple(together)
