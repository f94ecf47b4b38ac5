"""What to do where memory runs out in a training: the batches that fit are found by trying, not by reckoning.

What a pass needs at its peak depends on paths, workspaces, threads and what the system gives back, so nothing but a
pass itself tells.
"""

import traceback
from typing import TYPE_CHECKING, Any

from gpucnn.backends.base import StreamedDataset
from gpucnn.engine.evaluation import release
from gpucnn.errors import OutOfMemory

if TYPE_CHECKING:
    from gpucnn.model import Model

PASSES = 3  # one made, one captured, one replayed


def with_advice(model: "Model", data: tuple[Any, Any], size: int, error: MemoryError) -> OutOfMemory:
    """Return the error of a training in batches of a size, with the largest batch that fits added to its message.

    Halves of the size are tried, by passes forward and backward over the first samples, without an update; running
    statistics and random streams are put back.
    """
    _forget_arrays(error)
    state = [(buffer, model.backend.to_host(buffer.value).copy()) for buffer in _buffers(model)]
    fits, smaller = 0, min(size, len(data[0])) // 2
    while smaller and not fits:
        release(model)
        fits = smaller * (_is_taken(model, len(data[0]), smaller) and _passes_fit(model, data, smaller))
        smaller //= 2
    release(model)
    for buffer, value in state:
        buffer.value[...] = value if buffer.on_host else model.backend.from_host(value)
    model.zero_grad()
    advice = f"a batch_size of {fits} fits, as was tried" if fits else "not even one sample fits"
    return OutOfMemory(f"{error}; {advice}", getattr(error, "layer", ""), explained=True)


def _forget_arrays(error: BaseException | None) -> None:
    """Let go of the arrays that the frames of an error and of its causes hold; where it arose can still be read."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _buffers(model: "Model") -> list[Any]:
    return list(model.network.buffers().values())


def _is_taken(model: "Model", count: int, size: int) -> bool:
    """Return whether every layer can be trained on batches of a size, and on the last one."""
    last = count % size or min(count, size)
    return all(layer.min_batch_size() <= last for layer in model.network.all_layers())


def _passes_fit(model: "Model", data: tuple[Any, Any], size: int) -> bool:
    """Return whether there is memory for passes over batches of a size, and over a smaller last one after them."""
    last = len(data[0]) % size
    try:
        (x,) = model.backend.upload(data[0], step=size * model.bytes_of_a_sample())
        y = model.backend.from_host(data[1])
        for part in [slice(0, size)] * PASSES + [slice(0, last)] * (last > 0):
            with model.computing(size):
                picked, whole = (x[part], slice(None)) if isinstance(x, StreamedDataset) else (x, part)
                model.loss_and_gradients(model.backend.load_batch(picked, whole, model.dtype), y[part])
    except MemoryError:
        return False
    return True
