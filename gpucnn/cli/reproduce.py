"""`gpucnn reproduce`: train published networks and compare with the published results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gpucnn.cli.common import console, say
from gpucnn.cli.options import BackendName, Dtype, Epochs
from gpucnn.cli.runs import being_written, make_runs, table
from gpucnn.core.files import explained, user_path, write_into
from gpucnn.core.text import duration
from gpucnn.errors import ConfigurationError
from gpucnn.runs import reproduction
from gpucnn.runs.folder import RUNS
from gpucnn.runs.reproduction import Reproduction
from gpucnn.runs.statistics import TOTAL_TIME, Runs, summary


@dataclass(frozen=True)
class Outcome:
    """The results of all runs of a recipe, next to the published ones."""

    entry: Reproduction
    runs: int
    defects: int
    accuracy: float  # mean of the successful runs
    std: float
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether the mean reaches the target."""
        return self.accuracy >= self.entry.required_accuracy

    def _accuracy(self) -> str:
        """Return the accuracy as text, with its standard deviation if there are several runs."""
        good = self.runs - self.defects
        spread = f" ± {100 * self.std:.2f}" if good > 1 else ""
        return f"{100 * self.accuracy:.2f}{spread} %" if good else "none"

    def cells(self) -> list[str]:
        """Return the cells of a table row."""
        published = self.entry.published
        theirs = published.seconds if published else None
        return [
            self.entry.network,
            f"{100 * published.accuracy:.2f} %" if published else "",
            self._accuracy(),
            f"{100 * self.entry.required_accuracy:.1f} %",
            f"{self.runs} ({self.defects})" if self.defects else str(self.runs),
            duration(theirs) if theirs else "",
            duration(self.seconds),
            f"{theirs / self.seconds:,.0f}" if theirs else "",
        ]


HEADINGS = ["recipe", "published", "gpucnn", "target", "runs", "published time", "gpucnn time", "speed-up"]
CAPTION = "published, gpucnn, target: test accuracy; runs: number of runs (failed)"


def reproduce(
    names: Annotated[list[str] | None, typer.Argument(help='Recipes, or "all" for those that take minutes.')] = None,
    runs: Annotated[int, typer.Option(min=1, help="Number of runs per recipe (seeds 0, 1, 2, …).")] = 1,
    backend: BackendName = "auto",
    epochs: Epochs = None,
    dtype: Dtype = "float32",
    show: Annotated[bool, typer.Option("--list", help="List recipes and exit.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder. Default: runs/reproduce.")
    ] = None,
) -> None:
    """Train published networks, and compare the accuracy and time with the published results."""
    if show:
        _list()
        return
    if not names:
        raise ConfigurationError('pass a recipe, or "all"; `gpucnn reproduce --list` lists them')
    folder = user_path(output) if output else RUNS / "reproduce"
    short = [name for name, entry in reproduction.REPRODUCTIONS.items() if not entry.long]
    chosen = short if names == ["all"] else [reproduction.by_name(name).network for name in names]
    with being_written(folder):
        outcomes = []
        for name in chosen:
            say((name, "bold"))
            with being_written(folder / name):
                completed = make_runs(name, runs, folder / name, backend=backend, epochs=epochs, dtype=dtype)
            outcomes.append(outcome(name, completed))
        page = folder / "reproduction.md"
        with explained(page):
            write_into(folder, page.name, markdown(outcomes).encode())
    printed = table("published and reproduced results", [heading.replace(" ", "\n") for heading in HEADINGS], CAPTION)
    for done in outcomes:
        printed.add_row(*done.cells(), style="" if done.reached else "yellow")
    console.print(printed)
    say(f"runs are in {folder}, this table is in {page}")


def outcome(name: str, completed: Runs) -> Outcome:
    """Return the results of a recipe; failed runs only count in the number of runs."""
    good = completed.successful()
    accuracy = summary(r["numbers"]["test accuracy"] for r in good) if good else None
    return Outcome(
        entry=reproduction.by_name(name),
        runs=len(completed.records),
        defects=len(completed.records) - len(good),
        accuracy=accuracy.mean if accuracy else 0.0,
        std=accuracy.std if accuracy else 0.0,
        seconds=summary(r["numbers"][TOTAL_TIME] for r in completed.records).mean,
    )


def markdown(outcomes: list[Outcome]) -> str:
    """Return the table as Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(done.cells() for done in outcomes)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _list() -> None:
    printed = table("recipes", ["recipe", "published", "target", "source"])
    for entry in reproduction.REPRODUCTIONS.values():
        published = entry.published
        printed.add_row(
            entry.network,
            f"{100 * published.accuracy:.2f} %" if published else "",
            f"{100 * entry.required_accuracy:.1f} %",
            published.source if published else "this package",
        )
    console.print(printed)
