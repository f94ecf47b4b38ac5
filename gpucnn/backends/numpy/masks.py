"""Keeping some numbers of an array and setting the others to 0, faster than a product with a mask."""

from typing import Any

import numpy as np

from gpucnn.backends.numpy import scratch

Array = Any

WIDE = {4: np.dtype(np.int32), 8: np.dtype(np.int64)}


def keep(values: Array, mask: Array, out: Array) -> Array:
    """Fill out with the values where the mask (contiguous booleans) is True, and with 0 elsewhere.

    True becomes a number of which all bits are set, as wide as a value, and the values are and-ed with it. A product
    with the mask takes a third longer, `np.where` ten times as long. A NaN that is not kept is gone, too.
    """
    wide = WIDE[values.itemsize]
    ones = np.negative(mask.view(np.int8), out=scratch.take("ones", mask.shape, np.int8))
    bits = scratch.take("bits", mask.shape, wide)
    np.copyto(bits, ones)
    np.bitwise_and(values.view(wide), bits, out=out.view(wide))
    return out
