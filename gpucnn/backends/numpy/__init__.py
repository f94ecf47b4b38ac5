"""The CPU backend: NumPy arrays in the host's memory, and the engine that computes faster than the portable text."""

from gpucnn.backends.base import Array, Backend
from gpucnn.backends.numpy import chunks, rows
from gpucnn.backends.numpy.order import preferred
from gpucnn.backends.window import Window


class NumpyBackend(Backend):
    """NumPy on the CPU.

    Arrays with few channels lie with the batch innermost (see `order.py`), and their convolutions take the path of
    `rows.py`; all others take that of `chunks.py`.
    """

    name = "numpy"

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

    def max_pool2d(self, x: Array, window: Window) -> tuple[Array, Array]:
        """Take the largest element of each window: (N, H, W, C) → y and switches, both (N, OH, OW, C)."""
        return super().max_pool2d(preferred(x), window)

    def max_pool2d_gradient(self, dy: Array, switches: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Send dy (N, OH, OW, C) back to the elements that won: dx (N, H, W, C)."""
        return super().max_pool2d_gradient(preferred(dy), switches, image_size, window)

    def average_pool2d(self, x: Array, window: Window) -> Array:
        """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
        return super().average_pool2d(preferred(x), window)

    def average_pool2d_gradient(self, dy: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Share dy (N, OH, OW, C) among the elements of each window: dx (N, H, W, C)."""
        return super().average_pool2d_gradient(preferred(dy), image_size, window)
