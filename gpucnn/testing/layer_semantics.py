"""Checks of `check_layer`: config, shapes, dtypes, determinism, inference, and gradients by central differences."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.errors import ShapeError
from gpucnn.layers.base import Layer, Shape
from gpucnn.testing.layer_case import Case, CheckFailed, same

STEP = 1e-6  # of the central differences, in float64
TOLERANCE = 1e-5  # of a gradient, relative to its largest element
MAX_ELEMENTS = 100  # of an array whose gradient is checked element by element


def check_config(case: Case) -> str:
    """Check that the constructor's arguments are attributes, and that config() rebuilds the layer."""
    layer = case.layer
    for name in type(layer).argument_names():
        if not hasattr(layer, name):
            raise CheckFailed(
                f"the constructor takes {name!r}, but the layer has no attribute of that name; add "
                f"self.{name} = {name}" + (", by super().__init__(name=name)" if name == "name" else "")
            )
    config = layer.config()
    again = Layer.from_config(config)
    if type(again) is not type(layer) or again.config() != config:
        raise CheckFailed(f"rebuilt from its config() it is {again!r}; keep each argument as it was passed")
    return repr(layer)


def check_shapes(case: Case) -> str:
    """Check that the layer builds and runs forward and backward, with the declared shapes."""
    clone = case.clone()
    declared = clone.output_shape
    if not isinstance(declared, tuple) or not all(isinstance(side, int) for side in declared):
        raise CheckFailed(
            f"build returned {declared!r}; expected the output's shape without the batch, a tuple of integers"
        )
    for count in (len(case.x), 2, 1):
        try:
            y, backward = case.clone().forward(case.x[:count].copy(), train=True)
        except ShapeError:
            if count == 1:  # such as a batch norm, which needs several samples
                continue
            raise
        if tuple(y.shape) != (count, *declared):
            raise CheckFailed(
                f"forward returned shape {tuple(y.shape)} for {count} samples; build declared {(count, *declared)}"
            )
        dx = backward(case.dy(tuple(y.shape)))
        wanted = (count, *case.input_shape)
        if dx is None or tuple(dx.shape) != wanted:
            returned = "None" if dx is None else f"shape {tuple(dx.shape)}"
            raise CheckFailed(
                f"the backward function returned {returned} for {count} samples; expected the shape of x, {wanted}"
            )
    if not np.isfinite(case.run(clone)["y"]).all():
        raise CheckFailed(
            "the output holds NaN or infinity for normal inputs; does it divide by 0 or take a logarithm?"
        )
    return f"{case.input_shape} → {declared}, {sum(p.size for p in clone.parameters().values()):,} parameters"


def check_dtypes(case: Case) -> str:
    """Check that results have the dtype of the inputs."""
    for dtype in ("float32", "float64"):
        for what, array in case.run(case.clone(dtype=dtype), dtype=dtype).items():
            if str(array.dtype) != dtype:
                raise CheckFailed(
                    f"{what} is {array.dtype} for inputs and parameters of {dtype}; make arrays with dtype=x.dtype, "
                    "and keep constants Python numbers"
                )
    return "float32 and float64"


def check_inputs_unchanged(case: Case) -> str:
    """Check that neither x nor dy is modified."""
    x = case.x.copy()
    y, backward = case.clone().forward(x, train=True)
    original = case.dy(tuple(y.shape))
    dy = original.copy()
    backward(dy)
    for what, array, before in (("x", x, case.x), ("dy", dy, original)):
        if not np.array_equal(array, before):
            raise CheckFailed(f"{what} was modified; other layers still need it: compute into a new array")
    return "x and dy"


def check_deterministic(case: Case) -> str:
    """Check that the same state and inputs give bitwise identical results."""
    first, second = (case.run(case.clone()) for _ in range(2))
    for what, array in first.items():
        if array.tobytes() != second[what].tobytes():
            raise CheckFailed(
                f"{what} differs between two runs from one state; draw random numbers with gpucnn.rng from a stream "
                "that is a Buffer(…, on_host=True), as Dropout does"
            )
    return "bit for bit"


def check_inference(case: Case) -> str:
    """Check that inference changes no state and is deterministic."""
    clone = case.clone()
    before = clone.state_dict()
    first = clone.forward(case.x, train=False)[0]
    for path, array in clone.state_dict().items():
        if not np.array_equal(array, before[path], equal_nan=True):
            raise CheckFailed(f"forward with train=False changed {path}; only training may")
    if not np.array_equal(first, clone.forward(case.x, train=False)[0]):
        raise CheckFailed("two passes with train=False differ; inference must not draw random numbers")
    return "changes no state"


def check_gradients(case: Case) -> str:
    """Check every gradient against central differences of Σ y·dy."""
    clone, state = case.clone(), case.state or {}
    results = case.run(clone)
    dy, worst, count = case.dy(results["y"].shape), 0.0, 0
    arrays = {"dx": case.x, **{f"the gradient of {path}": state[path] for path in clone.parameters()}}

    def objective(what: str, array: Any) -> float:
        changed = dict(state) if what == "dx" else state | {what.removeprefix("the gradient of "): array}
        clone.load_state_dict(changed)
        return float((clone.forward(array if what == "dx" else case.x, train=True)[0] * dy).sum())

    for what, array in arrays.items():
        if what not in results:
            raise CheckFailed(f"{what} is missing; the backward function must add it: self.….add_grad(gradient)")
        given = results[what]
        for direction in _directions(array.shape, case.random):
            above, below = (objective(what, array + sign * STEP * direction) for sign in (1, -1))
            numeric, claimed = (above - below) / (2 * STEP), float((given * direction).sum())
            allowed = TOLERANCE * max(1.0, float(np.abs(given).max()), abs(numeric))
            count, worst = count + 1, max(worst, abs(numeric - claimed) / (allowed / TOLERANCE))
            if not abs(numeric - claimed) <= allowed:
                place = np.argwhere(direction)
                at = f"at {tuple(map(int, place[0]))}" if len(place) == 1 else "in a random direction"
                raise CheckFailed(
                    f"{what} is wrong {at}: the backward function gives {claimed:.6g}, "
                    f"a central difference {numeric:.6g}"
                )
    return f"{count} directional derivatives, largest error {worst:.0e}"


def _directions(shape: Shape, random: np.random.Generator) -> Iterator[Any]:
    """Yield directions to change an array in: each element, or some of many, and one random direction."""
    size = math.prod(shape)
    for place in range(size) if size <= MAX_ELEMENTS else random.choice(size, MAX_ELEMENTS, replace=False):
        direction = np.zeros(size)
        direction[place] = 1.0
        yield direction.reshape(shape)
    yield random.standard_normal(shape) / math.sqrt(max(size, 1))


def check_accumulation(case: Case) -> str:
    """Check that gradients of two passes add up."""
    once, clone = case.run(case.clone()), case.clone()
    case.run(clone)
    assert case.state is not None
    clone.load_state_dict(case.state)  # the same random draws again
    twice = case.run(clone)
    for what, array in once.items():
        if what.startswith("the gradient") and not same(twice[what], 2 * array):
            raise CheckFailed(
                f"{what} is not twice as large after two passes; use add_grad, which adds, instead of an assignment"
            )
    return "two passes accumulate" if len(once) > 2 else ""
