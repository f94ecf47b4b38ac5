"""Geometric augmentation of the images of a batch: rotation, shift or crop, flip, cutout.

All arithmetic is on integers, so every backend gives bitwise identical pixels.
"""

from dataclasses import dataclass
from typing import Any

FIXED_BITS = 14  # fractional bits of a cosine
FIXED_ONE = 1 << FIXED_BITS
WEIGHT_BITS = 8  # of the weight of a neighbouring pixel
# fractional bits of a coordinate: distances from the centre are counted in half pixels
COORDINATE_BITS = FIXED_BITS + 1
ROUND_COORDINATE = 1 << (COORDINATE_BITS - WEIGHT_BITS - 1)  # half of the last bit that counts


@dataclass(frozen=True)
class ImageTransform:
    """How each image of a batch is transformed; arrays are int32 (N,) on the backend, None leaves a step out.

    Steps, in order:

        rotation   about the centre, counter-clockwise, with a scale: `cosine` and `sine` of the angle, both divided by
                   the scale, in units of 1/FIXED_ONE; pixels from outside the image are `rotation_fill`, 0 … 255
        shift      by `shift_y` down and `shift_x` right, in a frame of `crop_size` (OH, OW), by default the image's
                   own, whose first pixel is that of the image; pixels beyond the edges are `border`, 0 … 255, or with
                   None the image reflected at its edges
        flip       left for right, where `flip` is 1
        cutout     a square of `cutout` pixels a side, its corner at (`cutout_top`, `cutout_left`), filled with
                   `cutout_fill`, 0 … 255
    """

    cosine: Any = None
    sine: Any = None
    rotation_fill: int = 0
    shift_y: Any = None
    shift_x: Any = None
    crop_size: tuple[int, int] | None = None
    border: int | None = None
    flip: Any = None
    cutout_top: Any = None
    cutout_left: Any = None
    cutout: int = 0
    cutout_fill: int = 0

    def is_identity(self) -> bool:
        """Return whether images are left unchanged."""
        return self.cosine is self.shift_y is self.flip is None and not self.cutout

    def result_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) for images of (H, W)."""
        return image_size if self.crop_size is None else self.crop_size


def apply_transform(xp: Any, x: Any, indices: Any, transform: ImageTransform) -> Any:
    """Return the transformed images of a data set x (P, H, W, C) at `indices` (N,): (N, OH, OW, C).

    Each pixel of the result is read once: its coordinates are followed backwards, from the last step to the first. In a
    data set of floats, a pixel value v counts as v / 255.
    """
    if transform.cosine is not None:
        x, indices = rotate(xp, x[indices], transform), xp.arange(len(indices))
    H, W = x.shape[1:3]
    OH, OW = transform.result_size((H, W))
    row, column = xp.arange(OH)[None, :], xp.arange(OW)[None, :]  # of the result, and then of the image
    mask = _cutout_mask(row, column, transform) if transform.cutout else None
    if transform.flip is not None:
        column = xp.where(transform.flip[:, None] == 1, OW - 1 - column, column)
    if transform.shift_y is not None:
        row, column = row - transform.shift_y[:, None], column - transform.shift_x[:, None]
    inside = None
    if transform.border is not None:
        inside = ((row >= 0) & (row < H))[:, :, None] & ((column >= 0) & (column < W))[:, None, :]
        row, column = row.clip(0, H - 1), column.clip(0, W - 1)
    elif transform.shift_y is not None:
        row, column = reflect(row, H), reflect(column, W)
    images = x[indices[:, None, None], row[:, :, None], column[:, None, :]]
    if inside is not None:
        images = xp.where(inside[..., None], images, _pixel(transform.border, images))
    return images if mask is None else xp.where(mask[..., None], _pixel(transform.cutout_fill, images), images)


def rotate(xp: Any, images: Any, transform: ImageTransform) -> Any:
    """Return images (N, H, W, C) rotated and scaled, with bilinear interpolation in steps of 1/256 of a pixel."""
    H, W = images.shape[1:3]
    unit, parts = 1 << WEIGHT_BITS, []
    numbers = xp.arange(len(images))[:, None, None]
    for coordinate in source_coordinates(xp, (H, W), transform):
        weight = coordinate >> (COORDINATE_BITS - WEIGHT_BITS) & (unit - 1)
        parts.append((coordinate >> COORDINATE_BITS, weight))
    (top, lower_weight), (left, right_weight) = parts
    total: Any = 0
    for row, row_weight in ((top, unit - lower_weight), (top + 1, lower_weight)):
        for column, column_weight in ((left, unit - right_weight), (left + 1, right_weight)):
            pixels = images[numbers, row.clip(0, H - 1), column.clip(0, W - 1)]
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            pixels = xp.where(inside[..., None], pixels, _pixel(transform.rotation_fill, images))
            total = total + (row_weight * column_weight)[..., None] * pixels
    if images.dtype == "uint8":
        return ((total + (unit * unit >> 1)) >> (2 * WEIGHT_BITS)).astype("uint8")
    return (total / (unit * unit)).astype(images.dtype)


def source_coordinates(xp: Any, size: tuple[int, int], transform: ImageTransform) -> tuple[Any, Any]:
    """Return the row and the column in the image of each pixel of the rotated image, int32 (N, H, W).

    In units of 2^−COORDINATE_BITS of a pixel, plus half of a weight's last bit, since later shifts round down.
    """
    H, W = size
    y = (2 * xp.arange(H, dtype="int32") - (H - 1))[None, :, None]  # from the centre, in half pixels
    x = (2 * xp.arange(W, dtype="int32") - (W - 1))[None, None, :]
    cosine, sine = transform.cosine[:, None, None], transform.sine[:, None, None]
    row = cosine * y + (sine * x + ((H - 1) * FIXED_ONE + ROUND_COORDINATE))
    column = cosine * x - (sine * y - ((W - 1) * FIXED_ONE + ROUND_COORDINATE))
    return row, column


def reflect(index: Any, size: int) -> Any:
    """Return indices −size < index < 2·size − 1 reflected at the edges into 0 … size − 1."""
    return size - 1 - abs(size - 1 - abs(index))


def _cutout_mask(row: Any, column: Any, transform: ImageTransform) -> Any:
    """Return which pixels of the result (N, OH, OW) lie in the cutout."""
    top, left = transform.cutout_top[:, None], transform.cutout_left[:, None]
    rows = (row >= top) & (row < top + transform.cutout)
    columns = (column >= left) & (column < left + transform.cutout)
    return rows[:, :, None] & columns[:, None, :]


def _pixel(value: Any, images: Any) -> Any:
    """Return a pixel value 0 … 255 in the scale of the images."""
    return images.dtype.type(value if images.dtype == "uint8" else value / 255)
