"""When something runs eagerly, when it is captured, and when it is replayed: the same rule for passes and steps.

Training runs the same pass thousands of times, on batches of one shape. What the layers' Python decides comes out the
same each time, and takes longer than the computing where images are small. So it runs once more while a backend
captures it, and from then on its replay runs in its place:

    eager      the Python of the layers, kernel after kernel
    capture    the same, and the backend's tracer notes each call, or the GPU each kernel
    compare    (on the CPU) both, bit for bit: see comparison.py
    replay     what was captured, with other numbers in the same memory, while its signature is current

On the CPU a shard's way through the network is captured (captured_pass.py), forward and backward; on a GPU a training
step (training/steps.py), from the batch to the update. What is captured decides nothing by the numbers, and reads what
changes between replays from arrays; everything else that it reads is in its `Signature`. A setting that changes between
two steps therefore ends the replays, and is obeyed in the very next one, which is eager.
"""

import warnings
from typing import Any, Generic, Protocol, TypeVar

from gpucnn.engine.signature import Signature
from gpucnn.errors import CaptureWarning

MAX_WARMUP = 64  # eager runs before a capture, however often settings change


class Replayed(Protocol):
    """What is captured in its first run, and replayed in those after it."""

    def is_valid(self) -> bool:
        """Return whether it can be replayed now, as far as its signature does not tell."""


R = TypeVar("R", bound=Replayed)


class Captured(Generic[R]):
    """What is captured of one kind of run, and how many eager runs come first.

        run 1         eager      as many as `warmup`, of one key one after another
        run 2         captured
        run 3 …       replayed   while the signature is current, for runs of the same key
        then          eager      twice as many before the next capture, MAX_WARMUP at most

    Arguments:
        what: what it is, for the warning that it cannot be captured.
        prepares: whether the first run of what is kept is the last eager one.
    """

    def __init__(self, what: str, *, prepares: bool = False) -> None:
        self._what, self._prepares = what, prepares
        self.failure = ""  # why it cannot be captured, or not any more
        self.clear()

    def clear(self) -> None:
        """Drop what was captured, and begin as if nothing had run."""
        self.warmup = 1
        self._drop()

    def _drop(self) -> None:
        self.replayed: R | None = None
        self._signature: Signature | None = None
        self._key: Any = None
        self._last_key: Any = None  # of the last run
        self._hits = 0  # eager runs of this key, one after another

    def find(self, key: Any = None) -> R | None:
        """Return what replays runs of a key, if there is one; what is outdated is dropped."""
        if self.replayed is None or self._signature is None:
            return None
        if not (self._signature.is_current() and self.replayed.is_valid()):
            self.outdate()
            return None
        if key != self._key:
            return None
        self._last_key = key
        return self.replayed

    def is_due(self, key: Any = None) -> bool:
        """Count a run that nothing replays; return whether it should be captured, as enough like it ran before."""
        self._hits = self._hits + 1 if key == self._last_key else 1
        self._last_key = key
        return self._hits + self._prepares > self.warmup

    def keep(self, replayed: R, signature: Signature, key: Any = None) -> R:
        """Hold what captures itself in its next run, for runs of a key; return it."""
        self.replayed, self._signature, self._key = replayed, signature, key
        return replayed

    def outdate(self) -> None:
        """Drop what was captured because something has changed."""
        self._drop()
        self.warmup = min(2 * self.warmup, MAX_WARMUP)

    def fail(self, reason: str, remedy: str = "") -> None:
        """Capture nothing any more; with a remedy, say so."""
        if self.failure:
            return
        self.failure = reason
        if remedy:
            message = f"{self._what} cannot be captured and replayed, so they run eagerly, which takes longer"
            warnings.warn(CaptureWarning(f"{message}: {reason}; {remedy}"), stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out, of a copy, what was captured of the original."""
        return {"_what": self._what, "_prepares": self._prepares, "failure": self.failure}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.clear()
