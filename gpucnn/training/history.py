"""The history of a training: one list a number, one item an epoch."""

import json
from pathlib import Path
from typing import Any

from gpucnn.core.files import explained, user_path, write_whole


class History:
    """What every epoch of a training gave.

    `history["loss"]` and `history["accuracy"]` are of one epoch at a time, `"accuracy_so_far"` of all samples since the
    training began (the early epochs drag it down), `"val_…"` of the validation data after the epoch; `"seconds"` is the
    time of the epoch's steps, `"step_seconds"` of one on average, `"val_seconds"` of its validation.
    """

    def __init__(self, history: dict[str, list[float]] | None = None) -> None:
        self.history: dict[str, list[float]] = history or {}

    @property
    def epochs(self) -> int:
        """The number of epochs that are over."""
        return max((len(values) for values in self.history.values()), default=0)

    def add(self, logs: dict[str, float]) -> None:
        """Add an epoch's numbers."""
        for key, value in logs.items():
            self.history.setdefault(key, []).append(value)

    def seconds_to(self, accuracy: float, key: str = "val_accuracy") -> float | None:
        """Return the seconds until the end of the first epoch whose accuracy was at least this, or None.

        They count the steps of all epochs up to then, and the validations.
        """
        spent = 0.0
        for place, reached in enumerate(self.history.get(key, [])):
            spent += sum(self.history[what][place] for what in ("seconds", "val_seconds") if what in self.history)
            if reached >= accuracy:
                return spent
        return None

    def save(self, path: str | Path) -> None:
        """Write the history as JSON; raises CheckpointError where it cannot be written."""
        with explained(target := user_path(path)):
            write_whole(target, self.content())

    def content(self) -> bytes:
        """Return what `save` writes."""
        return (json.dumps(self.history, indent=1) + "\n").encode()

    def __getitem__(self, key: str) -> list[float]:
        return self.history[key]

    def __repr__(self) -> str:
        last: dict[str, Any] = {key: round(values[-1], 4) for key, values in self.history.items() if values}
        return f"<History of {self.epochs} epochs, the last: {last}>"
