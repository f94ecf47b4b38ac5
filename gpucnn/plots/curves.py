"""Curves over the epochs of a training, and of several."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from gpucnn.errors import ConfigurationError
from gpucnn.plots.canvas import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure, save, whole_numbers
from gpucnn.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.95  # of an interval of confidence

Histories = Sequence[History | Mapping[str, Sequence[float]]]


def history(training: History, path: str | Path | None = None, *, test: Mapping[str, float] | None = None) -> "Figure":
    """Draw loss and accuracy of every epoch: training, validation, and over all samples so far.

    Arguments:
        test: what `evaluate` returned after the training, drawn as lines across.

    Raises:
        ConfigurationError: the history holds no epoch.
    """
    keys = [key for key in ("loss", "accuracy") if key in training.history] or ["loss"]
    figure = new_figure(5.5 * len(keys), 4.0)
    for place, key in enumerate(keys, start=1):
        axes = figure.add_subplot(1, len(keys), place)
        _draw(axes, training, key, (test or {}).get(key))
        axes.set_title(key.capitalize())
    return save(figure, path)


def error(training: History, test_error: float | None = None, *, path: str | Path | None = None) -> "Figure":
    """Draw the error (the mean loss) of every epoch, and the test error after the training as a line across.

    Raises:
        ConfigurationError: the history holds no epoch.
    """
    figure = new_figure(6.5, 4.2)
    axes = figure.add_subplot()
    _draw(axes, training, "loss", test_error, so_far=False)
    axes.set_ylabel("error (mean loss)")
    axes.set_title("Error of every epoch")
    return save(figure, path)


def accuracy(training: History, test_accuracy: float | None = None, *, path: str | Path | None = None) -> "Figure":
    """Draw the accuracy an epoch at a time and over all samples so far, and that on the test set as a line across.

    Accuracies are shares, 0 … 1, and drawn in per cent.

    Raises:
        ConfigurationError: the history holds no epoch, or no accuracy.
    """
    figure = new_figure(6.5, 4.2)
    axes = figure.add_subplot()
    _draw(axes, training, "accuracy", test_accuracy)
    axes.set_title("Accuracy")
    return save(figure, path)


def runs(histories: Histories, key: str = "accuracy", *, path: str | Path | None = None) -> "Figure":
    """Draw one number of several runs: each faint, their mean, and bands about it.

    The wide band is ± one standard deviation of the runs (n − 1 in the denominator); the narrow one is the interval
    that holds the true mean with 95 % confidence (Student's t). Both need two runs, and end with the shortest. Runs
    with values that are not finite are drawn but not averaged.

    Raises:
        ConfigurationError: no run, or one without this key.
    """
    curves = [_curve(training, key, place) for place, training in enumerate(histories)]
    if not curves:
        raise ConfigurationError("there are no runs to draw; pass a list of histories")
    figure = new_figure(6.5, 4.2)
    axes = figure.add_subplot()
    scale, unit = _unit(key)
    whole = [curve for curve in curves if np.isfinite(curve).all()]
    for place, curve in enumerate(curves):
        label = "each run" if place == 0 and (len(curves) > 1 or not whole) else None
        axes.plot(range(1, len(curve) + 1), scale * curve, color=GREY, alpha=0.45, linewidth=0.8, label=label)
    if whole:
        _draw_mean(axes, scale * np.stack([curve[: min(map(len, whole))] for curve in whole]))
    words = f"{len(curves)} run{'s' * (len(curves) > 1)}"
    if len(whole) < len(curves):
        words += f", mean of the {len(whole)} whose values are finite" if whole else ", none of finite values alone"
    axes.set_title(words)
    _finish(axes, f"{key.replace('_', ' ')}{unit}")
    return save(figure, path)


def looks(seen: Sequence[Mapping[str, Any]], *, path: str | Path | None = None) -> "Figure":
    """Draw what a `TrainingMonitor` saw: its accuracy, the most predicted class, and the deadest layer, by step.

    Arguments:
        seen: its `looks`.

    Raises:
        ConfigurationError: it never looked.
    """
    if not seen:
        raise ConfigurationError(
            "there are no looks to draw; a TrainingMonitor looks every so many steps of a training"
        )
    figure = new_figure(6.5, 4.2)
    axes = figure.add_subplot()
    curves = [
        ("accuracy on the probe", BLUE, "o-", [look["accuracy"] for look in seen]),
        ("share of the class predicted most", ORANGE, "s--", [look["one_class"] for look in seen]),
    ]
    if any(look["dead"] for look in seen):
        dead = [max(look["dead"].values(), default=0.0) for look in seen]
        curves.append(("share of units that never fire, in the worst layer", VERMILLION, "^:", dead))
    for label, colour, style, shares in curves:
        percent = [100 * share for share in shares]
        axes.plot([look["step"] for look in seen], percent, style, color=colour, label=label, markersize=3)
    axes.set_ylim(-3, 103)
    axes.set_title("What the watch saw")
    _finish(axes, "share (%)")
    axes.set_xlabel("step")
    return save(figure, path)


def _draw_mean(axes: Any, curves: Any) -> None:
    """Draw the mean of curves (runs, epochs), their deviation and the mean's interval of confidence."""
    count, epochs = len(curves), range(1, curves.shape[1] + 1)
    mean = curves.mean(axis=0)
    if count > 1:
        deviation = curves.std(axis=0, ddof=1)
        half = float(stdtrit(count - 1, (1 + SHARE) / 2)) * deviation / math.sqrt(count)
        for width, alpha, label in (
            (deviation, 0.18, "± 1 standard deviation of the runs"),
            (half, 0.35, f"{100 * SHARE:.0f} % interval of the mean"),
        ):
            axes.fill_between(epochs, mean - width, mean + width, color=BLUE, alpha=alpha, linewidth=0, label=label)
    axes.plot(epochs, mean, "o-", color=BLUE, markersize=3, label="mean" if count > 1 else "the one run")


def _curve(training: History | Mapping[str, Sequence[float]], key: str, place: int) -> Any:
    values = training.history if isinstance(training, History) else training
    if not values.get(key):
        raise ConfigurationError(f"run {place} has no {key!r} to draw; it has {', '.join(sorted(values)) or 'nothing'}")
    return np.asarray(values[key], float)


def _draw(axes: Any, training: History, key: str, test: float | None, so_far: bool = True) -> None:
    """Draw one number of a training, as it was at each epoch, and on the test set after the last."""
    if not training.epochs:
        raise ConfigurationError("the history holds no epoch to draw; fit the model first")
    if key not in training.history:
        raise ConfigurationError(
            f"the history holds no {key!r} to draw, only {', '.join(sorted(training.history))}; compile the model with "
            f"metrics=[{key!r}]"
        )
    scale, unit = _unit(key)
    curves = [(key, "training, an epoch at a time", BLUE, "o-"), (f"val_{key}", "validation", VERMILLION, "s-")]
    if so_far:
        curves.insert(1, (f"cumulative_{key}", "training, all samples so far", GREY, "--"))
    for name, label, colour, style in curves:
        if name in training.history:
            values = [scale * value for value in training.history[name]]
            axes.plot(range(1, len(values) + 1), values, style, color=colour, label=label, markersize=4)
    if test is not None:
        shown = f"{100 * test:.2f} %" if unit else f"{test:.4f}"
        axes.axhline(scale * test, color=GREEN, linestyle="-.", label=f"test, after the last epoch: {shown}")
    _finish(axes, f"{key}{unit}")


def _finish(axes: Any, what: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(what)
    whole_numbers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _unit(key: str) -> tuple[float, str]:
    """Return what a number is multiplied by, and its unit: accuracies are shares and are shown in per cent."""
    return (100.0, " (%)") if "accuracy" in key else (1.0, " (s)" if "seconds" in key else "")
