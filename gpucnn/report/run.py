"""The content of a run folder, for its report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucnn.backends import Backend
from gpucnn.callbacks.defects import DEFECTS, is_report, load_report
from gpucnn.callbacks.snapshots import SNAPSHOTS, Epochs, load_snapshots
from gpucnn.core.checks import is_number
from gpucnn.model import Model
from gpucnn.runs.folder import HISTORY, MODEL, STATISTICS, open_model, read_history, run_config
from gpucnn.runs.statistics import Runs
from gpucnn.training.history import History


@dataclass(frozen=True)
class Run:
    """A model and the files of its training run; None for those that do not exist.

    `watch` is what `TrainingMonitor.report` returned; `runs` are those of `gpucnn runs`.
    """

    model: Model
    path: Path
    settings: dict[str, Any]
    history: History | None
    snapshots: Epochs | None
    watch: dict[str, Any] | None
    runs: Runs | None

    @property
    def name(self) -> str:
        """The name of the run's folder, or of the model's file outside of one."""
        return self.path.absolute().parent.name if self.path.name == MODEL else self.path.name

    @property
    def test_scores(self) -> dict[str, float]:
        """The test scores after training; empty if they were not recorded."""
        test = self.settings.get("test")
        if not isinstance(test, dict):
            numbers = (_record_of(self.runs, self.settings.get("seed")) or {}).get("numbers", {})
            test = {name: numbers.get(f"test {name}") for name in ("accuracy", "loss")}
        return {name: float(value) for name, value in test.items() if is_number(value)}


def open_run(where: str | Path | None, backend: str | Backend) -> Run:
    """Read a run's folder, a model's file, or (None) the newest run below `runs`.

    Raises:
        CheckpointError: there is no model, or something is there but damaged.
    """
    model, path = open_model(where, backend)
    folder, settings = path.parent, run_config(path)
    runs = Runs.read(folder / STATISTICS) if (folder / STATISTICS).exists() else None
    record = _record_of(runs, settings.get("seed"))
    return Run(
        model=model,
        path=path,
        settings=settings,
        history=read_history(path) if (folder / HISTORY).exists() else None,
        snapshots=load_snapshots(folder) if (folder / SNAPSHOTS).exists() else None,
        watch=load_report(folder) if (folder / DEFECTS).exists() else (record if is_report(record) else None),
        runs=runs,
    )


def _record_of(runs: Runs | None, seed: Any) -> dict[str, Any] | None:
    """Return the record of the run whose model was saved, by its seed."""
    return next((record for record in runs.records if record["seed"] == seed), None) if runs else None
