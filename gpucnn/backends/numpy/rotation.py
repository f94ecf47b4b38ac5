"""Turned images, a few at a time, with the four neighbours of every place in one word.

The four bytes around each place are laid side by side in 32 bits once, so that each pixel of the result fetches one
word. Two of them are weighted by one multiplication: a product of a byte and a weight needs 16 bits. Differences that
are negative borrow from the other half, and the sum at the end gives back what was borrowed.
"""

from typing import Any

import numpy as np

from gpucnn.backends.image_transform import PLACE_BITS, WEIGHT_BITS, Placement, places

AT_ONCE = 16384  # pixels: a dozen arrays of them lie in a core's second-level cache
MARGIN = 2  # pixels around an image, so that both neighbours of a place outside lie there
LOW_BYTES = np.uint32(0x00FF00FF)
HALF = np.uint32(1 << (2 * WEIGHT_BITS - 1))


def turned(images: Any, placement: Placement) -> Any:
    """Return images (N, H, W, C) uint8 turned as `flipped` in the portable text says, to the bit."""
    N, H, W, C = images.shape
    result = np.empty_like(images)
    step = max(1, AT_ONCE // (H * W * C))
    for start in range(0, N, step):
        part = slice(start, start + step)
        some = Placement(cosine=placement.cosine[part], sine=placement.sine[part], around=placement.around)
        _turn(images[part], some, result[part])
    return result


def _turn(images: Any, placement: Placement, result: Any) -> None:
    N, H, W, C = images.shape
    quads = _quads(images, placement.around)
    row, column = places(np, (H, W), placement)
    for place, size in ((row, H), (column, W)):
        place += MARGIN << PLACE_BITS
        np.maximum(place, 0, out=place)
        np.minimum(place, (size + MARGIN) << PLACE_BITS, out=place)
    lower, righter = (
        (place >> (PLACE_BITS - WEIGHT_BITS) & ((1 << WEIGHT_BITS) - 1)).view(np.uint32)[..., None]
        for place in (row, column)
    )
    row >>= PLACE_BITS
    row *= quads.shape[2]
    column >>= PLACE_BITS
    row += column
    row += (np.arange(N, dtype=np.int32) * (quads.shape[1] * quads.shape[2]))[:, None, None]
    found = quads.reshape(-1, C).take(row, axis=0)  # (N, H, W, C)
    left = found & LOW_BYTES
    found >>= 8
    found &= LOW_BYTES
    both = _between(left, found, righter)  # 16 bits of the upper row below 16 bits of the lower one
    value = _between(both & np.uint32(0xFFFF), both >> 16, lower)
    value += HALF
    value >>= 2 * WEIGHT_BITS
    result[...] = value


def _quads(images: Any, around: int) -> Any:
    """Return for each place the bytes of its pixel, the next, and both below, uint32 (N, H + 3, W + 3, C)."""
    N, H, W, C = images.shape
    padded = np.full((N, H + 2 * MARGIN, W + 2 * MARGIN, C), around, np.uint32)
    padded[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = images
    pairs = padded[:, :, 1:] << 8
    pairs |= padded[:, :, :-1]
    quads = pairs[:, 1:] << 16
    quads |= pairs[:, :-1]
    return quads


def _between(one: Any, other: Any, weight: Any) -> Any:
    """Return one·(256 − weight) + other·weight; both are used up."""
    other -= one
    other *= weight
    one <<= WEIGHT_BITS
    one += other
    return one
