"""Convolution 3×3 with stride 1 by Winograd's method F(4×4, 3×3): a quarter of the multiplications.

The output is cut into tiles of 4×4 pixels, each seen through 6×6 pixels of the input (see `tiles.py`). With three small
constant matrices (B for the input, G for the weight, A for the output)

    output tile = Aᵀ [ (G · weight · Gᵀ) ⊙ (Bᵀ · input tile · B) ] A

and the elementwise product ⊙, summed over the channels, is one matrix product for each of the 36 positions in a tile:

    M (36, tiles, F, n) = U (36, 1, F, C) @ V (36, tiles, C, n)

The batch lies innermost, (H, W, C, n), so every transform is itself a product of B, G or A with long rows of numbers
over overlapping views: down the image first, then across. A block of rows of tiles, or a piece of one row, is taken
through all of it in the scratch:

    x ──Bᵀ down──▶ lines (rows of tiles, 6, width, C·n) ──Bᵀ across──▶ V ──@U──▶ M ──Aᵀ down, Aᵀ across──▶ y
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.backends.numpy import scratch
from gpucnn.backends.numpy.tiles import A_T, SEEN, TILE, G, Stretch, cut
from gpucnn.backends.window import Window

Array = Any

POSITIONS = SEEN * SEEN
BLOCK = 5 << 19  # bytes of V or M at once
SUMS = 1 << 19  # bytes of products that are added up at once: they are read again from the second-level cache
SMALL = 6e5  # multiplications of one product: up to this size OpenBLAS takes its path without packing
G_BOTH = np.kron(G, G).astype(np.float32)  # (36, 9): down and across at once
G_BOTH_T = np.ascontiguousarray(G_BOTH.T)
BIAS_AT = 1 * SEEN + 1  # Aᵀ spreads this position of a tile evenly over the tile's 16 outputs


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    C, F = weight.shape[2:]
    n = x.shape[-1]
    parts = _filter_parts(F, C * n)
    U = (G_BOTH @ weight.transpose(0, 1, 3, 2).reshape(9, F * C)).reshape(POSITIONS, 1, parts, F // parts, C)
    for down, across in _blocks(x, out, window):
        V = _transformed_input(x, down, across)
        M = scratch.take("output", (POSITIONS, V.shape[1], parts, F // parts, n), x.dtype)
        np.matmul(U, V[:, :, None], out=M)
        if bias is not None:
            M[BIAS_AT] += bias.reshape(parts, F // parts, 1)
        part = out[down.output, across.output]
        _put_output(M, part, down, across)
        yield part


def parameter_gradients(x: Array, dy: Array, window: Window, bias: bool) -> tuple[Array, Array | None]:
    """Return dweight (3, 3, C, F), added up over all tiles as dU, and with `bias` dbias (F,).

    Both from x (H, W, C, n) and dy (OH, OW, F, n). One position of dM is the sum over each tile of dy.
    """
    C, F = x.shape[2], dy.shape[2]
    dU, dbias = np.zeros((POSITIONS, C * F), x.dtype), np.zeros(F)
    most = SUMS // (C * F * x.itemsize)  # matrices (C, F)
    for down, across in _blocks(x, dy, window):
        V, dM = _transformed_input(x, down, across), _transformed_gradient(dy, down, across)
        tiles = V.shape[1]
        step = max(1, min(POSITIONS, most // tiles))
        ones = scratch.ones(tiles, x.dtype)
        for start in range(0, POSITIONS, step):
            part = slice(start, min(start + step, POSITIONS))
            shape = part.stop - start, tiles, C, F
            products = np.matmul(V[part], dM[part].transpose(0, 1, 3, 2), out=scratch.take("sums", shape, x.dtype))
            products = products.reshape(*shape[:2], C * F)
            dU[part] += products[:, 0] if tiles == 1 else ones @ products
        if bias:
            dbias += dM[BIAS_AT].sum(axis=(0, 2))
    return (G_BOTH_T @ dU).reshape(3, 3, C, F), dbias.astype(x.dtype) if bias else None


def _transformed_input(x: Array, down: Stretch, across: Stretch) -> Array:
    """Return V (36, tiles, C, n) of a block of tiles, in the scratch."""
    C, n = x.shape[2:]
    run = C * n
    seen = x[down.image, across.image].reshape(down.image.stop - down.image.start, -1, run)
    lines = scratch.take("lines", (down.count, SEEN, seen.shape[1], run), x.dtype)
    for alike in down.seen:
        rows = alike.of(seen, 0)  # (rows of tiles, ≤ 6, width, run)
        np.matmul(alike.matrix, rows.transpose(0, 2, 1, 3), out=lines[alike.tiles].transpose(0, 2, 1, 3))
    V = scratch.take("input", (SEEN, SEEN, down.count, across.count, run), x.dtype)
    by_tile = V.transpose(2, 0, 3, 1, 4)  # (rows of tiles, 6, tiles, 6, run)
    for alike in across.seen:
        np.matmul(alike.matrix, alike.of(lines, 2), out=by_tile[:, :, alike.tiles])
    return V.reshape(POSITIONS, -1, C, n)


def _transformed_gradient(dy: Array, down: Stretch, across: Stretch) -> Array:
    """Return dM (36, tiles, F, n) = A dy Aᵀ of a block of tiles, the way back of `_put_output`, in the scratch."""
    F, n = dy.shape[2:]
    run = F * n
    part = dy[down.output, across.output]
    made = part.reshape(*part.shape[:2], run)
    lines = scratch.take("output lines", (down.count, SEEN, made.shape[1], run), dy.dtype)
    for alike in down.made:
        rows = alike.of(made, 0)  # (rows of tiles, ≤ 4, width, run)
        np.matmul(alike.matrix.T, rows.transpose(0, 2, 1, 3), out=lines[alike.tiles].transpose(0, 2, 1, 3))
    dM = scratch.take("output", (SEEN, SEEN, down.count, across.count, run), dy.dtype)
    by_tile = dM.transpose(2, 0, 3, 1, 4)  # (rows of tiles, 6, tiles, 6, run)
    for alike in across.made:
        np.matmul(alike.matrix.T, alike.of(lines, 2), out=by_tile[:, :, alike.tiles])
    return dM.reshape(POSITIONS, -1, F, n)


def _put_output(M: Array, part: Array, down: Stretch, across: Stretch) -> None:
    """Write Aᵀ M A, for M (36, tiles, F, n), to a block of the output (rows, columns, F, n)."""
    run = part.shape[2] * part.shape[3]
    by_position = M.reshape(SEEN, SEEN, down.count, across.count * run)
    lines = scratch.take("output lines", (down.count, TILE, SEEN, across.count * run), part.dtype)
    np.matmul(A_T, by_position.transpose(2, 1, 0, 3), out=lines.transpose(0, 2, 1, 3))
    rows = lines.reshape(-1, SEEN, across.count, run)[: len(part)].transpose(0, 2, 1, 3)  # (rows, tiles, 6, run)
    made = part.reshape(*part.shape[:2], run)
    for alike in across.made:
        np.matmul(alike.matrix, rows[:, alike.tiles], out=alike.of(made, 1))


def _blocks(x: Array, y: Array, window: Window) -> list[tuple[Stretch, Stretch]]:
    """Cut the output into blocks of tiles whose V and M fit the scratch."""
    most = max(1, BLOCK // (POSITIONS * max(x.shape[2], y.shape[2]) * x.shape[3] * x.itemsize))
    return cut(x.shape[:2], y.shape[:2], window.padding, most)


def _filter_parts(filters: int, a_filter: int) -> int:
    """Return into how many equal parts the filters are cut so that one product of each is small, if they can be."""
    parts = 1
    while filters // parts * a_filter > SMALL and filters % (2 * parts) == 0 and filters // parts > 32:
        parts *= 2
    return parts
