"""The fully connected layer."""

from typing import Any

from gpucnn import initializers
from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.errors import ShapeError
from gpucnn.initializers import Initializer
from gpucnn.layers.base import Backward, Layer, Parameter, Shape
from gpucnn.layers.parameter import needed


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

    Example
        >>> model = Model([layers.Dense(3)], input_shape=(4,))
        >>> {path: parameter.shape for path, parameter in model.parameters().items()}
        {'dense.weight': (4, 3), 'dense.bias': (3,)}
    """

    supports_skip_dx = True
    batch_independent = capturable = shapes_verified = True

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
        Initializer.resolve(weight_initializer)
        self.weight_initializer = weight_initializer

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Draw the weight (D, K)."""
        if len(input_shape) != 1:
            raise ShapeError(
                f"{self.display_name}: expected features (D,), got inputs of shape {input_shape}; put Flatten() or "
                "GlobalAveragePool2D() before it"
            )
        D, K = input_shape[0], self.units
        self.weight = Parameter(Initializer.resolve(self.weight_initializer).create((D, K), D, K, rng))
        self.bias = Parameter(initializers.zeros((K,))) if self.use_bias else None
        return (K,)

    def forward(self, x: Array, *, train: bool, need_dx: bool = True) -> tuple[Array, Backward]:
        """Return y = x·W + b and the backward function: dW = xᵀ·dy, db = Σ dy, dx = dy·Wᵀ."""
        backend, weight, bias = self.backend, self.weight, self.bias
        y = backend.dense(x, weight.value, bias and bias.value)

        def backward(dy: Array) -> Array:
            dx, dweight, dbias = backend.dense_backward(x, dy, weight.value, needed(need_dx, weight, bias))
            weight.add_grad(dweight)
            if bias:
                bias.add_grad(dbias)
            return dx

        return y, backward

    def flops(self) -> int:
        """Two for each weight."""
        return 2 * self.weight.size
