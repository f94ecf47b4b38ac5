"""The fully connected layer."""

from typing import Any

from gpucnn import initializers
from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.errors import ShapeError
from gpucnn.initializers import Initializer
from gpucnn.layers.base import Backward, Layer, Parameter, Shape


class Dense(Layer):
    """Multiply features by a matrix and add a bias.

    Shapes
        x       (N, D)
        weight  (D, K)
        bias    (K,)
        y       (N, K)

    Arguments
        units               K
        weight_initializer  an `initializers` object or its name

    Raises
        ShapeError          the input is not (N, D)
    """

    supports_skip_dx = True
    per_sample = capturable = True

    def __init__(
        self,
        units: int,
        *,
        use_bias: bool = True,
        weight_initializer: str | Initializer = "he_normal",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.units = checks.integer(units, f"{self.display_name}: units", minimum=1)
        self.use_bias = checks.flag(use_bias, f"{self.display_name}: use_bias")
        Initializer.get(weight_initializer)
        self.weight_initializer = weight_initializer

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Draw the weight (D, K)."""
        if len(input_shape) != 1:
            raise ShapeError(
                f"{self.display_name}: expected features (D,), got inputs of shape {input_shape}; put Flatten() or "
                "GlobalAveragePool2D() before it"
            )
        D, K = input_shape[0], self.units
        self.weight = Parameter(Initializer.get(self.weight_initializer).create((D, K), D, K, rng))
        self.bias = Parameter(initializers.zeros((K,))) if self.use_bias else None
        return (K,)

    def forward(self, x: Array, *, train: bool, need_dx: bool = True) -> tuple[Array, Backward]:
        """Return y and the backward function, which returns None for dx without `need_dx`."""
        backend, weight, bias = self.backend, self.weight, self.bias
        y = backend.dense(x, weight.value, bias.value if bias else None)

        def backward(dy: Array) -> Array:
            bias_learns = bias is not None and bias.trainable
            if weight.trainable:
                dweight, dbias = backend.dense_parameter_gradients(x, dy, bias_learns)
                weight.add_grad(dweight)
            elif bias_learns:
                dbias = backend.channel_sums(dy)
            if bias and bias_learns:
                bias.add_grad(dbias)
            return backend.dense_input_gradient(dy, weight.value, x) if need_dx else None

        return y, backward

    def flops(self) -> int:
        """Two for each weight."""
        return 2 * self.weight.size
