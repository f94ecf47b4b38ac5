"""Every error a user can cause, so that one `except gpucnn.GpucnnError` catches them all.

A message says what happened, with the values received, what was expected, and how to fix it.
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
    """The shape of an array, or the geometry of a layer, does not fit."""


class DTypeError(GpucnnError, TypeError):
    """The dtype of an array cannot be used here."""


class DataError(GpucnnError, ValueError):
    """Data or labels are missing, damaged, of an unknown format or out of range."""


class ConfigurationError(GpucnnError, ValueError):
    """An argument, or the order of two calls, is not valid."""


class ArgumentError(ConfigurationError, TypeError):
    """A call has too many arguments, or lacks one."""


class UnknownNameError(ConfigurationError, AttributeError):
    """An attribute or a name in a module does not exist."""


class CheckpointError(GpucnnError, ValueError):
    """A saved model or checkpoint cannot be written or read, or does not fit."""


class DataWarning(UserWarning):
    """Data are used as they are, but their scale is probably not what was meant; says what would be."""


class CheckpointWarning(UserWarning):
    """Training continues, but a checkpoint could not be written or read, or the last bits may differ."""


class CaptureWarning(UserWarning):
    """Training continues, but more slowly: its steps cannot be captured and replayed."""


class ThreadWarning(UserWarning):
    """The CPU engine uses fewer threads than requested, because the system did not start more."""


class NumericError(GpucnnError, FloatingPointError):
    """Training produced NaN or infinity: in which `step` (from 1, over all epochs), `layer` and `direction`.

    The path of the layer, and "forward" or "backward", are empty where they are not known.
    """

    def __init__(self, message: str, step: int = 0, layer: str = "", direction: str = "") -> None:
        super().__init__(message)
        self.step, self.layer, self.direction = step, layer, direction


class LayerError(GpucnnError, AssertionError):
    """A custom layer fails checks; `check` is the table of all of them."""

    def __init__(self, message: str, check: Any = None) -> None:
        super().__init__(message)
        self.check = check


class BackendUnavailable(GpucnnError, RuntimeError):
    """A backend was requested by name and is unavailable on this machine."""


class OutOfMemoryError(GpucnnError, MemoryError):
    """A batch does not fit into memory; `layer` is the path of the layer that requested too much.

    `has_advice` is whether the message says at which batch size.
    """

    def __init__(self, message: str, layer: str = "", has_advice: bool = False) -> None:
        super().__init__(message)
        self.layer, self.has_advice = layer, has_advice

    @classmethod
    def at(cls, layer: str, error: MemoryError) -> "OutOfMemoryError":
        """Return the error of a layer; where it arose in a layer inside, that is part of the path."""
        inside = error.layer if isinstance(error, cls) else ""
        return cls(str(error), f"{layer}.{inside}" if inside else layer)
