"""The GPU backend: CuPy arrays in the memory of one NVIDIA GPU, with the package's own kernels and cuBLAS products.

Importing this module imports CuPy; nothing else in the package does.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import cupy
import numpy as np

from gpucnn.backends.base import StreamedDataset
from gpucnn.backends.cupy import elementwise, graph, kernels, norm, pooling, streaming
from gpucnn.backends.cupy.convolution import ConvolutionBackend, add_bias
from gpucnn.backends.image_transform import ImageTransform
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window

T = TypeVar("T")


class CupyBackend(ConvolutionBackend):
    """CuPy on one GPU: matrix products, custom kernels for the rest, and a training step as one CUDA graph.

    Raises:
        Exception: whatever CuPy raises where there is no usable GPU; `get_backend` turns it into a remedy.
    """

    xp = cupy
    supports_float16 = True
    is_host = False
    captured_unit = "step"

    # where no state is used, the function is the method
    average_pool2d = staticmethod(pooling.average_pool)
    average_pool2d_gradient = staticmethod(pooling.average_pool_gradient)
    batch_norm = staticmethod(norm.batch_norm)
    batch_norm_gradient = staticmethod(norm.batch_norm_gradient)
    scale_and_shift = staticmethod(norm.scale_and_shift)
    channel_sums = staticmethod(norm.channel_sums)
    relu = staticmethod(elementwise.relu)
    relu_gradient = staticmethod(elementwise.relu_gradient)
    gelu = staticmethod(elementwise.gelu)
    gelu_gradient = staticmethod(elementwise.gelu_gradient)
    add = staticmethod(elementwise.add)
    softmax_cross_entropy = staticmethod(elementwise.softmax_cross_entropy)
    clip_norm = staticmethod(elementwise.clip_norm)
    sgd_update = staticmethod(elementwise.sgd_update)
    adam_update = staticmethod(elementwise.adam_update)
    lerp_ = staticmethod(elementwise.lerp_)

    def __init__(self, device: int = 0) -> None:
        self.name = "cupy" if device == 0 else f"cupy:{device}"
        self.device = device
        with self.on_device():  # without a driver, this raises
            super().__init__()
            self._probe()

    def _probe(self) -> None:
        """Run a kernel and a product: CuPy imports without a driver, and cuBLAS may load where NVRTC is missing."""
        host = np.arange(12, dtype=np.float32).reshape(3, 4)
        product = self.to_host(self.dense(self.from_host(host), self.from_host(host.T.copy()), None))
        if not np.allclose(product, host @ host.T, rtol=1e-4):
            raise RuntimeError(f"the GPU returned a wrong product: {product.tolist()}")
        if self.to_host(self.relu(self.from_host(host - 5.0))).tolist() != np.maximum(host - 5.0, 0).tolist():
            raise RuntimeError("the GPU returned wrong numbers from a kernel")

    # --- where arrays live ----------------------------------------------------------------------

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context in which this thread uses this backend's GPU."""
        return cupy.cuda.Device(self.device)

    def from_host(self, array: Any) -> Array:
        """Copy a host array to the GPU; an array that is there already is returned unchanged."""
        with self.on_device():
            return cupy.asarray(array)

    def to_host(self, array: Array) -> "np.ndarray[Any, Any]":
        """Copy an array of the GPU to the host, waiting for it."""
        with self.on_device():
            return cupy.asnumpy(array)

    def upload(self, *data: Any, step: int = 0) -> list[Array | StreamedDataset]:
        """Copy data sets to the GPU as long as a network fits as well; return streams of the others."""
        with self.on_device():
            remaining, uploaded = streaming.room_for_data(step), list[Array | StreamedDataset]()
            for one in data:
                size = 0 if isinstance(one, cupy.ndarray) else one.nbytes
                fits = size <= max(remaining, 0)
                remaining -= size if fits else 0
                uploaded.append(cupy.asarray(one) if fits else streaming.PinnedStream(one))
            return uploaded

    def synchronize(self) -> None:
        """Wait until the GPU has finished all work."""
        with self.on_device():
            cupy.cuda.get_current_stream().synchronize()

    def describe(self) -> str:
        """Return one line that names the GPU."""
        properties = cupy.cuda.runtime.getDeviceProperties(self.device)
        return f"{self.name} (CuPy {cupy.__version__} on {properties['name'].decode()})"

    def environment(self) -> dict[str, Any]:
        """Return the GPU and the version of CuPy."""
        return {"backend": self.name, "device": self.describe()}

    def memory_info(self) -> tuple[int, int] | None:
        """Return the free memory in bytes, including what CuPy caches, and the total."""
        with self.on_device():
            free, total = cupy.cuda.runtime.memGetInfo()
            return free + cupy.get_default_memory_pool().free_bytes(), total

    def release(self) -> None:
        """Free the memory that CuPy caches, for other programs."""
        with self.on_device():
            cupy.get_default_memory_pool().free_all_blocks()

    @contextmanager
    def execution_context(self, sharded: bool, allow_tf32: bool = False) -> Iterator[None]:
        """Use this GPU, and let float32 products round their factors to 10 bits if `allow_tf32`."""
        with self.on_device():
            before, self._thread.tf32 = self._thread.tf32, allow_tf32
            try:
                yield
            finally:
                self._thread.tf32 = before

    def time_call(self, label: str, call: Callable[[], T]) -> tuple[T, float]:
        """Return the result of a call and its seconds on the GPU; marks a range for NVIDIA's profilers."""
        with self.on_device():
            started, ended = cupy.cuda.Event(), cupy.cuda.Event()
            cupy.cuda.nvtx.RangePush(label)
            started.record()
            try:
                result = call()
            finally:
                cupy.cuda.nvtx.RangePop()
            ended.record()
            ended.synchronize()
            return result, cupy.cuda.get_elapsed_time(started, ended) / 1e3

    # --- a step captured once and replayed ------------------------------------------------------

    def tracer(self) -> graph.CapturePool:
        """Return what captures a step as a CUDA graph, in a separate memory pool."""
        with self.on_device():
            return graph.CapturePool(self._thread, self._cublas)

    # --- dense layers -----------------------------------------------------------------------------

    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """Multiply features by a matrix: x (N, D), weight (D, K), bias (K,) → (N, K)."""
        y = cupy.empty((x.shape[0], weight.shape[1]), x.dtype)
        self._multiply(x, weight.astype(x.dtype, copy=False), y)
        if bias is not None:
            add_bias(y, kernels.aligned(bias, kernels.compute_dtype(x.dtype)), relu=False)
        return y

    def dense_parameter_gradients(self, x: Array, dy: Array, bias: bool = True) -> tuple[Array, Array | None]:
        """Return dweight (D, K) and, with `bias`, dbias (K,) from x (N, D) and dy (N, K)."""
        dweight = cupy.empty((x.shape[1], dy.shape[1]), kernels.compute_dtype(x.dtype))
        self._multiply(x.T, dy.astype(x.dtype, copy=False), dweight)
        return dweight, self.channel_sums(dy) if bias else None

    def dense_input_gradient(self, dy: Array, weight: Array, x: Array) -> Array:
        """Return dx (N, D) from dy (N, K) and weight (D, K)."""
        dx = cupy.empty(x.shape, x.dtype)
        self._multiply(dy.astype(x.dtype, copy=False), weight.astype(x.dtype, copy=False).T, dx)
        return dx

    # --- pooling --------------------------------------------------------------------------------

    def max_pool2d(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Any]:
        """Return the maximum of each window of x (N, H, W, C), y (N, OH, OW, C), and the switches."""
        if window.area > pooling.MAX_WINDOW_AREA:
            return super().max_pool2d(x, window, relu)
        return pooling.max_pool(x, window, relu)

    def max_pool2d_gradient(self, dy: Array, switches: Any, image_size: tuple[int, int], window: Window) -> Array:
        """Return dx (N, H, W, C): dy (N, OH, OW, C) at the maxima."""
        if window.area > pooling.MAX_WINDOW_AREA:
            return super().max_pool2d_gradient(dy, switches, image_size, window)
        return pooling.max_pool_gradient(dy, switches, image_size, window)

    # --- special functions, softmax -------------------------------------------------------------

    def erf(self, x: Array) -> Array:
        """Return the error function of every element, in the dtype of `x`."""
        from cupyx.scipy.special import erf

        return erf(x)

    def softmax(self, logits: Array) -> Array:
        """Return probabilities (N, K) from logits (N, K)."""
        return elementwise.softmax(logits) if logits.ndim == 2 else super().softmax(logits)

    # --- batches and random numbers -------------------------------------------------------------

    def load_batch(self, x: Array, indices: Any, dtype: Any, transform: ImageTransform | None = None) -> Array:
        """Return samples of a data set x (P, …), as floats, by indices (N,) or a slice; uint8 becomes 0 … 1."""
        if isinstance(indices, slice) and transform is not None:
            indices = cupy.arange(len(x))[indices]
        if x.dtype == np.uint8 and not isinstance(indices, slice):
            return elementwise.gather_bytes(x, indices, dtype, transform)
        return super().load_batch(x, indices, dtype, transform)

    def random_bits(self, key: int, counter: int, count: int, start: int = 0) -> Array:
        """Return random words start … start + count − 1, uint32 (count,), of a stream (key, counter), 64 bits each."""
        now = self._thread.replays
        replays, stride = (None, 0) if now is None else now.for_stream(key)
        return elementwise.random_bits(key, counter, count, start, replays, stride)
