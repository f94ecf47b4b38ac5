"""Every random number of the package: host draws from named seeds, device draws from a counter.

Weights and shuffles are drawn on the host with NumPy. Dropout masks and augmentation come from Philox4x32-10 (see
`backends/philox.py`), whose words are a pure function of a key and a counter and so are the same bits on every backend.
"""

import math
import zlib
from typing import Any

import numpy as np

from gpucnn.backends import Array, Backend


def host_generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a NumPy generator for one named purpose: other purposes and numbers give unrelated streams."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(purpose.encode()), *numbers]))


def epoch_order(seed: int, epoch: int, count: int) -> "np.ndarray[Any, Any]":
    """Return the order of an epoch's samples, int64 (count,): a function of seed and epoch alone."""
    return host_generator(seed, "shuffle", epoch).permutation(count)


def new_stream(rng: np.random.Generator) -> "np.ndarray[Any, Any]":
    """Return the state of a new counter-based stream, uint64 (2,): its key and the counter of its next draw."""
    return np.array([rng.integers(2**63), 0], dtype=np.uint64)


def random_bits(backend: Backend, state: "np.ndarray[Any, Any]", shape: tuple[int, ...]) -> Array:
    """Return random 32-bit words for samples (N, …), uint32 of `shape`; advances the stream's counter in place.

    A thread that works on a shard of the batch gets the words that a draw for the whole batch holds for its samples.
    """

    def draw() -> Array:
        key, counter = int(state[0]), int(state[1])
        state[1] += np.uint64(1)
        per_sample = math.prod(shape[1:])
        start = backend.shard_offset() * per_sample
        return backend.random_bits(key, counter, shape[0] * per_sample, start).reshape(shape)

    return backend.on_replay(draw)


def bernoulli(backend: Backend, state: "np.ndarray[Any, Any]", shape: tuple[int, ...], probability: float) -> Array:
    """Return independent booleans of `shape`, each true with `probability` (to 2⁻³²); advances the counter."""
    return random_bits(backend, state, shape) < min(int(probability * 2**32), 2**32 - 1)
