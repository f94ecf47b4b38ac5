"""What prints as a table, in a terminal, in a notebook and as plain text."""

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
