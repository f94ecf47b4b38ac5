"""The filters of convolutions: those of a model, and over training."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.callbacks.snapshots import Snapshots, convolution_weights
from gpucnn.core import checks
from gpucnn.core.files import user_path
from gpucnn.errors import ConfigurationError
from gpucnn.model import Model
from gpucnn.plots.canvas import (
    MAX_COLUMNS,
    add_scale,
    check_name,
    draw_tiles,
    evenly_spaced,
    label_columns,
    label_rows,
    new_figure,
    save,
    tile_size,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weights = Mapping[str, Any]  # by path: (KH, KW, C/groups, F), in the order of the network

TILE_INCHES = 0.55  # width
MIN_INCHES = 4.2  # width of a picture: its title must fit
FRAMES_PER_SECOND = 2.5
LAST_FRAME = 2.0  # seconds


def filters(
    source: Model | Weights,
    layer: str | None = None,
    *,
    title: str | None = None,
    max_tiles: int = MAX_COLUMNS,
    path: str | Path | None = None,
) -> "Figure":
    """Draw the filters of a convolution: black is the most negative weight, white the most positive, mid-grey is 0.

    One input channel: a grid of all filters on one scale. The first layer of a network for colour images: a grid in
    colour, each filter on its own scale. Any other: filters as rows, input channels as columns.

    Arguments:
        source: a model, or the weights of one epoch of snapshots.
        layer: the path of the convolution, such as "conv2d_1"; by default the first.
        max_tiles: drawn per row and per column.

    Raises:
        ConfigurationError: there is no such convolution.

    Example:
        >>> figure = plots.filters(networks.lenet(), "conv2d", path="filters.png")
    """
    max_tiles = checks.integer(max_tiles, "max_tiles", minimum=1)
    weights = _weights(source)
    name, weight = _choose(weights, layer)
    coloured = is_coloured(weights, name)
    KH, KW, C, F = weight.shape
    if coloured or C == 1:
        tiles = [as_colours(weight[..., f]) if coloured else weight[..., 0, f] for f in range(F)]
        columns, labels = min(MAX_COLUMNS // 2, F), [str(f) for f in range(F)]
        caption = f"{F} filters of {KH}×{KW}"
        note = "in colour, each on its own scale: mid-grey is 0" if coloured else ""
    else:
        shown = min(F, max_tiles), min(C, max_tiles)
        tiles = [weight[..., c, f] for f in range(shown[0]) for c in range(shown[1])]
        columns, labels = shown[1], None
        caption = f"{F} filters of {KH}×{KW}×{C}"
        cut = shown != (F, C)
        note = f"shown: {shown[0]} of {F} filters, {shown[1]} of {C} input channels" if cut else ""
    figure, axes = _draw_grid(tiles, columns, labels, largest_weight([weight]), 1.1)
    if labels is None:
        label_rows(axes, tiles, range(shown[0]), "filter")
        label_columns(axes, tiles, range(shown[1]), "input channel")
    figure.suptitle("\n".join(filter(None, (title or f"{name}: {caption}", note))), fontsize="medium")
    return save(figure, path)


def filters_by_epoch(
    snapshots: Snapshots | Mapping[int, Weights],
    layer: str | None = None,
    *,
    channel: int = 0,
    max_tiles: int = MAX_COLUMNS,
    path: str | Path | None = None,
) -> "Figure":
    """Draw the filters of a convolution over training: a row for each filter, a column for each epoch, one scale.

    Arguments:
        snapshots: the callback after training, or what `load_snapshots` returned; epoch 0 is before training.
        layer: the path of the convolution; by default the first.
        channel: the input channel to draw, where there are several that are not colours.
        max_tiles: drawn per row and per column; of more epochs, evenly spaced ones are drawn.

    Raises:
        ConfigurationError: no snapshots, or no such convolution or channel.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.callbacks.snapshots import Snapshots
        >>> snapshots = Snapshots()
        >>> history = networks.lenet().fit(x, y, epochs=2, callbacks=[snapshots], verbose=0)
        >>> figure = plots.filters_by_epoch(snapshots, path="filters_by_epoch.png")
    """
    max_tiles = checks.integer(max_tiles, "max_tiles", minimum=1)
    epochs = _epochs(snapshots)
    name, frames, limit, caption = _frames(epochs, layer, channel)
    numbers = list(epochs)
    columns = [numbers[place] for place in evenly_spaced(len(numbers), max_tiles)]
    count = len(frames[numbers[0]])
    rows = min(count, max_tiles)
    tiles = [frames[epoch][f] for f in range(rows) for epoch in columns]
    figure, axes = _draw_grid(tiles, len(columns), None, limit, 1.3)
    label_rows(axes, tiles, range(rows), "filter")
    label_columns(axes, tiles, columns, "epoch (0: before training)" if columns[0] == 0 else "epoch")
    cut = [f"{rows} of {count} filters"] * (rows < count)
    cut += [f"{len(columns)} of {len(numbers)} epochs"] * (len(columns) < len(numbers))
    note = f"shown: {', '.join(cut)}" if cut else ""
    figure.suptitle("\n".join(filter(None, (f"{name} by epoch{caption}", note))), fontsize="medium")
    return save(figure, path)


def animate_filters(
    snapshots: Snapshots | Mapping[int, Weights],
    path: str | Path,
    layer: str | None = None,
    *,
    channel: int = 0,
    frames_per_second: float = FRAMES_PER_SECOND,
) -> None:
    """Write the filters of a convolution as an animated GIF: a frame for each epoch, all on one scale.

    Arguments and errors are those of `filters_by_epoch`; every epoch of the snapshots is a frame.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.callbacks.snapshots import Snapshots
        >>> snapshots = Snapshots()
        >>> history = networks.lenet().fit(x, y, epochs=2, callbacks=[snapshots], verbose=0)
        >>> path = plots.animate_filters(snapshots, path="filters.gif")
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    path = user_path(path)
    check_name(path, also=("gif",))
    if path.suffix.lower() != ".gif":
        raise ConfigurationError(f"{path}: animations are written as GIF; expected a file name that ends with .gif")
    frames_per_second = checks.number(frames_per_second, "frames_per_second", above=0)
    epochs = _epochs(snapshots)
    name, frames, limit, caption = _frames(epochs, layer, channel)
    pictures = []
    for epoch, tiles in frames.items():
        columns = min(MAX_COLUMNS // 2, len(tiles))
        figure, _ = _draw_grid(tiles, columns, [str(f) for f in range(len(tiles))], limit, 1.0)
        figure.suptitle(f"{name}, epoch {epoch}{caption}", fontsize="medium")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    durations = [round(1000 / frames_per_second)] * len(pictures)
    durations[-1] = max(durations[-1], round(1000 * LAST_FRAME))
    drawn = io.BytesIO()
    pictures[0].save(drawn, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    write(path, drawn)


def _draw_grid(
    tiles: list[Any], columns: int, labels: list[str] | None, limit: float, margin: float
) -> "tuple[Figure, Any]":
    """Draw filters as tiles: grey ones on a scale from −limit … limit with a colour bar, coloured ones as they are."""
    across, down = tile_size(tiles, labels is not None)
    height = TILE_INCHES * -(-len(tiles) // columns) * down
    figure = new_figure(max(MIN_INCHES, TILE_INCHES * columns * across + 1.8), height + margin, compressed=True)
    axes = figure.add_subplot()
    draw_tiles(axes, tiles, columns, labels, cmap="gray", vmin=-limit, vmax=limit)
    if tiles[0].ndim == 2:
        add_scale(figure, axes, "weight", height)
    return figure, axes


def _weights(source: Model | Weights) -> dict[str, Any]:
    """Return weights by path as host arrays, of a model or as given."""
    if isinstance(source, Model):
        return {name: source.backend.to_host(weight.value) for name, weight in convolution_weights(source).items()}
    return dict(source)


def _choose(weights: Weights, layer: str | None) -> tuple[str, Any]:
    """Return the layer's path, without `.weight`, and its weight."""
    names = [path.removesuffix(".weight") for path in weights]
    if not names:
        raise ConfigurationError("there is no convolution whose filters could be drawn")
    if layer is None:
        layer = names[0]
    if layer not in names:
        raise ConfigurationError(f"there is no convolution named {layer!r}; there are {', '.join(names)}")
    return layer, np.asarray(list(weights.values())[names.index(layer)])


def is_coloured(weights: Weights, name: str) -> bool:
    """Return whether a layer's input channels are red, green and blue: the three of the first convolution."""
    first, weight = next(iter(weights.items()))
    return name == first.removesuffix(".weight") and weight.shape[2] == 3


def largest_weight(arrays: list[Any]) -> float:
    """Return the largest finite magnitude, for a scale that is symmetric about 0."""
    largest = max(float(np.abs(array, where=np.isfinite(array), out=np.zeros(array.shape)).max()) for array in arrays)
    return largest or 1.0


def as_colours(kernel: Any, limit: float | None = None) -> Any:
    """Return a filter (KH, KW, 3) as colours 0 … 1, 0 in the middle; on its own scale by default."""
    return np.clip(0.5 + np.nan_to_num(kernel) / (2 * (largest_weight([kernel]) if limit is None else limit)), 0, 1)


def _epochs(snapshots: Snapshots | Mapping[int, Weights]) -> dict[int, Weights]:
    epochs = snapshots.epochs if isinstance(snapshots, Snapshots) else snapshots
    if not epochs:
        raise ConfigurationError(
            "there are no snapshots to draw; pass callbacks=[snapshots] to fit, for a model with a convolution"
        )
    return dict(epochs)


def _frames(
    epochs: dict[int, Weights], layer: str | None, channel: int
) -> tuple[str, dict[int, list[Any]], float, str]:
    """Return the layer's path, its filters as tiles by epoch, the limit of their scale, and a caption."""
    chosen = {epoch: _choose(weights, layer) for epoch, weights in epochs.items()}
    name, weight = next(iter(chosen.values()))
    C = weight.shape[2]
    limit = largest_weight([weight for _, weight in chosen.values()])
    if is_coloured(next(iter(epochs.values())), name):
        tiles = {
            epoch: [as_colours(weight[..., f], limit) for f in range(weight.shape[3])]
            for epoch, (_, weight) in chosen.items()
        }
        return name, tiles, limit, f", in colour: ±{limit:.2f} about mid-grey"
    channel = checks.integer(channel, "channel")
    if not 0 <= channel < C:
        raise ConfigurationError(f"{name} has {C} input channels, 0 to {C - 1}; there is no channel {channel}")
    tiles = {epoch: [weight[..., channel, f] for f in range(weight.shape[3])] for epoch, (_, weight) in chosen.items()}
    return name, tiles, limit, f", input channel {channel} of {C}" if C > 1 else ""
