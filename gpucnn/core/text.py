"""Text for people: names are data, whatever stands in them, and an output may be of any encoding, or none at all.

A class's name, a folder's, a server's answer: what comes from outside may hold control characters, escape sequences,
marks that turn the direction of writing, or bytes that are not UTF-8. `printable` shows those escaped. What an output
cannot encode is replaced by what people write in its place, an arrow by "->", or else escaped as well.
"""

import codecs
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
