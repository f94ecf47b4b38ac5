"""Reused workspace (scratch memory): a fresh buffer of a few megabytes costs more in page faults than filling it.

Each thread has a set of buffers by name: "input" and "output" hold a kernel's transformed input and output, "sums" what
it accumulates, and so on; different kernels share them. A buffer belongs to a kernel until it returns. All algorithms
split their work so that a set stays below 16 MB, whatever the batch. A buffer is larger only where the smallest unit of
work is: one padded image with fewer than 8 images, one row of a very wide image with more.
"""

import math
import threading
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory import aligned
from gpucnn.backends.numpy.traced_array import current_tracer
from gpucnn.backends.reference import Array


class _Buffers(threading.local):
    """A thread's buffers: one for each name and kind of number, as large as was ever needed."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, str], Array] = {}
        self.views: dict[tuple[str, tuple[int, ...], Any], Array] = {}  # created once, used a thousand times per step


_thread_buffers = _Buffers()


def get(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array that is valid until the same thread gets another one of the same name."""
    tracer = current_tracer()
    if tracer is not None:
        return tracer.scratch(name, shape, dtype)
    own = _thread_buffers
    view = own.views.get((name, shape, dtype))
    if view is None:
        kind, size = np.dtype(dtype).char, math.prod(shape)
        if (name, kind) not in own.buffers or own.buffers[name, kind].size < size:
            own.views = {key: view for key, view in own.views.items() if key[0] != name}
            own.buffers[name, kind] = aligned(size, dtype)
        view = own.views[name, shape, dtype] = own.buffers[name, kind][:size].reshape(shape)
    return view


@lru_cache(maxsize=256)
def zeros(count: int, dtype: Any) -> Array:
    """Return a read-only vector of zeros."""
    return constant(np.zeros(count, dtype))


@lru_cache(maxsize=256)
def ones(count: int, dtype: Any) -> Array:
    """Return a read-only vector of ones; a product with it is a sum."""
    return constant(np.ones(count, dtype))


def detach() -> dict[tuple[str, str], Array]:
    """Return this thread's buffers, by name and kind of number, for somebody else; the thread keeps none."""
    detached, _thread_buffers.buffers, _thread_buffers.views = _thread_buffers.buffers, {}, {}
    return detached
