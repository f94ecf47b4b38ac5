"""Data sets that do not fit on the GPU: their batches are copied one by one, through pinned memory."""

from typing import Any

import cupy
import numpy as np
from cupyx import empty_pinned

from gpucnn.backends.base import StreamedDataset
from gpucnn.backends.reference import Array

MAX_FRACTION = 0.5  # of the free memory that data sets may take together; the rest is for the network


def room_for_data(step: int) -> int:
    """Return the bytes that data sets may take in all, so that a step of `step` bytes still fits."""
    free, _ = cupy.cuda.runtime.memGetInfo()
    free += cupy.get_default_memory_pool().free_bytes()
    return int(min(MAX_FRACTION * free, free - step))


class PinnedStream(StreamedDataset):
    """A data set (P, …) on the host; `data[indices]` is a batch of it on the GPU.

    The batch is assembled in pinned memory, which the GPU copies asynchronously. There are two such buffers, so that
    one can be filled while the other is copied.
    """

    def __init__(self, data: "np.ndarray[Any, Any]") -> None:
        self._data = data
        self.shape, self.dtype = data.shape, data.dtype
        self._buffers: list[Any] = [None, None]
        self._copied: list[Any] = [None, None]
        self._turn = 0

    def __getitem__(self, indices: Any) -> Array:
        """Return the samples of a slice, or at host indices (N,), on the GPU."""
        if isinstance(indices, slice):
            indices = np.arange(*indices.indices(len(self._data)))
        self._turn = 1 - self._turn
        buffer = self._buffer(len(indices))
        np.take(self._data, indices, axis=0, out=buffer, mode="clip")  # any other mode would allocate a buffer
        stream = cupy.cuda.get_current_stream()
        batch = cupy.empty(buffer.shape, buffer.dtype)
        batch.set(buffer, stream=stream)
        self._copied[self._turn] = stream.record()
        return batch

    def _buffer(self, count: int) -> Any:
        """Return the next buffer, once the GPU has copied its content."""
        if self._copied[self._turn] is not None:
            self._copied[self._turn].synchronize()
        held = self._buffers[self._turn]
        if held is None or len(held) < count:
            held = self._buffers[self._turn] = empty_pinned((count, *self.shape[1:]), self.dtype)
        return held[:count]
