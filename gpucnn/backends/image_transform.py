"""How the images of a batch are laid into it: turned, cropped, moved, mirrored, with a square painted over.

All arithmetic is that of integers, so every backend gives the same pixels, to the bit.
"""

from dataclasses import dataclass
from typing import Any

BITS = 14  # of the fraction of a cosine
ONE = 1 << BITS
WEIGHT_BITS = 8  # of the weight of a neighbouring pixel
PLACE_BITS = BITS + 1  # of a place in an image: distances from the centre are counted in half pixels
ROUND_PLACE = 1 << (PLACE_BITS - WEIGHT_BITS - 1)  # half of the last bit that counts


@dataclass(frozen=True)
class Placement:
    """For each image of a batch, int32 (N,) on the backend; None where nothing of the kind is done.

    In order: an image is turned about its centre, counter-clockwise, and enlarged: `cosine` and `sine` of the angle,
    both divided by the enlargement, in units of 1/ONE; what lies outside the image is the pixel value `around`,
    0 … 255. Then it is moved `down` and `right` in a frame of `size` (OH, OW), by default its own, whose first pixel is
    that of the image; what comes in beside it is the pixel value `beside`, 0 … 255, or with None the image reflected at
    its edges. Then it is mirrored, left for right, where `flip` is 1. Then a square of `hole` pixels a side, its corner
    at (`hole_top`, `hole_left`), is painted with `fill`, 0 … 255.
    """

    cosine: Any = None
    sine: Any = None
    around: int = 0
    down: Any = None
    right: Any = None
    size: tuple[int, int] | None = None
    beside: int | None = None
    flip: Any = None
    hole_top: Any = None
    hole_left: Any = None
    hole: int = 0
    fill: int = 0

    def is_nothing(self) -> bool:
        """Tell whether images are left as they are."""
        return self.cosine is self.down is self.flip is None and not self.hole

    def result_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) for images of (H, W)."""
        return image_size if self.size is None else self.size


def placed(xp: Any, x: Any, numbers: Any, placement: Placement) -> Any:
    """Return images of a data set x (P, H, W, C), picked by number (N,), as they are placed: (N, OH, OW, C).

    Every pixel of the result is read once: its place is followed backwards, from the last change to the first. In a
    data set of floats a pixel value v counts as v / 255.
    """
    if placement.cosine is not None:
        x, numbers = turned(xp, x[numbers], placement), xp.arange(len(numbers))
    H, W = x.shape[1:3]
    OH, OW = placement.result_size((H, W))
    row, column = xp.arange(OH)[None, :], xp.arange(OW)[None, :]  # of the result, and then of the image
    painted = _painted(row, column, placement) if placement.hole else None
    if placement.flip is not None:
        column = xp.where(placement.flip[:, None] == 1, OW - 1 - column, column)
    if placement.down is not None:
        row, column = row - placement.down[:, None], column - placement.right[:, None]
    inside = None
    if placement.beside is not None:
        inside = ((row >= 0) & (row < H))[:, :, None] & ((column >= 0) & (column < W))[:, None, :]
        row, column = row.clip(0, H - 1), column.clip(0, W - 1)
    elif placement.down is not None:
        row, column = reflected(row, H), reflected(column, W)
    images = x[numbers[:, None, None], row[:, :, None], column[:, None, :]]
    if inside is not None:
        images = xp.where(inside[..., None], images, _pixel(placement.beside, images))
    return images if painted is None else xp.where(painted[..., None], _pixel(placement.fill, images), images)


def turned(xp: Any, images: Any, placement: Placement) -> Any:
    """Return images (N, H, W, C) turned and enlarged: each pixel is a mean of the four around the place it comes from.

    The nearer one is, the more it weighs, in steps of 1/256 of a pixel (bilinear interpolation).
    """
    H, W = images.shape[1:3]
    whole, share = 1 << WEIGHT_BITS, []
    numbers = xp.arange(len(images))[:, None, None]
    for place in places(xp, (H, W), placement):
        share.append((place >> PLACE_BITS, place >> (PLACE_BITS - WEIGHT_BITS) & (whole - 1)))
    (top, lower), (left, righter) = share
    total: Any = 0
    for row, row_weight in ((top, whole - lower), (top + 1, lower)):
        for column, column_weight in ((left, whole - righter), (left + 1, righter)):
            pixels = images[numbers, row.clip(0, H - 1), column.clip(0, W - 1)]
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            pixels = xp.where(inside[..., None], pixels, _pixel(placement.around, images))
            total = total + (row_weight * column_weight)[..., None] * pixels
    if images.dtype == "uint8":
        return ((total + (whole * whole >> 1)) >> (2 * WEIGHT_BITS)).astype("uint8")
    return (total / (whole * whole)).astype(images.dtype)


def places(xp: Any, size: tuple[int, int], placement: Placement) -> tuple[Any, Any]:
    """Return the row and the column that each pixel of a turned image comes from, int32 (N, H, W).

    In units of 2^−PLACE_BITS of a pixel, rounded to a weight's last bit by what is cut off later.
    """
    H, W = size
    down = (2 * xp.arange(H, dtype="int32") - (H - 1))[None, :, None]  # from the centre, in half pixels
    across = (2 * xp.arange(W, dtype="int32") - (W - 1))[None, None, :]
    cosine, sine = placement.cosine[:, None, None], placement.sine[:, None, None]
    row = cosine * down + (sine * across + ((H - 1) * ONE + ROUND_PLACE))
    column = cosine * across - (sine * down - ((W - 1) * ONE + ROUND_PLACE))
    return row, column


def reflected(at: Any, size: int) -> Any:
    """Return places −size < at < 2·size − 1 folded back into 0 … size − 1, as a mirror at each edge shows them."""
    return size - 1 - abs(size - 1 - abs(at))


def _painted(row: Any, column: Any, placement: Placement) -> Any:
    """Return which pixels of the result (N, OH, OW) lie in the hole."""
    top, left = placement.hole_top[:, None], placement.hole_left[:, None]
    rows = (row >= top) & (row < top + placement.hole)
    columns = (column >= left) & (column < left + placement.hole)
    return rows[:, :, None] & columns[:, None, :]


def _pixel(value: Any, images: Any) -> Any:
    """Return a pixel value 0 … 255 as images hold it."""
    return images.dtype.type(value if images.dtype == "uint8" else value / 255)
