"""Blocks of memory that are handed out again once nothing refers to the array created in them last.

An array that is created here is a view of its block, every view of the array keeps the array, and the block watches the
array with a weak reference. Nothing needs to be freed explicitly.

    Block.memory    [ up to 63 bytes | cache line: the array …… | the rest ]
       │     ▲
       │     └── an array created here ◀── its views
       └ ─ ─ ─ ─ ▶ weakly: while the array lives, the block is in use; after that it may be handed out again

Every block begins on a cache line. NumPy's own large arrays begin 16 bytes after one, so that each of the widest vector
instructions, which load a whole line, touches two: whole training steps are then a twelfth slower.
"""

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.reference import Array
from gpucnn.core import forks

CACHE_LINE = 64  # bytes


class _Memory(np.ndarray[Any, Any]):
    """Bytes, of a separate type.

    Among arrays of one type NumPy lets a view refer to the one that owns the memory; so it refers to the array
    created here, and not past that to these.
    """


class Block:
    """Memory whose first cache line is at `start`, the last array created in it, and the request that was for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = _Memory((size + CACHE_LINE,), np.uint8)
        self.start = -self.memory.ctypes.data % CACHE_LINE
        self.last_used = 0
        self._array: Callable[[], Any] = lambda: None

    def array(self, shape: tuple[int, ...], dtype: Any, kind: type = np.ndarray) -> Array:
        """Return an array of a type on this memory, which is in use as long as the array or a view of it lives."""
        array = kind(shape, dtype, self.memory, self.start)
        self._array = weakref.ref(array)
        return array

    def in_use(self) -> bool:
        """Return whether the last array created is alive."""
        return self._array() is not None


class Arena:
    """Blocks by size in bytes.

    Arguments
        evict_after  requests; a block not used for longer is freed when a new one has to be allocated
        parent       an arena whose free blocks are taken over before a new one is allocated
        max_ratio    of all blocks to the most that were ever in use at once; beyond it, those not used for longest are
                     freed: batches of many sizes need blocks of many sizes, and each would stay
    """

    def __init__(
        self, evict_after: float = math.inf, parent: "Arena | None" = None, max_ratio: float = math.inf
    ) -> None:
        self.blocks: dict[int, list[Block]] = {}
        self._evict_after, self._requests, self._parent = evict_after, 0, parent
        self._max_ratio, self._peak = max_ratio, 0  # bytes that were ever in use at once
        self._lock = forks.lock()

    def empty(self, shape: tuple[int, ...], dtype: Any, kind: type = np.ndarray) -> Array:
        """Return an uninitialised array of a type."""
        size = _round_up(math.prod(shape) * np.dtype(dtype).itemsize)
        with self._lock:
            self._requests += 1
            block = self._pop_free(size)
            if block is None and self._parent is not None:
                block = self._parent.take_free(size)
            if block is None:
                self._evict(size)
                block = Block(size)
            self.blocks.setdefault(size, []).append(block)
            block.last_used = self._requests
            return block.array(shape, dtype, kind)

    def take_free(self, size: int) -> Block | None:
        """Return a free block of a size, which belongs to the caller from now on, if there is one."""
        with self._lock:
            return self._pop_free(size)

    def _pop_free(self, size: int) -> Block | None:
        """Take out a free block of a size, the last one used first: it may still be in the cache."""
        blocks = self.blocks.get(size, [])
        for place in range(len(blocks) - 1, -1, -1):
            if not blocks[place].in_use():
                return blocks.pop(place)
        return None

    def release(self) -> None:
        """Free all blocks that are not in use."""
        with self._lock:
            for blocks in self.blocks.values():
                blocks[:] = [block for block in blocks if block.in_use()]

    def _evict(self, size: int) -> None:
        """Free what was not used for long, and enough for a new block to stay within the ratio."""
        every = [block for blocks in self.blocks.values() for block in blocks]
        free = sorted((block for block in every if not block.in_use()), key=lambda block: block.last_used)
        total = size + sum(block.size for block in every)
        self._peak = max(self._peak, total - sum(block.size for block in free))
        for block in free:
            if total <= self._max_ratio * self._peak and block.last_used > self._requests - self._evict_after:
                break
            self.blocks[block.size].remove(block)
            total -= block.size


def _round_up(size: int) -> int:
    """Round up by at most an eighth, so that arrays of nearly the same size share blocks."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step
