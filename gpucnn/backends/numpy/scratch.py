"""Buffers that are used again: a fresh one of a few megabytes costs more in page faults than filling it.

A thread at work holds a set of buffers, each known by the purpose it serves: what a kernel makes of its input, of its
output, the sums it adds up, and so on; different kernels use the same ones. A kernel's buffers are its own only until
it returns or meets the other threads (see `threads.py`): a set then goes to whoever works next, so there are as many
sets as threads that work at a time, however many images there are. The paths cut their work so that a set stays below
16 MB; a row of tiles of very wide images, or the windows of one row, is the least they can do.
"""

import math
import threading
from functools import cache
from typing import Any

import numpy as np

from gpucnn.backends.numpy.memory import aligned

Array = Any


class Buffers:
    """A set of buffers: of each purpose and kind of number one, as large as was ever wanted."""

    def __init__(self) -> None:
        self.largest: dict[tuple[str, str], Array] = {}
        self.views: dict[tuple[str, tuple[int, ...], Any], Array] = {}  # made once, wanted a thousand times a step

    def view(self, purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a buffer's first numbers in a shape."""
        kind, size = np.dtype(dtype).char, math.prod(shape)
        if (purpose, kind) not in self.largest or self.largest[purpose, kind].size < size:
            self.largest[purpose, kind] = aligned(size, dtype)
            self.views = {key: view for key, view in self.views.items() if key[0] != purpose}
        view = self.largest[purpose, kind][:size].reshape(shape)
        self.views[purpose, shape, dtype] = view
        return view


_at_work = threading.local()


def use(buffers: Buffers) -> None:
    """Let this thread work with a set of buffers."""
    _at_work.buffers = buffers


def take(purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array that is valid until the same thread takes one for the same purpose."""
    try:
        buffers: Buffers = _at_work.buffers
    except AttributeError:
        buffers = _at_work.buffers = Buffers()
    view = buffers.views.get((purpose, shape, dtype))
    return buffers.view(purpose, shape, dtype) if view is None else view


@cache
def ones(count: int, dtype: Any) -> Array:
    """Return a vector of ones, which nobody may write to; a product with it is a sum."""
    vector = np.ones(count, dtype)
    vector.flags.writeable = False
    return vector


def held() -> int:
    """Return the bytes of this thread's buffers."""
    buffers = getattr(_at_work, "buffers", Buffers())
    return sum(buffer.nbytes for buffer in buffers.largest.values())
