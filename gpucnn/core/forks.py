"""Reset after a fork: the child has one thread, and locks that other threads held would never be released there."""

import os
import threading
import weakref
from collections.abc import Callable

# Not a WeakSet: its finalizers run Python code, in which an interrupt would be lost.
_locks: "list[weakref.ref[threading.Lock]]" = []
_adding, _capacity = threading.Lock(), 64


def lock() -> threading.Lock:
    """Return a lock that is released in a forked child, even if it was held in the parent."""
    global _capacity
    new = threading.Lock()
    with _adding:
        if len(_locks) >= _capacity:
            _locks[:] = [other for other in _locks if other() is not None]
            _capacity = 2 * len(_locks) + 64
        _locks.append(weakref.ref(new))
    return new


def locks() -> list[threading.Lock]:
    """Return all locks that still exist."""
    return [lock for lock in (other() for other in _locks) if lock is not None]


def in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Decorate a function to be called in a forked child, after those decorated earlier."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


@in_child
def _free_all() -> None:
    for each in (_adding, *locks()):
        if each.locked():
            each.release()
