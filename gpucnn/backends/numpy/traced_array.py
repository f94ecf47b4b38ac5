"""Arrays that list what is done with them, so that it can be done again.

A `TracedArray` does what every array of NumPy's does. But what is asked of it it hands on to plain arrays in the same
memory, and tells the tracer of its thread, if there is one, which call that was. NumPy has two protocols for this, one
for elementwise functions and products, the ufuncs, and one for its other functions; methods that use neither are
written out here.

    y = x * 2          TracedArray.__array_ufunc__(multiply, …)     traced: multiply(x, 2, out=y)
    y[1:] = 0          TracedArray.__setitem__                      traced: copyto(view of y, 0)
    x.reshape(…)       a view, nothing to trace                     or, where it must copy, traced: copyto(y, x)
    if x.max() > 0     TracedArray.__bool__                         the capture ends: Python decides by a number

Traced is what is known to be right when it is called again (see `known_calls.py`), and attributes that are listed
here; anything else ends the capture. So does a call that is given an array, or a number of NumPy's, that is neither
traced nor a constant: it is unknown what it was computed from, such as `np.asarray(x)`, which lies in the memory of x.
Neither protocol sees code in C that reads or writes memory by itself, `np.nditer` or SciPy, nor Python's numbers that
come of it, such as `memoryview(x)[0, 0]`: for these the first replay is compared with an eager pass
(engine/comparison.py).
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.numpy import known_calls
from gpucnn.backends.reference import Array

this_thread = threading.local()  # its `tracer`, while it traces

_base_of = np.ndarray.base.__get__
_interface_of = np.ndarray.__array_interface__.__get__
_attribute_of = np.ndarray.__getattribute__

# what calls may be given besides arrays: Python's numbers and strings, and placeholders
PYTHONS = (int, float, complex, str, type, np.dtype, type(None), type(Ellipsis), type(np._NoValue))


def current_tracer() -> Any:
    """Return the tracer of this thread, None if nothing is traced."""
    return getattr(this_thread, "tracer", None)


class TracedArray(np.ndarray[Any, Any]):
    """An array of which this thread's tracer lists what is done with it; a plain one where nothing is traced."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Call NumPy's function, and trace it with the array that it writes to."""
        tracer, out = current_tracer(), options.pop("out", None)
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        if tracer is not None:
            if ufunc not in known_calls.UFUNCS or method not in known_calls.UFUNC_METHODS:
                called = "" if method == "__call__" else f".{method}"
                tracer.fail(f"{known_calls.name_of(ufunc)}{called} is not captured")
            require_traced(tracer, [*inputs, *options.values()])
            _require_traced_out(tracer, out)
        plain_inputs, options = untraced_all(inputs), untraced_all(options)
        if out is not None:
            result, targets = out if ufunc.nout > 1 else out[0], untraced_all(out)
            function(*plain_inputs, out=targets, **options)
        else:
            returned = function(*plain_inputs, **options)
            if tracer is None or tracer.failure:
                return returned
            result = tracer.copy_like(returned)
            targets = (untraced(result),)
        if tracer is not None:
            tracer.append(function, *plain_inputs, out=targets[0], **options)
        return result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Call NumPy's function and trace it as one call, if it is one of those that may be replayed."""
        tracer, arguments, options = current_tracer(), untraced_all(args), untraced_all(kwargs)
        if tracer is None or func in known_calls.SHAPE_FUNCTIONS:
            return func(*arguments, **options)
        if func is np.copyto:
            require_traced(tracer, [*args[1:], *kwargs.values()])
            _require_traced_out(tracer, args[:1])
            tracer.append(func, *arguments, **options)
            return func(*arguments, **options)
        at = known_calls.OUT_AT.get(func, known_calls.NOWHERE)
        if len(args) == at + 1:
            kwargs, args = kwargs | {"out": args[at]}, args[:at]
        out = kwargs.get("out")
        inputs = {name: value for name, value in kwargs.items() if name != "out"}
        if why := _why_not(func, args, inputs, at):
            tracer.fail(why)
        require_traced(tracer, [*args, *inputs.values()])
        if tracer.failure:
            return func(*arguments, **options)
        if out is not None:
            _require_traced_out(tracer, out)
            tracer.append(func, *untraced_all(args), **untraced_all(kwargs))
            func(*untraced_all(args), **untraced_all(kwargs))
            return out
        if func in known_calls.IN_PARTS:
            return super().__array_function__(func, types, args, kwargs)
        if func in known_calls.FILLS:
            return tracer.filled(func(*arguments, **options), known_calls.FILLS[func])
        if func is np.concatenate:
            result = tracer.copy_like(func(*arguments, **options))
            tracer.append(func, *arguments, **options | {"out": untraced(result)})
            return result
        result = func(*arguments, **options)
        whose = _shares_memory(result, args)
        if whose is not None:
            return viewed(whose, lambda _: result)
        return tracer.trace_opaque(func, *arguments, **options)

    def __getattribute__(self, name: str) -> Any:
        """Return an attribute; while this thread traces, one that is not listed ends the capture."""
        if name not in LISTED:
            tracer = current_tracer()
            if tracer is not None:
                tracer.fail(f"numpy.ndarray.{name} is not captured")
        return _attribute_of(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute: another shape is a view, but nothing else is captured."""
        tracer = current_tracer()
        if tracer is not None and name != "shape":
            tracer.fail(f"setting numpy.ndarray.{name} is not captured")
        super().__setattr__(name, value)

    def __getitem__(self, key: Any) -> Any:
        """Return a view where the key asks for one; else trace the copy. A single number is a view as well."""
        tracer, indices = current_tracer(), untraced_all(key)
        if tracer is None:
            return untraced(self)[indices]
        require_traced(tracer, key)
        if _has_mask(key):
            tracer.fail("an array indexed by a mask, which is as long as the numbers want it, is not captured")
        if tracer.failure:
            return untraced(self)[indices]
        part = super().__getitem__(_view_key(indices))
        shares = _shares_memory(part, self) is not None
        return part if shares else tracer.trace_opaque(untraced(self).__getitem__, indices)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Copy, and trace it. An array is not copied to itself, which is how `array[key] += value` ends."""
        tracer, own, indices, new = current_tracer(), untraced(self), untraced_all(key), untraced_all(value)
        own[indices] = new
        if tracer is None:
            return
        require_traced(tracer, [key, value])
        _require_traced_out(tracer, (self,))
        by_mask = _has_mask(key)
        if by_mask and np.ndim(new):
            tracer.fail("several numbers assigned by a mask are not captured")
        target = own[_view_key(indices)]
        if by_mask or _shares_memory(target, own) is None:  # a mask that is true nowhere may be the next time
            tracer.append(own.__setitem__, indices, new)
        elif target.size and not (isinstance(new, np.ndarray) and _same_memory(target, new)):
            tracer.append(np.copyto, target, new, casting="unsafe")

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """Return a view where that can be; else trace the copy."""
        tracer, own = current_tracer(), untraced(self)
        result = super().reshape(*shape, **options)
        if tracer is None or _shares_memory(result, own) is not None:
            return result
        if options.get("order", "C") != "C":
            return tracer.trace_opaque(own.reshape, *shape, **options)
        copy = tracer.empty(result.shape, result.dtype)
        untraced(copy)[...] = result
        tracer.append(np.copyto, untraced(copy).reshape(own.shape), own)
        return copy

    def ravel(self, order: Any = "C") -> Any:
        """Return the elements as a vector."""
        return self.reshape(-1, order=order)

    def flatten(self, order: Any = "C") -> Any:
        """Return the elements as a separate vector."""
        return self.copy(order).reshape(-1, order=order)

    def copy(self, order: Any = "C") -> Any:
        """Copy, and trace it."""
        return self._cast(self.dtype, order)

    def astype(self, dtype: Any, order: Any = "K", casting: Any = "unsafe", subok: Any = True, copy: Any = True) -> Any:
        """Convert, and trace it."""
        return self if not copy and np.dtype(dtype) == self.dtype else self._cast(dtype, order, casting)

    def _cast(self, dtype: Any, order: Any, casting: Any = "unsafe") -> Any:
        tracer, own = current_tracer(), untraced(self)
        converted = own.astype(dtype, order, casting)
        if tracer is None:
            return converted
        require_traced(tracer, self)
        copy = tracer.copy_like(converted)
        tracer.append(np.copyto, untraced(copy), own, casting="unsafe")
        return copy

    def clip(self, min: Any = None, max: Any = None, out: Any = None, **options: Any) -> Any:
        """Bring what is outside of bounds to them."""
        return np.clip(self, min, max, out=out, **options)

    def fill(self, value: Any) -> None:
        """Fill, and trace it."""
        self[...] = value

    def view(self, *arguments: Any, **options: Any) -> Any:
        """Return a view; one that is not a traced array ends the capture."""
        tracer, result = current_tracer(), np.ndarray.view(self, *arguments, **options)
        if tracer is not None and not isinstance(result, TracedArray):
            tracer.fail(f"a view as {type(result).__name__} is not captured")
        return result

    def _by_function(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Call NumPy's function of that name in the place of the method."""
        return getattr(np, what)(self, *arguments, **options)

    def _untraceable(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Do what cannot be traced."""
        tracer = current_tracer()
        if tracer is not None:
            tracer.fail(f"numpy.ndarray.{what} is not captured")
        return getattr(untraced(self), what)(*untraced_all(arguments), **untraced_all(options))


def _make_method(how: Callable[..., Any], what: str) -> Callable[..., Any]:
    return lambda self, *arguments, **options: how(self, what, *arguments, **options)


# what NumPy does in C past both protocols has a function that uses one; so have means, which count in its numbers
for _name in (
    *("argmax", "argmin", "argpartition", "argsort", "choose", "cumsum", "cumprod", "diagonal", "dot", "mean"),
    *("repeat", "round", "searchsorted", "std", "take", "trace", "var"),
):
    setattr(TracedArray, _name, _make_method(TracedArray._by_function, _name))
# a number for Python, by which it may decide; a text, or a copy past what is traced; a change in place
for _name in (
    *("__bool__", "__int__", "__float__", "__complex__", "__index__", "item", "tolist", "tobytes", "nonzero"),
    *("__str__", "__repr__", "__format__", "__contains__", "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__"),
    *("sort", "partition", "put", "resize", "byteswap", "setfield", "compress"),
    "__buffer__",  # asked from Python 3.12 on; before, code in C takes the memory without a word
):
    setattr(TracedArray, _name, _make_method(TracedArray._untraceable, _name))

#: the attributes that are known: what says how an array lies, what makes a view, what ends in ufuncs, and what is above
LISTED = frozenset(
    {
        *("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "strides", "flags", "device", "setflags"),
        *("T", "mT", "real", "imag", "transpose", "swapaxes", "squeeze", "__class__", "__array_priority__", "__dict__"),
        *("sum", "prod", "max", "min", "any", "all", "conj", "conjugate"),
        *(name for name in vars(TracedArray) if not name.startswith("__array_")),
    }
)


class _ArrayInterface:
    """Where an array lies; NumPy makes another array there that keeps `base`, and not the array."""

    def __init__(self, array: Array, base: Any) -> None:
        self.__array_interface__ = _interface_of(array)
        self.base = base


def untraced(array: Any) -> Any:
    """Return a traced array as a plain one in the same memory, which it keeps; anything else as it is."""
    if not isinstance(array, TracedArray):
        return array
    if array.dtype.kind not in known_calls.NUMERIC:
        return np.ndarray.view(array, np.ndarray)
    maker = root_of(array)
    base = _base_of(maker)
    return np.asarray(_ArrayInterface(array, maker if base is None else base))


def viewed(array: Array, view_of: Callable[[Array], Array]) -> Array:
    """Return the view that a function makes of a plain array, of a traced one."""
    if not isinstance(array, TracedArray):
        return view_of(array)
    return np.asarray(_ArrayInterface(view_of(untraced(array)), root_of(array))).view(TracedArray)


def root_of(array: Array) -> Array:
    """Return the array that a traced one is a view of, or itself: its base is the memory, None if that is its own."""
    result, holder = array, array
    while holder is not None:
        result = holder if isinstance(holder, TracedArray) else result
        # an array, or what NumPy's functions put between two of them
        holder = _base_of(holder) if isinstance(holder, np.ndarray) else getattr(holder, "base", None)
    return result


def require_traced(tracer: Any, value: Any) -> None:
    """End the capture if a call is given what the tracer does not know, which may be computed from traced arrays."""
    if isinstance(value, TracedArray):
        if value.dtype.kind not in known_calls.NUMERIC:
            tracer.fail(f"an array of {value.dtype} is not captured")
        elif not tracer.owns(root_of(value)):
            tracer.fail("an array was computed by a call that is not captured")
    elif isinstance(value, np.ndarray):
        if not known_calls.is_constant(value):
            tracer.fail(
                "an array is used that NumPy made past the capture; make arrays with self.backend.xp, or keep constant "
                "ones as attributes of the layer"
            )
    elif isinstance(value, np.generic):
        kind = type(value).__name__
        tracer.fail(f"a number of NumPy's, a {kind}, is used; make it one of Python's by float(…) or int(…)")
    elif isinstance(value, list | tuple):
        for item in value:
            require_traced(tracer, item)
    elif isinstance(value, slice):
        require_traced(tracer, (value.start, value.stop, value.step))
    elif not isinstance(value, PYTHONS):
        tracer.fail(f"a call is given an object of {type(value).__name__}, which is not captured")


def _require_traced_out(tracer: Any, out: Any) -> None:
    """End the capture if an array is written to that is not traced: what is read of it would not be either."""
    for array in out if isinstance(out, tuple) else (out,):
        if array is not None and not (isinstance(array, TracedArray) and tracer.owns(root_of(array))):
            tracer.fail("an array is written to that is not captured; make it with self.backend.xp")


def _why_not(func: Any, args: Any, inputs: dict[str, Any], at: int) -> str:
    """Return why a call of a function is not captured, "" if it is one of those that are."""
    name = known_calls.name_of(func)
    of_one = func in known_calls.OF_ONE_ARRAY
    if not of_one and func not in known_calls.OF_ARRAYS | known_calls.IN_PARTS | known_calls.FILLS.keys():
        return f"{name} is not captured"
    if changing := known_calls.CHANGING & inputs.keys() or len(args) > at:
        return f"{name} is not captured with {', '.join(sorted(changing)) if isinstance(changing, set) else 'so much'}"
    if of_one and any(holds_traced(value) for value in (*args[1:], *inputs.values())):
        return f"{name} is not captured where more than its first argument is computed"
    return ""


def holds_traced(value: Any) -> bool:
    """Return whether a value is a traced array, or a list that holds one."""
    if isinstance(value, list | tuple):
        return any(map(holds_traced, value))
    return isinstance(value, TracedArray)


def _has_mask(key: Any) -> bool:
    """Return whether there are booleans among what indexes an array."""
    if isinstance(key, tuple | list):
        return any(map(_has_mask, key))
    return isinstance(key, np.ndarray) and key.dtype == bool


def untraced_all(value: Any) -> Any:
    """Return arguments with plain arrays in the place of traced ones."""
    if isinstance(value, list | tuple):
        items = map(untraced_all, value)
        return list(items) if isinstance(value, list) else tuple(items)
    if type(value) is dict:
        return {name: untraced_all(item) for name, item in value.items()}
    return untraced(value)


def _view_key(key: Any) -> Any:
    """Return a key by which an array returns a view without axes where it would return a number."""
    keys = key if isinstance(key, tuple) else (key,)
    return key if any(item is Ellipsis for item in keys) else (*keys, ...)


def _shares_memory(array: Any, others: Any) -> Any:
    """Return in the memory of which of some arrays another one lies, or None; one without elements lies anywhere."""
    if isinstance(others, list | tuple):
        return next((found for other in others if (found := _shares_memory(array, other)) is not None), None)
    if not isinstance(others, np.ndarray) or not isinstance(array, np.ndarray):
        return None
    shared = np.may_share_memory(np.ndarray.view(array, np.ndarray), np.ndarray.view(others, np.ndarray))
    return others if array.size == 0 or shared else None


def _same_memory(one: Array, other: Array) -> bool:
    """Return whether two arrays are the same elements of the same memory."""
    names = ("shape", "strides", "dtype")
    alike = all(getattr(one, name) == getattr(other, name) for name in names)
    return alike and one.ctypes.data == other.ctypes.data
