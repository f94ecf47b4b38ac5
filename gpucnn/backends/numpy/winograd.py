"""Convolution 3×3 with stride 1 by Winograd's method F(4×4, 3×3): a quarter of the multiplications.

The output is split into tiles of 4×4 pixels, each computed from 6×6 pixels of the input (see `tiles.py`). With three
small constant matrices (B for the input, G for the filter, A for the output)

    output tile = Aᵀ [ (G · weight · Gᵀ) ⊙ (Bᵀ · input tile · B) ] A

and the elementwise product ⊙, summed over the channels, is one matrix product for each of the 36 positions in a tile:

    M (36, tiles, F, n) = U (36, 1, F, C) @ V (36, tiles, C, n)

The layout is HWCN, so every transform is itself a product of B, G or A with long rows of numbers over overlapping
views: vertically first, then horizontally. A block of rows of tiles, or part of one row, passes through all of it in
the workspace:

    x ──Bᵀ vertical──▶ lines (rows of tiles, 6, width, C·n) ──Bᵀ horizontal──▶ V ──@U──▶ M ──Aᵀ, Aᵀ──▶ y

Where even one tile of all N images is too large, n of them are taken at a time. Their pixels are not contiguous in x,
so a block's inputs are copied to the workspace first, and its outputs are copied to y last.

The workspace holds three such arrays: lines, V as "input" and M as "output". What is needed only before one of them is
written, or after it was last read, reuses its buffer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory_layout import batch_slices
from gpucnn.backends.numpy.tiles import A_T, TILE_IN, TILE_OUT, G, TileSpan, tile_grid
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

POSITIONS = TILE_IN * TILE_IN
BLOCK = 1 << 20  # bytes of V or M
MAX_TILE_BYTES = 19 << 18  # the same for one tile of all images, whose pixels need not be copied
SUM_BLOCK = 1 << 19  # bytes of products that are summed at once: they are read again from the second-level cache
MIN_FILTERS = 16  # of one product
MIN_FILTERS_TO_TRANSPOSE = 64  # from which on dy is transposed for the weight gradient, filters innermost
UNPACKED_GEMM_MAX = 6e5  # multiplications of one product, up to which OpenBLAS computes without packing
G_BOTH = constant(np.kron(G, G).astype(np.float32))  # (36, 9): both axes at once
G_BOTH_T = constant(G_BOTH.T.copy())
BIAS_POSITION = 1 * TILE_IN + 1  # Aᵀ spreads this position of a tile evenly over the tile's 16 outputs


@dataclass(frozen=True)
class Block:
    """A unit of work: tiles along both axes, and some of the images."""

    down: TileSpan
    across: TileSpan
    images: slice

    def input(self, x: Array) -> Array:
        """Return the tiles' input pixels of x (H, W, C, N), as rows (h, w, C·n); a view if it lies so in memory."""
        return _as_rows(x[self.down.image, self.across.image, :, self.images], "output")

    def output(self, y: Array) -> Array:
        """Return the tiles' output pixels of y (OH, OW, F, N), (oh, ow, F, n): a view."""
        return y[self.down.output, self.across.output, :, self.images]


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, N) from x (H, W, C, N), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    blocks = _blocks(x, out, window)
    U = _filter_transform(weight, _length(blocks[0].images))
    for block in blocks:
        M = _matmul(U, _input_transform(x, block))
        if bias is not None:
            M[BIAS_POSITION] += bias.reshape(*U.shape[2:4], 1)
        _inverse_transform(M, out, block)
        yield block.output(out)


def parameter_gradients(x: Array, dy: Array, window: Window, bias: bool) -> tuple[Array, Array | None]:
    """Return dweight (3, 3, C, F), summed over all tiles as dU, and with `bias` dbias (F,).

    Both from x (H, W, C, N) and dy (OH, OW, F, N). One position of dM holds the sum of dy over each tile.
    """
    C, F = x.shape[2], dy.shape[2]
    dU, dbias = memory.zeros((POSITIONS, C * F), x.dtype), memory.zeros((F,), np.float64)
    for block in _blocks(x, dy, window):
        V, dM = _input_transform(x, block), _output_gradient_transform(dy, block, C)
        _accumulate(V, dM, dU)
        if bias:
            dbias += dM[BIAS_POSITION].sum(axis=(0, 1))
    return _filter_gradient(dU, C, F), dbias.astype(x.dtype) if bias else None


def convolve_and_weight_gradient(x: Array, weight: Array, dy: Array, window: Window, out: Array) -> Array:
    """Fill out (OH, OW, F, N) as `convolve` does; return dweight (3, 3, C, F) for dy (OH, OW, F, N).

    Both need the same transform of x, which is computed once.
    """
    C, F = weight.shape[2:]
    blocks = _blocks(x, out, window)
    U, dU = _filter_transform(weight, _length(blocks[0].images)), memory.zeros((POSITIONS, C * F), x.dtype)
    for block in blocks:
        V = _input_transform(x, block)
        _accumulate(V, _output_gradient_transform(dy, block, C), dU)
        _inverse_transform(_matmul(U, V), out, block)
    return _filter_gradient(dU, C, F)


def count_tiles(size: tuple[int, int]) -> int:
    """Return the number of tiles of an output (OH, OW)."""
    return -(-size[0] // TILE_OUT) * -(-size[1] // TILE_OUT)


def _filter_transform(weight: Array, images: int) -> Array:
    """Return U (36, 1, parts, F/parts, C) of a weight (3, 3, C, F), for products with `images` images."""
    C, F = weight.shape[2:]
    parts = _split_filters(F, C * images)
    return (G_BOTH @ weight.transpose(0, 1, 3, 2).reshape(9, F * C)).reshape(POSITIONS, 1, parts, F // parts, C)


def _matmul(U: Array, V: Array) -> Array:
    """Return M (36, tiles, parts, F/parts, n), in the workspace."""
    M = workspace.get("output", (*V.shape[:2], *U.shape[2:4], V.shape[3]), V.dtype)
    return np.matmul(U, V[:, :, None], out=M)


def _accumulate(V: Array, dM: Array, dU: Array) -> None:
    """Add V (36, tiles, C, n) @ dM (36, tiles, n, F), summed over the tiles, to dU (36, C·F)."""
    (_, tiles, C, _), F = V.shape, dM.shape[3]
    step = max(1, min(POSITIONS, SUM_BLOCK // (C * F * V.itemsize) // tiles))  # positions per product
    ones = workspace.ones(tiles, V.dtype)
    for start in range(0, POSITIONS, step):
        part = slice(start, min(start + step, POSITIONS))
        shape = part.stop - start, tiles, C, F
        products = np.matmul(V[part], dM[part], out=workspace.get("sums", shape, V.dtype))
        products = products.reshape(*shape[:2], C * F)
        dU[part] += products[:, 0] if tiles == 1 else ones @ products


def _filter_gradient(dU: Array, channels: int, filters: int) -> Array:
    """Return the weight's gradient Gᵀ dU G, (3, 3, C, F)."""
    return (G_BOTH_T @ dU).reshape(3, 3, channels, filters)


def _input_transform(x: Array, block: Block) -> Array:
    """Return V (36, tiles, C, n) of a block, in the workspace."""
    down, across, n = block.down, block.across, _length(block.images)
    inputs = block.input(x)
    width, run = inputs.shape[1:]
    lines = workspace.get("lines", (down.count, TILE_IN, width, run), x.dtype)
    for group in down.inputs:
        rows = group.of(inputs, 0)  # (rows of tiles, ≤ 6, width, run)
        np.matmul(group.matrix, rows.transpose(0, 2, 1, 3), out=lines[group.tiles].transpose(0, 2, 1, 3))
    V = workspace.get("input", (TILE_IN, TILE_IN, down.count, across.count, run), x.dtype)
    by_tile = V.transpose(2, 0, 3, 1, 4)  # (rows of tiles, 6, tiles, 6, run)
    for group in across.inputs:
        np.matmul(group.matrix, group.of(lines, 2), out=by_tile[:, :, group.tiles])
    return V.reshape(POSITIONS, -1, run // n, n)


def _output_gradient_transform(dy: Array, block: Block, channels: int) -> Array:
    """Return dM (36, tiles, n, F) = A dy Aᵀ of a block, the transpose of `_inverse_transform`, in the workspace."""
    down, across, n = block.down, block.across, _length(block.images)
    outputs, F = block.output(dy), dy.shape[2]
    transposed = F >= MIN_FILTERS_TO_TRANSPOSE and channels * F * n <= UNPACKED_GEMM_MAX
    if transposed:  # filters innermost: this takes a while, but such small products are faster
        by_image = workspace.get("sums", (*outputs.shape[:2], n, F), dy.dtype)
        np.copyto(by_image.swapaxes(2, 3), outputs)
        outputs = by_image
    outputs = _as_rows(outputs, "sums")
    width, run = outputs.shape[1:]
    lines = workspace.get("lines", (down.count, TILE_IN, width, run), dy.dtype)
    for group in down.outputs:
        rows = group.of(outputs, 0)  # (rows of tiles, ≤ 4, width, run)
        np.matmul(group.matrix.T, rows.transpose(0, 2, 1, 3), out=lines[group.tiles].transpose(0, 2, 1, 3))
    dM = workspace.get("output", (TILE_IN, TILE_IN, down.count, across.count, run), dy.dtype)
    by_tile = dM.transpose(2, 0, 3, 1, 4)  # (rows of tiles, 6, tiles, 6, run)
    for group in across.outputs:
        np.matmul(group.matrix.T, group.of(lines, 2), out=by_tile[:, :, group.tiles])
    return dM.reshape(POSITIONS, -1, n, F) if transposed else dM.reshape(POSITIONS, -1, F, n).swapaxes(2, 3)


def _inverse_transform(M: Array, out: Array, block: Block) -> None:
    """Write Aᵀ M A, for M (36, tiles, …) of F filters and n images, to a block of out (OH, OW, F, N)."""
    down, across, part = block.down, block.across, block.output(out)
    run = part.shape[2] * part.shape[3]
    by_position = M.reshape(TILE_IN, TILE_IN, down.count, across.count * run)
    lines = workspace.get("input", (down.count, TILE_OUT, TILE_IN, across.count * run), part.dtype)
    np.matmul(A_T, by_position.transpose(2, 1, 0, 3), out=lines.transpose(0, 2, 1, 3))
    rows = lines.reshape(-1, TILE_IN, across.count, run)[: len(part)].transpose(0, 2, 1, 3)  # (rows, tiles, 6, run)
    outputs = part if _is_row_contiguous(part) else workspace.get("lines", part.shape, part.dtype)
    by_pixel = outputs.reshape(*part.shape[:2], run)
    for group in across.outputs:
        np.matmul(group.matrix, rows[:, group.tiles], out=group.of(by_pixel, 1))
    if outputs is not part:
        np.copyto(part, outputs)


def _as_rows(part: Array, name: str) -> Array:
    """Return pixels (h, w, C, n) as (h, w, C·n): a view if these two are contiguous, else in the workspace."""
    if not _is_row_contiguous(part):
        copied = workspace.get(name, part.shape, part.dtype)
        np.copyto(copied, part)
        part = copied
    return part.reshape(*part.shape[:2], part.shape[2] * part.shape[3])


def _is_row_contiguous(part: Array) -> bool:
    """Return whether channels and images of pixels (h, w, C, n) are contiguous."""
    return part.size == 0 or bool(part[0, 0].flags.c_contiguous)


def _blocks(x: Array, y: Array, window: Window) -> list[Block]:
    """Split the output into blocks of tiles and images whose V and M fit the workspace."""
    tile_bytes = POSITIONS * max(x.shape[2], y.shape[2]) * x.itemsize  # of one image
    N = x.shape[3]
    slices = batch_slices(N, N if tile_bytes * N <= MAX_TILE_BYTES else BLOCK // tile_bytes)
    tiles = tile_grid(x.shape[:2], y.shape[:2], window.padding, max(1, BLOCK // (tile_bytes * _length(slices[0]))))
    return [Block(down, across, images) for images in slices for down, across in tiles]


def _length(images: slice) -> int:
    return int(images.stop - images.start)


def _split_filters(filters: int, filter_size: int) -> int:
    """Return the number of equal parts of the filters for which one product is small, as far as they divide."""
    part = filters
    while part * filter_size > UNPACKED_GEMM_MAX and part > MIN_FILTERS and part % 2 == 0:
        part //= 2
    return filters // part
