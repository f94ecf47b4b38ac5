"""Curves over the epochs of a training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucnn.errors import ConfigurationError
from gpucnn.training.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# two of Okabe and Ito's colours, which people with any colour vision can tell apart, and a grey
TRAINING, VALIDATION, SO_FAR = "#0072B2", "#D55E00", "#888888"


def history(training: History, path: str | Path | None = None) -> "Figure":
    """Draw loss and accuracy of every epoch: training, validation, and over all samples so far.

    Raises:
        ConfigurationError: the history holds no epoch.
    """
    from matplotlib.figure import Figure  # imported late: it takes longer than the rest of the package

    if not training.epochs:
        raise ConfigurationError("the history holds no epoch to draw; fit the model first")
    keys = [key for key in ("loss", "accuracy") if key in training.history]
    figure = Figure(figsize=(5.5 * len(keys), 4.0), layout="constrained")
    for place, key in enumerate(keys, start=1):
        axes = figure.add_subplot(1, len(keys), place)
        scale = 100.0 if key == "accuracy" else 1.0
        for name, label, colour, style in (
            (key, "training, an epoch at a time", TRAINING, "o-"),
            (f"{key}_so_far", "training, all samples so far", SO_FAR, "--"),
            (f"val_{key}", "validation", VALIDATION, "s-"),
        ):
            if name in training.history:
                values = [scale * value for value in training.history[name]]
                axes.plot(range(1, len(values) + 1), values, style, color=colour, label=label, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy (%)" if key == "accuracy" else "loss")
        axes.set_title(key.capitalize())
        _whole_numbers(axes)
        axes.grid(alpha=0.3)
        axes.legend()
    if path is not None:
        figure.savefig(path)
    return figure


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
