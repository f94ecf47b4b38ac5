"""How results are told to people: tables, in a terminal, in a notebook and as plain text, and times in words."""

import math
from typing import IO, Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpucnn.core.text import Output, for_output, printable

WIDTH = 120  # columns, of a table where there is no terminal


class PlainConsole(Console):
    """A console that shows words as they are: nothing in them is markup, an emoji or an order to the terminal."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        file = cast(IO[str], Output("stderr" if stderr else "stdout"))
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return words as they are shown, those of tables too."""
        return super().render_str(printable(text, lines=True), **options)

    @property
    def redraws(self) -> bool:
        """Whether what was printed can be drawn over: on a terminal that knows how, and not in a file or a notebook."""
        return bool(self.file.isatty() and self.is_terminal and self.is_interactive and not self.is_dumb_terminal)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, as `print` does where nobody reads any more."""
        raise


Part = str | tuple[str, str]  # of a line: words, or words and their style


def styled(*parts: Part) -> Text:
    """Return words, each of the parts plain or with a style; what stands in them is data."""
    return Text.assemble(*((printable(p), "") if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts))


def narrow_table(title: str, caption: str | None = None) -> Table:
    """Return an empty table that takes as little room as it can, to fit a terminal of 80 columns."""
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0, show_edge=False)


class PrintsAsTable:
    """A result whose `table` is also its text; a dataclass needs `repr=False` to inherit this."""

    def table(self) -> Table:
        """Return the table."""
        raise NotImplementedError

    def __str__(self) -> str:
        console = PlainConsole(color_system=None)
        if not console.is_terminal:
            console.width = WIDTH
        with console.capture() as capture:
            console.print(self.table())
        return for_output(capture.get())

    __repr__ = __str__


def duration(seconds: float) -> str:
    """Return a time as people read it: 2.1 ms, 35.4 s, 31 min, 2 h 6 min."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
