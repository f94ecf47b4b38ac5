"""Some test images on their way through the network: the feature maps of every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpucnn.core.text import format_shape, percent, significant
from gpucnn.errors import ConfigurationError
from gpucnn.model import Model
from gpucnn.plots.canvas import spread
from gpucnn.plots.confusion import surest_mistakes
from gpucnn.plots.feature_maps import layer_outputs
from gpucnn.report.png import Picture, extremes, grey, grid, image_of, reduced
from gpucnn.runs.folder import Predicted

MAPS = 16  # of a layer that are shown, at most
IN_A_ROW = 8
SIDE = 96  # pixels of a map; larger ones are reduced
BEST = 3  # classes that are named with their probabilities


@dataclass(frozen=True)
class MapLayer:
    """The maps of one layer, and what they show in words."""

    name: str
    words: str
    maps: int
    picture: Picture


@dataclass(frozen=True)
class MapImage:
    """A test image: what it is, what the network says of it, and its maps, layer by layer."""

    index: int
    title: str
    verdict: str
    thumbnail: Picture
    layers: list[MapLayer]


@dataclass(frozen=True)
class Maps:
    """The images that were chosen."""

    images: list[MapImage]

    @property
    def layers(self) -> list[str]:
        """The layers, the same for all images."""
        return [layer.name for layer in self.images[0].layers]

    @property
    def first(self) -> int:
        """Which layer is shown at first: one that makes more of the image than there was before, where there is one."""
        counts = [layer.maps for layer in self.images[0].layers]
        return next((place for place, maps in enumerate(counts) if maps > counts[0]), len(counts) - 1)


def maps(model: Model, test: Predicted | str, wanted: int | Sequence[int]) -> Maps | str:
    """Return the feature maps of some test images, or say why there are none.

    Arguments:
        wanted: how many images, or which.

    Raises:
        ConfigurationError: the test set has no such image.
    """
    if isinstance(test, str):
        return test
    return Maps([_image(model, test, index) for index in choose(test, wanted)])


def choose(test: Predicted, wanted: int | Sequence[int]) -> list[int]:
    """Return the numbers of test images: those that were named, or so many.

    Of so many, the last is the mistake of which the model is surest; the others are the first of each of several
    classes that it recognises, or where it recognises none, the first of the class.
    """
    labels, probabilities = test.labels, test.probabilities
    if not isinstance(wanted, int):
        for index in wanted:
            if not 0 <= index < len(labels):
                raise ConfigurationError(
                    f"there is no test image {index}: the test set has {len(labels):,} images, 0 to {len(labels) - 1}"
                )
        return list(dict.fromkeys(int(index) for index in wanted))
    wrong = [int(index) for index in surest_mistakes(labels, probabilities)[: wanted > 1]]
    right = probabilities.argmax(axis=1) == labels
    by_class = []
    for k in range(probabilities.shape[1]):
        of_class = labels == k
        known = (of_class & right).nonzero()[0] if (of_class & right).any() else of_class.nonzero()[0]
        if len(known):
            by_class.append([int(index) for index in known])
    chosen: list[int] = []
    classes = [by_class[place] for place in spread(len(by_class), max(1, wanted - len(wrong)))]
    for turn in range(max(map(len, classes))):
        chosen += [members[turn] for members in classes if turn < len(members) and members[turn] not in wrong]
        if len(chosen) >= wanted - len(wrong):
            break
    return sorted(chosen[: wanted - len(wrong)], key=lambda index: (int(labels[index]), index)) + wrong


def _image(model: Model, test: Predicted, index: int) -> MapImage:
    pixels, true = test.images[index], test.names[int(test.labels[index])]
    probabilities = test.probabilities[index]
    best = [int(k) for k in probabilities.argsort()[::-1][:BEST]]
    said = ", ".join(f"{test.names[k]} ({percent(float(probabilities[k]), 1)})" for k in best)
    passed = [
        (layer.display_name, values)
        for layer, values in layer_outputs(model, pixels[None])
        if values.ndim == 3  # the maps end where the network flattens them
    ]
    title = true if best[0] == test.labels[index] else f"{true}, taken for {test.names[best[0]]}"
    thumbnail = grid([image_of(pixels)], 1, "", largest=56)  # its label names it
    whole = MapLayer(
        "input", format_shape(pixels.shape), pixels.shape[2], grid([image_of(pixels)], 1, f"test image {index}")
    )
    named = zip(_apart([label for label, _ in passed]), passed, strict=True)
    return MapImage(
        index, title, said, thumbnail, [whole, *(_maps(name, values, index) for name, (_, values) in named)]
    )


def _maps(name: str, values: Any, index: int) -> MapLayer:
    """Return the maps of a layer (H, W, C), all on one scale, from its least value to its largest."""
    C = values.shape[2]
    shown = min(C, MAPS)
    low, high = extremes(values)
    tiles = [reduced(grey(values[..., c], low, high), SIDE) for c in range(shown)]
    words = f"{format_shape(values.shape)}; black is {significant(low)}, white {significant(high)}"
    if shown < C:
        words += f"; {shown} of {C} maps are shown"
    if (factor := tiles[0][1]) > 1:
        words += f", {factor} × {factor} pixels as one"
    alt = f"the maps of {name} for test image {index}"
    return MapLayer(name, words, C, grid([tile for tile, _ in tiles], IN_A_ROW, alt))


def _apart(names: list[str]) -> list[str]:
    """Return names that tell layers of the same name in several blocks apart: relu, relu (2)."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result
