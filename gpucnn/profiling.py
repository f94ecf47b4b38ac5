"""What each layer holds and costs: the tables behind `model.summary()` and `model.profile(x, y)`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from gpucnn.layers.base import Layer
from gpucnn.layers.combine import Residual, Sequential
from gpucnn.printing import PrintsAsTable

if TYPE_CHECKING:
    from gpucnn.model import Model

WARM_UP = 2  # passes before the first timed one: they fill caches and, on a GPU, compile kernels
BYTES = {"float16": 2, "float32": 4, "float64": 8}


def parameter_count(layer: Layer) -> int:
    """Return how many numbers of a layer are trained."""
    return sum(parameter.size for parameter in layer.parameters().values())


def _rows(network: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the layers that a table shows, by path: those inside `Sequential` and `Residual`, not these themselves."""
    for name, child in network.children():
        if isinstance(child, Sequential | Residual):
            yield from _rows(child, f"{path}{name}.")
        else:
            yield path + name, child


def _shape(layer: Layer) -> str:
    return " × ".join(map(str, layer.output_shape or ()))


def _elements(layer: Layer) -> int:
    count = 1
    for side in layer.output_shape or ():
        count *= side
    return count


def summary_table(model: "Model") -> Table:
    """Return a table of output shapes, parameters, floating-point operations and bytes of the outputs."""
    table = Table(
        title=f"{model.name}: input {' × '.join(map(str, model.input_shape))}, {model.dtype}",
        box=SIMPLE_HEAD,
        caption="MFLOP of the products and kB of the output are those of one image, forward",
    )
    table.add_column("layer", no_wrap=True)
    table.add_column("what")  # the only column that may shrink, to fit a terminal of 80 characters
    for heading in ("output", "parameters", "MFLOP", "kB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, layer in _rows(model.network):
        kilobytes = _elements(layer) * BYTES[model.dtype] / 1000
        flops = layer.total_flops()
        cost = f"{flops / 1e6:,.3f}" if flops else ""
        count = f"{parameter_count(layer):,}" if parameter_count(layer) else ""
        table.add_row(
            path, Text(repr(layer), no_wrap=True, overflow="ellipsis"), _shape(layer), count, cost, f"{kilobytes:,.1f}"
        )
    table.add_section()
    total = f"{model.network.total_flops() / 1e6:,.3f}"
    table.add_row("all", "", "", f"{parameter_count(model.network):,}", total, "")
    return table


@dataclass(frozen=True)
class LayerTime:
    """One layer's share of a step: average seconds forward and backward, and what it computes how.

    `path` is the layer's name; `method` says how the backend computes it, where there is a choice.
    """

    path: str
    output_shape: tuple[int, ...]
    parameters: int
    flops_forward: int
    method: str
    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        """Forward and backward together."""
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True, repr=False)
class Profile(PrintsAsTable):
    """The times of all layers on one batch; prints as a table."""

    backend: str
    batch_size: int
    repeats: int
    layers: list[LayerTime]

    def table(self) -> Table:
        """Return the table."""
        title = f"batch of {self.batch_size} on {self.backend}, average of {self.repeats} passes"
        caption = (
            "each layer for itself, without a team of threads; training lets some layers apply the ReLU behind them"
        )
        table = Table(title=title, box=SIMPLE_HEAD, caption=caption)
        table.add_column("layer")
        table.add_column("method")
        for heading in ("output", "parameters", "MFLOP", "forward ms", "backward ms", "share"):
            table.add_column(heading, justify="right")
        total = sum(row.seconds for row in self.layers) or 1.0
        for row in self.layers:
            table.add_row(
                row.path,
                row.method,
                " × ".join(map(str, row.output_shape)),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.flops_forward / 1e6:,.2f}" if row.flops_forward else "",
                f"{row.forward_seconds * 1e3:.3f}",
                f"{row.backward_seconds * 1e3:.3f}",
                f"{100 * row.seconds / total:.1f} %",
            )
        table.add_section()
        forward = sum(row.forward_seconds for row in self.layers) * 1e3
        backward = sum(row.backward_seconds for row in self.layers) * 1e3
        work = sum(row.flops_forward for row in self.layers) / 1e6
        count = sum(row.parameters for row in self.layers)
        table.add_row("all", "", "", f"{count:,}", f"{work:,.2f}", f"{forward:.3f}", f"{backward:.3f}", "")
        return table


def profile(model: "Model", x: Any, y: Any, repeats: int) -> Profile:
    """Time the model's layers on one checked batch; leaves weights, gradients and running statistics as they were."""
    kept = model.state_dict()
    times: dict[str, list[float]] = {}
    inputs, labels = model.as_floats(model.backend.from_host(x)), model.backend.from_host(y)
    try:
        with model.backend.working(as_team=True):
            for repeat in range(WARM_UP + repeats):
                _timed_pass(model, inputs, labels, times if repeat >= WARM_UP else {})
    finally:
        model.load_state_dict(kept)
        model.zero_grad()
    rows = [
        LayerTime(
            path=name,
            output_shape=layer.output_shape or (),
            parameters=parameter_count(layer),
            flops_forward=layer.total_flops() * len(x),
            method=layer.method(len(x)),
            forward_seconds=times[name][0] / repeats,
            backward_seconds=times[name][1] / repeats,
        )
        for name, layer in model.network.children()
    ]
    return Profile(model.backend.describe(), len(x), repeats, rows)


def _timed_pass(model: "Model", x: Any, labels: Any, times: dict[str, list[float]]) -> None:
    """Pass one batch forward and backward as a training step does; add each top-level layer's seconds to `times`."""
    ways_back = []
    network = model.network
    for layer, options, goes_back in network.steps(input_gradient=False, plan=network.one_by_one()):
        (x, backward), seconds = model.backend.timed(layer.label, partial(layer.forward, x, train=True, **options))
        times.setdefault(layer.label, [0.0, 0.0])[0] += seconds
        if goes_back:
            ways_back.append((layer.label, backward))
    dy = _loss_gradient(model, x, labels)
    for name, backward in reversed(ways_back):
        dy, seconds = model.backend.timed(f"{name} backward", partial(backward, dy))
        times[name][1] += seconds


def _loss_gradient(model: "Model", y: Any, labels: Any) -> Any:
    """Return dy of the loss, or ones where the model is not compiled."""
    if model.loss is None:
        return model.backend.xp.ones_like(y)
    return model.loss(y, labels)[1]()
