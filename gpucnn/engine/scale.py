"""Warnings of data whose scale is probably wrong: pixels 0 … 255 as floats, and statistics of data in other units.

uint8 counts as 0 … 1 and floats as they are, so the same pixels as floats 0 … 255 are 255 times as large. A network
learns worse from them, and one that was trained on 0 … 1 does not recognise them.
"""

import warnings
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

SAMPLES = 16  # that are checked, evenly spaced: this is done for each batch that is predicted
ENDS: dict[type[Layer], tuple[int, int]] = {Sigmoid: (0, 1), Softmax: (0, 1), Tanh: (-1, 1)}  # of what layers output
MAX_RATIO = 30.0  # far more than data in the same units differ, far less than the 255 between uint8 and 0 … 1


def warn_of_scale(model: Executor, x: Any, what: str, *, whole: bool) -> None:
    """Warn, once per model, of inputs on the host whose scale is probably wrong.

    Arguments:
        whole: whether these are many samples, so that a narrow range is suspicious.
    """
    if model.warned_of_scale:
        return
    sample = x[:: max(len(x) // SAMPLES, 1)]
    first = _computing_layers(model)[0]
    if isinstance(first, Normalization):
        message = _compare_statistics(first, sample, what, whole)
    else:
        message = _as_pixels(model, first, sample, what)
    if message:
        model.warned_of_scale = True
        warnings.warn(message, DataWarning, stacklevel=3)


def warn_of_targets(model: Executor, y: Any, what: str) -> None:
    """Warn, once per model, of targets outside the range of its last layer.

    A sigmoid learns nothing but to saturate from pixels 0 … 255 as floats, or from labels −1 and 1.
    """
    last = _computing_layers(model)[-1]
    ends = next((ends for kind, ends in ENDS.items() if isinstance(last, kind)), None)
    if model.warned_of_targets or ends is None or model.loss is None or not is_ours(model.loss):
        return
    sample = y[:: max(len(y) // SAMPLES, 1)]
    margin = 0.1 * (ends[1] - ends[0])  # noisy targets are a little outside
    low, high = float(sample.min()), float(sample.max())
    if y.shape[1:] == model.output_shape and (low < ends[0] - margin or high > ends[1] + margin):
        model.warned_of_targets = True
        warnings.warn(
            f"{what} holds targets from {low:g} to {high:g}, and {last.display_name}, the last layer, gives only "
            f"numbers from {ends[0]} to {ends[1]}; scale the targets, or remove {last.display_name}",
            DataWarning,
            stacklevel=3,
        )


def _computing_layers(model: Executor) -> list[Layer]:
    """Return the layers in order, but for those that only reshape."""
    leaves = [layer for _, layer in model.network.leaves(inside=Sequential)]
    return [layer for layer in leaves if not isinstance(layer, Flatten)] or leaves


def _as_pixels(model: Executor, first: Layer, sample: Any, what: str) -> str:
    """Return a warning for pixels that are not 0 … 1, before a layer that does not scale them."""
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


def _compare_statistics(layer: Normalization, sample: Any, what: str, whole: bool) -> str:
    """Return a warning for data that are not in the units of a normalisation's mean and std."""
    if layer.mean is None:
        return ""
    scale = 255.0 if sample.dtype == "uint8" else 1.0
    rows = sample.reshape(-1, sample.shape[-1]).astype("float64")
    mean, square = rows.sum(axis=0) / len(rows) / scale, (rows * rows).sum(axis=0) / len(rows) / scale**2
    std = abs(square - mean * mean) ** 0.5  # to a few digits, as factors of 30 need
    layer_mean, layer_std = (0 * mean + numbers for numbers in (layer.mean, layer.std))  # of each channel
    far, wide = abs(mean - layer_mean) > MAX_RATIO * layer_std, std > MAX_RATIO * layer_std
    narrow = (std > 0) & (MAX_RATIO * std < layer_std)
    if not (far | wide).any() and not (whole and narrow.all()):
        return ""
    return (
        f"{what} has mean {_short(mean)} and std {_short(std)}, but {layer.display_name} has mean "
        f"{_short(layer_mean)} and std {_short(layer_std)}: they are not in the same units; uint8 counts as 0 … 1, "
        "floats as they are: adapt to the same data that the model is given"
    )


def _short(numbers: Any) -> str:
    """Return the first numbers as text."""
    return ", ".join(f"{number:.3g}" for number in numbers[:3].tolist()) + (", …" if len(numbers) > 3 else "")
