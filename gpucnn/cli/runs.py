"""`gpucnn runs`: train a recipe many times; mean, standard deviation and failed runs."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gpucnn.backends import Backend, get_backend
from gpucnn.callbacks.snapshots import Snapshots
from gpucnn.cli.common import console, say, working
from gpucnn.cli.options import BackendName, Dtype, Epochs
from gpucnn.core import checks
from gpucnn.core.console import Part, narrow_table
from gpucnn.core.files import FolderLock, explained, make_folder, remove_partial, user_path, write_into
from gpucnn.core.text import duration
from gpucnn.data.batches import check_epochs
from gpucnn.datasets import Dataset
from gpucnn.errors import ConfigurationError
from gpucnn.runs import reproduction
from gpucnn.runs.folder import CONFIG, HISTORY, MODEL, RUNS, STATISTICS
from gpucnn.runs.statistics import TOTAL_TIME, Record, Runs
from gpucnn.saving.model_file import to_bytes
from gpucnn.training.checkpoints import Checkpoints

ON_DEFECT = ("flag", "stop", "restart")


def runs(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(reproduction.REPRODUCTIONS)}.")],
    count: Annotated[int, typer.Option("--runs", min=1, help="Number of runs (seeds 0, 1, 2, …).")] = 5,
    backend: BackendName = "auto",
    epochs: Epochs = None,
    dtype: Dtype = "float32",
    on_defect: Annotated[
        str, typer.Option(help="flag: continue; stop: end the run; restart: try another seed.")
    ] = "flag",
    include_defects: Annotated[bool, typer.Option(help="Include failed runs in the statistics.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder. Default: runs/NAME-statistics.")
    ] = None,
) -> None:
    """Train a recipe many times; existing runs are kept, so it can be interrupted and continued."""
    entry = reproduction.by_name(name)
    folder = user_path(output) if output else RUNS / f"{entry.network}-statistics"
    with being_written(folder):
        done = make_runs(entry.network, count, folder, backend=backend, epochs=epochs, dtype=dtype, on_defect=on_defect)
        averages = done.write_text(include_defects)
    console.print(done.text(include_defects), soft_wrap=True)
    say(f"runs are in {done.path}, statistics are in {averages}")


def being_written(folder: Path) -> FolderLock:
    """Create a folder of runs if need be, and return its lock.

    Raises:
        ConfigurationError: it cannot be created.
    """
    with explained(folder, ConfigurationError):
        make_folder(folder)
    return FolderLock(folder)


def make_runs(
    name: str,
    count: int,
    folder: Path,
    *,
    backend: str = "auto",
    epochs: float | None = None,
    dtype: str = "float32",
    on_defect: str = "flag",
    data: Dataset | None = None,
) -> Runs:
    """Run the missing seeds of a recipe in an existing, locked folder; the model of seed 0 is saved.

    Raises:
        ConfigurationError: `on_defect` is not a known word.
        CheckpointError: the folder contains runs with other settings.
    """
    checks.one_of(on_defect, "--on-defect", ON_DEFECT)
    chosen = get_backend(backend)
    settings = {
        "recipe": name,
        "backend": chosen.name,
        "epochs": None if epochs is None else check_epochs(epochs),
        "dtype": dtype,
        "on_defect": on_defect,
    }
    done, long = Runs(folder / STATISTICS, settings), reproduction.by_name(name).long
    missing = done.missing_seeds(count)
    if len(missing) < count:
        say(f"{count - len(missing)} of {count} runs are already in {done.path}")
    if missing and long:
        say("  validated on the test set after each epoch, as published")
    loaded = reproduction.load_dataset(name) if missing and data is None else data

    def run(seed: int) -> Record:
        assert loaded is not None
        status = working(f"{name}, seed {seed}: {missing.index(seed) + 1} of {len(missing)}")
        return _run(settings, seed, loaded, folder, chosen, nullcontext() if long else status)

    remove_partial(folder)
    done.run_missing(count, run)
    for record in done.records:
        _checkpoints(folder, record["seed"]).clear()  # its record is saved by now; the best model of a long run stays
    return done


def _checkpoints(folder: Path, seed: int) -> Checkpoints:
    return Checkpoints(folder / f"seed-{seed}")


def _run(
    settings: dict[str, Any],
    seed: int,
    data: Dataset,
    folder: Path,
    backend: Backend,
    status: AbstractContextManager[Any],
) -> Record:
    """Train and test a recipe with a seed, print the results, and return them; the model of seed 0 is saved."""
    name, on_defect, long = settings["recipe"], settings["on_defect"], reproduction.by_name(settings["recipe"]).long
    options: dict[str, Any] = {"backend": backend, "epochs": settings["epochs"], "dtype": settings["dtype"]}
    options |= {"callbacks": [Snapshots(folder)] if seed == 0 else [], "verbose": "auto" if long else 0}
    if long and on_defect != "restart":
        options["checkpoints"] = _checkpoints(folder, seed)
    with status:
        if on_defect == "restart":
            model, history, record = reproduction.run_with_restarts(name, seed, data, **options)
        else:
            model, history, record = reproduction.run(name, seed, data, on_defect=on_defect, **options)
    say(*_summary_line(seed, record))
    if long:
        say(_milestones(record))
    if seed == 0:
        described = json.dumps(settings | {"seed": seed, "data": data.name, "validate_on_test": long}) + "\n"
        with explained(folder / MODEL):
            write_into(folder, MODEL, to_bytes(model))
            write_into(folder, HISTORY, history.to_bytes())
            write_into(folder, CONFIG, described.encode())
    return record


def _summary_line(seed: int, record: Record) -> list[Part]:
    """Return a run's results as the parts of a line."""
    from gpucnn.plots.canvas import evenly_spaced

    numbers, defect = record["numbers"], record["defect"]
    accuracies = numbers["training accuracy"]
    epochs = " → ".join(f"{100 * accuracies[epoch]:.2f}" for epoch in evenly_spaced(len(accuracies), 5))
    restarts = f", after {len(record['restarts'])} restarts" if record.get("restarts") else ""
    parts: list[Part] = [f"seed {seed}: {epochs} %, test ", (f"{100 * numbers['test accuracy']:.2f} %", "bold")]
    parts.append(f", {numbers[TOTAL_TIME]:.1f} s{restarts}")
    return parts + ([(f"  {defect['kind']}", "red"), f": {defect['detail']}"] if defect else [])


def _milestones(record: Record) -> str:
    """Return when a long run reached which test accuracies."""
    numbers = record["numbers"]
    reached = [
        f"{level:.0%} after {duration(numbers[f'time to {level:.0%} (s)'])}"
        for level in reproduction.MILESTONES
        if f"time to {level:.0%} (s)" in numbers
    ]
    return f"  test accuracy reached {', '.join(reached)}" if reached else "  no accuracy milestone was reached"


def table(title: str, headings: list[str], caption: str | None = None) -> Table:
    """Return an empty table whose first column is left-aligned, the others right."""
    result = narrow_table(title, caption)
    for place, heading in enumerate(headings):
        result.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    return result
