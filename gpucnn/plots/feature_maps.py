"""The feature maps of an image, layer by layer."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.core import checks
from gpucnn.core.text import format_shape
from gpucnn.data.arrays import host_array
from gpucnn.data.batches import check_inputs
from gpucnn.errors import ConfigurationError
from gpucnn.layers import Sequential, Softmax
from gpucnn.layers.base import Layer
from gpucnn.model import Model
from gpucnn.plots.canvas import (
    BLUE,
    GAP,
    MAX_COLUMNS,
    TILE_FONT_SIZE,
    VERMILLION,
    displayable,
    draw_tiles,
    escape_mathtext,
    new_figure,
    save,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE_INCHES = 0.62  # width of a map
MAX_CLASSES = 10  # drawn as bars


def feature_maps(
    model: Model,
    image: Any,
    class_names: Sequence[str] | None = None,
    *,
    max_maps: int = MAX_COLUMNS,
    title: str | None = None,
    path: str | Path | None = None,
) -> "Figure":
    """Draw the feature maps of an image, a row for each layer, and the outputs as bars.

    Each row has one grey scale, from the layer's minimum (black) to its maximum (white).

    Shapes:
        image  (H, W, C) as the model takes it, uint8 or floats

    Arguments:
        class_names: by default those of the model, or indices.
        max_maps: drawn per layer.

    Raises:
        ConfigurationError: the model's inputs are not images, or `max_maps` is not positive.
        ShapeError, DTypeError: an image that the model does not take.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> model = networks.lenet()
        >>> figure = plots.feature_maps(model, x[0], path="maps.png")
    """
    if len(model.input_shape) != 3:
        raise ConfigurationError(f"{model.name} takes inputs of shape {model.input_shape}, not images (H, W, C)")
    max_maps = checks.integer(max_maps, "max_maps", minimum=1)
    pixels = check_inputs(host_array(image, "image")[None], model.input_shape, "image", model.dtype)
    rows, outputs = [("input", pixels[0])], None
    for layer, values in layer_outputs(model, pixels):
        if values.ndim == 3:
            rows.append((layer.display_name, values))
        outputs = (layer, values)
    columns = min(max_maps, max(values.shape[2] for _, values in rows))
    bars = outputs is not None and outputs[1].ndim == 1
    across = TILE_INCHES * columns * (1 + GAP)
    figure = new_figure(across + 1.2 + 2.8 * bars, max(TILE_INCHES * 1.22 * len(rows) + 0.5, 3.4 * bars))
    grid = figure.add_gridspec(len(rows), 1 + bars, width_ratios=[across, 2.0][: 1 + bars])
    for place, (label, values) in enumerate(rows):
        _draw_maps(figure.add_subplot(grid[place, 0]), label, values, columns, is_input=place == 0)
    if bars and outputs is not None:
        _draw_bars(figure.add_subplot(grid[:, 1]), *outputs, class_names or model.class_names)
    figure.suptitle(escape_mathtext(title or f"Feature maps of {model.name}"), fontsize="medium")
    return save(figure, path)


def layer_outputs(model: Model, pixels: Any) -> Iterator[tuple[Layer, Any]]:
    """Yield every layer in order with its output for one image, a host array without the batch axis."""
    with model.execution_context(1):
        x = model.as_floats(model.backend.from_host(pixels))
        for _, layer in model.network.leaves(inside=Sequential):
            x, _ = layer.forward(x, train=False)
            yield layer, model.backend.to_host(x)[0].astype(model.state_dtype)


def _draw_maps(axes: Any, label: str, values: Any, columns: int, is_input: bool) -> None:
    """Draw one row: the input in its colours, or the maps of a layer on one scale."""
    C = values.shape[2]
    label = f"{label}\n{format_shape(values.shape)}"
    if is_input and C in (1, 3):
        draw_tiles(axes, [displayable(values)], columns, cmap="gray", vmin=0, vmax=1)
    else:
        shown = min(C, columns)
        low, high = float(values.min()), float(values.max())
        draw_tiles(axes, [values[..., c] for c in range(shown)], columns, cmap="gray", vmin=low, vmax=high)
        label += f"\n{low:.2g} … {high:.2g}".replace("-", "−") + (f"\n{shown} of {C} shown" if shown < C else "")
    axes.set_anchor("W")
    axes.set_ylabel(escape_mathtext(label), rotation=0, ha="right", va="center", fontsize=TILE_FONT_SIZE)


def _draw_bars(axes: Any, layer: Layer, outputs: Any, class_names: Sequence[str] | None) -> None:
    """Draw the outputs as bars, the largest highlighted; only the largest few of many."""
    K = len(outputs)
    names = list(class_names) if class_names and len(class_names) == K else [str(k) for k in range(K)]
    chosen = list(range(K)) if K <= MAX_CLASSES else [int(k) for k in np.argsort(-outputs, kind="stable")[:MAX_CLASSES]]
    largest = int(outputs.argmax())
    probabilities = isinstance(layer, Softmax)
    scale = 100.0 if probabilities else 1.0
    values = [scale * float(outputs[k]) for k in chosen]
    drawn = axes.barh(range(len(chosen)), values, color=[VERMILLION if k == largest else BLUE for k in chosen])
    axes.bar_label(drawn, [f"{value:.1f}" for value in values], padding=2, fontsize=TILE_FONT_SIZE)
    axes.set_yticks(range(len(chosen)), [escape_mathtext(names[k]) for k in chosen])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("probability (%)" if probabilities else "output")
    if probabilities:
        axes.set_xlim(0, 118)
        axes.set_xticks([0, 25, 50, 75, 100])
    cut = f", {MAX_CLASSES} of {K} classes" if K > MAX_CLASSES else ""
    axes.set_title(f"{layer.display_name}{cut}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
