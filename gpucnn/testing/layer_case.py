"""The layer under test in `check_layer`: copies of it in one state, their inputs, and helpers of all checks."""

import copy
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.backends import Backend
from gpucnn.engine.arguments import check_shape
from gpucnn.errors import ConfigurationError
from gpucnn.layers.base import Layer, Shape
from gpucnn.rng import host_generator

PACKAGE = Path(__file__).parents[1]
BATCH = 4
STD = 0.1  # of the noise added to parameters, so that no bias of 0 hides a fault


class CheckFailed(Exception):
    """A check failed."""


class Case:
    """The layer under test: clones of it in one state, and their inputs."""

    def __init__(self, layer: Any, input_shape: Any, x: Any, seed: int) -> None:
        if not isinstance(layer, Layer):
            hint = "; pass an object: MyLayer(…)" if isinstance(layer, type) else ""
            raise ConfigurationError(f"check_layer takes a Layer object, not {layer!r}{hint}")
        self.layer, self.input_shape, self.seed = layer, check_shape(input_shape), seed
        self.random = host_generator(seed, "layer check")
        self.x = self.random.standard_normal((BATCH, *self.input_shape)) if x is None else np.asarray(x, "float64")
        if self.x.shape[1:] != self.input_shape or len(self.x) < 2:
            raise ConfigurationError(
                f"x has shape {self.x.shape}; expected at least two samples of shape {self.input_shape}"
            )
        self._can_vary = x is None
        self.state: dict[str, Any] | None = None

    def clone(self, backend: "Backend | str" = "numpy", dtype: str = "float64") -> Layer:
        """Return a built copy of the layer, in the state that all checks start from."""
        held = {id(layer.backend): layer.backend for layer in self.layer.all_layers()}
        clone = copy.deepcopy(self.layer, held)
        for parameter in clone.parameters().values():  # a layer may have been trained before
            parameter.grad, parameter.frozen = None, False
        clone.ensure_built(self.input_shape, host_generator(self.seed, "weights"))
        if self.state is None:
            clone.to("numpy", "float64")
            self.state = clone.state_dict()
            for path, parameter in clone.parameters().items():
                self.state[path] = self.state[path] + STD * self.random.standard_normal(parameter.shape)
        clone.to(backend, dtype)
        clone.load_state_dict(self.state)
        return clone

    def dy(self, shape: Shape) -> Any:
        """Return a gradient of the output, the same for one shape."""
        return host_generator(self.seed, "layer check dy").standard_normal(shape)

    def varied(self, step: int) -> Any:
        """Return different inputs for each step: samples, signs, sizes and zeros vary; only samples if x was given."""
        x = np.roll(np.concatenate([self.x] * (1 + 16 // len(self.x))), step, axis=0)
        x[: step % len(x)] = x[0]
        if self._can_vary:
            drawn = np.random.default_rng(step).random(x.shape)
            x = x * np.where(drawn < 0.3, -1, np.where(drawn < 0.4, 0, 1 + 0.1 * step)) * (1000 if step == 6 else 1)
        return x

    def run(
        self, layer: Layer, x: Any = None, dtype: str = "float64", dy: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Return the results of a pass as host arrays: y, dx, and the parameters' gradients by path."""
        backend = layer.backend
        given = backend.from_host((self.x if x is None else x).astype(dtype))
        y, backward = layer.forward(given, train=True, **options)
        dx = backward(backend.from_host((self.dy(tuple(y.shape)) if dy is None else dy).astype(dtype)))
        results = {"y": y, "dx": dx}
        results |= {f"the gradient of {path}": p.grad for path, p in layer.parameters().items() if p.grad is not None}
        return {what: backend.to_host(array) for what, array in results.items() if array is not None}


def same(a: Any, b: Any) -> bool:
    """Return whether two float64 arrays are equal up to rounding."""
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-12))


def where(error: BaseException) -> str:
    """Return the line of the user's code that an error came from, if there is one."""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for file, line in places if PACKAGE not in file.parents and "site-packages" not in file.parts]
    return f" ({own[-1][0].name}, line {own[-1][1]})" if own else ""
