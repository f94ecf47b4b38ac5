"""Blocks of memory that are handed out again when nobody refers to what was made of them last.

An array that is made here is a view of its block, every view of the array keeps the array, and the block watches the
array with a weak reference. Nothing needs to be given back.

    Block.memory    [ up to 63 bytes | cache line: the array …… | the rest ]
       │     ▲
       │     └── an array made here ◀── its views
       └ ─ ─ ─ ─ ▶ weakly: while the array lives the block is in use, and then it may be handed out anew

Every block begins on a cache line. NumPy's own large arrays begin 16 bytes behind one, so that each of the widest
vector instructions, which take a whole line, touches two: whole training steps are then a twelfth slower.
"""

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.core import forks

Array = Any

CACHE_LINE = 64  # bytes


class _Memory(np.ndarray[Any, Any]):
    """Bytes, of a type of their own.

    Among arrays of one type NumPy lets a view refer to the one that owns the memory; so it refers to the array made
    here, and not past that to these.
    """


class Block:
    """Some memory that begins on a cache line at `start`, the array made of it last, and when that was."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = _Memory((size + CACHE_LINE,), np.uint8)
        self.start = -self.memory.ctypes.data % CACHE_LINE
        self.wanted = 0
        self._array: Callable[[], Any] = lambda: None

    def array(self, shape: tuple[int, ...], dtype: Any, kind: type = np.ndarray) -> Array:
        """Return an array of a kind on this memory, which is in use as long as the array or a view of it lives."""
        array = kind(shape, dtype, self.memory, self.start)
        self._array = weakref.ref(array)
        return array

    def in_use(self) -> bool:
        """Tell whether the array made last lives."""
        return self._array() is not None


class Arena:
    """Blocks by size in bytes. One not wanted for `forget_after` requests goes when a new one has to be made.

    So do those not wanted for longest while all are more than `at_most` times what was ever in use at once: batches of
    many sizes want blocks of many sizes, and each would stay.

    Before it makes one it takes over a block of its `source`, if there is one that is not in use.
    """

    def __init__(
        self, forget_after: float = math.inf, source: "Arena | None" = None, at_most: float = math.inf
    ) -> None:
        self.blocks: dict[int, list[Block]] = {}
        self._forget_after, self._requests, self._source = forget_after, 0, source
        self._at_most, self._largest = at_most, 0  # bytes that were ever in use at once
        self._lock = forks.lock()

    def empty(self, shape: tuple[int, ...], dtype: Any, kind: type = np.ndarray) -> Array:
        """Return an uninitialised array of a kind."""
        size = _round_up(math.prod(shape) * np.dtype(dtype).itemsize)
        with self._lock:
            self._requests += 1
            block = self._free(size)
            if block is None and self._source is not None:
                block = self._source.given_away(size)
            if block is None:
                self._forget(size)
                block = Block(size)
            self.blocks.setdefault(size, []).append(block)
            block.wanted = self._requests
            return block.array(shape, dtype, kind)

    def given_away(self, size: int) -> Block | None:
        """Return a block of a size that is not in use, and belongs to the caller from now on, if there is one."""
        with self._lock:
            return self._free(size)

    def _free(self, size: int) -> Block | None:
        """Take out a block of a size that is not in use, the last one wanted first: it may still be in the cache."""
        blocks = self.blocks.get(size, [])
        for place in range(len(blocks) - 1, -1, -1):
            if not blocks[place].in_use():
                return blocks.pop(place)
        return None

    def release(self) -> None:
        """Return all memory that nobody refers to to the system."""
        with self._lock:
            for blocks in self.blocks.values():
                blocks[:] = [block for block in blocks if block.in_use()]

    def _forget(self, size: int) -> None:
        """Return what nobody has wanted for long, and so much that with a new block it is no more than allowed."""
        every = [block for blocks in self.blocks.values() for block in blocks]
        free = sorted((block for block in every if not block.in_use()), key=lambda block: block.wanted)
        total = size + sum(block.size for block in every)
        self._largest = max(self._largest, total - sum(block.size for block in free))
        for block in free:
            if total <= self._at_most * self._largest and block.wanted > self._requests - self._forget_after:
                break
            self.blocks[block.size].remove(block)
            total -= block.size


def _round_up(size: int) -> int:
    """Round up by at most an eighth, so that arrays of nearly the same size share blocks."""
    step = 1 << max(size.bit_length() - 4, 0)
    return -(-size // step) * step
