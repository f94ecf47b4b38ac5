"""Depthwise convolution, each channel with its own filters: a chain of elementwise operations instead of products.

A product of a channel's windows with its m = F / C filters would be tiny, and there would be C of them for each pixel.
In HWCN, (H, W, C, n), the same sum is KH·KW multiplications and additions of whole rows of pixels:

    y (OH, OW, C, m, n) = Σ_ij x (OH, OW, C, 1, n) shifted by (i, j) · weight_ij (C, m, n), each number repeated n times

Too few images for HWCN come one by one, as they lie, (H, W, C, 1). Where C·n is small, the row of weights is as long as
a row of pixels, so that NumPy's inner loop runs over the whole row.

Source: Chollet, "Xception" (2017).
"""

from collections.abc import Iterator

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.memory_layout import blocks
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

BLOCK = 1 << 18  # bytes of output: what is accumulated stays in the cache
SHORT = 128  # numbers per pixel up to which the inner loop runs over a row of pixels


def convolve(padded: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from padded images (H, W, C, n), weight (KH, KW, 1, F) and bias (F,), block by block."""
    broadcast, by_channel = _broadcast_weight(weight, padded, out.shape[1]), _by_channel(out, padded)
    for rows in blocks(len(out), out[0].nbytes, BLOCK):
        part = by_channel[rows]
        term = workspace.get("term", part.shape, part.dtype)
        for number, inputs in enumerate(_shifted_inputs(padded, window, rows, out.shape[1])):
            _multiply(inputs, broadcast[number], term if number else part)
            if number:
                part += term
        if bias is not None:
            out[rows] += bias[:, None]
        yield out[rows]


def weight_gradient(padded: Array, dy: Array, window: Window) -> Array:
    """Return dweight (KH, KW, 1, F) from padded images (H, W, C, n) and dy (OH, OW, F, n)."""
    dy = _by_channel(dy, padded)
    sums = memory.zeros((window.area, *dy.shape[2:]), dy.dtype)
    for rows in blocks(len(dy), dy[0].nbytes, BLOCK):
        part = dy[rows]
        term = workspace.get("term", part.shape, part.dtype)
        ones = workspace.ones(part.shape[0] * part.shape[1], dy.dtype)
        for total, inputs in zip(sums, _shifted_inputs(padded, window, rows, dy.shape[1]), strict=True):
            _multiply(inputs, part, term)
            total += (ones @ term.reshape(len(ones), -1)).reshape(total.shape)
    return sums.sum(axis=-1).reshape(*window.size, 1, -1)


def input_gradient(dy: Array, weight: Array, padded_shape: tuple[int, ...], window: Window) -> Array:
    """Return the gradient of padded images (H, W, C, n) from dy (OH, OW, F, n)."""
    padded = memory.zeros(padded_shape, dy.dtype)
    broadcast, dy = _broadcast_weight(weight, padded, dy.shape[1]), _by_channel(dy, padded)
    for rows in blocks(len(dy), dy[0].nbytes, BLOCK):
        part = dy[rows]
        term = workspace.get("term", part.shape, part.dtype)
        for gradient, row in zip(_shifted_inputs(padded, window, rows, dy.shape[1]), broadcast, strict=True):
            _multiply(part, row, term)
            for k in range(part.shape[3]):
                gradient[:, :, :, 0] += term[:, :, :, k]
    return padded


def _shifted_inputs(padded: Array, window: Window, rows: slice, OW: int) -> Iterator[Array]:
    """Yield the inputs of each kernel element for a block of output rows, (rows, OW, C, 1, n)."""
    (SH, SW), (DH, DW) = window.strides, window.dilation
    for i, j in window.offsets():
        row_slice = slice(rows.start * SH + i * DH, (rows.stop - 1) * SH + i * DH + 1, SH)
        yield padded[row_slice, j * DW : j * DW + SW * (OW - 1) + 1 : SW, :, None]


def _multiply(a: Array, b: Array, out: Array) -> None:
    """Fill out (…, C, m, n) with a·b, one of the m at a time: else the inner loop would run over these few."""
    for k in range(out.shape[3]):
        np.multiply(a[..., min(k, a.shape[-2] - 1), :], b[..., k, :], out=out[..., k, :])


def _broadcast_weight(weight: Array, padded: Array, OW: int) -> Array:
    """Return weight (KH, KW, 1, F) as (KH·KW, OW, C, m, n), or with 1 for OW: one for all pixels of a row."""
    C, n = padded.shape[2:]
    m, F = weight.shape[-1] // C, weight.shape[-1]
    broadcast = memory.empty((weight.size // F, OW if C * n <= SHORT else 1, C, m, n), weight.dtype)
    broadcast[...] = weight.reshape(-1, 1, C, m, 1)
    return broadcast


def _by_channel(y: Array, padded: Array) -> Array:
    """Return y (OH, OW, F, n) as (OH, OW, C, m, n): with the filters of each channel."""
    return y.reshape(*y.shape[:2], padded.shape[2], -1, y.shape[3])
