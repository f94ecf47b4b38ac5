"""How results are printed: tables and styled lines, on a terminal, in a notebook and as plain text."""

from typing import IO, Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpucnn.core.text import Output, for_output, printable

WIDTH = 120  # columns of a table where there is no terminal


class PlainConsole(Console):
    """A console that prints text literally: nothing in it is markup, an emoji or a control sequence."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        file = cast(IO[str], Output("stderr" if stderr else "stdout"))
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text as it is printed, that of tables too."""
        return super().render_str(printable(text, lines=True), **options)

    @property
    def redraws(self) -> bool:
        """Whether what was printed can be drawn over: on a terminal that knows how, and not in a file or a notebook."""
        return bool(self.file.isatty() and self.is_terminal and self.is_interactive and not self.is_dumb_terminal)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, as `print` does where the output is no longer read."""
        raise


Part = str | tuple[str, str]  # of a line: text, or text and its style


def styled(*parts: Part) -> Text:
    """Return a text of parts, each plain or with a style; markup and control characters in them are data."""
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
