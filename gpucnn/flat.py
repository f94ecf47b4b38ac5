"""`FlatState`: a network's parameters, their gradients, and its buffers of floats, each laid in one flat array.

One update then serves a whole group of parameters, and an average of weights is one kernel.
"""

from collections.abc import Sequence

from gpucnn.backends import Array, Backend
from gpucnn.layers.base import Layer
from gpucnn.layout import Layout


class FlatState:
    """Lays the state of a network in flat arrays; what its parameters and buffers hold are views of them from then on.

    `values` and `gradients` are of all parameters, group after group, as `layout` says; `averaged` lists what an
    average of weights goes over: all parameters that are not frozen, and all buffers of floats.
    """

    def __init__(self, network: Layer, backend: Backend, dtype: str, groups: Sequence[Sequence[str]]) -> None:
        xp, parameters = backend.xp, network.parameters()
        frozen = [path for path, parameter in parameters.items() if parameter.frozen]
        self.layout = Layout.of({path: p.shape for path, p in parameters.items()}, groups, frozen)
        self.values, self.gradients = (xp.zeros(self.layout.size, dtype=dtype) for _ in range(2))
        for path, parameter in parameters.items():
            part = self.layout.places[path].part
            value, grad = (flat[part].reshape(parameter.shape) for flat in (self.values, self.gradients))
            value[...] = parameter.value
            if parameter.grad is not None and not parameter.frozen:
                grad[...] = parameter.grad
            parameter.rebind(value, grad)
        self.averaged = [self.values[self.layout.trainable], _flat_buffers(network, backend, dtype)]


def _flat_buffers(network: Layer, backend: Backend, dtype: str) -> Array:
    """Lay all buffers of floats in one flat array, and return it."""
    floats = {path: b for path, b in network.buffers().items() if not b.on_host and b.value.dtype.kind == "f"}
    layout = Layout.of({path: tuple(buffer.value.shape) for path, buffer in floats.items()}, [list(floats)])
    flat = backend.xp.zeros(layout.size, dtype=dtype)
    for path, place in layout.places.items():
        view = flat[place.part].reshape(place.shape)
        view[...] = floats[path].value
        floats[path].rebind(view)
    return flat
