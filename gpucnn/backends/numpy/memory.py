"""Memory for results that is used again, because fresh memory costs more in page faults than in computing.

Filling 32 MB that the system has just handed out takes several times as long as filling 32 MB that were used before,
and a training step frees and wants the same sizes over and over. So the memory of large arrays is kept, and handed out
again when nobody refers to it any more: an array that is made here is a view of its block, as is every view of the
array, and so the block's reference count tells when the last of them has gone. Nothing needs to be given back.

    _Block.memory   [ up to 63 bytes | cache line: the array …… | the rest ]
         ▲ ▲
         │ └── an array made here ◀── its views           referred to: the block is in use
         └──── the list of blocks of this size            by that alone: it may be handed out anew

Every block begins on a cache line. NumPy's own large arrays begin 16 bytes behind one, so that each of the widest
vector instructions, which take a whole line, touches two: whole training steps are then a twelfth slower.
"""

import math
import sys
import threading
from typing import Any

import numpy as np

CACHE_LINE = 64  # bytes
SMALLEST = 1 << 16  # bytes; the allocator keeps smaller ones by itself
FORGET_AFTER = 4096  # requests; a block not wanted for longer goes back to the system when a new one has to be made

_lock = threading.Lock()
_blocks: dict[int, list["_Block"]] = {}  # by size in bytes
_requests = 0


class _Block:
    """Some memory that begins on a cache line at `start`, and when it was last wanted."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = np.empty(size + CACHE_LINE, np.uint8)
        self.start = -self.memory.ctypes.data % CACHE_LINE
        self.wanted = 0

    def array(self, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
        """Return an array on this memory."""
        return np.ndarray(shape, dtype, self.memory, self.start)

    def references(self) -> int:
        return sys.getrefcount(self.memory)


COUNTS = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()
# what a block counts that nobody refers to: how many that is differs among Pythons
UNUSED = _Block(1).references() if COUNTS else 0


def empty(shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
    """Return an uninitialised array, like `np.empty`."""
    global _requests
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < SMALLEST or not COUNTS:
        return np.empty(shape, dtype)
    rounded = _round_up(size)
    with _lock:
        _requests += 1
        blocks = _blocks.setdefault(rounded, [])
        for place in range(len(blocks) - 1, -1, -1):  # the last one wanted first: it may still be in the cache
            if blocks[place].references() == UNUSED:
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
            blocks[:] = [block for block in blocks if block.references() > UNUSED]


def _forget() -> None:
    """Return what nobody has wanted for long."""
    for blocks in _blocks.values():
        blocks[:] = [b for b in blocks if b.wanted > _requests - FORGET_AFTER or b.references() > UNUSED]
