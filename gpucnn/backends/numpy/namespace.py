"""NumPy as layers see it while a pass is captured: `xp.zeros` and its kin make arrays that are traced.

NumPy's own functions create arrays that the tracer does not see: a replay would miss what is written into them, and
what is computed from that. So during a capture, `backend.xp` is NumPy except for the functions that create arrays:

    z = xp.zeros(x.shape, x.dtype)      traced: copyto(z, 0)          a replay starts with zeros as well
    z[:, 1:] = x[:, :-1]                traced: copyto(z[:, 1:], …)
    w = xp.asarray(w)                   w itself, still traced
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.backends.numpy.traced_array import TracedArray, current_tracer, holds_traced, require_traced, untraced_all
from gpucnn.backends.reference import Array

# what each fills its array with: None for nothing, `...` for more than one number
CREATORS: dict[str, Any] = {"empty": None, "zeros": 0, "ones": 1, "full": ..., "eye": ..., "identity": ..., "tri": ...}
CREATORS |= dict.fromkeys(("arange", "linspace", "logspace", "geomspace", "hanning", "hamming", "blackman"), ...)
CONVERTERS = {"array": False, "asarray": False, "asanyarray": False, "ascontiguousarray": True}  # to rows in order?


class Namespace:
    """NumPy, except for the functions that create arrays."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _creator(name: str, number: Any) -> Callable[..., Array]:
    function = getattr(np, name)

    def create(self: Namespace, *arguments: Any, **options: Any) -> Array:
        tracer = current_tracer()
        array = function(*untraced_all(arguments), **untraced_all(options))
        if tracer is None:
            return array
        if name == "full" and len(arguments) > 1 and not isinstance(arguments[1], list | tuple):
            traced = tracer.filled(array, None)
            traced[...] = arguments[1]
            return traced
        if holds_traced([*arguments, *options.values()]):
            tracer.fail(f"numpy.{name} of what the pass computes is not captured")
            return array
        return tracer.filled(array, array if number is ... else number)

    return create


def _converter(name: str, in_order: bool) -> Callable[..., Array]:
    function = getattr(np, name)

    def convert(self: Namespace, given: Any, dtype: Any = None, **options: Any) -> Array:
        tracer = current_tracer()
        if tracer is None or not isinstance(given, TracedArray) or options:
            array = function(untraced_all(given), dtype, **options)
            if tracer is None:
                return array
            if options or holds_traced(given):
                tracer.fail(f"numpy.{name} of {'a list of arrays' if not options else 'options'} is not captured")
            require_traced(tracer, given)
            return tracer.filled(array, array)
        target_dtype = given.dtype if dtype is None else np.dtype(dtype)
        if name == "array":
            return given.astype(target_dtype)
        if in_order:
            given = given.reshape(1) if given.ndim == 0 else given
            return given.astype(target_dtype, order="C", copy=not given.flags.c_contiguous)
        return given.astype(target_dtype, copy=False)

    return convert


for _name, _number in CREATORS.items():
    setattr(Namespace, _name, _creator(_name, _number))
for _name, _in_order in CONVERTERS.items():
    setattr(Namespace, _name, _converter(_name, _in_order))

namespace = Namespace()
