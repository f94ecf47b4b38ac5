"""Parameters and cost per layer, timed when the report is written."""

from dataclasses import dataclass
from typing import Any

from gpucnn.core import checks
from gpucnn.core.text import format_count, format_shape, percent
from gpucnn.engine.profiling import random_batch
from gpucnn.errors import OutOfMemoryError
from gpucnn.layers.base import Layer
from gpucnn.report.run import Run

BATCH_SIZE = 128  # if the run does not record its own
MAX_BATCH_SIZE = 256
REPEATS = 10


@dataclass(frozen=True)
class LayerRow:
    """A layer's row of formatted numbers; `part` is its percentage of the time of all layers, as a number."""

    name: str
    what: str
    output: str
    parameters: str
    flops: str
    bytes: str
    forward: str
    backward: str
    part: float
    share: str
    gflops: str
    algorithm: str


@dataclass(frozen=True)
class Layers:
    """The rows, their sum, and how they were timed."""

    rows: list[LayerRow]
    whole: LayerRow
    backend: str
    batch_size: int
    repeats: int


def layers(run: Run) -> Layers | str:
    """Time the layers on a random batch of the run's batch size, up to a maximum, or return the reason why not."""
    recipe = run.model.recipe
    requested: Any = run.settings.get("batch_size") or (None if recipe is None else recipe.batch_size)
    size = min(requested, MAX_BATCH_SIZE) if checks.is_integer(requested) and requested > 0 else BATCH_SIZE
    try:
        profile = run.model.profile(*random_batch(run.model, size), repeats=REPEATS)
    except OutOfMemoryError as error:
        return f"The layers could not be timed: {error}."
    whole = sum(row.seconds for row in profile.layers) or 1.0
    what = {name: _what(layer) for name, layer in run.model.network.children()}

    def row(name: str, output: str, numbers: tuple[int, int, int, float, float], algorithm: str) -> LayerRow:
        parameters, flops, size_in_bytes, forward, backward = numbers
        seconds = forward + backward
        share = round(seconds / whole, 6)  # the whole is 1 but for rounding
        return LayerRow(
            name=name,
            what=what.get(name, ""),
            output=output,
            parameters=format_count(parameters) if parameters else "",
            flops=f"{flops / 1e6:,.1f}" if flops else "",
            bytes=f"{size_in_bytes / 1e6:,.3f}",
            forward=f"{1e3 * forward:.2f}",
            backward=f"{1e3 * backward:.2f}",
            part=round(100 * share, 1),
            share=percent(share, 1),
            gflops=f"{flops / max(seconds, 1e-12) / 1e9:,.1f}" if flops else "",
            algorithm=algorithm,
        )

    numbers = [
        (
            one.parameters,
            one.flops_forward + one.flops_backward,
            one.output_bytes,
            one.forward_seconds,
            one.backward_seconds,
        )
        for one in profile.layers
    ]
    rows = [
        row(one.path, format_shape(one.output_shape), each, one.algorithm)
        for one, each in zip(profile.layers, numbers, strict=True)
    ]
    sums = [sum(column) for column in zip(*numbers, strict=True)]
    total = row("all", "", (int(sums[0]), int(sums[1]), int(sums[2]), sums[3], sums[4]), "")
    return Layers(rows, total, profile.backend, profile.batch_size, profile.repeats)


def _what(layer: Layer) -> str:
    """Return the call that constructs a layer, or the types of the layers inside a container."""
    inside = [type(one).__name__ for one in layer.all_layers() if one is not layer and not any(one.children())]
    return f"{type(layer).__name__} of {', '.join(inside)}" if inside else repr(layer)
