"""A model's prediction for one image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.core.text import percent
from gpucnn.data.arrays import host_array
from gpucnn.errors import ShapeError
from gpucnn.plots.canvas import BLUE, GREY, displayable, escape_mathtext, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 10  # drawn as bars


def prediction(
    image: Any,
    probabilities: Any,
    class_names: Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    original: Any = None,
) -> "Figure":
    """Draw an image and its class probabilities; only the most probable of many classes.

    Shapes
        image          (H, W, C), uint8 or floats 0 … 1, as the model takes it
        probabilities  (K,)
        original       (any H, any W, C), the picture before preprocessing; drawn next to the image if given

    Raises:
        ShapeError: other shapes, or the numbers of names and probabilities differ.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> model = networks.lenet()
        >>> figure = plots.prediction(x[0], model.predict(x[:1])[0], path="prediction.png")
    """
    image, probabilities = host_array(image, "image"), host_array(probabilities, "probabilities")
    _check(image, probabilities, class_names)
    names = [f"class {k}" for k in range(len(probabilities))] if class_names is None else list(class_names)
    pictures = [("network input", image)] if original is None else [
        ("image", host_array(original, "original")),
        ("network input (preprocessed)", image),
    ]  # fmt: skip
    shown = np.sort(probabilities.argsort()[::-1][:MAX_CLASSES])
    figure = new_figure(3.0 * len(pictures) + 3.6, 3.2)
    columns = figure.subplots(1, len(pictures) + 1, width_ratios=[3.0] * len(pictures) + [3.6])
    for axes, (title, picture) in zip(columns, pictures, strict=False):
        _draw(axes, picture, title)
    _draw_bars(columns[-1], probabilities[shown], [escape_mathtext(names[k]) for k in shown])
    return save(figure, path)


def _check(image: Any, probabilities: Any, class_names: Sequence[str] | None) -> None:
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ShapeError(f"image has shape {image.shape}; expected one image (H, W, 1) or (H, W, 3), such as x_test[0]")
    if probabilities.ndim != 1:
        raise ShapeError(
            f"probabilities have shape {probabilities.shape}; expected those of one image (K,), such as "
            "model.predict(x_test[:1])[0]"
        )
    if class_names is not None and len(class_names) != len(probabilities):
        raise ShapeError(
            f"there are {len(class_names)} class names for {len(probabilities)} probabilities; pass a name for each, "
            "or None"
        )


def _draw(axes: Any, picture: Any, title: str) -> None:
    axes.imshow(displayable(picture), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():  # the border of a white picture on a white page
        spine.set(color=GREY, linewidth=0.5)


def _draw_bars(axes: Any, probabilities: Any, names: Sequence[str]) -> None:
    """Draw one bar per class, in the order of the classes, the most probable one in colour."""
    widths, places = 100 * probabilities, np.arange(len(names))
    best = widths.argmax()
    axes.barh(places, widths, color=[BLUE if place == best else GREY for place in places], height=0.7)
    for place, probability in zip(places, probabilities, strict=True):
        axes.text(100 * probability + 1.5, place, percent(float(probability), 1), va="center", fontsize="small")
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 125)  # room for the label of a full bar
    axes.set_xticks([0, 50, 100])
    axes.set_xlabel("probability (%)")
    axes.set_title(f"prediction: {names[best]}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
