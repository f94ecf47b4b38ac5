"""What a capture takes from NumPy: a closed list of calls that are known to be replayable.

A captured call runs again in each replay, on the same arrays with other numbers in them. That is right where it

    is pure                reads nothing but its arguments, and writes nothing but its result or its `out`
    has one result         an array, whose shape and dtype follow from those of the arguments, never from their numbers
    runs no Python         of the user's, which might do something else the next time

All that stands here does so. What does not is computed as it always is, and the capture falls back: functions that
take functions (`piecewise`, `apply_along_axis`, `vectorize`), whose result is as long as the numbers want it
(`nonzero`, `unique`, `compress`), that return several arrays (`svd`, `histogram`), that change their argument (`put`,
`place`), and the many that were not examined.
"""

import inspect
import weakref
from typing import Any

import numpy as np

from gpucnn.backends.reference import Array

#: booleans, integers, floats and complex numbers; objects, records, dates and text stay outside of every capture
NUMERIC = "?biufc"

#: elementwise functions and products: loops in C over the elements, which write to `out` alone
UFUNCS = {ufunc for ufunc in vars(np).values() if isinstance(ufunc, np.ufunc) and ufunc.nout == 1}

#: how they may be called; `at` changes its argument
UFUNC_METHODS = {"__call__", "reduce", "accumulate", "reduceat", "outer"}

#: what asks for shapes and types alone
SHAPE_FUNCTIONS = {np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.may_share_memory, np.shares_memory}

#: uninitialised, or filled with one number
FILLS: dict[Any, int | None] = {np.empty_like: None, np.zeros_like: 0, np.ones_like: 1}

#: what NumPy itself computes by calls of this list alone, which are captured one by one: `stack` is views, concatenated
IN_PARTS = {np.stack}

#: any argument may be an array of the pass, also indices: they choose elements, and never how many
OF_ARRAYS = {
    # sums and the like over axes, which are given by numbers of Python's
    *(np.sum, np.prod, np.mean, np.std, np.var, np.max, np.min, np.amax, np.amin, np.any, np.all, np.ptp, np.median),
    *(np.nansum, np.nanmean, np.nanmax, np.nanmin, np.nanstd, np.nanvar, np.average, np.count_nonzero, np.trace),
    *(np.cumsum, np.cumprod, np.argmax, np.argmin, np.linalg.norm),
    # products
    *(np.dot, np.vdot, np.inner, np.outer, np.tensordot, np.einsum, np.kron, np.cross, np.convolve, np.correlate),
    # a choice between elements, and their order
    *(np.where, np.choose, np.select, np.clip, np.take, np.take_along_axis, np.searchsorted, np.digitize, np.interp),
    *(np.sort, np.argsort, np.partition, np.argpartition),
    # arrays side by side
    *(np.concatenate, np.hstack, np.vstack, np.dstack, np.column_stack),
    # elementwise
    *(np.round, np.around, np.real, np.imag, np.angle, np.isclose, np.full_like, np.copy, np.sinc, np.i0),
    *(np.diff, np.cov, np.iscomplex, np.isreal),
}

#: the first argument may be an array of the pass; the others say where its elements go, and how many there are
OF_ONE_ARRAY = {
    *(np.reshape, np.ravel, np.transpose, np.swapaxes, np.moveaxis, np.rollaxis, np.squeeze, np.expand_dims),
    *(np.broadcast_to, np.atleast_1d, np.atleast_2d, np.atleast_3d, np.diagonal, np.diag, np.diagflat, np.tril),
    *(np.triu, np.flip, np.fliplr, np.flipud, np.rot90, np.roll, np.repeat, np.tile, np.pad, np.resize),
    np.lib.stride_tricks.sliding_window_view,
}

#: options that would make a call change what it is given
CHANGING = {"overwrite_input", "copy", "subok", "like"}


NOWHERE = 1 << 30


def _place_of_out(function: Any) -> int:
    """Return at which place a function takes the array that it writes to; one that it never has if it takes none."""
    if function is np.einsum:  # takes it by name alone
        return NOWHERE
    try:
        names = list(inspect.signature(function).parameters)
    except ValueError:  # functions in C have none in older NumPy
        return {np.dot: 2, np.concatenate: 2}.get(function, NOWHERE)
    return names.index("out") if "out" in names else NOWHERE


OUT_AT = {function: _place_of_out(function) for function in OF_ARRAYS | OF_ONE_ARRAY | IN_PARTS}

_constants: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def constant(array: Array) -> Array:
    """Return an array of the engine that is not written to any more: captured calls may use it as it is."""
    array.flags.writeable = False
    _constants[id(array)] = array
    return array


def is_constant(array: Array) -> bool:
    """Return whether an array is a constant of the engine's, or a view of one."""
    owner = array if array.base is None else array.base
    return _constants.get(id(owner)) is owner


def name_of(function: Any) -> str:
    """Return what a function of NumPy's is called: `numpy.linalg.inv`."""
    module, name = getattr(function, "__module__", "") or "", getattr(function, "__name__", repr(function))
    return f"{module or 'numpy'}.{name}"
