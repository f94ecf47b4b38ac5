"""Keeping some numbers of an array and setting the others to 0, faster than a product with a mask."""

from typing import Any

import numpy as np

from gpucnn.backends.numpy import scratch

Array = Any


def keep(values: Array, mask: Array, out: Array) -> Array:
    """Fill out with the values where the mask (bool, contiguous in memory order) is True, and with 0 elsewhere.

    True becomes a number of which all bits are set, as wide as a value, and the values are and-ed with it. A product
    with the mask takes a third longer, `np.where` ten times as long. A NaN that is not kept is gone, too.
    """
    wide = np.dtype(f"i{values.itemsize}")
    ones = np.negative(mask.view(np.int8), out=_like(mask, "ones", np.int8))
    bits = _like(mask, "bits", wide)
    np.copyto(bits, ones)
    np.bitwise_and(values.view(wide), bits, out=out.view(wide))
    return out


def _like(mask: Array, purpose: str, dtype: Any) -> Array:
    """Return a scratch array that lies in memory as the mask does."""
    order = sorted(range(mask.ndim), key=lambda axis: -mask.strides[axis])
    taken = scratch.take(purpose, tuple(mask.shape[axis] for axis in order), dtype)
    return taken.transpose(np.argsort(order))
