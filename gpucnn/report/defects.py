"""The checks and findings of a `TrainingMonitor`."""

from dataclasses import dataclass
from typing import Any

from gpucnn import plots
from gpucnn.core.text import format_count, percent, plural
from gpucnn.plots.canvas import evenly_spaced
from gpucnn.report.curves import figure_svg
from gpucnn.report.run import Run

MAX_ROWS = 12  # of the table of checks
BOX = 100, 40  # of a histogram, in SVG units


@dataclass(frozen=True)
class Histogram:
    """The distribution of one parameter or its gradient: an outline for an SVG path."""

    name: str
    outline: str
    range: str
    not_finite: str


@dataclass(frozen=True)
class Defects:
    """The verdict in one sentence, the checks as a figure and as rows, and the histograms of that step."""

    found: str
    verdict: str
    svg: str
    rows: list[list[str]]
    rows_shown: str
    histograms: list[Histogram]


def defects(run: Run) -> Defects | str:
    """Return the findings, or the reason why there are none."""
    if run.watch is None:
        return "This run was not monitored for defects: there is no defects.json in its folder."
    defect, observations = run.watch["defect"], run.watch["observations"]
    last = f" (last at step {format_count(observations[-1]['step'])})" if observations else ""
    checks = plural(len(observations), "check")
    verdict = f"No problems in {checks}{last}." if observations else "No problems were found."
    if defect is not None:
        where = f" in {defect['layer']}" if defect["layer"] else ""
        verdict = f"{str(defect['kind']).capitalize()}{where} at step {defect['step']}: {defect['detail']}."
    shown = [observations[place] for place in evenly_spaced(len(observations), MAX_ROWS)]
    return Defects(
        found="" if defect is None else str(defect["kind"]),
        verdict=verdict,
        svg=figure_svg(plots.observations(observations), "watch", "Training diagnostics by step")
        if observations
        else "",
        rows=[_row(each) for each in shown],
        rows_shown=f"All {checks}" if len(shown) == len(observations) else f"{len(shown)} of {checks}, evenly spaced",
        histograms=[_histogram(str(name), one) for name, one in run.watch["histograms"].items()],
    )


def _row(observation: dict[str, Any]) -> list[str]:
    dead = observation["dead"]
    worst = max(dead, key=dead.get, default="")
    units = f"{percent(dead[worst], 0)} of {worst}" if worst and dead[worst] > 0 else "none"
    accuracy, one_class = percent(observation["accuracy"], 1), percent(observation["one_class"], 1)
    return [format_count(observation["step"]), accuracy, one_class, units]


def _histogram(name: str, one: dict[str, Any]) -> Histogram:
    """Return the outline of the bars, scaled to the highest one."""
    counts, edges = one["counts"], one["edges"]
    width, height = BOX
    highest = max(counts, default=0) or 1
    steps = [f"M0 {height}"]
    for place, number in enumerate(counts):
        steps.append(f"V{height - height * number / highest:.2f}H{width * (place + 1) / len(counts):.2f}")
    not_finite = f"{format_count(one['not_finite'])} not finite" if one["not_finite"] else ""
    # the largest value lies in the last bin, unless all values are equal
    range_text = f"{edges[0]:.2g} … {edges[-1]:.2g}" if counts and counts[-1] else f"all {edges[0]:.2g}"
    return Histogram(name, "".join([*steps, f"V{height}Z"]), range_text.replace("-", "−"), not_finite)
