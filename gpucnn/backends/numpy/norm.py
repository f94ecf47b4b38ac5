"""Batch norm in as few passes as there are sums to wait for, each over chunks that stay in the cache.

An array is looked at as a matrix of long rows, in the order in which it lies in memory:

    batch innermost     (H·W, C·N)       each channel's number stands N times in a row
    channels innermost  (N·H, W·C)       the C numbers stand W times, one after another
    features            (N, C)

What is computed with a number for each channel is computed with such a row of numbers: NumPy's inner loop then runs
over thousands of numbers. Sums are products with a vector of ones, the fastest reduction BLAS has; those of a chunk, in
the array's own precision, are added up in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends.numpy import scratch, threads
from gpucnn.backends.numpy.order import batch_innermost, batch_last

Array = Any

CHUNK = 1 << 16  # numbers at once: three arrays of so many stay in a core's second-level cache
WORTH_SHARING = 1 << 19  # numbers; below it a second thread costs more than it brings


@dataclass(frozen=True)
class LongRows:
    """How arrays of one shape lie as rows: `channels` numbers, each `repeat` times, and all that `tile` times."""

    shape: tuple[int, ...]
    channels: int
    repeat: int
    tile: int

    @classmethod
    def of(cls, x: Array) -> "LongRows":
        """Return how the engine keeps x (…, C)."""
        N, C = len(x), x.shape[-1]
        if x.ndim == 4 and batch_innermost(N, C):
            return cls(x.shape, C, N, 1)
        return cls(x.shape, C, 1, x.shape[-2] if x.ndim > 2 else 1)

    def matrix(self, x: Array) -> Array:
        """Return x as a matrix of rows; a copy only where it lies otherwise."""
        x = batch_last(x) if self.repeat > 1 else np.ascontiguousarray(x)
        return x.reshape(-1, self.tile * self.channels * self.repeat)

    def restore(self, matrix: Array) -> Array:
        """Return a matrix of rows in the shape of x."""
        if self.repeat == 1:
            return matrix.reshape(self.shape)
        N, H, W, C = self.shape
        return matrix.reshape(H, W, C, N).transpose(3, 0, 1, 2)

    def wide(self, numbers: Array) -> Array:
        """Return a number for each channel (C,) as a row."""
        return np.tile(np.repeat(numbers, self.repeat), self.tile)

    def sums(self, part: Array) -> Array:
        """Return the sums of some rows over each channel (C,), in float64."""
        if self.repeat == 1:
            columns = part.reshape(-1, self.channels)
            return (np.ones(len(columns), part.dtype) @ columns).astype(np.float64)
        each = part.reshape(-1, self.repeat) @ np.ones(self.repeat, part.dtype)
        return each.reshape(-1, self.channels).sum(axis=0, dtype=np.float64)


def forward(x: Array, scale: Array, shift: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Return y (…, C), the batch's mean (C,) and its biased variance (C,)."""
    rows = LongRows.of(x)
    matrix, count = rows.matrix(x), x.size // x.shape[-1]
    (total,) = _sums(rows, matrix, lambda part: [matrix[part]])
    mean = (total / count).astype(x.dtype)
    mean_row = rows.wide(mean)

    def squares(part: slice) -> list[Array]:
        centred = _minus(matrix[part], mean_row)
        return [np.multiply(centred, centred, out=centred)]

    (total,) = _sums(rows, matrix, squares)
    variance = (total / count).astype(x.dtype)
    factor_row, shift_row = rows.wide(scale / np.sqrt(variance + epsilon)), rows.wide(shift)
    y = np.empty_like(matrix)

    def normalize(share: slice) -> None:
        for part in _chunks(matrix, share):
            out = np.subtract(matrix[part], mean_row, out=y[part])
            out *= factor_row
            out += shift_row

    _share(normalize, matrix)
    return rows.restore(y), mean, variance


def gradient(
    dy: Array, x: Array, mean: Array, variance: Array, scale: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return dx (…, C), dscale (C,) and dshift (C,).

    dx = factor·(dy − Σdy / count − x̂·Σ(dy·x̂) / count), written as factor·dy + slope·(x − mean) + level, so that the
    normalised x̂ need not be kept.
    """
    rows = LongRows.of(x)
    matrix, dy_matrix, count = rows.matrix(x), rows.matrix(dy), x.size // x.shape[-1]
    mean_row = rows.wide(mean)

    def terms(part: slice) -> list[Array]:
        centred = _minus(matrix[part], mean_row)
        return [dy_matrix[part], np.multiply(centred, dy_matrix[part], out=centred)]

    dshift, product = _sums(rows, matrix, terms)
    inverse = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)
    dscale, factor = product * inverse, scale * inverse
    slope, level = -factor * inverse * dscale / count, -factor * dshift / count
    factor_row, slope_row, level_row = (rows.wide(n.astype(x.dtype)) for n in (factor, slope, level))
    dx = np.empty_like(matrix)

    def spread(share: slice) -> None:
        for part in _chunks(matrix, share):
            from_statistics = _minus(matrix[part], mean_row)
            from_statistics *= slope_row
            from_statistics += level_row
            out = np.multiply(dy_matrix[part], factor_row, out=dx[part])
            out += from_statistics

    _share(spread, matrix)
    return rows.restore(dx), dscale.astype(x.dtype), dshift.astype(x.dtype)


def _minus(part: Array, mean_row: Array) -> Array:
    """Return part − mean, in the scratch."""
    return np.subtract(part, mean_row, out=scratch.take("centred", part.shape, part.dtype))


def _sums(rows: LongRows, matrix: Array, terms: Callable[[slice], list[Array]]) -> list[Array]:
    """Return the sums over each channel (C,), in float64, of every array that `terms` gives for a chunk of rows."""

    def sums_of(share: slice) -> list[Array]:
        parts = [[rows.sums(term) for term in terms(part)] for part in _chunks(matrix, share)]
        return [np.sum(column, axis=0) for column in zip(*parts, strict=True)]

    return [np.sum(column, axis=0) for column in zip(*_share(sums_of, matrix), strict=True)]


def _chunks(matrix: Array, share: slice) -> Iterator[slice]:
    """Cut a share of the rows into parts of about CHUNK numbers."""
    step = max(1, CHUNK // matrix.shape[1])
    for start in range(share.start, share.stop, step):
        yield slice(start, min(start + step, share.stop))


def _share(function: Callable[[slice], Any], matrix: Array) -> list[Any]:
    return threads.share(function, len(matrix), matrix.size / WORTH_SHARING)
