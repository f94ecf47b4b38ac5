"""Augmented images: the same images in several epochs."""

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
from gpucnn.plots.canvas import GAP, MAX_COLUMNS, displayable, draw_tiles, escape_mathtext, label_rows, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE_INCHES = 0.75  # width


def augmented(
    images: Any,
    augment: Sequence[Augmentation] | Augmentation,
    epochs: int = 5,
    *,
    seed: int = 0,
    title: str | None = None,
    path: str | Path | None = None,
) -> "Figure":
    """Draw images, and below them their augmented versions in each of several epochs.

    Shapes:
        images  (N, H, W, 1) or (N, H, W, 3), uint8 or floats 0 … 1, such as x_train[:10]

    Arguments:
        augment: augmentations, as `fit` takes them.
        seed: of the random transforms.
        title: by default the calls that construct the augmentations.

    Raises:
        ConfigurationError: no augmentation, or one that `fit` would reject; or no epoch to draw.
        ShapeError: other images, none or more than fit into a row, or images that cannot be augmented so.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import Rotate
        >>> figure = plots.augmented(x[:4], [Rotate(15)], path="augmented.png")
    """
    images = host_array(images, "images")
    epochs, seed = checks.integer(epochs, "epochs", minimum=1), checks.integer(seed, "seed", minimum=0)
    _check(images)
    listed = check_augmentations(augment, (*_result_size(augment, images.shape[1:3]), images.shape[3]), images)
    if not listed:
        raise ConfigurationError("there is no augmentation to draw; pass one or more, such as [Flip(), Translate(4)]")
    rows = [displayable(images), *(displayable(batch) for batch in _epochs(images, listed, epochs, seed))]
    size = np.max([row.shape[1:3] for row in rows], axis=0)
    tiles = [_centred(tile, size) for row in rows for tile in row]
    height = size[0] / size[1]
    figure = new_figure(TILE_INCHES * len(images) * (1 + GAP) + 0.9, TILE_INCHES * len(rows) * (height + GAP) + 0.4)
    axes = figure.add_subplot()
    draw_tiles(axes, tiles, len(images), cmap="gray", vmin=0, vmax=1)
    label_rows(axes, tiles, ["original", *(f"epoch {number + 1}" for number in range(epochs))], "")
    title = title or ", ".join(map(repr, listed))
    axes.set_title(escape_mathtext(title), fontsize="medium", wrap=True)
    return save(figure, path)


def _check(images: Any) -> None:
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not 1 <= len(images) <= MAX_COLUMNS:
        raise ShapeError(
            f"images have shape {images.shape}; expected 1 to {MAX_COLUMNS} images (N, H, W, 1) or (N, H, W, 3), "
            "such as x_train[:10]"
        )


def _result_size(augment: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of augmented images; what is not an augmentation is rejected later."""
    for one in augment if isinstance(augment, list | tuple) else [augment]:
        if isinstance(one, Augmentation):
            image_size = one.result_size(image_size)
    return image_size


def _epochs(images: Any, augment: Sequence[Augmentation], epochs: int, seed: int) -> list[Any]:
    """Return the augmented images of each epoch."""
    backend, N = get_backend("numpy"), len(images)
    stream, image_stream = (rng.new_stream(rng.host_generator(seed, name)) for name in ("picture", "picture for good"))
    per_image = rng.random_bits(backend, image_stream, (N, count_random_words(augment, per_image=True)))
    pipeline = AugmentationPipeline(augment, backend, images.shape[1:3], per_image)
    batches = []
    for epoch in range(epochs):
        pipeline.begin_epoch(epoch)
        words = rng.random_bits(backend, stream, (N, count_random_words(augment)))
        batches.append(backend.load_batch(images, slice(0, N), "float32", pipeline.sample(words, slice(0, N))))
    return batches


def _centred(tile: Any, size: Any) -> Any:
    """Return a tile centred on white, so that crops of different sizes are drawn to scale."""
    top, left = (size - tile.shape[:2]) // 2
    whole = np.ones((*size, *tile.shape[2:]))
    whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return whole
