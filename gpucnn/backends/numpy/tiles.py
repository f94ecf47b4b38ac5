"""Winograd's matrices, and one axis of an image cut into the tiles that they are applied to.

A tile makes 4 neighbouring pixels of the output and sees 6 of the input; neighbouring tiles overlap by two there:

    input    ──0──1──2──3──4──5──6──7──8──9──        tile 0 sees 0 … 5, tile 1 sees 4 … 9
    output   ──0──1──2──3──┊──4──5──6──7──

With padding, or a size that is no multiple of 4, some of the 6 lie outside the image, and some of the 4 are not wanted.
Such tiles need no copy: for them the matrices lose the columns, or the rows, that belong to what is not there.

Source: Lavin, Gray, "Fast algorithms for convolutional neural networks" (2016), with their interpolation points
0, ±1, ±2. In float32 a convolution is within 1e-5 of float64 (L2, relative).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory_layout import even_slices, strided
from gpucnn.backends.numpy.traced_array import viewed

Array = Any

TILE, SEEN = 4, 6  # output and input pixels of a tile along one axis


def _matrix(rows: Any) -> Array:
    return constant(np.array(rows, dtype=np.float32, order="C"))


B_T = _matrix(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
A_T = _matrix([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
A = _matrix(A_T.T)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24


@dataclass(frozen=True)
class Alike:
    """Neighbouring tiles that see, or make, as many pixels in the same places."""

    tiles: slice  # counted from the first of the stretch
    start: int  # the first pixel of the first of them
    pixels: int  # of each
    matrix: Any  # Bᵀ for what they see, Aᵀ for what they make

    def of(self, array: Array, axis: int) -> Array:
        """Return the pixels of an array along an axis, a tile each: a view with (tiles, pixels) in the axis' place."""
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        size = array.strides[axis]
        shape = (*before, self.tiles.stop - self.tiles.start, self.pixels, *after)
        strides = (*array.strides[:axis], TILE * size, size, *array.strides[axis + 1 :])
        if array.flags.c_contiguous:
            return strided(array, shape, strides, self.start * size)
        # some of the channels, or of the columns: NumPy's own way is slower, but takes what is not contiguous
        part = array[(slice(None),) * axis + (slice(self.start, None),)]
        return viewed(part, lambda own: as_strided(own, shape, strides))


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tiles along one axis: which pixels of the image they see, which of the output they make."""

    count: int
    image: slice
    output: slice
    seen: tuple[Alike, ...]  # counted from the image's first pixel that the stretch sees
    made: tuple[Alike, ...]  # counted from the output's first pixel that the stretch makes


@lru_cache(maxsize=1024)
def stretch(first: int, last: int, size: int, output: int, before: int) -> Stretch:
    """Return the tiles from first to last of an axis with so many pixels, output pixels, and padding before them."""
    start = min(max(TILE * first - before, 0), size)
    stop = min(max(TILE * last + 2 - before, start), size)
    # the tiles that see nothing but the image
    inside_from = min(max(first, -(-before // TILE)), last)
    inside_to = max(inside_from, min(last, (size - SEEN + before) // TILE + 1))
    seen = []
    if inside_from < inside_to:
        at = TILE * inside_from - before - start
        seen.append(Alike(slice(inside_from - first, inside_to - first), at, SEEN, B_T))
    for tile in (*range(first, inside_from), *range(inside_to, last)):
        at = TILE * tile - before
        since, until = (min(max(edge, start), stop) for edge in (at, at + SEEN))
        matrix = _matrix(B_T[:, since - at : until - at])
        seen.append(Alike(slice(tile - first, tile - first + 1), since - start, until - since, matrix))
    whole, rest = divmod(min(TILE * last, output) - TILE * first, TILE)
    made = [Alike(slice(0, whole), 0, TILE, A_T)] if whole else []
    if rest:
        made.append(Alike(slice(whole, whole + 1), TILE * whole, rest, A_T[:rest]))
    wanted = slice(TILE * first, min(TILE * last, output))
    return Stretch(last - first, slice(start, stop), wanted, tuple(seen), tuple(made))


@lru_cache(maxsize=1024)
def cut(
    image_size: tuple[int, int], output_size: tuple[int, int], padding: tuple[tuple[int, int], ...], most: int
) -> list[tuple[Stretch, Stretch]]:
    """Cut the output into blocks of at most so many tiles: whole rows of tiles, or pieces of one; down and across."""
    (H, W), (OH, OW), ((top, _), (left, _)) = image_size, output_size, padding
    down, across = -(-OH // TILE), -(-OW // TILE)
    return [
        (stretch(rows.start, rows.stop, H, OH, top), stretch(columns.start, columns.stop, W, OW, left))
        for rows in even_slices(down, -(-down // max(1, most // across)))
        for columns in even_slices(across, -(-across // most))
    ]
