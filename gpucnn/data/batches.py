"""Checks of inputs and labels on the host, before they are uploaded, and batches.

A GPU wraps an index that is out of range without an error, so labels are checked here, once, where it is cheap.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from gpucnn.core import checks
from gpucnn.data.arrays import HostArray, as_inputs, check_finite, check_kind, host_array, is_zero_one, named
from gpucnn.errors import ConfigurationError, DataError, DTypeError, ShapeError


class Task(Protocol):
    """The kinds of labels that a loss takes (see `gpucnn.losses.Loss`)."""

    expects_classes: bool
    takes_classes: bool


def check_inputs(x: Any, input_shape: tuple[int, ...], what: str = "x", dtype: str = "float32") -> HostArray:
    """Return inputs (N, *input_shape) as an array of uint8 or of a float type.

    uint8 counts as 0 … 1, bools as 0 and 1, floats as they are; so do integers, except for images, which reject them.

    Arguments:
        what: the name of the inputs in messages.
        dtype: of the model; numbers that it cannot represent are rejected.

    Raises:
        ShapeError: another shape; a missing channel axis or channels first are recognised.
        DTypeError: not numbers, or integers where images are expected.
        DataError: no samples, or a value that is not finite or overflows (with its index).
    """
    given, x = x, host_array(x, what)
    name = named(given, what)
    wanted = ", ".join(["N", *map(str, input_shape)])
    if x.shape[1:] != input_shape or x.ndim != len(input_shape) + 1:
        raise ShapeError(f"{what} has shape {x.shape}, the model takes ({wanted}){_shape_remedy(x, input_shape, name)}")
    if len(x) == 0:
        raise DataError(f"{what} is empty: shape {x.shape}; expected at least one sample")
    check_kind(x, what, name, pixels=len(input_shape) == 3)
    x = as_inputs(x)
    if x.dtype.kind == "f":
        check_finite(x, what, dtype)
    return x


def _shape_remedy(x: HostArray, input_shape: tuple[int, ...], name: str) -> str:
    """Return the likely mistake behind a wrong shape, and its fix; empty if none is known."""
    if x.shape == input_shape:
        return f"; for a single sample pass {name}[None]"
    if x.shape[2:] == input_shape:
        return f"; if these are batches pass np.concatenate({name})"
    if len(input_shape) != 3:
        return ""
    H, W, C = input_shape
    if x.shape[1:] == (H, W) and C == 1:
        return f"; grey images need their channel axis: pass {name}[..., None]"
    if x.shape[1:] == (C, H, W):
        return f"; this looks like channels first (N, C, H, W): pass np.moveaxis({name}, 1, -1)"
    if x.ndim == 4 and x.shape[1:3] == (H, W):
        return f"; the images have {x.shape[3]} channels where the model was built for {C}"
    return ""


def check_labels(
    y: Any,
    count: int,
    output_shape: tuple[int, ...],
    task: Task,
    what: str = "y",
    dtype: str = "float32",
    input_shape: tuple[int, ...] = (),
) -> HostArray:
    """Return labels for `count` samples: class indices int64 (N,) or (N, *positions), or targets (N, *output_shape).

    Targets become floats of `dtype`. As for inputs, uint8 images count as 0 … 1; 0 and 1 are kept. A loss without
    classes gets integers (N,) unchanged.

    Raises:
        ShapeError: another shape, or another number of samples.
        DTypeError: class indices that are not integers, targets that are not numbers or whose scale is ambiguous.
        DataError: a class that the model does not have, rows that are not a probability distribution, or a value that
            is not finite.
    """
    given, y = y, host_array(y, what)
    name, K = named(given, what), output_shape[-1]
    if y.ndim == 0 or len(y) != count:
        raise ShapeError(f"{what} has shape {y.shape} for {count:,} inputs; expected one label per input, ({count}, …)")
    counted = task.expects_classes or task.takes_classes
    if counted and y.shape[1:] == output_shape[:-1] and (task.expects_classes or K > 1):
        return _check_class_indices(y, K, what, name)
    if not counted and y.ndim == 1 and y.dtype.kind in "iu" and math.prod(output_shape) > 1:
        return y.astype(np.int64)
    if y.shape[1:] != output_shape:
        raise _wrong_shape(y, output_shape, what, name, classes=counted and K > 1)
    if y.dtype.kind not in "iufb":
        raise DTypeError(f"{what} holds {y.dtype}; expected numbers{_encoded(y, name)}")
    if counted and y.dtype.kind == "f":  # another loss may ignore targets that are NaN
        check_finite(y, what, dtype)
    if task.expects_classes or y.dtype.kind in "fb" or is_zero_one(y):
        targets = y.astype(dtype)
    else:
        targets = _as_targets(y, what, name, output_shape, input_shape, dtype)
    if task.expects_classes:
        _check_distributions(targets, what)
    return targets


def _wrong_shape(y: HostArray, output_shape: tuple[int, ...], what: str, name: str, classes: bool) -> ShapeError:
    expected = f"targets {(len(y), *output_shape)}"
    remedy = ""
    if y.shape[1:] == output_shape[:-1] and output_shape[-1] == 1:
        remedy = f"; pass {name}[:, None]" if y.ndim == 1 else f"; pass {name}[..., None]"
    if classes:
        numbers = (len(y), *output_shape[:-1])
        expected = f"class indices {numbers} or {expected}"
        if y.shape == (*numbers, 1):
            remedy = f"; pass {name}.ravel()" if y.ndim == 2 else f"; pass {name}[..., 0]"
    return ShapeError(f"{what} has shape {y.shape}; expected {expected}{remedy}")


def _as_targets(
    y: HostArray, what: str, name: str, output_shape: tuple[int, ...], input_shape: tuple[int, ...], dtype: str
) -> HostArray:
    """Return integers other than 0 and 1 as float targets: uint8 images count as 0 … 1, like inputs."""
    images = len(output_shape) == 3
    if y.dtype != np.uint8:
        check_kind(y, what, name, pixels=images)
        return y.astype(dtype)
    if images or output_shape == input_shape:
        targets = y.astype(dtype)
        targets /= 255.0
        return targets
    raise DTypeError(
        f"{what} holds uint8 from {y.min()} to {y.max()}, which may be pixels or plain numbers; pass "
        f'{name}.astype("float32") for the numbers as they are, or {name}.astype("float32") / 255 for pixels as 0 … 1'
    )


def _check_distributions(targets: HostArray, what: str) -> None:
    """Reject targets with a row (…, K) that is not a probability distribution, by the index of the first."""
    wrong = ~((np.abs(targets.sum(axis=-1, dtype=np.float64) - 1.0) <= 1e-3) & (targets.min(axis=-1) >= 0))
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        raise DataError(
            f"{what}{place} is {targets[tuple(place)].tolist()}, which is not a probability distribution over "
            f"{targets.shape[-1]} classes; a one-hot row holds one 1 and zeros"
        )


def _check_class_indices(y: HostArray, classes: int, what: str, name: str) -> HostArray:
    if y.dtype.kind == "b":
        y = y.astype(np.int64)
    if y.dtype.kind not in "iu":
        raise DTypeError(f"{what} holds {y.dtype}; class indices must be integers 0 … {classes - 1}{_encoded(y, name)}")
    wrong = (y < 0) | (y >= classes)
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        raise DataError(
            f"{what}{place} is {int(y[tuple(place)])}, and {int(wrong.sum()):,} labels in all are outside 0 … "
            f"{classes - 1}; the model has {classes} outputs: number the classes from 0, or give its last layer more "
            "units"
        )
    return y.astype(np.int64)


def _encoded(y: HostArray, name: str) -> str:
    """Return the expression that makes class indices of labels that are not integers, if there is one."""
    if y.dtype.kind in "OUST" and len(y) and all(isinstance(label, str | bytes) for label in y.ravel()[:100]):
        return f": encode them, classes, y = np.unique({name}, return_inverse=True)"
    if y.dtype.kind == "f":
        if np.isnan(y).any():
            return "; NaN is not one: repair or remove these samples"
        fraction = y[y != np.floor(y)]
        if len(fraction):
            return f", and {fraction[0]} is not one; for a regression compile with a loss such as mean_squared_error"
        return f": pass {name}.astype(int)"
    return ""


def check_batch_size(batch_size: Any) -> int:
    """Return a batch size, or raise ConfigurationError where it is not a positive integer."""
    return checks.integer(batch_size, "batch_size", 1)


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """Yield the slices of `count` samples that are batches; the last one may be smaller."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def check_epochs(epochs: Any) -> float:
    """Return the number of epochs, a whole number as an int, or raise ConfigurationError.

    A number within rounding of a whole one, such as 0.1 · 30, is that one.
    """
    try:
        number = checks.number(epochs, "epochs", 0)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; 2.5 is two epochs and half of a third") from None
    whole = round(number)
    return whole if (whole and abs(number - whole) < 1e-6) or number == whole else number


def num_steps(epoch: int, epochs: float, steps: int) -> int:
    """Return the number of steps of an epoch, counted from 0: fewer in a partial last one."""
    fraction = min(epochs - epoch, 1.0)
    return max(math.ceil(fraction * steps - 1e-6), 1)  # 9.9 − 9 is slightly more than 0.9 in floating point


def concatenate(parts: list[HostArray]) -> HostArray:
    """Return batches of outputs as one array."""
    return np.concatenate(parts)
