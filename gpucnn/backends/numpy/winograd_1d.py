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
from gpucnn.backends.numpy.tiles import SEEN, TILE, Alike, G, Stretch, stretch
from gpucnn.backends.window import Window

Array = Any

KERNEL = 3  # rows of the kernel
BLOCK = 5 << 19  # bytes of V or M at once
MANY_FILTERS = 32  # from which on they are laid side by side for the weight gradient
BIAS_AT = 1  # Aᵀ spreads this position of a tile evenly over the tile's 4 outputs


def convolve(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> Iterator[Array]:
    """Fill out (OH, OW, F, n) from x (H, W, C, n), weight (3, 3, C, F) and bias (F,); yield each finished block."""
    across, U = _tiles(x, window, out), _transformed_weight(weight)
    for rows, seen in _blocks(x, window, out):
        yield _convolved(seen, U, bias, across, out[rows])


def convolve_with_gradient(x: Array, weight: Array, dy: Array, window: Window, out: Array) -> Array:
    """Fill out (OH, OW, F, n) as `convolve` does; return what dy, such an array, means for the weight, (3, 3, C, F).

    Both see the same of x, which is transformed once. As Gᵀ goes back from U to the weight, A goes back from the output
    to M, so that dU is the sum over all tiles of

        dU (6, 3·C, F) = V as (tiles, 6, rows, 3·C, n) @ dM as (tiles, 6, rows, n, F)
    """
    across, U = _tiles(x, window, out), _transformed_weight(weight)
    C, F = weight.shape[2:]
    dU = np.zeros((SEEN, 1, KERNEL * C * F), x.dtype)
    for rows, seen in _blocks(x, window, out):
        _convolved(seen, U, None, across, out[rows])
        dM = _transformed_gradient(dy[rows], across)
        tiles, _, count = seen.shape[:3]
        products = scratch.take("sums", (SEEN, tiles, count, KERNEL * C, F), x.dtype)
        np.matmul(seen, dM, out=products.transpose(1, 0, 2, 3, 4))
        ones = scratch.ones(tiles * count, x.dtype)
        dU += ones.reshape(1, 1, -1) @ products.reshape(SEEN, tiles * count, -1)
    dweight = G.astype(x.dtype).T @ dU.reshape(SEEN, KERNEL * C * F)  # (columns, rows · C · F)
    return dweight.reshape(KERNEL, KERNEL, C, F).swapaxes(0, 1)


def row_bytes(width: int, pixel: int) -> int:
    """Return how many bytes a row of so many pixels takes in V or in M, a pixel having so many bytes."""
    return -(-width // TILE) * SEEN * pixel


def _tiles(x: Array, window: Window, out: Array) -> Stretch:
    """Return the tiles of a row of the output."""
    return stretch(0, -(-out.shape[1] // TILE), x.shape[1], out.shape[1], window.padding[1][0])


def _transformed_weight(weight: Array) -> Array:
    """Return U (6, 1, F, 3·C) of a weight (3, 3, C, F)."""
    C, F = weight.shape[2:]
    by_column = weight.transpose(1, 3, 0, 2).reshape(KERNEL, F * KERNEL * C)
    return (G.astype(weight.dtype) @ by_column).reshape(SEEN, 1, F, KERNEL * C)


def _blocks(x: Array, window: Window, out: Array) -> Iterator[tuple[slice, Array]]:
    """Yield blocks of output rows, and what the kernel sees there: V as (tiles, 6, rows, 3·C, n), in the scratch."""
    (OH, OW, F, n), C, across = out.shape, x.shape[2], _tiles(x, window, out)
    pixels = x[:, across.image].reshape(len(x), -1, C * n)
    views = [(alike, alike.of(pixels, 1)) for alike in across.seen]  # (H, tiles, ≤ 6, C·n)
    rows_at_once = max(1, BLOCK // row_bytes(OW, max(C, F) * n * x.itemsize))
    for rows in equal_parts(OH, -(-OH // rows_at_once)):
        count = rows.stop - rows.start
        V = scratch.take("input", (across.count, SEEN, count + KERNEL - 1, C * n), x.dtype)
        _transform(views, rows.start - window.padding[0][0], V)
        tile, position, row, item = V.strides
        yield rows, strided(V, (across.count, SEEN, count, KERNEL * C, n), (tile, position, row, n * item, item))


def _convolved(seen: Array, U: Array, bias: Array | None, across: Stretch, part: Array) -> Array:
    """Fill some output rows (rows, OW, F, n) from what the kernel sees there; returns them."""
    tiles, _, count = seen.shape[:3]
    _, OW, F, n = part.shape
    M = np.matmul(U, seen, out=scratch.take("output", (tiles, SEEN, count, F, n), part.dtype))
    if bias is not None:
        M[:, BIAS_AT] += bias[:, None]
    by_row = M.reshape(tiles, SEEN, count, F * n).transpose(2, 0, 1, 3)
    made = part.reshape(count, OW, F * n)
    for alike in across.made:
        np.matmul(alike.matrix, by_row[:, alike.tiles], out=alike.of(made, 1))
    return part


def _transformed_gradient(dy: Array, across: Stretch) -> Array:
    """Return dM (tiles, 6, rows, n, F) = A dy of some rows of dy (rows, OW, F, n), in the scratch.

    Many filters are laid side by side before: this takes a while, but such products are faster.
    """
    count, OW, F, n = dy.shape
    many = F >= MANY_FILTERS
    if many:
        by_image = scratch.take("lines", (count, OW, n, F), dy.dtype)
        np.copyto(by_image.swapaxes(2, 3), dy)
        dy = by_image
    made = dy.reshape(count, OW, F * n)
    dM = scratch.take("output", (across.count, SEEN, count, F * n), dy.dtype)
    by_row = dM.transpose(2, 0, 1, 3)
    for alike in across.made:
        np.matmul(alike.matrix.T, alike.of(made, 1), out=by_row[:, alike.tiles])
    shape = (across.count, SEEN, count)
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
