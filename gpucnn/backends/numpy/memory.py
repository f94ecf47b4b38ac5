"""Reused memory for results: fresh memory costs more in page faults than in computing.

Filling 32 MB that the system has just handed out takes several times as long as filling 32 MB that were used before,
and a training step frees and requests the same sizes over and over. So the memory of large arrays comes from an arena
(see `arena.py`), which keeps it and hands it out again; during a capture, from the tracer's own.
"""

import math
from typing import Any

import numpy as np

from gpucnn.backends.numpy.arena import Arena, Block
from gpucnn.backends.numpy.traced_array import current_tracer
from gpucnn.backends.reference import Array

MIN_BYTES = 1 << 16  # the allocator keeps smaller arrays by itself
EVICT_AFTER = 4096  # requests
MAX_RATIO = 1.75  # to the most ever in use at once: a step needs blocks of some sizes only while others are free

arena = Arena(EVICT_AFTER, max_ratio=MAX_RATIO)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array, like `np.empty`."""
    tracer = current_tracer()
    if tracer is not None:
        return tracer.empty(shape, dtype)
    dtype = np.dtype(dtype)
    small = math.prod(shape) * dtype.itemsize < MIN_BYTES
    return np.empty(shape, dtype) if small else arena.empty(shape, dtype)


def aligned(count: int, dtype: Any) -> Array:
    """Return an uninitialised vector (count,) that begins on a cache line."""
    dtype = np.dtype(dtype)
    return Block(count * dtype.itemsize).array((count,), dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array of zeros, like `np.zeros`."""
    array = empty(shape, dtype)
    array[...] = 0
    return array
