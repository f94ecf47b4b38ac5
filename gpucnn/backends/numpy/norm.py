"""Batch norm: forward and backward each in two passes, one of them for the sums, over blocks that stay in the cache.

An array is viewed as a matrix of long rows, in the order in which it lies in memory:

    HWCN                (H·W/t, t·C·N)   a channel's number is repeated N times, and all channels t times
    channels innermost  (N·H, W·C)       the C numbers are repeated W times
    features            (N, C)

Per-channel numbers are broadcast to such a row: NumPy's inner loop then runs over thousands of numbers. Sums are
products with a vector of ones, the fastest reduction of BLAS; those of a block, in the array's own precision, are added
up in float64.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gpucnn.backends.numpy import elementwise, memory, threads, workspace
from gpucnn.backends.numpy.memory_layout import as_rows, blocks, contiguous, to_nhwc, uses_hwcn
from gpucnn.backends.reference import Array

BLOCK = 1 << 17  # numbers: two arrays of that size stay in a core's second-level cache
MIN_ROW = 1 << 14  # numbers: NumPy copies shorter rows to its buffer of 8192 before it repeats them

Saved = tuple[Array, Array | None, Array]  # x, y after a ReLU, and the mean


@dataclass(frozen=True)
class RowView:
    """Arrays of one shape as rows: `channels` numbers, each repeated `repeat` times, and all of that `tile` times."""

    shape: tuple[int, ...]
    channels: int
    repeat: int
    tile: int

    @classmethod
    def of(cls, x: Array) -> "RowView":
        """Return the row view of x (…, C) in the engine's layout."""
        N, C = len(x), x.shape[-1]
        if x.ndim == 4 and uses_hwcn(N):
            return cls(x.shape, C, N, _divisor(x.shape[1] * x.shape[2], -(-MIN_ROW // (C * N)), BLOCK // (2 * C * N)))
        return cls(x.shape, C, 1, x.shape[-2] if x.ndim > 2 else 1)

    def matrix(self, x: Array) -> Array:
        """Return x as a matrix of rows; a copy only where its layout differs."""
        laid_out = as_rows(x) if x.ndim == 4 else contiguous(x)
        return laid_out.reshape(-1, self.tile * self.channels * self.repeat)

    def restore(self, matrix: Array) -> Array:
        """Return a matrix of rows in the shape of x."""
        if self.repeat == 1:
            return matrix.reshape(self.shape)
        N, H, W, C = self.shape
        return to_nhwc(matrix.reshape(H, W, C, N))

    def broadcast(self, numbers: Array, name: str) -> Array:
        """Return per-channel numbers (C,) as a row, in the workspace."""
        row = workspace.get(name, (self.tile, self.channels, self.repeat), numbers.dtype)
        row[...] = numbers[:, None]
        return row.reshape(-1)

    def sums(self, part: Array) -> Array:
        """Return partial sums of some rows over each channel (…, C), for `total`."""
        if self.repeat == 1:
            columns = part.reshape(-1, self.channels)
            return (workspace.ones(len(columns), part.dtype) @ columns)[None]
        return (part.reshape(-1, self.repeat) @ workspace.ones(self.repeat, part.dtype)).reshape(-1, self.channels)


def total(sums: list[Array]) -> Array:
    """Return the total (C,) of partial sums (…, C), in float64."""
    return np.concatenate(sums).sum(axis=0, dtype=np.float64)


def batch_norm(
    x: Array, scale: Array, shift: Array, epsilon: float, relu: bool = False
) -> tuple[Array, Array, Array, Saved]:
    """Return y (…, C), the batch's mean (C,) and its biased variance (C,), and what is saved for the gradient."""
    rows = RowView.of(x)
    matrix = rows.matrix(x)
    mean, variance = _statistics(rows, matrix)
    factor = scale / np.sqrt(variance + epsilon)
    y = _scaled(matrix, rows.broadcast(factor, "factor"), rows.broadcast(shift - mean * factor, "shift"), relu)
    y = rows.restore(y)
    return y, mean, variance, (x, y if relu else None, mean)


def batch_norm_gradient(
    dy: Array, saved: Saved, variance: Array, scale: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return dx (…, C), dscale (C,) and dshift (C,), the last two of this thread's samples alone.

    With y, the output after a ReLU, dy counts only where y is positive. dx = factor·(dy − Σdy / count −
    x̂·Σ(dy·x̂) / count), written as factor·dy + slope·x + offset, so that the normalised x̂ need not be saved.
    """
    x, y, mean = saved
    rows = RowView.of(x)
    matrix = rows.matrix(x)
    masked, sums = _gradient_sums(rows, matrix, rows.matrix(dy), None if y is None else rows.matrix(y), mean)
    inverse = 1.0 / np.sqrt(variance.astype(np.float64) + epsilon)
    own_dshift, own_dscale = sums[0], sums[1] * inverse
    parts = threads.all_gather((matrix.size // rows.channels, own_dshift, own_dscale))
    count, dshift, dscale = (sum(numbers) for numbers in zip(*parts, strict=True))
    factor = scale * inverse
    slope = -factor * inverse * dscale / count
    offset = -factor * dshift / count - slope * mean
    numbers = {"factor": factor, "slope": slope, "shift": offset}
    factor_row, slope_row, offset_row = (rows.broadcast(n.astype(x.dtype), name) for name, n in numbers.items())
    dx = masked if y is not None else memory.empty(matrix.shape, matrix.dtype)
    for part in _blocks(matrix):
        from_statistics = workspace.get("centred", matrix[part].shape, x.dtype)
        np.multiply(matrix[part], slope_row, out=from_statistics)
        from_statistics += offset_row
        out = np.multiply(masked[part], factor_row, out=dx[part])
        out += from_statistics
    return rows.restore(dx), own_dscale.astype(x.dtype), own_dshift.astype(x.dtype)


def _gradient_sums(rows: RowView, x: Array, dy: Array, y: Array | None, mean: Array) -> tuple[Array, Array]:
    """Return dy where a ReLU's output y is positive, else 0, and its sums and those of its products with x − mean.

    All but the sums (2, C) are matrices of rows. Without y, dy itself is returned.
    """
    mean_row, of_masked, of_product = rows.broadcast(mean, "mean"), [], []
    masked = dy if y is None else memory.empty(dy.shape, dy.dtype)
    for part in _blocks(x):
        if y is not None:
            positive = np.greater(y[part], 0, out=workspace.get("positive", y[part].shape, np.bool_))
            np.multiply(dy[part], positive, out=masked[part])
        product = _centred(x[part], mean_row)
        product *= masked[part]
        of_masked.append(rows.sums(masked[part]))
        of_product.append(rows.sums(product))
    return masked, np.stack([total(of_masked), total(of_product)])


def scale_and_shift(x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
    """Return scale·x + shift, clamped at 0 with `relu`."""
    rows = RowView.of(x)
    return rows.restore(_scaled(rows.matrix(x), rows.broadcast(scale, "factor"), rows.broadcast(shift, "shift"), relu))


def _scaled(matrix: Array, scale_row: Array, shift_row: Array, relu: bool) -> Array:
    """Return a matrix of rows times a row plus a row."""
    y = memory.empty(matrix.shape, matrix.dtype)
    for part in _blocks(matrix):
        out = np.multiply(matrix[part], scale_row, out=y[part])
        out += shift_row
        if relu:
            elementwise.clamp_at_zero(out, out)
    return y


def channel_sums(x: Array) -> Array:
    """Return the sum of each channel of x (…, C), (C,), of this thread's samples."""
    rows = RowView.of(x)
    matrix = rows.matrix(x)
    return total([rows.sums(matrix[part]) for part in _blocks(matrix)]).astype(x.dtype)


def _statistics(rows: RowView, matrix: Array) -> tuple[Array, Array]:
    """Return mean and biased variance (C,) over the whole batch, in one pass over this thread's samples.

    Sums are of x minus a pivot, the mean of the first block: with a pivot of 0, the difference of two large sums would
    lose the digits of a small variance. The parts of several threads are combined as in Chan, Golub, LeVeque, "Updating
    formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    C, first = rows.channels, _blocks(matrix)[0]
    pivot = (total([rows.sums(matrix[first])]) / (matrix[first].size // C)).astype(matrix.dtype)
    pivot_row, of_centred, of_squares = rows.broadcast(pivot, "mean"), [], []
    for part in _blocks(matrix):
        centred = _centred(matrix[part], pivot_row)
        of_centred.append(rows.sums(centred))
        of_squares.append(rows.sums(np.multiply(centred, centred, out=centred)))
    count, centred_sum = matrix.size // C, total(of_centred)
    own_squares = total(of_squares) - centred_sum * centred_sum / count  # of x minus this thread's own mean
    parts = threads.all_gather((count, pivot + centred_sum / count, own_squares))
    whole_count = sum(count for count, _, _ in parts)
    mean = sum(count * mean for count, mean, _ in parts) / whole_count
    variance = sum(squares + count * (own - mean) ** 2 for count, own, squares in parts) / whole_count
    return mean.astype(matrix.dtype), variance.astype(matrix.dtype)


def _centred(part: Array, row: Array) -> Array:
    """Return rows minus a row of means, in the workspace."""
    return np.subtract(part, row, out=workspace.get("centred", part.shape, part.dtype))


@lru_cache(maxsize=1024)
def _divisor(number: int, minimum: int, maximum: int) -> int:
    """Return the smallest divisor of a number within limits, 1 if there is none."""
    return next((divisor for divisor in range(minimum, maximum + 1) if number % divisor == 0), 1)


def _blocks(matrix: Array) -> tuple[slice, ...]:
    """Split the rows into blocks of at most BLOCK numbers."""
    return blocks(len(matrix), matrix.shape[1], BLOCK)
