"""A training step as one CUDA graph: launched as a whole, it does without a launch from Python for each kernel.

Capturing records the very memory that kernels read and write. So the step is made once in a pool of memory of its own;
recorded right after, it finds that pool filled and takes the same blocks again; and the pool is kept as long as the
graph, so nobody else can be given them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import cupy
import numpy as np

from gpucnn.backends.base import Array


class Memory:
    """A pool of memory and a stream for one recorded step."""

    def __init__(self) -> None:
        self.pool = cupy.cuda.MemoryPool()
        self.stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Allocate from the pool, and work in the stream after all that was started before, and before what follows."""
        cupy.cuda.get_current_stream().synchronize()
        with cupy.cuda.using_allocator(self.pool.malloc), self.stream:
            yield
        self.stream.synchronize()


class Repeats:
    """How often a step was repeated, in the GPU's memory, for the random streams that go on by themselves."""

    def __init__(self, strides: dict[int, int]) -> None:
        self.strides = strides
        self.count: Array = cupy.zeros((), np.uint64)

    def of(self, key: int) -> tuple[Array, int]:
        """Return the number of repeats and by how much each moves on the counter of a stream."""
        return self.count, self.strides.get(key, 0)


class Recording:
    """A captured step; called with the number of the repeat, it makes the step."""

    def __init__(self, step: Callable[[], None], memory: Memory, repeats: Repeats) -> None:
        self._memory = memory  # whose blocks the graph reads and writes
        self._repeats = repeats
        with memory.in_use():
            memory.stream.begin_capture()
            try:
                step()
            except BaseException:
                with suppress(Exception):  # that the capture was spoilt, which is known
                    memory.stream.end_capture()
                raise
            self._graph = memory.stream.end_capture()

    def __call__(self, repeat: int) -> None:
        """Launch the step in the current stream; it runs after all that was started there before."""
        self._repeats.count.fill(repeat)
        self._graph.launch()
