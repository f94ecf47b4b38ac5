"""A training step as one CUDA graph: launched as a whole, it does without a launch from Python for each kernel.

A graph holds the addresses of the memory that its kernels read and write. So the step first runs eagerly with its own
memory pool. The capture, right after, allocates the same blocks from that pool, and the pool lives as long as the
graph, so that the blocks are given to nothing else. Blocks that are returned to the pool during the capture are still
used by earlier parts of the graph: from then on the pool may grow, but none of it may be freed.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cupy
import numpy as np

from gpucnn.backends.base import Replay, Tracer
from gpucnn.backends.reference import Array

MEMORY_ALLOCATION = 2  # cudaError_t

_capture_lock = threading.RLock()  # for warm-up and capture: garbage collection is disabled for the whole process


class ThreadState(threading.local):
    """The state of one thread, since another thread may be in the middle of another step."""

    memory: "CapturePool | None" = None  # of the step that is being warmed up or captured
    replays: "ReplayCounter | None" = None  # of the step that is being captured
    tf32 = False  # whether float32 products may round their factors


class Allocator:
    """Allocates the memory of a pool, which may be sealed: then none of it is freed.

    When cudaMalloc fails, CuPy frees the blocks of the pool that no array uses, which a graph may still use. It does so
    only for a CUDA error, so a sealed pool raises another one.
    """

    def __init__(self) -> None:
        self.sealed = False
        self.grown = 0  # bytes since it was sealed

    def __call__(self, size: int) -> Any:
        """Return newly allocated memory, as CuPy's own allocator does."""
        try:
            memory = cupy.cuda.Memory(size)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if not self.sealed or error.status != MEMORY_ALLOCATION:
                raise
            raise MemoryError(
                f"there is no room for {size:,} bytes more than the step took before, in its warm-up"
            ) from error
        self.grown += size if self.sealed else 0
        return cupy.cuda.MemoryPointer(memory, 0)


class CapturePool(Tracer):
    """A pool of memory and a stream for one captured step, on the current GPU."""

    def __init__(self, state: ThreadState, cublas: Any) -> None:
        self.state, self._cublas = state, cublas
        cupy.get_default_memory_pool().free_all_blocks()  # another pool cannot use what is cached there
        self.device = cupy.cuda.Device()
        self._allocator = Allocator()
        self.pool = cupy.cuda.MemoryPool(self._allocator)
        self.stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        self.fitting: dict[Any, int] = {}  # how many images fitted, by request: see `convolution.allocate`

    def __del__(self) -> None:
        with suppress(Exception), self.device:  # at interpreter exit CuPy may be gone already
            self.pool.free_all_blocks()  # CuPy's pools do not do so when they are deleted

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run the step with the pool, so that the capture finds all the memory it needs there."""
        with self.device, self.active():
            yield

    def capture(
        self, function: Callable[..., Array | None], *arrays: Array, increments: dict[int, int] | None = None
    ) -> tuple[None, "CapturedGraph"]:
        """Capture a step as a CUDA graph, and launch it; it takes and returns no arrays.

        Raises:
            MemoryError: the capture needs more memory than is free, although the warm-up had enough.
            RuntimeError: memory that the graph may use was freed during the capture.
        """
        with self.device:
            graph = CapturedGraph(function, self, ReplayCounter(increments or {}), self._cublas.handle)
        graph(number=0)  # the capture itself has computed nothing
        return None, graph

    @contextmanager
    def active(self) -> Iterator[None]:
        """Allocate from the pool and work in its stream, after all earlier work and before all later work.

        Garbage collection is disabled meanwhile: it could free memory, or destroy graphs, during a capture.
        """
        cupy.cuda.get_current_stream().synchronize()
        with _capture_lock:
            collects, self.state.memory = gc.isenabled(), self
            gc.disable()
            try:
                with cupy.cuda.using_allocator(self.pool.malloc), self.stream:
                    yield
            finally:
                self.state.memory = None
                if collects:
                    gc.enable()
        self.stream.synchronize()

    @contextmanager
    def sealed(self) -> Iterator[None]:
        """Keep all memory of the pool from now on, for the graph that is captured in the context.

        Raises:
            RuntimeError: some of it was freed within the context.
        """
        gc.collect(1)  # blocks that the warm-up left in reference cycles are still in use, and so could not be reused
        self._allocator.sealed, before = True, self.pool.total_bytes()
        yield
        expected, now = before + self._allocator.grown, self.pool.total_bytes()
        if now != expected:
            raise RuntimeError(f"{expected - now:,} bytes that the captured step may use were freed in the meantime")


class ReplayCounter:
    """The number of the replay, in GPU memory, by which random streams advance."""

    def __init__(self, increments: dict[int, int]) -> None:
        self.increments = increments
        self.count: Array = cupy.zeros((), np.uint64)

    def for_stream(self, key: int) -> tuple[Array, int]:
        """Return the number of the replay and by how much each advances the counter of a stream."""
        return self.count, self.increments.get(key, 0)


class CapturedGraph(Replay):
    """A captured step, which runs as one launch.

    Arguments:
        held: what else must live as long as the graph.
    """

    def __init__(self, step: Callable[[], Any], memory: CapturePool, counter: ReplayCounter, held: Any) -> None:
        self._graph: Any = None  # the first attribute, so that it is freed before the memory that it uses
        self._memory, self._counter, self._held = memory, counter, held
        with memory.sealed(), memory.active():
            memory.state.replays = counter
            memory.stream.begin_capture()
            try:
                step()
            except BaseException:
                with suppress(Exception):  # the error says that the capture is invalid
                    memory.stream.end_capture()
                raise
            finally:
                memory.state.replays = None
            self._graph = memory.stream.end_capture()

    def __call__(self, *arrays: Array, number: int = 0) -> None:
        """Launch the step in the current stream, after all earlier work there."""
        with self._memory.device:
            self._counter.count.fill(number)
            self._graph.launch()
