"""Scoring and predicting, a part of the samples after another; where memory runs out, with smaller parts."""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from gpucnn.errors import OutOfMemoryError

if TYPE_CHECKING:
    from gpucnn.model import Model

T = TypeVar("T")


def by_parts(model: "Model", count: int, size: int, function: Callable[[slice], T]) -> list[T]:
    """Return what a function gives for one part of `count` samples after another, each of at most `size`.

    Where memory runs out, all that is kept for later is released and the part is halved, and so are all that follow.

    Raises:
        OutOfMemoryError: not even one sample fits.
    """
    start, results, released = 0, [], False
    while start < count:
        part = slice(start, min(start + size, count))
        try:
            results.append(function(part))
        except MemoryError as error:
            if released and part.stop - part.start == 1:
                raise OutOfMemoryError(
                    f"{error}; not even one sample fits", getattr(error, "layer", ""), has_advice=True
                ) from error
        else:
            start = part.stop
            continue
        # only here, outside the handler, has the error let go of the arrays of the pass that failed
        size, released = (part.stop - part.start + 1) // 2, True
        release(model)
    return results


def release(model: "Model") -> None:
    """Release what a model and its backend keep for later, and what only circles of references hold."""
    model.release()
    gc.collect()


def evaluate(model: "Model", on_device: tuple[Any, Any], batch_size: int) -> dict[str, float]:
    """Return the mean loss and metrics over data that is on the device."""
    x, y = on_device
    totals = model.new_totals()

    def score(part: slice) -> None:
        loss, outputs = model._score(model.as_floats(x[part]), y[part])
        totals.add(loss, outputs, y[part])

    by_parts(model, len(x), batch_size, score)
    return totals.read()
