"""In which order an array (N, H, W, C) lies in memory: the shape never changes, only what is next to what.

With few channels the batch lies innermost, as (H, W, C, N): NumPy's inner loops then run over N·C numbers instead of
C, whatever the kernel. With many channels, or few images, the channels lie innermost as everywhere else. NumPy's
elementwise functions keep the order of what they are given, so only the first convolution pays for a transposition.
"""

from typing import Any

import numpy as np

Array = Any

FEW_CHANNELS = 32
LEAST_BATCH = 16  # images; with fewer the inner loops would be short again


def batch_innermost(batch: int, channels: int) -> bool:
    """Tell whether the engine keeps such arrays with the batch innermost."""
    return channels <= FEW_CHANNELS and batch >= LEAST_BATCH


def preferred(x: Array) -> Array:
    """Return x (N, H, W, C) in the order the engine works in; a copy only where it lies otherwise."""
    return batch_last(x).transpose(3, 0, 1, 2) if batch_innermost(len(x), x.shape[-1]) else np.ascontiguousarray(x)


def batch_last(x: Array) -> Array:
    """Return x (N, H, W, C) as a contiguous (H, W, C, N): a view where the batch is innermost already."""
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0))
