"""Convolution 3×3 with stride 1 by Winograd's method within rows, F(4, 3): half of the multiplications.

Each output row is cut into tiles of 4 pixels, each seen through 6 pixels of an input row (see `tiles.py`). With B for
the input, G for the weight, A for the output, applied across the image alone, not down, a tile of the output is

    output tile = Aᵀ Σ_i [ (G · row i of the weight) ⊙ (Bᵀ · what row i of the kernel sees) ]

For few channels this beats the two-dimensional method, which halves the multiplications again but transforms twice as
much. The batch lies innermost, (H, W, C, n), and a block is transformed at once: some rows, and all tiles across, or
some of them where these are so large that few rows would be left. In

    V (tiles, 6, rows + 2, C, n)

the three rows that a kernel sees lie one behind another, as one matrix (3·C, n), and neighbouring rows' matrices
overlap: so the sum over the kernel's rows and the channels is one stacked product over such views, without a copy,

    M (tiles, 6, rows, F, n) = U (6, 1, F, 3·C) @ V as (tiles, 6, rows, 3·C, n)

The gradient of the weight is a product of the same V with the transformed gradient of the output.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory_layout import even_slices, strided
from gpucnn.backends.numpy.tiles import SEEN, TILE, Alike, G, Stretch, stretch
from gpucnn.backends.window import Window

Array = Any

KERNEL = 3  # rows of the kernel
BLOCK = 1 << 19  # bytes of V or M at once
LEAST_ROWS = 16  # of a block, else it takes fewer tiles across: each block transforms two rows more than it makes
MANY_FILTERS = 32  # from which on they are laid side by side for the weight gradient
BIAS_AT = 1  # Aᵀ spreads this position of a tile evenly over the tile's 4 outputs


@dataclass(frozen=True)
class Block:
    """What is taken through the scratch at once: some rows of the output, and some tiles across."""

    rows: slice
    across: Stretch

    def made(self, y: Array) -> Array:
        """Return what the tiles make of y (OH, OW, F, n), (rows, width, F, n): a view."""
        return y[self.rows, self.across.output]


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    U = _transformed_weight(weight)
    for block, seen in _blocks(x, window, out):
        part = block.made(out)
        _put_output(_multiplied(seen, U, bias), block, part)
        yield part


def convolve_with_gradient(x: Array, weight: Array, dy: Array, window: Window, out: Array) -> Array:
    """Fill out (OH, OW, F, n) as `convolve` does; return what dy, such an array, means for the weight, (3, 3, C, F).

    Both see the same of x, which is transformed once. As Gᵀ goes back from U to the weight, A goes back from the output
    to M, so that dU is the sum over all tiles of

        dU (6, 3·C, F) = V as (tiles, 6, rows, 3·C, n) @ dM as (tiles, 6, rows, n, F)
    """
    U, (C, F) = _transformed_weight(weight), weight.shape[2:]
    dU = memory.zeros((SEEN, 1, KERNEL * C * F), x.dtype)
    for block, seen in _blocks(x, window, out, SEEN * KERNEL * C * F * x.itemsize):
        _put_output(_multiplied(seen, U, None), block, block.made(out))
        dM = _transformed_gradient(block.made(dy), block)
        tiles, _, count = seen.shape[:3]
        products = workspace.get("sums", (SEEN, tiles, count, KERNEL * C, F), x.dtype)
        np.matmul(seen, dM, out=products.transpose(1, 0, 2, 3, 4))
        ones = workspace.ones(tiles * count, x.dtype)
        dU += ones.reshape(1, 1, -1) @ products.reshape(SEEN, tiles * count, -1)
    dweight = constant(G.astype(x.dtype)).T @ dU.reshape(SEEN, KERNEL * C * F)  # (columns, rows · C · F)
    return dweight.reshape(KERNEL, KERNEL, C, F).swapaxes(0, 1)


def tiles_of(size: tuple[int, int]) -> int:
    """Return how many tiles make an output (OH, OW)."""
    return size[0] * -(-size[1] // TILE)


def tile_bytes(pixel: int) -> int:
    """Return how many bytes a tile takes in V or in M, a pixel having so many bytes."""
    return SEEN * pixel


def _transformed_weight(weight: Array) -> Array:
    """Return U (6, 1, F, 3·C) of a weight (3, 3, C, F)."""
    C, F = weight.shape[2:]
    by_column = weight.transpose(1, 3, 0, 2).reshape(KERNEL, F * KERNEL * C)
    return (constant(G.astype(weight.dtype)) @ by_column).reshape(SEEN, 1, F, KERNEL * C)


def _blocks(x: Array, window: Window, out: Array, products: int = 0) -> Iterator[tuple[Block, Array]]:
    """Yield blocks of the output, and what the kernel sees for each: V as (tiles, 6, rows, 3·C, n), in the scratch.

    A block is so small that V, M, and so many bytes of products for each tile fit.
    """
    (OH, OW, F, n), (_, W, C, _) = out.shape, x.shape
    (top, _), (left, _) = window.padding
    a_tile = max(tile_bytes(max(C, F) * n * x.itemsize), products)
    tiles = -(-OW // TILE)
    tiles_at_once = max(1, min(tiles, BLOCK // (LEAST_ROWS * a_tile)))
    rows_at_once = max(1, BLOCK // (tiles_at_once * a_tile))
    for some in even_slices(tiles, -(-tiles // tiles_at_once)):
        across = stretch(some.start, some.stop, W, OW, left)
        pixels = x[:, across.image]
        pixels = pixels.reshape(*pixels.shape[:2], C * n)
        views = [(alike, alike.of(pixels, 1)) for alike in across.seen]  # (H, tiles, ≤ 6, C·n)
        for rows in even_slices(OH, -(-OH // rows_at_once)):
            count = rows.stop - rows.start
            V = workspace.get("input", (across.count, SEEN, count + KERNEL - 1, C * n), x.dtype)
            _transform(views, rows.start - top, V)
            tile, position, row, item = V.strides
            shape, strides = (across.count, SEEN, count, KERNEL * C, n), (tile, position, row, n * item, item)
            yield Block(rows, across), strided(V, shape, strides)


def _multiplied(seen: Array, U: Array, bias: Array | None) -> Array:
    """Return M (tiles, 6, rows, F, n), in the scratch, with the bias of the output."""
    M = workspace.get("output", (*seen.shape[:3], U.shape[2], seen.shape[4]), seen.dtype)
    np.matmul(U, seen, out=M)
    if bias is not None:
        M[:, BIAS_AT] += bias[:, None]
    return M


def _put_output(M: Array, block: Block, part: Array) -> None:
    """Write Aᵀ M, for M (tiles, 6, rows, F, n), to what the block makes, (rows, width, F, n)."""
    tiles, _, count, F, n = M.shape
    by_row, made = M.reshape(tiles, SEEN, count, F * n).transpose(2, 0, 1, 3), part.reshape(*part.shape[:2], F * n)
    for alike in block.across.made:
        np.matmul(alike.matrix, by_row[:, alike.tiles], out=alike.of(made, 1))


def _transformed_gradient(dy: Array, block: Block) -> Array:
    """Return dM (tiles, 6, rows, n, F) = A dy of what a block makes, dy (rows, width, F, n), in the scratch.

    Many filters are laid side by side before: this takes a while, but such products are faster.
    """
    count, width, F, n = dy.shape
    many = F >= MANY_FILTERS
    if many:
        by_image = workspace.get("lines", (count, width, n, F), dy.dtype)
        np.copyto(by_image.swapaxes(2, 3), dy)
        dy = by_image
    made = dy.reshape(count, width, F * n)
    dM = workspace.get("output", (block.across.count, SEEN, count, F * n), dy.dtype)
    by_row = dM.transpose(2, 0, 1, 3)
    for alike in block.across.made:
        np.matmul(alike.matrix.T, alike.of(made, 1), out=by_row[:, alike.tiles])
    shape = (block.across.count, SEEN, count)
    return dM.reshape(*shape, n, F) if many else dM.reshape(*shape, F, n).swapaxes(3, 4)


def _transform(views: list[tuple[Alike, Array]], start: int, V: Array) -> None:
    """Fill V (tiles, 6, rows, C·n) from the image's rows from `start` on, with zeros where these are padding."""
    H = len(views[0][1])
    first, last = (min(max(edge, 0), H) for edge in (start, start + V.shape[2]))
    above, below = first - start, last - start
    V[:, :, :above], V[:, :, below:] = 0, 0
    for alike, seen in views:
        out = V[alike.tiles, :, above:below].transpose(2, 0, 1, 3)
        np.matmul(alike.matrix, seen[first:last], out=out)
