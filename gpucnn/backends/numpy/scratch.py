"""Buffers that are used again: a fresh one of a few megabytes costs more in page faults than filling it.

Each thread has its own, by the purpose it serves: five at most. A buffer lives until a larger one is wanted, and the
paths cut their work so that none grows beyond `LIMIT`, whatever the batch. (A row of a slice of very wide images, or
one padded image, is the least they can do.)
"""

import math
import threading
from typing import Any

import numpy as np

LIMIT = 4 << 20  # bytes of one buffer

_held = threading.local()


def take(purpose: str, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
    """Return an uninitialised array that is valid until the same thread takes one for the same purpose."""
    size = math.prod(shape)
    buffers = vars(_held)
    key = f"{purpose} {np.dtype(dtype).char}"
    if key not in buffers or buffers[key].size < size:
        buffers[key] = np.empty(size, dtype)
    return buffers[key][:size].reshape(shape)
