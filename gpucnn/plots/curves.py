"""Curves over the epochs of one training run, and of several."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from gpucnn.core import checks
from gpucnn.core.text import format_loss, percent, plural
from gpucnn.errors import ConfigurationError
from gpucnn.plots.canvas import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure, save, whole_numbers
from gpucnn.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.95  # of the interval of a mean

Histories = Sequence[History | Mapping[str, Sequence[float]]]


def history(history: History, path: str | Path | None = None, *, test: Mapping[str, float] | None = None) -> "Figure":
    """Draw loss and accuracy by epoch: on the training set, its cumulative mean, and on the validation set.

    Arguments:
        test: what `evaluate` returned after training, drawn as horizontal lines.

    Raises:
        ConfigurationError: the history holds no epoch.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> history = networks.lenet().fit(x, y, epochs=2, verbose=0)
        >>> figure = plots.history(history, path="history.png")
    """
    keys = [key for key in ("loss", "accuracy") if key in history.history] or ["loss"]
    figure = new_figure(5.5 * len(keys), 4.0)
    for place, key in enumerate(keys, start=1):
        axes = figure.add_subplot(1, len(keys), place)
        _draw(axes, history, key, (test or {}).get(key))
        axes.set_title(key.capitalize())
    return save(figure, path)


def loss(history: History, test_loss: float | None = None, *, path: str | Path | None = None) -> "Figure":
    """Draw the loss by epoch, and the final test loss as a horizontal line.

    Raises:
        ConfigurationError: the history holds no epoch.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> history = networks.lenet().fit(x, y, epochs=2, verbose=0)
        >>> figure = plots.loss(history, path="loss.png")
    """
    return _one_curve(history, "loss", test_loss, path, cumulative=False)


def accuracy(history: History, test_accuracy: float | None = None, *, path: str | Path | None = None) -> "Figure":
    """Draw the accuracy by epoch and its cumulative mean, and the final test accuracy as a horizontal line.

    Accuracies are fractions, 0 … 1, drawn in per cent.

    Raises:
        ConfigurationError: the history holds no epoch, or no accuracy.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> history = networks.lenet().fit(x, y, epochs=2, verbose=0)
        >>> figure = plots.accuracy(history, path="accuracy.png")
    """
    return _one_curve(history, "accuracy", test_accuracy, path)


def runs(histories: Histories, key: str = "accuracy", *, path: str | Path | None = None) -> "Figure":
    """Draw one metric of several runs: each run faintly, their mean, and two bands around it.

    The wide band is ± one standard deviation of the runs (n − 1 in the denominator), the narrow one the 95 % confidence
    interval of the mean (Student's t). Both need two runs, and end with the shortest. Runs with values that are not
    finite are drawn but not averaged.

    Raises:
        ConfigurationError: no run, or one without this key.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> histories = [networks.lenet(seed=seed).fit(x, y, epochs=2, verbose=0) for seed in range(2)]
        >>> figure = plots.runs(histories, path="runs.png")
    """
    curves = [_curve(each, key, place) for place, each in enumerate(histories)]
    if not curves:
        raise ConfigurationError("there are no runs to draw; pass a list of histories")
    figure, axes = _new_panel()
    scale, unit = _unit(key)
    whole = [curve for curve in curves if np.isfinite(curve).all()]
    for place, curve in enumerate(curves):
        label = "each run" if place == 0 and (len(curves) > 1 or not whole) else None
        axes.plot(range(1, len(curve) + 1), scale * curve, color=GREY, alpha=0.45, linewidth=0.8, label=label)
    if whole:
        _draw_mean(axes, scale * np.stack([curve[: min(map(len, whole))] for curve in whole]))
    title = plural(len(curves), "run")
    if len(whole) < len(curves):
        title += f", mean of the {len(whole)} whose values are finite" if whole else "; none has only finite values"
    axes.set_title(title)
    _finish(axes, f"{key.replace('_', ' ')}{unit}")
    return save(figure, path)


def observations(observations: Sequence[Mapping[str, Any]], *, path: str | Path | None = None) -> "Figure":
    """Draw a `TrainingMonitor`'s checks by step: accuracy, the most-predicted class, and dead units.

    Arguments:
        observations: a `TrainingMonitor`'s `observations`.

    Raises:
        ConfigurationError: there is no observation.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.callbacks.defects import TrainingMonitor
        >>> monitor = TrainingMonitor((x, y), every=1)
        >>> history = networks.lenet().fit(x, y, epochs=2, callbacks=[monitor], verbose=0)
        >>> figure = plots.observations(monitor.observations, path="diagnostics.png")
    """
    if not observations:
        raise ConfigurationError("there are no observations to draw; a TrainingMonitor makes one every few steps")
    figure, axes = _new_panel()
    curves = [
        ("accuracy on the monitoring subset", BLUE, "o-", [each["accuracy"] for each in observations]),
        ("most-predicted class (% of predictions)", ORANGE, "s--", [each["one_class"] for each in observations]),
    ]
    if any(each["dead"] for each in observations):
        dead = [max(each["dead"].values(), default=0.0) for each in observations]
        curves.append(("dead units in the worst layer", VERMILLION, "^:", dead))
    steps = [each["step"] for each in observations]
    for label, colour, style, fractions in curves:
        axes.plot(steps, [100 * value for value in fractions], style, color=colour, label=label, markersize=3)
    axes.set_ylim(-3, 103)
    axes.set_title("Training diagnostics")
    _finish(axes, "%")
    axes.set_xlabel("step")
    return save(figure, path)


def _new_panel() -> "tuple[Figure, Any]":
    figure = new_figure(6.5, 4.2)
    return figure, figure.add_subplot()


def _one_curve(
    history: History, key: str, test: float | None, path: str | Path | None, cumulative: bool = True
) -> "Figure":
    """Draw one metric in a figure of its own."""
    figure, axes = _new_panel()
    _draw(axes, history, key, test, cumulative)
    axes.set_title(key.capitalize())
    return save(figure, path)


def _draw_mean(axes: Any, curves: Any) -> None:
    """Draw the mean of curves (runs, epochs), their standard deviation and the confidence interval of the mean."""
    count, epochs = len(curves), range(1, curves.shape[1] + 1)
    mean = curves.mean(axis=0)
    if count > 1:
        std = curves.std(axis=0, ddof=1)
        half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * std / math.sqrt(count)
        for width, alpha, label in (
            (std, 0.18, "± 1 standard deviation of the runs"),
            (half, 0.35, f"{100 * CONFIDENCE:.0f} % confidence interval of the mean"),
        ):
            axes.fill_between(epochs, mean - width, mean + width, color=BLUE, alpha=alpha, linewidth=0, label=label)
    axes.plot(epochs, mean, "o-", color=BLUE, markersize=3, label="mean" if count > 1 else "the only run")


def _curve(history: History | Mapping[str, Sequence[float]], key: str, place: int) -> Any:
    values = history.history if isinstance(history, History) else history
    if not values.get(key):
        raise ConfigurationError(f"run {place} has no {key!r} to draw; it has {', '.join(sorted(values)) or 'nothing'}")
    return np.asarray(values[key], float)


def _draw(axes: Any, history: History, key: str, test: float | None, cumulative: bool = True) -> None:
    """Draw one metric by epoch, and on the test set after the last."""
    if test is not None:
        test = checks.number(test, f"the test {key}")
    if not history.epochs:
        raise ConfigurationError("the history holds no epoch to draw; fit the model first")
    if key not in history.history:
        raise ConfigurationError(
            f"the history holds no {key!r} to draw, only {', '.join(sorted(history.history))}; compile the model with "
            f"metrics=[{key!r}]"
        )
    scale, unit = _unit(key)
    curves = [(key, "train", BLUE, "o-"), (f"val_{key}", "validation", VERMILLION, "s-")]
    if cumulative:
        curves.insert(1, (f"cumulative_{key}", "train (cumulative mean)", GREY, "--"))
    for name, label, colour, style in curves:
        if name in history.history:
            values = [scale * value for value in history.history[name]]
            axes.plot(range(1, len(values) + 1), values, style, color=colour, label=label, markersize=4)
    if test is not None:
        text = percent(test) if unit else format_loss(test)
        axes.axhline(scale * test, color=GREEN, linestyle="-.", label=f"test, after the last epoch: {text}")
    _finish(axes, f"{key}{unit}")


def _finish(axes: Any, label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    whole_numbers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _unit(key: str) -> tuple[float, str]:
    """Return the factor and the unit of a metric: accuracies are fractions, shown in per cent."""
    return (100.0, " (%)") if "accuracy" in key else (1.0, " (s)" if "seconds" in key else "")
