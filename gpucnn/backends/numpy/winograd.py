"""Convolution 3×3 with stride 1 by Winograd's method F(4×4, 3×3): a quarter of the multiplications.

The output is cut into tiles of 4×4 pixels, each seen through 6×6 pixels of the input; neighbouring tiles of the input
overlap by two. With three small constant matrices (B for the input, G for the weight, A for the output)

    output tile = Aᵀ [ (G · weight · Gᵀ) ⊙ (Bᵀ · input tile · B) ] A

and the elementwise product ⊙, summed over the channels, is one matrix product for each of the 36 positions in a tile:

    M (36, tiles, F, n) = U (36, 1, F, C) @ V (36, tiles, C, n)

The batch lies innermost, (H, W, C, n), so every transform is itself a product of B, G or A with long rows of numbers
over overlapping views: down the image first, then across. A block of tiles, at most one row of them, is taken through
all of it in the scratch:

    x ──Bᵀ over 6 rows──▶ lines (6, width, C·n) ──Bᵀ over 6 columns──▶ V ──@U──▶ M ──Aᵀ, Aᵀ──▶ y

Sizes that are no multiples of 4 and the padding need no copies either. Above and below the image a matrix loses the
columns that would meet pixels outside it; to the left and right `lines` are filled with zeros. A matrix loses the rows
whose output nobody wants.

Source: Lavin, Gray, "Fast algorithms for convolutional neural networks" (2016), with their interpolation points
0, ±1, ±2. In float32 the result is within 1e-5 of float64 (L2, relative); float64 takes the direct path.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from gpucnn.backends.numpy import scratch
from gpucnn.backends.numpy.order import strided
from gpucnn.backends.window import Window

Array = Any

TILE, SEEN = 4, 6  # output and input pixels along one side of a tile
POSITIONS = SEEN * SEEN
BLOCK = 5 << 19  # bytes of V or M at once
SMALL = 6e5  # multiplications of one product: up to this size OpenBLAS takes its path without packing

B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=np.float32,
)
A_T = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=np.float32)
A = np.ascontiguousarray(A_T.T)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
G_BOTH = np.kron(G, G).astype(np.float32)  # (36, 9): along rows and columns at once
BIAS_AT = 1 * SEEN + 1  # Aᵀ spreads this position of a tile evenly over the tile's 16 outputs
G_BOTH_T = np.ascontiguousarray(G_BOTH.T)


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    C, F = weight.shape[2:]
    n = x.shape[-1]
    parts = _filter_parts(F, C * n)
    U = (G_BOTH @ weight.transpose(0, 1, 3, 2).reshape(9, F * C)).reshape(POSITIONS, 1, parts, F // parts, C)
    for block in _blocks(x, out, window):
        V = block.transformed_input(x)
        M = scratch.take("output", (POSITIONS, block.tiles, parts, F // parts, n), x.dtype)
        np.matmul(U, V[:, :, None], out=M)
        if bias is not None:
            M[BIAS_AT] += bias.reshape(parts, F // parts, 1)
        yield block.put_output(M, out)


def parameter_gradients(x: Array, dy: Array, window: Window, bias: bool) -> tuple[Array, Array | None]:
    """Return dweight (3, 3, C, F), added up over all tiles as dU, and with `bias` dbias (F,).

    Both from x (H, W, C, n) and dy (OH, OW, F, n). One position of dM is the sum over each tile of dy.
    """
    C, F = x.shape[2], dy.shape[2]
    dU, dbias = np.zeros((POSITIONS, C * F), x.dtype), np.zeros(F)
    positions = BLOCK // (C * F * x.itemsize)  # how many matrices (C, F) fit the scratch
    for block in _blocks(x, dy, window):
        V, dM = block.transformed_input(x), block.transformed_gradient(dy)
        step = max(1, min(POSITIONS, positions // block.tiles))
        ones = scratch.ones(block.tiles, x.dtype)
        for start in range(0, POSITIONS, step):
            part = slice(start, min(start + step, POSITIONS))
            shape = part.stop - start, block.tiles, C, F
            products = np.matmul(V[part], dM[part].transpose(0, 1, 3, 2), out=scratch.take("sums", shape, x.dtype))
            dU[part] += ones @ products.reshape(*shape[:2], C * F)
        if bias:
            dbias += dM[BIAS_AT].sum(axis=(0, 2))
    return (G_BOTH_T @ dU).reshape(3, 3, C, F), dbias.astype(x.dtype) if bias else None


@dataclass(frozen=True)
class _Block:
    """Some neighbouring tiles of one row of tiles: what of the output they are, and what of the input they see."""

    tiles: int
    output_rows: slice
    output_columns: slice
    top: int  # the first row and the first column of the input that they see; negative in the padding
    left: int
    input_rows: slice  # what of all they see lies inside the image
    input_columns: slice

    def transformed_input(self, x: Array) -> Array:
        """Return V (36, tiles, C, n)."""
        C, n = x.shape[2:]
        width, run = TILE * self.tiles + 2, C * n
        rows, columns, left = self.input_rows, self.input_columns, self.left
        lines = scratch.take("lines", (SEEN, width, run), x.dtype)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            lines[...] = 0
        else:
            inside_from, inside_to = columns.start - left, columns.stop - left
            lines[:, :inside_from], lines[:, inside_to:] = 0, 0
            seen = x[rows, columns].reshape(rows.stop - rows.start, -1, run)
            matrix = B_T[:, rows.start - self.top : rows.stop - self.top]
            np.matmul(matrix, seen.transpose(1, 0, 2), out=lines[:, inside_from:inside_to].transpose(1, 0, 2))
        V = scratch.take("input", (SEEN, SEEN, self.tiles, run), x.dtype)
        np.matmul(B_T, _tiles_of(lines, self.tiles, SEEN), out=V.transpose(0, 2, 1, 3))
        return V.reshape(POSITIONS, self.tiles, C, n)

    def transformed_gradient(self, dy: Array) -> Array:
        """Return dM (36, tiles, F, n) = A dy Aᵀ, the way back of `put_output`."""
        F, n = dy.shape[2:]
        rows, columns = self.output_rows, self.output_columns
        lines = scratch.take("output lines", (SEEN, TILE * self.tiles, F * n), dy.dtype)
        width = columns.stop - columns.start
        lines[:, width:] = 0
        seen = dy[rows, columns].reshape(rows.stop - rows.start, -1, F * n)
        np.matmul(A[:, : len(seen)], seen.transpose(1, 0, 2), out=lines[:, :width].transpose(1, 0, 2))
        dM = scratch.take("output", (SEEN, SEEN, self.tiles, F * n), dy.dtype)
        np.matmul(A, _tiles_of(lines, self.tiles, TILE), out=dM.transpose(0, 2, 1, 3))
        return dM.reshape(POSITIONS, self.tiles, F, n)

    def put_output(self, M: Array, y: Array) -> Array:
        """Write Aᵀ M A, for M (36, tiles, F, n), where it belongs in y (OH, OW, F, n); return that part of y.

        M (6, 6·tiles, F·n) ──Aᵀ down──▶ lines (height, 6·tiles, F·n) ──Aᵀ across──▶ y (height, 4·tiles, F·n)
        """
        run = y.shape[2] * y.shape[3]
        rows, columns = self.output_rows, self.output_columns
        height, whole = rows.stop - rows.start, (columns.stop - columns.start) // TILE
        lines = scratch.take("output lines", (height, SEEN * self.tiles, run), y.dtype)
        np.matmul(A_T[:height], M.reshape(SEEN, -1, run).transpose(1, 0, 2), out=lines.transpose(1, 0, 2))
        by_tile = lines.reshape(height, SEEN, self.tiles, run).transpose(0, 2, 1, 3)
        part = y[rows, columns].reshape(height, -1, run)
        if whole:
            np.matmul(A_T, by_tile[:, :whole], out=part[:, : TILE * whole].reshape(height, whole, TILE, run))
        if whole < self.tiles:  # the last tile reaches over the image's edge
            rest = part[:, TILE * whole :]
            np.matmul(A_T[: rest.shape[1]], by_tile[:, whole], out=rest)
        return y[rows, columns]


def _blocks(x: Array, y: Array, window: Window) -> list[_Block]:
    """Cut the output into blocks of tiles whose V and M fit the scratch."""
    most = max(1, BLOCK // (POSITIONS * max(x.shape[2], y.shape[2]) * x.shape[3] * x.itemsize))
    return _blocks_of(x.shape[:2], y.shape[:2], window.padding, most)


@lru_cache
def _blocks_of(
    image_size: tuple[int, int], output_size: tuple[int, int], padding: tuple[tuple[int, int], ...], most: int
) -> list[_Block]:
    """Cut the output into blocks of at most so many tiles."""
    (H, W), (OH, OW), ((PT, _), (PL, _)) = image_size, output_size, padding
    across = -(-OW // TILE)
    count = -(-across // most)
    blocks = []
    for row in range(0, OH, TILE):
        for start, stop in pairwise(across * k // count for k in range(count + 1)):
            top, left, width = row - PT, start * TILE - PL, (stop - start) * TILE + 2
            blocks.append(
                _Block(
                    tiles=stop - start,
                    output_rows=slice(row, min(row + TILE, OH)),
                    output_columns=slice(start * TILE, min(stop * TILE, OW)),
                    top=top,
                    left=left,
                    input_rows=slice(max(top, 0), min(top + SEEN, H)),
                    input_columns=slice(max(left, 0), min(left + width, W)),
                )
            )
    return blocks


def _filter_parts(filters: int, a_filter: int) -> int:
    """Return into how many equal parts the filters are cut so that one product of each is small, if they can be."""
    parts = 1
    while filters // parts * a_filter > SMALL and filters % (2 * parts) == 0 and filters // parts > 32:
        parts *= 2
    return parts


def _tiles_of(lines: Array, tiles: int, seen: int) -> Array:
    """Return the overlapping pieces of lines (6, width, run), a tile each: a view (6, tiles, seen, run)."""
    line, pixel, item = lines.strides
    return strided(lines, (SEEN, tiles, seen, lines.shape[2]), (line, TILE * pixel, pixel, item))
