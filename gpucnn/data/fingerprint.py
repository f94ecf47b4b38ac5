"""By what data are known again: their shapes, their dtypes, and a hash of every byte."""

import hashlib
from typing import Any

import numpy as np

AT_ONCE = 1 << 24  # bytes that are copied where samples do not lie one after another


def fingerprint(x: Any, y: Any) -> dict[str, Any]:
    """Return what checked inputs and labels are known by, as plain data."""
    return {
        "inputs": {"shape": list(x.shape), "dtype": str(x.dtype), "hash": _hash(x)},
        "labels": {"shape": list(y.shape), "dtype": str(y.dtype), "hash": _hash(y)},
    }


def _hash(array: Any) -> str:
    """Return the hash of an array's elements in order, however they lie in memory."""
    digest = hashlib.sha256()
    step = max(1, AT_ONCE * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), step):
        digest.update(np.ascontiguousarray(array[start : start + step]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
