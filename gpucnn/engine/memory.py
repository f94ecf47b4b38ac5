"""What fits into memory: which data stay on the device, and, where a training step runs out, the largest batch.

What a pass needs at its peak depends on algorithms, workspaces, threads and what the system gives back, so it is found
by running passes, not by an estimate.
"""

import traceback
from typing import Any

from gpucnn.backends.base import StreamedDataset
from gpucnn.engine.evaluation import free_memory
from gpucnn.engine.executor import Executor
from gpucnn.errors import OutOfMemoryError

PASSES = 3  # one eager, one captured, one replayed

Pair = tuple[Any, Any]  # inputs and labels


def to_device(model: Executor, *data: Pair, batch_size: int = 0) -> list[Pair]:
    """Copy pairs of inputs and labels to the device as they are: uint8 images stay uint8.

    Inputs are streamed where they are too many to stay there together, next to a step on a batch of that size.
    """
    step = batch_size * model.bytes_per_sample() if batch_size else 0
    inputs = model.backend.upload(*(x for x, _ in data), step=step)
    return [(x, model.backend.from_host(y)) for x, (_, y) in zip(inputs, data, strict=True)]


def suggest_batch_size(model: Executor, data: Pair, size: int, error: MemoryError) -> OutOfMemoryError:
    """Return the error of a training step on a batch of a size, with the largest batch that fits in its message.

    Halves of the size are tried, by forward and backward passes over the first samples, without an update; running
    statistics and random streams are restored.
    """
    _forget_arrays(error)
    state = [(buffer, model.backend.to_host(buffer.value).copy()) for buffer in model.network.buffers().values()]
    fits, smaller = 0, min(size, len(data[0])) // 2
    while smaller and not fits:
        free_memory(model)
        fits = smaller * _passes_fit(model, data, smaller)
        smaller //= 2
    free_memory(model)
    for buffer, value in state:
        buffer.value[...] = value if buffer.on_host else model.backend.from_host(value)
    model.zero_grad()
    advice = f"a batch_size of {fits} fits, as was tried" if fits else "not even one sample fits"
    return OutOfMemoryError(f"{error}; {advice}", getattr(error, "layer", ""), has_advice=True)


def _forget_arrays(error: BaseException | None) -> None:
    """Free the arrays that the frames of an error and of its causes hold; where it arose can still be read."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _passes_fit(model: Executor, data: Pair, size: int) -> bool:
    """Return whether there is memory for passes over batches of a size, and over a smaller last one after them.

    A batch that is too small for a layer does not fit either.
    """
    last = len(data[0]) % size
    if any(layer.min_batch_size() > (last or size) for layer in model.network.all_layers()):
        return False
    try:
        ((x, y),) = to_device(model, data, batch_size=size)
        for part in [slice(0, size)] * PASSES + [slice(0, last)] * (last > 0):
            with model.execution_context(size):
                picked, whole = (x[part], slice(None)) if isinstance(x, StreamedDataset) else (x, part)
                model.loss_and_gradients(model.backend.load_batch(picked, whole, model.dtype), y[part])
    except MemoryError:
        return False
    return True
