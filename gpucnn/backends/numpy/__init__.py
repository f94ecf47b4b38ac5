"""The CPU backend: NumPy arrays in host memory, and an engine that is faster than the reference implementation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from gpucnn.backends.base import Array, Backend
from gpucnn.backends.image_transform import ImageTransform
from gpucnn.backends.numpy import (
    blas,
    convolution,
    elementwise,
    memory,
    norm,
    pooling,
    rotation,
    threads,
    workspace,
)
from gpucnn.backends.numpy.memory_layout import blocks
from gpucnn.backends.numpy.namespace import namespace
from gpucnn.backends.numpy.traced_array import current_tracer, untraced
from gpucnn.backends.numpy.tracer import Tracer, on_replay
from gpucnn.backends.window import Window

T = TypeVar("T")
UPDATE_BLOCK = 1 << 16  # numbers of the flat parameter buffer


class NumpyBackend(Backend):
    """NumPy on the CPU: images lie with the batch innermost, and a team of threads shares the batch."""

    name = "numpy"
    folds_batch_norm = True

    @property
    def xp(self) -> Any:  # type: ignore[override]
        """NumPy; while this thread's pass is captured, with functions for making arrays that are seen."""
        return np if current_tracer() is None else namespace

    @contextmanager
    def execution_context(self, sharded: bool, allow_tf32: bool = False) -> Iterator[None]:
        """Hold BLAS to one thread if a team of threads shares the work, else to the number that was set."""
        with super().execution_context(sharded, allow_tf32), blas.blas_threads(1 if sharded else threads.num_threads()):
            yield

    def fixed_num_threads(self) -> AbstractContextManager[None]:
        """Stay with the number of threads, whatever is set meanwhile."""
        return threads.fixed_num_threads()

    def shards(self, batch_size: int, flops: float) -> list[slice]:
        """Cut a batch into slices of which a team of threads takes one each."""
        return threads.shards(batch_size, flops)

    def run_sharded(self, tasks: Sequence[Callable[[], T]], shards: Sequence[slice]) -> list[T]:
        """Run tasks side by side, one a slice of the batch."""
        return threads.run_sharded(tasks, shards)

    def shard_offset(self) -> int:
        """Return how many samples of the batch stand before those of this thread's slice."""
        return threads.shard_offset()

    def global_batch_size(self, samples: int) -> int:
        """Return how many samples the batch has of which this thread works on some."""
        return threads.global_batch_size(samples)

    def tracer(self) -> Tracer:
        """Return one who records what a thread asks of NumPy."""
        return Tracer(memory.arena, workspace.detach)

    def kernel_options(self) -> Any:
        """Return whether Winograd's methods may be taken, and which errors of arithmetic are said."""
        return convolution.winograd_allowed(), np.geterr()

    def on_replay(self, draw: Callable[[], Array]) -> Array:
        """Return what a function draws, which is called again in each repeat."""
        return on_replay(draw)

    def erf(self, x: Array) -> Array:
        """Return the error function of every element, in the dtype of `x`."""
        return on_replay(partial(super().erf, untraced(x)))

    def environment(self) -> dict[str, Any]:
        """Return also the number of threads, by which a batch is cut, and what computes products and convolutions."""
        own = {"threads": threads.num_threads(), "BLAS": blas.blas_description()}
        return {**super().environment(), **own, "Winograd": convolution.winograd_allowed()}

    def release(self) -> None:
        """Return the memory of results that nobody refers to any more to the system."""
        memory.release()

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1, relu: bool = False
    ) -> Array:
        """Convolve images: x (N, H, W, C), weight (KH, KW, C/groups, F), bias (F,) → (N, OH, OW, F)."""
        return convolution.forward(x, weight, bias, window, groups, relu)

    def conv2d_algorithm(self, window: Window, batch: int, channels: int, filters: int, groups: int, dtype: Any) -> str:
        """Return in a word how `conv2d` computes such a convolution: the name of its path."""
        return convolution.choose_algorithm(window, batch, channels, filters, groups, dtype)

    def conv2d_parameter_gradients(
        self, x: Array, dy: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Return dweight (KH, KW, C/groups, F) and, with `bias`, dbias (F,), from x (N, H, W, C) and dy."""
        return convolution.parameter_gradients(x, dy, window, groups, bias)

    def conv2d_input_gradient(
        self, dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int = 1
    ) -> Array:
        """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F)."""
        return convolution.input_gradient(dy, weight, image_size, window, groups)

    def conv2d_gradients(
        self, x: Array, dy: Array, weight: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None, Array]:
        """Return dweight, dbias with `bias`, and dx, at once where they share work."""
        shared = convolution.joint_gradients(x, dy, weight, window, groups, bias)
        return shared or super().conv2d_gradients(x, dy, weight, window, groups, bias)

    def max_pool2d(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Any]:
        """Take the largest element of each window: (N, H, W, C) → y (N, OH, OW, C), and what the gradient needs."""
        return pooling.max_pool(x, window, relu)

    def max_pool2d_gradient(self, dy: Array, switches: Any, image_size: tuple[int, int], window: Window) -> Array:
        """Send dy (N, OH, OW, C) back to the elements that won: dx (N, H, W, C)."""
        return pooling.max_pool_gradient(dy, switches, image_size, window)

    def average_pool2d(self, x: Array, window: Window) -> Array:
        """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
        return pooling.average_pool(x, window)

    def average_pool2d_gradient(self, dy: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Share dy (N, OH, OW, C) among the elements of each window: dx (N, H, W, C)."""
        return pooling.average_pool_gradient(dy, image_size, window)

    def batch_norm(
        self, x: Array, scale: Array, shift: Array, epsilon: float, relu: bool = False
    ) -> tuple[Array, Array, Array, Any]:
        """Normalise each channel of x (…, C) over the batch, then scale and shift; keeps x, a ReLU's y, the mean."""
        y, mean, variance = norm.forward(x, scale, shift, epsilon, relu)
        return y, mean, variance, (x, y if relu else None, mean)

    def batch_norm_gradient(
        self, dy: Array, saved: Any, variance: Array, scale: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """Return dx (…, C), dscale (C,) and dshift (C,) of `batch_norm`."""
        x, y, mean = saved
        return norm.gradient(dy, x, y, mean, variance, scale, epsilon)

    def scale_and_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        """Return scale·x + shift of x (…, C) with numbers for each channel (C,), cut off below 0 with `relu`."""
        return norm.scale_and_shift(x, scale, shift, relu)

    def channel_sums(self, x: Array) -> Array:
        """Return the sum of each channel of x (…, C), (C,)."""
        return norm.channel_sums(x)

    def relu(self, x: Array) -> Array:
        """Return max(x, 0)."""
        return elementwise.relu(x)

    def relu_gradient(self, dy: Array, y: Array) -> Array:
        """Return dy where y, the output of `relu`, is positive, else 0."""
        return elementwise.relu_gradient(dy, y)

    def gelu(self, x: Array) -> tuple[Array, Any]:
        """Return x·Φ(x), Φ the normal distribution, and its slope; in float64 what the reference gradient needs."""
        return elementwise.gelu(x) if x.dtype == "float32" else super().gelu(x)

    def gelu_gradient(self, dy: Array, saved: Any) -> Array:
        """Return dy·(Φ(x) + x·φ(x)), φ the normal density."""
        return super().gelu_gradient(dy, saved) if isinstance(saved, tuple) else elementwise.gelu_gradient(dy, saved)

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        """Return a + b, and what is negative set to 0 with `relu`."""
        return elementwise.add(a, b, relu)

    def sgd_update(self, values: Array, gradients: Array, velocity: Array | None, **settings: Any) -> None:
        """Step down the gradient, a part after another that stays in the cache with all that is made of it."""
        for part in blocks(len(values), 1, UPDATE_BLOCK):
            own_velocity = None if velocity is None else velocity[part]
            super().sgd_update(values[part], gradients[part], own_velocity, **settings)

    def adam_update(self, values: Array, gradients: Array, mean: Array, square: Array, **settings: Any) -> None:
        """Step by the running mean over the root of the running square, likewise a part after another."""
        for part in blocks(len(values), 1, UPDATE_BLOCK):
            super().adam_update(values[part], gradients[part], mean[part], square[part], **settings)

    def load_batch(self, x: Array, indices: Any, dtype: Any, transform: ImageTransform | None = None) -> Array:
        """Return samples of a data set x (P, …), picked by number (N,) or slice, as floats; bytes become 0 … 1."""
        if transform is not None and transform.cosine is not None and x.dtype == "uint8":
            x, indices = rotation.rotate(x[indices], transform), slice(None)
            transform = replace(transform, cosine=None, sine=None)
            transform = None if transform.is_identity() else transform
        return super().load_batch(x, indices, dtype, transform)
