"""Twins of a network, and whether a network is still what it was when something was made of it."""

import copy
import operator
from typing import Any

from gpucnn.layers.base import Buffer, Layer, Parameter


class Fingerprint:
    """What a network held at one time: the attributes of its layers, and the arrays of its parameters and buffers."""

    def __init__(self, network: Layer) -> None:
        self._layers = [(layer, _held_by(layer)) for layer in network.all_layers()]
        self._parameters = [(p, p.value, p.grad, p.learns) for p in network.parameters().values()]
        self._buffers = [(buffer, buffer.value) for buffer in network.buffers().values()]

    def is_true(self) -> bool:
        """Tell whether it still holds them."""
        for layer, then in self._layers:
            now = _held_by(layer)
            if len(now) != len(then) or not all(map(operator.is_, now, then)):
                return False
        return all(
            parameter.value is value and parameter.grad is grad and parameter.learns is learns
            for parameter, value, grad, learns in self._parameters
        ) and all(buffer.value is value for buffer, value in self._buffers)


class Replica:
    """A twin of a network that shares the parameters' values with it, and has gradients and buffers of its own.

    What stands in several places of the network, such as a shared layer, does so in the twin.
    """

    def __init__(self, network: Layer) -> None:
        self._twins: dict[int, Any] = {}
        self._fingerprint = Fingerprint(network)
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
            vars(twin).update({name: self._twin(held) for name, held in vars(value).items()})
        elif isinstance(value, Parameter):
            twin.grad = None
            self._parameters.append((value, twin))
        else:
            twin.rebind(value.value.copy())
            self._buffers.append((value, twin))
        return twin

    def is_true(self) -> bool:
        """Tell whether the network is still what it was when the twin was made."""
        return self._fingerprint.is_true()

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
