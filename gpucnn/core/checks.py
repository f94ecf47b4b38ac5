"""Checks of arguments: integers, numbers, flags and choices, each with one rule and one message for the whole package.

NumPy's numbers are numbers; bools, strings and arrays are not. What is returned is Python's own type, so that a
setting that was checked can be saved, compared and shown.
"""

import os
import sys
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from gpucnn.errors import ConfigurationError

Value = TypeVar("Value")

MAX_PAIR = 1 << 31  # of sizes, strides and padding of an image's sides


def shown(value: Any) -> str:
    """Return a value as messages show it: its repr, or the beginning of a long one."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:79] + "…"


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, of Python or of NumPy; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, of Python or of NumPy; a bool is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def integer(value: Any, name: str, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return an integer within its range, both ends included, as Python's int.

    Raises:
        ConfigurationError: not an integer, or out of range.
    """
    if is_integer(value):
        number = int(value)
        if (minimum is None or number >= minimum) and (maximum is None or number <= maximum):
            return number
    if minimum == 1 and maximum is None:
        wanted = "a positive integer"
    elif minimum is not None and maximum is not None:
        wanted = f"an integer from {minimum} to {maximum}"
    else:
        wanted = "an integer" + ("" if minimum is None else f" of at least {minimum}")
        wanted += "" if maximum is None else f" of at most {maximum}"
    raise ConfigurationError(f"{name} must be {wanted}, not {shown(value)}")


def pair(value: Any, name: str = "a size", minimum: int = 1) -> tuple[int, int]:
    """Return an integer for both sides of an image, or a pair of integers, as a pair.

    Raises:
        ConfigurationError: anything else, or out of range.
    """
    sides = (value, value) if is_integer(value) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(sides) != 2 or not all(is_integer(side) and side >= minimum for side in sides):
        raise ConfigurationError(
            f"{name} must be an integer of at least {minimum} or a pair of them, not {shown(value)}"
        )
    if max(sides) >= MAX_PAIR:
        raise ConfigurationError(f"{name} must be below {MAX_PAIR:,}, not {shown(value)}; no image is as large")
    return int(sides[0]), int(sides[1])


def integer_or_pair(value: Any, name: str, minimum: int = 1) -> int | tuple[int, int]:
    """Return an integer, or a pair of integers, in the form in which it was written; raises as `pair` does."""
    sides = pair(value, name, minimum)
    return sides[0] if is_integer(value) else sides


def number(
    value: Any,
    name: str,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return a finite number within its range, as Python's int or float.

    Arguments:
        minimum, maximum: the ends of the range where they are allowed themselves.
        above, below: the ends where they are not.

    Raises:
        ConfigurationError: not a number, NaN or infinite, or out of range.
    """
    if is_number(value):
        found: float = int(value) if is_integer(value) else float(value)
        if (
            abs(found) <= sys.float_info.max
            and (minimum is None or found >= minimum)
            and (maximum is None or found <= maximum)
            and (above is None or found > above)
            and (below is None or found < below)
        ):
            return found
    ends = [
        f"{word} {end}"
        for word, end in (("at least", minimum), ("above", above), ("at most", maximum), ("below", below))
        if end is not None
    ]
    wanted = f"a number that is {' and '.join(ends)}" if ends else "a finite number"
    raise ConfigurationError(f"{name} must be {wanted}, not {shown(value)}")


def positive(value: Any, name: str) -> float:
    """Return a finite number above 0 as a float; raises as `number` does."""
    return float(number(value, name, above=0))


def flag(value: Any, name: str) -> bool:
    """Return True or False, or raise ConfigurationError: 1, "yes" and a number put in the wrong place are not flags."""
    if isinstance(value, bool) or type(value).__name__ in (
        "bool",
        "bool_",
    ):  # NumPy's own is not a subclass of Python's
        return bool(value)
    raise ConfigurationError(f"{name} must be True or False, not {shown(value)}")


def environment_flag(name: str, default: bool) -> bool:
    """Return what an environment variable switches, 1 or 0; the default where it is not set or empty."""
    value = os.environ.get(name, "").strip()
    if value not in ("", "0", "1"):
        raise ConfigurationError(f"the environment variable {name} must be 1 or 0, not {shown(value)}")
    return value == "1" if value else default


def optional(check: Callable[..., Value], value: Any, *arguments: Any, **options: Any) -> Value | None:
    """Return None as it is, and anything else as a check of this module returns it."""
    return None if value is None else check(value, *arguments, **options)


def listed(values: Any, name: str) -> list[Any] | tuple[Any, ...]:
    """Return a list or tuple, or raise ConfigurationError: a single value needs brackets."""
    if isinstance(values, list | tuple):
        return values
    raise ConfigurationError(f"{name} must be a list, not {values!r}; pass [{values!r}]")


def one_of(value: Any, name: str, choices: Sequence[str]) -> str:
    """Return one of several strings, or raise ConfigurationError that lists them."""
    if isinstance(value, str) and value in choices:
        return value
    raise ConfigurationError(f"{name} must be one of {', '.join(map(repr, choices))}, not {shown(value)}")
