"""What a `DefectWatch` saw of the training."""

from dataclasses import dataclass
from typing import Any

from gpucnn import plots
from gpucnn.core.text import format_count, percent, plural
from gpucnn.plots.canvas import spread
from gpucnn.report.curves import drawn
from gpucnn.report.run import Run

LOOKS = 12  # that are listed, at most
BOX = 100, 40  # of a histogram, in its own units


@dataclass(frozen=True)
class Histogram:
    """How the values of one parameter, or its gradients, were distributed: an outline for an SVG path."""

    name: str
    outline: str
    ends: str
    odd: str


@dataclass(frozen=True)
class Defects:
    """What was found in one sentence, the looks as a curve and as rows, and the histograms of that moment."""

    found: str
    verdict: str
    svg: str
    rows: list[list[str]]
    looks: str
    histograms: list[Histogram]


def defects(run: Run) -> Defects | str:
    """Return what was seen, or say that nobody watched."""
    if run.watch is None:
        return "This run was not watched for defects: there is no defects.json in its folder."
    defect, looks = run.watch["defect"], run.watch["looks"]
    last = f", the last at step {format_count(looks[-1]['step'])}" if looks else ""
    seen = plural(len(looks), "look")
    verdict = f"Nothing was found in {seen}{last}."
    if defect is not None:
        where = f" in {defect['layer']}" if defect["layer"] else ""
        verdict = f"{str(defect['kind']).capitalize()}{where} at step {defect['step']}: {defect['detail']}."
    shown = [looks[place] for place in spread(len(looks), LOOKS)]
    return Defects(
        found="" if defect is None else str(defect["kind"]),
        verdict=verdict,
        svg=drawn(plots.looks(looks), "watch", "What the watch saw, by step") if looks else "",
        rows=[_look(look) for look in shown],
        looks=f"All {seen}" if len(shown) == len(looks) else f"{len(shown)} of {seen}, evenly spread",
        histograms=[_histogram(str(name), one) for name, one in run.watch["histograms"].items()],
    )


def _look(look: dict[str, Any]) -> list[str]:
    dead = max(look["dead"], key=look["dead"].get, default="")
    worst = f"{percent(look['dead'][dead], 0)} of {dead}" if dead and look["dead"][dead] > 0 else "none"
    return [format_count(look["step"]), percent(look["accuracy"], 1), percent(look["one_class"], 1), worst]


def _histogram(name: str, one: dict[str, Any]) -> Histogram:
    """Return the outline of the bars, the highest of which fills the box."""
    counts, edges = one["counts"], one["edges"]
    width, height = BOX
    highest = max(counts, default=0) or 1
    steps = [f"M0 {height}"]
    for place, number in enumerate(counts):
        steps.append(f"V{height - height * number / highest:.2f}H{width * (place + 1) / len(counts):.2f}")
    odd = f"{format_count(one['not_finite'])} not finite" if one["not_finite"] else ""
    # the largest value lies in the last bin, unless all are the same
    ends = f"{edges[0]:.2g} … {edges[-1]:.2g}" if counts and counts[-1] else f"all {edges[0]:.2g}"
    return Histogram(name, "".join([*steps, f"V{height}Z"]), ends.replace("-", "−"), odd)
