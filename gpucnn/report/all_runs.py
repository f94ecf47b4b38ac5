"""All runs of `gpucnn runs`, one of which the report is about."""

from dataclasses import dataclass
from typing import Any

from gpucnn import plots
from gpucnn.core.checks import is_number
from gpucnn.core.text import duration, format_count, percent, plural, significant
from gpucnn.report.curves import Curve, figure_svg
from gpucnn.report.run import Run
from gpucnn.runs.statistics import TOTAL_TIME, Record, is_time, possible_mean, summary


@dataclass(frozen=True)
class RunRow:
    """A run: its seed, its formatted metrics, and its defect."""

    seed: str
    metrics: list[str]
    defect: str
    is_this: bool


@dataclass(frozen=True)
class AllRuns:
    """A row for each run, and the mean and standard deviation of those without a defect."""

    summary: str
    headings: list[str]
    rows: list[RunRow]
    means: list[str]
    stds: list[str]
    curve: Curve | None


def all_runs(run: Run) -> AllRuns | None:
    """Return the table of all runs; None if the folder holds a single one."""
    if run.runs is None:
        return None
    records, good = run.runs.records, run.runs.successful()
    names = list(dict.fromkeys(name for record in records for name in record["numbers"] if _is_shown(name)))
    names.sort(key=lambda name: (not name.startswith("test"), is_time(name), "accuracy" not in name))
    defective = len(records) - len(good)
    text = f"{plural(len(records), 'run')} of {run.settings.get('recipe', run.model.name)}"
    excluded = f"{format_count(defective)} of them with a defect and excluded from the averages"
    text += f", {excluded}" if defective else ", none with a defect"
    columns = {name: [_last(record["numbers"].get(name)) for record in good] for name in names}
    known = {name: [value for value in values if value is not None] for name, values in columns.items()}
    found = {name: summary(values, possible_mean(name)) for name, values in known.items() if values}
    return AllRuns(
        summary=text + ".",
        headings=[f"{name}, last epoch" if _is_listed(records, name) else name for name in names],
        rows=[_row(record, names, run.settings.get("seed")) for record in records],
        means=[_format(name, found[name].mean) if name in found else "–" for name in names],
        stds=[
            f"± {_format(name, found[name].std)}" if name in found and found[name].count > 1 else "–" for name in names
        ],
        curve=_curve(records),
    )


def _is_shown(name: str) -> bool:
    """Return whether a metric gets a column; of the times, only the total."""
    return "cumulative" not in name and (not is_time(name) or name == TOTAL_TIME)


def _is_listed(records: list[Record], name: str) -> bool:
    return any(isinstance(record["numbers"].get(name), list) for record in records)


def _row(record: Record, names: list[str], this: Any) -> RunRow:
    values = {name: _last(record["numbers"].get(name)) for name in names}
    defect = record.get("defect")
    text = "" if defect is None else f"{defect['kind']}: {defect['detail']}"
    if record.get("restarts"):
        text = f"{text + '; ' if text else ''}after {plural(len(record['restarts']), 'restart')}"
    metrics = ["–" if (value := values[name]) is None else _format(name, value) for name in names]
    return RunRow(str(record["seed"]), metrics, text, record["seed"] == this)


def _last(value: Any) -> float | None:
    """Return a number, or the last of a list with one per epoch."""
    if isinstance(value, list):
        value = value[-1] if value else None
    return float(value) if is_number(value) else None


def _format(name: str, value: float) -> str:
    if "accuracy" in name:
        return percent(value)
    return duration(value) if is_time(name) else significant(value)


def _curve(records: list[Record]) -> Curve | None:
    histories = [record["numbers"].get("training accuracy") for record in records]
    listed = [{"accuracy": values} for values in histories if isinstance(values, list) and values]
    if max((len(one["accuracy"]) for one in listed), default=0) < 2:
        return None  # a single epoch
    caption = f"Training accuracy of {plural(len(listed), 'run')}, with their mean."
    return Curve(figure_svg(plots.runs(listed), "runs", "Training accuracy of all runs by epoch"), caption)
