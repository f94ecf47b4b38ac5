"""Layers made of layers: one after another, and side by side."""

from collections.abc import Iterator
from typing import Any

from gpucnn.backends import Array
from gpucnn.config import snake_case
from gpucnn.errors import ConfigurationError, ShapeError
from gpucnn.layers.base import Backward, Layer, Shape


class Sequential(Layer):
    """Pass x through layers in order, and dy back through them in reverse.

    Layers without a name are named after their class, and numbered where there are several: `conv2d`, `conv2d_1`.

    Raises
        ConfigurationError  something that is no layer, or two layers of one name
    """

    can_skip_input_gradient = True

    def __init__(self, layers: list[Layer] | tuple[Layer, ...], *, name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(layers, list | tuple):
            raise ConfigurationError(f"{self.label}: expected a list of layers, not {type(layers).__name__}")
        self.layers = list(layers)
        for place, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                hint = "; write it with brackets to make one" if isinstance(layer, type) else ""
                raise ConfigurationError(f"{self.label}: item {place} is {layer!r}, which is no layer{hint}")
        self._name_layers()

    def _name_layers(self) -> None:
        unique = {id(layer): layer for layer in self.layers}.values()
        taken: set[str] = set()
        for layer in unique:
            if layer.name in taken:
                raise ConfigurationError(f"{self.label}: two layers are named {layer.name!r}; names must differ")
            if layer.name:
                taken.add(layer.name)
        for layer in unique:
            if layer.name is None:
                word = snake_case(type(layer).__name__)
                number = 0
                while (name := f"{word}_{number}" if number else word) in taken:
                    number += 1
                taken.add(name)
                layer.take_place_name(name)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Build the layers one after another, each for the shape that the one before it returns."""
        shape = input_shape
        for layer in self.layers:
            shape = layer.build_once(shape, rng)
        self._trained = [bool(layer.parameters()) for layer in self.layers]
        return shape

    def forward(self, x: Array, *, train: bool, input_gradient: bool = True) -> tuple[Array, Backward]:
        """Return y and the way back, which returns None for dx without `input_gradient`."""
        ways_back: list[Backward] = []
        for layer, options, goes_back in self.steps(input_gradient):
            x, way_back = layer.forward(x, train=train, **options)
            if goes_back:
                ways_back.append(way_back)

        def backward(dy: Array) -> Array:
            for way_back in reversed(ways_back):
                dy = way_back(dy)
            return dy if input_gradient else None

        return x, backward

    def steps(self, input_gradient: bool) -> Iterator[tuple[Layer, dict[str, Any], bool]]:
        """Yield each layer, the options of its forward pass, and whether the way back passes through it.

        Where nobody wants dx, the way back ends at the first layer that has parameters, and that layer leaves its own
        dx out if it can.
        """
        wanted = input_gradient
        for layer, trained in zip(self.layers, self._trained, strict=True):
            options = {} if wanted or not layer.can_skip_input_gradient else {"input_gradient": False}
            wanted = wanted or trained
            yield layer, options, wanted

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)


class Residual(Layer):
    """Add what a branch computes to what it was given: y = main(x) + shortcut(x).

    Shapes
        x  (N, …)
        y  as both branches return it

    Arguments
        main      a layer, or a list of layers in order
        shortcut  likewise; None passes x on as it is

    Raises
        ShapeError  the branches return different shapes

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016).
    """

    def __init__(
        self, main: Layer | list[Layer], shortcut: Layer | list[Layer] | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.main = main if isinstance(main, Layer) else Sequential(main)
        self.shortcut = shortcut if shortcut is None or isinstance(shortcut, Layer) else Sequential(shortcut)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Build both branches and see that their outputs can be added."""
        main_shape = self.main.build_once(input_shape, rng)
        shortcut_shape = self.shortcut.build_once(input_shape, rng) if self.shortcut else input_shape
        if main_shape != shortcut_shape:
            raise ShapeError(
                f"{self.label}: main returns {main_shape} but the shortcut {shortcut_shape}, which cannot be added; "
                "pass a shortcut that changes the shape alike, such as Conv2D(filters, 1, strides=…)"
            )
        return main_shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return the sum of both branches and the way back, which is the sum of both ways back."""
        main, main_backward = self.main.forward(x, train=train)
        if self.shortcut is None:
            return main + x, lambda dy: main_backward(dy) + dy
        shortcut, shortcut_backward = self.shortcut.forward(x, train=train)
        return main + shortcut, lambda dy: main_backward(dy) + shortcut_backward(dy)
