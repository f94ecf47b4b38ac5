"""Buffers that are used again: a fresh one of a few megabytes costs more in page faults than filling it.

A thread at work holds a set of buffers, each known by the purpose it serves. A kernel's buffers are its own only until
it returns or meets the other threads (see `threads.py`): a set then goes to whoever works next, so there are as many
sets as threads that work at a time, however many images there are. The paths cut their work so that a set stays below
16 MB; a row of tiles of very wide images, or the windows of one row, is the least they can do.
"""

import math
import threading
from typing import Any

import numpy as np

Buffers = dict[str, "np.ndarray[Any, Any]"]

_at_work = threading.local()


def use(buffers: Buffers) -> None:
    """Let this thread work with a set of buffers."""
    _at_work.buffers = buffers


def take(purpose: str, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
    """Return an uninitialised array that is valid until the same thread takes one for the same purpose."""
    if not hasattr(_at_work, "buffers"):
        _at_work.buffers = {}
    buffers, size, key = _at_work.buffers, math.prod(shape), f"{purpose} {np.dtype(dtype).char}"
    if key not in buffers or buffers[key].size < size:
        buffers[key] = np.empty(size, dtype)
    return buffers[key][:size].reshape(shape)


def held() -> int:
    """Return the bytes of this thread's buffers."""
    return sum(buffer.nbytes for buffer in getattr(_at_work, "buffers", {}).values())
