"""Is a layer right? A battery of checks for layers of one's own, the same that the package's layers are tested with.

Each check is a function of a `_Subject`: it returns what it found in words, or raises `_Wrong` with what happened, what
was expected, and the remedy. All start from the same weights and the same random streams, and see the same inputs. The
layer that is given stays as it was: every check works on a twin of it.
"""

import contextlib
import copy
import math
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpucnn.backends import Backend, get_backend
from gpucnn.core.console import PrintsAsTable, styled
from gpucnn.engine.arguments import checked_shape
from gpucnn.engine.signature import Signature
from gpucnn.errors import (
    BackendUnavailable,
    CaptureWarning,
    ConfigurationError,
    GpucnnError,
    LayerError,
    ShapeError,
)
from gpucnn.layers.base import Backward, Layer, Parameter, Shape
from gpucnn.model import Model, load
from gpucnn.rng import host_generator
from gpucnn.testing.parity import parity
from gpucnn.testing.strict import StrictBackend

PACKAGE = Path(__file__).parents[1]
BATCH = 4
STEP = 1e-6  # of the central differences, in float64
TOLERANCE = 1e-5  # of a gradient, relative to its largest element
MOST_ELEMENTS = 100  # of an array whose gradient is tried one by one
REPLAYS = 9  # steps of which the third is compared with a replay, and those after it are replays
SHARE = 0.1  # deviation of what is added to parameters, so that no bias of 0 hides a fault


@dataclass(frozen=True)
class Check:
    """One check and what it found, in words."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, repr=False)
class LayerCheck(PrintsAsTable):
    """All checks of a layer; prints as a table."""

    layer: str
    checks: list[Check]

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.passed]

    def table(self) -> Table:
        """Return a table with a line a check."""
        caption = f"{len(self.failures)} of {len(self.checks)} failed" if self.failures else "all passed"
        table = Table(title=f"checks of {self.layer}", box=SIMPLE_HEAD, caption=caption)
        table.add_column("check", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("found", overflow="fold")
        for check in self.checks:
            table.add_row(check.name, styled(("ok", "green") if check.passed else ("WRONG", "red")), check.found)
        return table


def check_layer(layer: Layer, input_shape: Shape, *, x: Any = None, seed: int = 0) -> LayerCheck:
    """Try a layer of one's own in every way the package uses layers; returns what was checked, a table.

    Tried are its description and its shapes, its dtypes, its gradients against central differences in float64, that
    gradients add up, that inputs stay as they are, that a run repeats bit for bit, evaluation, what it promises
    (`batch_independent`, `capturable`, `supports_skip_dx`, `supports_fused_relu`), that its arrays never mix with the
    host's, its numbers on every backend of this machine, and that a saved model with it comes back.

    Arguments
        layer        the layer, built or not; it stays as it is
        input_shape  of one sample, such as (8, 8, 3)
        x            inputs (N, *input_shape) to try it with, N at least 2; without it random normal numbers
        seed         of these, of the weights and of its random streams

    Raises
        LayerError          a check failed; says which, with what was found and what was expected. Its `check` is what
                            would have been returned
        ConfigurationError  the arguments make no sense

    Example:
        >>> import gpucnn
        >>> gpucnn.check_layer(gpucnn.layers.Dense(3), input_shape=(4,)).failures
        []
    """
    subject = _Subject(layer, input_shape, x, seed)
    found: list[Check] = []
    for name, function in CHECKS:
        try:
            detail = function(subject)
        except _Wrong as error:
            found.append(Check(name, False, str(error)))
        except Exception as error:  # a layer of somebody else's may fail in any way
            found.append(Check(name, False, f"raised {type(error).__name__}: {error}{_where(error)}"))
        else:
            if detail:
                found.append(Check(name, True, detail))
            continue
        if function is _computes:  # then nothing else can be tried
            break
    result = LayerCheck(repr_of(layer), found)
    if result.failures:
        listed = "\n".join(f"  {check.name}: {check.found}" for check in result.failures)
        count = len(result.failures)
        raise LayerError(f"{result.layer} fails {count} of {len(found)} checks:\n{listed}", result)
    return result


def repr_of(layer: Layer) -> str:
    """Return a layer's repr, or its class where that fails."""
    try:
        return repr(layer)
    except Exception:
        return type(layer).__name__


class _Wrong(Exception):
    """A check failed."""


class _Subject:
    """The layer under test: twins of it in one state, and what they are given."""

    def __init__(self, layer: Any, input_shape: Any, x: Any, seed: int) -> None:
        if not isinstance(layer, Layer):
            hint = "; pass an object: MyLayer(…)" if isinstance(layer, type) else ""
            raise ConfigurationError(f"check_layer takes a Layer object, not {layer!r}{hint}")
        self.layer, self.input_shape, self.seed = layer, checked_shape(input_shape), seed
        self.random = host_generator(seed, "layer check")
        self.x = self.random.standard_normal((BATCH, *self.input_shape)) if x is None else np.asarray(x, "float64")
        if self.x.shape[1:] != self.input_shape or len(self.x) < 2:
            raise ConfigurationError(
                f"x has shape {self.x.shape}; expected at least two samples of shape {self.input_shape}"
            )
        self._can_vary = x is None
        self.state: dict[str, Any] | None = None

    def twin(self, backend: "Backend | str" = "numpy", dtype: str = "float64") -> Layer:
        """Return a built layer like the one under test, in the state that all checks begin with."""
        held = {id(layer.backend): layer.backend for layer in self.layer.all_layers()}
        twin = copy.deepcopy(self.layer, held)
        for parameter in twin.parameters().values():  # of a layer in use: as if it had never been trained
            parameter.grad, parameter.frozen = None, False
        twin.ensure_built(self.input_shape, host_generator(self.seed, "weights"))
        if self.state is None:
            twin.to("numpy", "float64")
            self.state = twin.state_dict()
            for path, parameter in twin.parameters().items():
                self.state[path] = self.state[path] + SHARE * self.random.standard_normal(parameter.shape)
        twin.to(backend, dtype)
        twin.load_state_dict(self.state)
        return twin

    def dy(self, shape: Shape) -> Any:
        """Return a gradient of the output, the same for one shape."""
        return host_generator(self.seed, "layer check dy").standard_normal(shape)

    def varied(self, step: int) -> Any:
        """Return other inputs in each step: other samples, signs, sizes, and zeros; if x was given, other samples."""
        x = np.roll(np.concatenate([self.x] * (1 + 16 // len(self.x))), step, axis=0)
        x[: step % len(x)] = x[0]
        if self._can_vary:
            drawn = np.random.default_rng(step).random(x.shape)
            x = x * np.where(drawn < 0.3, -1, np.where(drawn < 0.4, 0, 1 + 0.1 * step)) * (1000 if step == 6 else 1)
        return x

    def run(
        self, layer: Layer, x: Any = None, dtype: str = "float64", dy: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Return what a pass gives, as host arrays: y, dx, and the parameters' gradients by path."""
        backend = layer.backend
        given = backend.from_host((self.x if x is None else x).astype(dtype))
        y, way_back = layer.forward(given, train=True, **options)
        dx = way_back(backend.from_host((self.dy(tuple(y.shape)) if dy is None else dy).astype(dtype)))
        results = {"y": y, "dx": dx}
        results |= {f"the gradient of {path}": p.grad for path, p in layer.parameters().items() if p.grad is not None}
        return {what: backend.to_host(array) for what, array in results.items() if array is not None}


# --- the checks -------------------------------------------------------------------------------


def _described(subject: _Subject) -> str:
    """Check that the constructor's arguments are attributes, and lead back to the layer."""
    layer = subject.layer
    for name in type(layer).argument_names():
        if not hasattr(layer, name):
            raise _Wrong(
                f"the constructor takes {name!r}, but the layer has no attribute of that name; keep it: "
                f"self.{name} = {name}" + (", by super().__init__(name=name)" if name == "name" else "")
            )
    described = layer.config()
    again = Layer.from_config(described)
    if type(again) is not type(layer) or again.config() != described:
        raise _Wrong(f"made anew from its description it is {again!r}; each argument must be kept as it was given")
    return repr(layer)


def _computes(subject: _Subject) -> str:
    """Check that it builds, computes forward and back, and that all shapes are what they should be."""
    twin = subject.twin()
    declared = twin.output_shape
    if not isinstance(declared, tuple) or not all(isinstance(side, int) for side in declared):
        raise _Wrong(f"build returned {declared!r}; expected the output's shape without the batch, a tuple of integers")
    for count in (len(subject.x), 2, 1):
        try:
            y, way_back = subject.twin().forward(subject.x[:count].copy(), train=True)
        except ShapeError:
            if count == 1:  # such as a batch norm, which one sample tells nothing
                continue
            raise
        if tuple(y.shape) != (count, *declared):
            raise _Wrong(
                f"forward returned shape {tuple(y.shape)} for {count} samples; build promised {(count, *declared)}"
            )
        dx = way_back(subject.dy(tuple(y.shape)))
        wanted = (count, *subject.input_shape)
        if dx is None or tuple(dx.shape) != wanted:
            seen = "None" if dx is None else f"shape {tuple(dx.shape)}"
            raise _Wrong(f"the way back returned {seen} for {count} samples; expected dx in the shape of x, {wanted}")
    if not np.isfinite(subject.run(twin)["y"]).all():
        raise _Wrong("the output holds NaN or infinity for ordinary inputs; does it divide by 0 or take a logarithm?")
    return f"{subject.input_shape} → {declared}, {sum(p.size for p in twin.parameters().values()):,} parameters"


def _keeps_dtypes(subject: _Subject) -> str:
    """Check that float32 stays float32, and float64 float64."""
    for dtype in ("float32", "float64"):
        for what, array in subject.run(subject.twin(dtype=dtype), dtype=dtype).items():
            if str(array.dtype) != dtype:
                raise _Wrong(
                    f"{what} is {array.dtype} for inputs and parameters of {dtype}; make arrays with dtype=x.dtype, "
                    "and keep constants Python numbers"
                )
    return "float32 and float64"


def _leaves_inputs(subject: _Subject) -> str:
    """Check that neither x nor dy is written to."""
    x = subject.x.copy()
    y, way_back = subject.twin().forward(x, train=True)
    kept = subject.dy(tuple(y.shape))
    dy = kept.copy()
    way_back(dy)
    for what, array, before in (("x", x, subject.x), ("dy", dy, kept)):
        if not np.array_equal(array, before):
            raise _Wrong(f"{what} was changed; other layers still need it: compute into a new array")
    return "x and dy"


def _repeats(subject: _Subject) -> str:
    """Check that the same state and inputs give the same bits."""
    first, second = (subject.run(subject.twin()) for _ in range(2))
    for what, array in first.items():
        if array.tobytes() != second[what].tobytes():
            raise _Wrong(
                f"{what} differs between two runs from one state; draw random numbers with gpucnn.rng from a stream "
                "that is a Buffer(…, on_host=True), as Dropout does"
            )
    return "bit for bit"


def _evaluates(subject: _Subject) -> str:
    """Check that evaluation changes nothing, and depends on nothing that changes."""
    twin = subject.twin()
    before = twin.state_dict()
    first = twin.forward(subject.x, train=False)[0]
    for path, array in twin.state_dict().items():
        if not np.array_equal(array, before[path], equal_nan=True):
            raise _Wrong(f"forward with train=False changed {path}; only training may")
    if not np.array_equal(first, twin.forward(subject.x, train=False)[0]):
        raise _Wrong("two passes with train=False differ; evaluation must not draw random numbers")
    return "changes no state"


def _has_gradients(subject: _Subject) -> str:
    """Check every gradient against central differences of Σ y·dy."""
    twin, state = subject.twin(), subject.state or {}
    results = subject.run(twin)
    dy, worst, count = subject.dy(results["y"].shape), 0.0, 0
    arrays = {"dx": subject.x, **{f"the gradient of {path}": state[path] for path in twin.parameters()}}

    def objective(what: str, array: Any) -> float:
        changed = dict(state) if what == "dx" else state | {what.removeprefix("the gradient of "): array}
        twin.load_state_dict(changed)
        return float((twin.forward(array if what == "dx" else subject.x, train=True)[0] * dy).sum())

    for what, array in arrays.items():
        if what not in results:
            raise _Wrong(f"{what} is missing; the way back must hand it over: self.….add_grad(gradient)")
        given = results[what]
        for direction in _directions(array.shape, subject.random):
            above, below = (objective(what, array + sign * STEP * direction) for sign in (1, -1))
            numeric, claimed = (above - below) / (2 * STEP), float((given * direction).sum())
            allowed = TOLERANCE * max(1.0, float(np.abs(given).max()), abs(numeric))
            count, worst = count + 1, max(worst, abs(numeric - claimed) / (allowed / TOLERANCE))
            if not abs(numeric - claimed) <= allowed:
                place = np.argwhere(direction)
                at = f"at {tuple(map(int, place[0]))}" if len(place) == 1 else "in a random direction"
                raise _Wrong(
                    f"{what} is wrong {at}: the way back says {claimed:.6g}, a central difference {numeric:.6g}"
                )
    return f"{count} slopes, the worst off by {worst:.0e}"


def _directions(shape: Shape, random: np.random.Generator) -> Iterator[Any]:
    """Yield the directions that an array is changed in: each element, or some of many, and one of all together."""
    size = math.prod(shape)
    for place in range(size) if size <= MOST_ELEMENTS else random.choice(size, MOST_ELEMENTS, replace=False):
        direction = np.zeros(size)
        direction[place] = 1.0
        yield direction.reshape(shape)
    yield random.standard_normal(shape) / math.sqrt(max(size, 1))


def _adds_gradients(subject: _Subject) -> str:
    """Check that a layer that is used twice has twice the gradient."""
    once, twin = subject.run(subject.twin()), subject.twin()
    subject.run(twin)
    assert subject.state is not None
    twin.load_state_dict(subject.state)  # the same random draws again
    twice = subject.run(twin)
    for what, array in once.items():
        if what.startswith("the gradient") and not _same(twice[what], 2 * array):
            raise _Wrong(f"{what} is not twice as large after two passes; use add_grad, which adds, not an assignment")
    return "two passes add up" if len(once) > 2 else ""


def _skips_input_gradient(subject: _Subject) -> str:
    """Check what `supports_skip_dx` promises."""
    if not subject.layer.supports_skip_dx:
        return ""
    whole, part = subject.run(subject.twin()), subject.run(subject.twin(), need_dx=False)
    for what, array in whole.items():
        if what != "dx" and (what not in part or not _same(part[what], array)):
            raise _Wrong(f"{what} is another with need_dx=False, or missing; only dx may be left out")
    return "all else is the same"


def _applies_relu(subject: _Subject) -> str:
    """Check what `supports_fused_relu` promises."""
    if not subject.layer.supports_fused_relu:
        return ""
    plain = subject.twin().forward(subject.x, train=True)[0]
    dy = subject.dy(tuple(plain.shape))
    wanted = subject.run(subject.twin(), dy=dy * (plain > 0)) | {"y": np.maximum(plain, 0)}
    for what, array in subject.run(subject.twin(), dy=dy, fused_relu=True).items():
        if not _same(array, wanted[what]):
            raise _Wrong(f"{what} with fused_relu=True is not what the layer and then a ReLU give")
    return "as a ReLU behind it"


def _takes_shards(subject: _Subject) -> str:
    """Check what `batch_independent` promises, as far as one thread can tell: samples do not depend on each other."""
    if not subject.layer.batch_independent:
        return ""
    twin = subject.twin()
    before = Signature(twin)
    for train in (False, True):
        twin.forward(subject.x, train=train)
        if not before.is_current():
            raise _Wrong(
                "forward sets or changes an attribute, but batch_independent = True lets threads pass through side "
                "by side; keep what the way back needs in local variables, and numbers in buffers"
            )
    whole = subject.twin().forward(subject.x, train=False)[0]
    parts = [subject.twin().forward(part, train=False)[0] for part in (subject.x[:1], subject.x[1:])]
    if not _same(np.concatenate(parts), whole):
        raise _Wrong(
            "samples depend on each other, but batch_independent = True says that the batch may come in slices"
        )
    return "slices give what the batch gives"


class _Passes(Layer):
    """Add a parameter of 0 to x, whose gradient shows that of x."""

    batch_independent = capturable = True

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        self.shift = Parameter(np.zeros(input_shape))
        return input_shape

    def forward(self, x: Any, *, train: bool) -> tuple[Any, Backward]:
        def backward(dy: Any) -> Any:
            self.shift.add_grad(dy.sum(axis=0))
            return dy

        return x + self.shift.value, backward


def _is_captured(subject: _Subject) -> str:
    """Check what `capturable` promises: replays give what the layer gives, with other inputs and weights each time."""
    if not subject.layer.capturable:
        return ""
    eager, captured = (
        Model([_Passes(), subject.twin()], subject.input_shape, backend="numpy", dtype="float64") for _ in range(2)
    )
    eager.jit = False
    begin = {path: parameter.value.copy() for path, parameter in eager.parameters().items()}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        for step in range(REPLAYS):
            x, results = subject.varied(step), []
            for model in (eager, captured):
                for path, parameter in model.parameters().items():
                    parameter.value = begin[path] * (1 + 0.1 * step) * _signs(begin[path].shape, step)
                results.append(_results_of_step(model, x, subject))
            if reason := captured.why_not_captured or captured._sharded.captures.failure:
                raise _Wrong(
                    f"{reason}, but capturable = True says that a pass can be repeated without its Python; decide by "
                    "shapes alone, and compute with what belongs to arrays"
                )
            for what, array in results[0].items():
                if not np.array_equal(array, results[1][what], equal_nan=True):
                    raise _Wrong(
                        f"{what} of a recorded pass that is repeated is not what the layer gives, but capturable = "
                        "True; what changes from pass to pass must be in arrays, and drawn by gpucnn.rng"
                    )
    return "replays give the same bits"


def _results_of_step(model: Model, x: Any, subject: _Subject) -> dict[str, Any]:
    """Return what a training pass gives and leaves, and what inference gives then."""
    model.zero_grad()
    y, way_back = model.forward_train(x, capture=model.jit)
    way_back(subject.dy(tuple(y.shape)))
    results = {"y": y, "a gradient": model.flat_gradients().copy()} | model.state_dict()
    return results | {"y of inference": model.forward(x)[0]}


def _signs(shape: Shape, step: int) -> Any:
    """Return a sign for each element, another one in every second step."""
    return 1 - 2 * (step % 2) * (np.random.default_rng(step).random(shape) < SHARE)


def _keeps_off_the_host(subject: _Subject) -> str:
    """Check on a mock device that host and device arrays are never mixed."""
    backend = StrictBackend()
    twin = subject.twin(backend)
    try:
        found = subject.run(twin)
    except (TypeError, AttributeError) as error:  # HostMeetsDevice is a TypeError
        raise _Wrong(
            f"{error}{_where(error)}: on a GPU this fails; use self.backend.xp in place of numpy, and make constants "
            "with it"
        ) from error
    for what, array in subject.run(subject.twin()).items():
        if not _same(found[what], array):
            raise _Wrong(f"{what} differs on a mock device")
    return "no array of the host met one of the device"


def _agrees(subject: _Subject) -> str:
    """Check the numbers on every backend of this machine, in both precisions, against the reference kernels."""
    names = ["numpy"]
    with contextlib.suppress(BackendUnavailable):
        names.append(get_backend("cupy").name)
    x = np.concatenate([subject.x] * (1 + 16 // len(subject.x)))  # enough images for every path of the CPU engine
    for name in names:
        for dtype in ("float32", "float64"):
            model = Model([subject.twin()], subject.input_shape, seed=subject.seed, backend=name, dtype=dtype)
            result = parity(model, x, backend=name, reference="reference")
            if not result.agrees:
                raise _Wrong(f"on {name} in {dtype}: {result.verdict()}")
    return f"{', '.join(names)} against reference"


def _is_saved(subject: _Subject) -> str:
    """Check that a model with the layer comes back from a file."""
    model = Model([subject.twin()], subject.input_shape, seed=subject.seed, backend="numpy", dtype="float64")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        try:
            model.save(path)
            loaded = load(path, backend="numpy")
        except (GpucnnError, TypeError) as error:
            reason = str(error).replace(str(path), "the file")
            raise _Wrong(f"a model with it cannot be saved and loaded: {reason}") from error
    if not np.array_equal(loaded.predict(subject.x), model.predict(subject.x), equal_nan=True):
        raise _Wrong("a model with it predicts something else once saved and loaded; keep numbers in a Buffer")
    return "a saved model comes back"


CHECKS: tuple[tuple[str, Callable[[_Subject], str]], ...] = (
    ("description", _described),
    ("shapes", _computes),
    ("dtypes", _keeps_dtypes),
    ("inputs stay", _leaves_inputs),
    ("repeats", _repeats),
    ("evaluation", _evaluates),
    ("gradients", _has_gradients),
    ("gradients add up", _adds_gradients),
    ("supports_skip_dx", _skips_input_gradient),
    ("supports_fused_relu", _applies_relu),
    ("batch_independent", _takes_shards),
    ("capturable", _is_captured),
    ("device", _keeps_off_the_host),
    ("parity", _agrees),
    ("saving", _is_saved),
)


def _same(a: Any, b: Any) -> bool:
    """Tell whether two arrays of float64 are the same but for rounding."""
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-12))


def _where(error: BaseException) -> str:
    """Return the place in the user's own code that an error came from, if there is one."""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for file, line in places if PACKAGE not in file.parents and "site-packages" not in file.parts]
    return f" ({own[-1][0].name}, line {own[-1][1]})" if own else ""
