"""Twins of a network, and whether a network is still what it was when something was made of it."""

import copy
import operator
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from gpucnn.backends import Backend
from gpucnn.core.config import Configurable
from gpucnn.layers.base import Buffer, Layer, Parameter

# what holds nothing that could change, or nothing that a layer would compute by
OWN = ("gpucnn.", "builtins", "types", "typing", "functools")
PLAIN = (str, bytes, int, float, complex, type(None), type, ModuleType, BuiltinFunctionType, Backend)


class NetworkSignature:
    """What a network held at one time: all that can be reached from its layers' attributes.

    That is the attributes of layers and their classes, the arrays of parameters and buffers (not the numbers in them,
    which are read anew in each pass), and what lists, dictionaries, sets and objects of the user's among them hold, at
    any depth. The variables of a module are not looked at, nor what the package's own objects keep for themselves.
    """

    def __init__(self, network: Layer) -> None:
        self._mappings: list[Any] = []
        self._collections: list[Any] = []
        self._slots: list[tuple[Any, str]] = []
        self._seen: dict[int, Any] = {}  # keeps what was looked at, so that no other thing gets its id
        self._look_at(network)
        self._sizes, self._then = self._sizes_now(), list(self._now())

    def is_current(self) -> bool:
        """Tell whether it still holds them: the very same objects, not equal ones."""
        return self._sizes_now() == self._sizes and all(map(operator.is_, self._now(), self._then))

    def _sizes_now(self) -> list[int]:
        return [*map(len, self._mappings), *map(len, self._collections)]

    def _now(self) -> Iterator[Any]:
        """Yield all that is held; in one chain, because this is asked in each step."""
        values = chain.from_iterable(map(operator.methodcaller("values"), self._mappings))
        others = chain.from_iterable((*self._mappings, *self._collections))
        return chain(values, others, (getattr(held, name, None) for held, name in self._slots))

    def _look_at(self, value: Any) -> None:
        """Remember what something holds, and what that holds."""
        if isinstance(value, PLAIN) or id(value) in self._seen or is_array(value):
            return
        self._seen[id(value)] = value
        if isinstance(value, dict):
            self._look_into(value)
        elif isinstance(value, list | tuple | set | frozenset | deque):
            if not isinstance(value, tuple | frozenset):
                self._collections.append(value)
            for item in value:
                self._look_at(item)
        elif isinstance(value, FunctionType | partial):
            self._look_into_function(value)
        elif isinstance(value, MethodType):
            self._look_at(value.__self__)
        elif isinstance(value, Configurable | Parameter | Buffer) or not type(value).__module__.startswith(OWN):
            self._look_into_object(value)

    def _look_into(self, mapping: Any) -> None:
        self._mappings.append(mapping)
        for item in mapping.values():
            self._look_at(item)

    def _look_into_function(self, value: Any) -> None:
        """Look at what a function found where it was made, and at what is given to one beforehand."""
        if isinstance(value, partial):
            for held in (value.func, value.args, value.keywords):
                self._look_at(held)
            return
        for cell in value.__closure__ or ():
            self._look_into_slots(cell, ("cell_contents",))

    def _look_into_object(self, value: Any) -> None:
        """Look at the attributes of an object, and of its class and those that it inherits from."""
        if hasattr(value, "__dict__"):
            self._look_into(vars(value))
        for kind in type(value).__mro__[:-1]:
            slots = vars(kind).get("__slots__", ())
            self._look_into_slots(value, (slots,) if isinstance(slots, str) else tuple(slots))
            if id(kind) not in self._seen and kind.__module__ != "builtins":
                self._seen[id(kind)] = kind
                self._mappings.append(vars(kind))
                for item in vars(kind).values():
                    if not isinstance(item, FunctionType):
                        self._look_at(item)

    def _look_into_slots(self, held: Any, names: tuple[str, ...]) -> None:
        for name in names:
            self._slots.append((held, name))
            self._look_at(getattr(held, name, None))


class Replica:
    """A twin of a network that shares the parameters' values with it, and has gradients and buffers of its own.

    What stands in several places of the network, such as a shared layer, does so in the twin.
    """

    def __init__(self, network: Layer) -> None:
        self._clones: dict[int, Any] = {}
        self._parameters: list[tuple[Parameter, Parameter]] = []  # of the network and of the twin
        self._buffers: list[tuple[Buffer, Buffer]] = []
        self.network = self._clone(network)
        self._signature = NetworkSignature(network)  # afterwards: to be copied leaves a trace in a class

    def _clone(self, value: Any) -> Any:
        """Return what the twin holds in the place of something that the network holds."""
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
        """Tell whether the network is still what it was when the twin was made."""
        return self._signature.is_current()

    def copy_buffers(self) -> None:
        """Take over the network's buffers; those of the twin are used in a pass, and then forgotten."""
        for buffer, clone in self._buffers:
            clone.value = buffer.value

    def clear_gradients(self) -> None:
        """Forget the twin's gradients."""
        for _, clone in self._parameters:
            clone.grad = None

    def reduce_gradients(self) -> None:
        """Add the twin's gradients to the network's."""
        for parameter, clone in self._parameters:
            if clone.grad is not None:
                parameter.add_grad(clone.grad)


def is_array(value: Any) -> bool:
    """Tell whether something is an array, of the host or a device: its numbers are read anew in each pass."""
    return hasattr(value, "dtype") and hasattr(value, "shape")
