"""Parity of two backends, layer by layer, forward and backward, on the user's own model and data.

The reference runs the network once and logs the input of every layer and the gradient of its output. Then each backend
computes each layer in isolation from these same arrays, so a difference is that layer's own and not inherited. At the
end one whole training step runs on both, fused and sharded as in `fit`. There a difference ε in the inputs of a ReLU
flips the sign of a fraction of about ε of them, which changes gradients by √ε, so the tolerance is larger.

The tolerance is measured: sums of many numbers that cancel, such as the gradient of a bias before a batch norm, have no
correct digits to agree on. So the reference also computes every layer in the other precision (float64 for a model in
float32), and the rounding error that this shows widens the tolerance. Another order of summation can have a much
larger error than the reference's own. For a gradient, a sum of n terms t, it is about u·√n·√Σt², u being the precision:
each of n roundings is one of a partial sum, and these are about √Σt² if signs are random. √Σt² is what the reference
computes with random signs of the output's gradient. In the whole step the gradients of a layer are measured together,
since a single one may cancel. A model in float16 is compared with a reference in float32, the precision of its
parameters.

Source: Higham, Mary, "A new approach to probabilistic rounding error analysis" (2019).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    """The difference between one array of one layer and the reference."""

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
        """Whether the difference is within its tolerance; a NaN never is."""
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
        """Whether every difference is within its tolerance."""
        return all(difference.agrees for difference in self.differences)

    @property
    def first_divergence(self) -> Difference | None:
        """The first difference above its tolerance, in the order of a step: forward, then backward from the last layer.

        Those of the whole step come last: they show that something differs, but not where.
        """
        whole = [d for d in self.differences if d.layer == _STEP.label]
        forward = [d for d in self.differences if d not in whole and not d.backward]
        backward = [d for d in reversed(self.differences) if d not in whole and d.backward]
        return next((d for d in (*forward, *backward, *whole) if not d.agrees), None)

    def table(self) -> Table:
        """Return a table with two lines per layer, forward and backward (∂): the array nearest to its tolerance."""
        title = f"{self.backend} against {self.reference}: {self.dtype}, batch of {self.batch_size}"
        table = narrow_table(title, self.verdict())
        for heading in ("layer", "worst array"):
            table.add_column(heading, overflow="fold")
        for heading in ("of", "max |Δ|", "relative", "ulps", "allowed"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        before = ""
        groups: dict[tuple[str, bool], list[Difference]] = {}
        for difference in self.differences:
            groups.setdefault((difference.layer, difference.backward), []).append(difference)
        for group in groups.values():
            worst = max(group, key=_severity)
            relative, allowed = _distinct(worst.relative, worst.allowed)
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

    def verdict(self) -> str:
        """Return the result as a sentence."""
        first = self.first_divergence
        if first is None:
            return f"all {len(self.differences)} arrays agree within their tolerances"
        failed = sum(not difference.agrees for difference in self.differences)
        kind = f" ({first.kind})" if first.kind else ""
        relative, allowed = _distinct(first.relative, first.allowed)
        return (
            f"{failed} of {len(self.differences)} arrays differ; the first is {first.what} of {first.layer}{kind}, "
            f"off by {relative} where {allowed} is allowed"
        )


def _distinct(*numbers: float) -> list[str]:
    """Return numbers with enough digits to tell which is greater; at least two."""
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
    """Compare a model on two backends, from the same weights, batch and dropout masks; the model is not changed.

    Arguments
        x          inputs (N, …), host data; a batch of 16 or more, since fewer images use other algorithms
        y          labels, for the loss and the gradients of one training step; None skips that step
        backend    the backend to test; by default the model's own
        reference  the backend to compare with; by default NumPy for a GPU, and the reference implementation for NumPy

    Raises
        ConfigurationError  y is given, but the model is not compiled; or the model is being trained
        ShapeError, DTypeError, DataError  data that the model cannot take

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(16)
        >>> model = networks.feedforward(backend="numpy")
        >>> parity(model, x, y).agrees
        True
    """
    model.check_not_training("moved to another backend and back, as parity does,")
    under_test = model.backend if backend is None else get_backend(backend)
    if reference is None:
        reference = "reference" if under_test.name in ("numpy", "reference") else "numpy"
    against = get_backend(reference)
    x = check_inputs(x, model.input_shape, dtype=model.dtype)
    if y is not None:
        if model.loss is None:
            raise ConfigurationError("parity was given labels, but the model has no loss; call model.compile first")
        y = check_labels(
            y, len(x), model.output_shape, model.loss, dtype=model.state_dtype, input_shape=model.input_shape
        )
    dtype, exact = model.dtype, model.state_dtype
    with _restored(model) as state:
        model.to(against, exact)
        with against.on_device():
            calls = _log_calls(model, against, x)
        for call in calls:  # values that are equal in float16 must be equal for the reference too, in a max pooling
            call.x, call.dy = (None if a is None else a.astype(dtype, copy=False) for a in (call.x, call.dy))

        def results_of(backend: Backend, dtype: str) -> dict[int, Results]:
            model.to(backend, dtype)
            model.load_state_dict(state)
            with backend.on_device():
                return _results(model, calls, x, y)

        tested, expected = results_of(under_test, dtype), results_of(against, exact)
        other_precision = results_of(against, "float32" if exact == "float64" else "float64")
        spreads = {number: _spread(model, call) for number, call in enumerate(calls)}  # computed in the other precision
    differences = [
        difference
        for number, call in enumerate((*calls, _STEP))
        if number in expected
        for difference in _differences(
            call, tested[number], expected[number], other_precision[number], spreads.get(number, {}), dtype, len(calls)
        )
    ]
    return Parity(under_test.describe(), against.describe(), dtype, len(x), differences)


@dataclass
class _Call:
    """One call of a layer with its input and the gradient of its output, host arrays."""

    label: str
    kind: str
    layer: Layer | None = None
    x: Any = None
    dy: Any = None


_STEP = _Call("a whole step", "")


def _log_calls(model: "Model", backend: Backend, x: Any) -> list[_Call]:
    """Return every call of a leaf layer in a training pass on a backend, in order."""
    calls: list[_Call] = []

    def make_hook(layer: Layer, label: str) -> Callable[..., tuple[Array, Backward]]:
        forward = layer.forward

        def logged(x: Array, **options: Any) -> tuple[Array, Backward]:
            call = _Call(label, type(layer).__name__, layer, backend.to_host(x).copy())
            calls.append(call)
            y, layer_backward = forward(x, **options)

            def logged_backward(dy: Array) -> Array:
                call.dy = backend.to_host(dy).copy()
                return layer_backward(dy)

            return y, logged_backward

        return logged

    with forward_hooks(model.network, make_hook):
        y, backward = model.network.forward(model.as_floats(backend.from_host(x)), train=True)
        # of the size of a mean loss's gradients, whatever the model's loss is
        dy = host_generator(0, "parity").standard_normal(y.shape) / len(x)
        backward(backend.from_host(dy.astype(model.dtype)))
    return calls


def _results(model: "Model", calls: list[_Call], x: Any, labels: Any) -> dict[int, Results]:
    """Return the results of the model's backend for every logged call in isolation, and for a whole training step."""
    state = model.state_dict()
    with model.backend.execution_context(sharded=True):
        results = {number: _result(model, call) for number, call in enumerate(calls)}
    if labels is not None:
        model.load_state_dict(state)
        results[len(calls)] = _full_step(model, x, labels)
    return results


def _result(model: "Model", call: _Call) -> Results:
    """Return the results of one layer for the arrays of a logged call."""
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


def _full_step(model: "Model", x: Any, labels: Any) -> Results:
    """Return the loss and all gradients of one training step, as in `fit` but without the update."""
    backend = model.backend
    inputs = model.as_floats(backend.from_host(x))
    loss, _ = model.loss_and_gradients(inputs, backend.from_host(labels))
    results = {"loss": loss, **_gradients(model.network)}
    return {what: backend.to_host(array).astype(np.float64) for what, array in results.items()}


def _gradients(layer: Layer) -> Results:
    return {f"gradient of {path}": p.grad for path, p in layer.parameters().items() if p.grad is not None}


def _owner(what: str) -> str:
    """Return the layer of an array of the whole step."""
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
    call: _Call,
    tested: Results,
    expected: Results,
    other_precision: Results,
    spread: dict[str, float],
    dtype: str,
    layers: int,
) -> Iterator[Difference]:
    """Yield the differences of a call's arrays, `tested`, from `expected`, with their tolerances.

    These follow from the results in the other precision and from the spread of the gradients; in the whole step, of a
    number of layers, all gradients of a layer are measured as one.
    """
    whole = call is _STEP
    tolerance = math.sqrt(TOLERANCE[dtype] * layers) if whole else TOLERANCE[dtype]
    for what, reference in expected.items():
        together = [other for other in expected if other == what or (whole and _owner(other) == _owner(what))]
        size = math.hypot(*(float(np.linalg.norm(expected[other])) for other in together)) or 1.0
        # the rounding error of float32, one of the two, scaled to the precision under test
        noise = NOISE * float(np.linalg.norm(other_precision[what] - reference)) / PRECISION["float32"]
        noise = max(noise, ROUNDINGS * spread.get(what, 0.0)) * PRECISION[dtype] / size
        difference = tested[what] - reference
        largest = float(np.abs(difference).max()) if difference.size else 0.0
        unit = float(np.spacing(np.abs(reference).max().astype(dtype))) if reference.size else 1.0
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
def _restored(model: "Model") -> Iterator[dict[str, Any]]:
    """Yield the model's state; restore its backend, state and optimizer at the end, without gradients."""
    backend, dtype, state = model.backend, model.dtype, model.state_dict()
    optimizer, model._optimizer = model._optimizer, None  # its slots stay on their backend meanwhile
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
