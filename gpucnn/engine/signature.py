"""What Python reads in a pass or a step, and whether it would still read the same.

A replay runs no Python of the layers, the loss or the optimizer. It is right as long as they would do the same again:
as long as the objects that they are made of, and the settings in these, have not changed since the capture.
"""

import operator
from collections import deque
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from gpucnn.backends import Backend
from gpucnn.core.config import Configurable
from gpucnn.layers.base import Buffer, Parameter
from gpucnn.optimizers.base import Optimizer
from gpucnn.optimizers.groups import Group

# what holds nothing that could change, or nothing that a layer would compute by
OWN = ("gpucnn.", "builtins", "types", "typing", "functools", "inspect")
ATOMS = (str, bytes, int, float, complex, type(None), type, ModuleType, BuiltinFunctionType, Backend)
VALUES = (bool, int, float, complex, str, bytes, type(None))  # the same if they are equal; all else if it is identical
PASSED_ON = {Optimizer: ("learning_rate", "steps"), Group: ("lr_multiplier",)}  # to each step, in arrays


class Signature:
    """What was held at one time by a network, and by other objects: all that can be reached from their attributes.

    That is the attributes of objects and their classes, the arrays of parameters and buffers (not the numbers in them,
    which every pass reads again), and what lists, dictionaries, sets and custom objects among them hold, at any depth.
    Left out are the variables of modules, what the package's own objects keep for themselves, and the learning rates
    and the count of an optimizer, which a captured step reads from arrays.

    Arguments:
        network: a layer with all that it holds.
        settings: other objects, each with the names of those attributes that count.
    """

    def __init__(self, network: Any, *settings: tuple[Any, tuple[str, ...]]) -> None:
        self._mappings: list[Any] = []  # attributes by name, dictionaries
        self._collections: list[Any] = []
        self._getters: list[Any] = []  # each reads some values of the object in the same place of the next list
        self._holders: list[Any] = []
        self._missing: list[tuple[Any, str]] = []
        self._visited: dict[int, Any] = {}  # keeps what was looked at, so that no other object gets its id
        self._visit(network)
        for holder, names in settings:
            self._visit_attributes(holder, names)
        self._copies, self._sizes = [dict(mapping) for mapping in self._mappings], self._sizes_now()
        for mapping, then in zip(self._mappings, self._copies, strict=True):
            unlike = [name for name, value in then.items() if not _equal_only_if_same(value)]
            self._read(mapping, operator.itemgetter, unlike)
        self._then = self._values_now()

    def is_current(self) -> bool:
        """Return whether they still hold the very same objects, or equal numbers and strings.

        Every step asks for it, so it loops in C: over dictionaries, and then over what can be equal but not the same.
        """
        try:
            if not all(map(operator.eq, self._mappings, self._copies)) or self._sizes_now() != self._sizes:
                return False
            now = self._values_now()
        except Exception:  # an attribute is gone, or an array is in the place of something else
            return False
        if self._missing and any(hasattr(holder, name) for holder, name in self._missing):
            return False
        return all(map(operator.is_, now, self._then)) or all(map(_is_same, now, self._then))

    def _sizes_now(self) -> list[int]:
        return list(map(len, self._collections))

    def _values_now(self) -> list[Any]:
        read = chain.from_iterable(map(operator.call, self._getters, self._holders))
        return [*read, *chain.from_iterable(self._collections)]

    def _read(self, holder: Any, getter: Any, names: list[Any]) -> None:
        if names:
            self._getters.append(getter(*names, names[0]))  # a tuple of one name, too
            self._holders.append(holder)

    def _visit(self, value: Any) -> None:
        """Remember what something holds, and what that holds."""
        if isinstance(value, ATOMS) or id(value) in self._visited or is_array(value):
            return
        self._visited[id(value)] = value
        if isinstance(value, dict):
            self._collections.append(value)  # the order of its keys
            self._visit_mapping(value)
        elif isinstance(value, list | tuple | set | frozenset | deque):
            if not isinstance(value, tuple | frozenset):
                self._collections.append(value)
            for item in value:
                self._visit(item)
        elif isinstance(value, FunctionType):  # what it found where it was defined
            for cell in value.__closure__ or ():
                self._visit_attributes(cell, ("cell_contents",))
        elif isinstance(value, partial):
            for held in (value.func, value.args, value.keywords):
                self._visit(held)
        elif isinstance(value, MethodType):
            self._visit(value.__self__)
        elif isinstance(value, Configurable | Parameter | Buffer) or not type(value).__module__.startswith(OWN):
            self._visit_object(value)

    def _visit_mapping(self, mapping: Any) -> None:
        self._mappings.append(mapping)
        for item in mapping.values():
            self._visit(item)

    def _visit_object(self, value: Any) -> None:
        """Look at the attributes of an object, and of its class and those that it inherits from."""
        if isinstance(value, Configurable):
            type(value).argument_names()  # which leaves a trace in the class when it is first asked for
        passed_on = [name for kind, names in PASSED_ON.items() if isinstance(value, kind) for name in names]
        if passed_on:
            self._collections.append(vars(value))  # its keys
            self._visit_attributes(value, tuple(name for name in vars(value) if name not in passed_on))
        elif hasattr(value, "__dict__"):
            self._visit_mapping(vars(value))
        for kind in type(value).__mro__[:-1]:
            slots = vars(kind).get("__slots__", ())
            self._visit_attributes(value, (slots,) if isinstance(slots, str) else tuple(slots))
            if id(kind) not in self._visited and kind.__module__ != "builtins":
                self._visited[id(kind)] = kind
                self._mappings.append(vars(kind))
                for name, item in vars(kind).items():
                    if name != "__annotations__" and not isinstance(item, FunctionType):
                        self._visit(item)

    def _visit_attributes(self, holder: Any, names: tuple[str, ...]) -> None:
        there = [name for name in names if hasattr(holder, name)]
        self._missing += [(holder, name) for name in names if name not in there]
        self._read(holder, operator.attrgetter, there)
        for name in there:
            self._visit(getattr(holder, name))


def is_array(value: Any) -> bool:
    """Return whether something is an array, of the host or a device: every pass reads its numbers again."""
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _equal_only_if_same(value: Any) -> bool:
    """Return whether what is equal to a value does the same."""
    return type(value).__eq__ is object.__eq__ or isinstance(value, str | bytes | BuiltinFunctionType)


def _is_same(now: Any, then: Any) -> bool:
    """Return whether a value does the same as another one: 0 and 0.0 do not, nor do 0.0 and −0.0."""
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(now, list | tuple):
        return len(now) == len(then) and all(map(_is_same, now, then))
    return isinstance(now, VALUES) and now == then and repr(now) == repr(then)
