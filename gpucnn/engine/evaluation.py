"""Scoring and predicting in batches; where memory runs out, in smaller ones."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

from gpucnn.engine.executor import Executor
from gpucnn.errors import OutOfMemoryError

T = TypeVar("T")


def in_batches(model: Executor, count: int, size: int, function: Callable[[slice], T]) -> list[T]:
    """Return what a function gives for each batch of `count` samples, at most `size` at a time.

    Where memory runs out, all cached memory is freed and the batch is halved, and so are all that follow.

    Raises:
        OutOfMemoryError: not even one sample fits.
    """
    start, results, halved = 0, [], False
    while start < count:
        batch = slice(start, min(start + size, count))
        try:
            results.append(function(batch))
        except MemoryError as error:
            if halved and batch.stop - batch.start == 1:
                raise OutOfMemoryError(
                    f"{error}; not even one sample fits", getattr(error, "layer", ""), has_advice=True
                ) from error
        else:
            start = batch.stop
            continue
        # only here, outside the handler, does the error no longer hold the arrays of the pass that failed
        size, halved = (batch.stop - batch.start + 1) // 2, True
        free_memory(model)
    return results


def free_memory(model: Executor) -> None:
    """Free what a model and its backend keep for later, and what only reference cycles hold."""
    model.free_memory()
    gc.collect()


def evaluate(model: Executor, data: tuple[Any, Any], batch_size: int) -> dict[str, float]:
    """Return the mean loss and metrics over inputs and labels on the device."""
    x, y = data
    totals = model.new_metrics()

    def score(batch: slice) -> None:
        loss, outputs = model.test_step(model.as_floats(x[batch]), y[batch])
        totals.add(loss, outputs, y[batch])

    in_batches(model, len(x), batch_size, score)
    return totals.read()
