"""Stratified splits of a data set."""

from typing import Any

import numpy as np

from gpucnn.errors import ConfigurationError


def stratified(labels: Any, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of a random fraction of the samples, stratified by class.

    Each class contributes its fraction to within one sample, and keeps at least one sample outside; the total is the
    fraction of all samples, rounded, and at least one.

    Shapes
        labels    (N,) class indices
        returned  (N,) bool

    Raises
        ConfigurationError  no class has two samples
    """
    classes, sizes = np.unique(labels, return_counts=True)
    expected = fraction * sizes
    counts = np.minimum(np.floor(expected).astype(int), sizes - 1)
    missing = max(round(fraction * len(labels)), 1) - int(counts.sum())
    can_give = [k for k in np.lexsort((rng.permutation(len(classes)), counts - expected)) if counts[k] < sizes[k] - 1]
    counts[can_give[: max(missing, 0)]] += 1  # those that were rounded down most, ties at random
    if not counts.any():
        raise ConfigurationError(
            f"no validation set can be split off {len(labels):,} images of {len(classes)} classes, one of each; add "
            "images"
        )
    held = np.zeros(len(labels), bool)
    for name, count in zip(classes, counts, strict=True):
        held[rng.permutation(np.flatnonzero(labels == name))[:count]] = True
    return held
