"""Convolution of images."""

from typing import Any

from gpucnn import initializers
from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.errors import ShapeError
from gpucnn.initializers import Initializer
from gpucnn.layers.base import Backward, Layer, Parameter, Shape
from gpucnn.layers.geometry import Padding, checked_padding, fit_window, image_shape, int_or_pair, pair
from gpucnn.layers.norm import BatchNorm


class Conv2D(Layer):
    """Slide filters over images: each output is the product-sum of a filter with the window it sees, plus a bias.

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
        groups              channels and filters are cut into this many groups that do not see each other
        weight_initializer  an `initializers` object or its name

    Raises
        ConfigurationError  an argument makes no sense
        ShapeError          the input is no image, the filter does not fit it, or groups do not divide C and F
    """

    can_skip_input_gradient = True
    can_apply_relu = True
    per_sample = capturable = True

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
        self.filters = checks.integer(filters, f"{self.label}: filters", minimum=1)
        self.kernel_size = int_or_pair(kernel_size, f"{self.label}: kernel_size")
        self.strides = int_or_pair(strides, f"{self.label}: strides")
        self.padding = checked_padding(padding, f"{self.label}: padding")
        self.dilation = int_or_pair(dilation, f"{self.label}: dilation")
        self.groups = checks.integer(groups, f"{self.label}: groups", minimum=1)
        self.use_bias = checks.flag(use_bias, f"{self.label}: use_bias")
        Initializer.get(weight_initializer)
        self.weight_initializer = weight_initializer

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Fit the window to (H, W, C) and draw the weight."""
        H, W, C = image_shape(input_shape, self.label)
        F, groups = self.filters, self.groups
        if C % groups or F % groups:
            raise ShapeError(f"{self.label}: groups={groups} must divide the {C} input channels and the {F} filters")
        size, strides, dilation = pair(self.kernel_size), pair(self.strides), pair(self.dilation)
        self.window = fit_window(self.label, (H, W), size, strides, self.padding, dilation)
        fan_in, fan_out = self.window.area * C // groups, self.window.area * F
        initializer = Initializer.get(self.weight_initializer)
        self.weight = Parameter(initializer.make((*size, C // groups, F), fan_in, fan_out, rng, groups))
        self.bias = Parameter(initializers.zeros((F,))) if self.use_bias else None
        return (*self.window.output_size((H, W)), F)

    def forward(
        self,
        x: Array,
        *,
        train: bool,
        input_gradient: bool = True,
        relu: bool = False,
        norm: BatchNorm | None = None,
    ) -> tuple[Array, Backward]:
        """Return y and the way back, which returns None for dx without `input_gradient`.

        With `norm`, y is what inference makes of it in that layer.
        """
        if norm is not None:
            return self._forward_with(norm, x, input_gradient, relu)
        backend, weight, bias, window = self.backend, self.weight, self.bias, self.window
        y = backend.conv2d(x, weight.value, bias.value if bias else None, window, self.groups, relu)

        def backward(dy: Array) -> Array:
            if relu:
                dy = backend.relu_gradient(dy, y)
            bias_learns, dx = bias is not None and bias.learns, None
            if weight.learns:
                if input_gradient:
                    dweight, dbias, dx = backend.conv2d_gradients(x, dy, weight.value, window, self.groups, bias_learns)
                else:
                    dweight, dbias = backend.conv2d_parameter_gradients(x, dy, window, self.groups, bias_learns)
                weight.add_grad(dweight)
            else:
                dbias = backend.channel_sums(dy) if bias_learns else None
                if input_gradient:
                    dx = backend.conv2d_input_gradient(dy, weight.value, x.shape[1:3], window, self.groups)
            if bias and bias_learns:
                bias.add_grad(dbias)
            return dx

        return y, backward

    def _forward_with(self, norm: BatchNorm, x: Array, input_gradient: bool, relu: bool) -> tuple[Array, Backward]:
        """Return the norm's y and the way back through both layers.

        In inference a norm multiplies each channel by a factor and adds a level. The weight can be multiplied instead,
        which spares a pass over the images. The way back, which few want, computes both again, each for itself.
        """
        factor, level = norm.factor_and_level()
        if self.bias:
            level = level + factor * self.bias.value
        y = self.backend.conv2d(x, self.weight.value * factor, level, self.window, self.groups, relu)

        def backward(dy: Array) -> Array:
            own, own_backward = self.forward(x, train=False, input_gradient=input_gradient)
            _, norm_backward = norm.forward(own, train=False, relu=relu)
            return own_backward(norm_backward(dy))

        return y, backward

    def flops(self) -> int:
        """Two for each weight that an output element meets."""
        assert self.output_shape is not None
        OH, OW, _ = self.output_shape
        return 2 * OH * OW * self.weight.size

    def algorithm(self, batch: int) -> str:
        """Return the path that the backend chooses for this geometry."""
        C = self.weight.shape[2] * self.groups
        return self.backend.conv2d_algorithm(self.window, batch, C, self.filters, self.groups, self.weight.value.dtype)
