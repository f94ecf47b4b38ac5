"""Ctrl-C while a training that has checkpoints goes on: the step is finished first."""

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """While it is entered, a first Ctrl-C is only noted, in `asked`; a second one interrupts at once, as ever.

    Signals come to the main thread alone, and a program may have a handler of its own: elsewhere, and there, nothing is
    changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._took = False

    def __enter__(self) -> "Interruption":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._took = True
        return self

    def __exit__(self, *_: Any) -> None:
        if self._took:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._took = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
