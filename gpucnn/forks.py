"""What a forked child begins anew: it has one thread, and what others held in the parent nobody gives back there."""

import os
import threading
import weakref
from collections.abc import Callable

_locks: "weakref.WeakSet[threading.Lock]" = weakref.WeakSet()


def lock() -> threading.Lock:
    """Return a lock that is free in a forked child, whoever held it in the parent."""
    made = threading.Lock()
    _locks.add(made)
    return made


def in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Decorate a function that a forked child calls before anything else, after those decorated earlier."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


@in_child
def _free_all() -> None:
    for each in list(_locks):
        if each.locked():
            each.release()
