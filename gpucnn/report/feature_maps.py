"""The feature maps of every layer for some test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpucnn.core.text import format_shape, percent, significant
from gpucnn.errors import ConfigurationError
from gpucnn.model import Model
from gpucnn.plots.canvas import evenly_spaced
from gpucnn.plots.confusion import most_confident_mistakes
from gpucnn.plots.feature_maps import layer_outputs
from gpucnn.report.png import Picture, extremes, grey, grid, image_of, reduced
from gpucnn.runs.folder import Predictions

MAX_MAPS = 16  # shown per layer
COLUMNS = 8
MAX_SIDE = 96  # pixels of a map; larger ones are reduced
TOP = 3  # predictions that are listed


@dataclass(frozen=True)
class LayerMaps:
    """The feature maps of one layer, with a caption."""

    name: str
    caption: str
    count: int
    picture: Picture


@dataclass(frozen=True)
class ImageMaps:
    """A test image: its class, its most probable predictions, and its feature maps, layer by layer."""

    index: int
    title: str
    predictions: str
    thumbnail: Picture
    layers: list[LayerMaps]


@dataclass(frozen=True)
class FeatureMaps:
    """The chosen images."""

    images: list[ImageMaps]

    @property
    def layers(self) -> list[str]:
        """The layers, the same for all images."""
        return [layer.name for layer in self.images[0].layers]

    @property
    def first(self) -> int:
        """The index of the layer that is shown at first: the first one with more channels than the input."""
        counts = [layer.count for layer in self.images[0].layers]
        return next((place for place, count in enumerate(counts) if count > counts[0]), len(counts) - 1)


def feature_maps(model: Model, test: Predictions | str, requested: int | Sequence[int]) -> FeatureMaps | str:
    """Return the feature maps of some test images, or the reason why there are none.

    Arguments:
        requested: the number of images, or their indices.

    Raises:
        ConfigurationError: the test set has no such image.
    """
    if isinstance(test, str):
        return test
    return FeatureMaps([_image(model, test, index) for index in choose_images(test, requested)])


def choose_images(test: Predictions, requested: int | Sequence[int]) -> list[int]:
    """Return the indices of test images: those requested, or a number of them.

    Of a number of images, the last is the most confident mistake; the others are the first correctly classified image
    of several classes, or the first one of a class where none is.
    """
    labels, probabilities = test.labels, test.probabilities
    if not isinstance(requested, int):
        for index in requested:
            if not 0 <= index < len(labels):
                raise ConfigurationError(
                    f"there is no test image {index}: the test set has {len(labels):,} images, 0 to {len(labels) - 1}"
                )
        return list(dict.fromkeys(int(index) for index in requested))
    wrong = [int(index) for index in most_confident_mistakes(labels, probabilities)[: requested > 1]]
    right = probabilities.argmax(axis=1) == labels
    by_class = []
    for k in range(probabilities.shape[1]):
        of_class = labels == k
        known = (of_class & right).nonzero()[0] if (of_class & right).any() else of_class.nonzero()[0]
        if len(known):
            by_class.append([int(index) for index in known])
    chosen: list[int] = []
    classes = [by_class[place] for place in evenly_spaced(len(by_class), max(1, requested - len(wrong)))]
    for turn in range(max(map(len, classes))):
        chosen += [members[turn] for members in classes if turn < len(members) and members[turn] not in wrong]
        if len(chosen) >= requested - len(wrong):
            break
    return sorted(chosen[: requested - len(wrong)], key=lambda index: (int(labels[index]), index)) + wrong


def _image(model: Model, test: Predictions, index: int) -> ImageMaps:
    pixels, true = test.images[index], test.names[int(test.labels[index])]
    probabilities = test.probabilities[index]
    top = [int(k) for k in probabilities.argsort()[::-1][:TOP]]
    predictions = ", ".join(f"{test.names[k]} ({percent(float(probabilities[k]), 1)})" for k in top)
    outputs = [
        (layer.display_name, values)
        for layer, values in layer_outputs(model, pixels[None])
        if values.ndim == 3  # until the network flattens them
    ]
    title = true if top[0] == test.labels[index] else f"{true}, classified as {test.names[top[0]]}"
    thumbnail = grid([image_of(pixels)], 1, "", largest=56)  # its label is the alternative text
    whole = LayerMaps(
        "input", format_shape(pixels.shape), pixels.shape[2], grid([image_of(pixels)], 1, f"test image {index}")
    )
    named = zip(_unique([label for label, _ in outputs]), outputs, strict=True)
    return ImageMaps(
        index, title, predictions, thumbnail, [whole, *(_maps(name, values, index) for name, (_, values) in named)]
    )


def _maps(name: str, values: Any, index: int) -> LayerMaps:
    """Return the maps of a layer (H, W, C), on one scale from its minimum to its maximum."""
    C = values.shape[2]
    shown = min(C, MAX_MAPS)
    low, high = extremes(values)
    tiles = [reduced(grey(values[..., c], low, high), MAX_SIDE) for c in range(shown)]
    caption = f"{format_shape(values.shape)}; black is {significant(low)}, white {significant(high)}"
    if shown < C:
        caption += f"; {shown} of {C} maps shown"
    if (factor := tiles[0][1]) > 1:
        caption += f", downscaled {factor} times"
    alt = f"feature maps of {name} for test image {index}"
    return LayerMaps(name, caption, C, grid([tile for tile, _ in tiles], COLUMNS, alt))


def _unique(names: list[str]) -> list[str]:
    """Return unique names for layers with the same name in several blocks: relu, relu (2)."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return result
