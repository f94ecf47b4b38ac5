"""Convolution 3×3 with stride 1 by Winograd's method within rows, F(4, 3): half of the multiplications.

Each output row is cut into tiles of 4 pixels, each seen through 6 pixels of an input row (see `tiles.py`). With B for
the input, G for the weight, A for the output, applied across the image alone, not down, a tile of the output is

    output tile = Aᵀ Σ_i [ (G · row i of the weight) ⊙ (Bᵀ · what row i of the kernel sees) ]

For few channels this beats the two-dimensional method, which halves the multiplications again but transforms twice as
much. The batch lies innermost, (H, W, C, n), and a block of rows is transformed at once. In

    V (tiles, 6, rows + 2, C, n)

the three rows that a kernel sees lie one behind another, as one matrix (3·C, n), and neighbouring rows' matrices
overlap: so the sum over the kernel's rows and the channels is one stacked product over such views, without a copy,

    M (tiles, 6, rows, F, n) = U (6, 1, F, 3·C) @ V as (tiles, 6, rows, 3·C, n)
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.backends.numpy import scratch
from gpucnn.backends.numpy.order import equal_parts, strided
from gpucnn.backends.numpy.tiles import SEEN, TILE, Alike, G, stretch
from gpucnn.backends.window import Window

Array = Any

KERNEL = 3  # rows of the kernel
BLOCK = 5 << 19  # bytes of V or M at once
BIAS_AT = 1  # Aᵀ spreads this position of a tile evenly over the tile's 4 outputs


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    OH, OW, F, n = out.shape
    C, tiles = x.shape[2], -(-OW // TILE)
    (top, _), (left, _) = window.padding
    by_column = weight.transpose(1, 3, 0, 2).reshape(KERNEL, F * KERNEL * C)
    U = (G.astype(weight.dtype) @ by_column).reshape(SEEN, 1, F, KERNEL * C)
    across = stretch(0, tiles, x.shape[1], OW, left)
    pixels = x[:, across.image].reshape(len(x), -1, C * n)
    views = [(alike, alike.of(pixels, 1)) for alike in across.seen]  # (H, tiles, ≤ 6, C·n)
    rows_at_once = max(1, BLOCK // row_bytes(OW, max(C, F) * n * x.itemsize))
    for rows in equal_parts(OH, -(-OH // rows_at_once)):
        count = rows.stop - rows.start
        V = scratch.take("input", (tiles, SEEN, count + KERNEL - 1, C * n), x.dtype)
        _transform(views, rows.start - top, V)
        tile, position, row, item = V.strides
        seen = strided(V, (tiles, SEEN, count, KERNEL * C, n), (tile, position, row, n * item, item))
        M = scratch.take("output", (tiles, SEEN, count, F, n), x.dtype)
        np.matmul(U, seen, out=M)
        if bias is not None:
            M[:, BIAS_AT] += bias[:, None]
        part = out[rows]
        by_row = M.reshape(tiles, SEEN, count, F * n).transpose(2, 0, 1, 3)
        made = part.reshape(count, OW, F * n)
        for alike in across.made:
            np.matmul(alike.matrix, by_row[:, alike.tiles], out=alike.of(made, 1))
        yield part


def row_bytes(width: int, pixel: int) -> int:
    """Return how many bytes a row of so many pixels takes in V or in M, a pixel having so many bytes."""
    return -(-width // TILE) * SEEN * pixel


def _transform(views: list[tuple[Alike, Array]], start: int, V: Array) -> None:
    """Fill V (tiles, 6, rows, C·n) from the image's rows from `start` on, with zeros where these are padding."""
    H = len(views[0][1])
    first, last = (min(max(edge, 0), H) for edge in (start, start + V.shape[2]))
    above, below = first - start, last - start
    V[:, :, :above], V[:, :, below:] = 0, 0
    for alike, seen in views:
        out = V[alike.tiles, :, above:below].transpose(2, 0, 1, 3)
        np.matmul(alike.matrix, seen[first:last], out=out)
