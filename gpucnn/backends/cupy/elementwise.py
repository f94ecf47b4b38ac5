"""Elementwise functions, softmax and its loss, the optimizers' updates, random bits, batches of uint8."""

from typing import Any

import cupy
import numpy as np

from gpucnn.backends.cupy import kernels
from gpucnn.backends.cupy.kernels import NULL, aligned, compute_dtype, vector_width
from gpucnn.backends.image_transform import ImageTransform
from gpucnn.backends.reference import Array


def _unary(name: str, x: Array) -> Array:
    """Launch a kernel y[i] = f(x[i]); returns y."""
    x = aligned(x)
    y = cupy.empty_like(x)
    _launch(name, (x, y))
    return y


def _binary(name: str, a: Array, b: Array, *numbers: Any) -> Array:
    """Launch a kernel y[i] = f(a[i], b[i]) for arrays of one shape and dtype; returns y."""
    a, b = aligned(a), aligned(b, a.dtype)
    y = cupy.empty_like(a)
    _launch(name, (a, b, y), *numbers)
    return y


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    return _unary("relu", x)


def relu_gradient(dy: Array, y: Array) -> Array:
    """Return dy where y, the output of `relu`, is positive, else 0."""
    return _binary("relu_gradient", dy, y)


def gelu(x: Array) -> tuple[Array, Any]:
    """Return x·Φ(x), Φ the normal distribution function, and x."""
    return _unary("gelu", x), x


def gelu_gradient(dy: Array, saved: Any) -> Array:
    """Return dy·(Φ(x) + x·φ(x)), φ the normal density."""
    return _binary("gelu_gradient", dy, saved)


def add(a: Array, b: Array, relu: bool = False) -> Array:
    """Return a + b of one shape, clamped at 0 with `relu`."""
    return _binary("add", a, b, np.int32(relu))


def _launch(name: str, pointers: tuple[Any, ...], *numbers: Any) -> None:
    """Launch a kernel with one thread per pack of the first array."""
    dtype, size = pointers[0].dtype, pointers[0].size
    width = vector_width(dtype, size)
    kernels.launch_elements(name, dtype, width, size // width, *pointers, np.uint32(size // width), *numbers)


def softmax(logits: Array) -> Array:
    """Return probabilities (N, K) from logits (N, K)."""
    logits = aligned(logits)
    y = cupy.empty_like(logits)
    N, K = logits.shape
    kernels.launch_matrix_rows("softmax", logits.dtype, N, K, logits, y, np.uint32(N), np.uint32(K))
    return y


def softmax_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Return the mean cross-entropy of softmax(logits) with targets, both (N, K), and dlogits (N, K)."""
    logits, targets = aligned(logits), aligned(targets, logits.dtype)
    N, K = logits.shape
    losses, dlogits = cupy.empty(N, np.float64), cupy.empty_like(logits)
    loss = cupy.empty((), compute_dtype(logits.dtype))
    pointers = logits, targets, losses, dlogits
    kernels.launch_matrix_rows("softmax_cross_entropy", logits.dtype, N, K, *pointers, np.uint32(N), np.uint32(K))
    kernels.launch_one_block("mean", logits.dtype, losses, loss, np.uint32(N))
    return loss, dlogits


def _on_device(number: Any, dtype: Any) -> Array:
    """Return a number in GPU memory, where it may already be."""
    return number if isinstance(number, cupy.ndarray) else cupy.full((), number, dtype)


def clip_norm(gradients: Array, limit: float) -> None:
    """Scale gradients (P,) down to a norm of at most `limit`, in place: three launches, and nothing is read."""
    partial, parts = kernels.squares(gradients)
    factor = cupy.empty((), compute_dtype(gradients.dtype))
    kernels.launch_one_block("clip_factor", gradients.dtype, partial, factor, np.uint32(parts), np.float64(limit))
    _launch("multiply", (gradients, factor))


def sgd_update(
    values: Array,
    gradients: Array,
    velocity: Array | None,
    *,
    learning_rate: Any,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """Step down the gradient, in place."""
    pointers = values, gradients, NULL if velocity is None else velocity, _on_device(learning_rate, np.float64)
    _launch("sgd_update", pointers, np.float64(momentum), np.float64(weight_decay), np.int32(nesterov))


def adam_update(
    values: Array,
    gradients: Array,
    mean: Array,
    square: Array,
    *,
    step: Any,
    learning_rate: Any,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Step by the running mean of the gradient over the root of its running square, in place."""
    rate, number = _on_device(learning_rate, np.float64), _on_device(step, np.int64)
    numbers = (np.float64(number) for number in (beta1, beta2, epsilon, weight_decay))
    _launch("adam_update", (values, gradients, mean, square, rate, number), *numbers, np.int32(decoupled))


def lerp_(target: Array, source: Array, weight: float) -> None:
    """Interpolate one array towards another, in place."""
    _launch("lerp", (target, source), np.float64(weight))


def random_bits(key: int, counter: int, count: int, start: int, replays: Array | None, stride: int) -> Array:
    """Return the random words start … start + count − 1, uint32 (count,), of the stream (key, counter)."""
    words = cupy.empty(count, np.uint32)
    numbers = np.uint64(key), np.uint64(counter), NULL if replays is None else replays, np.uint64(stride)
    blocks = (start % 4 + count + 3) // 4
    kernels.launch_elements("random_bits", np.float32, 1, blocks, words, *numbers, np.uint64(start), np.uint32(count))
    return words


def gather_bytes(images: Array, indices: Array, dtype: Any, transform: ImageTransform | None) -> Array:
    """Return samples (P, …) uint8 at `indices` (N,) as floats 0 … 1, (N, …); images may be transformed."""
    images, indices = aligned(images), aligned(indices, np.int64)
    if transform is None:
        x = cupy.empty((len(indices), *images.shape[1:]), dtype)
        numbers = np.uint32(x.size), np.uint32(x.size // max(len(indices), 1))
        kernels.launch_elements("gather_bytes", dtype, 1, x.size, images, indices, x, *numbers)
        return x
    H, W, C = images.shape[1:]
    OH, OW = transform.result_size((H, W))
    x = cupy.empty((len(indices), OH, OW, C), dtype)
    names = ("cosine", "sine", "shift_y", "shift_x", "flip", "cutout_top", "cutout_left")
    of_images = (getattr(transform, name) for name in names)
    pointers = (NULL if numbers is None else aligned(numbers, np.int32) for numbers in of_images)
    border = -1 if transform.border is None else transform.border
    values = transform.rotation_fill, border, transform.cutout, transform.cutout_fill
    sizes = (np.int32(number) for number in (H, W, C, OH, OW, *values))
    kernels.launch_elements("gather_images", dtype, 1, x.size, images, indices, *pointers, x, np.uint32(x.size), *sizes)
    return x
