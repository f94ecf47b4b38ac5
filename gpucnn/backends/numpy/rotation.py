"""Rotation of images, a few at a time, with the four neighbours of each coordinate packed into one word.

The four bytes around each coordinate are packed into 32 bits once, so that each pixel of the result fetches one word.
One multiplication weights two of them: a product of a byte and a weight needs 16 bits. Negative differences borrow from
the other half, and the final sum returns what was borrowed.
"""

from typing import Any

import numpy as np

from gpucnn.backends.image_transform import COORDINATE_BITS, WEIGHT_BITS, ImageTransform, source_coordinates

PIXEL_BLOCK = 16384  # pixels at a time: a dozen arrays of them fit into a core's second-level cache
MARGIN = 2  # pixels around an image, so that both neighbours of a coordinate outside lie there
LOW_BYTES = np.uint32(0x00FF00FF)
HALF = np.uint32(1 << (2 * WEIGHT_BITS - 1))


def rotate(images: Any, transform: ImageTransform) -> Any:
    """Return images (N, H, W, C) uint8 rotated, bitwise identical to `image_transform.rotate`."""
    N, H, W, C = images.shape
    result = np.empty_like(images)
    step = max(1, PIXEL_BLOCK // (H * W * C))
    for start in range(0, N, step):
        part = slice(start, start + step)
        cosine, sine = transform.cosine[part], transform.sine[part]
        own = ImageTransform(cosine=cosine, sine=sine, rotation_fill=transform.rotation_fill)
        _rotate(images[part], own, result[part])
    return result


def _rotate(images: Any, transform: ImageTransform, result: Any) -> None:
    N, H, W, C = images.shape
    quads = _quads(images, transform.rotation_fill)
    row, column = source_coordinates(np, (H, W), transform)
    for coordinate, size in ((row, H), (column, W)):
        coordinate += MARGIN << COORDINATE_BITS
        np.maximum(coordinate, 0, out=coordinate)
        np.minimum(coordinate, (size + MARGIN) << COORDINATE_BITS, out=coordinate)
    shift, mask = COORDINATE_BITS - WEIGHT_BITS, (1 << WEIGHT_BITS) - 1
    row_weight, column_weight = ((each >> shift & mask).view(np.uint32)[..., None] for each in (row, column))
    row >>= COORDINATE_BITS
    row *= quads.shape[2]
    column >>= COORDINATE_BITS
    row += column
    row += (np.arange(N, dtype=np.int32) * (quads.shape[1] * quads.shape[2]))[:, None, None]
    found = quads.reshape(-1, C).take(row, axis=0)  # (N, H, W, C)
    left = found & LOW_BYTES
    found >>= 8
    found &= LOW_BYTES
    both = _lerp(left, found, column_weight)  # 16 bits of the upper row below 16 bits of the lower one
    value = _lerp(both & np.uint32(0xFFFF), both >> 16, row_weight)
    value += HALF
    value >>= 2 * WEIGHT_BITS
    result[...] = value


def _quads(images: Any, fill: int) -> Any:
    """Return for each pixel its byte, that to the right, and both below, packed into uint32 (N, H + 3, W + 3, C)."""
    N, H, W, C = images.shape
    padded = np.full((N, H + 2 * MARGIN, W + 2 * MARGIN, C), fill, np.uint32)
    padded[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = images
    pairs = padded[:, :, 1:] << 8
    pairs |= padded[:, :, :-1]
    quads = pairs[:, 1:] << 16
    quads |= pairs[:, :-1]
    return quads


def _lerp(a: Any, b: Any, weight: Any) -> Any:
    """Return a·(256 − weight) + b·weight; both arrays are overwritten."""
    b -= a
    b *= weight
    a <<= WEIGHT_BITS
    a += b
    return a
