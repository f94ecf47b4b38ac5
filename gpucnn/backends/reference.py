"""The reference implementation of every kernel, in plain array operations.

The bodies use only what NumPy and CuPy share, so they run on any backend, and they are what engines are tested against.
An engine overrides a kernel only to be faster, never to be different.

Shape letters: N batch, C channels, F filters, H W image, KH KW kernel, OH OW output, D features, K classes.
Images are (N, H, W, C), convolution weights (KH, KW, C/groups, F).
"""

import math
from operator import matmul
from types import ModuleType
from typing import Any

import numpy as np

from gpucnn.backends.image_transform import ImageTransform, apply_transform
from gpucnn.backends.philox import philox4x32
from gpucnn.backends.window import Window

Array = Any  # an array of the backend's own module: numpy.ndarray, cupy.ndarray

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


class ReferenceKernels:
    """Every kernel as the textbook writes it."""

    xp: ModuleType | Any = np

    # --- special functions --------------------------------------------------------------------

    def erf(self, x: Array) -> Array:
        """Return the error function of every element, in the dtype of `x`."""
        from scipy.special import erf  # imported here because only GELU needs it

        return erf(x)

    # --- windows to rows and back -------------------------------------------------------------

    def pad(self, x: Array, window: Window, fill: float = 0.0) -> Array:
        """Pad images for a window: (N, H, W, C) → (N, H + PT + PB, W + PL + PR, C)."""
        if window.padding == ((0, 0), (0, 0)):
            return x
        N, H, W, C = x.shape
        padded = self.xp.full_like(x, fill, shape=(N, *window.padded_size((H, W)), C))
        padded[window.interior((H, W))] = x
        return padded

    def im2col(self, x: Array, window: Window) -> Array:
        """Copy each window to a row: (N, H, W, C) → (N, OH, OW, KH, KW, C)."""
        (SH, SW), (DH, DW) = window.strides, window.dilation
        sliding = self.xp.lib.stride_tricks.sliding_window_view  # a view that reads the same memory many times
        views = sliding(self.pad(x, window), window.extent, axis=(1, 2))  # (N, positions, positions, C, rows, columns)
        views = views[:, ::SH, ::SW, :, ::DH, ::DW]
        return self.xp.ascontiguousarray(views.transpose(0, 1, 2, 4, 5, 3))

    def col2im(self, columns: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Add windows back to the image: (N, OH, OW, KH, KW, C) → (N, H, W, C).

        The transpose of `im2col`. Elements are added in a fixed order of offsets, so a run repeats bit for bit.
        """
        N, OH, OW, _, _, C = columns.shape
        padded = self.xp.zeros((N, *window.padded_size(image_size), C), dtype=columns.dtype)
        for i, j in window.offsets():
            padded[window.slices(i, j, (OH, OW))] += columns[:, :, :, i, j]
        return padded[window.interior(image_size)]

    # --- convolution: pad, im2col, one product, reshape ---------------------------------------

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1, relu: bool = False
    ) -> Array:
        """Convolve images: x (N, H, W, C), weight (KH, KW, C/groups, F), bias (F,) → (N, OH, OW, F).

        `relu` applies a ReLU to the output.
        """
        columns = self.im2col(x, window)
        outputs = list(map(matmul, column_groups(columns, groups), kernel_groups(weight, groups)))
        y = outputs[0] if groups == 1 else self.xp.concatenate(outputs, axis=1)
        if bias is not None:
            y = y + bias
        if relu:
            y = self.relu(y)
        return y.reshape(*columns.shape[:3], weight.shape[-1])

    def conv2d_algorithm(self, window: Window, batch: int, channels: int, filters: int, groups: int, dtype: Any) -> str:
        """Return the name of the algorithm that `conv2d` uses for a convolution."""
        return "im2col"

    def conv2d_parameter_gradients(
        self, x: Array, dy: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Return dweight (KH, KW, C/groups, F) and, with `bias`, dbias (F,) from x (N, H, W, C) and dy (N, OH, OW, F).

        The columns are recomputed rather than saved in the forward pass: they are KH·KW times the image.
        """
        F = dy.shape[-1]
        columns = self.im2col(x, window)
        transposed = [rows.T for rows in column_groups(columns, groups)]
        outputs = list(map(matmul, transposed, filter_groups(dy.reshape(-1, F), groups)))
        dweight = outputs[0] if groups == 1 else self.xp.concatenate(outputs, axis=1)
        return dweight.reshape(*window.size, -1, F), self.channel_sums(dy) if bias else None

    def conv2d_input_gradient(
        self, dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int = 1
    ) -> Array:
        """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F)."""
        F = dy.shape[-1]
        grid = (*dy.shape[:3], *window.size, -1)
        transposed = [kernel.T for kernel in kernel_groups(weight, groups)]
        products = map(matmul, filter_groups(dy.reshape(-1, F), groups), transposed)
        outputs = [rows.reshape(grid) for rows in products]
        dcolumns = outputs[0] if groups == 1 else self.xp.concatenate(outputs, axis=-1)
        return self.col2im(dcolumns, image_size, window)

    def conv2d_gradients(
        self, x: Array, dy: Array, weight: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None, Array]:
        """Return dweight, dbias with `bias`, and dx, for a layer that needs all of them: they may share work."""
        dweight, dbias = self.conv2d_parameter_gradients(x, dy, window, groups, bias)
        return dweight, dbias, self.conv2d_input_gradient(dy, weight, x.shape[1:3], window, groups)

    def conv2d_backward(
        self, x: Array, dy: Array, weight: Array, window: Window, groups: int, need: tuple[bool, ...]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Return dx, dweight and dbias; None for those that `need` is false for, in this order."""
        need_dx, need_dweight, need_dbias = need
        if need_dx and need_dweight:
            dweight, dbias, dx = self.conv2d_gradients(x, dy, weight, window, groups, need_dbias)
            return dx, dweight, dbias
        if need_dweight:
            return None, *self.conv2d_parameter_gradients(x, dy, window, groups, need_dbias)
        dbias = self.channel_sums(dy) if need_dbias else None
        return self.conv2d_input_gradient(dy, weight, x.shape[1:3], window, groups) if need_dx else None, None, dbias

    # --- dense layers -------------------------------------------------------------------------

    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """Multiply features by a matrix: x (N, D), weight (D, K), bias (K,) → (N, K)."""
        y = x @ weight
        return y if bias is None else y + bias

    def dense_parameter_gradients(self, x: Array, dy: Array, bias: bool = True) -> tuple[Array, Array | None]:
        """Return dweight (D, K) and, with `bias`, dbias (K,) from x (N, D) and dy (N, K)."""
        return x.T @ dy, self.channel_sums(dy) if bias else None

    def dense_input_gradient(self, dy: Array, weight: Array, x: Array) -> Array:
        """Return dx (N, D) from dy (N, K) and weight (D, K), in the memory layout of x."""
        return self.xp.matmul(dy, weight.T, out=self.xp.empty_like(x))

    def dense_backward(
        self, x: Array, dy: Array, weight: Array, need: tuple[bool, ...]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Return dx, dweight and dbias; None for those that `need` is false for, in this order."""
        need_dx, need_dweight, need_dbias = need
        dweight, dbias = None, None
        if need_dweight:
            dweight, dbias = self.dense_parameter_gradients(x, dy, need_dbias)
        elif need_dbias:
            dbias = self.channel_sums(dy)
        return self.dense_input_gradient(dy, weight, x) if need_dx else None, dweight, dbias

    # --- pooling ------------------------------------------------------------------------------

    def max_pool2d(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Any]:
        """Return the maximum of each window of x (N, H, W, C), y (N, OH, OW, C), and the switches.

        The switches (Zeiler & Fergus) are opaque: here the index of the maximum in its window, 0 … KH·KW − 1,
        (N, OH, OW, C), and −1 where a ReLU clamped it. Of equal elements the first wins. Padding is −inf, so it never
        wins against a real element, and NaN propagates. `relu` applies a ReLU, which may come before or after.
        """
        xp = self.xp
        padded = self.pad(x, window, fill=-float("inf"))
        output_size = window.output_size(x.shape[1:3])
        y = xp.copy(padded[window.slices(0, 0, output_size)], order="K")
        switches = xp.zeros_like(y, dtype=xp.int32)
        for number, (i, j) in enumerate(window.offsets()):
            candidate = padded[window.slices(i, j, output_size)]
            switches = xp.where(candidate > y, number, switches)
            y = xp.maximum(y, candidate)
        return (self.relu(y), xp.where(y > 0, switches, -1)) if relu else (y, switches)

    def max_pool2d_gradient(self, dy: Array, switches: Any, image_size: tuple[int, int], window: Window) -> Array:
        """Return dx (N, H, W, C): dy (N, OH, OW, C) at the maxima."""
        N, OH, OW, C = dy.shape
        padded = self.xp.zeros_like(dy, shape=(N, *window.padded_size(image_size), C))
        for number, (i, j) in enumerate(window.offsets()):
            padded[window.slices(i, j, (OH, OW))] += dy * (switches == number)
        return padded[window.interior(image_size)]

    def average_pool2d(self, x: Array, window: Window) -> Array:
        """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
        image_size = x.shape[1:3]
        output_size = window.output_size(image_size)
        padded = self.pad(x, window)
        total = self.xp.zeros_like(x, shape=(x.shape[0], *output_size, x.shape[3]))
        for i, j in window.offsets():
            total += padded[window.slices(i, j, output_size)]
        return total / window.valid_counts(self.xp, image_size).astype(x.dtype)

    def average_pool2d_gradient(self, dy: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Distribute dy (N, OH, OW, C) over the elements of each window: dx (N, H, W, C)."""
        N, OH, OW, C = dy.shape
        dy_per_element = dy / window.valid_counts(self.xp, image_size).astype(dy.dtype)
        padded = self.xp.zeros_like(dy, shape=(N, *window.padded_size(image_size), C))
        for i, j in window.offsets():
            padded[window.slices(i, j, (OH, OW))] += dy_per_element
        return padded[window.interior(image_size)]

    # --- batch normalisation ------------------------------------------------------------------

    def batch_norm(
        self, x: Array, scale: Array, shift: Array, epsilon: float, relu: bool = False
    ) -> tuple[Array, Array, Array, Any]:
        """Normalise each channel of x (…, C) over the batch, then scale and shift; with `relu`, clamp at 0.

        Returns y (…, C), the batch's mean (C,) and biased variance (C,), and what is saved for the gradient, which is
        opaque: here the normalised x (…, C), and y after a ReLU. Sums run in float64: a float32 sum over a large
        batch loses digits.
        """
        xp = self.xp
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes, dtype=xp.float64).astype(x.dtype)
        centred = x - mean
        variance = xp.square(centred).mean(axis=axes, dtype=xp.float64).astype(x.dtype)
        normalized = centred / xp.sqrt(variance + epsilon)
        y = normalized * scale + shift
        if relu:
            y = self.relu(y)
        return y, mean, variance, (normalized, y if relu else None)

    def batch_norm_gradient(
        self, dy: Array, saved: Any, variance: Array, scale: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """Return dx (…, C), dscale (C,) and dshift (C,) of `batch_norm`.

        The batch's mean and variance depend on x; the last line subtracts their contribution.
        """
        xp, (normalized, y) = self.xp, saved
        if y is not None:
            dy = self.relu_gradient(dy, y)
        axes = tuple(range(dy.ndim - 1))
        count = normalized.size // normalized.shape[-1]
        dshift = dy.sum(axis=axes, dtype=xp.float64).astype(dy.dtype)
        dscale = (dy * normalized).sum(axis=axes, dtype=xp.float64).astype(dy.dtype)
        factor = scale / xp.sqrt(variance + epsilon)
        return factor * (dy - dshift / count - normalized * (dscale / count)), dscale, dshift

    # --- elementwise, and sums per channel ----------------------------------------------------

    def relu(self, x: Array) -> Array:
        """Return max(x, 0), of any shape."""
        return self.xp.maximum(x, 0)

    def relu_gradient(self, dy: Array, y: Array) -> Array:
        """Return dy where y, the output of `relu`, is positive, else 0."""
        return dy * (y > 0)

    def gelu(self, x: Array) -> tuple[Array, Any]:
        """Return x·Φ(x), Φ the normal distribution function, and what is saved for the gradient (opaque)."""
        cdf = 0.5 * self.erf(x * SQRT_HALF) + 0.5
        return x * cdf, (x, cdf)

    def gelu_gradient(self, dy: Array, saved: Any) -> Array:
        """Return dy·(Φ(x) + x·φ(x)), φ the normal density."""
        x, cdf = saved
        pdf = INV_SQRT_2PI * self.xp.exp(-0.5 * x * x)
        return dy * (cdf + x * pdf)

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        """Return a + b of one shape, clamped at 0 with `relu`."""
        return self.relu(a + b) if relu else a + b

    def scale_and_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        """Return scale·x + shift of x (…, C) with per-channel numbers (C,), clamped at 0 with `relu`."""
        y = x * scale + shift
        return self.relu(y) if relu else y

    def channel_sums(self, x: Array) -> Array:
        """Return the sum of each channel of x (…, C), (C,)."""
        return x.sum(axis=tuple(range(x.ndim - 1)))

    # --- softmax and its loss -----------------------------------------------------------------

    def softmax(self, logits: Array) -> Array:
        """Return probabilities (N, K) from logits (N, K); the maximum is subtracted first, so that none overflows."""
        powers = self.xp.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def softmax_cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """Return the mean cross-entropy of softmax(logits) with targets, both (N, K), and dlogits (N, K).

        log softmax is formed from the logits directly: logits of ±10,000 give a finite loss and gradient.
        """
        xp = self.xp
        N = logits.shape[0]
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_total = xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
        log_probabilities = shifted - log_total
        loss = -(targets * log_probabilities).sum() / N
        dlogits = (xp.exp(log_probabilities) * targets.sum(axis=-1, keepdims=True) - targets) / N
        return loss, dlogits

    # --- the optimizers' updates, in place over one flat buffer (P,) --------------------------

    def clip_value(self, gradients: Array, limit: float) -> None:
        """Clip every element to ±limit, in place."""
        self.xp.clip(gradients, -limit, limit, out=gradients)

    def clip_norm(self, gradients: Array, limit: float) -> None:
        """Scale gradients down to a Euclidean norm of at most `limit`, in place; squares are summed in float64."""
        xp = self.xp
        norm = xp.sqrt(xp.square(gradients, dtype=xp.float64).sum())
        gradients *= (limit / xp.maximum(norm, limit)).astype(gradients.dtype)

    def sgd_update(
        self,
        values: Array,
        gradients: Array,
        velocity: Array | None,
        *,
        learning_rate: float | Array,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ) -> None:
        """Step down the gradient: velocity ← momentum·velocity + gradient; values ← values − rate·velocity.

        The learning rate is a number, or an array () of one.
        """
        step = gradients + weight_decay * values if weight_decay else gradients
        if velocity is not None:
            velocity *= momentum
            velocity += step
            step = step + momentum * velocity if nesterov else velocity
        values -= learning_rate * step

    def adam_update(
        self,
        values: Array,
        gradients: Array,
        mean: Array,
        square: Array,
        *,
        step: int | Array,
        learning_rate: float | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        """Step by the running mean of the gradient over the root of its running square, both unbiased.

        `decoupled` applies the weight decay to the values directly (AdamW) instead of adding it to the gradient. The
        learning rate and the step number, from 1, are numbers, or arrays () of one.
        """
        if weight_decay and decoupled:
            values *= 1.0 - learning_rate * weight_decay
        elif weight_decay:
            gradients = gradients + weight_decay * values
        mean *= beta1
        mean += (1.0 - beta1) * gradients
        square *= beta2
        square += (1.0 - beta2) * gradients * gradients
        unbiased_mean = mean / (1.0 - beta1**step)
        unbiased_square = square / (1.0 - beta2**step)
        values -= learning_rate * unbiased_mean / (self.xp.sqrt(unbiased_square) + epsilon)

    def lerp_(self, target: Array, source: Array, weight: float) -> None:
        """Interpolate `target` (P,) towards `source` (P,) in place; weight 0 leaves it, 1 gives the source exactly."""
        difference = source - target
        if weight < 0.5:
            target += weight * difference
        else:
            target[...] = source - (1.0 - weight) * difference

    # --- batches and random numbers -----------------------------------------------------------

    def load_batch(self, x: Array, indices: Any, dtype: Any, transform: ImageTransform | None = None) -> Array:
        """Return samples of a data set x (P, …) as floats, by indices (N,) or a slice; uint8 becomes 0 … 1.

        Images (P, H, W, C) may be transformed as well: rotated, shifted or cropped, flipped, cut out.
        """
        if transform is None:
            return as_floats(x[indices], dtype)
        numbers = self.xp.arange(len(x))[indices] if isinstance(indices, slice) else indices
        return as_floats(apply_transform(self.xp, x, numbers, transform), dtype)

    def random_bits(self, key: int, counter: int, count: int, start: int = 0) -> Array:
        """Return random words start … start + count − 1, uint32 (count,), of a stream (key, counter), 64 bits each."""
        return philox4x32(self.xp, key, counter, count, start)


def as_floats(x: Array, dtype: Any) -> Array:
    """Return x in a float dtype; uint8 pixels 0 … 255 become 0 … 1, everything else keeps its values."""
    floats = x.astype(dtype, copy=False)
    return floats / 255.0 if x.dtype == "uint8" else floats


def column_groups(columns: Array, groups: int) -> list[Array]:
    """Split columns (N, OH, OW, KH, KW, C) into one matrix (N·OH·OW, KH·KW·C/groups) per group."""
    N, OH, OW, KH, KW, C = columns.shape
    width = C // groups
    return [columns[..., g * width : (g + 1) * width].reshape(N * OH * OW, KH * KW * width) for g in range(groups)]


def kernel_groups(weight: Array, groups: int) -> list[Array]:
    """Split weight (KH, KW, C/groups, F) into one matrix (KH·KW·C/groups, F/groups) per group."""
    return filter_groups(weight.reshape(-1, weight.shape[-1]), groups)


def filter_groups(matrix: Array, groups: int) -> list[Array]:
    """Split (rows, F) into one matrix (rows, F/groups) per group."""
    width = matrix.shape[1] // groups
    return [matrix[:, g * width : (g + 1) * width] for g in range(groups)]
