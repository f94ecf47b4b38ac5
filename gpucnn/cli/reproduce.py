"""`gpucnn reproduce`: networks trained as others describe, beside what they published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gpucnn.cli.common import RUNS, console, say
from gpucnn.cli.runs import being_written, make_runs, table
from gpucnn.core.files import explained, user_path, write_into
from gpucnn.core.text import duration
from gpucnn.errors import ConfigurationError
from gpucnn.runs import reproduction
from gpucnn.runs.reproduction import Reproduction
from gpucnn.runs.statistics import TOTAL_TIME, Runs, summary


@dataclass(frozen=True)
class Outcome:
    """What the runs of one recipe came to, beside what was published."""

    entry: Reproduction
    runs: int
    defects: int
    accuracy: float  # mean of the good runs
    deviation: float
    seconds: float

    @property
    def reached(self) -> bool:
        """Whether the mean is what the recipe must reach."""
        return self.accuracy >= self.entry.required_accuracy

    def _share(self) -> str:
        """Return the accuracy in words, with its deviation where there is one."""
        good = self.runs - self.defects
        spread = f" ± {100 * self.deviation:.2f}" if good > 1 else ""
        return f"{100 * self.accuracy:.2f}{spread} %" if good else "none"

    def cells(self) -> list[str]:
        """Return the line of a table: figures published and ours, and the ratio of the times."""
        published = self.entry.published
        theirs = published.seconds if published else None
        return [
            self.entry.network,
            f"{100 * published.accuracy:.2f} %" if published else "",
            self._share(),
            f"{100 * self.entry.required_accuracy:.1f} %",
            f"{self.runs} ({self.defects})" if self.defects else str(self.runs),
            duration(theirs) if theirs else "",
            duration(self.seconds),
            f"{theirs / self.seconds:,.0f}" if theirs else "",
        ]


HEADINGS = ["recipe", "published", "ours, test", "must reach", "runs", "their time", "ours", "ratio"]
CAPTION = "runs: how many, and in brackets those with a defect; ratio: their time to ours"


def reproduce(
    names: Annotated[list[str] | None, typer.Argument(help='Recipes, or "all": those that take minutes.')] = None,
    runs: Annotated[int, typer.Option(min=1, help="Of each, with the seeds 0, 1, 2 and so on.")] = 1,
    backend: Annotated[str, typer.Option(help="auto, numpy, cupy or cupy:N.")] = "auto",
    epochs: Annotated[float | None, typer.Option(min=0.001, help="Default: the recipe's; 2.5 is possible.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, or float16 on a GPU.")] = "float32",
    show: Annotated[bool, typer.Option("--list", help="Name the recipes and leave.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder. Default: runs/reproduce.")] = None,
) -> None:
    """Train what others published, and print their figure beside ours."""
    if show:
        _list()
        return
    if not names:
        raise ConfigurationError('name a recipe, or "all"; `gpucnn reproduce --list` names them')
    folder = user_path(output) if output else RUNS / "reproduce"
    short = [name for name, entry in reproduction.REPRODUCTIONS.items() if not entry.long]
    chosen = short if names == ["all"] else [reproduction.by_name(name).network for name in names]
    with being_written(folder):
        outcomes = []
        for name in chosen:
            say((name, "bold"))
            with being_written(folder / name):
                made = make_runs(name, runs, folder / name, backend=backend, epochs=epochs, dtype=dtype)
            outcomes.append(outcome(name, made))
        page = folder / "reproduction.md"
        with explained(page):
            write_into(folder, page.name, markdown(outcomes).encode())
    printed = table("published and reproduced", [heading.replace(" ", "\n") for heading in HEADINGS], CAPTION)
    for done in outcomes:
        printed.add_row(*done.cells(), style="" if done.reached else "yellow")
    console.print(printed)
    say(f"every run below {folder}, this table in {page}")


def outcome(name: str, made: Runs) -> Outcome:
    """Return what the runs of a recipe came to; those with a defect count in the number of runs alone."""
    good = made.successful()
    accuracy = summary(r["numbers"]["test accuracy"] for r in good) if good else None
    return Outcome(
        entry=reproduction.by_name(name),
        runs=len(made.records),
        defects=len(made.records) - len(good),
        accuracy=accuracy.mean if accuracy else 0.0,
        deviation=accuracy.deviation if accuracy else 0.0,
        seconds=summary(r["numbers"][TOTAL_TIME] for r in made.records).mean,
    )


def markdown(outcomes: list[Outcome]) -> str:
    """Return the table as Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(done.cells() for done in outcomes)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _list() -> None:
    printed = table("recipes", ["recipe", "published", "must reach", "source"])
    for entry in reproduction.REPRODUCTIONS.values():
        published = entry.published
        printed.add_row(
            entry.network,
            f"{100 * published.accuracy:.2f} %" if published else "",
            f"{100 * entry.required_accuracy:.1f} %",
            published.source if published else "this package",
        )
    console.print(printed)
