"""Winograd's matrices, and the tiles along one axis of an image that they are applied to.

A tile is 4 neighbouring pixels of the output, computed from 6 of the input; neighbouring tiles share two of these:

    input    ──0──1──2──3──4──5──6──7──8──9──        inputs of tile 0: 0 … 5, of tile 1: 4 … 9
    output   ──0──1──2──3──┊──4──5──6──7──

With padding, or a size that is not a multiple of 4, some of the 6 lie outside the image, and some of the 4 are not
needed. Such tiles need no copy: their matrices omit the corresponding columns, or rows.

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
from gpucnn.backends.reference import Array

TILE_OUT, TILE_IN = 4, 6  # output and input pixels of a tile along one axis


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
class TileGroup:
    """Neighbouring tiles with the same input, or output, positions inside the image."""

    tiles: slice  # counted from the first of the span
    start: int  # the first pixel of the first tile
    pixels: int  # per tile
    matrix: Any  # Bᵀ for inputs, Aᵀ for outputs

    def of(self, array: Array, axis: int) -> Array:
        """Return the pixels of each tile along an axis: a view with axes (tiles, pixels) in its place."""
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        size = array.strides[axis]
        shape = (*before, self.tiles.stop - self.tiles.start, self.pixels, *after)
        strides = (*array.strides[:axis], TILE_OUT * size, size, *array.strides[axis + 1 :])
        if array.flags.c_contiguous:
            return strided(array, shape, strides, self.start * size)
        # a slice of channels or columns: as_strided is slower, but takes arrays that are not contiguous
        part = array[(slice(None),) * axis + (slice(self.start, None),)]
        return viewed(part, lambda own: as_strided(own, shape, strides))


@dataclass(frozen=True)
class TileSpan:
    """Neighbouring tiles along one axis, their pixels of the image and of the output."""

    count: int
    image: slice
    output: slice
    inputs: tuple[TileGroup, ...]  # counted from the first pixel of `image`
    outputs: tuple[TileGroup, ...]  # counted from the first pixel of `output`


@lru_cache(maxsize=1024)
def tile_span(first: int, last: int, size: int, output: int, before: int) -> TileSpan:
    """Return the tiles first … last of an axis: `size` input pixels, `output` output pixels, padding `before`."""
    start = min(max(TILE_OUT * first - before, 0), size)
    stop = min(max(TILE_OUT * last + 2 - before, start), size)
    # the tiles whose inputs lie inside the image
    inside_from = min(max(first, -(-before // TILE_OUT)), last)
    inside_to = max(inside_from, min(last, (size - TILE_IN + before) // TILE_OUT + 1))
    inputs = []
    if inside_from < inside_to:
        at = TILE_OUT * inside_from - before - start
        inputs.append(TileGroup(slice(inside_from - first, inside_to - first), at, TILE_IN, B_T))
    for tile in (*range(first, inside_from), *range(inside_to, last)):
        at = TILE_OUT * tile - before
        since, until = (min(max(edge, start), stop) for edge in (at, at + TILE_IN))
        matrix = _matrix(B_T[:, since - at : until - at])
        inputs.append(TileGroup(slice(tile - first, tile - first + 1), since - start, until - since, matrix))
    whole, rest = divmod(min(TILE_OUT * last, output) - TILE_OUT * first, TILE_OUT)
    outputs = [TileGroup(slice(0, whole), 0, TILE_OUT, A_T)] if whole else []
    if rest:
        outputs.append(TileGroup(slice(whole, whole + 1), TILE_OUT * whole, rest, A_T[:rest]))
    needed = slice(TILE_OUT * first, min(TILE_OUT * last, output))
    return TileSpan(last - first, slice(start, stop), needed, tuple(inputs), tuple(outputs))


@lru_cache(maxsize=1024)
def tile_grid(
    image_size: tuple[int, int], output_size: tuple[int, int], padding: tuple[tuple[int, int], ...], max_tiles: int
) -> list[tuple[TileSpan, TileSpan]]:
    """Split the output into blocks of at most `max_tiles`, whole rows or parts of one: (vertical, horizontal)."""
    (H, W), (OH, OW), ((top, _), (left, _)) = image_size, output_size, padding
    down, across = -(-OH // TILE_OUT), -(-OW // TILE_OUT)
    return [
        (tile_span(rows.start, rows.stop, H, OH, top), tile_span(columns.start, columns.stop, W, OW, left))
        for rows in even_slices(down, -(-down // max(1, max_tiles // across)))
        for columns in even_slices(across, -(-across // max_tiles))
    ]
