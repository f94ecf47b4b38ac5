"""Text for people: how numbers are formatted, what may be printed, and an output of any encoding, or none at all.

A class's name, a folder's, a server's answer: what comes from outside may hold control characters, escape sequences,
marks that turn the direction of writing, or bytes that are not UTF-8. `printable` shows those escaped. What an output
cannot encode is replaced by what people write in its place, an arrow by "->", or else escaped as well.
"""

import codecs
import math
import re
import sys
from typing import Any

from gpucnn.errors import GpucnnError

REPLACING = "gpucnn.replacing"  # the name under which codecs know how characters are replaced
_REPLACED = {
    "→": "->", "←": "<-", "…": "...", "×": "x", "±": "+/-", "−": "-", "–": "-", "·": ".", "∂": "d", "Δ": "d", "█": "#",
    "─": "-", "━": "-", "╸": "-", "╺": "-", "’": "'",
}  # fmt: skip

# Unicode's control characters and line ends, the marks of bidirectional text, and surrogates, which stand for bytes
# that are not UTF-8 (PEP 383)
_LINES, _OTHERS = r"\n\t", r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_HIDDEN, _HIDDEN_BUT_LINES = re.compile(f"[{_LINES}{_OTHERS}]"), re.compile(f"[{_OTHERS}]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text with everything escaped that a terminal would obey and not show: `\x1b`, `\u202e`, `\xe9`.

    Arguments:
        lines: leave line ends and tabs as they are: for sentences of several lines, not for names.
    """
    return (_HIDDEN_BUT_LINES if lines else _HIDDEN).sub(lambda found: _escaped(found[0]), text)


def for_output(text: str) -> str:
    """Return a text of one or more lines as standard output can show it: printable, and in its encoding."""
    return _encodable(printable(text, lines=True), _encoding(sys.stdout))


# --- numbers ------------------------------------------------------------------------------------


def format_count(number: int) -> str:
    """Return an integer with thousands separators: 61,706."""
    return f"{number:,}"


def short_count(number: int) -> str:
    """Return a count, in thousands or millions where it is large: 650, 131k, 6.6M."""
    if number < 10_000:
        return format_count(number)
    return f"{number / 1000:.0f}k" if number < 1e6 else f"{number / 1e6:.1f}M"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: 1 check, 2 checks, no checks."""
    return f"{format_count(number) if number else 'no'} {noun if number == 1 else nouns or noun + 's'}"


def percent(fraction: float, digits: int = 2) -> str:
    """Return a fraction 0 … 1 in per cent; less than 1 is never rounded up to 100 %, nor more than 0 down to 0 %."""
    if not math.isfinite(fraction):
        return f"{fraction} %"
    text = f"{100 * fraction:.{digits}f}"
    minimum = 10.0**-digits
    if fraction < 1 and float(text) >= 100:
        return f"> {100 - minimum:.{digits}f} %"
    return f"< {minimum:.{digits}f} %" if fraction > 0 and float(text) <= 0 else f"{text} %"


def significant(number: float, digits: int = 3) -> str:
    """Return a number rounded to a number of digits, in plain notation where people write it so: 1,230, 0.0249."""
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    number = float(f"{number:.{digits - 1}e}")
    order = math.floor(math.log10(abs(number)))
    text = f"{number:,.{max(0, digits - 1 - order)}f}" if -5 < order < 7 else f"{number:.{digits - 1}e}"
    return text.replace("-", "−")


def format_decimals(number: float) -> str:
    """Return a number with fewer decimals the larger it is: 0.25, 2.5, 250."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def format_loss(value: float) -> str:
    """Return a loss as the command line prints it: 0.0249."""
    return f"{value:.4f}" if abs(value) < 1e4 else significant(value)


def format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape: 28 × 28 × 1."""
    return " × ".join(map(str, shape))


def format_epoch(epoch: int, epochs: float) -> str:
    """Return how many epochs are done when an epoch ends, such as `3/10`, or `9.9/9.9` for a partial last one."""
    return f"{min(epoch + 1, epochs):g}/{epochs:g}"


def format_metrics(logs: dict[str, float]) -> str:
    """Return an epoch's metrics on one line: accuracies in per cent, losses with four decimals."""
    parts = []
    for key, value in logs.items():
        if key.startswith("cumulative_") or "seconds" in key or key == "learning_rate":
            continue
        text = f"{100 * value:.2f} %" if key.endswith("accuracy") else f"{value:.4f}"
        parts.append(f"{key.replace('val_', 'validation ')} {text}")
    return ", ".join(parts)


def format_two_lines(logs: dict[str, float]) -> str:
    """Return an epoch's metrics with those of the validation, if there are any, on a second line."""
    train = format_metrics({key: value for key, value in logs.items() if not key.startswith("val_")})
    validation = format_metrics({key[len("val_") :]: value for key, value in logs.items() if key.startswith("val_")})
    return f"{train}\nvalidation {validation}" if validation else train


def clock(seconds: float) -> str:
    """Return a time as a clock shows it: 0:07, 12:30, 2:06:40."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def duration(seconds: float) -> str:
    """Return a time with its unit: 2.1 ms, 35.4 s, 31 min, 2 h 6 min."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# --- output -------------------------------------------------------------------------------------


class Output:
    """Standard output, or the standard error, as it is when something is written.

    It may be replaced, be None (a program without a console) or closed, lack `isatty`, `flush` or `encoding` (the
    class that copies what is printed into a file, found in many training scripts), or be of an encoding that lacks
    characters.
    """

    def __init__(self, name: str = "stdout") -> None:
        self._name = name

    @property
    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        stream = getattr(stream, "rich_proxied_file", stream)  # below a live display, which prints through us
        return None if getattr(stream, "closed", False) is True else stream

    @property
    def encoding(self) -> str:
        """The encoding of the stream; UTF-8 where it does not say."""
        return _encoding(self._stream)

    def isatty(self) -> bool:
        """Return whether this is a terminal, as far as the stream says so."""
        try:
            return bool(self._stream.isatty())
        except (AttributeError, OSError, ValueError):  # None, or one that cannot tell
            return False

    def write(self, text: str) -> int:
        """Write a text; where there is no stream, it is dropped."""
        if self._stream is not None:
            self._stream.write(_encodable(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream if it can be."""
        getattr(self._stream, "flush", lambda: None)()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _encoding(stream: Any) -> str:
    found = getattr(stream, "encoding", None)
    try:
        return codecs.lookup(found).name if isinstance(found, str) else "utf-8"
    except LookupError:
        return "utf-8"


def _encodable(text: str, encoding: str) -> str:
    return text.encode(encoding, REPLACING).decode(encoding)


def _escaped(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that could not be decoded
        return f"\\x{number - 0xDC00:02x}"
    return ascii(character)[1:-1]


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_REPLACED.get(one) or _escaped(one) for one in found), error.end


codecs.register_error(REPLACING, _replace)
GpucnnError.for_output = staticmethod(for_output)
