"""Test-time augmentation: the network computes several views of each image, and its outputs are averaged.

A network trained with flips and translations is still not quite invariant to them, so the mean over several views is
more accurate than a single one: `model.evaluate(x, y, tta="flip+shift")`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.backends.image_transform import ImageTransform
from gpucnn.core import checks
from gpucnn.errors import ConfigurationError, ShapeError


@dataclass(frozen=True)
class Views:
    """The views of each image whose outputs are averaged, and their weights.

    Arguments
        flip   whether each view is also taken flipped, left for right, with the same weight
        shift  pixels, 0 for none: else the image itself has half of the weight, and the image shifted by as much up and
               left, and down and right, a quarter each; the border is filled by reflection

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), with flip=True and shift=1.

    Example
        >>> (x, y), (x_test, y_test) = datasets.synthetic_digits(64)
        >>> from gpucnn.data.tta import Views
        >>> networks.lenet().predict(x_test, tta=Views(flip=False, shift=1)).shape
        (12, 10)
    """

    flip: bool = True
    shift: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "flip", checks.flag(self.flip, "Views: flip"))
        object.__setattr__(self, "shift", checks.integer(self.shift, "Views: shift", minimum=0))

    def offsets(self) -> list[tuple[int, bool, float]]:
        """Return the shift of each view, down and right alike, whether it is flipped, and its weight."""
        shifts = [(0, 0.5), (-self.shift, 0.25), (self.shift, 0.25)] if self.shift else [(0, 1.0)]
        flips = (False, True) if self.flip else (False,)
        return [(shift, flip, weight / len(flips)) for shift, weight in shifts for flip in flips]

    def of(self, backend: Backend, x: Array, dtype: str) -> Iterator[tuple[Array, float]]:
        """Yield the views of images x (N, H, W, C), uint8 or floats on the backend, as floats, each with its weight."""
        N, xp = len(x), backend.xp
        for shift, flip, weight in self.offsets():
            moved = xp.full(N, shift, dtype="int32") if shift else None
            transform = ImageTransform(shift_y=moved, shift_x=moved, flip=xp.ones(N, dtype="int32") if flip else None)
            yield backend.load_batch(x, slice(0, N), dtype, transform if shift or flip else None), weight


NAMES = {"flip": Views(), "flip+shift": Views(shift=1)}


def check_tta(tta: Any, input_shape: tuple[int, ...]) -> Views | None:
    """Return the views that an argument `tta` stands for, for samples of a shape; None for None.

    Raises:
        ConfigurationError: neither Views nor one of their names.
        ShapeError: samples that are not images, or images too small for the shift.
    """
    if tta is None:
        return None
    views = NAMES.get(tta) if isinstance(tta, str) else tta
    if not isinstance(views, Views):
        raise ConfigurationError(
            f"tta must be one of {', '.join(map(repr, NAMES))}, or a gpucnn.data.tta.Views, such as "
            f"Views(flip=True, shift=2), not {tta!r}"
        )
    if len(input_shape) != 3:
        raise ShapeError(
            f"test-time augmentation takes images (H, W, C); this model takes samples of shape {input_shape}"
        )
    if views.shift >= min(input_shape[:2]):
        raise ShapeError(
            f"{views}: an image of {input_shape[0]}x{input_shape[1]} has fewer than {views.shift + 1} pixels a side to "
            "reflect at its border; choose a smaller shift"
        )
    return views
