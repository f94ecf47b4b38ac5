"""How the images of a batch are laid into it: cropped, moved, mirrored, with a square painted over."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Placement:
    """For each image of a batch, int32 (N,) on the backend; None where nothing of the kind is done.

    In order: an image is moved `down` and `right` in a frame of `size` (OH, OW), by default its own, whose first pixel
    is that of the image; what comes in beside it is the pixel value `beside`, 0 … 255, or with None the image reflected
    at its edges; then it is mirrored, left for right, where `flip` is 1; then a square of `hole` pixels a side, its
    corner at (`hole_top`, `hole_left`), is painted with `fill`, 0 … 255.
    """

    down: Any = None
    right: Any = None
    size: tuple[int, int] | None = None
    beside: int | None = None
    flip: Any = None
    hole_top: Any = None
    hole_left: Any = None
    hole: int = 0
    fill: int = 0

    def result_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) for images of (H, W)."""
        return image_size if self.size is None else self.size


def placed(xp: Any, x: Any, numbers: Any, placement: Placement) -> Any:
    """Return images of a data set x (P, H, W, C), picked by number (N,), as they are placed: (N, OH, OW, C).

    Every pixel of the result is read once: its place is followed backwards, from the last change to the first. In a
    data set of floats a pixel value v counts as v / 255.
    """
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
