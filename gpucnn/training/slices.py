"""A batch passed through a network in slices, which the backend may compute on several threads at a time.

Each slice has a replica of the network: the same layers with the same parameters, but gradients and buffers of its own.
The gradients of all replicas are added in order; the buffers, such as running statistics, are those of the first, which
is the network itself. The loss is not the network's, so it always sees the whole batch.

    slice 0 ──▶ network    values ◀─┐         gradients ◀──────┐    buffers, which stay
                                    │ the same                 │ added after the pass
    slice 1 ──▶ replica    values ──┘         gradients ───────┘    buffers, copied before each pass
"""

import copy
import operator
from functools import partial
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.layers.base import Backward, Buffer, Layer, Parameter


class Sliced:
    """A network that takes a batch in slices where the backend wants it so and every layer allows it."""

    def __init__(self, network: Layer) -> None:
        self.network = network
        self.can_slice = all(layer.per_sample for layer in network.all_layers())
        self._flops = network.total_flops()
        self._replicas: list[Replica] = []

    def forward(
        self, backend: Backend, x: Array, *, train: bool, input_gradient: bool = True
    ) -> tuple[Array, Backward]:
        """Return the network's output for x (N, …) and the way back, as `network.forward` does."""
        slices = backend.slices(len(x), self._flops * len(x)) if self.can_slice else []
        options: dict[str, Any] = {} if input_gradient else {"input_gradient": False}
        if len(slices) < 2:
            return self.network.forward(x, train=train, **options)
        replicas = self._fresh_replicas(len(slices) - 1)
        networks = [self.network, *(replica.network for replica in replicas)]
        passes = [partial(n.forward, x[part], train=train, **options) for n, part in zip(networks, slices, strict=True)]
        outputs, ways_back = zip(*backend.together(passes, slices), strict=True)

        def backward(dy: Array) -> Array:
            for replica in replicas:
                replica.forget_gradients()
            tasks = [partial(back, dy[part]) for back, part in zip(ways_back, slices, strict=True)]
            dx = backend.together(tasks, slices)
            for replica in replicas:
                replica.hand_over_gradients()
            return backend.xp.concatenate(dx) if input_gradient else None

        return backend.xp.concatenate(outputs), backward

    def _fresh_replicas(self, count: int) -> "list[Replica]":
        """Return replicas that agree with the network as it is now: those of the last step, if nothing has changed."""
        kept = [replica for replica in self._replicas if replica.is_true()][:count]
        self._replicas = kept + [Replica(self.network) for _ in range(count - len(kept))]
        for replica in self._replicas:
            replica.copy_buffers()
        return self._replicas


class Replica:
    """A twin of a network that shares the parameters' values with it, and has gradients and buffers of its own.

    What stands in several places of the network, such as a shared layer, does so in the twin.
    """

    def __init__(self, network: Layer) -> None:
        self._twins: dict[int, Any] = {}
        self._layers: list[tuple[Layer, list[Any]]] = []  # of the network, with what they hold at this time
        self._parameters: list[tuple[Parameter, Parameter]] = []  # of the network and of the twin
        self._buffers: list[tuple[Buffer, Buffer]] = []
        self.network = self._twin(network)

    def _twin(self, value: Any) -> Any:
        """Return what the twin holds in the place of something that the network holds."""
        if isinstance(value, list | tuple) and any(isinstance(item, Layer) for item in value):
            items = [self._twin(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # a named tuple or not
        if isinstance(value, dict) and any(isinstance(item, Layer) for item in value.values()):
            twins = copy.copy(value)
            twins.update((key, self._twin(item)) for key, item in value.items())
            return twins
        if not isinstance(value, Layer | Parameter | Buffer):
            return value
        if id(value) in self._twins:
            return self._twins[id(value)]
        twin: Any = copy.copy(value)
        self._twins[id(value)] = twin
        if isinstance(value, Layer):
            self._layers.append((value, _held_by(value)))
            vars(twin).update({name: self._twin(held) for name, held in vars(value).items()})
        elif isinstance(value, Parameter):
            twin.grad = None
            self._parameters.append((value, twin))
        else:
            twin.rebind(value.value.copy())
            self._buffers.append((value, twin))
        return twin

    def is_true(self) -> bool:
        """Tell whether the network has the attributes and the arrays that it had when the twin was made."""
        for layer, then in self._layers:
            now = _held_by(layer)
            if len(now) != len(then) or not all(map(operator.is_, now, then)):
                return False
        return all(parameter.value is twin.value for parameter, twin in self._parameters)

    def copy_buffers(self) -> None:
        """Take over the network's buffers; those of the twin are used in a pass, and then forgotten."""
        for buffer, twin in self._buffers:
            twin.value = buffer.value

    def forget_gradients(self) -> None:
        """Forget the twin's gradients."""
        for _, twin in self._parameters:
            twin.grad = None

    def hand_over_gradients(self) -> None:
        """Add the twin's gradients to the network's."""
        for parameter, twin in self._parameters:
            if twin.grad is not None:
                parameter.add_grad(twin.grad)


def _held_by(layer: Layer) -> list[Any]:
    """Return the values of a layer's attributes, and what lists and dictionaries among them hold."""
    held: list[Any] = []
    for value in vars(layer).values():
        held.append(value)
        if isinstance(value, list):
            held += value
        elif isinstance(value, dict):
            held += value.values()
    return held
