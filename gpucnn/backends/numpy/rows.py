"""Convolution of images with few channels: rows lowered once, then one stacked product over overlapping views.

The batch lies innermost. A block of output rows is lowered along the kernel's rows only, a KH-fold copy instead of the
KH·KW-fold one of im2col:

    lowered[oh, w] = x[oh … oh + KH − 1, w]          (KH·C, n) numbers in a row for each oh and each w

The window of output pixel (oh, ow) is lowered[oh, ow … ow + KW − 1]: the KW blocks lie side by side in memory, so
they are one matrix (KW·KH·C, n), and neighbouring pixels' matrices overlap. One `matmul` of the weight (F, KW·KH·C)
with this stack gives the output (OH, OW, F, n), in the order in which it is kept. For stride 1, without dilation
or groups.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpucnn.backends.numpy import scratch, threads
from gpucnn.backends.numpy.order import batch_innermost, batch_last
from gpucnn.backends.window import Window

Array = Any

SLICE = 64  # images a slice: long enough for full vectors, short enough for the lowered rows to stay in the cache


def serves(window: Window, batch: int, channels: int, filters: int, groups: int) -> bool:
    """Tell whether this path serves a convolution."""
    plain = window.strides == (1, 1) and window.dilation == (1, 1) and groups == 1
    return plain and batch_innermost(batch, max(channels, filters))


def convolve(x: Array, weight: Array, bias: Array | None, window: Window) -> Array:
    """Return y (N, OH, OW, F) of x (N, H, W, C) and weight (KH, KW, C, F)."""
    x = batch_last(x)
    H, W, C, N = x.shape
    KH, KW, _, F = weight.shape
    OH, OW = window.output_size((H, W))
    kernel = weight.transpose(3, 1, 0, 2).reshape(F, KW * KH * C)
    y = np.empty((OH, OW, F, N), x.dtype)

    def convolve_slice(images: slice) -> None:
        for rows in _row_blocks(x, window, images):
            part = y[rows, :, :, images]
            np.matmul(kernel, _windows(x, window, rows, images), out=part)
            if bias is not None:
                part += bias[:, None]

    work = 2.0 * y.size * kernel.shape[1]
    threads.run([partial(_each, convolve_slice, share) for share in _shares(N, work)])
    return y.transpose(3, 0, 1, 2)


def weight_gradient(x: Array, dy: Array, window: Window) -> Array:
    """Return dweight (KH, KW, C, F): the sum over all pixels of window (KW·KH·C, n) times dy (n, F)."""
    x, dy = batch_last(x), batch_last(dy)
    (_, OW, F, N), C = dy.shape, x.shape[2]
    KH, KW = window.size
    K = KW * KH * C

    def gradient_of_slices(share: list[slice]) -> Array:
        total = np.zeros(K * F, x.dtype)
        for images in share:
            for rows in _row_blocks(x, window, images, a_pixel=K * F):
                count = (rows.stop - rows.start) * OW
                products = scratch.take("products", (rows.stop - rows.start, OW, K, F), x.dtype)
                windows = _windows(x, window, rows, images)
                np.matmul(windows, dy[rows, :, :, images].transpose(0, 1, 3, 2), out=products)
                total += np.ones(count, x.dtype) @ products.reshape(count, K * F)
        return total

    work = 2.0 * dy.size * K
    totals = threads.run([partial(gradient_of_slices, share) for share in _shares(N, work)])
    return sum(totals[1:], totals[0]).reshape(KW, KH, C, F).transpose(1, 0, 2, 3)


def _windows(x: Array, window: Window, rows: slice, images: slice) -> Array:
    """Lower a block of output rows of x (H, W, C, N); return the stack of windows (rows, OW, KW·KH·C, n)."""
    H, W, C, _ = x.shape
    (PT, _), (PL, _) = window.padding
    KH, KW = window.size
    count, n = rows.stop - rows.start, images.stop - images.start
    _, padded_width = window.padded_size((H, W))
    lowered = scratch.take("lowered", (count, padded_width, KH, C, n), x.dtype)
    lowered[:, :PL] = 0
    lowered[:, PL + W :] = 0
    for i in range(KH):
        above = rows.start + i - PT  # the image row that the block's first output row sees through kernel row i
        first = min(count, max(0, -above))
        last = max(first, min(count, H - above))
        lowered[:first, PL : PL + W, i] = 0
        lowered[last:, PL : PL + W, i] = 0
        lowered[first:last, PL : PL + W, i] = x[above + first : above + last, :, :, images]
    row, pixel, item = lowered.strides[0], lowered.strides[1], lowered.itemsize
    shape = count, padded_width - KW + 1, KW * KH * C, n
    return as_strided(lowered, shape, (row, pixel, n * item, item), writeable=False)


def _row_blocks(x: Array, window: Window, images: slice, a_pixel: int = 0) -> list[slice]:
    """Cut the output rows so that what is lowered for a block, or kept for each of its pixels, fits the scratch."""
    H, W, C, _ = x.shape
    OH, OW = window.output_size((H, W))
    _, padded_width = window.padded_size((H, W))
    a_row = max(padded_width * window.size[0] * C * (images.stop - images.start), OW * a_pixel)
    step = max(1, scratch.LIMIT // (a_row * x.itemsize))
    return [slice(start, min(start + step, OH)) for start in range(0, OH, step)]


def _shares(batch: int, work: float) -> list[list[slice]]:
    """Cut a batch into slices of images, and deal them out among the threads."""
    count = min(threads.num_threads(), max(1, int(work / threads.WORTH_SHARING)), -(-batch // (SLICE // 2)))
    edges = [batch * k // count for k in range(count + 1)]
    return [[slice(at, min(at + SLICE, stop)) for at in range(start, stop, SLICE)] for start, stop in pairwise(edges)]


def _each(function: Any, items: list[slice]) -> None:
    for item in items:
        function(item)
