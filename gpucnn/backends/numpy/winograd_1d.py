"""Convolution 3×3 with stride 1 by Winograd's method within rows, F(4, 3): half of the multiplications.

Each output row is cut into tiles of 4 pixels, each seen through 6 pixels of an input row; neighbouring tiles overlap by
two. With the matrices of `winograd.py` (B for the input, G for the weight, A for the output), applied across the image
alone, not down, a tile of the output is

    output tile = Aᵀ Σ_i [ (G · row i of the weight) ⊙ (Bᵀ · what row i of the kernel sees) ]

For few channels this beats the two-dimensional method, which halves the multiplications again but transforms twice as
much. The batch lies innermost, (H, W, C, n), and a block of rows is transformed at once. In

    V (tiles, 6, rows + 2, C, n)

the three rows that a kernel sees lie one behind another, as one matrix (3·C, n), and neighbouring rows' matrices
overlap: so the sum over the kernel's rows and the channels is one stacked product over such views, without a copy,

    M (tiles, 6, rows, F, n) = U (6, 1, F, 3·C) @ V as (tiles, 6, rows, 3·C, n)

What of a tile lies to the left or right of the image costs nothing: the matrices lose the columns, or the rows, that
belong to it. Rows above and below are zeros in V.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpucnn.backends.numpy import scratch
from gpucnn.backends.numpy.order import strided
from gpucnn.backends.numpy.winograd import A_T, B_T, SEEN, TILE, G
from gpucnn.backends.window import Window

Array = Any
View = tuple[slice, Array, Array]  # some tiles, Bᵀ for them, and what they see of each row (H, tiles, ≤ 6, C·n)

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
    views = _views(x, tiles, left)
    for start, stop in _row_blocks(OH, row_bytes(OW, max(C, F) * n * x.itemsize)):
        V = _transformed(views, start - top, stop - top + KERNEL - 1, tiles)
        tile, position, row, item = V.strides
        seen = strided(V, (tiles, SEEN, stop - start, KERNEL * C, n), (tile, position, row, n * item, item))
        M = scratch.take("output", (tiles, SEEN, stop - start, F, n), x.dtype)
        np.matmul(U, seen, out=M)
        if bias is not None:
            M[:, BIAS_AT] += bias[:, None]
        _put_output(M, out[start:stop])
        yield out[start:stop]


def row_bytes(width: int, pixel: int) -> int:
    """Return how many bytes a row of so many pixels takes in V or in M, a pixel having so many bytes."""
    return -(-width // TILE) * SEEN * pixel


def _views(x: Array, tiles: int, left: int) -> list[View]:
    """Return what the tiles see of images (H, W, C, n) with so much padding: those inside at once, others singly."""
    H, W, C, n = x.shape
    pixels = x.reshape(H, W, C * n)
    row, pixel, item = pixels.strides
    inside_from = min(tiles, -(-left // TILE))  # the tiles that see nothing but the image
    inside_to = max(inside_from, min(tiles, (W - SEEN + left) // TILE + 1))
    views: list[View] = []
    if inside_from < inside_to:
        seen = pixels[:, TILE * inside_from - left :]
        shape = H, inside_to - inside_from, SEEN, C * n
        # a group's channels are not contiguous, so `order.strided` cannot look at them
        whole = as_strided(seen, shape, (row, TILE * pixel, pixel, item))
        views.append((slice(inside_from, inside_to), B_T, whole))
    for tile in (*range(inside_from), *range(inside_to, tiles)):
        at = TILE * tile - left
        start, stop = (min(max(edge, 0), W) for edge in (at, at + SEEN))
        views.append((slice(tile, tile + 1), B_T[:, start - at : stop - at], pixels[:, None, start:stop]))
    return views


def _transformed(views: list[View], start: int, stop: int, tiles: int) -> Array:
    """Return V (tiles, 6, stop − start, C·n) of the image's rows from start to stop, of which some may be padding."""
    _, _, pixels = views[0]
    H, run = len(pixels), pixels.shape[-1]
    V = scratch.take("input", (tiles, SEEN, stop - start, run), pixels.dtype)
    inside_from, inside_to = (min(max(edge, 0), H) for edge in (start, stop))
    above, below = inside_from - start, inside_to - start
    V[:, :, :above], V[:, :, below:] = 0, 0
    for part, matrix, seen in views:
        np.matmul(matrix, seen[inside_from:inside_to], out=V[part, :, above:below].transpose(2, 0, 1, 3))
    return V


def _put_output(M: Array, out: Array) -> None:
    """Write Aᵀ M, for M (tiles, 6, rows, F, n), to rows of the output (rows, OW, F, n)."""
    tiles, _, count, F, n = M.shape
    by_row = M.reshape(tiles, SEEN, count, F * n).transpose(2, 0, 1, 3)
    pixels = out.reshape(count, -1, F * n)
    whole, rest = divmod(out.shape[1], TILE)
    if whole:
        np.matmul(A_T, by_row[:, :whole], out=pixels[:, : TILE * whole].reshape(count, whole, TILE, F * n))
    if rest:  # the last tile reaches over the image's edge
        np.matmul(A_T[:rest], by_row[:, whole], out=pixels[:, TILE * whole :])


def _row_blocks(height: int, a_row: int) -> Iterator[tuple[int, int]]:
    """Cut the output rows into blocks of about the same size of which V and M fit the scratch."""
    count = -(-height // max(1, BLOCK // a_row))
    for k in range(count):
        yield height * k // count, height * (k + 1) // count
