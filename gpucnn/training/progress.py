"""What `fit` shows: a bar on a terminal, a plain line an epoch elsewhere."""

import sys
import time
from typing import Any

from gpucnn.metrics import Totals

REFRESH_SECONDS = 0.25  # between two looks at the numbers on the device


def in_words(logs: dict[str, float]) -> str:
    """Return an epoch's numbers as people read them: accuracies in percent, losses with four digits."""
    parts = []
    for key, value in logs.items():
        if key.endswith("so_far") or "seconds" in key or key == "learning_rate":
            continue
        shown = f"{100 * value:.2f} %" if key.endswith("accuracy") else f"{value:.4f}"
        parts.append(f"{key.replace('val_', 'validation ')} {shown}")
    return ", ".join(parts)


def count(epoch: int, epochs: float) -> str:
    """Return how far a training is when an epoch is over, such as `3/10`, or `9.9/9.9` for a last one that is cut."""
    return f"{min(epoch + 1, epochs):g}/{epochs:g}"


class Silent:
    """Shows nothing; also the interface of the others."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def begin_epoch(self, epoch: int, epochs: float, steps: int) -> None:
        """An epoch begins."""

    def step(self, totals: Totals) -> None:
        """A step is done."""

    def end_epoch(self, logs: dict[str, float]) -> None:
        """The epoch and its validation are over."""


class Lines(Silent):
    """One plain line an epoch, for files and pipes."""

    def begin_epoch(self, epoch: int, epochs: float, steps: int) -> None:
        """Remember the numbers of the line's beginning."""
        self.head = f"epoch {count(epoch, epochs)}"

    def end_epoch(self, logs: dict[str, float]) -> None:
        """Print the line."""
        seconds = logs["seconds"] + logs.get("val_seconds", 0.0)
        print(f"{self.head}: {in_words(logs)}, {seconds:.1f} s", flush=True)


class Bar(Silent):
    """A rich bar an epoch, with the numbers so far and the time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[numbers]}"),
            refresh_per_second=1 / REFRESH_SECONDS,
        )

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def begin_epoch(self, epoch: int, epochs: float, steps: int) -> None:
        """Add a bar."""
        self.task = self.progress.add_task("", total=steps, epoch=count(epoch, epochs), numbers="")
        self.looked = time.perf_counter()

    def step(self, totals: Totals) -> None:
        """Move the bar on; look at the device only as often as a person can."""
        now = time.perf_counter()
        if now - self.looked >= REFRESH_SECONDS:
            self.looked = now
            self.progress.update(self.task, numbers=in_words(totals.read()))
        self.progress.advance(self.task)

    def end_epoch(self, logs: dict[str, float]) -> None:
        """Leave the epoch's final numbers beside the full bar."""
        self.progress.update(self.task, numbers=in_words(logs))


def make_progress(verbose: "bool | int | str") -> Silent:
    """Return what to show: a bar on a terminal, lines elsewhere, nothing with `verbose=0`."""
    if not verbose:
        return Silent()
    return Bar() if verbose == "auto" and sys.stdout.isatty() else Lines()
