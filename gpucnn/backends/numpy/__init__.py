"""The CPU backend: NumPy arrays in the host's memory, and the engine that computes faster than the portable text."""

from contextlib import AbstractContextManager
from typing import Any

from gpucnn.backends.base import Array, Backend
from gpucnn.backends.numpy import chunks, norm, pooling, rows, threads
from gpucnn.backends.numpy.order import preferred
from gpucnn.backends.window import Window


class NumpyBackend(Backend):
    """NumPy on the CPU.

    Arrays with few channels lie with the batch innermost (see `order.py`), and their convolutions take the path of
    `rows.py`; all others take that of `chunks.py`.
    """

    name = "numpy"

    def working(self) -> AbstractContextManager[None]:
        """Hold BLAS to one thread while the engine's own threads share the work."""
        return threads.one_blas_thread()

    def conv2d(self, x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1) -> Array:
        """Convolve images: x (N, H, W, C), weight (KH, KW, C/groups, F), bias (F,) → (N, OH, OW, F)."""
        if rows.serves(window, len(x), x.shape[-1], weight.shape[-1], groups):
            return rows.convolve(x, weight, bias, window)
        return chunks.convolve(x, weight, bias, window, groups)

    def conv2d_weight_gradient(self, x: Array, dy: Array, window: Window, groups: int = 1) -> Array:
        """Return dweight (KH, KW, C/groups, F) from x (N, H, W, C) and dy (N, OH, OW, F)."""
        if rows.serves(window, len(x), x.shape[-1], dy.shape[-1], groups):
            return rows.weight_gradient(x, dy, window)
        return chunks.weight_gradient(x, dy, window, groups)

    def conv2d_input_gradient(
        self, dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int = 1
    ) -> Array:
        """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F)."""
        turned = window.turned()
        if window.strides != (1, 1) or groups > 1 or min(map(min, turned.padding)) < 0:
            return chunks.input_gradient(dy, weight, image_size, window, groups)
        # for stride 1 dx is dy convolved with the weight turned by half a turn, channels and filters exchanged
        return self.conv2d(dy, weight[::-1, ::-1].transpose(0, 1, 3, 2), None, turned)

    def max_pool2d(self, x: Array, window: Window) -> tuple[Array, Any]:
        """Take the largest element of each window: (N, H, W, C) → y (N, OH, OW, C), and what the gradient needs."""
        padded = self.pad(preferred(x), window, fill=-float("inf"))
        y = pooling.largest(padded, window, window.output_size(x.shape[1:3]))
        return y, (padded, y)

    def max_pool2d_gradient(self, dy: Array, switches: Any, image_size: tuple[int, int], window: Window) -> Array:
        """Send dy (N, OH, OW, C) back to the elements that won: dx (N, H, W, C)."""
        return pooling.largest_gradient(preferred(dy), switches, window)[window.interior(image_size)]

    def average_pool2d(self, x: Array, window: Window) -> Array:
        """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
        y = pooling.total(self.pad(preferred(x), window), window, window.output_size(x.shape[1:3]))
        y *= self._shares(x.shape[1:3], window, x.dtype)
        return y

    def average_pool2d_gradient(self, dy: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Share dy (N, OH, OW, C) among the elements of each window: dx (N, H, W, C)."""
        share = preferred(dy) * self._shares(image_size, window, dy.dtype)
        padded_shape = (len(dy), *window.padded_size(image_size), dy.shape[-1])
        return pooling.total_gradient(share, padded_shape, window)[window.interior(image_size)]

    def _shares(self, image_size: tuple[int, int], window: Window, dtype: Any) -> Any:
        """Return what each element of a window counts for in its average: a number, or (OH, OW, 1) with padding."""
        if window.padding == ((0, 0), (0, 0)):
            return 1.0 / window.area
        return (1.0 / window.real_counts(self.xp, image_size)).astype(dtype)

    def batch_norm(
        self, x: Array, scale: Array, shift: Array, epsilon: float
    ) -> tuple[Array, Array, Array, tuple[Array, Array]]:
        """Normalise each channel of x (…, C) over the batch, then scale and shift; keeps x and its mean."""
        y, mean, variance = norm.forward(x, scale, shift, epsilon)
        return y, mean, variance, (x, mean)

    def batch_norm_gradient(
        self, dy: Array, kept: tuple[Array, Array], variance: Array, scale: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """Return dx (…, C), dscale (C,) and dshift (C,) of `batch_norm`."""
        return norm.gradient(dy, *kept, variance, scale, epsilon)
