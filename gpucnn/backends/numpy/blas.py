"""The number of threads that BLAS uses: limited for a while, and restored.

`threadpoolctl` finds the libraries. OpenBLAS has one number for the whole process, unless it is built with OpenMP,
where each thread has its own. The former is set by OpenBLAS's own functions: from 3.8 on, `threadpoolctl` sets it only
for the first thread of the process that asks, and does nothing for all others.
"""

import contextlib
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

from gpucnn.core import forks


class Library:
    """A BLAS library of this process: `get` returns its number of threads, and `set` sets it."""

    def __init__(self, controller: Any) -> None:
        self.get, self.set = controller.get_num_threads, controller.set_num_threads
        self.per_thread = getattr(controller, "threading_layer", "") == "openmp" and controller.internal_api != "mkl"
        if controller.internal_api == "openblas" and not self.per_thread:
            named = [name for name in controller.check_symbols if hasattr(controller.dynlib, name)]
            self.get = getattr(controller.dynlib, named[0])
            self.set = getattr(controller.dynlib, named[0].replace("get_num_threads", "set_num_threads"))


class _Limit:
    """How many blocks limit BLAS, and the numbers of threads before."""

    def __init__(self) -> None:
        self.blocks = 0
        self.before: dict[Library, int] = {}

    def enter(self, libraries: list[Library], count: int) -> None:
        if self.blocks == 0:
            for library in libraries:
                self.before[library] = library.get()
                library.set(min(count, self.before[library]))
        self.blocks += 1

    def leave(self) -> None:
        self.blocks -= 1
        if self.blocks == 0:
            self.restore()

    def restore(self) -> None:
        for library, count in self.before.items():
            library.set(count)
        self.before = {}


class _ThreadLimit(_Limit, threading.local):
    """The same for libraries that have one number per thread."""


_lock, _process_limit, _thread_limit = forks.lock(), _Limit(), _ThreadLimit()


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Limit BLAS to `count` threads in the block, for all threads of the process, and restore the number afterwards.

    Blocks may nest and overlap; the first one decides. A model enters one around each step: switching more often would
    leave BLAS' own threads spinning, for tens of milliseconds, on the cores that the team needs.
    """
    process_libraries, per_thread_libraries = _libraries()
    with _lock:
        _process_limit.enter(process_libraries, count)
    _thread_limit.enter(per_thread_libraries, count)
    try:
        yield
    finally:
        _thread_limit.leave()
        with _lock:
            _process_limit.leave()


@forks.in_child
def _keep_own_limits() -> None:
    """Forget, in a forked child, the blocks of threads that do not exist there."""
    _process_limit.blocks = _thread_limit.blocks
    if _process_limit.blocks == 0:
        _process_limit.restore()


@cache
def _libraries() -> tuple[list[Library], list[Library]]:
    """Return the libraries that have one number for the process, and those that have one per thread."""
    found = [Library(controller) for controller in _controllers().lib_controllers]
    return [each for each in found if not each.per_thread], [each for each in found if each.per_thread]


@cache
def _controllers() -> Any:
    """Return the controller of all BLAS libraries; finding them takes a thousand times as long as switching."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def blas_description() -> str:
    """Return the kind, version and instruction set of the BLAS that NumPy multiplies with."""
    for library in _controllers().info():
        if "numpy" in library["filepath"].lower():
            return f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".rstrip()
    return "not recognised"
