"""Metrics, summed on the device and read to the host only when they are reported."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpucnn.backends import Array, Backend
from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.data.arrays import chunks, is_zero_one
from gpucnn.errors import ConfigurationError

if TYPE_CHECKING:
    from gpucnn.losses import Loss

#: keys of the history that are not metrics; less of each is better
OTHER_KEYS = ("loss", "learning_rate", "seconds", "seconds_per_step")
MODES = ("auto", "min", "max")


class Metric(Configurable, family="metric"):
    """Base of every metric; `name` is its key in the history.

    Example
        >>> class Confidence(metrics.Metric):
        ...     name, larger_is_better = "confidence", True
        ...     def batch_sum(self, y, labels):
        ...         return y.max(axis=-1).sum()
        >>> float(Confidence().batch_sum(np.array([[0.5, 0.5], [1.0, 0.0]]), None))
        1.5
    """

    name = ""
    #: whether larger numbers are better ones, which early stopping and the choice of the best model go by
    larger_is_better: bool | None = None

    def batch_sum(self, y: Array, labels: Array) -> Array:
        """Return the sum of the metric over the samples of a batch, on the device."""
        raise NotImplementedError(
            f"{type(self).__name__} has no batch_sum(self, y, labels), which returns the sum over a batch"
        )

    def suited(self, loss: "Loss", output_shape: tuple[int, ...], labels: Sequence[Any]) -> "Metric":
        """Return the metric in the form for data sets with these labels, checked and on the host, before any step.

        Raises:
            ConfigurationError: it means nothing for them.
        """
        return self


class Accuracy(Metric):
    """The fraction of correct predictions, in the form that outputs and labels call for.

    Shapes
        y       (N, K), or (N, H, W, K) for each position; probabilities or logits
        labels  class indices (N,) or (N, H, W), one-hot rows in the shape of y, or 0 and 1 in the shape of y

    Classes are right where the largest output is the label's. Where the labels are 0 and 1 but not one-hot, as for one
    output (N, 1) or several tags a sample (N, K), each element counts for itself: above the threshold 0.5 (0 for the
    logits of a loss that says `from_logits`) it stands for 1. Several positions or elements of a sample are averaged.
    The form is chosen by the first data; a regression has none and is refused.

    Example
        >>> y = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> int(metrics.Accuracy().batch_sum(y, np.array([0, 1, 1])))  # correct answers
        2
    """

    name = "accuracy"
    larger_is_better = True
    _threshold: float | None = None  # None: classes

    def batch_sum(self, y: Array, labels: Array) -> Array:
        """Return the number of right answers in the batch, of samples with several the mean."""
        if self._threshold is None:
            classes = labels.argmax(axis=-1) if labels.ndim == y.ndim else labels
            right = y.argmax(axis=-1) == classes
        else:
            right = (y > self._threshold) == (labels > 0.5)
        total = right.astype("int64").sum()  # CuPy sums numbers at once, but compiles for seconds to sum booleans
        return total if right.ndim == 1 else total * (len(y) / right.size)

    def suited(self, loss: "Loss", output_shape: tuple[int, ...], labels: Sequence[Any]) -> "Metric":
        """Return the accuracy of classes, or of single elements; that of elements stays, once chosen."""
        elements = all(each.shape[1:] == output_shape and is_zero_one(each) for each in labels)
        if elements and self._threshold is not None:
            return self
        chosen = copy.copy(self)
        if loss.expects_classes or all(_are_classes(each, output_shape) for each in labels):
            chosen._threshold = None
        elif elements:
            chosen._threshold = 0.0 if getattr(loss, "from_logits", False) else 0.5
        else:
            outputs = ", ".join(["N", *map(str, output_shape)])
            raise ConfigurationError(
                f"accuracy means nothing for outputs ({outputs}) and targets that are neither classes nor 0 and 1, as "
                "in a regression; leave it out: compile(…, metrics=[])"
            )
        return chosen


def _are_classes(labels: Any, output_shape: tuple[int, ...]) -> bool:
    """Return whether labels are class indices, or one-hot rows."""
    K = output_shape[-1]
    if K == 1:
        return False
    if labels.shape[1:] == output_shape[:-1]:
        return labels.dtype.kind in "iu" and bool(labels.min() >= 0 and labels.max() < K)
    return all(bool(((part == 0) | (part == 1)).all() and (part.sum(axis=-1) == 1).all()) for part in chunks(labels))


def chosen_metrics(metrics: Any) -> list[Metric]:
    """Return metrics by themselves or by their names.

    Raises:
        ConfigurationError: not a list, something that is not a metric, or names that the history cannot hold.
    """
    if metrics is None:
        return []
    chosen: list[Metric] = []
    for metric in checks.listed(metrics, "metrics"):
        method = "batch_sum(y, labels) returns the sum over a batch"
        made = Metric.choose(metric, "each of metrics must be a metric", "accuracy", method)
        _check_name(made, [other.name for other in chosen])
        chosen.append(made)
    return chosen


def _check_name(metric: Metric, others: list[str]) -> None:
    name, kind = metric.name, type(metric).__name__
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"the metric {kind} has no name; give its class one, such as name = 'top_3'")
    if name in OTHER_KEYS or name.startswith(("val_", "cumulative_")):
        raise ConfigurationError(
            f"the metric {kind} is named {name!r}, which the history uses itself "
            f"({', '.join(OTHER_KEYS)}, val_…, cumulative_…); give it another name"
        )
    if name in others:
        raise ConfigurationError(f"two metrics are named {name!r}; leave one of them out, or give it another name")


def is_larger_better(monitor: str, metrics: Sequence[Metric], mode: str = "auto") -> bool:
    """Return whether larger numbers of a key of the history are better ones.

    Arguments:
        mode: "min" or "max", or "auto" to ask the metric; losses, times and rates are better the smaller they are.

    Raises:
        ConfigurationError: the metric does not say.
    """
    if checks.one_of(mode, "mode", MODES) != "auto":
        return mode == "max"
    key = monitor.removeprefix("val_").removeprefix("cumulative_")
    metric = next((metric for metric in metrics if metric.name == key), None)
    if metric is None:  # a loss, or a key that there is not
        return False
    if metric.larger_is_better is None:
        raise ConfigurationError(
            f'it is not known whether a larger {monitor!r} is better; pass mode="max" or mode="min", or set '
            f"larger_is_better in {type(metric).__name__}"
        )
    return metric.larger_is_better


class RunningMeans:
    """Means of the loss and the metrics over the samples so far: sums that stay on the device until `read`."""

    def __init__(self, backend: Backend, metrics: list[Metric]) -> None:
        self.backend = backend
        self.metrics = metrics
        self.samples = 0
        xp = backend.xp
        self._sums = {name: xp.zeros((), dtype=xp.float64) for name in ("loss", *(metric.name for metric in metrics))}

    def reset(self) -> None:
        """Start again, with the same arrays."""
        self.samples = 0
        for total in self._sums.values():
            total[...] = 0

    def add(self, loss: Array, y: Array, labels: Array) -> None:
        """Add a batch: its mean loss, its outputs (N, …) and its labels."""
        N = len(y)
        self.samples += N
        self._sums["loss"] += loss * N
        for metric in self.metrics:
            total = metric.batch_sum(y, labels)
            if tuple(getattr(total, "shape", ())) or not (hasattr(total, "shape") or checks.is_number(total)):
                of_shape = f"an array of shape {tuple(total.shape)}" if hasattr(total, "shape") else checks.shown(total)
                raise ConfigurationError(
                    f"the metric {metric.name} returned {of_shape}; its batch_sum(y, labels) must return one number, "
                    "the sum over the samples of the batch, such as right.sum()"
                )
            self._sums[metric.name] += total

    def state(self) -> dict[str, Any]:
        """Return the sums as host arrays, and of how many samples they are."""
        return {
            "samples": self.samples,
            "sums": {name: self.backend.to_host(s).copy() for name, s in self._sums.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned, in the same arrays."""
        self.samples = state["samples"]
        for name, total in self._sums.items():
            total[...] = self.backend.from_host(state["sums"][name])

    def read(self) -> dict[str, float]:
        """Return the mean of each over the samples so far; this waits for the device."""
        if not self.samples:
            return {}
        return {name: float(self.backend.to_host(total)) / self.samples for name, total in self._sums.items()}
