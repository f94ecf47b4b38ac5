"""`DeferredInterrupt`: Ctrl-C or SIGTERM ends a training run with checkpoints after the step, once it is saved."""

import signal
import threading
from types import FrameType
from typing import Any

from gpucnn.engine.signals import handler_of


class DeferredInterrupt:
    """In this context a first Ctrl-C or SIGTERM is only noted, in `requested`; a second one ends the run at once.

    SIGTERM is what `docker stop`, batch systems and a machine that shuts down send. Only the main thread gets signals,
    and a program may have its own handlers: in other threads, and there, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = 0  # the signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "DeferredInterrupt":
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if handler_of(number) is usual:
                    self._before[number] = usual
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, usual in self._before.items():
            if handler_of(number) == self._handle:  # else the program has set its own in the meantime
                signal.signal(number, usual)
        self._before = {}

    def error(self) -> BaseException:
        """Return the exception of the noted signal: KeyboardInterrupt, or SystemExit with status 128 + 15."""
        return KeyboardInterrupt() if self.requested == signal.SIGINT else SystemExit(128 + self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = bool(self.requested), number
        if again:
            raise self.error()
