"""The CPU backend: NumPy arrays in host memory, and an engine that is faster than the reference implementation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpucnn.backends.base import Backend
from gpucnn.backends.image_transform import ImageTransform
from gpucnn.backends.numpy import blas, convolution, elementwise, memory, norm, pooling, rotation, threads, workspace
from gpucnn.backends.numpy.memory_layout import blocks
from gpucnn.backends.numpy.namespace import namespace
from gpucnn.backends.numpy.traced_array import current_tracer, untraced
from gpucnn.backends.numpy.tracer import Tracer, on_replay
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

UPDATE_BLOCK = 1 << 16  # numbers of the flat parameter buffer


class NumpyBackend(Backend):
    """NumPy on the CPU: images in HWCN, and a team of threads that splits the batch."""

    name = "numpy"
    folds_batch_norm = True
    captured_unit = "pass"

    # where no state is used, the function is the method
    fixed_num_threads = staticmethod(threads.fixed_num_threads)
    shards = staticmethod(threads.shards)
    run_sharded = staticmethod(threads.run_sharded)
    shard_offset = staticmethod(threads.shard_offset)
    global_batch_size = staticmethod(threads.global_batch_size)
    release = staticmethod(memory.arena.release)
    on_replay = staticmethod(on_replay)
    conv2d = staticmethod(convolution.conv2d)
    conv2d_algorithm = staticmethod(convolution.choose_algorithm)
    conv2d_parameter_gradients = staticmethod(convolution.parameter_gradients)
    conv2d_input_gradient = staticmethod(convolution.input_gradient)
    max_pool2d = staticmethod(pooling.max_pool)
    max_pool2d_gradient = staticmethod(pooling.max_pool_gradient)
    average_pool2d = staticmethod(pooling.average_pool)
    average_pool2d_gradient = staticmethod(pooling.average_pool_gradient)
    batch_norm = staticmethod(norm.batch_norm)
    batch_norm_gradient = staticmethod(norm.batch_norm_gradient)
    scale_and_shift = staticmethod(norm.scale_and_shift)
    channel_sums = staticmethod(norm.channel_sums)
    relu = staticmethod(elementwise.relu)
    relu_gradient = staticmethod(elementwise.relu_gradient)
    add = staticmethod(elementwise.add)

    @property
    def xp(self) -> Any:  # type: ignore[override]
        """NumPy; while this thread's pass is captured, with traced functions that create arrays."""
        return np if current_tracer() is None else namespace

    @contextmanager
    def execution_context(self, sharded: bool, allow_tf32: bool = False) -> Iterator[None]:
        """Limit BLAS to one thread if a team of threads computes, else to the number that was set."""
        with super().execution_context(sharded, allow_tf32), blas.blas_threads(1 if sharded else threads.num_threads()):
            yield

    def tracer(self) -> Tracer:
        """Return a tracer of the NumPy calls of a thread."""
        return Tracer(memory.arena, workspace.detach)

    def kernel_options(self) -> Any:
        """Return whether Winograd convolutions are on, and how floating-point errors are handled."""
        return convolution.winograd_allowed(), np.geterr()

    def erf(self, x: Array) -> Array:
        """Return the error function of every element, in the dtype of `x`."""
        return on_replay(partial(super().erf, untraced(x)))

    def environment(self) -> dict[str, Any]:
        """Return also the number of threads, which decides the shards, the BLAS and whether Winograd is on."""
        own = {"threads": threads.num_threads(), "BLAS": blas.blas_description()}
        return {**super().environment(), **own, "Winograd": convolution.winograd_allowed()}

    def conv2d_gradients(
        self, x: Array, dy: Array, weight: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None, Array]:
        """Return dweight, dbias with `bias`, and dx, jointly where that saves work."""
        joint = convolution.joint_gradients(x, dy, weight, window, groups, bias)
        return joint or super().conv2d_gradients(x, dy, weight, window, groups, bias)

    def gelu(self, x: Array) -> tuple[Array, Any]:
        """Return x·Φ(x), Φ the normal distribution, and its derivative; in float64 as in the reference."""
        return elementwise.gelu(x) if x.dtype == "float32" else super().gelu(x)

    def gelu_gradient(self, dy: Array, saved: Any) -> Array:
        """Return dy·(Φ(x) + x·φ(x)), φ the normal density."""
        return super().gelu_gradient(dy, saved) if isinstance(saved, tuple) else elementwise.gelu_gradient(dy, saved)

    def sgd_update(self, values: Array, gradients: Array, velocity: Array | None, **settings: Any) -> None:
        """Step down the gradient, block by block, so that all intermediate results stay in the cache."""
        for part in blocks(len(values), 1, UPDATE_BLOCK):
            own_velocity = None if velocity is None else velocity[part]
            super().sgd_update(values[part], gradients[part], own_velocity, **settings)

    def adam_update(self, values: Array, gradients: Array, mean: Array, square: Array, **settings: Any) -> None:
        """Step by the running mean over the root of the running square, likewise block by block."""
        for part in blocks(len(values), 1, UPDATE_BLOCK):
            super().adam_update(values[part], gradients[part], mean[part], square[part], **settings)

    def load_batch(self, x: Array, indices: Any, dtype: Any, transform: ImageTransform | None = None) -> Array:
        """Return samples of a data set x (P, …), as floats, by indices (N,) or a slice; uint8 becomes 0 … 1."""
        if transform is not None and transform.cosine is not None and x.dtype == "uint8":
            x, indices = rotation.rotate(x[indices], transform), slice(None)
            transform = replace(transform, cosine=None, sine=None)
            transform = None if transform.is_identity() else transform
        return super().load_batch(x, indices, dtype, transform)
