"""Layers that only change the shape."""

import math
from typing import Any

from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.layers.base import Backward, Layer, Shape


class Flatten(Layer):
    """Lay each sample's elements in a row, channels fastest.

    Shapes
        x  (N, H, W, C), or any (N, …)
        y  (N, H·W·C)

    Example
        >>> Model([layers.Flatten()], input_shape=(4, 4, 2)).output_shape
        (32,)
    """

    batch_independent = capturable = shapes_verified = True

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Return the product of all sides."""
        return (math.prod(input_shape),)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Reshape there and back."""
        return x.reshape(len(x), -1), lambda dy: dy.reshape(x.shape)


class PadChannels(Layer):
    """Add channels of zeros before and after those of x.

    Shapes
        x  (N, …, C)
        y  (N, …, before + C + after)

    Raises
        ConfigurationError  a number that is not an integer of at least 0

    Example
        >>> Model([layers.PadChannels(2, 3)], input_shape=(4, 4, 3)).output_shape
        (4, 4, 8)
    """

    batch_independent = capturable = shapes_verified = True

    def __init__(self, before: int, after: int, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.before = checks.integer(before, f"{self.display_name}: before", minimum=0)
        self.after = checks.integer(after, f"{self.display_name}: after", minimum=0)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Return the shape with more channels."""
        return (*input_shape[:-1], self.before + input_shape[-1] + self.after)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Put x between zeros; the backward pass picks its channels out again."""
        y = self.backend.xp.zeros_like(x, shape=(*x.shape[:-1], self.before + x.shape[-1] + self.after))
        inside = slice(self.before, self.before + x.shape[-1])
        y[..., inside] = x
        return y, lambda dy: dy[..., inside]
