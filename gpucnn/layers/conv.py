"""Convolution of images."""

from typing import Any

from gpucnn import initializers
from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.errors import ShapeError
from gpucnn.initializers import Initializer
from gpucnn.layers.base import Backward, Layer, Parameter, Shape
from gpucnn.layers.geometry import Padding, checked_padding, make_window, require_image
from gpucnn.layers.parameter import needed


class Conv2D(Layer):
    """Slide filters over images: each output is the product-sum of a filter with the window under it, plus a bias.

    Shapes
        x       (N, H, W, C)
        weight  (KH, KW, C/groups, F)
        bias    (F,)
        y       (N, OH, OW, F)

    Arguments
        filters             F
        kernel_size         KH and KW, or one number for both
        strides             SH and SW, or one number for both
        padding             "valid" (none), "same" (OH = ceil(H / SH); an odd pixel goes to the bottom or right),
                            a number, a pair (rows, columns), or ((top, bottom), (left, right)); filled with zeros
        dilation            the step between the elements of a filter
        groups              channels and filters are cut into this many independent groups
        weight_initializer  an `initializers` object or its name

    Raises
        ConfigurationError  an argument is not valid
        ShapeError          the input is not an image, the filter does not fit it, or groups do not divide C and F

    Example
        >>> model = Model([layers.Conv2D(16, 3, strides=2, padding="same")], input_shape=(28, 28, 1))
        >>> model.output_shape, model.parameters()["conv2d.weight"].shape
        ((14, 14, 16), (3, 3, 1, 16))
    """

    supports_skip_dx = True
    supports_fused_relu = True
    batch_independent = capturable = shapes_verified = True

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        *,
        strides: int | tuple[int, int] = 1,
        padding: Padding = "valid",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        weight_initializer: str | Initializer = "he_normal",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.filters = checks.integer(filters, f"{self.display_name}: filters", minimum=1)
        self.kernel_size = checks.integer_or_pair(kernel_size, f"{self.display_name}: kernel_size")
        self.strides = checks.integer_or_pair(strides, f"{self.display_name}: strides")
        self.padding = checked_padding(padding, f"{self.display_name}: padding")
        self.dilation = checks.integer_or_pair(dilation, f"{self.display_name}: dilation")
        self.groups = checks.integer(groups, f"{self.display_name}: groups", minimum=1)
        self.use_bias = checks.flag(use_bias, f"{self.display_name}: use_bias")
        Initializer.resolve(weight_initializer)
        self.weight_initializer = weight_initializer

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Fit the window to (H, W, C) and draw the weight."""
        H, W, C = require_image(input_shape, self.display_name)
        F, groups = self.filters, self.groups
        if C % groups or F % groups:
            raise ShapeError(
                f"{self.display_name}: groups={groups} must divide the {C} input channels and the {F} filters"
            )
        size, strides, dilation = checks.pair(self.kernel_size), checks.pair(self.strides), checks.pair(self.dilation)
        self.window = make_window(self.display_name, (H, W), size, strides, self.padding, dilation)
        fan_in, fan_out = self.window.area * C // groups, self.window.area * F
        initializer = Initializer.resolve(self.weight_initializer)
        self.weight = Parameter(initializer.create((*size, C // groups, F), fan_in, fan_out, rng, groups))
        self.bias = Parameter(initializers.zeros((F,))) if self.use_bias else None
        return (*self.window.output_size((H, W)), F)

    def forward(
        self, x: Array, *, train: bool, need_dx: bool = True, fused_relu: bool = False
    ) -> tuple[Array, Backward]:
        """Return y = x∗W + b and the backward function, for which dy is convolved with x and with the flipped W."""
        backend, weight, bias, window, groups = self.backend, self.weight, self.bias, self.window, self.groups
        y = backend.conv2d(x, weight.value, bias and bias.value, window, groups, fused_relu)

        def backward(dy: Array) -> Array:
            if fused_relu:
                dy = backend.relu_gradient(dy, y)
            need = needed(need_dx, weight, bias)
            dx, dweight, dbias = backend.conv2d_backward(x, dy, weight.value, window, groups, need)
            weight.add_grad(dweight)
            if bias:
                bias.add_grad(dbias)
            return dx

        return y, backward

    def flops(self) -> int:
        """Two for each weight that an output element meets."""
        assert self.output_shape is not None
        OH, OW, _ = self.output_shape
        return 2 * OH * OW * self.weight.size

    def algorithm(self, batch_size: int) -> str:
        """Return the path that the backend chooses for this geometry."""
        C = self.weight.shape[2] * self.groups
        return self.backend.conv2d_algorithm(
            self.window, batch_size, C, self.filters, self.groups, self.weight.value.dtype
        )
