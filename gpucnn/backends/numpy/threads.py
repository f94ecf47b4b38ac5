"""Workers that share a kernel's work by slices of the batch, with BLAS held to one thread meanwhile.

How the work is cut depends on the sizes and on the number of threads alone, never on which worker is free, and partial
sums are added in order: the same number of threads gives the same bits.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any, TypeVar

from gpucnn.errors import ConfigurationError

T = TypeVar("T")

WORTH_SHARING = 4e6  # floating-point operations; below it a second thread costs more than it brings

_chosen: int | None = None
_lock, _depth = threading.Lock(), 0
_given: Any = None  # what BLAS had before it was held


def set_num_threads(count: int | None) -> None:
    """Set how many threads the CPU engine uses; None for `GPUCNN_NUM_THREADS`, else the cores it may use.

    Raises:
        ConfigurationError: not a positive integer.
    """
    global _chosen
    _chosen = None if count is None else _positive(count, "set_num_threads")


def num_threads() -> int:
    """Return how many threads the CPU engine uses."""
    if _chosen is not None:
        return _chosen
    named = os.environ.get("GPUCNN_NUM_THREADS")
    return _positive(named, "the environment variable GPUCNN_NUM_THREADS") if named else usable_cores()


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks side by side and return their results in order; the caller's thread does the first of them."""
    if len(tasks) == 1:
        return [tasks[0]()]
    with one_blas_thread():
        waiting = [_workers(len(tasks) - 1).submit(task) for task in tasks[1:]]
        return [tasks[0](), *(future.result() for future in waiting)]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread in the block, for all threads of the process, and give it back afterwards.

    Blocks may be nested and overlap; a model holds one around each step. Switching between its kernels instead would
    leave BLAS' own threads spinning, for tens of milliseconds, on the cores that the workers want.
    """
    global _depth, _given
    with _lock:
        if _depth == 0:
            _given = _blas().limit(limits=1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _given.restore_original_limits()


def share(function: Callable[[slice], T], items: int, worth: float) -> list[T]:
    """Call a function on contiguous shares of `items`, one a thread, and return the results in order.

    `worth` is the work in units that are worth a thread each, for products operations / `WORTH_SHARING`: with less than
    two of them nothing is shared.
    """
    count = max(1, min(num_threads(), items, int(worth)))
    edges = [items * k // count for k in range(count + 1)]
    return run([partial(function, slice(*pair)) for pair in pairwise(edges)])


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="gpucnn")


@cache
def _blas() -> Any:
    """Return the switch for BLAS' own threads; finding the library takes a thousand times as long as switching."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _positive(value: Any, who: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(value, bool | float):
        raise ConfigurationError(f"{who}: expected a positive number of threads, not {value!r}")
    return count
