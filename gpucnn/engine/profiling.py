"""Parameters and cost per layer: the tables behind `model.summary()` and `model.profile(x, y)`."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.table import Table
from rich.text import Text

from gpucnn.core.console import PrintsAsTable, narrow_table, styled
from gpucnn.core.text import format_decimals, format_shape, printable, short_count
from gpucnn.engine.declarations import cost_of_undeclared
from gpucnn.engine.executor import Executor
from gpucnn.layers.base import Layer
from gpucnn.layers.containers import Residual, Sequential
from gpucnn.layers.hooks import forward_hooks
from gpucnn.rng import host_generator

WARM_UP = 2  # passes before the first timed one: they fill caches and, on a GPU, compile kernels
HEADINGS = ("output", "params", "MB", "MFLOP", "fwd ms", "bwd ms", "share", "GFLOP/s")
BYTES = {"float16": 2, "float32": 4, "float64": 8}


def parameter_count(layer: Layer) -> int:
    """Return the number of a layer's parameters, trainable and frozen."""
    return sum(parameter.size for parameter in layer.parameters().values())


def frozen_count(layer: Layer) -> int:
    """Return the number of a layer's frozen parameters."""
    return sum(parameter.size for parameter in layer.parameters().values() if parameter.frozen)


def _elements(layer: Layer) -> int:
    return math.prod(layer.output_shape or ())


def summary_table(model: Executor) -> Table:
    """Return a table of output shapes, parameters, FLOPs and output sizes."""
    caption = "MFLOP (matmul and convolution only) and kB of the output: of one image, forward"
    cost = cost_of_undeclared(model)
    table = narrow_table(
        title=f"{model.name}: input {format_shape(model.input_shape)}, {model.dtype}",
        caption=f"{caption}\n{cost}" if cost else caption,
    )
    table.add_column("layer", no_wrap=True)
    table.add_column("what", min_width=12)  # the only column that may shrink, to fit a terminal of 80 characters
    for heading in ("output", "params", "MFLOP", "kB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, layer in model.network.leaves(inside=(Sequential, Residual)):
        kilobytes = _elements(layer) * BYTES[model.dtype] / 1000
        flops = layer.total_flops()
        cost = f"{flops / 1e6:,.3f}" if flops else ""
        count = f"{parameter_count(layer):,}" if parameter_count(layer) else ""
        shape = "×".join(map(str, layer.output_shape or ()))
        what = Text(printable(repr(layer)), no_wrap=True, overflow="ellipsis")
        table.add_row(path, what, shape, count, cost, f"{kilobytes:,.1f}")
    table.add_section()
    total = f"{model.network.total_flops() / 1e6:,.3f}"
    every, frozen = parameter_count(model.network), frozen_count(model.network)
    table.add_row("all", "", "", f"{every:,}", total, "")
    table.add_row("trained", "", "", f"{every - frozen:,}", "", "")
    table.add_row("frozen", "", "", f"{frozen:,}", "", "")
    return table


@dataclass(frozen=True)
class LayerTime:
    """One layer's part of a training step: mean seconds forward and backward, FLOPs and output size.

    `path` is the layer's name; `algorithm` says how the backend computes it, where there is a choice. Floating-point
    operations are those of its products, `output_bytes` those of its outputs and of the layers' inside, for the batch.
    """

    path: str
    output_shape: tuple[int, ...]
    parameters: int
    flops_forward: int
    flops_backward: int
    output_bytes: int
    algorithm: str
    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        """Forward and backward together."""
        return self.forward_seconds + self.backward_seconds

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations per second."""
        return (self.flops_forward + self.flops_backward) / max(self.seconds, 1e-12) / 1e9


@dataclass(frozen=True, repr=False)
class Profile(PrintsAsTable):
    """The times of all layers on one batch; prints as a table."""

    backend: str
    batch_size: int
    repeats: int
    layers: list[LayerTime]

    @property
    def whole(self) -> LayerTime:
        """The sums over all layers."""
        summed = [name for name, value in vars(self.layers[0]).items() if isinstance(value, int | float)]
        sums = {name: sum(getattr(row, name) for row in self.layers) for name in summed}
        return LayerTime(path="all", output_shape=(), algorithm="", **sums)

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain data, for a JSON file."""
        layers = [asdict(row) | {"seconds": row.seconds, "gflops": row.gflops} for row in self.layers]
        return {"backend": self.backend, "batch_size": self.batch_size, "repeats": self.repeats, "layers": layers}

    def table(self) -> Table:
        """Return the table."""
        title = f"batch of {self.batch_size} on {self.backend}, average of {self.repeats} passes"
        caption = (
            "layers timed in isolation, single-threaded; training fuses ReLU into the preceding layer.\n"
            "MB of outputs; MFLOP: matmul and convolution only, forward and backward"
        )
        table = narrow_table(title, caption)
        table.add_column("layer, algorithm", overflow="fold")  # the only column that may shrink: numbers are never cut
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        total = self.whole.seconds or 1.0
        for row in self.layers:
            named = styled(row.path, (f" {row.algorithm}" if row.algorithm else "", "dim"))
            table.add_row(named, "×".join(map(str, row.output_shape)), *self._cells(row, total))
        table.add_section()
        table.add_row("all", "", *self._cells(self.whole, total))
        return table

    @staticmethod
    def _cells(row: LayerTime, total: float) -> list[str]:
        has_products = row.flops_forward > 0
        return [
            short_count(row.parameters) if row.parameters else "",
            format_decimals(row.output_bytes / 1e6),
            format_decimals((row.flops_forward + row.flops_backward) / 1e6) if has_products else "",
            f"{row.forward_seconds * 1e3:.2f}",
            f"{row.backward_seconds * 1e3:.2f}",
            f"{100 * row.seconds / total:.0f} %",
            f"{row.gflops:,.0f}" if has_products else "",
        ]


def random_batch(model: Executor, batch_size: int) -> tuple[Any, Any]:
    """Return random inputs and labels for a model as host arrays, the same at every call."""
    rng = host_generator(0, "profile inputs")
    x = rng.random((batch_size, *model.input_shape)).astype(model.state_dtype)
    expects_classes, shape = model.loss is None or model.loss.expects_classes, model.output_shape
    y = rng.integers(0, shape[-1], batch_size) if expects_classes else rng.random((batch_size, *shape))
    return x, y


def profile(model: Executor, x: Any, y: Any, repeats: int) -> Profile:
    """Time the layers on one checked batch; weights and running statistics stay as they are, gradients are cleared."""
    before, timer = model.state_dict(), _Timer(model)
    inputs, labels = model.as_floats(model.backend.from_host(x)), model.backend.from_host(y)
    try:
        with model.execution_context(len(x)), forward_hooks(model.network, timer.hook, model.network.children()):
            for repeat in range(WARM_UP + repeats):
                timer.begin_pass(forget=repeat == WARM_UP)
                outputs, backward = model.network.forward(inputs, train=True, need_dx=False)
                backward(model.loss(outputs, labels)[1]() if model.loss else model.backend.xp.ones_like(outputs))
    finally:
        model.load_state_dict(before)
        model.zero_grad()
    size = len(x) * BYTES[model.dtype]  # of one element of each sample
    rows = [
        LayerTime(
            path=name,
            output_shape=layer.output_shape or (),
            parameters=parameter_count(layer),
            flops_forward=layer.total_flops() * len(x),
            flops_backward=layer.total_flops() * len(x) * timer.backward_products.get(name, 0),
            output_bytes=(sum(_elements(leaf) for _, leaf in layer.leaves()) or _elements(layer)) * size,
            algorithm=layer.algorithm(len(x)),
            forward_seconds=timer.forward_seconds[name] / repeats,
            backward_seconds=timer.backward_seconds[name] / repeats,
        )
        for name, layer in model.network.children()
    ]
    return Profile(model.backend.describe(), len(x), repeats, rows)


class _Timer:
    """Times the layers of a network, by hooks, in passes in which each runs by itself, one after the other."""

    def __init__(self, model: Executor) -> None:
        self._time_call, self._names = model.backend.time_call, [name for name, _ in model.network.children()]
        self.backward_products: dict[str, int] = {}  # as large as that of the forward pass
        self.begin_pass(forget=True)

    def begin_pass(self, forget: bool) -> None:
        """Expect the first layer again; with `forget`, what was timed so far does not count."""
        self._next = iter(self._names)
        if forget:
            self.forward_seconds = dict.fromkeys(self._names, 0.0)
            self.backward_seconds = dict.fromkeys(self._names, 0.0)

    def hook(self, layer: Layer, path: str) -> Any:
        """Return a forward function of a layer that times this one, and the backward function that it returns.

        A backward pass has two products: dweight, unless the layer is frozen, and dx, unless it is not needed.
        """
        forward, is_frozen = layer.forward, 0 < parameter_count(layer) == frozen_count(layer)

        def timed(x: Any, **options: Any) -> tuple[Any, Any]:
            name = next(self._next)  # of a layer that stands twice, too
            (y, backward), seconds = self._time_call(name, partial(forward, x, **options))
            self.forward_seconds[name] += seconds

            def timed_backward(dy: Any) -> Any:
                dx, seconds = self._time_call(f"{name} backward", partial(backward, dy))
                self.backward_seconds[name] += seconds
                self.backward_products[name] = 2 - ("need_dx" in options) - is_frozen
                return dx

            return y, timed_backward

        return timed
