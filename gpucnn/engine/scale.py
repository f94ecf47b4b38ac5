"""A scale of the data that can hardly be meant is said: bytes as floats, and statistics of data in other units.

uint8 counts as 0 … 1 and floats as they are, so the same pixels as floats 0 … 255 are other numbers, 255 times as
large. A network learns from them worse, and one that has learned from 0 … 1 sees nothing it knows.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from gpucnn.core.config import is_ours
from gpucnn.engine.executor import Executor
from gpucnn.errors import DataWarning
from gpucnn.layers.activation import Sigmoid, Softmax, Tanh
from gpucnn.layers.base import Layer
from gpucnn.layers.containers import Sequential
from gpucnn.layers.conv import Conv2D
from gpucnn.layers.dense import Dense
from gpucnn.layers.norm import Normalization
from gpucnn.layers.shape import Flatten

LOOKED_AT = 16  # samples, evenly chosen: this is done for each batch that is predicted
ENDS: dict[type[Layer], tuple[int, int]] = {Sigmoid: (0, 1), Softmax: (0, 1), Tanh: (-1, 1)}  # of what layers give
APART = 30.0  # times: far more than data of one unit differ, far less than the 255 of bytes and shares


def warn_of_scale(model: Executor, x: Any, what: str, *, whole: bool) -> None:
    """Warn, once a model, where inputs on the host can hardly have the scale that is meant.

    Arguments:
        whole: whether these are many samples, of which a narrow range says something.
    """
    if model.warned_of_scale:
        return
    sample = x[:: max(len(x) // LOOKED_AT, 1)]
    first = _first(model.layers)
    if isinstance(first, Normalization):
        words = _beside_statistics(first, sample, what, whole)
    else:
        words = _as_pixels(model, first, sample, what)
    if words:
        model.warned_of_scale = True
        warnings.warn(words, DataWarning, stacklevel=3)


def warn_of_targets(model: Executor, y: Any, what: str) -> None:
    """Warn, once a model, of targets that lie outside what its last layer can ever give.

    A sigmoid learns nothing but its end from pixels 0 … 255 as floats, or from labels −1 and 1.
    """
    last = _last(model.layers)
    ends = next((ends for kind, ends in ENDS.items() if isinstance(last, kind)), None)
    if model.warned_of_targets or ends is None or model.loss is None or not is_ours(model.loss):
        return
    sample, room = (
        y[:: max(len(y) // LOOKED_AT, 1)],
        0.1 * (ends[1] - ends[0]),
    )  # targets with noise are a little outside
    low, high = float(sample.min()), float(sample.max())
    if y.shape[1:] == model.output_shape and (low < ends[0] - room or high > ends[1] + room):
        model.warned_of_targets = True
        warnings.warn(
            f"{what} holds targets from {low:g} to {high:g}, and {last.display_name}, the last layer, gives numbers "
            "from "
            f"{ends[0]} to {ends[1]} only, which never meet them; scale the targets, or leave {last.display_name} out",
            DataWarning,
            stacklevel=3,
        )


def _last(layers: Sequence[Layer]) -> Layer:
    """Return the last layer that computes."""
    for layer in reversed(layers):
        if isinstance(layer, Sequential):
            return _last(layer.layers)
        if not isinstance(layer, Flatten):
            return layer
    return layers[-1]


def _first(layers: Sequence[Layer]) -> Layer:
    """Return the first layer that computes."""
    for layer in layers:
        if isinstance(layer, Sequential):
            return _first(layer.layers)
        if not isinstance(layer, Flatten):
            return layer
    return layers[0]


def _as_pixels(model: Executor, first: Layer, sample: Any, what: str) -> str:
    """Return a warning for pixels in other units than 0 … 1, before a layer that does not scale them."""
    if len(model.input_shape) != 3 or not isinstance(first, Conv2D | Dense):
        return ""
    low, high = float(sample.min()), float(sample.max())
    if sample.dtype == "uint8":
        return (
            f"{what} holds uint8 that are all 0 or 1, which count as 0 and 1/255; if these are masks, pass bools"
        ) * (high == 1)
    if low < 0 or not 128 <= high <= 255:
        return ""
    return (
        f"{what} holds floats from {low:g} to {high:g}, which count as they are, though the network has no "
        "Normalization for them; pixels 0 … 255 are usually meant as 0 … 1: pass uint8, or divide by 255"
    )


def _beside_statistics(layer: Normalization, sample: Any, what: str, whole: bool) -> str:
    """Return a warning for data that are not in the units of a normalisation's mean and deviation."""
    if layer.mean is None:
        return ""
    scale = 255.0 if sample.dtype == "uint8" else 1.0
    rows = sample.reshape(-1, sample.shape[-1]).astype("float64")
    mean, square = rows.sum(axis=0) / len(rows) / scale, (rows * rows).sum(axis=0) / len(rows) / scale**2
    spread = abs(square - mean * mean) ** 0.5  # to a few digits, as factors of 30 need
    subtract, divide = (0 * mean + numbers for numbers in (layer.mean, layer.std))  # of each channel
    far, wide = abs(mean - subtract) > APART * divide, spread > APART * divide
    narrow = (spread > 0) & (APART * spread < divide)
    if not (far | wide).any() and not (whole and narrow.all()):
        return ""
    return (
        f"{what} has mean {_short(mean)} and deviation {_short(spread)}, but {layer.display_name} has mean "
        f"{_short(subtract)} and deviation {_short(divide)}: they are not in the same units; uint8 counts as 0 … 1, "
        "floats as they are: adapt to the very data that the model is given"
    )


def _short(numbers: Any) -> str:
    """Return a few numbers as words."""
    listed = numbers.tolist()
    return ", ".join(f"{number:.3g}" for number in listed[:3]) + (", …" if len(listed) > 3 else "")
