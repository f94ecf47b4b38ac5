"""How many threads BLAS computes on: held to a number for a while, and given back.

`threadpoolctl` finds the libraries. OpenBLAS has one number for the whole process, unless it is built on OpenMP, where
each thread has its own. The former is set by its own functions: from 3.8 on, `threadpoolctl` sets it for one thread of
the process alone, the first one that asks, and does nothing for all others.
"""

import contextlib
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

from gpucnn.core import forks


class Library:
    """A BLAS of this process: `get` returns its number of threads, and `set` sets it."""

    def __init__(self, controller: Any) -> None:
        self.get, self.set = controller.get_num_threads, controller.set_num_threads
        self.of_thread = getattr(controller, "threading_layer", "") == "openmp" and controller.internal_api != "mkl"
        if controller.internal_api == "openblas" and not self.of_thread:
            named = [name for name in controller.check_symbols if hasattr(controller.dynlib, name)]
            self.get = getattr(controller.dynlib, named[0])
            self.set = getattr(controller.dynlib, named[0].replace("get_num_threads", "set_num_threads"))


class _Held:
    """How many blocks hold BLAS, and what its libraries had before."""

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
            self.give_back()

    def give_back(self) -> None:
        for library, count in self.before.items():
            library.set(count)
        self.before = {}


class _OfThread(_Held, threading.local):
    """The same for what each thread has for itself."""


_lock, _by_all, _by_thread = forks.lock(), _Held(), _OfThread()


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Hold BLAS to so many threads in the block, for all threads of the process, and give it back afterwards.

    Blocks may be nested and overlap; the first decides. A model holds one around each step: switching more often would
    leave BLAS' own threads spinning, for tens of milliseconds, on the cores that the team wants.
    """
    shared, own = _libraries()
    with _lock:
        _by_all.enter(shared, count)
    _by_thread.enter(own, count)
    try:
        yield
    finally:
        _by_thread.leave()
        with _lock:
            _by_all.leave()


@forks.in_child
def _as_this_thread_holds_it() -> None:
    """Forget, in a forked child, the blocks of threads that are not there."""
    _by_all.blocks = _by_thread.blocks
    if _by_all.blocks == 0:
        _by_all.give_back()


@cache
def _libraries() -> tuple[list[Library], list[Library]]:
    """Return those that have one number for all threads, and those that have one for each."""
    found = [Library(controller) for controller in _controllers().lib_controllers]
    return [library for library in found if not library.of_thread], [library for library in found if library.of_thread]


@cache
def _controllers() -> Any:
    """Return what finds BLAS, which takes a thousand times as long as switching."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def blas_in_words() -> str:
    """Return the kind, version and instruction set of the BLAS that NumPy multiplies with."""
    for library in _controllers().info():
        if "numpy" in library["filepath"].lower():
            return f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".rstrip()
    return "not recognised"
