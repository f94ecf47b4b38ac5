"""Views of an image at test time: a network is asked about each, and its answers are averaged.

A network that has learned what does not matter, such as left and right, is still not quite indifferent to it; the mean
over several views is right more often than a single one: `model.evaluate(x, y, views="mirror-shift")`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.backends.image_transform import Placement
from gpucnn.core import checks
from gpucnn.errors import ConfigurationError, ShapeError


@dataclass(frozen=True)
class Views:
    """Which views of each image count, and how much.

    Arguments
        mirror  whether each view is joined by its mirror image, left for right, both counting alike
        shift   pixels, 0 for none: then the image itself has half of the weight, and a quarter each have the image
                moved so far up and left, and down and right; what comes in is the image reflected

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), with mirror=True and shift=1.
    """

    mirror: bool = True
    shift: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mirror", checks.flag(self.mirror, "Views: mirror"))
        object.__setattr__(self, "shift", checks.integer(self.shift, "Views: shift", minimum=0))

    def places(self) -> list[tuple[int, bool, float]]:
        """Return for each view how far it is moved down and right, whether it is mirrored, and its weight."""
        moved = [(0, 0.5), (-self.shift, 0.25), (self.shift, 0.25)] if self.shift else [(0, 1.0)]
        mirrored = (False, True) if self.mirror else (False,)
        return [(by, flip, weight / len(mirrored)) for by, weight in moved for flip in mirrored]

    def of(self, backend: Backend, x: Array, dtype: str) -> Iterator[tuple[Array, float]]:
        """Yield the views of images x (N, H, W, C), uint8 or floats on the backend, as floats, each with its weight."""
        N, xp = len(x), backend.xp
        for by, flip, weight in self.places():
            moved = xp.full(N, by, dtype="int32") if by else None
            placement = Placement(down=moved, right=moved, flip=xp.ones(N, dtype="int32") if flip else None)
            yield backend.load_batch(x, slice(0, N), dtype, placement if by or flip else None), weight


NAMES = {"mirror": Views(), "mirror-shift": Views(shift=1)}


def check_views(views: Any, input_shape: tuple[int, ...]) -> Views | None:
    """Return views that were given, or named, if they can be had of samples of a shape; None for None.

    Raises:
        ConfigurationError: neither views nor a name of some.
        ShapeError: samples that are no images, or images too small to be moved so far.
    """
    if views is None:
        return None
    found = NAMES.get(views) if isinstance(views, str) else views
    if not isinstance(found, Views):
        raise ConfigurationError(
            f"views must be a gpucnn.data.tta.Views, such as Views(mirror=True, shift=1), or one of the names "
            f"{', '.join(NAMES)}, not {views!r}"
        )
    if len(input_shape) != 3:
        raise ShapeError(f"only images (H, W, C) have views; this model takes samples of shape {input_shape}")
    if found.shift >= min(input_shape[:2]):
        raise ShapeError(
            f"{found}: an image of {input_shape[0]}x{input_shape[1]} has no {found.shift} pixels to reflect beside "
            "its edge; shift by less"
        )
    return found
