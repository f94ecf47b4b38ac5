"""Memory for results that is used again, because fresh memory costs more in page faults than in computing.

Filling 32 MB that the system has just handed out takes several times as long as filling 32 MB that were used before,
and a training step frees and wants the same sizes over and over. So the memory of large arrays comes from an arena (see
`arena.py`), which keeps it and hands it out again; while a thread records, from the recorder's own.
"""

import math
from typing import Any

import numpy as np

from gpucnn.backends.numpy.arena import Arena, Block
from gpucnn.backends.numpy.traced_array import current_tracer

Array = Any

SMALLEST = 1 << 16  # bytes; the allocator keeps smaller ones by itself
FORGET_AFTER = 4096  # requests; a block not wanted for longer goes back to the system when a new one has to be made

AT_MOST = 1.75  # times what was ever in use at once; a step wants blocks of some sizes only while others are free

arena = Arena(FORGET_AFTER, at_most=AT_MOST)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array, like `np.empty`."""
    tracer = current_tracer()
    if tracer is not None:
        return tracer.empty(shape, dtype)
    dtype = np.dtype(dtype)
    small = math.prod(shape) * dtype.itemsize < SMALLEST
    return np.empty(shape, dtype) if small else arena.empty(shape, dtype)


def aligned(count: int, dtype: Any) -> Array:
    """Return a vector of so many uninitialised numbers that begins on a cache line."""
    dtype = np.dtype(dtype)
    return Block(count * dtype.itemsize).array((count,), dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array of zeros, like `np.zeros`."""
    array = empty(shape, dtype)
    array[...] = 0
    return array


def release() -> None:
    """Return all memory that nobody refers to."""
    arena.release()
