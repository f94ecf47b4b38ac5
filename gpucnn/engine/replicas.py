"""Replicas of a network, one for each shard of a batch but the first."""

import copy
import operator
from typing import Any

from gpucnn.engine.signature import Signature
from gpucnn.layers.base import Buffer, Layer, Parameter


class Replica:
    """A copy of a network that shares the parameters' values with it, and has its own gradients and buffers.

    What stands in several places of the network, such as a shared layer, does so in the copy.
    """

    def __init__(self, network: Layer) -> None:
        self._clones: dict[int, Any] = {}
        self._parameters: list[tuple[Parameter, Parameter]] = []  # of the network and of its copy
        self._buffers: list[tuple[Buffer, Buffer]] = []
        self.network = self._clone(network)
        self._signature = Signature(network)  # afterwards: to be copied leaves a trace in a class

    def _clone(self, value: Any) -> Any:
        """Return what the copy holds in the place of something that the network holds."""
        if isinstance(value, list | tuple):
            items = [self._clone(item) for item in value]
            if all(map(operator.is_, items, value)):  # nothing of the network
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # a named tuple or not
        if isinstance(value, dict):
            held = {key: self._clone(item) for key, item in value.items()}
            if all(map(operator.is_, held.values(), value.values())):
                return value
            clones = copy.copy(value)
            clones.update(held)
            return clones
        if not isinstance(value, Layer | Parameter | Buffer):
            return value
        if id(value) in self._clones:
            return self._clones[id(value)]
        clone: Any = copy.copy(value)
        self._clones[id(value)] = clone
        if isinstance(value, Layer):
            vars(clone).update({name: self._clone(held) for name, held in vars(value).items()})
        elif isinstance(value, Parameter):
            clone.grad = None
            self._parameters.append((value, clone))
        else:
            clone.rebind(value.value.copy())
            self._buffers.append((value, clone))
        return clone

    def is_current(self) -> bool:
        """Return whether the network is still what it was when it was copied."""
        return self._signature.is_current()

    def copy_buffers(self) -> None:
        """Copy the network's buffers; those of the replica serve one pass."""
        for buffer, clone in self._buffers:
            clone.value = buffer.value

    def clear_gradients(self) -> None:
        """Clear the replica's gradients."""
        for _, clone in self._parameters:
            clone.grad = None

    def reduce_gradients(self) -> None:
        """Add the replica's gradients to the network's."""
        for parameter, clone in self._parameters:
            if clone.grad is not None:
                parameter.add_grad(clone.grad)
