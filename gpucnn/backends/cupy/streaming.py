"""Data sets that do not fit the GPU: batches of them cross one by one, through pinned memory."""

from typing import Any

import cupy
import numpy as np
from cupyx import empty_pinned

from gpucnn.backends.base import Array, StreamedDataset

SHARE = 0.5  # of the free memory that data sets may take together; the rest is for the network


def room_for_data(step: int) -> int:
    """Return how many bytes data sets may take together, so that a step that takes `step` bytes still fits."""
    free, _ = cupy.cuda.runtime.memGetInfo()
    free += cupy.get_default_memory_pool().free_bytes()
    return int(min(SHARE * free, free - step))


class PinnedStream(StreamedDataset):
    """A data set (P, …) on the host; `feed[picked]` is a batch of it on the GPU.

    The batch is put together in pinned memory, which the GPU copies from by itself while Python goes on. There are two
    such buffers, so that one can be filled while the other is on its way.
    """

    def __init__(self, data: "np.ndarray[Any, Any]") -> None:
        self._data = data
        self.shape, self.dtype = data.shape, data.dtype
        self._buffers: list[Any] = [None, None]
        self._copied: list[Any] = [None, None]
        self._turn = 0

    def __getitem__(self, picked: Any) -> Array:
        """Return the samples of a slice, or of host numbers (N,), on the GPU."""
        if isinstance(picked, slice):
            picked = np.arange(*picked.indices(len(self._data)))
        self._turn = 1 - self._turn
        buffer = self._buffer(len(picked))
        np.take(self._data, picked, axis=0, out=buffer, mode="clip")  # any other mode would fill a buffer of its own
        stream = cupy.cuda.get_current_stream()
        batch = cupy.empty(buffer.shape, buffer.dtype)
        batch.set(buffer, stream=stream)
        self._copied[self._turn] = stream.record()
        return batch

    def _buffer(self, count: int) -> Any:
        """Return the buffer whose turn it is, once the GPU has copied what it held."""
        if self._copied[self._turn] is not None:
            self._copied[self._turn].synchronize()
        held = self._buffers[self._turn]
        if held is None or len(held) < count:
            held = self._buffers[self._turn] = empty_pinned((count, *self.shape[1:]), self.dtype)
        return held[:count]
