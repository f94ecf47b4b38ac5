"""The history of a training run: a list per number, an item per epoch."""

import json
from pathlib import Path
from typing import Any

from gpucnn.core.files import explained, user_path, write_atomic


def current_key(key: str) -> str:
    """Return the name that a number of the history has now."""
    if key.endswith("_so_far"):
        return f"cumulative_{key.removesuffix('_so_far')}"
    return "seconds_per_step" if key == "step_seconds" else key


class History:
    """The loss, metrics and times of every epoch.

    `history["loss"]` and `history["accuracy"]` are means over one epoch, `"cumulative_accuracy"` over all samples since
    training began, and `"val_…"` is computed on the validation data after the epoch. `"seconds"` is the time of the
    epoch's steps, `"seconds_per_step"` their mean, `"val_seconds"` the time of the validation.
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
            write_atomic(target, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the bytes that `save` writes."""
        return (json.dumps(self.history, indent=1) + "\n").encode()

    def __getitem__(self, key: str) -> list[float]:
        return self.history[key]

    def __repr__(self) -> str:
        last: dict[str, Any] = {key: round(values[-1], 4) for key, values in self.history.items() if values}
        return f"<History of {self.epochs} epochs, the last: {last}>"
