"""`gpucnn runs`: a recipe trained many times, with averages and the runs that went wrong."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gpucnn.backends import get_backend
from gpucnn.callbacks.snapshots import Snapshots
from gpucnn.cli.common import CONFIG, HISTORY, MODEL, RUNS, console, say, working
from gpucnn.core.console import Part, narrow_table
from gpucnn.core.files import FolderLock, explained, make_folder, remove_parts, user_path, write_into
from gpucnn.core.text import duration
from gpucnn.data.batches import check_epochs
from gpucnn.datasets import Dataset
from gpucnn.errors import ConfigurationError
from gpucnn.runs import reproduction
from gpucnn.runs.folder import STATISTICS
from gpucnn.runs.statistics import TOTAL_TIME, Record, Runs
from gpucnn.saving.model_file import to_bytes
from gpucnn.training.checkpoints import Checkpoints

ON_DEFECT = ("flag", "stop", "restart")


def runs(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(reproduction.REPRODUCTIONS)}.")],
    count: Annotated[int, typer.Option("--runs", min=1, help="How many, with the seeds 0, 1, 2 and so on.")] = 5,
    backend: Annotated[str, typer.Option(help="auto, numpy, cupy or cupy:N.")] = "auto",
    epochs: Annotated[float | None, typer.Option(min=0.001, help="Default: the recipe's; 2.5 is possible.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64, or float16 on a GPU.")] = "float32",
    on_defect: Annotated[
        str, typer.Option(help="flag goes on, stop ends the run, restart tries another seed.")
    ] = "flag",
    include_defects: Annotated[bool, typer.Option(help="Count runs with a defect in the averages.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder. Default: runs/NAME-statistics.")
    ] = None,
) -> None:
    """Train a recipe many times; runs that are there already are not made again, so it can be interrupted."""
    entry = reproduction.by_name(name)
    folder = user_path(output) if output else RUNS / f"{entry.network}-statistics"
    with being_written(folder):
        made = make_runs(entry.network, count, folder, backend=backend, epochs=epochs, dtype=dtype, on_defect=on_defect)
        averages = made.write_text(include_defects)
    console.print(made.text(include_defects), soft_wrap=True)
    say(f"every run in {made.path}, averages in {averages}")


def being_written(folder: Path) -> FolderLock:
    """Return the lock of a folder of runs, which is made if it is not there.

    Raises:
        ConfigurationError: it cannot be made.
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
    """Make the runs that are missing in a folder, and say how each came out; the first one's model is kept.

    Nobody else may write into the folder meanwhile, which must be there.

    Raises:
        ConfigurationError: `on_defect` is no word that is known.
        CheckpointError: the folder holds runs with other settings.
    """
    if on_defect not in ON_DEFECT:
        raise ConfigurationError(f"--on-defect must be one of {', '.join(ON_DEFECT)}, not {on_defect!r}")
    chosen = get_backend(backend)
    settings = {
        "recipe": name,
        "backend": chosen.name,
        "epochs": None if epochs is None else check_epochs(epochs),
        "dtype": dtype,
        "on_defect": on_defect,
    }
    made = Runs(folder / STATISTICS, settings)
    missing = made.missing_seeds(count)
    if len(missing) < count:
        say(f"{count - len(missing)} of {count} runs are in {made.path} already")
    if missing and data is None:
        data = reproduction.load_dataset(name)
    if missing and reproduction.by_name(name).long:
        say("  the test images are scored after each epoch, as in what was published")

    def checkpoints_of(seed: int) -> Checkpoints:
        return Checkpoints(folder / f"seed-{seed}")

    def run(seed: int) -> Record:
        assert data is not None
        long = reproduction.by_name(name).long
        options: dict[str, Any] = {
            "backend": chosen,
            "epochs": epochs,
            "dtype": dtype,
            "verbose": "auto" if long else 0,
        }
        if long and on_defect != "restart":
            options["checkpoints"] = checkpoints_of(seed)
        if seed == 0:
            options["callbacks"] = [Snapshots(folder)]
        said = f"{name}, seed {seed}: {missing.index(seed) + 1} of {len(missing)}"
        with nullcontext() if long else working(said):
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

    remove_parts(folder)
    made.run_missing(count, run)
    for record in made.records:
        checkpoints_of(record["seed"]).clear()  # the record is kept by now; the best model of a long run stays
    return made


def _summary_line(seed: int, record: Record) -> list[Part]:
    """Return a run's numbers, in parts of a line."""
    numbers, defect = record["numbers"], record["defect"]
    epochs = " → ".join(f"{100 * share:.2f}" for share in thin_out(numbers["training accuracy"]))
    restarts = f", after {len(record['restarts'])} restarts" if record.get("restarts") else ""
    parts: list[Part] = [f"seed {seed}: {epochs} %, test ", (f"{100 * numbers['test accuracy']:.2f} %", "bold")]
    parts.append(f", {numbers[TOTAL_TIME]:.1f} s{restarts}")
    return parts + ([(f"  {defect['kind']}", "red"), f": {defect['detail']}"] if defect else [])


def _milestones(record: Record) -> str:
    """Return when a long run passed which accuracy."""
    numbers = record["numbers"]
    passed = [
        f"{level:.0%} after {duration(numbers[f'time to {level:.0%} (s)'])}"
        for level in reproduction.MILESTONES
        if f"time to {level:.0%} (s)" in numbers
    ]
    return f"  test accuracy passed {', '.join(passed)}" if passed else "  no test accuracy to speak of was passed"


def thin_out(values: list[float], most: int = 5) -> list[float]:
    """Return a list of which only so many are left, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def table(title: str, headings: list[str], caption: str | None = None) -> Table:
    """Return an empty table whose first column is left-aligned, the others right."""
    made = narrow_table(title, caption)
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    return made
