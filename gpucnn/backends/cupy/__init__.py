"""The GPU backend: CuPy arrays in the memory of one NVIDIA GPU, and kernels and products of our own.

Importing this module imports CuPy; nothing else in the package does.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import cupy
import numpy as np

from gpucnn.backends.base import Array, Backend, StreamedDataset
from gpucnn.backends.cupy import elementwise, graph, kernels, norm, pooling, streaming
from gpucnn.backends.cupy.convolution import Convolution, add_bias, choose_algorithm
from gpucnn.backends.cupy.cublas import Cublas
from gpucnn.backends.image_transform import ImageTransform
from gpucnn.backends.window import Window

T = TypeVar("T")


class CupyBackend(Backend):
    """CuPy on one GPU: one 2-D product a convolution, kernels for the rest, a training step as one CUDA graph.

    Raises:
        Exception: whatever CuPy raises where there is no usable GPU; `get_backend` turns it into a remedy.
    """

    xp = cupy
    supports_float16 = True
    is_host = False
    can_capture = True

    def __init__(self, device: int = 0) -> None:
        self.name = "cupy" if device == 0 else f"cupy:{device}"
        self.device = device
        self._thread = graph.ThreadState()
        with self.on_device():  # where there is no driver, this says so
            self._cublas = Cublas()
            self._convolution = Convolution(self._cublas, self._thread)
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
        """Return a context in which this thread works on this backend's GPU; after it, on the one of before."""
        return cupy.cuda.Device(self.device)

    def from_host(self, array: Any) -> Array:
        """Copy a host array to the GPU; an array that is there already is returned as it is."""
        with self.on_device():
            return cupy.asarray(array)

    def to_host(self, array: Array) -> "np.ndarray[Any, Any]":
        """Copy an array of the GPU to the host, waiting for it."""
        with self.on_device():
            return cupy.asnumpy(array)

    def upload(self, *data: Any, step: int = 0) -> list[Array | StreamedDataset]:
        """Copy data sets to the GPU that together leave room for a network there; return feeds for the others."""
        with self.on_device():
            remaining, uploaded = streaming.room_for_data(step), list[Array | StreamedDataset]()
            for one in data:
                size = 0 if isinstance(one, cupy.ndarray) else one.nbytes
                fits = size <= max(remaining, 0)
                remaining -= size if fits else 0
                uploaded.append(cupy.asarray(one) if fits else streaming.PinnedStream(one))
            return uploaded

    def synchronize(self) -> None:
        """Wait until the GPU has done all work that was started."""
        with self.on_device():
            cupy.cuda.get_current_stream().synchronize()

    def describe(self) -> str:
        """Return one line that names the GPU."""
        properties = cupy.cuda.runtime.getDeviceProperties(self.device)
        return f"{self.name} (CuPy {cupy.__version__} on {properties['name'].decode()})"

    def environment(self) -> dict[str, Any]:
        """Return which GPU and which CuPy compute."""
        return {"backend": self.name, "device": self.describe()}

    def memory_info(self) -> tuple[int, int] | None:
        """Return the bytes that are free for arrays, those that CuPy keeps for later among them, and all."""
        with self.on_device():
            free, total = cupy.cuda.runtime.memGetInfo()
            return free + cupy.get_default_memory_pool().free_bytes(), total

    def release(self) -> None:
        """Return what CuPy keeps for later to the GPU, for other programs."""
        with self.on_device():
            cupy.get_default_memory_pool().free_all_blocks()

    @contextmanager
    def execution_context(self, sharded: bool, allow_tf32: bool = False) -> Iterator[None]:
        """Work on this GPU, and let float32 products round their factors to 10 bits if `allow_tf32`."""
        with self.on_device():
            before, self._thread.tf32 = self._thread.tf32, allow_tf32
            try:
                yield
            finally:
                self._thread.tf32 = before

    def time_call(self, label: str, call: Callable[[], T]) -> tuple[T, float]:
        """Return what a call returns and the seconds it took on the GPU; a range of its name for NVIDIA's profilers."""
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

    @contextmanager
    def capture_pool(self) -> Iterator[graph.CapturePool]:
        """Allocate from a pool of its own, which the captured step then finds filled; yield what `recording` takes."""
        with self.on_device():
            memory = graph.CapturePool()
            with memory.active(self._thread):
                yield memory

    def capture(self, pool: Any, step: Callable[[], None], increments: dict[int, int]) -> Callable[[int], None]:
        """Capture what `step` does as a CUDA graph; return a function that launches it."""
        with self.on_device():
            return graph.CapturedGraph(step, pool, graph.ReplayCounter(increments), self._thread, self._cublas.handle)

    # --- convolution and products ---------------------------------------------------------------

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1, relu: bool = False
    ) -> Array:
        """Convolve images: x (N, H, W, C), weight (KH, KW, C/groups, F), bias (F,) → (N, OH, OW, F)."""
        return self._convolution.forward(x, weight, bias, window, groups, relu)

    def conv2d_algorithm(self, window: Window, batch: int, channels: int, filters: int, groups: int, dtype: Any) -> str:
        """Return in a word how `conv2d` computes such a convolution."""
        return choose_algorithm(window, channels, groups)

    def conv2d_parameter_gradients(
        self, x: Array, dy: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Return dweight (KH, KW, C/groups, F) and, with `bias`, dbias (F,), from x (N, H, W, C) and dy."""
        dweight = self._convolution.weight_gradient(x, dy, window, groups)
        return dweight, self.channel_sums(dy) if bias else None

    def conv2d_input_gradient(
        self, dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int = 1
    ) -> Array:
        """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F)."""
        return self._convolution.input_gradient(dy, weight, image_size, window, groups)

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

    def _multiply(self, a: Array, b: Array, out: Array) -> None:
        self._cublas.multiply(a, b, out, tf32=self._thread.tf32)

    # --- pooling --------------------------------------------------------------------------------

    def max_pool2d(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Any]:
        """Take the largest element of each window: (N, H, W, C) → y (N, OH, OW, C), and the winners' numbers."""
        if window.area > pooling.MAX_WINDOW_AREA:
            return super().max_pool2d(x, window, relu)
        return pooling.max_pool(x, window, relu)

    def max_pool2d_gradient(self, dy: Array, switches: Any, image_size: tuple[int, int], window: Window) -> Array:
        """Send dy (N, OH, OW, C) back to the elements that won: dx (N, H, W, C)."""
        if window.area > pooling.MAX_WINDOW_AREA:
            return super().max_pool2d_gradient(dy, switches, image_size, window)
        return pooling.max_pool_gradient(dy, switches, image_size, window)

    def average_pool2d(self, x: Array, window: Window) -> Array:
        """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
        return pooling.average_pool(x, window)

    def average_pool2d_gradient(self, dy: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Share dy (N, OH, OW, C) among the elements of each window: dx (N, H, W, C)."""
        return pooling.average_pool_gradient(dy, image_size, window)

    # --- channel by channel ---------------------------------------------------------------------

    def batch_norm(
        self, x: Array, scale: Array, shift: Array, epsilon: float, relu: bool = False
    ) -> tuple[Array, Array, Array, Any]:
        """Normalise each channel of x (…, C) over the batch, then scale and shift; with `relu`, cut off below 0."""
        return norm.batch_norm(x, scale, shift, epsilon, relu)

    def batch_norm_gradient(
        self, dy: Array, saved: Any, variance: Array, scale: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """Return dx (…, C), dscale (C,) and dshift (C,) of `batch_norm`."""
        return norm.batch_norm_gradient(dy, saved, variance, scale, epsilon)

    def scale_and_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        """Return scale·x + shift of x (…, C) with numbers for each channel (C,), cut off below 0 with `relu`."""
        return norm.scale_and_shift(x, scale, shift, relu)

    def channel_sums(self, x: Array) -> Array:
        """Return the sum of each channel of x (…, C), (C,); in float32 for float16."""
        return norm.channel_sums(x)

    # --- elementwise, softmax, updates ----------------------------------------------------------

    def erf(self, x: Array) -> Array:
        """Return the error function of every element, in the dtype of `x`."""
        from cupyx.scipy.special import erf

        return erf(x)

    def relu(self, x: Array) -> Array:
        """Return max(x, 0)."""
        return elementwise.unary("relu", x)

    def relu_gradient(self, dy: Array, y: Array) -> Array:
        """Return dy where y, the output of `relu`, is positive, else 0."""
        return elementwise.binary("relu_gradient", dy, y)

    def gelu(self, x: Array) -> tuple[Array, Any]:
        """Return x·Φ(x), Φ the normal distribution, and x."""
        return elementwise.unary("gelu", x), x

    def gelu_gradient(self, dy: Array, saved: Any) -> Array:
        """Return dy·(Φ(x) + x·φ(x)), φ the normal density."""
        return elementwise.binary("gelu_gradient", dy, saved)

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        """Return a + b of one shape, and what is negative set to 0 with `relu`."""
        return elementwise.binary("add", a, b, np.int32(relu))

    def softmax(self, logits: Array) -> Array:
        """Return probabilities (N, K) from logits (N, K)."""
        return elementwise.softmax(logits) if logits.ndim == 2 else super().softmax(logits)

    def softmax_cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """Return the mean cross-entropy of softmax(logits) with targets, both (N, K), and dlogits (N, K)."""
        return elementwise.softmax_cross_entropy(logits, targets)

    def clip_norm(self, gradients: Array, limit: float) -> None:
        """Scale gradients whose Euclidean norm is above the limit down to it."""
        elementwise.clip_norm(gradients, limit)

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
        """Step down the gradient: velocity ← momentum·velocity + gradient; values ← values − rate·velocity."""
        elementwise.sgd_update(values, gradients, velocity, learning_rate, momentum, nesterov, weight_decay)

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
        """Step by the running mean of the gradient over the root of its running square, both unbiased."""
        elementwise.adam_update(
            values, gradients, mean, square, step, learning_rate, beta1, beta2, epsilon, weight_decay, decoupled
        )

    def lerp_(self, target: Array, source: Array, weight: float) -> None:
        """Move `target` (P,) towards `source` (P,), in place, by a share of the way."""
        elementwise.lerp_(target, source, weight)

    # --- batches and random numbers -------------------------------------------------------------

    def load_batch(self, x: Array, indices: Any, dtype: Any, transform: ImageTransform | None = None) -> Array:
        """Return samples of a data set x (P, …), picked by number (N,) or slice, as floats; bytes become 0 … 1."""
        if isinstance(indices, slice) and transform is not None:
            indices = cupy.arange(len(x))[indices]
        if x.dtype == np.uint8 and not isinstance(indices, slice):
            return elementwise.gather_bytes(x, indices, dtype, transform)
        return super().load_batch(x, indices, dtype, transform)

    def random_bits(self, key: int, counter: int, count: int, start: int = 0) -> Array:
        """Return the words start … start + count − 1, uint32 (count,), of the stream (key, counter), 64 bits each."""
        now = self._thread.replays
        replays, stride = (None, 0) if now is None else now.for_stream(key)
        return elementwise.random_bits(key, counter, count, start, replays, stride)
