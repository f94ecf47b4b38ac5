"""An image on its way through a network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.core import checks
from gpucnn.data.arrays import host_array
from gpucnn.data.batches import check_inputs
from gpucnn.errors import ConfigurationError
from gpucnn.layers import Sequential, Softmax
from gpucnn.layers.base import Layer
from gpucnn.model import Model
from gpucnn.plots.canvas import ACROSS, BLUE, GAP, SMALL, VERMILLION, draw_tiles, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCH = 0.62  # the width of a map
BARS = 10  # classes that are shown, at most


def feature_maps(
    model: Model,
    image: Any,
    class_names: Sequence[str] | None = None,
    *,
    most: int = ACROSS,
    title: str | None = None,
    path: str | Path | None = None,
) -> "Figure":
    """Draw an image on its way through the layers: a row of maps after each, and at last the outputs as bars.

    Every layer whose output is an image is drawn, on a grey scale from its smallest value (black) to its largest.

    Shapes:
        image  (H, W, C) as the model takes it, uint8 or floats

    Arguments:
        class_names: without them those of the model, or numbers.
        most: maps that are drawn a layer.

    Raises:
        ConfigurationError: the model takes no images, or `most` is not positive.
        ShapeError, DTypeError: an image that the model does not take.
    """
    if len(model.input_shape) != 3:
        raise ConfigurationError(
            f"{model.name} takes inputs of shape {model.input_shape}, which are no images (H, W, C)"
        )
    most = checks.integer(most, "most", minimum=1)
    pixels = check_inputs(host_array(image, "image")[None], model.input_shape, "image", model.dtype)
    rows, outputs = [("input", pixels[0])], None
    for layer, values in layer_outputs(model, pixels):
        if values.ndim == 3:
            rows.append((layer.display_name, values))
        outputs = (layer, values)
    columns = min(most, max(values.shape[2] for _, values in rows))
    bars = outputs is not None and outputs[1].ndim == 1
    across = INCH * columns * (1 + GAP)
    figure = new_figure(across + 1.2 + 2.8 * bars, max(INCH * 1.22 * len(rows) + 0.5, 3.4 * bars))
    grid = figure.add_gridspec(len(rows), 1 + bars, width_ratios=[across, 2.0][: 1 + bars])
    for place, (label, values) in enumerate(rows):
        _draw_maps(figure.add_subplot(grid[place, 0]), label, values, columns, is_input=place == 0)
    if bars and outputs is not None:
        _draw_bars(figure.add_subplot(grid[:, 1]), *outputs, class_names or model.class_names)
    figure.suptitle(plain(title or f"An image in {model.name}"), fontsize="medium")
    return save(figure, path)


def layer_outputs(model: Model, pixels: Any) -> Iterator[tuple[Layer, Any]]:
    """Yield every layer in order with what it makes of one image, as a host array without the batch's axis."""
    with model.execution_context(1):
        x = model.as_floats(model.backend.from_host(pixels))
        for layer in _one_after_another(model.network):
            x, _ = layer.forward(x, train=False)
            yield layer, model.backend.to_host(x)[0].astype(model.state_dtype)


def _one_after_another(network: Sequential) -> Iterator[Layer]:
    """Yield the layers in the order in which they compute; a residual block is one."""
    for layer in network.layers:
        if type(layer) is Sequential:
            yield from _one_after_another(layer)
        else:
            yield layer


def _draw_maps(axes: Any, label: str, values: Any, columns: int, is_input: bool) -> None:
    """Draw one row: the input in its colours, or the maps of a layer on one scale."""
    H, W, C = values.shape
    words = f"{label}\n{H} × {W} × {C}"
    if is_input and C in (1, 3):
        top = 255 if values.dtype == np.uint8 else 1.0
        picture = np.clip(values / top, 0, 1)
        draw_tiles(axes, [picture if C == 3 else picture[..., 0]], columns, cmap="gray", vmin=0, vmax=1)
    else:
        shown = min(C, columns)
        low, high = float(values.min()), float(values.max())
        draw_tiles(axes, [values[..., c] for c in range(shown)], columns, cmap="gray", vmin=low, vmax=high)
        words += f"\n{low:.2g} … {high:.2g}".replace("-", "−") + (f"\n{shown} of {C} shown" if shown < C else "")
    axes.set_anchor("W")
    axes.set_ylabel(plain(words), rotation=0, ha="right", va="center", fontsize=SMALL)


def _draw_bars(axes: Any, layer: Layer, outputs: Any, class_names: Sequence[str] | None) -> None:
    """Draw the outputs as bars, the largest marked; of many the largest alone."""
    K = len(outputs)
    names = list(class_names) if class_names and len(class_names) == K else [str(k) for k in range(K)]
    chosen = list(range(K)) if K <= BARS else [int(k) for k in np.argsort(-outputs, kind="stable")[:BARS]]
    largest = int(outputs.argmax())
    probabilities = isinstance(layer, Softmax)
    scale = 100.0 if probabilities else 1.0
    values = [scale * float(outputs[k]) for k in chosen]
    drawn = axes.barh(range(len(chosen)), values, color=[VERMILLION if k == largest else BLUE for k in chosen])
    axes.bar_label(drawn, [f"{value:.1f}" for value in values], padding=2, fontsize=SMALL)
    axes.set_yticks(range(len(chosen)), [plain(names[k]) for k in chosen])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("probability (%)" if probabilities else "output")
    if probabilities:
        axes.set_xlim(0, 118)
        axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_title(f"{layer.display_name}{f', {BARS} of {K} classes' if K > BARS else ''}", fontsize="medium")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
