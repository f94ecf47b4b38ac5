"""Parameters and cost per layer, timed when the report is written."""

from dataclasses import dataclass
from typing import Any

from gpucnn.core import checks
from gpucnn.core.text import format_count, format_shape, percent
from gpucnn.engine.profiling import LayerTime, random_batch
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
    whole, what = profile.whole, {name: _what(layer) for name, layer in run.model.network.children()}
    rows = [_row(one, what.get(one.path, ""), whole.seconds) for one in profile.layers]
    return Layers(rows, _row(whole, "", whole.seconds), profile.backend, profile.batch_size, profile.repeats)


def _row(layer: LayerTime, what: str, whole: float) -> LayerRow:
    flops = layer.flops_forward + layer.flops_backward
    share = round(layer.seconds / (whole or 1.0), 6)  # the whole is 1 but for rounding
    return LayerRow(
        name=layer.path,
        what=what,
        output=format_shape(layer.output_shape),
        parameters=format_count(layer.parameters) if layer.parameters else "",
        flops=f"{flops / 1e6:,.1f}" if flops else "",
        bytes=f"{layer.output_bytes / 1e6:,.3f}",
        forward=f"{1e3 * layer.forward_seconds:.2f}",
        backward=f"{1e3 * layer.backward_seconds:.2f}",
        part=round(100 * share, 1),
        share=percent(share, 1),
        gflops=f"{layer.gflops:,.1f}" if flops else "",
        algorithm=layer.algorithm,
    )


def _what(layer: Layer) -> str:
    """Return the call that constructs a layer, or the types of the layers inside a container."""
    inside = [type(one).__name__ for one in layer.all_layers() if one is not layer and not any(one.children())]
    return f"{type(layer).__name__} of {', '.join(inside)}" if inside else repr(layer)
