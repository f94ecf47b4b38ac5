"""Convolution 3×3 with stride 1 by Winograd's method within rows, F(4, 3): half of the multiplications.

Each output row is split into tiles of 4 pixels, each computed from 6 pixels of an input row (see `tiles.py`). With B
for the input, G for the filter, A for the output, applied horizontally only, a tile of the output is

    output tile = Aᵀ Σ_i [ (G · row i of the weight) ⊙ (Bᵀ · inputs of row i of the kernel) ]

For few channels this beats the two-dimensional method, which halves the multiplications again but transforms twice as
much. The layout is HWCN, and a block is transformed at once: some rows, and all tiles of them, or fewer where these are
so large that few rows would be left. In

    V (tiles, 6, rows + 2, C, n)

the three input rows of a kernel are contiguous, one matrix (3·C, n), and neighbouring rows' matrices overlap: so the
sum over the kernel's rows and the channels is one batched product over such views, without a copy,

    M (tiles, 6, rows, F, n) = U (6, 1, F, 3·C) @ V as (tiles, 6, rows, 3·C, n)

The gradient of the weight is a product of the same V with the transformed gradient of the output.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory_layout import even_slices, strided
from gpucnn.backends.numpy.tiles import TILE_IN, TILE_OUT, G, TileGroup, TileSpan, tile_span
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

KERNEL = 3  # rows of the kernel
BLOCK = 1 << 19  # bytes of V or M
MIN_ROWS = 16  # of a block, else it takes fewer tiles: each block transforms two more rows than it outputs
MIN_FILTERS_TO_TRANSPOSE = 32  # from which on dy is transposed for the weight gradient, filters innermost
BIAS_POSITION = 1  # Aᵀ spreads this position of a tile evenly over the tile's 4 outputs


@dataclass(frozen=True)
class Block:
    """A unit of work: rows of the output, and tiles of these."""

    rows: slice
    across: TileSpan

    def output(self, y: Array) -> Array:
        """Return the tiles' output pixels of y (OH, OW, F, n), (rows, width, F, n): a view."""
        return y[self.rows, self.across.output]


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    U = _filter_transform(weight)
    for block, inputs in _blocks(x, window, out):
        part = block.output(out)
        _inverse_transform(_matmul(inputs, U, bias), block, part)
        yield part


def convolve_and_weight_gradient(x: Array, weight: Array, dy: Array, window: Window, out: Array) -> Array:
    """Fill out (OH, OW, F, n) as `convolve` does; return dweight (3, 3, C, F) for dy (OH, OW, F, n).

    Both need the same transform of x, which is computed once. dM is A dy, dweight is Gᵀ dU, and dU is the sum over all
    tiles of

        dU (6, 3·C, F) = V as (tiles, 6, rows, 3·C, n) @ dM as (tiles, 6, rows, n, F)
    """
    U, (C, F) = _filter_transform(weight), weight.shape[2:]
    dU = memory.zeros((TILE_IN, 1, KERNEL * C * F), x.dtype)
    for block, inputs in _blocks(x, window, out, TILE_IN * KERNEL * C * F * x.itemsize):
        _inverse_transform(_matmul(inputs, U, None), block, block.output(out))
        dM = _output_gradient_transform(block.output(dy), block)
        tiles, _, count = inputs.shape[:3]
        products = workspace.get("sums", (TILE_IN, tiles, count, KERNEL * C, F), x.dtype)
        np.matmul(inputs, dM, out=products.transpose(1, 0, 2, 3, 4))
        ones = workspace.ones(tiles * count, x.dtype)
        dU += ones.reshape(1, 1, -1) @ products.reshape(TILE_IN, tiles * count, -1)
    dweight = constant(G.astype(x.dtype)).T @ dU.reshape(TILE_IN, KERNEL * C * F)  # (columns, rows · C · F)
    return dweight.reshape(KERNEL, KERNEL, C, F).swapaxes(0, 1)


def count_tiles(size: tuple[int, int]) -> int:
    """Return the number of tiles of an output (OH, OW)."""
    return size[0] * -(-size[1] // TILE_OUT)


def tile_bytes(pixel: int) -> int:
    """Return the bytes of a tile in V or in M, given those of a pixel."""
    return TILE_IN * pixel


def _filter_transform(weight: Array) -> Array:
    """Return U (6, 1, F, 3·C) of a weight (3, 3, C, F)."""
    C, F = weight.shape[2:]
    by_column = weight.transpose(1, 3, 0, 2).reshape(KERNEL, F * KERNEL * C)
    return (constant(G.astype(weight.dtype)) @ by_column).reshape(TILE_IN, 1, F, KERNEL * C)


def _blocks(x: Array, window: Window, out: Array, products: int = 0) -> Iterator[tuple[Block, Array]]:
    """Yield blocks of the output, and the transformed inputs of each: V as (tiles, 6, rows, 3·C, n), in the workspace.

    V, M, and `products` bytes for each tile of a block fit the workspace.
    """
    (OH, OW, F, n), (_, W, C, _) = out.shape, x.shape
    (top, _), (left, _) = window.padding
    tile_size = max(tile_bytes(max(C, F) * n * x.itemsize), products)
    tiles = -(-OW // TILE_OUT)
    tiles_per_block = max(1, min(tiles, BLOCK // (MIN_ROWS * tile_size)))
    rows_per_block = max(1, BLOCK // (tiles_per_block * tile_size))
    for columns in even_slices(tiles, -(-tiles // tiles_per_block)):
        across = tile_span(columns.start, columns.stop, W, OW, left)
        pixels = x[:, across.image]
        pixels = pixels.reshape(*pixels.shape[:2], C * n)
        views = [(group, group.of(pixels, 1)) for group in across.inputs]  # (H, tiles, ≤ 6, C·n)
        for rows in even_slices(OH, -(-OH // rows_per_block)):
            count = rows.stop - rows.start
            V = workspace.get("input", (across.count, TILE_IN, count + KERNEL - 1, C * n), x.dtype)
            _input_transform(views, rows.start - top, V)
            tile, position, row, item = V.strides
            shape, strides = (across.count, TILE_IN, count, KERNEL * C, n), (tile, position, row, n * item, item)
            yield Block(rows, across), strided(V, shape, strides)


def _matmul(inputs: Array, U: Array, bias: Array | None) -> Array:
    """Return M (tiles, 6, rows, F, n), in the workspace, with the bias of the output."""
    M = workspace.get("output", (*inputs.shape[:3], U.shape[2], inputs.shape[4]), inputs.dtype)
    np.matmul(U, inputs, out=M)
    if bias is not None:
        M[:, BIAS_POSITION] += bias[:, None]
    return M


def _inverse_transform(M: Array, block: Block, part: Array) -> None:
    """Write Aᵀ M, for M (tiles, 6, rows, F, n), to the block's output pixels (rows, width, F, n)."""
    tiles, _, count, F, n = M.shape
    by_row = M.reshape(tiles, TILE_IN, count, F * n).transpose(2, 0, 1, 3)
    outputs = part.reshape(*part.shape[:2], F * n)
    for group in block.across.outputs:
        np.matmul(group.matrix, by_row[:, group.tiles], out=group.of(outputs, 1))


def _output_gradient_transform(dy: Array, block: Block) -> Array:
    """Return dM (tiles, 6, rows, n, F) = A dy of a block, dy (rows, width, F, n), in the workspace.

    Many filters are made innermost before: this takes a while, but such products are faster.
    """
    count, width, F, n = dy.shape
    many = F >= MIN_FILTERS_TO_TRANSPOSE
    if many:
        by_image = workspace.get("lines", (count, width, n, F), dy.dtype)
        np.copyto(by_image.swapaxes(2, 3), dy)
        dy = by_image
    outputs = dy.reshape(count, width, F * n)
    dM = workspace.get("output", (block.across.count, TILE_IN, count, F * n), dy.dtype)
    by_row = dM.transpose(2, 0, 1, 3)
    for group in block.across.outputs:
        np.matmul(group.matrix.T, group.of(outputs, 1), out=by_row[:, group.tiles])
    shape = (block.across.count, TILE_IN, count)
    return dM.reshape(*shape, n, F) if many else dM.reshape(*shape, F, n).swapaxes(3, 4)


def _input_transform(views: list[tuple[TileGroup, Array]], start: int, V: Array) -> None:
    """Fill V (tiles, 6, rows, C·n) from the image's rows from `start` on, with zeros where these are padding."""
    H = len(views[0][1])
    first, last = (min(max(edge, 0), H) for edge in (start, start + V.shape[2]))
    above, below = first - start, last - start
    V[:, :, :above], V[:, :, below:] = 0, 0
    for group, inputs in views:
        out = V[group.tiles, :, above:below].transpose(2, 0, 1, 3)
        np.matmul(group.matrix, inputs[first:last], out=out)
