"""Batch norm, forward and backward each in two passes, one for the sums: over chunks that stay in the cache.

An array is looked at as a matrix of long rows, in the order in which it lies in memory:

    batch innermost     (H·W/t, t·C·N)   each channel's number stands N times in a row, and all that t times
    channels innermost  (N·H, W·C)       the C numbers stand W times, one after another
    features            (N, C)

What is computed with a number for each channel is computed with such a row of numbers: NumPy's inner loop then runs
over thousands of numbers. Sums are products with a vector of ones, the fastest reduction BLAS has; those of a chunk, in
the array's own precision, are added up in float64.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.numpy import elementwise, memory, threads, workspace
from gpucnn.backends.numpy.memory_layout import as_rows, blocks, contiguous, to_nhwc, uses_hwcn

Array = Any

CHUNK = 1 << 17  # numbers at once: two arrays of so many stay in a core's second-level cache
WIDE = 1 << 14  # numbers of a row at least: shorter ones NumPy copies to its buffer of 8192 before it repeats them


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
        if x.ndim == 4 and uses_hwcn(N):
            return cls(x.shape, C, N, _divisor(x.shape[1] * x.shape[2], -(-WIDE // (C * N)), CHUNK // (2 * C * N)))
        return cls(x.shape, C, 1, x.shape[-2] if x.ndim > 2 else 1)

    def matrix(self, x: Array) -> Array:
        """Return x as a matrix of rows; a copy only where it lies otherwise."""
        lying = as_rows(x) if x.ndim == 4 else contiguous(x)
        return lying.reshape(-1, self.tile * self.channels * self.repeat)

    def restore(self, matrix: Array) -> Array:
        """Return a matrix of rows in the shape of x."""
        if self.repeat == 1:
            return matrix.reshape(self.shape)
        N, H, W, C = self.shape
        return to_nhwc(matrix.reshape(H, W, C, N))

    def wide(self, numbers: Array, purpose: str) -> Array:
        """Return a number for each channel (C,) as a row, in the scratch."""
        row = workspace.get(purpose, (self.tile, self.channels, self.repeat), numbers.dtype)
        row[...] = numbers[:, None]
        return row.reshape(-1)

    def sums(self, part: Array) -> Array:
        """Return sums of some rows over each channel (…, C), of which `total` makes one."""
        if self.repeat == 1:
            columns = part.reshape(-1, self.channels)
            return (workspace.ones(len(columns), part.dtype) @ columns)[None]
        return (part.reshape(-1, self.repeat) @ workspace.ones(self.repeat, part.dtype)).reshape(-1, self.channels)


def total(sums: list[Array]) -> Array:
    """Return the total of many sums over each channel (…, C), (C,), in float64."""
    return np.concatenate(sums).sum(axis=0, dtype=np.float64)


def forward(x: Array, scale: Array, shift: Array, epsilon: float, relu: bool) -> tuple[Array, Array, Array]:
    """Return y (…, C), the batch's mean (C,) and its biased variance (C,)."""
    rows = LongRows.of(x)
    matrix = rows.matrix(x)
    mean, variance = _statistics(rows, matrix)
    factor = scale / np.sqrt(variance + epsilon)
    y = _scaled(matrix, rows.wide(factor, "factor"), rows.wide(shift - mean * factor, "shift"), relu)
    return rows.restore(y), mean, variance


def gradient(
    dy: Array, x: Array, y: Array | None, mean: Array, variance: Array, scale: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return dx (…, C), dscale (C,) and dshift (C,), the last two of this thread's samples alone.

    With y, the output after a ReLU, dy counts only where y is positive. dx = factor·(dy − Σdy / count −
    x̂·Σ(dy·x̂) / count), written as factor·dy + slope·x + level, so that the normalised x̂ need not be kept.
    """
    rows = LongRows.of(x)
    matrix = rows.matrix(x)
    masked, sums = _gradient_sums(rows, matrix, rows.matrix(dy), None if y is None else rows.matrix(y), mean)
    inverse = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)
    own_dshift, own_dscale = sums[0], sums[1] * inverse
    parts = threads.all_gather((matrix.size // rows.channels, own_dshift, own_dscale))
    count, dshift, dscale = (sum(numbers) for numbers in zip(*parts, strict=True))
    factor = scale * inverse
    slope = -factor * inverse * dscale / count
    level = -factor * dshift / count - slope * mean
    numbers = {"factor": factor, "slope": slope, "shift": level}
    factor_row, slope_row, level_row = (rows.wide(n.astype(x.dtype), purpose) for purpose, n in numbers.items())
    dx = masked if y is not None else memory.empty(matrix.shape, matrix.dtype)
    for part in _chunks(matrix):
        from_statistics = workspace.get("centred", matrix[part].shape, x.dtype)
        np.multiply(matrix[part], slope_row, out=from_statistics)
        from_statistics += level_row
        out = np.multiply(masked[part], factor_row, out=dx[part])
        out += from_statistics
    return rows.restore(dx), own_dscale.astype(x.dtype), own_dshift.astype(x.dtype)


def _gradient_sums(rows: LongRows, x: Array, dy: Array, y: Array | None, mean: Array) -> tuple[Array, Array]:
    """Return dy where a ReLU's output y is positive, else 0, and its sums and those of its products with x − mean.

    All but the sums (2, C) are matrices of rows. Without y, dy itself is returned.
    """
    mean_row, of_masked, of_product = rows.wide(mean, "mean"), [], []
    masked = dy if y is None else memory.empty(dy.shape, dy.dtype)
    for part in _chunks(x):
        if y is not None:
            positive = np.greater(y[part], 0, out=workspace.get("positive", y[part].shape, np.bool_))
            np.multiply(dy[part], positive, out=masked[part])
        product = _centred(x[part], mean_row)
        product *= masked[part]
        of_masked.append(rows.sums(masked[part]))
        of_product.append(rows.sums(product))
    return masked, np.stack([total(of_masked), total(of_product)])


def scale_and_shift(x: Array, scale: Array, shift: Array, relu: bool) -> Array:
    """Return scale·x + shift, cut off below 0 with `relu`."""
    rows = LongRows.of(x)
    return rows.restore(_scaled(rows.matrix(x), rows.wide(scale, "factor"), rows.wide(shift, "shift"), relu))


def _scaled(matrix: Array, scale_row: Array, shift_row: Array, relu: bool) -> Array:
    """Return a matrix of rows times a row plus a row."""
    y = memory.empty(matrix.shape, matrix.dtype)
    for part in _chunks(matrix):
        out = np.multiply(matrix[part], scale_row, out=y[part])
        out += shift_row
        if relu:
            elementwise.cut_off(out, out)
    return y


def channel_sums(x: Array) -> Array:
    """Return the sum of each channel of x (…, C), (C,), of this thread's samples."""
    rows = LongRows.of(x)
    matrix = rows.matrix(x)
    return total([rows.sums(matrix[part]) for part in _chunks(matrix)]).astype(x.dtype)


def _statistics(rows: LongRows, matrix: Array) -> tuple[Array, Array]:
    """Return mean and biased variance (C,) over the whole batch, in one pass over this thread's samples.

    Sums are of x less a pivot, the mean of the first chunk: were it 0, the difference of two large sums would lose the
    digits of a small variance. The parts of several threads are joined as Chan, Golub, LeVeque, "Updating formulae and
    a pairwise algorithm for computing sample variances" (1979) do.
    """
    C, first = rows.channels, _chunks(matrix)[0]
    pivot = (total([rows.sums(matrix[first])]) / (matrix[first].size // C)).astype(matrix.dtype)
    pivot_row, of_centred, of_squares = rows.wide(pivot, "mean"), [], []
    for part in _chunks(matrix):
        centred = _centred(matrix[part], pivot_row)
        of_centred.append(rows.sums(centred))
        of_squares.append(rows.sums(np.multiply(centred, centred, out=centred)))
    count, centred_sum = matrix.size // C, total(of_centred)
    own_squares = total(of_squares) - centred_sum * centred_sum / count  # of x less this thread's own mean
    parts = threads.all_gather((count, pivot + centred_sum / count, own_squares))
    whole_count = sum(count for count, _, _ in parts)
    mean = sum(count * mean for count, mean, _ in parts) / whole_count
    variance = sum(squares + count * (own - mean) ** 2 for count, own, squares in parts) / whole_count
    return mean.astype(matrix.dtype), variance.astype(matrix.dtype)


def _centred(part: Array, row: Array) -> Array:
    """Return rows less a row of means, in the scratch."""
    return np.subtract(part, row, out=workspace.get("centred", part.shape, part.dtype))


@lru_cache(maxsize=1024)
def _divisor(number: int, at_least: int, at_most: int) -> int:
    """Return the smallest divisor of a number within limits, 1 if there is none."""
    return next((divisor for divisor in range(at_least, at_most + 1) if number % divisor == 0), 1)


def _chunks(matrix: Array) -> tuple[slice, ...]:
    """Cut the rows into parts of at most CHUNK numbers."""
    return blocks(len(matrix), matrix.shape[1], CHUNK)
