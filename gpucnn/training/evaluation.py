"""Scoring and predicting, a part of the samples after another; where memory runs out, with smaller parts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from gpucnn.model import Model

T = TypeVar("T")


def by_parts(model: "Model", count: int, size: int, function: Callable[[slice], T]) -> list[T]:
    """Return what a function gives for one part of `count` samples after another, each of at most `size`.

    Where memory runs out, the part is halved, and so are all that follow; what was kept for later is let go first.

    Raises:
        OutOfMemory: not even one sample fits.
    """
    start, results = 0, []
    while start < count:
        part = slice(start, min(start + size, count))
        try:
            results.append(function(part))
        except MemoryError:
            if part.stop - part.start == 1:
                raise
            size = (part.stop - part.start + 1) // 2
            model.release()
        else:
            start = part.stop
    return results


def evaluate(model: "Model", on_device: tuple[Any, Any], batch_size: int) -> dict[str, float]:
    """Return the mean loss and metrics over data that is on the device."""
    x, y = on_device
    totals = model.new_totals()

    def score(part: slice) -> None:
        loss, outputs = model._score(model.as_floats(x[part]), y[part])
        totals.add(loss, outputs, y[part])

    by_parts(model, len(x), batch_size, score)
    return totals.read()
