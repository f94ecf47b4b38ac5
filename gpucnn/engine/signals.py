"""Ctrl-C and other signals while a model computes: their handlers wait until the step, or the part of a pass, is over.

Python calls a signal's handler between any two instructions of the main thread. One that raises there, as that of
Ctrl-C does, could leave weights half updated, or threads waiting for one that is gone. A signal that comes a second
time, while a long step is running, is handled at once.
"""

# what `signal` wraps in enums; creating those takes twenty times as long, in every step
import _signal  # type: ignore[import-not-found]
import signal
import threading
import time
from types import FrameType
from typing import Any

from gpucnn.core import forks

PATIENCE = 1.0  # seconds: a second signal after more than this is handled at once
# those whose handlers often raise; Ctrl-C is the first to be deferred, and the last to be restored
NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGBREAK", "SIGUSR1", "SIGUSR2")
SIGNALS = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]


class _WholeStep:
    """A context in which the main thread defers signal handlers that are written in Python; may be nested."""

    def __init__(self) -> None:
        self._depth, self._thread = 0, 0
        self.handlers: dict[int, Any] = {}  # that `_note` has replaced
        self._waiting: dict[int, tuple[float, FrameType | None]] = {}  # since when, and what was interrupted

    def __enter__(self) -> None:
        thread = threading.get_ident()
        if thread == threading.main_thread().ident:
            if not self._depth:
                self._take()
                self._thread = thread
            self._depth += 1

    def __exit__(self, *_: Any) -> None:
        if not self._depth or threading.get_ident() != self._thread:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            for number in reversed(self.handlers):
                if _signal.getsignal(number) is _note:  # else the program has set another one in the meantime
                    _signal.signal(number, self.handlers[number])
        finally:
            self._depth = 0
            self._handle()

    def _take(self) -> None:
        """Replace all handlers by `_note`, which calls them as long as no step is running."""
        for number in SIGNALS:
            handler = _signal.getsignal(number)
            if callable(handler) and handler is not _note:
                self.handlers[number] = handler
                _signal.signal(number, _note)

    def _handle(self) -> None:
        """Call the handlers of all deferred signals, also where one raises."""
        try:
            while self._waiting:
                number = next(iter(self._waiting))
                _, frame = self._waiting.pop(number)
                self.handlers[number](number, frame)
        finally:
            if self._waiting:
                self._handle()

    def note(self, number: int, frame: FrameType | None) -> None:
        """Defer a signal if a step is running, unless it was deferred long ago already."""
        if self._depth:
            since, _ = self._waiting.setdefault(number, (time.monotonic(), frame))
            if time.monotonic() - since <= PATIENCE:
                return
            self._handle()
        self.handlers[number](number, frame)

    def forked(self) -> None:
        """In a forked child, forget the step of a thread that does not exist there."""
        if self._thread != threading.get_ident():
            self._depth, self._waiting = 0, {}


whole_step = _WholeStep()
forks.in_child(whole_step.forked)


def _note(number: int, frame: FrameType | None) -> None:
    whole_step.note(number, frame)


def handler_of(number: int) -> Any:
    """Return the handler of a signal, also while it is deferred."""
    found = signal.getsignal(number)
    return whole_step.handlers[number] if found is _note else found
