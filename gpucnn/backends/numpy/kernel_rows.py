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

from gpucnn.backends.numpy import scratch
from gpucnn.backends.numpy.order import blocks, strided
from gpucnn.backends.window import Window

Array = Any

BLOCK = 1 << 19  # bytes of output at once: it, and what is added to it, stay in a core's second-level cache
LEAST = 24  # numbers that a row of the kernel sees; products of fewer are slow


@dataclass(frozen=True)
class Columns:
    """Neighbouring columns of the output whose windows see the same elements of a row of the kernel."""

    outputs: slice
    elements: slice
    first: int  # the first pixel that the first of the windows sees


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
        part, begun = out[block], False
        for i, rows in _kernel_rows(window, H, block.start, block.stop):
            if not begun and rows != block:
                part[...] = 0
                begun = True
            made = part[rows.start - block.start : rows.stop - block.start]
            into = scratch.take("sums", made.shape, x.dtype) if begun else made
            _multiply(x, kernel[i], columns, window, rows.start * window.strides[0] + _shift(window, i), into)
            if begun:
                made += into
            begun = True
        if not begun:
            part[...] = 0
        if bias is not None:
            part += bias[:, None]
        yield part


def _multiply(x: Array, kernel: Array, columns: tuple[Columns, ...], window: Window, first: int, out: Array) -> None:
    """Write what one row of the kernel (F, KW·C) makes of x's rows from `first` on to out (rows, OW, F, n)."""
    _, W, C, n = x.shape
    (SH, SW), item = window.strides, x.itemsize
    pixel = C * n * item
    line = W * pixel
    for some in columns:
        a, b = some.elements.start * C, some.elements.stop * C
        shape = len(out), some.outputs.stop - some.outputs.start, b - a, n
        seen = strided(x, shape, (SH * line, SW * pixel, n * item, item), first * line + some.first * pixel)
        np.matmul(kernel[:, a:b], seen, out=out[:, some.outputs])


def _shift(window: Window, i: int) -> int:
    """Return the row of the image that row i of the kernel sees for the first output."""
    return i * window.dilation[0] - window.padding[0][0]


@lru_cache(maxsize=1024)
def _kernel_rows(window: Window, height: int, start: int, stop: int) -> list[tuple[int, slice]]:
    """Return the kernel's rows, and for which of some output rows each sees the image: the fullest first."""
    stride, inside = window.strides[0], []
    for i in range(window.size[0]):
        shift = _shift(window, i)
        first, last = max(start, -(shift // stride)), min(stop, (height - 1 - shift) // stride + 1)
        if first < last:
            inside.append((i, slice(first, last)))
    return sorted(inside, key=lambda row: row[1].start - row[1].stop)


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
