"""Layers that only change the shape."""

import math
from typing import Any

from gpucnn.backends import Array
from gpucnn.layers.base import Backward, Layer, Shape


class Flatten(Layer):
    """Lay each sample's elements in a row, channels fastest.

    Shapes
        x  (N, H, W, C), or any (N, …)
        y  (N, H·W·C)
    """

    per_sample = True

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Return the product of all sides."""
        return (math.prod(input_shape),)

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Reshape there and back."""
        return x.reshape(len(x), -1), lambda dy: dy.reshape(x.shape)
