"""`FlatState`: a network's parameters, their gradients, and its float buffers, each in one flat array.

One kernel then updates a whole group of parameters, and one averages all weights.

Several models may share layers; the layers' arrays are views of the flat arrays of the model that was bound last. The
others notice, and lay the current values out again: so all of them share the values, whichever is trained.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.errors import ConfigurationError
from gpucnn.layers.base import Buffer, Layer, Parameter
from gpucnn.layers.containers import Layers
from gpucnn.optimizers.layout import Layout

Held = tuple[dict[str, Any], str, Any]  # the attributes of a layer, the name of one, and its value


class FlatState:
    """Lays the state of a network out in flat arrays; its parameters and buffers are views of them from then on.

    `values` and `gradients` hold those of all parameters, group after group, as `layout` says, frozen or not; `buffers`
    holds all float buffers.
    """

    def __init__(self, network: Layer, backend: Backend, dtype: str, groups: Sequence[Sequence[str]]) -> None:
        xp, parameters = backend.xp, network.parameters()
        self.layout = Layout.of({path: p.shape for path, p in parameters.items()}, groups)
        self.values, self.gradients = (xp.zeros(self.layout.size, dtype=dtype) for _ in range(2))
        for path, parameter in parameters.items():
            part = self.layout.places[path].slice
            value, grad = (flat[part].reshape(parameter.shape) for flat in (self.values, self.gradients))
            value[...] = backend.from_host(parameter.value)
            if parameter.grad is not None:
                grad[...] = backend.from_host(parameter.grad)
            parameter.rebind(value, grad)
            parameter.of_a_model, parameter.frozen = True, parameter.frozen
        self.buffers = _flat_buffers(network, backend, dtype)
        self._held = list(_held(network))
        self._lists = list(_lists(network))
        self._parameters, self.frozen = parameters, [path for path, p in parameters.items() if p.frozen]
        self.average_over([slice(0, self.layout.size)])

    def average_over(self, ranges: list[slice]) -> None:
        """Set the ranges of parameters that averages of weights go over, besides all buffers of floats."""
        self.averageable_ranges = ranges
        self.averageable = [*(self.values[part] for part in ranges), self.buffers]

    def knows_frozen(self) -> bool:
        """Return whether `frozen` lists the parameters that are frozen now; if not, it does so from now on."""
        before, self.frozen = self.frozen, [path for path, p in self._parameters.items() if p.frozen]
        return before == self.frozen

    def is_bound(self) -> bool:
        """Return whether the network still holds the same objects, and these their views of the flat arrays."""
        for attributes, name, then in self._held:
            if attributes.get(name) is not then:
                return False
        return all(len(now) == len(then) and all(map(operator.is_, now, then)) for now, then in self._lists)

    def __getstate__(self) -> dict[str, Any]:
        """Copy only what an optimizer needs: the parameters of the copy are not views any more."""
        nowhere: Held = {}, "", self.layout
        return {"layout": self.layout, "values": self.values, "_held": [nowhere], "_lists": []}


def check_placed(network: Layer, backend: Backend, dtype: str, remedy: str) -> None:
    """Reject a network whose state is not on a backend, in a dtype.

    Raises:
        ConfigurationError: it was moved; says what, where to, and the remedy.
    """
    for layer in network.all_layers():
        for name, held in vars(layer).items():
            is_float = isinstance(held, Parameter) or (isinstance(held, Buffer) and _is_float(held))
            if is_float and (layer.backend.name != backend.name or held.value.dtype != dtype):
                raise ConfigurationError(
                    f"{layer.display_name}: its {name} is {held.value.dtype} on {layer.backend.name} by now, and "
                    f"belongs to a model that keeps {dtype} on {backend.name}; layer.to, or another Model of the same "
                    f"layers, has moved it. {remedy} moves all of it back; models that share layers need the same "
                    "backend and dtype"
                )


def check_shared_dtype(network: Layer, dtype: str) -> None:
    """Reject layers that belong to a model of another dtype, whose weights would lose digits.

    Raises:
        ConfigurationError: names the layer and both dtypes.
    """
    for layer in network.all_layers():
        for held in vars(layer).values():
            if isinstance(held, Parameter) and held.of_a_model and held.value.dtype != dtype:
                raise ConfigurationError(
                    f"{layer.display_name}: belongs to a model whose weights are {held.value.dtype} already, and "
                    f"here they would be {dtype}; models that share layers need the same dtype: pass it, move the "
                    "first by model.to, or pass copies, copy.deepcopy(layers)"
                )


def check_same_layers(network: Layer, layout: Layout) -> None:
    """Reject a network that has other parameters than those that were laid out."""
    shapes = {path: parameter.shape for path, parameter in network.parameters().items()}
    then = {path: place.shape for path, place in layout.places.items()}
    if shapes != then:
        changed = sorted(path for path in {**shapes, **then} if shapes.get(path) != then.get(path))
        raise ConfigurationError(
            f"the layers were changed since the model was made: it has other parameters now ({', '.join(changed)}); "
            "make a new Model of the layers"
        )


def _held(network: Layer) -> Iterator[Held]:
    """Yield what must not change as long as the network is bound, with the attribute that holds it.

    These are the layers' parameters, buffers, layers inside and backends, and the arrays of parameters and buffers.
    """
    for layer in {id(layer): layer for layer in network.all_layers()}.values():
        attributes = vars(layer)
        yield attributes, "backend", layer.backend
        for name, value in attributes.items():
            if isinstance(value, Parameter | Buffer | Layer | Layers):
                yield attributes, name, value
            if isinstance(value, Parameter):
                yield from ((vars(value), what, vars(value)[what]) for what in ("_value", "grad"))
            elif isinstance(value, Buffer) and not value.on_host:
                yield vars(value), "_value", value.value
            elif isinstance(value, dict):
                yield from ((value, key, item) for key, item in value.items() if isinstance(item, Layer))


def _lists(network: Layer) -> Iterator[tuple[list[Any], tuple[Any, ...]]]:
    """Yield the lists of layers that can be changed, each with its current items."""
    for layer in network.all_layers():
        for value in vars(layer).values():
            if isinstance(value, list) and not isinstance(value, Layers) and any(isinstance(i, Layer) for i in value):
                yield value, tuple(value)


def _is_float(buffer: Buffer) -> bool:
    return not buffer.on_host and buffer.value.dtype.kind == "f"


def _flat_buffers(network: Layer, backend: Backend, dtype: str) -> Array:
    """Lay all float buffers out in one flat array, and return it."""
    floats = {path: buffer for path, buffer in network.buffers().items() if _is_float(buffer)}
    layout = Layout.of({path: tuple(buffer.value.shape) for path, buffer in floats.items()}, [list(floats)])
    flat = backend.xp.zeros(layout.size, dtype=dtype)
    for path, place in layout.places.items():
        view = flat[place.slice].reshape(place.shape)
        view[...] = backend.from_host(floats[path].value)
        floats[path].rebind(view)
    return flat
