"""The filters of every convolution, epoch by epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gpucnn.callbacks.snapshots import convolution_weights
from gpucnn.core.text import format_count, significant
from gpucnn.plots.canvas import evenly_spaced
from gpucnn.plots.filters import as_colours, is_coloured, largest_weight
from gpucnn.report.png import Picture, grey, grid
from gpucnn.report.run import Run

MAX_EPOCHS = 50  # shown, evenly spaced
MAX_TILES = 32  # filters, and input channels
COLUMNS = 8  # of filters that are one tile each
MAX_PIXELS = 96  # CSS pixels of a tile


@dataclass(frozen=True)
class Frame:
    """The filters of a layer after an epoch."""

    label: str
    picture: Picture


@dataclass(frozen=True)
class LayerFilters:
    """A convolution: a caption, the limit of the grey scale, and a picture for each epoch."""

    name: str
    caption: str
    limit: str
    coloured: bool
    frames: list[Frame]


@dataclass(frozen=True)
class Filters:
    """All convolutions with known filters, and notes about them."""

    layers: list[LayerFilters]
    notes: list[str]


def filters(run: Run) -> Filters | str:
    """Return the filters by layer and epoch, or the reason why there are none."""
    present = {path: run.model.backend.to_host(weight.value) for path, weight in convolution_weights(run.model).items()}
    if not present:
        return "The network has no convolution, so there are no filters to show."
    epochs, notes = run.snapshots, []
    if not epochs or not any(epochs.values()):
        epochs = {run.model.epochs_trained: present}
        notes.append("The run has no snapshots; these are the filters of the final model.")
    numbers = list(epochs)
    shown = {numbers[place]: epochs[numbers[place]] for place in evenly_spaced(len(numbers), MAX_EPOCHS)}
    if len(shown) < len(epochs):
        notes.append(f"{len(shown)} of {format_count(len(epochs))} epochs shown, evenly spaced.")
    skipped = [path.removesuffix(".weight") for path in present if path not in next(iter(epochs.values()))]
    if skipped:
        notes.append(f"There are no snapshots of {', '.join(skipped)}, which would have taken too much space.")
    return Filters([_layer(shown, path) for path in next(iter(shown.values()))], notes)


def _layer(epochs: Mapping[int, Mapping[str, Any]], path: str) -> LayerFilters:
    """Return the frames of one convolution, on one scale: that of its largest weight in any epoch."""
    weights = {epoch: arrays[path] for epoch, arrays in epochs.items()}
    name = path.removesuffix(".weight")
    KH, KW, C, F = next(iter(weights.values())).shape
    limit = largest_weight(list(weights.values()))
    coloured = is_coloured(next(iter(epochs.values())), name)
    shown, channels = min(F, MAX_TILES), min(C, MAX_TILES)
    caption = f"{F} filters of {KH} × {KW}"
    if coloured:
        caption += " in RGB"
    elif C > 1:
        caption += f": one column per filter, one row per input channel ({C})"
    cut = [f"{shown} of {F} filters"] * (shown < F)
    cut += [f"{channels} of {C} input channels"] * (channels < C and not coloured)
    if cut:
        caption += f"; shown: {' and '.join(cut)}"
    frames = []
    for epoch, weight in weights.items():
        label = "before training" if epoch == 0 else f"after epoch {epoch}"
        if coloured:
            tiles = [_in_colour(weight[..., f], limit) for f in range(shown)]
        else:
            tiles = [grey(weight[..., c, f], -limit, limit) for c in range(channels) for f in range(shown)]
        columns = COLUMNS if coloured or C == 1 else shown
        frames.append(Frame(label, grid(tiles, columns, f"filters of {name} {label}", largest=MAX_PIXELS)))
    return LayerFilters(name, caption, significant(limit), coloured, frames)


def _in_colour(kernel: Any, limit: float) -> Image.Image:
    """Return a filter (KH, KW, 3) as an image in colour, mid-grey where it is 0."""
    return Image.fromarray((255 * as_colours(kernel, limit)).round().astype("uint8"))
