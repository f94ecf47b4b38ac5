"""What a model is given, checked on the host before it crosses to the device, and cut into batches.

A GPU wraps an index that is out of range and says nothing, so labels are looked at here, once, where it is cheap.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.errors import ConfigurationError, DataError, DTypeError, ShapeError

HostArray = Any  # numpy.ndarray of any dtype


def check_inputs(x: Any, input_shape: tuple[int, ...], what: str = "x") -> HostArray:
    """Return inputs (N, *input_shape) as an array of uint8 or of a float type.

    Raises:
        ShapeError: another shape; a missing channel axis or channels first are recognised.
        DTypeError: numbers that are neither uint8 pixels nor floats.
        DataError: no samples, or a value that is not finite (named by its place).
    """
    x = np.asarray(x)
    wanted = ", ".join(["N", *map(str, input_shape)])
    if x.shape[1:] != input_shape or x.ndim != len(input_shape) + 1:
        raise ShapeError(f"{what} has shape {x.shape}, the model takes ({wanted}){_shape_remedy(x, input_shape, what)}")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DTypeError(
            f"{what} holds {x.dtype}, which gpucnn cannot tell from pixels or features; pass uint8 pixels 0 … 255 "
            f'(they count as 0 … 1) or floats, such as {what}.astype("uint8") or {what}.astype("float32")'
        )
    if len(x) == 0:
        raise DataError(f"{what} is empty: shape {x.shape}; expected at least one sample")
    if x.dtype.kind == "f":
        _check_finite(x, what)
    return x


def _check_finite(x: HostArray, what: str) -> None:
    with np.errstate(invalid="ignore"):
        total = x.sum(dtype=np.float64)  # one pass tells; the search for the place is for the rare case
    if np.isfinite(total):
        return
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise DataError(
            f"{what} holds {x[place]} at index {place}, and {len(bad):,} such values in all; a network cannot "
            "learn from NaN or infinity: repair or leave out these samples"
        )


def _shape_remedy(x: HostArray, input_shape: tuple[int, ...], what: str) -> str:
    """Return the likely mistake behind a wrong shape, and what mends it; empty if none is known."""
    if x.shape == input_shape:
        return f"; for a single sample pass {what}[None]"
    if len(input_shape) != 3:
        return ""
    H, W, C = input_shape
    if x.shape[1:] == (H, W) and C == 1:
        return f"; grey images need their channel axis: pass {what}[..., None]"
    if x.shape[1:] == (C, H, W):
        return f"; this looks like channels first (N, C, H, W): pass np.moveaxis({what}, 1, -1)"
    if x.ndim == 4 and x.shape[1:3] == (H, W):
        return f"; the images have {x.shape[3]} channels where the model was built for {C}"
    return ""


def check_labels(y: Any, count: int, output_shape: tuple[int, ...], of_classes: bool, what: str = "y") -> HostArray:
    """Return labels for `count` samples: class numbers int64 (N,), or float targets (N, *output_shape).

    Raises:
        ShapeError: another shape, or another number of samples.
        DTypeError: class numbers that are not integers.
        DataError: a class that the model does not have, or one-hot rows that do not add up to 1.
    """
    y = np.asarray(y)
    if y.ndim == 0 or len(y) != count:
        raise ShapeError(f"{what} has shape {y.shape} for {count:,} inputs; expected one label an input, ({count}, …)")
    K = output_shape[0] if len(output_shape) == 1 else 0
    if y.ndim == 1 and K and (of_classes or K > 1):
        return _check_class_numbers(y, K, what)
    if y.shape[1:] != output_shape:
        remedy = f"; pass {what}.ravel()" if y.shape[1:] == (1,) and K > 1 else ""
        remedy = f"; pass {what}[:, None]" if y.ndim == 1 and K == 1 else remedy
        either = f"class numbers ({count},) or " if K > 1 else ""
        raise ShapeError(f"{what} has shape {y.shape}; expected {either}targets {(count, *output_shape)}{remedy}")
    if y.dtype.kind not in "iufb":
        raise DTypeError(f"{what} holds {y.dtype}; expected numbers")
    targets = y.astype(np.float64)
    if of_classes and not (np.allclose(targets.sum(axis=-1), 1.0, atol=1e-3) and targets.min() >= 0):
        row = int(np.argmax((np.abs(targets.sum(axis=-1) - 1.0) > 1e-3) | (targets.min(axis=-1) < 0)))
        raise DataError(
            f"{what}[{row}] is {targets[row].tolist()}, which is no distribution over {K} classes; a one-hot row "
            "holds one 1 and zeros"
        )
    return targets


def _check_class_numbers(y: HostArray, classes: int, what: str) -> HostArray:
    if y.dtype.kind not in "iu":
        fraction = y.dtype.kind == "f" and y[~(y == np.floor(y))]
        seen = f", such as {fraction[0]}" if fraction is not False and len(fraction) else ""
        raise DTypeError(
            f"{what} holds {y.dtype}{seen}; class numbers must be integers 0 … {classes - 1}: pass "
            f"{what}.astype(int) if that is what they are"
        )
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{what}[{first}] is {int(y[first])}, and {len(wrong):,} labels in all are outside 0 … {classes - 1}; the "
            f"model has {classes} outputs: number the classes from 0, or give its last layer more units"
        )
    return y.astype(np.int64)


def check_batch_size(batch_size: Any) -> int:
    """Return a batch size, or raise ConfigurationError where it is not a positive integer."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a positive integer, not {batch_size!r}")
    return int(batch_size)


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """Yield the slices that cut `count` samples into batches; the last one may be smaller."""
    for start in range(0, count, batch_size):
        yield slice(start, min(start + batch_size, count))


def check_epochs(epochs: Any) -> float:
    """Return how often data is to be visited, a whole number as an int, or raise ConfigurationError."""
    is_number = isinstance(epochs, int | float) and not isinstance(epochs, bool)
    if not is_number or not 0 <= epochs < math.inf:
        raise ConfigurationError(
            f"epochs must be a number of at least 0, not {epochs!r}; 2.5 visits every sample twice and half of them "
            "once more"
        )
    return int(epochs) if epochs == int(epochs) else float(epochs)


def steps_of(epoch: int, epochs: float, steps: int) -> int:
    """Return how many of an epoch's steps are made, of which the first epoch is 0: fewer in a last one that is cut."""
    share = min(epochs - epoch, 1.0)
    return max(math.ceil(share * steps - 1e-6), 1)  # 9.9 − 9 is a little more than 0.9, and not meant to be


def join(parts: list[HostArray]) -> HostArray:
    """Return batches of outputs as one array."""
    return np.concatenate(parts)
