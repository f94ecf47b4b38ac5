"""Memory for results that is used again, because fresh memory costs more in page faults than in computing.

Filling 32 MB that the system has just handed out takes several times as long as filling 32 MB that were used before,
and a training step frees and wants the same sizes over and over. So the memory of large arrays is kept, and handed out
again when nobody refers to it any more. An array that is made here is a view of its block, every view of the array
keeps the array, and the block watches the array with a weak reference. Nothing needs to be given back.

    _Block.memory   [ up to 63 bytes | cache line: the array …… | the rest ]
       │     ▲
       │     └── an array made here ◀── its views
       └ ─ ─ ─ ─ ▶ weakly: while the array lives the block is in use, and then it may be handed out anew

Every block begins on a cache line. NumPy's own large arrays begin 16 bytes behind one, so that each of the widest
vector instructions, which take a whole line, touches two: whole training steps are then a twelfth slower.
"""

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

CACHE_LINE = 64  # bytes
SMALLEST = 1 << 16  # bytes; the allocator keeps smaller ones by itself
FORGET_AFTER = 4096  # requests; a block not wanted for longer goes back to the system when a new one has to be made

_lock = threading.Lock()
_blocks: dict[int, list["_Block"]] = {}  # by size in bytes
_requests = 0


class _Memory(np.ndarray[Any, Any]):
    """Bytes, of a type of their own.

    Among arrays of one type NumPy lets a view refer to the one that owns the memory; so it refers to the array made
    here, and not past that to these.
    """


class _Block:
    """Some memory that begins on a cache line at `start`, the array made of it last, and when that was."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = _Memory((size + CACHE_LINE,), np.uint8)
        self.start = -self.memory.ctypes.data % CACHE_LINE
        self.wanted = 0
        self._array: Callable[[], Any] = lambda: None

    def array(self, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
        """Return an array on this memory, which is in use as long as the array or a view of it lives."""
        array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, self.memory, self.start)
        self._array = weakref.ref(array)
        return array

    def in_use(self) -> bool:
        return self._array() is not None


def empty(shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
    """Return an uninitialised array, like `np.empty`."""
    global _requests
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    rounded = _round_up(size)
    with _lock:
        _requests += 1
        blocks = _blocks.setdefault(rounded, [])
        for place in range(len(blocks) - 1, -1, -1):  # the last one wanted first: it may still be in the cache
            if not blocks[place].in_use():
                block = blocks.pop(place)
                break
        else:
            _forget()
            block = _Block(rounded)
        blocks.append(block)
        block.wanted = _requests
        return block.array(shape, dtype)


def aligned(count: int, dtype: Any) -> "np.ndarray[Any, Any]":
    """Return a vector of so many uninitialised numbers that begins on a cache line."""
    dtype = np.dtype(dtype)
    return _Block(count * dtype.itemsize).array((count,), dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
    """Return an array of zeros, like `np.zeros`."""
    array = empty(shape, dtype)
    array[...] = 0
    return array


def _round_up(size: int) -> int:
    """Round up by at most an eighth, so that arrays of nearly the same size share blocks."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step


def release() -> None:
    """Return all memory that nobody refers to."""
    with _lock:
        for blocks in _blocks.values():
            blocks[:] = [block for block in blocks if block.in_use()]


def _forget() -> None:
    """Return what nobody has wanted for long."""
    for blocks in _blocks.values():
        blocks[:] = [b for b in blocks if b.wanted > _requests - FORGET_AFTER or b.in_use()]
