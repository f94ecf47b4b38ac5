"""The filters of every convolution, epoch by epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gpucnn.callbacks.snapshots import convolution_weights
from gpucnn.core.text import format_count, significant
from gpucnn.plots.canvas import spread
from gpucnn.plots.filters import as_colours, is_coloured, largest_weight
from gpucnn.report.png import Picture, grey, grid
from gpucnn.report.run import Run

EPOCHS = 50  # that are shown, at most, evenly spread
ACROSS = 32  # filters and input channels that are shown, at most
IN_A_ROW = 8  # filters, where each is one tile
LARGEST = 96  # CSS pixels of a tile


@dataclass(frozen=True)
class Frame:
    """The filters of a layer after an epoch."""

    label: str
    picture: Picture


@dataclass(frozen=True)
class KernelLayer:
    """A convolution: what its pictures show, where their scale ends, and one for each epoch."""

    name: str
    words: str
    limit: str
    coloured: bool
    frames: list[Frame]


@dataclass(frozen=True)
class Kernels:
    """All convolutions of which filters are known, and what should be said about them."""

    layers: list[KernelLayer]
    notes: list[str]


def kernels(run: Run) -> Kernels | str:
    """Return the filters by layer and epoch, or say why there are none."""
    present = {path: run.model.backend.to_host(weight.value) for path, weight in convolution_weights(run.model).items()}
    if not present:
        return "The network has no convolution, so there are no filters to show."
    epochs, notes = run.snapshots, []
    if not epochs or not any(epochs.values()):
        epochs = {run.model.epochs_trained: present}
        notes.append("The run kept no snapshots, so there are only the filters that the model has now.")
    shown = {number: epochs[number] for number in (list(epochs)[place] for place in spread(len(epochs), EPOCHS))}
    if len(shown) < len(epochs):
        notes.append(f"{len(shown)} of {format_count(len(epochs))} epochs are shown, evenly spread.")
    left_out = [path.removesuffix(".weight") for path in present if path not in next(iter(epochs.values()))]
    if left_out:
        notes.append(f"No snapshots were kept of {', '.join(left_out)}, which would have taken too much space.")
    return Kernels([_layer(shown, path) for path in next(iter(shown.values()))], notes)


def _layer(epochs: Mapping[int, Mapping[str, Any]], path: str) -> KernelLayer:
    """Return the frames of one convolution, all on the scale of its largest weight in any epoch."""
    weights = {epoch: kept[path] for epoch, kept in epochs.items()}
    name = path.removesuffix(".weight")
    KH, KW, C, F = next(iter(weights.values())).shape
    limit = largest_weight(list(weights.values()))
    coloured = is_coloured(next(iter(epochs.values())), name)
    filters, channels = min(F, ACROSS), min(C, ACROSS)
    words = f"{F} filters of {KH} × {KW}"
    if coloured:
        words += " in red, green and blue"
    elif C > 1:
        words += f", a column for each, and a row for each of the {C} input channels"
    cut = [f"{filters} of {F} filters"] * (filters < F)
    cut += [f"{channels} of {C} input channels"] * (channels < C and not coloured)
    if cut:
        words += f"; shown are {' and '.join(cut)}"
    frames = []
    for epoch, weight in weights.items():
        label = "before training" if epoch == 0 else f"after epoch {epoch}"
        if coloured:
            tiles = [_in_colour(weight[..., f], limit) for f in range(filters)]
        else:
            tiles = [grey(weight[..., c, f], -limit, limit) for c in range(channels) for f in range(filters)]
        columns = IN_A_ROW if coloured or C == 1 else filters
        frames.append(Frame(label, grid(tiles, columns, f"the filters of {name} {label}", largest=LARGEST)))
    return KernelLayer(name, words, significant(limit), coloured, frames)


def _in_colour(kernel: Any, limit: float) -> Image.Image:
    """Return a filter (KH, KW, 3) in its colours, mid-grey where it is 0."""
    return Image.fromarray((255 * as_colours(kernel, limit)).round().astype("uint8"))
