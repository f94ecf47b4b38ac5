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
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from gpucnn.backends.numpy.blas import blas_threads
from gpucnn.backends.numpy.cores import usable_cores
from gpucnn.backends.numpy.memory_layout import equal_parts
from gpucnn.backends.numpy.traced_array import current_tracer, this_thread
from gpucnn.backends.numpy.workers import Work, Workers
from gpucnn.core import forks
from gpucnn.core.checks import integer, shown
from gpucnn.errors import ConfigurationError, ThreadWarning

T = TypeVar("T")

# what a slice must hold to be worth a thread of its own: floating-point operations forward, and images; below, products
# get short rows, and threads wait for each other around each short call
LEAST_WORK, LEAST_IMAGES = 2e7, 16


class _Thread(threading.local):
    """What belongs to a thread: its place in a team, and the number of threads it stays with."""

    member: "Member | None" = None
    fixed_num_threads: int | None = None


_chosen: int | None = None
_most: int | None = None  # as many as the system let start, where that was fewer than wanted
_one_team = forks.lock()  # works at a time: two would have twice as many threads as there are cores
_this_thread = _Thread()
_workers = Workers()


@forks.in_child
def _alone() -> None:
    """Forget, in a forked child, the threads that are not there, and what its own had begun."""
    _workers.forget()
    _this_thread.member = _this_thread.fixed_num_threads = None
    this_thread.tracer = None


def set_num_threads(count: int | None) -> None:
    """Set how many threads the CPU engine uses; None for `GPUCNN_NUM_THREADS`, else the cores it may use.

    Raises:
        ConfigurationError: not a positive integer.
    """
    global _chosen, _most
    _chosen = None if count is None else integer(count, "the number of threads", 1)
    _most = None
    if _chosen is not None:
        _workers.keep(_chosen - 1)


def num_threads() -> int:
    """Return how many threads the CPU engine uses."""
    count = _this_thread.fixed_num_threads or _chosen or _by_default()
    return count if _most is None else min(count, _most)


def _by_default() -> int:
    """Return how many threads there are where none were chosen."""
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
    """Stay with the number of threads in the block, for what this thread computes."""
    before = _this_thread.fixed_num_threads
    _this_thread.fixed_num_threads = num_threads()
    try:
        yield
    finally:
        _this_thread.fixed_num_threads = before


def shards(batch_size: int, flops: float) -> list[slice]:
    """Split a batch whose forward pass costs `flops` into one shard per thread; into a single one if it is small."""
    if _this_thread.member is not None:
        return [slice(0, batch_size)]
    count = max(1, min(num_threads(), batch_size // LEAST_IMAGES, int(flops / LEAST_WORK)))
    return list(equal_parts(batch_size, count if count == 1 else _startable(count)))


def _startable(count: int) -> int:
    """Return how many of so many threads there are, this one included; fewer where the system starts no more."""
    global _most
    there = 1 + _workers.ready(count - 1)
    if there >= count:
        return count
    _most = there
    warnings.warn(
        f"the system starts no more threads than {there} of {count}, so the CPU engine computes on {there} from now "
        "on, which takes longer and may change last bits; gpucnn.set_num_threads lets it try again",
        ThreadWarning,
        stacklevel=2,
    )
    return there


class CalledOff(Exception):
    """Another member of the team has failed."""


class Team:
    """One member for each slice of a batch, each on a thread of its own."""

    def __init__(self, slices: Sequence[slice]) -> None:
        self.slices, self.batch = slices, slices[-1].stop
        self._parts: tuple[list[Any], list[Any]] = [None] * len(slices), [None] * len(slices)
        self._lock, self._arrived, self._called_off = threading.Lock(), 0, False
        self._gates = [threading.Lock() for _ in slices]  # closed, each before a member; the last to come opens all
        for gate in self._gates:
            gate.acquire()

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Run a task for each slice and return their results in order; the caller's thread is the first member.

        If a task fails, all others are called off and its error is raised.
        """
        first, *others = [Member(self, rank, samples) for rank, samples in enumerate(self.slices)]
        works = [Work(partial(member.run, task)) for member, task in zip(others, tasks[1:], strict=True)]
        errors: list[BaseException] = []
        results: list[T] = []
        with _one_team, blas_threads(1):
            try:
                _workers.give(works)
                results.append(first.run(tasks[0]))
            except BaseException as error:
                self.call_off()
                errors.append(error)
            for work in works:
                if work.given:
                    try:
                        results.append(work.result())
                    except BaseException as error:  # also where the caller is interrupted while it waits
                        self.call_off()
                        errors.append(error)
        if not errors:
            return results
        try:
            raise next((error for error in errors if not isinstance(error, CalledOff)), errors[0])
        finally:
            errors.clear()  # an error holds this frame, and so all arrays that it had to do with

    def meet(self, rank: int, meeting: int, part: Any) -> list[Any]:
        """Leave a part at the team's n-th meeting, and return the parts of all members in order."""
        # two lists in turn: a fast member may come to its next meeting before a slow one has read this one's parts
        parts = self._parts[meeting % 2]
        parts[rank] = part
        self.wait(rank)
        return list(parts)

    def wait(self, rank: int) -> None:
        """Wait for all other members.

        Raises:
            CalledOff: one of them failed.
        """
        with self._lock:
            self._arrived = (self._arrived + 1) % len(self._gates)
            last = self._arrived == 0
        if last:
            self._open_gates()
        self._gates[rank].acquire()
        if self._called_off:
            raise CalledOff

    def call_off(self) -> None:
        """Let nobody wait for a member that will not come."""
        self._called_off = True
        self._open_gates()

    def _open_gates(self) -> None:
        for gate in self._gates:
            with contextlib.suppress(RuntimeError):  # it is open already
                gate.release()


class Member:
    """One thread's place in a team."""

    def __init__(self, team: Team, rank: int, samples: slice) -> None:
        self.team, self.rank, self.samples = team, rank, samples
        self._meetings = 0

    def run(self, task: Callable[[], T]) -> T:
        """Run a task as this member."""
        _this_thread.member = self
        try:
            with blas_threads(1):  # also where each thread has a number of its own
                return task()
        except BaseException:
            self.team.call_off()
            raise
        finally:
            _this_thread.member = None

    def all_gather(self, part: Any) -> list[Any]:
        """Return what all members give, in order."""
        self._meetings += 1
        return self.team.meet(self.rank, self._meetings, part)

    def wait(self) -> None:
        """Wait for all other members."""
        self.team.wait(self.rank)


def run_sharded(tasks: Sequence[Callable[[], T]], slices: Sequence[slice]) -> list[T]:
    """Run tasks as a team, one a slice of the batch, and return their results in order."""
    return Team(slices).run(tasks)


def all_gather(part: tuple[Any, ...]) -> list[Any]:
    """Return the parts that all members of this thread's team give, in order; the part alone where there is none."""
    member, tracer = _this_thread.member, current_tracer()
    if member is None:
        return [part]
    if tracer is None:
        return member.all_gather(part)
    parts = member.all_gather(tuple(map(tracer.publish, part)))
    tracer.append(_meet_again)
    return parts


def _meet_again() -> None:
    """Wait for the other members of this thread's team; what they leave lies where it did when this was recorded."""
    assert _this_thread.member is not None
    _this_thread.member.wait()


def shard_offset() -> int:
    """Return how many samples of the batch stand before those that this thread works on."""
    member = _this_thread.member
    return 0 if member is None else member.samples.start


def global_batch_size(samples: int) -> int:
    """Return how many samples the batch has of which this thread works on some."""
    member = _this_thread.member
    return samples if member is None else member.team.batch
