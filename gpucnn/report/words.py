"""How numbers stand on the page."""

import math


def count(number: int) -> str:
    """Return a whole number with its thousands apart: 61,706."""
    return f"{number:,}"


def percent(share: float, digits: int = 2) -> str:
    """Return a share 0 … 1 in per cent; less than all is never rounded up to all, nor more than nothing to nothing."""
    if not math.isfinite(share):
        return f"{share} %"
    shown = f"{100 * share:.{digits}f}"
    least = 10.0**-digits
    if share < 1 and float(shown) >= 100:
        return f"> {100 - least:.{digits}f} %"
    return f"< {least:.{digits}f} %" if share > 0 and float(shown) <= 0 else f"{shown} %"


def significant(number: float, digits: int = 3) -> str:
    """Return a number rounded to so many digits, without an exponent where people would write none: 1,230, 0.0249."""
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    number = float(f"{number:.{digits - 1}e}")
    order = math.floor(math.log10(abs(number)))
    shown = f"{number:,.{max(0, digits - 1 - order)}f}" if -5 < order < 7 else f"{number:.{digits - 1}e}"
    return shown.replace("-", "−")


def loss(value: float) -> str:
    """Return a loss as the command line prints it: 0.0249."""
    return f"{value:.4f}" if abs(value) < 1e4 else significant(value)


def sides(shape: tuple[int, ...]) -> str:
    """Return a shape: 28 × 28 × 1."""
    return " × ".join(map(str, shape))


def some(number: int, what: str, plural: str = "") -> str:
    """Return a number and what is counted: 1 look, 2 looks, no looks."""
    return f"{count(number) if number else 'no'} {what if number == 1 else plural or what + 's'}"
