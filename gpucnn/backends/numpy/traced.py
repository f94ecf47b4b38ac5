"""Arrays of which it is noted what is done with them.

A `Traced` array does what every array of NumPy's does. But what it is asked for it hands on to plain arrays in the same
memory, and tells the recorder of its thread, if there is one, which call that was. NumPy has two doors for this, one
for elementwise functions and products, the ufuncs, and one for its other functions; methods that go through neither are
written out here.

    y = x * 2          Traced.__array_ufunc__(multiply, …)      noted: multiply(x, 2, out=y)
    y[1:] = 0          Traced.__setitem__                       noted: copyto(view of y, 0)
    x.reshape(…)       a view, nothing to note                  or, where it must copy, noted: copyto(y, x)
    if x.max() > 0     Traced.__bool__                          the recorder gives up: Python decides by a number
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any

# what asks for shapes and types alone
OF_SHAPES = {np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.may_share_memory, np.shares_memory}

this_thread = threading.local()  # its `recorder`, while it records


def recorder() -> Any:
    """Return who records what this thread computes, None if nobody does."""
    return getattr(this_thread, "recorder", None)


class Traced(np.ndarray[Any, Any]):
    """An array of which this thread's recorder notes what is done with it; a plain one where nobody records."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Call NumPy's function, and note it with the array that it writes to."""
        noting, out = recorder(), options.pop("out", None)
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        inputs, options = plained(inputs), plained(options)
        if noting is not None and (method == "at" or ufunc.nout > 1):
            noting.give_up(f"{ufunc.__name__}.{method} is not noted")
            noting = None
        if noting is not None and out is not None:
            _check_noted(out[0], noting)
        if out is not None:
            result, targets = out if ufunc.nout > 1 else out[0], plained(out)
            function(*inputs, out=targets, **options)
        else:
            returned = function(*inputs, **options)
            if noting is None:
                return returned
            result = noting.copy_of(returned)
            targets = (plain(result),)
        if noting is not None:
            noting.note(function, *inputs, out=targets[0], **options)
        return result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Let what NumPy's functions ask of arrays be noted; as one call where they ask nothing of them."""
        noting, arguments, options = recorder(), plained(args), plained(kwargs)
        if noting is None or func in OF_SHAPES:
            return func(*arguments, **options)
        if func is np.copyto or options.get("out") is not None:
            _check_noted(args[0] if func is np.copyto else kwargs["out"], noting)
            func(*arguments, **options)
            noting.note(func, *arguments, **options)
            return kwargs.get("out")
        if func in (np.empty_like, np.concatenate):
            result = noting.copy_of(func(*arguments, **options))
            if func is np.concatenate:
                noting.note(func, *arguments, **options | {"out": plain(result)})
            return result
        result = super().__array_function__(func, types, args, kwargs)
        if isinstance(result, Traced) and _maker(result).base is not None:
            return result  # a view, or what was noted meanwhile
        if isinstance(result, np.ndarray) and _lies_in(result, args):
            return result.view(Traced)
        return noting.result_of(func, *arguments, **options)

    def __getitem__(self, key: Any) -> Any:
        """Return a view where the key asks for one; else note the copy. A single number is a view as well."""
        noting, key = recorder(), plained(key)
        if noting is None:
            return plain(self)[key]
        part = super().__getitem__(_of_a_view(key))
        return part if _lies_in(part, self) else noting.result_of(plain(self).__getitem__, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Copy, and note it. An array is not copied to itself, which is how `array[key] += value` ends."""
        noting, own, key, new = recorder(), plain(self), plained(key), plain(value)
        own[key] = new
        if noting is None:
            return
        target = own[_of_a_view(key)]
        if not _lies_in(target, own):
            noting.note(own.__setitem__, key, new)
        elif target.size and not (isinstance(new, np.ndarray) and _same_place(target, new)):
            noting.note(np.copyto, target, new, casting="unsafe")

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """Return a view where that can be; else note the copy."""
        noting, own = recorder(), plain(self)
        made = super().reshape(*shape, **options)
        if noting is None or _lies_in(made, own):
            return made
        if options.get("order", "C") != "C":
            return noting.result_of(own.reshape, *shape, **options)
        copy = noting.empty(made.shape, made.dtype)
        plain(copy)[...] = made
        noting.note(np.copyto, plain(copy).reshape(own.shape), own)
        return copy

    def ravel(self, order: Any = "C") -> Any:
        """Return the elements as a vector."""
        return self.reshape(-1, order=order)

    def flatten(self, order: Any = "C") -> Any:
        """Return the elements as a vector of its own."""
        return self.copy(order).reshape(-1, order=order)

    def copy(self, order: Any = "C") -> Any:
        """Copy, and note it."""
        return self._converted(self.dtype, order)

    def astype(self, dtype: Any, order: Any = "K", casting: Any = "unsafe", subok: Any = True, copy: Any = True) -> Any:
        """Convert, and note it."""
        return self if not copy and np.dtype(dtype) == self.dtype else self._converted(dtype, order)

    def _converted(self, dtype: Any, order: Any) -> Any:
        noting, own = recorder(), plain(self)
        converted = own.astype(dtype, order)
        if noting is None:
            return converted
        copy = noting.copy_of(converted)
        noting.note(np.copyto, plain(copy), own, casting="unsafe")
        return copy

    def fill(self, value: Any) -> None:
        """Fill, and note it."""
        self[...] = value

    def _fresh(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Call a method that returns a fresh array or a number, and note it."""
        noting, method = recorder(), getattr(plain(self), what)
        arguments, options = plained(arguments), plained(options)
        return method(*arguments, **options) if noting is None else noting.result_of(method, *arguments, **options)

    def _refused(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Do what cannot be noted."""
        noting = recorder()
        if noting is not None:
            noting.give_up(f"{what} is not noted")
        return getattr(plain(self), what)(*plained(arguments), **plained(options))


def _method(how: Callable[..., Any], what: str) -> Callable[..., Any]:
    return lambda self, *arguments, **options: how(self, what, *arguments, **options)


for _name in ("argmax", "argmin", "argsort", "cumsum", "cumprod", "dot", "repeat", "searchsorted", "take", "trace"):
    setattr(Traced, _name, _method(Traced._fresh, _name))
# a number for Python, by which it may decide, and what changes arrays in place past all that notes it
for _name in (
    *("__bool__", "__int__", "__float__", "__complex__", "__index__", "item", "tolist", "tobytes", "nonzero"),
    *("sort", "partition", "put", "resize", "byteswap", "setfield"),
):
    setattr(Traced, _name, _method(Traced._refused, _name))


class _Place:
    """Where an array lies; NumPy makes another array there that keeps `base`, and not the array."""

    def __init__(self, array: Array, base: Any) -> None:
        self.__array_interface__ = array.__array_interface__
        self.base = base


def plain(value: Any) -> Any:
    """Return a traced array as a plain one in the same memory, which it keeps; anything else as it is."""
    if not isinstance(value, Traced):
        return value
    maker, noting = _maker(value), recorder()
    if noting is not None and maker.base is None:
        noting.give_up("an array was made in a way that is not noted")
    return np.asarray(_Place(value, maker if maker.base is None else maker.base))


def _maker(array: Array) -> Array:
    """Return the array that a traced one is a view of, or itself: its base is the memory, None if that is its own."""
    made, holder = array, array
    while holder is not None:
        made = holder if isinstance(holder, Traced) else made
        holder = getattr(holder, "base", None)  # an array, or what NumPy's functions put between two of them
    return made


def _check_noted(out: Array, noting: Any) -> None:
    """Let the recorder give up if an array that is written to is not traced: what is read of it would not be noted."""
    if not isinstance(out, Traced):
        noting.give_up("an array was written to that is not noted")


def plained(value: Any) -> Any:
    """Return arguments with plain arrays in the place of traced ones."""
    if type(value) in (list, tuple):
        return type(value)(map(plained, value))
    if type(value) is dict:
        return {name: plained(item) for name, item in value.items()}
    return plain(value)


def _of_a_view(key: Any) -> Any:
    """Return a key by which an array returns a view without axes where it would return a number."""
    keys = key if isinstance(key, tuple) else (key,)
    return key if any(item is Ellipsis for item in keys) else (*keys, ...)


def _lies_in(array: Array, others: Any) -> bool:
    """Tell whether an array lies in the memory of one of the others; one without elements lies anywhere."""
    if isinstance(others, list | tuple):
        return any(_lies_in(array, other) for other in others)
    if not isinstance(others, np.ndarray):
        return False
    return array.size == 0 or np.may_share_memory(array.view(np.ndarray), others.view(np.ndarray))


def _same_place(one: Array, other: Array) -> bool:
    """Tell whether two arrays are the same elements of the same memory."""
    names = ("shape", "strides", "dtype")
    alike = all(getattr(one, name) == getattr(other, name) for name in names)
    return alike and one.ctypes.data == other.ctypes.data
