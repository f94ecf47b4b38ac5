"""Statistics of many runs of a recipe, in files that an interrupted series continues."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucnn.callbacks.defects import with_current_names
from gpucnn.core.files import explained, make_folder, read_json, user_path, write_into
from gpucnn.core.text import printable
from gpucnn.errors import CheckpointError, ConfigurationError

FORMAT = 1
HEADINGS = "", "mean", "std", "min", "max", "95 % CI of mean"
Record = dict[str, Any]


MIN_RUNS = 3  # for a confidence interval: with two runs it is too wide to be of use
UNBOUNDED = -math.inf, math.inf
TOTAL_TIME = "total time (s)"  # what a run's record calls its seconds; names of all times end so
FORMER_NAMES = {
    "seconds, a step": "step time (s)",
    "seconds, an epoch": "epoch time (s)",
    "seconds, training": "training time (s)",
    "seconds, testing": "test time (s)",
    "seconds, in all": TOTAL_TIME,
    "test accuracy, several views": "test accuracy (TTA)",
    "training accuracy_so_far": "training cumulative_accuracy",
}


@dataclass(frozen=True)
class Summary:
    """Statistics of several values; `low` and `high` bound the 95 % confidence interval, None for fewer than 3."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    low: float | None
    high: float | None


def summary(values: Iterable[float], possible: tuple[float, float] = UNBOUNDED) -> Summary:
    """Return mean, sample standard deviation, extremes and the 95 % confidence interval of the mean.

    The interval is Student's, for values that are about normal, as those of runs with different seeds are. It is cut
    off at the bounds of the mean, which does not change how often it encloses the true mean.

    Arguments:
        possible: the bounds of the mean, such as 0 and 1 for accuracies.

    Raises:
        ConfigurationError: no values.

    Sources: Student, "The probable error of a mean" (1908); Mandelkern, "Setting confidence intervals for bounded
    parameters" (2002), on cutting them.
    """
    listed = [float(value) for value in values]
    if not listed:
        raise ConfigurationError("there are no values to summarise; complete at least one run")
    count, mean = len(listed), math.fsum(listed) / len(listed)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in listed) / (count - 1)) if count > 1 else 0.0
    low = high = None
    if count >= MIN_RUNS:
        from scipy.special import stdtrit  # the quantile of Student's distribution

        half_width = float(stdtrit(count - 1, 0.975)) * std / math.sqrt(count)
        low, high = max(mean - half_width, possible[0]), min(mean + half_width, possible[1])
    return Summary(count, mean, std, min(listed), max(listed), low, high)


def is_time(name: str) -> bool:
    """Return whether a number of this name is a time in seconds."""
    return name.endswith("(s)")


def possible_mean(name: str) -> tuple[float, float]:
    """Return the bounds of the mean of a number of this name."""
    if "accuracy" in name:
        return 0.0, 1.0
    return (0.0, math.inf) if "loss" in name or is_time(name) else UNBOUNDED


class Runs:
    """The runs of one recipe, in a file that is rewritten atomically after each of them.

    Arguments
        path      of the JSON file; an existing one is read and continued
        settings  common to all runs, as plain data

    Raises
        CheckpointError  the file is damaged, of another format, or of runs with other settings
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = user_path(path), settings
        self.records: list[Record] = self._read() if self.path.exists() else []

    @classmethod
    def read(cls, path: str | Path) -> "Runs":
        """Return the runs in a file, whatever their settings.

        Raises:
            CheckpointError: there is none, or it is damaged or of another format.
        """
        return cls(path, _read(user_path(path))[0])

    def _read(self) -> list[Record]:
        settings, records = _read(self.path)
        other = [key for key in {**settings, **self.settings} if settings.get(key) != self.settings.get(key)]
        if other:
            key = sorted(other)[0]
            raise CheckpointError(
                f"{self.path}: holds runs with {key}={settings.get(key)!r}, these have {self.settings.get(key)!r}; "
                "choose another file for them"
            )
        return records

    def missing_seeds(self, count: int) -> list[int]:
        """Return which of the seeds 0 … count − 1 have no run yet."""
        done = {record["seed"] for record in self.records}
        return [seed for seed in range(count) if seed not in done]

    def add(self, record: Record) -> None:
        """Add a run, and write the file and the text of statistics next to it.

        Raises:
            CheckpointError: they cannot be written.
        """
        self.records = sorted([*self.records, record], key=lambda record: record["seed"])
        held = {"format": FORMAT, "settings": self.settings, "runs": self.records}
        with explained(self.path):
            make_folder(self.path.parent)
            write_into(self.path.parent, self.path.name, (json.dumps(held, indent=1, allow_nan=True) + "\n").encode())
        self.write_text()

    def write_text(self, include_defects: bool = False) -> Path:
        """Write the statistics as text next to the file, and return the path."""
        path = self.path.with_suffix(".txt")
        with explained(path):
            write_into(path.parent, path.name, self.text(include_defects).encode())
        return path

    def run_missing(self, count: int, run: Callable[[int], Record]) -> None:
        """Run the missing seeds of 0 … count − 1, and save each run as soon as it is over."""
        for seed in self.missing_seeds(count):
            self.add({"seed": seed, **run(seed)})

    def successful(self, include_defects: bool = False) -> list[Record]:
        """Return the runs without a defect, or all of them."""
        return [record for record in self.records if include_defects or not record.get("defect")]

    def summaries(self, include_defects: bool = False) -> dict[str, Summary]:
        """Return the statistics of the runs' numbers by name, and by epoch for lists."""
        gathered: dict[str, list[float]] = {}
        for record in self.successful(include_defects):
            for name, value in record["numbers"].items():
                listed = value if isinstance(value, list) else [value]
                for place, number in enumerate(listed, start=1):
                    label = f"{name}, epoch {place}" if isinstance(value, list) else name
                    gathered.setdefault(label, []).append(number)
        return {name: summary(values, possible_mean(name)) for name, values in gathered.items()}

    def text(self, include_defects: bool = False) -> str:
        """Return the statistics as a plain-text table, and the defects of failed runs."""
        good, defective = self.successful(include_defects), [r for r in self.records if r.get("defect")]
        lines = [f"{self.settings.get('recipe', 'runs')}: {len(self.records)} runs, {len(defective)} with a defect"]
        if defective:
            lines[0] += ", included in the statistics" if include_defects else ", excluded from the statistics"
        if good:
            lines += ["", *_columns([HEADINGS, *(_cells(*item) for item in self.summaries(include_defects).items())])]
            if len(good) < MIN_RUNS:
                lines += ["", f"A confidence interval needs {MIN_RUNS} runs."]
        if defective:
            lines += ["", "defects:"]
            lines += [f"  seed {r['seed']}: {r['defect']['kind']}: {r['defect']['detail']}" for r in defective]
        return printable("\n".join(lines) + "\n", lines=True)


def _cells(name: str, numbers: Summary) -> list[str]:
    """Return a row of the table: accuracies in percent, their standard deviation in percentage points."""
    scale, unit, points = (100.0, " %", " pp") if "accuracy" in name else (1.0, "", "")
    digits = 3 if is_time(name) else 4
    cells = [f"{scale * value:.{digits}g}{unit}" for value in (numbers.mean, numbers.minimum, numbers.maximum)]
    cells.insert(1, f"{scale * numbers.std:.3g}{points}" if numbers.count > 1 else "")
    low, high = (None if end is None else f"{scale * end:.{digits}g}" for end in (numbers.low, numbers.high))
    label = name.removeprefix("training ").replace("cumulative_accuracy", "cumulative accuracy")
    return [label, *cells, "" if low is None else f"{low} … {high}{unit}"]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines of text with minimal column widths; the first column is left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return the settings and the records of a file."""
    try:
        held = read_json(path)
        form, settings, records = held["format"], dict(held["settings"]), list(held["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: contains no readable runs ({error}); choose another file, or move this one"
        ) from error
    if form != FORMAT:
        raise CheckpointError(f"{path}: has format {form!r}, expected {FORMAT}; choose another file")
    for place, record in enumerate(records):
        if not _is_record(record):
            raise CheckpointError(
                f"{path}: its run {place} is {record!r:.40}, where a seed and numbers were expected; choose "
                "another file, or move this one"
            )
    return settings, [_with_current_names(record) for record in records]


def _with_current_names(record: Record) -> Record:
    """Return a record with the names that are written now, whenever it was written."""

    def current(name: str) -> str:
        name = re.sub(r"^seconds to (\d+%)$", r"time to \1 (s)", name)
        return FORMER_NAMES.get(name, name)

    numbers = {current(name): value for name, value in record["numbers"].items()}
    return with_current_names(record) | {"numbers": numbers}


def _is_record(record: Any) -> bool:
    """Return whether plain data have the form of a run's record: a seed, numbers by name, and a defect or None."""
    if not isinstance(record, dict) or not isinstance(record.get("seed"), int):
        return False
    numbers, defect = record.get("numbers"), record.get("defect")
    listed = [v if isinstance(v, list) else [v] for v in numbers.values()] if isinstance(numbers, dict) else [[None]]
    return all(isinstance(number, int | float) for values in listed for number in values) and (
        defect is None or (isinstance(defect, dict) and {"kind", "detail"} <= defect.keys())
    )
