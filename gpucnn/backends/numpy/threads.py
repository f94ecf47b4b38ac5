"""A team of threads, each of which takes a shard of the batch through the whole network.

Splitting the batch rather than each kernel leaves a thread alone with its shard from the first layer to the last:
nothing synchronizes between kernels, and elementwise layers are split as well as products. Where a layer needs the
whole batch, as batch norm does for its mean, the workers all-gather: each contributes a part and gets those of all.

                 shard 0 ──conv──┐ all-gather ┌──norm──relu──…──▶ outputs of shard 0
                 shard 1 ──conv──┘            └──norm──relu──…──▶ outputs of shard 1

How a batch is split depends only on its size, the network's FLOPs and the number of threads, and parts are added in
order: the same number of threads gives the same bits. BLAS is limited to one thread meanwhile.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from gpucnn.backends.numpy.blas import blas_threads
from gpucnn.backends.numpy.cores import usable_cores
from gpucnn.backends.numpy.memory_layout import even_slices
from gpucnn.backends.numpy.thread_pool import Task, ThreadPool
from gpucnn.backends.numpy.traced_array import current_tracer, this_thread
from gpucnn.core import forks
from gpucnn.core.checks import integer, shown
from gpucnn.errors import ConfigurationError, ThreadWarning

T = TypeVar("T")

# what a shard must hold to be worth a thread: FLOPs of the forward pass, and images; below, products get short rows,
# and threads wait for each other around each short call
MIN_SHARD_FLOPS, MIN_SHARD_IMAGES = 2e7, 16


class _ThreadLocal(threading.local):
    """What belongs to a thread: its place in a team, and the number of threads it is fixed to."""

    worker: "Worker | None" = None
    fixed_num_threads: int | None = None


_requested: int | None = None
_available: int | None = None  # as many as the system let start, where that was fewer than requested
_team_lock = forks.lock()  # one team at a time: two would have twice as many threads as there are cores
_thread_local = _ThreadLocal()
_pool = ThreadPool()


@forks.in_child
def _start_over() -> None:
    """Forget, in a forked child, the threads that do not exist there, and what its own had begun."""
    _pool.forget()
    _thread_local.worker = _thread_local.fixed_num_threads = None
    this_thread.tracer = None


def set_num_threads(count: int | None) -> None:
    """Set how many threads the CPU engine uses; None for `GPUCNN_NUM_THREADS`, else the usable cores.

    Raises:
        ConfigurationError: not a positive integer.

    Example:
        >>> set_num_threads(1)
    """
    global _requested, _available
    _requested = None if count is None else integer(count, "the number of threads", 1)
    _available = None
    if _requested is not None:
        _pool.shrink(_requested - 1)


def num_threads() -> int:
    """Return how many threads the CPU engine uses."""
    count = _thread_local.fixed_num_threads or _requested or _default_num_threads()
    return count if _available is None else min(count, _available)


def _default_num_threads() -> int:
    """Return the number of threads where none was requested."""
    named = os.environ.get("GPUCNN_NUM_THREADS", "").strip()
    if not named:
        return usable_cores()
    if not named.isdecimal() or len(named) > 18 or int(named) < 1:  # Python reads no more than 4300 digits
        raise ConfigurationError(
            f"the environment variable GPUCNN_NUM_THREADS must be a positive integer, not {shown(named)}"
        )
    return int(named)


@contextlib.contextmanager
def fixed_num_threads() -> Iterator[None]:
    """Keep the number of threads in the block, for what this thread computes."""
    before = _thread_local.fixed_num_threads
    _thread_local.fixed_num_threads = num_threads()
    try:
        yield
    finally:
        _thread_local.fixed_num_threads = before


def shards(batch_size: int, flops: float) -> list[slice]:
    """Split a batch whose forward pass costs `flops` into one shard per thread; into a single one if it is small."""
    if _thread_local.worker is not None:
        return [slice(0, batch_size)]
    count = max(1, min(num_threads(), batch_size // MIN_SHARD_IMAGES, int(flops / MIN_SHARD_FLOPS)))
    return list(even_slices(batch_size, count if count == 1 else _startable(count)))


def _startable(count: int) -> int:
    """Return how many of `count` threads there are, this one included; fewer where the system starts no more."""
    global _available
    available = 1 + _pool.grow(count - 1)
    if available >= count:
        return count
    _available = available
    warnings.warn(
        f"the system starts no more than {available} of {count} threads, so the CPU engine uses {available} from now "
        "on, which takes longer and may change last bits; gpucnn.set_num_threads tries again",
        ThreadWarning,
        stacklevel=2,
    )
    return available


class Aborted(Exception):
    """Another worker of the team has failed."""


class Team:
    """One worker for each shard of a batch, each on its own thread."""

    def __init__(self, shards: Sequence[slice]) -> None:
        self.shards, self.batch_size = shards, shards[-1].stop
        # two lists in turn: a fast worker may start its next round before a slow one has read this round's parts
        self.parts: tuple[list[Any], list[Any]] = [None] * len(shards), [None] * len(shards)
        self._lock, self._arrived, self._aborted = threading.Lock(), 0, False
        self._gates = [threading.Lock() for _ in shards]  # one before each worker, closed; the last to arrive opens all
        for gate in self._gates:
            gate.acquire()

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run a task for each shard and return their results in order; the caller's thread is the first worker.

        If a task fails, all others are aborted and its error is raised.
        """
        first, *others = [Worker(self, rank, samples) for rank, samples in enumerate(self.shards)]
        submitted = [Task(partial(worker.run, task)) for worker, task in zip(others, tasks[1:], strict=True)]
        errors: list[BaseException] = []
        results: list[T] = []
        with _team_lock, blas_threads(1):
            try:
                _pool.submit(submitted)
                results.append(first.run(tasks[0]))
            except BaseException as error:
                self.abort()
                errors.append(error)
            for task in submitted:
                if task.submitted:
                    try:
                        results.append(task.result())
                    except BaseException as error:  # also where the caller is interrupted while it waits
                        self.abort()
                        errors.append(error)
        if not errors:
            return results
        try:
            raise next((error for error in errors if not isinstance(error, Aborted)), errors[0])
        finally:
            errors.clear()  # an error references this frame, and so all arrays in it

    def wait(self, rank: int) -> None:
        """Wait for all other workers: a barrier.

        Raises:
            Aborted: one of them failed.
        """
        with self._lock:
            self._arrived = (self._arrived + 1) % len(self._gates)
            last = self._arrived == 0
        if last:
            self._open_gates()
        self._gates[rank].acquire()
        if self._aborted:
            raise Aborted

    def abort(self) -> None:
        """Release all that wait for a worker that will not arrive."""
        self._aborted = True
        self._open_gates()

    def _open_gates(self) -> None:
        for gate in self._gates:
            with contextlib.suppress(RuntimeError):  # it is open already
                gate.release()


class Worker:
    """One thread's place in a team."""

    def __init__(self, team: Team, rank: int, samples: slice) -> None:
        self.team, self.rank, self.samples = team, rank, samples
        self._rounds = 0

    def run(self, task: Callable[[], T]) -> T:
        """Run a task as this worker."""
        _thread_local.worker = self
        try:
            with blas_threads(1):  # also where each thread has its own number
                return task()
        except BaseException:
            self.team.abort()
            raise
        finally:
            _thread_local.worker = None

    def all_gather(self, part: Any) -> list[Any]:
        """Contribute a part to the team's next all-gather, and return the parts of all workers in order."""
        self._rounds += 1
        parts = self.team.parts[self._rounds % 2]
        parts[self.rank] = part
        self.team.wait(self.rank)
        return list(parts)


def run_sharded(tasks: Sequence[Callable[[], T]], shards: Sequence[slice]) -> list[T]:
    """Run tasks as a team, one per shard of the batch, and return their results in order."""
    return Team(shards).run(tasks)


def all_gather(part: tuple[Any, ...]) -> list[Any]:
    """Return the parts of all workers of this thread's team, in order; the part alone outside a team."""
    worker, tracer = _thread_local.worker, current_tracer()
    if worker is None:
        return [part]
    if tracer is None:
        return worker.all_gather(part)
    parts = worker.all_gather(tuple(map(tracer.publish, part)))
    tracer.append(_wait_again)
    return parts


def _wait_again() -> None:
    """Wait for the other workers of this thread's team; their parts lie where they did during the capture."""
    worker = _thread_local.worker
    assert worker is not None
    worker.team.wait(worker.rank)


def shard_offset() -> int:
    """Return how many samples of the batch precede this thread's shard."""
    worker = _thread_local.worker
    return 0 if worker is None else worker.samples.start


def global_batch_size(samples: int) -> int:
    """Return the size of the whole batch, given that of this thread's shard."""
    worker = _thread_local.worker
    return samples if worker is None else worker.team.batch_size
