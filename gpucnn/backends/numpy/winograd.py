"""Convolution 3×3 with stride 1 by Winograd's method F(4×4, 3×3): a quarter of the multiplications.

The output is cut into tiles of 4×4 pixels, each seen through 6×6 pixels of the input (see `tiles.py`). With three small
constant matrices (B for the input, G for the weight, A for the output)

    output tile = Aᵀ [ (G · weight · Gᵀ) ⊙ (Bᵀ · input tile · B) ] A

and the elementwise product ⊙, summed over the channels, is one matrix product for each of the 36 positions in a tile:

    M (36, tiles, F, n) = U (36, 1, F, C) @ V (36, tiles, C, n)

The batch lies innermost, (H, W, C, N), so every transform is itself a product of B, G or A with long rows of numbers
over overlapping views: down the image first, then across. A block of rows of tiles, or a piece of one row, is taken
through all of it in the scratch:

    x ──Bᵀ down──▶ lines (rows of tiles, 6, width, C·n) ──Bᵀ across──▶ V ──@U──▶ M ──Aᵀ down, Aᵀ across──▶ y

Where even one tile of all N images is too much, some n of them are taken at a time. Their pixels are no long rows of
x; so those that a block sees are copied to the scratch first, and what it makes is copied to y last.

The scratch holds three such arrays: lines, V as "input" and M as "output". What is needed only before one of them is
written, or after it was read for the last time, takes its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends.numpy import memory, workspace
from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory_layout import batch_slices
from gpucnn.backends.numpy.tiles import A_T, SEEN, TILE, G, Stretch, cut
from gpucnn.backends.window import Window

Array = Any

POSITIONS = SEEN * SEEN
BLOCK = 1 << 20  # bytes of V or M at once
WHOLE = 19 << 18  # the same where one tile of all images takes more, but none of their pixels need be copied then
SUMS = 1 << 19  # bytes of products that are added up at once: they are read again from the second-level cache
FEWEST_FILTERS = 16  # of one product
MANY_FILTERS = 64  # from which on they are laid side by side for the weight gradient
SMALL = 6e5  # multiplications of one product: up to this size OpenBLAS takes its path without packing
G_BOTH = constant(np.kron(G, G).astype(np.float32))  # (36, 9): down and across at once
G_BOTH_T = constant(G_BOTH.T.copy())
BIAS_AT = 1 * SEEN + 1  # Aᵀ spreads this position of a tile evenly over the tile's 16 outputs


@dataclass(frozen=True)
class Block:
    """What is taken through the scratch at once: some tiles down, some across, and some of the images."""

    down: Stretch
    across: Stretch
    images: slice

    def seen(self, x: Array) -> Array:
        """Return what the tiles see of x (H, W, C, N), as rows (h, w, C·n); a view if it lies so in memory."""
        return _in_rows(x[self.down.image, self.across.image, :, self.images], "output")

    def made(self, y: Array) -> Array:
        """Return what the tiles make of y (OH, OW, F, N), (oh, ow, F, n): a view."""
        return y[self.down.output, self.across.output, :, self.images]


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, N) from x (H, W, C, N), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    blocks = _blocks(x, out, window)
    U = _transformed_weight(weight, _count(blocks[0].images))
    for block in blocks:
        M = _multiplied(U, _transformed_input(x, block))
        if bias is not None:
            M[BIAS_AT] += bias.reshape(*U.shape[2:4], 1)
        _put_output(M, out, block)
        yield block.made(out)


def parameter_gradients(x: Array, dy: Array, window: Window, bias: bool) -> tuple[Array, Array | None]:
    """Return dweight (3, 3, C, F), added up over all tiles as dU, and with `bias` dbias (F,).

    Both from x (H, W, C, N) and dy (OH, OW, F, N). One position of dM is the sum over each tile of dy.
    """
    C, F = x.shape[2], dy.shape[2]
    dU, dbias = memory.zeros((POSITIONS, C * F), x.dtype), memory.zeros((F,), np.float64)
    for block in _blocks(x, dy, window):
        V, dM = _transformed_input(x, block), _transformed_gradient(dy, block, C)
        _add_products(V, dM, dU)
        if bias:
            dbias += dM[BIAS_AT].sum(axis=(0, 1))
    return _weight_of(dU, C, F), dbias.astype(x.dtype) if bias else None


def convolve_with_gradient(x: Array, weight: Array, dy: Array, window: Window, out: Array) -> Array:
    """Fill out (OH, OW, F, N) as `convolve` does; return what dy, such an array, means for the weight, (3, 3, C, F).

    Both see the same of x, which is transformed once.
    """
    C, F = weight.shape[2:]
    blocks = _blocks(x, out, window)
    U, dU = _transformed_weight(weight, _count(blocks[0].images)), memory.zeros((POSITIONS, C * F), x.dtype)
    for block in blocks:
        V = _transformed_input(x, block)
        _add_products(V, _transformed_gradient(dy, block, C), dU)
        _put_output(_multiplied(U, V), out, block)
    return _weight_of(dU, C, F)


def tiles_of(size: tuple[int, int]) -> int:
    """Return how many tiles make an output (OH, OW)."""
    return -(-size[0] // TILE) * -(-size[1] // TILE)


def _transformed_weight(weight: Array, images: int) -> Array:
    """Return U (36, 1, parts, F/parts, C) of a weight (3, 3, C, F), for products with so many images."""
    C, F = weight.shape[2:]
    parts = _filter_parts(F, C * images)
    return (G_BOTH @ weight.transpose(0, 1, 3, 2).reshape(9, F * C)).reshape(POSITIONS, 1, parts, F // parts, C)


def _multiplied(U: Array, V: Array) -> Array:
    """Return M (36, tiles, parts, F/parts, n), in the scratch."""
    M = workspace.get("output", (*V.shape[:2], *U.shape[2:4], V.shape[3]), V.dtype)
    return np.matmul(U, V[:, :, None], out=M)


def _add_products(V: Array, dM: Array, dU: Array) -> None:
    """Add V (36, tiles, C, n) @ dM (36, tiles, n, F), added up over the tiles, to dU (36, C·F)."""
    (_, tiles, C, _), F = V.shape, dM.shape[3]
    step = max(1, min(POSITIONS, SUMS // (C * F * V.itemsize) // tiles))  # positions at once
    ones = workspace.ones(tiles, V.dtype)
    for start in range(0, POSITIONS, step):
        part = slice(start, min(start + step, POSITIONS))
        shape = part.stop - start, tiles, C, F
        products = np.matmul(V[part], dM[part], out=workspace.get("sums", shape, V.dtype))
        products = products.reshape(*shape[:2], C * F)
        dU[part] += products[:, 0] if tiles == 1 else ones @ products


def _weight_of(dU: Array, channels: int, filters: int) -> Array:
    """Return the weight's gradient Gᵀ dU G, (3, 3, C, F)."""
    return (G_BOTH_T @ dU).reshape(3, 3, channels, filters)


def _transformed_input(x: Array, block: Block) -> Array:
    """Return V (36, tiles, C, n) of a block, in the scratch."""
    down, across, n = block.down, block.across, _count(block.images)
    seen = block.seen(x)
    width, run = seen.shape[1:]
    lines = workspace.get("lines", (down.count, SEEN, width, run), x.dtype)
    for alike in down.seen:
        rows = alike.of(seen, 0)  # (rows of tiles, ≤ 6, width, run)
        np.matmul(alike.matrix, rows.transpose(0, 2, 1, 3), out=lines[alike.tiles].transpose(0, 2, 1, 3))
    V = workspace.get("input", (SEEN, SEEN, down.count, across.count, run), x.dtype)
    by_tile = V.transpose(2, 0, 3, 1, 4)  # (rows of tiles, 6, tiles, 6, run)
    for alike in across.seen:
        np.matmul(alike.matrix, alike.of(lines, 2), out=by_tile[:, :, alike.tiles])
    return V.reshape(POSITIONS, -1, run // n, n)


def _transformed_gradient(dy: Array, block: Block, channels: int) -> Array:
    """Return dM (36, tiles, n, F) = A dy Aᵀ of a block, the way back of `_put_output`, in the scratch."""
    down, across, n = block.down, block.across, _count(block.images)
    made, turned = block.made(dy), dy.shape[2] >= MANY_FILTERS and channels * dy.shape[2] * n <= SMALL
    if turned:  # the filters are laid side by side: this takes a while, but such small products are faster
        by_image = workspace.get("sums", (*made.shape[:2], n, dy.shape[2]), dy.dtype)
        np.copyto(by_image.swapaxes(2, 3), made)
        made = by_image
    made = _in_rows(made, "sums")
    width, run = made.shape[1:]
    lines = workspace.get("lines", (down.count, SEEN, width, run), dy.dtype)
    for alike in down.made:
        rows = alike.of(made, 0)  # (rows of tiles, ≤ 4, width, run)
        np.matmul(alike.matrix.T, rows.transpose(0, 2, 1, 3), out=lines[alike.tiles].transpose(0, 2, 1, 3))
    dM = workspace.get("output", (SEEN, SEEN, down.count, across.count, run), dy.dtype)
    by_tile = dM.transpose(2, 0, 3, 1, 4)  # (rows of tiles, 6, tiles, 6, run)
    for alike in across.made:
        np.matmul(alike.matrix.T, alike.of(lines, 2), out=by_tile[:, :, alike.tiles])
    return dM.reshape(POSITIONS, -1, n, run // n) if turned else dM.reshape(POSITIONS, -1, run // n, n).swapaxes(2, 3)


def _put_output(M: Array, out: Array, block: Block) -> None:
    """Write Aᵀ M A, for M (36, tiles, …) of F filters and n images, to a block of out (OH, OW, F, N)."""
    down, across, part = block.down, block.across, block.made(out)
    run = part.shape[2] * part.shape[3]
    by_position = M.reshape(SEEN, SEEN, down.count, across.count * run)
    lines = workspace.get("input", (down.count, TILE, SEEN, across.count * run), part.dtype)
    np.matmul(A_T, by_position.transpose(2, 1, 0, 3), out=lines.transpose(0, 2, 1, 3))
    rows = lines.reshape(-1, SEEN, across.count, run)[: len(part)].transpose(0, 2, 1, 3)  # (rows, tiles, 6, run)
    made = part if _lies_in_rows(part) else workspace.get("lines", part.shape, part.dtype)
    by_pixel = made.reshape(*part.shape[:2], run)
    for alike in across.made:
        np.matmul(alike.matrix, rows[:, alike.tiles], out=alike.of(by_pixel, 1))
    if made is not part:
        np.copyto(part, made)


def _in_rows(part: Array, purpose: str) -> Array:
    """Return pixels (h, w, C, n) as (h, w, C·n): a view if channels and images are one run, else in the scratch."""
    if not _lies_in_rows(part):
        copied = workspace.get(purpose, part.shape, part.dtype)
        np.copyto(copied, part)
        part = copied
    return part.reshape(*part.shape[:2], part.shape[2] * part.shape[3])


def _lies_in_rows(part: Array) -> bool:
    """Tell whether channels and images of some pixels (h, w, C, n) are one run in memory."""
    return part.size == 0 or bool(part[0, 0].flags.c_contiguous)


def _blocks(x: Array, y: Array, window: Window) -> list[Block]:
    """Cut the output into blocks of tiles and images whose V and M fit the scratch."""
    a_tile = POSITIONS * max(x.shape[2], y.shape[2]) * x.itemsize  # of one image
    N = x.shape[3]
    slices = batch_slices(N, N if a_tile * N <= WHOLE else BLOCK // a_tile)
    tiles = cut(x.shape[:2], y.shape[:2], window.padding, max(1, BLOCK // (a_tile * _count(slices[0]))))
    return [Block(down, across, images) for images in slices for down, across in tiles]


def _count(images: slice) -> int:
    return int(images.stop - images.start)


def _filter_parts(filters: int, a_filter: int) -> int:
    """Return into how many equal parts the filters are cut so that one product of each is small, if they can be."""
    parts = 1
    while filters // parts * a_filter > SMALL and filters % (2 * parts) == 0 and filters // parts > FEWEST_FILTERS:
        parts *= 2
    return parts
