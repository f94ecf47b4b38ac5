"""Buffers that are used again: a fresh one of a few megabytes costs more in page faults than filling it.

Each thread has a set of buffers, each known by the purpose it serves: what a kernel makes of its input, of its output,
the sums it adds up, and so on; different kernels use the same ones. A buffer is a kernel's own until it returns. All
paths cut their work so that a set stays below 16 MB, whatever the batch. Only where the least that can be done at once
is more is a buffer larger: one padded image with fewer than 8 images, one row of a very wide image with more.
"""

import math
import threading
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.numpy.known_calls import constant
from gpucnn.backends.numpy.memory import aligned
from gpucnn.backends.numpy.traced_array import current_tracer

Array = Any


class _Buffers(threading.local):
    """A thread's buffers: of each purpose and kind of number one, as large as was ever wanted."""

    def __init__(self) -> None:
        self.largest: dict[tuple[str, str], Array] = {}
        self.views: dict[tuple[str, tuple[int, ...], Any], Array] = {}  # made once, wanted a thousand times a step


_mine = _Buffers()


def take(purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array that is valid until the same thread takes one for the same purpose."""
    tracer = current_tracer()
    if tracer is not None:
        return tracer.scratch(purpose, shape, dtype)
    view = _mine.views.get((purpose, shape, dtype))
    if view is None:
        kind, size = np.dtype(dtype).char, math.prod(shape)
        if (purpose, kind) not in _mine.largest or _mine.largest[purpose, kind].size < size:
            _mine.views = {key: view for key, view in _mine.views.items() if key[0] != purpose}
            _mine.largest[purpose, kind] = aligned(size, dtype)
        view = _mine.views[purpose, shape, dtype] = _mine.largest[purpose, kind][:size].reshape(shape)
    return view


@lru_cache(maxsize=256)
def zeros(count: int, dtype: Any) -> Array:
    """Return a vector of zeros, which nobody may write to."""
    return constant(np.zeros(count, dtype))


def given_away() -> dict[tuple[str, str], Array]:
    """Return this thread's buffers, by purpose and kind of number, for somebody else; the thread has none any more."""
    given, _mine.largest, _mine.views = _mine.largest, {}, {}
    return given


def forget() -> None:
    """Return this thread's buffers to the system."""
    given_away()


@lru_cache(maxsize=256)
def ones(count: int, dtype: Any) -> Array:
    """Return a vector of ones, which nobody may write to; a product with it is a sum."""
    return constant(np.ones(count, dtype))


def held() -> int:
    """Return the bytes of this thread's buffers."""
    return sum(buffer.nbytes for buffer in _mine.largest.values())
