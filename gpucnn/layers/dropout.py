"""Dropout."""

from typing import Any

from gpucnn import rng as random
from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.layers.base import Backward, Buffer, Layer, Shape


class Dropout(Layer):
    """Set a random fraction of the elements to 0 while training, and scale the rest up so that the mean stays.

    x and y have any shape (N, …). In inference y = x. The mask comes from a counter-based stream that is part of the
    layer's state, so a run is reproducible, on every backend.

    Arguments
        rate  the fraction that is dropped, 0 ≤ rate < 1

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout" (2014).

    Example
        >>> model = Model([layers.Dropout(0.5)], (1000,), seed=0)
        >>> y, backward = model.forward(np.ones((1, 1000), np.float32), train=True)
        >>> 0.4 < float((y == 0).mean()) < 0.6  # dropped; the others are doubled
        True
    """

    batch_independent = capturable = shapes_verified = True
    adjustable = ("rate",)

    def __init__(self, rate: float, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.rate = checks.number(rate, f"{self.display_name}: rate, the fraction that is dropped,", minimum=0, below=1)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Open the layer's own random stream."""
        self.stream = Buffer(random.new_stream(rng), on_host=True)
        return input_shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Multiply by 0 or by 1 / (1 − rate), there and back."""
        if not train or self.rate == 0:
            return x, lambda dy: dy
        kept = 1.0 - self.rate
        factor = random.bernoulli(self.backend, self.stream.value, x.shape, kept).astype(x.dtype) / kept
        return x * factor, lambda dy: dy * factor
