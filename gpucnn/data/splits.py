"""Parts of a data set that hold its classes in their shares."""

from typing import Any

import numpy as np

from gpucnn.errors import ConfigurationError


def stratified(labels: Any, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return which samples are in a part of so large a fraction, drawn from each class by its share.

    Each class gives its share of them to less than one sample, as far as one of its samples stays outside; all
    together are the fraction of all, rounded, and at least one.

    Shapes
        labels    (N,) class numbers
        returned  (N,) bool

    Raises
        ConfigurationError  no class has two samples
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = fraction * sizes
    counts = np.minimum(np.floor(shares).astype(int), sizes - 1)
    missing = max(round(fraction * len(labels)), 1) - int(counts.sum())
    can_give = [k for k in np.lexsort((rng.permutation(len(classes)), counts - shares)) if counts[k] < sizes[k] - 1]
    counts[can_give[: max(missing, 0)]] += 1  # those whose share was cut most, by lot where it was cut alike
    if not counts.any():
        raise ConfigurationError(
            f"nothing can be held out of {len(labels):,} images of {len(classes)} classes, one of each; add images"
        )
    held = np.zeros(len(labels), bool)
    for name, count in zip(classes, counts, strict=True):
        held[rng.permutation(np.flatnonzero(labels == name))[:count]] = True
    return held
