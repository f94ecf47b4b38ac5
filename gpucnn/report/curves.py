"""Training curves over the epochs, and their numbers."""

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

INCHES = 4.4, 3.3  # of a figure: its labels can still be read on a phone
HEADINGS = {
    "accuracy": "accuracy",
    "cumulative_accuracy": "accuracy (cumulative mean)",
    "val_accuracy": "validation accuracy",
    "loss": "loss",
    "val_loss": "validation loss",
    "seconds": "time",
}


@dataclass(frozen=True)
class Curve:
    """A figure as SVG, and its caption."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Curves:
    """The curves, and their formatted numbers: a row for each epoch."""

    curves: list[Curve]
    headings: list[str]
    rows: list[list[str]]


def curves(run: Run, scores: Scores) -> Curves | str:
    """Return the training curves of a run, with its final test scores as lines, or the reason why there are none."""
    if run.history is None:
        return "There is no history.json next to the model, so there are no training curves."
    held = run.history.history
    if not held.get("loss"):
        return "The history holds no epoch, so there is nothing to draw."
    found = []
    if held.get("accuracy"):
        figure = plots.accuracy(run.history, scores.accuracy)
        caption = "Accuracy on the training images, by epoch, and its cumulative mean."
        if scores.accuracy is not None:
            caption += " Horizontal line: final test accuracy."
        if validated_on_test(run.settings):
            caption += " The validation images are the test images."
        found.append(Curve(figure_svg(figure, "accuracy", "Accuracy by epoch"), caption))
    figure = plots.loss(run.history, scores.loss)
    caption = "Mean loss by epoch."
    if scores.loss is not None:
        caption += " Horizontal line: final test loss."
    found.append(Curve(figure_svg(figure, "loss", "Loss by epoch"), caption))
    names = [name for name in HEADINGS if name in held]
    rows = [
        [_format(name, held[name][epoch]) if epoch < len(held[name]) else "" for name in names]
        for epoch in range(run.history.epochs)
    ]
    return Curves(found, [HEADINGS[name] for name in names], rows)


def figure_svg(figure: "Figure", prefix: str, description: str) -> str:
    """Return a figure of one panel as SVG in the size of the page, without its title, which the page has."""
    figure.set_size_inches(*INCHES)
    for axes in figure.axes:
        axes.set_title("")
    return inline_svg(figure, prefix, f"{description}; the numbers are in the table below")


def _format(name: str, value: float) -> str:
    if "accuracy" in name:
        return percent(value)
    return duration(value) if name == "seconds" else format_loss(value)
