"""How the images of a batch are laid into it: moved, mirrored, with a square painted over."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Placement:
    """For each image of a batch, int32 (N,) on the backend; None where nothing of the kind is done.

    In order: an image is moved `down` and `right`, reflected at its edges; then mirrored, left for right, where `flip`
    is 1; then a square of `hole` pixels a side, its corner at (`hole_top`, `hole_left`), is painted with `fill`,
    0 … 255.
    """

    down: Any = None
    right: Any = None
    flip: Any = None
    hole_top: Any = None
    hole_left: Any = None
    hole: int = 0
    fill: int = 0
