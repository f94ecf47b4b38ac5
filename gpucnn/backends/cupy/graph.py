"""A training step as one CUDA graph: launched as a whole, it does without a launch from Python for each kernel.

A graph holds the addresses that kernels read and write. So the step runs once, eagerly, in a separate memory pool;
captured right after, it finds that pool filled and takes the same blocks again; and the pool is kept as long as the
graph, so nothing else can be given them. What arrays give back to the pool during the capture is still read and written
by the part of the graph that came before, so from then on the pool may grow, but nothing of it may be freed.
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

_capture_lock = threading.RLock()  # to warm up or to capture, since only a whole process can stop collecting garbage


class ThreadState(threading.local):
    """What belongs to the thread that computes: another one may be in the middle of another step."""

    memory: "CapturePool | None" = None  # of the step that is warmed up or captured now
    replays: "ReplayCounter | None" = None  # of the step that is captured now
    tf32 = False  # whether float32 products may round their factors


class Allocator:
    """Allocates the memory of a pool, which may be sealed: then nothing of it is freed any more.

    CuPy answers a failed cudaMalloc by freeing what no array of the pool holds, which a graph may use all the same. It
    does so for an error of CUDA, but lets any other one pass; so that is what a sealed pool gets.
    """

    def __init__(self) -> None:
        self.sealed = False
        self.grown = 0  # bytes, since it was sealed

    def __call__(self, size: int) -> Any:
        """Return fresh memory, as CuPy's own function does."""
        try:
            memory = cupy.cuda.Memory(size)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            if not self.sealed or error.status != MEMORY_ALLOCATION:
                raise
            raise MemoryError(
                f"there is no room for {size:,} bytes more than the step took before, when it was not captured"
            ) from error
        self.grown += size if self.sealed else 0
        return cupy.cuda.MemoryPointer(memory, 0)


class CapturePool(Tracer):
    """A pool of memory and a stream for one captured step, on the current GPU."""

    def __init__(self, state: ThreadState, cublas: Any) -> None:
        self.state, self._cublas = state, cublas
        cupy.get_default_memory_pool().free_all_blocks()  # what lies there unused is of no use to another pool
        self.device = cupy.cuda.Device()
        self._allocator = Allocator()
        self.pool = cupy.cuda.MemoryPool(self._allocator)
        self.stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
        self.fitting: dict[Any, int] = {}  # how much of what was asked for there was room for: see `room`

    def __del__(self) -> None:
        with suppress(Exception), self.device:  # at the end of the process nothing may be left to free it with
            self.pool.free_all_blocks()  # a pool of CuPy's that goes does not

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run the step in the pool, which the capture then finds filled."""
        with self.device, self.active():
            yield

    def capture(
        self, function: Callable[..., Array | None], *arrays: Array, increments: dict[int, int] | None = None
    ) -> tuple[None, "CapturedGraph"]:
        """Capture a step as a CUDA graph, and launch it; it takes and returns no arrays of Python's.

        Raises:
            MemoryError: the step needs more memory than there is, although it had enough when it ran before.
            RuntimeError: memory that the graph may use was freed while it was captured.
        """
        with self.device:
            graph = CapturedGraph(function, self, ReplayCounter(increments or {}), self._cublas.handle)
        graph(number=0)  # capturing has computed nothing
        return None, graph

    @contextmanager
    def active(self) -> Iterator[None]:
        """Allocate from the pool, and work in the stream after all that was started before, and before what follows.

        No garbage is collected meanwhile: that could free memory, and destroy graphs, in the middle of a capture.
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
        """Let nothing of the pool be freed any more, whose memory a graph uses that is captured in the context.

        Raises:
            RuntimeError: something was freed within the context.
        """
        gc.collect(1)  # what the step has left in cycles when it ran before would be missing
        self._allocator.sealed, before = True, self.pool.total_bytes()
        yield
        expected, now = before + self._allocator.grown, self.pool.total_bytes()
        if now != expected:
            raise RuntimeError(f"{expected - now:,} bytes that the captured step may use were freed in the meantime")


class ReplayCounter:
    """The number of the replay, in the GPU's memory, from which random streams count."""

    def __init__(self, increments: dict[int, int]) -> None:
        self.increments = increments
        self.count: Array = cupy.zeros((), np.uint64)

    def for_stream(self, key: int) -> tuple[Array, int]:
        """Return the number of the replay and by how much each advances the counter of a stream."""
        return self.count, self.increments.get(key, 0)


class CapturedGraph(Replay):
    """A captured step, which one launch runs.

    Arguments:
        held: whatever else must live as long as the graph.
    """

    def __init__(self, step: Callable[[], Any], memory: CapturePool, counter: ReplayCounter, held: Any) -> None:
        self._graph: Any = None  # the first, so that it goes before the memory that it uses
        self._memory, self._counter, self._held = memory, counter, held
        with memory.sealed(), memory.active():
            memory.state.replays = counter
            memory.stream.begin_capture()
            try:
                step()
            except BaseException:
                with suppress(Exception):  # that the capture was spoilt, which is known
                    memory.stream.end_capture()
                raise
            finally:
                memory.state.replays = None
            self._graph = memory.stream.end_capture()

    def __call__(self, *arrays: Array, number: int = 0) -> None:
        """Launch the step in the current stream; it runs after all that was started there before."""
        with self._memory.device:
            self._counter.count.fill(number)
            self._graph.launch()
