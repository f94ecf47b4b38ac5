"""How results are told to people: tables, in a terminal, in a notebook and as plain text, and times in words."""

from rich.console import Console
from rich.table import Table


class PrintsAsTable:
    """A result whose `table` is also its text; a dataclass needs `repr=False` to inherit this."""

    def table(self) -> Table:
        """Return the table."""
        raise NotImplementedError

    def __str__(self) -> str:
        console = Console(width=120, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    __repr__ = __str__


def duration(seconds: float) -> str:
    """Return a time as people read it: 2.1 ms, 35.4 s, 31 min, 2 h 6 min."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
