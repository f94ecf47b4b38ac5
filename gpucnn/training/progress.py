"""What `fit` shows: a bar on a terminal, a plain line per epoch elsewhere."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpucnn.core.text import Output, clock, format_epoch, format_metrics, format_two_lines
from gpucnn.metrics import RunningMeans

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

    from gpucnn.core.console import PlainConsole

REFRESH_SECONDS = 0.25  # between two reads of the numbers on the device
NARROW = 100  # columns of a terminal, below which the bar is short
TIMES = 7  # characters of an epoch's seconds, so that those of several stand below each other


def time_left(
    earlier: Sequence[float], pace: float, step: int, steps: int, epoch: int, epochs: float
) -> tuple[float, float]:
    """Return the seconds that are left of an epoch's steps, and of the whole run.

    An epoch is assumed to take as long as the earlier ones did on average, with their validation; the first one, as
    long as its steps so far suggest.

    Arguments:
        earlier: the seconds of each epoch so far.
        pace: the seconds per step in this one.
    """
    of_steps = pace * (steps - step)
    size = min(epochs - epoch, 1.0)  # a last epoch may be cut short
    whole = sum(earlier) / len(earlier) if earlier else pace * steps / size
    of_epoch = max(whole * size - pace * step, of_steps)
    return of_steps, of_epoch + whole * (epochs - epoch - size)


class Progress:
    """Shows nothing; also the interface of the others."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def begin_epoch(self, epoch: int, epochs: float, steps: int, done: int = 0, earlier: Sequence[float] = ()) -> None:
        """Begin an epoch, or continue it after `done` steps; `earlier` are the seconds of the epochs before it."""

    def step(self, totals: RunningMeans) -> None:
        """Count a step."""

    def end_epoch(self, logs: dict[str, float]) -> None:
        """End the epoch, after its validation."""


class Lines(Progress):
    """One plain line per epoch, for files, pipes and terminals that cannot redraw a line."""

    def begin_epoch(self, epoch: int, epochs: float, steps: int, done: int = 0, earlier: Sequence[float] = ()) -> None:
        """Keep the beginning of the line."""
        self.head = f"epoch {format_epoch(epoch, epochs)}"

    def end_epoch(self, logs: dict[str, float]) -> None:
        """Print the line."""
        print(f"{self.head}: {format_metrics(logs)}, {_seconds(logs):.1f} s", file=Output(), flush=True)


class Bar(Progress):
    """A bar for the current epoch, with the time left and the metrics so far, below the bars of finished epochs.

    Only one row is redrawn, however many epochs are over: each is printed once, when it ends.
    """

    def __init__(self, console: "PlainConsole") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self.progress = RichProgress(
            TextColumn("epoch {task.fields[epoch]}", markup=False),
            BarColumn(bar_width=8 if console.width < NARROW else 24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[times]}", markup=False, table_column=Column(no_wrap=True)),
            # numbers are never cut off
            TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(overflow="fold")),
            console=console,
            refresh_per_second=1 / REFRESH_SECONDS,
            transient=True,  # finished bars are printed instead
        )
        self.task: TaskID | None = None

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._print()  # an epoch that was interrupted
        self.progress.stop()

    def begin_epoch(self, epoch: int, epochs: float, steps: int, done: int = 0, earlier: Sequence[float] = ()) -> None:
        """Start a bar."""
        named = format_epoch(epoch, epochs).rjust(len(format_epoch(math.ceil(epochs) - 1, epochs)))
        self.task = self.progress.add_task("", total=steps, completed=done, epoch=named, times="", numbers="")
        self.began = self.refreshed = time.perf_counter()
        self.place, self.earlier = (epoch, epochs, steps), earlier
        self.resumed_at = self.done = done

    def step(self, totals: RunningMeans) -> None:
        """Advance the bar; read from the device only a few times per second."""
        self.done += 1
        now = time.perf_counter()
        assert self.task is not None
        if now - self.refreshed >= REFRESH_SECONDS:
            self.refreshed = now
            self.progress.update(self.task, numbers=format_metrics(totals.read()), times=self._left(now))
        self.progress.advance(self.task)

    def _left(self, now: float) -> str:
        """Return the time left of this epoch's steps, and of the run unless this is the only epoch."""
        epoch, epochs, steps = self.place
        pace = (now - self.began) / (self.done - self.resumed_at)
        of_steps, in_all = time_left(self.earlier, pace, self.done, steps, epoch, epochs)
        return f"ETA {clock(of_steps)} / total {clock(in_all)}" if epochs > 1 else f"ETA {clock(of_steps)}"

    def end_epoch(self, logs: dict[str, float]) -> None:
        """Print the full bar with the epoch's final metrics and its time; the next one is drawn below it."""
        assert self.task is not None
        times, numbers = f"{_seconds(logs):.1f} s".rjust(TIMES), format_metrics(logs)
        self.progress.update(self.task, numbers=numbers, times=times)
        console = self.progress.console
        from rich.measure import Measurement

        if Measurement.get(console, console.options.update(max_width=1000), self._row()).maximum > console.width:
            self.progress.update(self.task, numbers=format_two_lines(logs))
        self._print()

    def _row(self) -> "Table":
        """Return the current bar."""
        return self.progress.make_tasks_table([task for task in self.progress.tasks if task.id == self.task])

    def _print(self) -> None:
        """Print the bar above the redrawn area, and remove it from there."""
        if self.task is not None:
            row, ended, self.task = self._row(), self.task, None
            self.progress.remove_task(ended)
            self.progress.console.print(row)


def _seconds(logs: dict[str, float]) -> float:
    """Return the seconds of an epoch with its validation."""
    return logs["seconds"] + logs.get("val_seconds", 0.0)


def make_progress(verbose: "bool | int | str") -> Progress:
    """Return a progress display: a bar on a terminal, lines elsewhere, nothing with `verbose=0`."""
    if not verbose:
        return Progress()
    if verbose == "auto":
        from gpucnn.core.console import PlainConsole  # imported late: rich takes longer than the rest of the package

        if (console := PlainConsole()).redraws:
            return Bar(console)
    return Lines()
