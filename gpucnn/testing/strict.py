"""A mock device: a backend whose arrays raise when mixed with host arrays, so that any laptop can test the boundary.

`DeviceArray` wraps a NumPy array without being one. Arithmetic works between device arrays and with Python numbers; a
NumPy array on the other side raises, `np.asarray(device_array)` raises, and every read to the host is counted. What
runs here runs on a GPU as far as arrays are concerned; `gpucnn.check_layer` tests layers on it.
"""

import operator
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.base import Backend


class HostDeviceMixError(TypeError):
    """Host and device arrays were mixed without `from_host` or `to_host`."""


class DeviceArray:
    """An array that only the strict backend can read."""

    __slots__ = ("_data", "_owner")
    __array_ufunc__ = None  # makes NumPy's operators defer to those of this class

    def __init__(self, data: Any, owner: "StrictBackend") -> None:
        self._data, self._owner = data, owner

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise HostDeviceMixError("implicit conversion of a device array to a host array; use backend.to_host")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the protocols by which NumPy would read the array
            raise AttributeError(name)
        value = getattr(self._data, name)
        return self._owner.function(value) if callable(value) else self._owner.wrap(value)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        return self._owner.wrap(self._data[self._owner.unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._data[self._owner.unwrap(index)] = self._owner.unwrap(value)

    def __repr__(self) -> str:
        return f"DeviceArray({self._data!r})"


def _method(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    """Return a method that calls a function of NumPy arrays, with `reflected` on the operands in reverse."""

    def method(self: DeviceArray, *others: Any) -> Any:
        operands = (*others, self) if reflected else (self, *others)
        return self._owner.function(function)(*operands)

    return method


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: DeviceArray, other: Any) -> DeviceArray:
        self._data = function(self._data, self._owner.unwrap(other))
        return self

    return method


def _read(kind: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: DeviceArray) -> Any:
        self._owner.reads += 1
        return kind(self._data)

    return method


_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
for _name in (*_ARITHMETIC, "lt", "le", "gt", "ge", "eq", "ne", "neg", "invert", "abs"):
    _function = getattr(operator, f"__{_name}__")
    setattr(DeviceArray, f"__{_name}__", _method(_function))
    if _name in _ARITHMETIC:
        setattr(DeviceArray, f"__r{_name}__", _method(_function, reflected=True))
        setattr(DeviceArray, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))
for _kind in (bool, float, int):
    setattr(DeviceArray, f"__{_kind.__name__}__", _read(_kind))
setattr(DeviceArray, "__hash__", None)  # noqa: B010 (mypy would not take an assignment for a method)


class StrictModule:
    """NumPy's functions, for device arrays only."""

    def __init__(self, owner: "StrictBackend", module: types.ModuleType = np) -> None:
        self._owner, self._module = owner, module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, types.ModuleType):
            return StrictModule(self._owner, value)
        return self._owner.function(value) if callable(value) and not isinstance(value, type) else value


class StrictBackend(Backend):
    """The reference kernels on a mock device."""

    name = "strict"
    is_host = False

    def __init__(self) -> None:
        self.xp = StrictModule(self)
        self.reads = 0

    def wrap(self, value: Any) -> Any:
        """Return NumPy's results as arrays of the device."""
        if isinstance(value, np.ndarray | np.generic):
            return DeviceArray(np.asarray(value), self)
        if isinstance(value, tuple) and any(isinstance(item, np.ndarray) for item in value):
            return tuple(self.wrap(item) for item in value)
        return value

    def unwrap(self, value: Any) -> Any:
        """Return arrays of the device as NumPy arrays; a host array raises."""
        if isinstance(value, DeviceArray):
            return value._data
        if isinstance(value, np.ndarray):
            raise HostDeviceMixError(f"a host array {value.shape} was mixed with a device array; use backend.from_host")
        if isinstance(value, tuple | list):
            return type(value)(self.unwrap(item) for item in value)
        return value

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a NumPy function as one of device arrays."""

        def call(*args: Any, **kwargs: Any) -> Any:
            given = [self.unwrap(argument) for argument in args]
            named = {name: self.unwrap(argument) for name, argument in kwargs.items()}
            return self.wrap(function(*given, **named))

        return call

    def from_host(self, array: Any) -> Any:
        """Return a device array."""
        return array if isinstance(array, DeviceArray) else DeviceArray(np.array(array), self)

    def to_host(self, array: Any) -> Any:
        """Return a host array, and count the read."""
        if not isinstance(array, DeviceArray):
            raise HostDeviceMixError(f"to_host got a {type(array).__name__}, which is on the host already")
        self.reads += 1
        return np.array(array._data)

    def erf(self, x: Any) -> Any:
        """Return the error function of x."""
        return self.wrap(super().erf(self.unwrap(x)))
