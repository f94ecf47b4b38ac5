"""Which method is training a model: one thread at a time, and no `fit` inside another."""

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from gpucnn.core import forks
from gpucnn.core.hints import Function
from gpucnn.errors import ConfigurationError

_lock = forks.lock()


class Claim:
    """A method that trains a model, in a thread of a process, until it is over."""

    def __init__(self, method: str) -> None:
        self.method, self.over = method, False
        self.steps = False  # whether it has begun to make steps, which may be captured
        self._thread, self._process = threading.get_ident(), os.getpid()

    @property
    def holds(self) -> bool:
        """Whether the method is still running; in a forked child, none is that the parent had begun."""
        return not self.over and self._process == os.getpid()

    @property
    def here(self) -> bool:
        """Whether it runs in this thread, which then calls from a callback."""
        return self._thread == threading.get_ident()

    def take(self, model: Any, within: bool) -> None:
        """Claim a model, or with `within` join the method that this thread is running already.

        Raises:
            ConfigurationError: it is being trained.
        """
        with _lock:
            other = model.claim
            if other is None or not other.holds:
                model.claim = self
                return
        if not (within and other.here):
            raise ConfigurationError(
                f"{self.method} was called while {other.method} of the same model is running"
                f"{'' if other.here else ' in another thread'}, and both would change the same weights; call it when "
                "that has ended, or train a copy, copy.deepcopy(model)"
            )

    def __reduce__(self) -> Any:
        """Leave it out of copies of the model: they are not being trained."""
        return type(None), ()


def trains(*, within: bool) -> Callable[[Function], Function]:
    """Decorate a method that trains its model: it raises while another one is running.

    With `within`, a callback of that other one may call it.
    """

    def decorate(method: Function) -> Function:
        @wraps(method)
        def alone(model: Any, *args: Any, **options: Any) -> Any:
            claim = Claim(method.__name__)
            try:
                claim.take(model, within)
                return method(model, *args, **options)
            finally:
                claim.over = True

        return alone  # type: ignore[return-value]

    return decorate
