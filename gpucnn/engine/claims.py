"""Who trains a model: one thread at a time, and no `fit` within another."""

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from gpucnn.core import forks
from gpucnn.errors import ConfigurationError

if TYPE_CHECKING:
    from gpucnn.model import Model

P = ParamSpec("P")
R = TypeVar("R")

_lock = forks.lock()


class Claim:
    """A method that trains a model, in a thread of a process, until it is over."""

    def __init__(self, method: str) -> None:
        self.method, self.over = method, False
        self.steps = False  # are made already, and may have been recorded
        self._thread, self._process = threading.get_ident(), os.getpid()

    @property
    def holds(self) -> bool:
        """Whether the training goes on; in a forked child none does that its parent had begun."""
        return not self.over and self._process == os.getpid()

    @property
    def here(self) -> bool:
        """Whether it is this thread's, which calls from a callback then."""
        return self._thread == threading.get_ident()

    def take(self, model: "Model", within: bool) -> None:
        """Claim a model, or with `within` be part of what the same thread has begun.

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
                f"{self.method} was called while {other.method} of the same model goes on"
                f"{'' if other.here else ' in another thread'}, and both would change the same weights; call it when "
                "that has ended, or train a copy, copy.deepcopy(model)"
            )

    def __reduce__(self) -> Any:
        """Leave it out of copies and pickles of the model: they are not being trained."""
        return type(None), ()


def trains(*, within: bool) -> "Callable[[Callable[Concatenate[Model, P], R]], Callable[Concatenate[Model, P], R]]":
    """Decorate a method that trains its model: it is refused while another one does.

    With `within` a callback of that other one may call it.
    """

    def decorate(method: "Callable[Concatenate[Model, P], R]") -> "Callable[Concatenate[Model, P], R]":
        @wraps(method)
        def alone(model: "Model", *args: P.args, **options: P.kwargs) -> R:
            claim = Claim(method.__name__)
            try:
                claim.take(model, within)
                return method(model, *args, **options)
            finally:
                claim.over = True

        return alone

    return decorate
