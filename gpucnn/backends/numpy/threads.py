"""A team of threads that take a slice of the batch each, and pass it through the whole network.

Sharing the batch rather than each kernel's work leaves a thread alone with its slice from the first layer to the last:
nothing waits between kernels, and elementwise layers are shared as well as products. Where a layer needs the whole
batch, as batch norm does for its mean, the members meet: each gives its part, and gets the parts of all.

                 slice 0 ──conv──┐ meet ┌──norm──relu──…──▶ outputs of slice 0
                 slice 1 ──conv──┘      └──norm──relu──…──▶ outputs of slice 1

How a batch is cut depends on its size, the network's work and the number of threads alone, and parts are added in
order: the same number of threads gives the same bits. BLAS is held to one thread meanwhile.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

from gpucnn.backends.numpy.order import equal_parts
from gpucnn.backends.numpy.traced import recorder
from gpucnn.errors import ConfigurationError

T = TypeVar("T")

# what a slice must hold to be worth a thread of its own: floating-point operations forward, and images; below, products
# get short rows, and threads wait for each other around each short call
LEAST_WORK, LEAST_IMAGES = 2e7, 16

_chosen: int | None = None
_one_team = threading.Lock()  # works at a time: the workers of two, half of each started, would wait for ever
_this_thread = threading.local()  # its `member` of a team, and `fixed`, the number of threads it stays with
_blas_lock, _blas_depth = threading.Lock(), 0
_blas_before: Any = None


def set_num_threads(count: int | None) -> None:
    """Set how many threads the CPU engine uses; None for `GPUCNN_NUM_THREADS`, else the cores it may use.

    Raises:
        ConfigurationError: not a positive integer.
    """
    global _chosen
    _chosen = None if count is None else _positive(count, "set_num_threads")


def num_threads() -> int:
    """Return how many threads the CPU engine uses."""
    fixed: int | None = getattr(_this_thread, "fixed", None)
    if fixed is not None:
        return fixed
    if _chosen is not None:
        return _chosen
    named = os.environ.get("GPUCNN_NUM_THREADS")
    return _positive(named, "the environment variable GPUCNN_NUM_THREADS") if named else usable_cores()


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Stay with the number of threads in the block, for what this thread computes."""
    before = getattr(_this_thread, "fixed", None)
    _this_thread.fixed = num_threads()
    try:
        yield
    finally:
        _this_thread.fixed = before


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def slices(batch: int, work: float) -> list[slice]:
    """Cut a batch that costs `work` floating-point operations forward into a slice a thread; one if it is too small."""
    if hasattr(_this_thread, "member"):
        return [slice(0, batch)]
    count = max(1, min(num_threads(), batch // LEAST_IMAGES, int(work / LEAST_WORK)))
    return list(equal_parts(batch, count))


class Team:
    """One member for each slice of a batch, each on a thread of its own."""

    def __init__(self, slices: Sequence[slice]) -> None:
        self.slices, self.batch = slices, slices[-1].stop
        self._barrier = threading.Barrier(len(slices))
        self._parts: tuple[list[Any], list[Any]] = [None] * len(slices), [None] * len(slices)

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run a task for each slice and return their results in order; the caller's thread is the first member.

        If a task fails, all others are called off and its error is raised.
        """
        with _one_team, blas_threads(1):
            members = [Member(self, rank, samples) for rank, samples in enumerate(self.slices)]
            waiting = [
                _workers(len(tasks) - 1).submit(member.run, task)
                for member, task in zip(members[1:], tasks[1:], strict=True)
            ]
            errors, results = [], []
            for outcome in (lambda: members[0].run(tasks[0]), *(future.result for future in waiting)):
                try:
                    results.append(outcome())
                except BaseException as error:
                    self.call_off()  # also where the caller is interrupted while it waits
                    errors.append(error)
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results

    def meet(self, rank: int, meeting: int, part: Any) -> list[Any]:
        """Leave a part at the team's n-th meeting, and return the parts of all members in order."""
        # two lists in turn: a fast member may come to its next meeting before a slow one has read this one's parts
        parts = self._parts[meeting % 2]
        parts[rank] = part
        self._barrier.wait()
        return list(parts)

    def wait(self) -> None:
        """Wait for all other members."""
        self._barrier.wait()

    def call_off(self) -> None:
        """Let nobody wait for a member that will not come."""
        self._barrier.abort()


class Member:
    """One thread's place in a team."""

    def __init__(self, team: Team, rank: int, samples: slice) -> None:
        self.team, self.rank, self.samples = team, rank, samples
        self._meetings = 0

    def run(self, task: Callable[[], T]) -> T:
        """Run a task as this member."""
        _this_thread.member = self
        try:
            return task()
        except BaseException:
            self.team.call_off()
            raise
        finally:
            del _this_thread.member

    def gather(self, part: Any) -> list[Any]:
        """Return what all members give, in order."""
        self._meetings += 1
        return self.team.meet(self.rank, self._meetings, part)


def together(tasks: Sequence[Callable[[], T]], slices: Sequence[slice]) -> list[T]:
    """Run tasks as a team, one a slice of the batch, and return their results in order."""
    return Team(slices).run(tasks)


def gather(part: tuple[Any, ...]) -> list[Any]:
    """Return the parts that all members of this thread's team give, in order; the part alone where there is none."""
    member, noting = getattr(_this_thread, "member", None), recorder()
    if member is None:
        return [part]
    if noting is None:
        return member.gather(part)
    parts = member.gather(tuple(map(noting.left, part)))
    noting.note(_meet_again)
    return parts


def _meet_again() -> None:
    """Wait for the other members of this thread's team; what they leave lies where it did when this was recorded."""
    _this_thread.member.team.wait()


def samples_before() -> int:
    """Return how many samples of the batch stand before those that this thread works on."""
    member = getattr(_this_thread, "member", None)
    return 0 if member is None else member.samples.start


def whole_batch(samples: int) -> int:
    """Return how many samples the batch has of which this thread works on some."""
    member = getattr(_this_thread, "member", None)
    return samples if member is None else member.team.batch


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Hold BLAS to so many threads in the block, for all threads of the process, and give it back afterwards.

    Blocks may be nested and overlap; the first decides. A model holds one around each step: switching more often would
    leave BLAS' own threads spinning, for tens of milliseconds, on the cores that the team wants.
    """
    global _blas_depth, _blas_before
    with _blas_lock:
        if _blas_depth == 0:
            blas = _blas()
            most = max((library.num_threads for library in blas.lib_controllers), default=count)
            _blas_before = blas.limit(limits=min(count, most))
        _blas_depth += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_depth -= 1
            if _blas_depth == 0:
                _blas_before.restore_original_limits()


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="gpucnn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_workers.cache_clear)  # a forked child has no threads but its own


@cache
def _blas() -> Any:
    """Return the switch for BLAS' own threads; finding the library takes a thousand times as long as switching."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def blas_in_words() -> str:
    """Return the kind, version and instruction set of the BLAS that NumPy multiplies with."""
    for library in _blas().info():
        if "numpy" in library["filepath"].lower():
            return f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".rstrip()
    return "not recognised"


def _positive(value: Any, who: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(value, bool | float):
        raise ConfigurationError(f"{who}: expected a positive number of threads, not {value!r}")
    return count
