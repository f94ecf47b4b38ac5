"""What a model is made and compiled with, checked before any work is done."""

from typing import Any

from gpucnn.backends import Backend
from gpucnn.errors import ConfigurationError
from gpucnn.layers.activation import Softmax
from gpucnn.layers.base import Layer, Shape
from gpucnn.layers.conv import Conv2D
from gpucnn.layers.dense import Dense
from gpucnn.losses import CategoricalCrossEntropy


def listed(values: Any, what: str) -> Any:
    """Return values that come as a list or tuple; a single one without brackets raises ConfigurationError."""
    if not isinstance(values, list | tuple):
        raise ConfigurationError(f"{what} must be a list, not {values!r}; pass [{values!r}]")
    return values


def check_dtype(dtype: Any) -> str:
    """Return a dtype that a model computes in, or raise ConfigurationError."""
    if dtype not in ("float16", "float32", "float64"):
        raise ConfigurationError(f'dtype must be "float32", "float64" or, on a GPU, "float16", not {dtype!r}')
    return str(dtype)


def check_precision(dtype: str, backend: Backend) -> None:
    """Refuse half precision where it would be slower and no use."""
    if dtype == "float16" and not backend.half_precision:
        raise ConfigurationError(
            f'dtype="float16" is for GPUs, whose tensor cores multiply it fast; the backend {backend.name!r} computes '
            'in float32 and float64: pass dtype="float32", or backend="cupy" where there is a GPU'
        )


def checked_shape(shape: Any) -> Shape:
    """Return the shape of one sample, or raise ConfigurationError where it is none."""
    sides = tuple(shape) if isinstance(shape, list | tuple) else ()
    if not sides or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ConfigurationError(
            f"input_shape must be the shape of one sample, such as (28, 28, 1) for grey images or (20,) for features, "
            f"not {shape!r}"
        )
    return sides


def check_last_layer(last: Layer, loss: CategoricalCrossEntropy) -> None:
    """Refuse a cross-entropy of numbers that are no probabilities, or a softmax taken twice."""
    if loss.from_logits and isinstance(last, Softmax):
        raise ConfigurationError(
            "the network ends with Softmax, but the loss was told from_logits=True, which takes another one; leave "
            "one of them out (a last Softmax is fused with the loss anyway)"
        )
    if not loss.from_logits and isinstance(last, Dense | Conv2D):
        raise ConfigurationError(
            f"the network ends with {last.label}, whose outputs are no probabilities; add layers.Softmax() at the "
            "end, or use CategoricalCrossEntropy(from_logits=True)"
        )
