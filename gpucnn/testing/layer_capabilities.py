"""Checks of `check_layer`: what a layer declares, every backend against the reference, and saving."""

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.backends import get_backend
from gpucnn.engine.signature import Signature
from gpucnn.errors import BackendUnavailable, CaptureWarning, GpucnnError
from gpucnn.layers.base import Backward, Layer, Parameter, Shape
from gpucnn.model import Model, load
from gpucnn.testing.layer_case import STD, Case, CheckFailed, same, where
from gpucnn.testing.parity import parity
from gpucnn.testing.strict import StrictBackend

REPLAYS = 9  # steps: the third is compared with a replay, the later ones are replays


def check_skip_dx(case: Case) -> str:
    """Check the declaration `supports_skip_dx`."""
    whole, part = case.run(case.clone()), case.run(case.clone(), need_dx=False)
    for what, array in whole.items():
        if what != "dx" and (what not in part or not same(part[what], array)):
            raise CheckFailed(f"{what} differs with need_dx=False, or is missing; only dx may be left out")
    return "parameter gradients are the same"


def check_fused_relu(case: Case) -> str:
    """Check the declaration `supports_fused_relu`."""
    plain = case.clone().forward(case.x, train=True)[0]
    dy = case.dy(tuple(plain.shape))
    wanted = case.run(case.clone(), dy=dy * (plain > 0)) | {"y": np.maximum(plain, 0)}
    for what, array in case.run(case.clone(), dy=dy, fused_relu=True).items():
        if not same(array, wanted[what]):
            raise CheckFailed(f"{what} with fused_relu=True differs from the layer followed by a ReLU")
    return "same as the layer followed by a ReLU"


def check_sharding(case: Case) -> str:
    """Check the declaration `batch_independent`, on one thread: samples do not depend on each other."""
    clone = case.clone()
    before = Signature(clone)
    for train in (False, True):
        clone.forward(case.x, train=train)
        if not before.is_current():
            raise CheckFailed(
                "forward changes an attribute, but batch_independent = True lets several threads call it at once; "
                "keep what the backward pass needs in local variables, and state in buffers"
            )
    whole = case.clone().forward(case.x, train=False)[0]
    parts = [case.clone().forward(part, train=False)[0] for part in (case.x[:1], case.x[1:])]
    if not same(np.concatenate(parts), whole):
        raise CheckFailed(
            "samples depend on each other, but batch_independent = True allows splitting the batch into shards"
        )
    return "shards give the results of the batch"


class _Identity(Layer):
    """Add a parameter of 0 to x, whose gradient is that of x."""

    batch_independent = capturable = True

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        self.shift = Parameter(np.zeros(input_shape))
        return input_shape

    def forward(self, x: Any, *, train: bool) -> tuple[Any, Backward]:
        def backward(dy: Any) -> Any:
            self.shift.add_grad(dy.sum(axis=0))
            return dy

        return x + self.shift.value, backward


def check_capture(case: Case) -> str:
    """Check the declaration `capturable`: replays match eager passes, with different inputs and weights each time."""
    eager, captured = (
        Model([_Identity(), case.clone()], case.input_shape, backend="numpy", dtype="float64") for _ in range(2)
    )
    eager.jit = False
    begin = {path: parameter.value.copy() for path, parameter in eager.parameters().items()}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        for step in range(REPLAYS):
            x, results = case.varied(step), []
            for model in (eager, captured):
                for path, parameter in model.parameters().items():
                    parameter.value = begin[path] * (1 + 0.1 * step) * _signs(begin[path].shape, step)
                results.append(_results_of_step(model, x, case))
            if reason := captured.why_not_captured or captured._sharded.captures.failure:
                raise CheckFailed(
                    f"{reason}, but capturable = True declares that a pass can be replayed without its Python code; "
                    "branch on shapes alone, and compute with array operations"
                )
            for what, array in results[0].items():
                if not np.array_equal(array, results[1][what], equal_nan=True):
                    raise CheckFailed(
                        f"{what} of a replayed pass differs from an eager one, but capturable = True; what changes "
                        "from pass to pass must be in arrays, and random numbers come from gpucnn.rng"
                    )
    return "replays are bitwise identical"


def _results_of_step(model: Model, x: Any, case: Case) -> dict[str, Any]:
    """Return the results of a training pass, the state after it, and the output of inference."""
    model.zero_grad()
    y, backward = model.forward_train(x, capture=model.jit)
    backward(case.dy(tuple(y.shape)))
    results = {"y": y, "a gradient": model.flat_gradients().copy()} | model.state_dict()
    return results | {"y of inference": model.forward(x)[0]}


def _signs(shape: Shape, step: int) -> Any:
    """Return a sign for each element, some of them negative in every second step."""
    return 1 - 2 * (step % 2) * (np.random.default_rng(step).random(shape) < STD)


def check_device(case: Case) -> str:
    """Check on a mock device that host and device arrays are never mixed."""
    backend = StrictBackend()
    clone = case.clone(backend)
    try:
        found = case.run(clone)
    except (TypeError, AttributeError) as error:  # HostDeviceMixError is a TypeError
        raise CheckFailed(
            f"{error}{where(error)}: on a GPU this fails; use self.backend.xp in place of numpy, and make constants "
            "with it"
        ) from error
    for what, array in case.run(case.clone()).items():
        if not same(found[what], array):
            raise CheckFailed(f"{what} differs on a mock device")
    return "host and device arrays are never mixed"


def check_parity(case: Case) -> str:
    """Check the numbers on every backend of this machine, in both precisions, against the reference kernels."""
    names = ["numpy"]
    with contextlib.suppress(BackendUnavailable):
        names.append(get_backend("cupy").name)
    x = np.concatenate([case.x] * (1 + 16 // len(case.x)))  # enough images for every algorithm of the CPU engine
    for name in names:
        for dtype in ("float32", "float64"):
            model = Model([case.clone()], case.input_shape, seed=case.seed, backend=name, dtype=dtype)
            result = parity(model, x, backend=name, reference="reference")
            if not result.agrees:
                raise CheckFailed(f"on {name} in {dtype}: {result.verdict()}")
    return f"{', '.join(names)} against reference"


def check_saving(case: Case) -> str:
    """Check that a model with the layer can be saved and loaded."""
    model = Model([case.clone()], case.input_shape, seed=case.seed, backend="numpy", dtype="float64")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        try:
            model.save(path)
            loaded = load(path, backend="numpy")
        except (GpucnnError, TypeError) as error:
            reason = str(error).replace(str(path), "the file")
            raise CheckFailed(f"a model with it cannot be saved and loaded: {reason}") from error
    if not np.array_equal(loaded.predict(case.x), model.predict(case.x), equal_nan=True):
        raise CheckFailed("a model with it predicts something else after saving and loading; keep state in a Buffer")
    return "a loaded model gives the same predictions"
