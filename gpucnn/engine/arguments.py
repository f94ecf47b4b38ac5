"""Checks of the arguments of models, before any work is done."""

from typing import Any

from gpucnn.backends import Backend
from gpucnn.core import checks
from gpucnn.errors import ConfigurationError
from gpucnn.layers.activation import GELU, LeakyReLU, ReLU, Softmax, Tanh
from gpucnn.layers.base import Shape
from gpucnn.layers.containers import Sequential
from gpucnn.layers.conv import Conv2D
from gpucnn.layers.dense import Dense
from gpucnn.layers.norm import BatchNorm, Normalization
from gpucnn.layers.pool import AveragePool2D, GlobalAveragePool2D, MaxPool2D
from gpucnn.layers.shape import Flatten
from gpucnn.losses import CategoricalCrossEntropy

NOT_PROBABILITIES = Dense, Conv2D, BatchNorm, Normalization, ReLU, LeakyReLU, GELU, Tanh
KEEP_PROBABILITIES = Flatten, GlobalAveragePool2D, AveragePool2D, MaxPool2D


def check_dtype(dtype: Any) -> str:
    """Return the dtype of a model, or raise ConfigurationError."""
    if dtype not in ("float16", "float32", "float64"):
        raise ConfigurationError(f'dtype must be "float32", "float64" or, on a GPU, "float16", not {dtype!r}')
    return str(dtype)


def check_precision(dtype: str, backend: Backend) -> None:
    """Reject half precision where it would only be slower."""
    if dtype == "float16" and not backend.supports_float16:
        raise ConfigurationError(
            f'dtype="float16" is for GPUs, whose tensor cores multiply it fast; the backend {backend.name!r} computes '
            'in float32 and float64: pass dtype="float32", or backend="cupy" where there is a GPU'
        )


def check_shape(shape: Any) -> Shape:
    """Return the shape of one sample, or raise ConfigurationError where it is not one."""
    sides = tuple(shape) if isinstance(shape, list | tuple) else ()
    if not sides or not all(checks.is_integer(side) and side > 0 for side in sides):
        raise ConfigurationError(
            f"input_shape must be the shape of one sample, such as (28, 28, 1) for grey images or (20,) for features, "
            f"not {shape!r}"
        )
    return tuple(int(side) for side in sides)


def check_last_layer(network: Sequential, output_shape: Shape, loss: CategoricalCrossEntropy) -> None:
    """Reject a cross-entropy of outputs that are not probabilities, of a single class, or of two softmaxes."""
    last = network.layers[-1]
    if output_shape[-1] == 1:
        raise ConfigurationError(
            f"the network has one output, {last.display_name}, and a cross-entropy over a single class is always 0; "
            "give the last layer an output for each class, 2 for yes or no, or keep one output with layers.Sigmoid() "
            'at the end and compile with loss="mean_squared_error"'
        )
    if loss.from_logits and isinstance(last, Softmax):
        raise ConfigurationError(
            "the network ends with Softmax, but the loss has from_logits=True, which applies another one; remove "
            "one of them (a last Softmax is fused with the loss anyway)"
        )
    leaves = [layer for _, layer in network.leaves(inside=Sequential)]
    scores = next((layer for layer in reversed(leaves) if not isinstance(layer, KEEP_PROBABILITIES)), last)
    if not loss.from_logits and isinstance(scores, NOT_PROBABILITIES):
        raise ConfigurationError(
            f"the network ends with {scores.display_name}, whose outputs are not probabilities; add layers.Softmax() "
            "at the end, or use CategoricalCrossEntropy(from_logits=True)"
        )


def check_pair(pair: Any, what: str) -> None:
    """Reject what is neither None nor a pair of inputs and labels."""
    if pair is None or (isinstance(pair, list | tuple) and len(pair) == 2):
        return
    received = f"{len(pair)} items" if isinstance(pair, list | tuple) else type(pair).__name__
    more = "; sample weights are not supported" if isinstance(pair, list | tuple) and len(pair) == 3 else ""
    raise ConfigurationError(f"{what} must be a pair (x, y), not {received}; pass (x_test, y_test){more}")


def check_verbose(verbose: Any) -> bool | int | str:
    """Return how `fit` shows its progress, or raise ConfigurationError."""
    if isinstance(verbose, bool) or (checks.is_integer(verbose) and 0 <= verbose <= 2) or verbose == "auto":
        chosen: bool | int | str = verbose
        return chosen
    raise ConfigurationError(f'verbose must be "auto", True, False, 0, 1 or 2, not {verbose!r}')


def check_nothing_shown(verbose: Any, verb: str) -> None:
    """Reject a progress display of what has none."""
    if verbose is not False and verbose != 0 and verbose != "auto":
        raise ConfigurationError(f'{verb} shows nothing, so verbose must be 0, False or "auto", not {verbose!r}')
