"""Every error a user can cause, so that one `except gpucnn.GpucnnError` catches them all.

A message says what happened with the values received, what was expected, and how to mend it.
Each class also derives from the built-in exception a Python user would have guessed.
"""

from collections.abc import Callable
from typing import Any, ClassVar


class GpucnnError(Exception):
    """Base of every error that this package raises on purpose; its text can be printed on any output."""

    #: makes a message fit for an output; `gpucnn.core.text`, which stands above, puts its `for_output` here
    for_output: ClassVar[Callable[[str], str]] = str

    def __str__(self) -> str:
        return type(self).for_output(super().__str__())


class ShapeError(GpucnnError, ValueError):
    """An array, or a layer's geometry, does not fit what it meets."""


class DTypeError(GpucnnError, TypeError):
    """An array holds a kind of number that cannot be used here."""


class DataError(GpucnnError, ValueError):
    """Data or labels are missing, damaged, foreign or out of range."""


class ConfigurationError(GpucnnError, ValueError):
    """An argument, or the order of two calls, makes no sense."""


class ArgumentError(ConfigurationError, TypeError):
    """A call has an argument too many, or lacks one."""


class UnknownNameError(ConfigurationError, AttributeError):
    """An attribute that does not exist is set, or a name is asked for that a module does not have."""


class CheckpointError(GpucnnError, ValueError):
    """A saved model cannot be written, read, or made to fit."""


class DataWarning(UserWarning):
    """Data are taken as they are, but their scale can hardly be meant: says what was seen, and what would fit."""


class CheckpointWarning(UserWarning):
    """A training goes on, but a checkpoint could not be written or read, or its last bits may differ."""


class CaptureWarning(UserWarning):
    """A training goes on, but more slowly: its steps cannot be recorded and repeated."""


class ThreadWarning(UserWarning):
    """The CPU engine computes on fewer threads than it should, because the system starts no more."""


class NumericError(GpucnnError, FloatingPointError):
    """A training came to NaN or infinity: in which `step` (from 1, over all epochs), `layer` and `direction`.

    The layer, as a path, and "forward" or "backward" are empty where they cannot be told.
    """

    def __init__(self, message: str, step: int = 0, layer: str = "", direction: str = "") -> None:
        super().__init__(message)
        self.step, self.layer, self.direction = step, layer, direction


class LayerError(GpucnnError, AssertionError):
    """A layer of the user's own fails checks; `check` is the table of all of them."""

    def __init__(self, message: str, check: Any = None) -> None:
        super().__init__(message)
        self.check = check


class BackendUnavailable(GpucnnError, RuntimeError):
    """A backend was asked for by name and cannot be had on this machine."""


class OutOfMemoryError(GpucnnError, MemoryError):
    """What a batch needs does not fit the memory; names the layer, as a path, that asked for too much.

    `has_advice` tells whether the message says at which batch.
    """

    def __init__(self, message: str, layer: str = "", has_advice: bool = False) -> None:
        super().__init__(message)
        self.layer, self.has_advice = layer, has_advice

    @classmethod
    def at(cls, layer: str, error: MemoryError) -> "OutOfMemoryError":
        """Return the error as that of a layer; where it is one of a layer inside, the path grows."""
        inside = error.layer if isinstance(error, cls) else ""
        return cls(str(error), f"{layer}.{inside}" if inside else layer)
