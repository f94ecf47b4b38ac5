"""Metrics: numbers for people. They are summed on the device and read to the host only when somebody looks."""

from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.config import Configurable


class Metric(Configurable, family="metric"):
    """Base of every metric; `name` is its key in the history."""

    name = ""

    def total(self, y: Array, labels: Array) -> Array:
        """Return the sum of the metric over the samples of a batch, on the device."""
        raise NotImplementedError(f"{type(self).__name__} has no total")


class Accuracy(Metric):
    """The share of samples whose largest output is the label's class.

    Shapes
        y       (N, K), probabilities or logits
        labels  (N,) class numbers, or one-hot (N, K)
    """

    name = "accuracy"

    def total(self, y: Array, labels: Array) -> Array:
        """Return the number of right answers in the batch."""
        classes = labels.argmax(axis=1) if labels.ndim == 2 else labels
        right = y.argmax(axis=1) == classes
        return right.astype("int64").sum()  # CuPy sums numbers at once, but compiles for seconds to sum booleans


class Totals:
    """Loss and metrics over the samples so far: sums that stay on the device until `read`."""

    def __init__(self, backend: Backend, metrics: list[Metric]) -> None:
        self.backend = backend
        self.metrics = metrics
        self.samples = 0
        xp = backend.xp
        self._sums = {name: xp.zeros((), dtype=xp.float64) for name in ("loss", *(metric.name for metric in metrics))}

    def reset(self) -> None:
        """Begin anew, with the same arrays."""
        self.samples = 0
        for total in self._sums.values():
            total[...] = 0

    def add(self, loss: Array, y: Array, labels: Array) -> None:
        """Add a batch: its mean loss, its outputs (N, …) and its labels."""
        N = len(y)
        self.samples += N
        self._sums["loss"] += loss * N
        for metric in self.metrics:
            self._sums[metric.name] += metric.total(y, labels)

    def state(self) -> dict[str, Any]:
        """Return the sums as host arrays, and of how many samples they are."""
        return {
            "samples": self.samples,
            "sums": {name: self.backend.to_host(s).copy() for name, s in self._sums.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, in the same arrays."""
        self.samples = state["samples"]
        for name, total in self._sums.items():
            total[...] = self.backend.from_host(state["sums"][name])

    def read(self) -> dict[str, float]:
        """Return the mean of each over the samples so far; this waits for the device."""
        if not self.samples:
            return {}
        return {name: float(self.backend.to_host(total)) / self.samples for name, total in self._sums.items()}
