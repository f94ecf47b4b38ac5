"""Augmentations, seen: the same images as a model is shown them epoch after epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn import rng
from gpucnn.backends import get_backend
from gpucnn.core import checks
from gpucnn.data.arrays import host_array
from gpucnn.data.augment import Augmentation, AugmentationPipeline, check_augmentations, count_random_words
from gpucnn.errors import ConfigurationError, ShapeError
from gpucnn.plots.canvas import ACROSS, GAP, draw_tiles, mark_rows, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCH = 0.75  # the width of an image


def augmented(
    images: Any,
    augment: Sequence[Augmentation] | Augmentation,
    epochs: int = 5,
    *,
    seed: int = 0,
    title: str | None = None,
    path: str | Path | None = None,
) -> "Figure":
    """Draw images as they are, and below as the augmentations change them in each of several epochs.

    Shapes:
        images  (N, H, W, 1) or (N, H, W, 3), uint8 or floats 0 … 1, such as x_train[:10]

    Arguments:
        augment: as `fit` takes them.
        seed: of what is drawn, here and not in a training.
        title: without one the augmentations, as they are made.

    Raises:
        ConfigurationError: no augmentation, or one that `fit` would refuse; or no epoch to be drawn.
        ShapeError: other images, none or more than can be seen, or images that cannot be changed so.
    """
    images = host_array(images, "images")
    _check(images, epochs)
    size = _result_size(augment, images.shape[1:3])
    listed = check_augmentations(augment, (*size, images.shape[3]), images)
    if not listed:
        raise ConfigurationError("there is no augmentation to draw; pass some, such as [Flip(), Translate(4)]")
    rows = [_as_shown(images), *(_as_shown(batch) for batch in _epochs(images, listed, epochs, seed))]
    largest = np.max([row.shape[1:3] for row in rows], axis=0)
    tiles = [_centred(tile, largest) for row in rows for tile in row]
    height = largest[0] / largest[1]
    figure = new_figure(INCH * len(images) * (1 + GAP) + 0.9, INCH * len(rows) * (height + GAP) + 0.4)
    axes = figure.add_subplot()
    draw_tiles(axes, tiles, len(images), cmap="gray", vmin=0, vmax=1)
    mark_rows(axes, tiles, ["as they are", *(f"epoch {number + 1}" for number in range(epochs))], "")
    named = title or ", ".join(map(repr, listed))
    axes.set_title(plain(named), fontsize="medium", wrap=True)
    return save(figure, path)


def _check(images: Any, epochs: int) -> None:
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not 1 <= len(images) <= ACROSS:
        raise ShapeError(
            f"images have shape {images.shape}; expected 1 to {ACROSS} images (N, H, W, 1) or (N, H, W, 3), such as "
            "x_train[:10]"
        )
    checks.integer(epochs, "epochs", minimum=1)


def _result_size(augment: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of what augmentations make, those that are none left to be refused later."""
    for one in augment if isinstance(augment, list | tuple) else [augment]:
        if isinstance(one, Augmentation):
            image_size = one.result_size(image_size)
    return image_size


def _epochs(images: Any, augment: Sequence[Augmentation], epochs: int, seed: int) -> list[Any]:
    """Return the images as they are shown in each epoch."""
    backend, N = get_backend("numpy"), len(images)
    stream, image_stream = (rng.new_stream(rng.host_generator(seed, name)) for name in ("picture", "picture for good"))
    per_image = rng.random_bits(backend, image_stream, (N, count_random_words(augment, per_image=True)))
    pipeline = AugmentationPipeline(augment, backend, images.shape[1:3], per_image)
    shown = []
    for epoch in range(epochs):
        pipeline.begin_epoch(epoch)
        words = rng.random_bits(backend, stream, (N, count_random_words(augment)))
        shown.append(backend.load_batch(images, slice(0, N), "float32", pipeline.sample(words, slice(0, N))))
    return shown


def _as_shown(images: Any) -> Any:
    """Return images as floats 0 … 1, grey ones without their channel."""
    floats = images / 255.0 if images.dtype == np.uint8 else np.clip(images, 0.0, 1.0)
    return floats[..., 0] if floats.shape[3] == 1 else floats


def _centred(tile: Any, size: Any) -> Any:
    """Return a tile in the middle of a white one of a size: a crop is shown as much smaller as it is."""
    top, left = (size - tile.shape[:2]) // 2
    whole = np.ones((*size, *tile.shape[2:]))
    whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return whole
