"""Histograms of weights, biases and gradients, to compare a good run with a failed one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpucnn.errors import ConfigurationError
from gpucnn.model import Model
from gpucnn.plots.canvas import BLUE, TILE_FONT_SIZE, VERMILLION, escape_mathtext, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40
GRADIENT = " gradient"  # suffix of the name of a gradient


def parameter_values(model: Model, gradients: bool = True) -> dict[str, Any]:
    """Return host copies of every parameter by its path, and of its gradient by `PATH gradient`.

    Gradients are those of the last step, 0 before the first one.

    Example:
        >>> values = plots.parameter_values(networks.lenet(), gradients=False)
        >>> list(values)[0]
        'conv2d.weight'
    """
    values = {}
    for name, parameter in model.parameters().items():
        values[name] = model.backend.to_host(parameter.value).copy()
        if gradients and parameter.grad is not None:
            values[name + GRADIENT] = model.backend.to_host(parameter.grad).copy()
    return values


def histograms(
    values: Mapping[str, Any] | Model,
    other: Mapping[str, Any] | Model | None = None,
    *,
    names: Sequence[str] = ("this run", "the other run"),
    path: str | Path | None = None,
) -> "Figure":
    """Draw a histogram of each array: a row for each layer, a column for weight, bias and gradients.

    A second set is drawn over the first, with the same bins. Panels report the number of values that are not finite.

    Arguments:
        values: arrays by name, such as "conv2d.weight"; or a model, for its parameters and gradients; or the histograms
            of a `TrainingMonitor`, whose values count as uniform within a bin.
        names: the labels of the two sets.

    Raises:
        ConfigurationError: there is nothing to draw.

    Example:
        >>> good, bad = networks.feedforward(), networks.feedforward(seed=1)
        >>> figure = plots.histograms(good, bad, path="histograms.png")
    """
    sets = [
        parameter_values(one) if isinstance(one, Model) else dict(one) for one in (values, other) if one is not None
    ]
    shown = list(dict.fromkeys(name for one in sets for name in one))
    if not shown:
        raise ConfigurationError("there are no values to draw; pass a model, or arrays by name")
    rows = list(dict.fromkeys(_layer(name) for name in shown))
    kinds = list(dict.fromkeys(_kind(name) for name in shown))
    kinds.sort(key=lambda kind: kind.endswith(GRADIENT))
    figure = new_figure(max(4.5, 2.7 * len(kinds)), 1.7 * len(rows) + 0.7)
    for name in shown:
        place = rows.index(_layer(name)) * len(kinds) + kinds.index(_kind(name)) + 1
        axes = figure.add_subplot(len(rows), len(kinds), place)
        notes = _draw(axes, [_binned(one[name]) if name in one else None for one in sets])
        axes.set_title("\n".join([escape_mathtext(name), *notes]), fontsize="small")
    handles, labels = _legend(len(sets), names)
    if len(sets) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="small")
    figure.supylabel("% of the values", fontsize="small")
    return save(figure, path)


def _binned(values: Any) -> "_Binned":
    """Return a set of values as they are, or as counts per bin."""
    if isinstance(values, Mapping):
        counts, edges = np.asarray(values["counts"], float), np.asarray(values["edges"], float)
        if edges[0] == edges[-1]:  # all values are equal
            return _Binned(np.full(int(counts.sum()), edges[0]), None, int(values["not_finite"]))
        return _Binned(edges, np.concatenate([[0.0], counts.cumsum()]), int(values["not_finite"]))
    values = np.asarray(values, float).ravel()
    finite = np.sort(values[np.isfinite(values)])
    return _Binned(finite, None, values.size - finite.size)


class _Binned(NamedTuple):
    """Sorted finite values; or the edges of bins, and the number of values below each edge."""

    places: Any
    below: Any
    not_finite: int

    @property
    def finite(self) -> int:
        return len(self.places) if self.below is None else int(self.below[-1])

    def counts(self, edges: Any) -> Any:
        """Return the number of values between neighbouring edges."""
        if self.below is None:
            return np.histogram(self.places, edges)[0]
        return np.diff(np.interp(edges, self.places, self.below))


def _draw(axes: Any, sets: list[_Binned | None]) -> list[str]:
    """Draw up to two sets with the same bins, the first filled, the second as a line; return notes on odd values."""
    known = [one.places for one in sets if one is not None and one.finite]
    edges = np.histogram_bin_edges(np.concatenate(known), BINS) if known else np.array([0.0, 1.0])
    notes = []
    for one, colour, fill in zip(sets, (BLUE, VERMILLION), (True, False), strict=False):
        if one is None:
            continue
        size = one.finite + one.not_finite
        style = {"alpha": 0.5} if fill else {"linewidth": 1.3}
        axes.stairs(100 * one.counts(edges) / max(size, 1), edges, fill=fill, color=colour, **style)
        if one.not_finite:
            notes.append(f"{one.not_finite:,} of {size:,} not finite")
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=3)
    axes.tick_params(labelsize=TILE_FONT_SIZE)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axes.xaxis.get_offset_text().set_fontsize(TILE_FONT_SIZE)
    return notes


def _legend(count: int, names: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=BLUE, alpha=0.5), Patch(fill=False, edgecolor=VERMILLION)]
    return handles[:count], [escape_mathtext(str(name)) for name in names[:count]]


def _layer(name: str) -> str:
    """Return the layer of `conv2d.weight gradient`."""
    return name.rpartition(".")[0]


def _kind(name: str) -> str:
    """Return the kind of `conv2d.weight gradient`: weight gradient."""
    return name.rpartition(".")[2]
