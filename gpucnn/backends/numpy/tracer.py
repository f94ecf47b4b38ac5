"""What a pass asks of NumPy, traced as a list of calls and replayed without the Python between them.

A pass through a network makes the same calls each time, on arrays of the same shapes: only the numbers differ. So they
are listed while a pass runs; replays make the same calls again, in the same memory, which is the tracer's own:

    traced      layers ─▶ kernels ─▶ geometry, views, … ─▶ np.matmul(U, V, out=M)        matmul, U, V and M on a list
    replayed                                               np.matmul(U, V, out=M)        for call in calls: call()

While a thread traces, all that changes from pass to pass is a `TracedArray`, which hands what is asked of it on to
NumPy and adds it to the list. The list holds plain arrays in the same memory. They do not keep it in use: whether it
is, and whether the arena may hand it out again, depends on the lives of what the pass itself made, as in any other
pass.

    a traced view ──▶ a traced array, whose life its block watches ──▶ the block's memory ◀── a plain array on the list

Tracing changes nothing of what is computed. Where something cannot be traced, because Python decides by a number, say,
the tracer says why (`failure`): the pass continues, and it is not replayed.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import numpy as np

from gpucnn.backends import base
from gpucnn.backends.numpy import known_calls
from gpucnn.backends.numpy.arena import Arena, Block
from gpucnn.backends.numpy.traced_array import TracedArray, current_tracer, root_of, this_thread, untraced, untraced_all
from gpucnn.backends.reference import Array

PUBLISHED = object()  # the sign of arrays that one thread's tracer has copied for others


class Tracer(base.Tracer):
    """Traces functions of arrays on one thread at a time, and holds the memory that their replays use."""

    def __init__(self, source: Arena, buffers: Callable[[], dict[tuple[str, str], Array]]) -> None:
        """Take whose free memory may be taken over, and what gives a thread's own buffers away.

        Eager passes needed as much before, and need it no more.
        """
        self.failure = ""
        self._buffers = buffers
        self._calls: list[Callable[[], Any]] = []
        self._arena = Arena(parent=source)
        self._scratch: dict[tuple[str, str], Array] = {}
        self._errors: Any = {}
        self._sign = object()  # on all arrays that this tracer makes

    def capture(
        self, function: Callable[..., Array | None], *arrays: Array, increments: dict[int, int] | None = None
    ) -> tuple[Array | None, base.Replay]:
        """Return what a function returns for arrays, and its replay. Random streams advance by `on_replay`."""
        self._calls, self._errors, self.failure = [], np.geterr(), ""
        for key, buffer in self._buffers().items():
            if key not in self._scratch or self._scratch[key].size < buffer.size:
                self._scratch[key] = self.traced(buffer)
        this_thread.tracer = self
        try:
            inputs = [self.copy_like(array) for array in arrays]
            result = function(*inputs)
            if result is not None and not self.knows(result):
                self.fail("the result was computed by a call that is not captured")
        finally:
            this_thread.tracer = None
        replay = Replay([untraced(place) for place in inputs], self._calls, untraced(result), self.failure)
        return untraced(result), replay

    untraced = staticmethod(untraced)

    def traced(self, array: Array) -> Array:
        """Return an array in the same memory whose operations are traced."""
        return self._signed(array.view(TracedArray))

    def knows(self, array: Array) -> bool:
        """Return whether an array belongs to this tracer."""
        return isinstance(array, TracedArray) and self.owns(root_of(array))

    def owns(self, array: Array) -> bool:
        """Return whether this tracer created a traced array that is not a view of another one."""
        return vars(array).get("sign") in (self._sign, PUBLISHED)

    def _signed(self, array: Array, sign: object = None) -> Array:
        array.__dict__["sign"] = self._sign if sign is None else sign
        return array

    def fail(self, why: str) -> None:
        """Say that what is computed cannot be replayed; the first reason counts."""
        self.failure = self.failure or why

    # --- for those who compute ----------------------------------------------------------------

    def append(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Note a call, of arrays that are plain."""
        if self.failure:  # the calls will never be replayed
            return
        call, errors = partial(function, *arguments, **options), np.geterr()
        self._calls.append(call if errors == self._errors else partial(_with_errstate, errors, call))

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Return an uninitialised array."""
        return self._signed(self._arena.empty(tuple(shape), dtype, TracedArray))

    def scratch(self, purpose: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised array that is valid until one is asked for with the same purpose."""
        key, size = (purpose, np.dtype(dtype).char), math.prod(shape)
        if key not in self._scratch or self._scratch[key].size < size:
            self._scratch[key] = self._signed(Block(size * np.dtype(dtype).itemsize).array((size,), dtype, TracedArray))
        return self._scratch[key][:size].reshape(shape)

    def trace_opaque(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what a call returns, a fresh array, and note that it is to be copied there."""
        result = function(*arguments, **options)
        if not isinstance(result, np.ndarray | np.generic):
            self.fail(f"{known_calls.name_of(function)} returned {type(result).__name__}, not an array")
            return result
        copy = self.copy_like(result)
        target = untraced(copy)
        self.append(lambda: np.copyto(target, function(*arguments, **options)))
        return copy

    def filled(self, array: Array, number: Any) -> Array:
        """Return a copy of an array that is filled with a number in each replay; None leaves it as it is."""
        copy = self.copy_like(array)
        if number is not None:
            self.append(np.copyto, untraced(copy), number)
        return copy

    def copy_like(self, result: Any) -> Array:
        """Return a copy of an array, or a number, that lies as it does; itself if its kind is not captured."""
        array = np.asarray(result)
        if array.dtype.kind not in known_calls.NUMERIC:
            self.fail(f"an array of {array.dtype} is not captured")
            return result
        axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
        copy = self.empty([array.shape[axis] for axis in axes], array.dtype)
        copy = copy.transpose(np.argsort(axes)) if axes else copy
        untraced(copy)[...] = array
        return copy

    def publish(self, value: Any) -> Any:
        """Return a copy of an array in separate memory, for other threads to read; other values as they are."""
        if not isinstance(value, np.ndarray):
            return value
        own = np.array(untraced(value))
        self.append(np.copyto, own, untraced(value))
        return self._signed(own.view(TracedArray), PUBLISHED)


class Replay(base.Replay):
    """The calls that a function made, to be replayed with other numbers."""

    def __init__(self, inputs: list[Array], calls: list[Callable[[], Any]], result: Array, failure: str) -> None:
        self._inputs, self._calls, self._result, self.failure = inputs, calls, result, failure

    def __call__(self, *arrays: Array, number: int = 0) -> Array:
        """Copy the arrays to where they lay when it was traced, and make the calls."""
        for array, place in zip(arrays, self._inputs, strict=True):
            np.copyto(place, array)
        for call in self._calls:
            call()
        return self._result


def on_replay(draw: Callable[[], Array]) -> Array:
    """Return what a function draws, which is called again in each replay."""
    tracer = current_tracer()
    if tracer is None:
        return draw()
    return tracer.trace_opaque(_untraced(draw))


def as_single_call(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function that writes to arrays it is given one traced call; it may decide by numbers then."""

    @wraps(function)
    def traced_call(*arguments: Any) -> None:
        tracer = current_tracer()
        if tracer is None:
            function(*arguments)
            return
        _untraced(function)(*untraced_all(arguments))
        tracer.append(function, *untraced_all(arguments))

    return traced_call


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function during which this thread does not trace."""

    def call(*arguments: Any) -> Any:
        before = current_tracer()
        this_thread.tracer = None
        try:
            return function(*arguments)
        finally:
            this_thread.tracer = before

    return call


def _with_errstate(errors: Any, call: Callable[[], Any]) -> None:
    """Make a call with NumPy's warnings as they were set where it was traced."""
    with np.errstate(**errors):
        call()
