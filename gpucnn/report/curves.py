"""How the training went: curves over the epochs, and their numbers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpucnn import plots
from gpucnn.core.text import duration, format_loss, percent
from gpucnn.plots.svg import inline_svg
from gpucnn.report.overview import Scores
from gpucnn.report.run import Run
from gpucnn.runs.folder import validated_on_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = 4.4, 3.3  # of a curve: its letters can still be read on a telephone
HEADINGS = {
    "accuracy": "accuracy",
    "accuracy_so_far": "so far",
    "val_accuracy": "validation accuracy",
    "loss": "error",
    "val_loss": "validation error",
    "seconds": "time",
}


@dataclass(frozen=True)
class Curve:
    """A picture of curves as SVG, and the words below it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Training:
    """The curves, and the numbers behind them: a row of words for each epoch."""

    curves: list[Curve]
    headings: list[str]
    rows: list[list[str]]


def training(run: Run, scores: Scores) -> Training | str:
    """Return the curves of a training, with its final scores as lines across, or say why there are none."""
    if run.history is None:
        return "There is no history.json beside the model, so its training cannot be drawn."
    held = run.history.history
    if not held.get("loss"):
        return "The history holds no epoch, so there is nothing to draw."
    curves = []
    if held.get("accuracy"):
        figure = plots.accuracy(run.history, scores.accuracy)
        caption = "Accuracy on the training images: of each epoch, and of all samples so far."
        if scores.accuracy is not None:
            caption += " The line across is that on the test images after the last one."
        if validated_on_test(run.settings):
            caption += " What is called validation was on the test images, too."
        curves.append(Curve(drawn(figure, "accuracy", "Accuracy by epoch"), caption))
    figure = plots.error(run.history, scores.loss)
    caption = "Error, that is the mean loss, of each epoch."
    if scores.loss is not None:
        caption += " The line across is the error on the test images after the last one."
    curves.append(Curve(drawn(figure, "error", "Error by epoch"), caption))
    names = [name for name in HEADINGS if name in held]
    rows = [
        [_shown(name, held[name][epoch]) if epoch < len(held[name]) else "" for name in names]
        for epoch in range(run.history.epochs)
    ]
    return Training(curves, [HEADINGS[name] for name in names], rows)


def drawn(figure: "Figure", prefix: str, description: str) -> str:
    """Return a figure of one panel as SVG of the page's own size, without its title, which the page says."""
    figure.set_size_inches(*INCHES)
    for axes in figure.axes:
        axes.set_title("")
    return inline_svg(figure, prefix, f"{description}; the numbers stand below")


def _shown(name: str, value: float) -> str:
    if "accuracy" in name:
        return percent(value)
    return duration(value) if name == "seconds" else format_loss(value)
