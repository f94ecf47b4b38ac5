"""A batch passed through a network in slices, which the backend may compute on several threads at a time.

Each slice has a replica of the network: the same layers with the same parameters, but gradients and buffers of its own.
The gradients of all replicas are added in order; the buffers, such as running statistics, are those of the first, which
is the network itself. The loss is not the network's, so it always sees the whole batch.
"""

import copy
from functools import partial
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.layers.base import Backward, Buffer, Layer, Parameter


def can_slice(network: Layer) -> bool:
    """Tell whether every layer of a network takes a batch in slices."""
    return all(layer.per_sample for layer in network.all_layers())


def forward(
    backend: Backend, network: Layer, x: Array, *, train: bool, input_gradient: bool = True
) -> tuple[Array, Backward]:
    """Return the network's output for x (N, …) and the way back, as `network.forward` does."""
    slices = backend.slices(len(x), network.total_flops() * len(x)) if can_slice(network) else []
    options: dict[str, Any] = {} if input_gradient else {"input_gradient": False}
    if len(slices) < 2:
        return network.forward(x, train=train, **options)
    replicas = [network, *(replica(network) for _ in slices[1:])]
    passes = [partial(r.forward, x[part], train=train, **options) for r, part in zip(replicas, slices, strict=True)]
    outputs, ways_back = zip(*backend.together(passes, slices), strict=True)

    def backward(dy: Array) -> Array:
        parameters = [list(r.parameters().values()) for r in replicas[1:]]
        for own in parameters:
            for parameter in own:
                parameter.rebind(parameter.value, None)
        dx = backend.together([partial(back, dy[part]) for back, part in zip(ways_back, slices, strict=True)], slices)
        for own in parameters:
            for parameter, twin in zip(network.parameters().values(), own, strict=True):
                if twin.grad is not None:
                    parameter.add_grad(twin.grad)
        return backend.xp.concatenate(dx) if input_gradient else None

    return backend.xp.concatenate(outputs), backward


def replica(layer: Layer, made: dict[int, Any] | None = None) -> Any:
    """Return a layer that shares the parameters' values with this one, and has gradients and buffers of its own.

    What stands in several places, such as a shared layer, does so in the replica: `made` holds the twins by identity.
    """
    made = {} if made is None else made
    if id(layer) in made:
        return made[id(layer)]
    twin = made[id(layer)] = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, Layer):
            setattr(twin, name, replica(value, made))
        elif isinstance(value, list | tuple) and any(isinstance(item, Layer) for item in value):
            setattr(twin, name, [replica(item, made) if isinstance(item, Layer) else item for item in value])
        elif isinstance(value, Parameter | Buffer):
            setattr(twin, name, made.setdefault(id(value), _twin(value)))
    return twin


def _twin(held: Parameter | Buffer) -> Parameter | Buffer:
    return Parameter(held.value) if isinstance(held, Parameter) else Buffer(held.value.copy(), on_host=held.on_host)
