"""Pooling: one number for each window."""

from typing import Any

from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.errors import ShapeError
from gpucnn.layers.base import Backward, Layer, Shape
from gpucnn.layers.geometry import Padding, checked_padding, make_window, require_image


class _Pool2D(Layer):
    """What both poolings share: the window and its fit to the image."""

    def __init__(
        self,
        pool_size: int | tuple[int, int] = 2,
        strides: int | tuple[int, int] | None = None,
        padding: Padding = "valid",
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.pool_size = checks.integer_or_pair(pool_size, f"{self.display_name}: pool_size")
        self.strides = None if strides is None else checks.integer_or_pair(strides, f"{self.display_name}: strides")
        self.padding = checked_padding(padding, f"{self.display_name}: padding")

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Fit the window to (H, W, C)."""
        H, W, C = require_image(input_shape, self.display_name)
        size = checks.pair(self.pool_size)
        strides = size if self.strides is None else checks.pair(self.strides)
        self.window = make_window(self.display_name, (H, W), size, strides, self.padding)
        if any(max(sides) >= side for sides, side in zip(self.window.padding, size, strict=True)):
            raise ShapeError(
                f"{self.display_name}: padding {self.padding!r} is not smaller than the {size[0]}x{size[1]} window, so "
                "some windows would hold padding only; use less padding"
            )
        return (*self.window.output_size((H, W)), C)


class MaxPool2D(_Pool2D):
    """Keep the largest element of each window.

    Shapes
        x  (N, H, W, C)
        y  (N, OH, OW, C)

    Arguments
        pool_size  KH and KW, or one number for both
        strides    SH and SW, or one number for both; None for the pool size
        padding    as for `Conv2D`; a padded element never wins

    Raises
        ShapeError  the window does not fit the image, or padding is as large as the window

    Example
        >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
        >>> Model([layers.MaxPool2D(2)], (4, 4, 1)).predict(x)[0, ..., 0]
        array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """

    supports_fused_relu = True
    batch_independent = capturable = shapes_verified = True

    def forward(self, x: Array, *, train: bool, fused_relu: bool = False) -> tuple[Array, Backward]:
        """Return y and the backward function, which sends dy to the winners alone."""
        backend, window, image_size = self.backend, self.window, x.shape[1:3]
        y, switches = backend.max_pool2d(x, window, fused_relu)
        return y, lambda dy: backend.max_pool2d_gradient(dy, switches, image_size, window)


class AveragePool2D(_Pool2D):
    """Average each window over its elements inside the image; padding is not counted.

    Shapes
        x  (N, H, W, C)
        y  (N, OH, OW, C)

    Arguments
        pool_size  KH and KW, or one number for both
        strides    SH and SW, or one number for both; None for the pool size
        padding    as for `Conv2D`

    Raises
        ShapeError  the window does not fit the image, or padding is as large as the window

    Example
        >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
        >>> Model([layers.AveragePool2D(2)], (4, 4, 1)).predict(x)[0, ..., 0]
        array([[ 2.5,  4.5],
               [10.5, 12.5]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return y and the backward function, which shares dy equally."""
        backend, window, image_size = self.backend, self.window, x.shape[1:3]
        y = backend.average_pool2d(x, window)
        return y, lambda dy: backend.average_pool2d_gradient(dy, image_size, window)


class GlobalAveragePool2D(Layer):
    """Average each channel over the whole image.

    Shapes
        x  (N, H, W, C)
        y  (N, C)

    Example
        >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
        >>> Model([layers.GlobalAveragePool2D()], (4, 4, 1)).predict(x)
        array([[7.5]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Keep the channels."""
        _, _, C = require_image(input_shape, self.display_name)
        return (C,)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return y and the backward function, which shares dy among all H·W elements."""
        _, H, W, _ = x.shape
        spread = self.backend.xp.broadcast_to
        return x.mean(axis=(1, 2)), lambda dy: spread((dy / (H * W))[:, None, None, :], x.shape)
