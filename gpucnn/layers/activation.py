"""Functions of single elements, and softmax over the classes."""

import math

from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.layers.base import Backward, Layer


class ReLU(Layer):
    """Keep what is positive: y = max(x, 0); the slope at 0 is 0. x and y have any shape (N, …).

    Example
        >>> Model([layers.ReLU()], (3,)).predict(np.float32([[-2, 0, 1]]))
        array([[0., 0., 1.]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return y and the backward function, which keeps y rather than x: y is alive in the next layer anyway."""
        y = self.backend.relu(x)
        return y, lambda dy: self.backend.relu_gradient(dy, y)


class LeakyReLU(Layer):
    """Keep what is positive and shrink what is not: y = x or slope·x. x and y have any shape (N, …).

    Arguments
        slope  of the negative side, at least 0

    Source: Maas, Hannun, Ng, "Rectifier nonlinearities improve neural network acoustic models" (2013).

    Example
        >>> Model([layers.LeakyReLU(0.1)], (3,)).predict(np.float32([[-2, 0, 1]])).round(3)
        array([[-0.2,  0. ,  1. ]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True
    adjustable = ("slope",)

    def __init__(self, slope: float = 0.01, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.slope = checks.number(slope, f"{self.display_name}: slope", minimum=0)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Multiply by 1 or by the slope, there and back."""
        factor = self.backend.xp.where(x > 0, 1.0, self.slope).astype(x.dtype)
        return x * factor, lambda dy: dy * factor


class Sigmoid(Layer):
    """Squeeze into (0, 1): y = 1 / (1 + exp(−x)). x and y have any shape (N, …).

    Example
        >>> Model([layers.Sigmoid()], (3,)).predict(np.float32([[-2, 0, 1]])).round(3)
        array([[0.119, 0.5  , 0.731]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return y, whose small numbers have all their digits, and the backward function.

        Below the logarithm of the smallest normal number y stays there, so the power cannot overflow.
        """
        xp = self.backend.xp
        y = 1.0 / (1.0 + xp.exp(-xp.maximum(x, 0.99 * math.log(xp.finfo(x.dtype).tiny))))
        return y, lambda dy: dy * y * (1.0 - y)


class Tanh(Layer):
    """Squeeze into (−1, 1): y = tanh(x). x and y have any shape (N, …).

    Example
        >>> Model([layers.Tanh()], (3,)).predict(np.float32([[-2, 0, 1]])).round(3)
        array([[-0.964,  0.   ,  0.762]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return y and the backward function."""
        y = self.backend.xp.tanh(x)
        return y, lambda dy: dy * (1.0 - y * y)


class GELU(Layer):
    """Weight x by the fraction of a normal distribution below it: y = x·Φ(x), the exact form with erf.

    x and y have any shape (N, …). Source: Hendrycks, Gimpel, "Gaussian error linear units" (2016).

    Example
        >>> Model([layers.GELU()], (3,)).predict(np.float32([[-2, 0, 1]])).round(3)
        array([[-0.046,  0.   ,  0.841]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return y and the backward function: d(x·Φ(x)) = Φ(x) + x·φ(x), with φ the normal density."""
        y, saved = self.backend.gelu(x)
        return y, lambda dy: self.backend.gelu_gradient(dy, saved)


class Softmax(Layer):
    """Turn logits into probabilities that add up to 1, over the last axis.

    Shapes
        x, y  (N, K)

    A model that ends with `Softmax` and trains on cross-entropy computes both as one stable kernel.

    Example
        >>> Model([layers.Softmax()], (3,)).predict(np.float32([[-2, 0, 1]])).round(3)
        array([[0.035, 0.259, 0.705]], dtype=float32)
    """

    batch_independent = capturable = shapes_verified = True

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return y and the backward function: dx = y·(dy − Σ dy·y)."""
        y = self.backend.softmax(x)
        return y, lambda dy: y * (dy - (dy * y).sum(axis=-1, keepdims=True))
