"""Do two backends compute the same network? Layer by layer, forward and backward, on the user's own model and data.

The reference runs the network once, and what every layer was given is recorded: its input, and the gradient that came
back to it. Then each backend computes each layer alone from these same arrays, so a difference is that layer's own, not
what it inherited. At the end one whole training step runs on both, fused and in slices as `fit` makes it. There a
difference ε in the numbers before a ReLU lets a share of about ε of them fall to its other side, which changes
gradients by √ε, so it is allowed more.

How much two backends may differ is measured, not guessed: sums of many numbers that cancel, such as the gradient of a
bias before a batch norm, have no correct digits to agree on. So the reference also computes every layer in the other
precision (float64 for a model in float32), and the noise that this shows widens the tolerance where there is any. That
is one way to round; another order of adding up has another error, which can be much larger than the reference's own.
For a gradient, a sum of n terms t, it is some u·√n·√Σt², u being the precision: each of n roundings is one of a partial
sum, and these are some √Σt² where signs change at random. √Σt² is what the reference computes with random signs of the
numbers that come back. In the whole step the gradients of a layer are measured together, since one alone may cancel.
A model in float16 is compared with a reference in float32, which is the precision that its parameters have.

Source: Higham, Mary, "A new approach to probabilistic rounding error analysis" (2019).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.core.console import PrintsAsTable, narrow_table, styled
from gpucnn.data.batches import check_inputs, check_labels
from gpucnn.errors import ConfigurationError
from gpucnn.layers.base import Backward, Layer
from gpucnn.layers.hooks import forward_hooks
from gpucnn.rng import host_generator

if TYPE_CHECKING:
    from gpucnn.model import Model

TOLERANCE = {"float16": 5e-3, "float32": 1e-5, "float64": 1e-12}  # L2, relative to the reference
NOISE = 10.0  # how many times the reference's own rounding error a difference may be
DRAWS = 3  # of signs
ROUNDINGS = 2.0  # how many times u·√n·√Σt² it may be: some seven times what sums one after another come to
PRECISION = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}

Results = dict[str, Any]  # host arrays by what they are: "y", "dx", "gradient of weight", "running_mean", …


@dataclass(frozen=True)
class Difference:
    """How far one array of one layer is from the reference."""

    layer: str
    kind: str  # the layer's class
    what: str  # "y", "dx", "gradient of weight", …
    backward: bool
    largest: float  # |Δ| of the element that differs most
    relative: float  # ‖Δ‖ / ‖reference‖; in the whole step, of all gradients of the layer
    ulps: float  # the largest |Δ| in units of the last place of the reference's largest number
    allowed: float  # for `relative`

    @property
    def agrees(self) -> bool:
        """Whether the difference is allowed; a NaN never is."""
        return self.relative <= self.allowed


@dataclass(frozen=True, repr=False)
class Parity(PrintsAsTable):
    """All differences between two backends, in the order in which layers compute; prints as a table."""

    backend: str
    reference: str
    dtype: str
    batch_size: int
    differences: list[Difference]

    @property
    def agrees(self) -> bool:
        """Whether every difference is allowed."""
        return all(difference.agrees for difference in self.differences)

    @property
    def first_divergence(self) -> Difference | None:
        """The first difference that is not allowed, in the order of a step: forward, then from the last layer back.

        Those of the whole step come last: they say that something differs, but not where.
        """
        whole = [d for d in self.differences if d.layer == _WHOLE.label]
        forward = [d for d in self.differences if d not in whole and not d.backward]
        backward = [d for d in reversed(self.differences) if d not in whole and d.backward]
        return next((d for d in (*forward, *backward, *whole) if not d.agrees), None)

    def table(self) -> Table:
        """Return a table with two lines a layer, forward and backward (∂): of the array nearest to its tolerance."""
        title = f"{self.backend} against {self.reference}: {self.dtype}, batch of {self.batch_size}"
        table = narrow_table(title, self.verdict())
        for heading in ("layer", "worst array"):
            table.add_column(heading, overflow="fold")
        for heading in ("of", "max |Δ|", "relative", "ulps", "allowed"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        before = ""
        for group in self._by_pass():
            worst = max(group, key=_severity)
            relative, allowed = _told_apart(worst.relative, worst.allowed)
            mark = "same" if not worst.largest else styled(("ok", "green") if worst.agrees else ("DIFFERS", "red"))
            table.add_row(
                worst.layer if worst.layer != before else "",
                worst.what.replace("gradient of ", "∂ ").replace("dx", "∂ x"),
                str(len(group)),
                f"{worst.largest:.1e}" if worst.largest else "0",
                relative if worst.relative else "0",
                f"{worst.ulps:,.1f}" if worst.ulps else "0",
                allowed,
                mark,
            )
            before = worst.layer
        return table

    def _by_pass(self) -> Iterator[list[Difference]]:
        """Yield the differences of each layer's forward pass, and of its backward pass."""
        groups: dict[tuple[str, bool], list[Difference]] = {}
        for difference in self.differences:
            groups.setdefault((difference.layer, difference.backward), []).append(difference)
        yield from groups.values()

    def verdict(self) -> str:
        """Return what came out, in a sentence."""
        first = self.first_divergence
        if first is None:
            return f"all {len(self.differences)} arrays agree within their tolerances"
        failed = sum(not difference.agrees for difference in self.differences)
        kind = f" ({first.kind})" if first.kind else ""
        relative, allowed = _told_apart(first.relative, first.allowed)
        return (
            f"{failed} of {len(self.differences)} arrays differ; the first is {first.what} of {first.layer}{kind}, "
            f"off by {relative} where {allowed} is allowed"
        )


def _told_apart(*numbers: float) -> list[str]:
    """Return numbers with as many digits as show which is greater; at least two."""
    for digits in range(1, 17):
        written = [f"{number:.{digits}e}" for number in numbers]
        if len(set(written)) == len(set(numbers)):
            break
    return written


def _severity(difference: Difference) -> float:
    """Return how near a difference is to its tolerance; a NaN is nearest."""
    ratio = difference.relative / difference.allowed
    return ratio if ratio == ratio else float("inf")


def parity(
    model: "Model",
    x: Any,
    y: Any = None,
    *,
    backend: str | Backend | None = None,
    reference: str | Backend | None = None,
) -> Parity:
    """Compare a model on two backends; leaves it, its weights and its random streams as they were.

    Both start from the same weights, see the same batch and draw the same dropout masks.

    Arguments
        x          inputs (N, …), host data; a batch of 16 or more, since few images take paths of their own
        y          labels, for the loss and the gradients of one training step; None leaves that step out
        backend    which to test; the model's own without it
        reference  what to test against; without it NumPy for a GPU, and the reference implementation for NumPy

    Raises
        ConfigurationError  y is given, but the model is not compiled; or a training goes on
        ShapeError, DTypeError, DataError  data that the model cannot take

    Example:
        >>> import gpucnn
        >>> (x, y), _ = gpucnn.datasets.synthetic_digits(16)
        >>> model = gpucnn.networks.feedforward(backend="numpy")
        >>> gpucnn.parity(model, x, y).agrees
        True
    """
    model.check_not_training("moved to another backend and back, as parity does,")
    tested = model.backend if backend is None else get_backend(backend)
    if reference is None:
        reference = "reference" if tested.name in ("numpy", "reference") else "numpy"
    against = get_backend(reference)
    x = check_inputs(x, model.input_shape, dtype=model.dtype)
    if y is not None:
        if model.loss is None:
            raise ConfigurationError("parity was given labels, but the model has no loss; call model.compile first")
        y = check_labels(
            y, len(x), model.output_shape, model.loss, dtype=model.state_dtype, input_shape=model.input_shape
        )
    dtype, exact = model.dtype, model.state_dtype
    with _as_it_was(model) as state:
        model.to(against, exact)
        with against.on_device():
            calls = _record(model, against, x)
        for call in calls:  # what float16 cannot tell apart is the same for the reference too, in a max pooling, say
            call.x, call.dy = (None if a is None else a.astype(dtype, copy=False) for a in (call.x, call.dy))

        def results_of(backend: Backend, dtype: str) -> dict[int, Results]:
            model.to(backend, dtype)
            model.load_state_dict(state)
            with backend.on_device():
                return _results(model, calls, x, y)

        ours, theirs = results_of(tested, dtype), results_of(against, exact)
        others = results_of(against, _other(exact))
        spreads = {number: _spread(model, call) for number, call in enumerate(calls)}  # in the other precision as well
    differences = [
        difference
        for number, call in enumerate((*calls, _WHOLE))
        if number in theirs
        for difference in _differences(
            call, ours[number], theirs[number], others[number], spreads.get(number, {}), dtype, len(calls)
        )
    ]
    return Parity(tested.describe(), against.describe(), dtype, len(x), differences)


@dataclass
class _Call:
    """One call of a layer, and what it was given, as host arrays."""

    label: str
    kind: str
    layer: Layer | None = None
    x: Any = None
    dy: Any = None


_WHOLE = _Call("a whole step", "")


@dataclass
class _Recorder:
    """Calls of layers in the order in which they compute."""

    backend: Backend
    calls: list[_Call] = field(default_factory=list)

    def watch(self, layer: Layer, label: str) -> Callable[..., tuple[Array, Backward]]:
        """Return the layer's `forward`, which also notes what it and its way back are given."""
        forward = layer.forward

        def watched(x: Array, **options: Any) -> tuple[Array, Backward]:
            call = _Call(label, type(layer).__name__, layer, self.backend.to_host(x).copy())
            self.calls.append(call)
            y, way_back = forward(x, **options)

            def watched_way_back(dy: Array) -> Array:
                call.dy = self.backend.to_host(dy).copy()
                return way_back(dy)

            return y, watched_way_back

        return watched


def _record(model: "Model", backend: Backend, x: Any) -> list[_Call]:
    """Return every call of a layer that has none inside, in a training pass on a backend."""
    recorder = _Recorder(backend)
    with forward_hooks(model.network, recorder.watch):
        y, backward = model.network.forward(model.as_floats(backend.from_host(x)), train=True)
        # gradients as a mean loss gives them, whatever the model's loss is
        dy = host_generator(0, "parity").standard_normal(y.shape) / len(x)
        backward(backend.from_host(dy.astype(model.dtype)))
    return recorder.calls


def _results(model: "Model", calls: list[_Call], x: Any, labels: Any) -> dict[int, Results]:
    """Return what the model's backend computes for every recorded call by itself, and for a whole training step."""
    state = model.state_dict()
    with model.backend.execution_context(sharded=True):
        results = {number: _result(model, call) for number, call in enumerate(calls)}
    if labels is not None:
        model.load_state_dict(state)
        results[len(calls)] = _whole_step(model, x, labels)
    return results


def _result(model: "Model", call: _Call) -> Results:
    """Return what one layer makes of what was recorded."""
    layer, backend = call.layer, model.backend
    assert layer is not None
    model.zero_grad()
    y, backward = layer.forward(model.as_floats(backend.from_host(call.x)), train=True)
    results: Results = {"y": y}
    results |= {path: buffer.value for path, buffer in layer.buffers().items() if not buffer.on_host}
    if call.dy is not None:
        dx = backward(model.as_floats(backend.from_host(call.dy)))
        results["dx"] = dx
        results |= _gradients(layer)
    return {what: backend.to_host(array).astype(np.float64) for what, array in results.items()}


def _whole_step(model: "Model", x: Any, labels: Any) -> Results:
    """Return the loss and all gradients of one training step, as `fit` makes it but for the update."""
    backend = model.backend
    inputs = model.as_floats(backend.from_host(x))
    loss, _ = model.loss_and_gradients(inputs, backend.from_host(labels))
    results = {"loss": loss, **_gradients(model.network)}
    return {what: backend.to_host(array).astype(np.float64) for what, array in results.items()}


def _gradients(layer: Layer) -> Results:
    return {f"gradient of {path}": p.grad for path, p in layer.parameters().items() if p.grad is not None}


def _other(dtype: str) -> str:
    return "float32" if dtype == "float64" else "float64"


def _owner(what: str) -> str:
    """Return of which layer an array of the whole step is."""
    return what.rpartition(".")[0]


def _spread(model: "Model", call: _Call) -> dict[str, float]:
    """Return √n·√Σt² of each gradient of a call's parameters, a sum of n terms t, as a norm over its elements."""
    if call.dy is None or call.layer is None or not call.layer.parameters():
        return {}
    generator, squares = host_generator(0, "parity signs"), dict[str, float]()
    for _ in range(DRAWS):
        signs = generator.integers(0, 2, call.dy.shape) * 2.0 - 1.0
        for what, gradient in _result(model, replace(call, dy=call.dy * signs)).items():
            if what.startswith("gradient of "):
                terms = max(1, call.dy.size // gradient.size)
                squares[what] = squares.get(what, 0.0) + terms * float((gradient**2).sum()) / DRAWS
    return {what: math.sqrt(square) for what, square in squares.items()}


def _differences(
    call: _Call, ours: Results, theirs: Results, others: Results, spread: dict[str, float], dtype: str, layers: int
) -> Iterator[Difference]:
    """Yield how far a call's arrays, `ours`, are from `theirs`, and how far they may be.

    That follows from those in the other precision, `others`, and from the spread of the gradients; in the whole step,
    of so many layers, all gradients of a layer are one.
    """
    whole = call is _WHOLE
    tolerance = math.sqrt(TOLERANCE[dtype] * layers) if whole else TOLERANCE[dtype]
    for what, wanted in theirs.items():
        together = [other for other in theirs if other == what or (whole and _owner(other) == _owner(what))]
        size = math.hypot(*(float(np.linalg.norm(theirs[other])) for other in together)) or 1.0
        # the rounding error of float32, one of the two, scaled to the precision that is tested
        noise = NOISE * float(np.linalg.norm(others[what] - wanted)) / PRECISION["float32"]
        noise = max(noise, ROUNDINGS * spread.get(what, 0.0)) * PRECISION[dtype] / size
        difference = ours[what] - wanted
        largest = float(np.abs(difference).max()) if difference.size else 0.0
        unit = float(np.spacing(np.abs(wanted).max().astype(dtype))) if wanted.size else 1.0
        yield Difference(
            layer=call.label,
            kind=call.kind,
            what=what,
            backward=what == "dx" or what.startswith("gradient of "),
            largest=largest,
            relative=float(np.linalg.norm(difference)) / size,
            ulps=largest / unit,
            allowed=max(tolerance, noise) if np.isfinite(noise) else tolerance,
        )


@contextmanager
def _as_it_was(model: "Model") -> Iterator[dict[str, Any]]:
    """Give the block the model's state, and the model its backend, state and optimizer back after it; no gradients."""
    backend, dtype, state = model.backend, model.dtype, model.state_dict()
    optimizer, model._optimizer = model._optimizer, None  # its slots stay where they are meanwhile
    try:
        yield state
    finally:
        model.to(backend, dtype)
        model.load_state_dict(state)
        model.zero_grad()
        model._optimizer = optimizer
        if optimizer is not None:
            with backend.on_device():
                optimizer.rebind(backend, backend, model._flat.values)
