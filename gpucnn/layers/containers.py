"""Layers made of layers: one after another, and side by side."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from gpucnn.backends import Array
from gpucnn.core.config import snake_case
from gpucnn.errors import ConfigurationError, OutOfMemory, ShapeError
from gpucnn.layers.activation import ReLU
from gpucnn.layers.base import Backward, Layer, Shape
from gpucnn.layers.conv import Conv2D
from gpucnn.layers.norm import BatchNorm
from gpucnn.layers.pool import MaxPool2D

PREVIOUS_LAYER = "the layer before it"  # stands in messages of shapes that do not meet
Plan = list[tuple[int, dict[str, Any]]]  # places of layers in the order in which they compute, and options


class Layers(list[Layer]):
    """The layers of a network, in order: a list to read. Slices and sums are plain lists, for a network of their own.

    Raises
        ConfigurationError  it is changed: what was built of the layers would not notice
    """

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ConfigurationError(
            "the layers of a network that is made cannot be changed; make a new one of them, such as "
            "gpucnn.Model([*model.layers[:-2], layers.Dense(2), layers.Softmax()], model.input_shape), which shares "
            "the weights"
        )

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> Any:
        """Be copied as a whole, not item by item."""
        return Layers, (list(self),)


class Sequential(Layer):
    """Pass x through layers in order, and dy back through them in reverse.

    Layers without a name are named after their class, and numbered where there are several: `conv2d`, `conv2d_1`.

    Raises
        ConfigurationError  something that is no layer, or two layers of one name
    """

    supports_skip_dx = True
    per_sample = capturable = True

    def __init__(self, layers: list[Layer] | tuple[Layer, ...], *, name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(layers, list | tuple):
            raise ConfigurationError(f"{self.display_name}: expected a list of layers, not {type(layers).__name__}")
        self.layers = Layers(layers)
        for place, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                hint = "; write it with brackets to make one" if isinstance(layer, type) else ""
                raise ConfigurationError(f"{self.display_name}: item {place} is {layer!r}, which is no layer{hint}")
            layer.check_begun()
        self._name_layers()

    def _name_layers(self) -> None:
        """Note what each layer is called here; one that stands in another network too may be called otherwise there."""
        unique = {id(layer): layer for layer in self.layers}
        names: dict[int, str] = {}
        taken: set[str] = set()
        for key, layer in unique.items():
            if layer.name in taken:
                raise ConfigurationError(f"{self.display_name}: two layers are named {layer.name!r}; names must differ")
            if layer.name:
                taken.add(layer.name)
                names[key] = layer.name
        numbers: dict[str, int] = {}
        for key, layer in unique.items():
            if layer.name is None:
                word = snake_case(type(layer).__name__)
                number = numbers.get(word, 0)
                while (name := f"{word}_{number}" if number else word) in taken:
                    number += 1
                numbers[word] = number
                taken.add(name)
                layer.set_default_name(name)
                names[key] = name
        self._names = [names[id(layer)] for layer in self.layers]

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers in order, each with its name in this network."""
        return zip(self._names, self.layers, strict=True)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Build the layers one after another, each for the shape that the one before it returns."""
        shape = input_shape
        self._declared_shapes: dict[int, set[Shape]] = {}  # by layers of users' own: what they may return
        for place, layer in enumerate(self.layers):
            try:
                shape = layer.ensure_built(shape, rng)
            except ShapeError as error:
                if place == 0 or PREVIOUS_LAYER in str(error):
                    raise
                raise ShapeError(
                    f"{error}; {PREVIOUS_LAYER}, {self.layers[place - 1].display_name}, gives {shape}"
                ) from error
            if not type(layer).__module__.startswith("gpucnn."):
                self._declared_shapes.setdefault(id(layer), set()).add(shape)
        self.refresh_trainable()
        self._train_plan, self._inference_plan = _fuse(self.layers), _fuse(self.layers, inference=True)
        return shape

    def refresh_trainable(self) -> None:
        """Note which layers have parameters that are trained; said again when that has changed.

        The list is a new one each time, by which replicas of this layer notice that they are out of date.
        """
        self._trainable = [any(p.trainable for p in layer.parameters().values()) for layer in self.layers]

    def forward(self, x: Array, *, train: bool, need_dx: bool = True) -> tuple[Array, Backward]:
        """Return y and the backward function, which returns None for dx without `need_dx`.

        Without it the backward function is that of a training step: it may be called once, and frees what each layer
        saved as soon as it has run that layer.
        """
        backwards: list[tuple[str, Backward]] = []
        plan = self._inference_plan if self.backend.folds_batch_norm and not train else self._train_plan
        for name, layer, options, needs_backward in self.execution_order(need_dx, plan):
            given = x
            try:
                x, layer_backward = layer.forward(given, train=train, **options)
            except MemoryError as error:
                raise OutOfMemory.at(name, error) from error
            if id(layer) in self._declared_shapes:
                layer_backward = _check_shapes(layer, self._declared_shapes[id(layer)], given, x, layer_backward)
            if needs_backward:
                backwards.append((name, layer_backward))

        def backward(dy: Array) -> Array:
            for label, layer_backward in reversed(backwards):
                dy = _run_backward(label, layer_backward, dy)
            return dy

        count = len(backwards)

        def backward_once(dy: Array) -> None:
            if len(backwards) < count:
                raise already_run(self.display_name)
            while backwards:
                dy = _run_backward(*backwards.pop(), dy)

        return x, backward if need_dx else backward_once

    def execution_order(
        self, need_dx: bool, plan: Plan | None = None
    ) -> Iterator[tuple[str, Layer, dict[str, Any], bool]]:
        """Yield the name of each layer that computes, the layer, its options, and whether the backward pass passes it.

        Where dx is not needed, the backward pass ends at the first layer that has trainable parameters, and that layer
        leaves its own dx out if it can.
        """
        wanted = need_dx
        for place, options in self._train_plan if plan is None else plan:
            layer, trained = self.layers[place], self._trainable[place]
            if "folded_norm" in options:
                trained = trained or self._trainable[options["folded_norm"]]
                options = options | {"folded_norm": self.layers[options["folded_norm"]]}
            skips = not wanted and layer.supports_skip_dx
            wanted = wanted or trained
            yield self._names[place], layer, options | {"need_dx": False} if skips else options, wanted

    def unfused_plan(self) -> Plan:
        """Return the plan in which every layer computes for itself, as a profile wants it."""
        return [(place, {}) for place in range(len(self.layers))]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)


def already_run(label: str) -> ConfigurationError:
    """Return the error of who walks the backward pass of a training step a second time, or after the next has begun."""
    return ConfigurationError(
        f"{label}: the backward pass of a training step was walked already, and lets go of what it passes, "
        "or another step was begun; call forward again, or forward with need_dx=True for a way that can be "
        "walked often"
    )


def _run_backward(label: str, layer_backward: Backward, dy: Array) -> Array:
    """Walk one layer's way back; where memory runs out, the error gets the layer's name."""
    try:
        return layer_backward(dy)
    except MemoryError as error:
        raise OutOfMemory.at(label, error) from error


def _check_shapes(layer: Layer, promised: set[Shape], x: Array, y: Array, layer_backward: Backward) -> Backward:
    """Return a way back that checks the shape of dx, once that of the output is known to be what `build` promised.

    Raises:
        ShapeError: it is not; names the layer and both.
    """
    remedy = f"gpucnn.check_layer({type(layer).__name__}(…), {tuple(x.shape[1:])}) tries all of it"
    if tuple(y.shape[1:]) not in promised or len(y) != len(x):
        expected = " or ".join(str((len(x), *shape)) for shape in sorted(promised))
        raise ShapeError(
            f"{layer.display_name}: its forward returned shape {tuple(y.shape)} where its build promised {expected}; "
            f"{remedy}"
        )
    shape = tuple(x.shape)

    def checked(dy: Array) -> Array:
        dx = layer_backward(dy)
        if dx is not None and tuple(dx.shape) != shape:
            raise ShapeError(
                f"{layer.display_name}: its way back returned shape {tuple(dx.shape)} for inputs of shape {shape}; "
                f"dx must have theirs; {remedy}"
            )
        return dx

    return checked


def _fuse(layers: list[Layer], inference: bool = False) -> Plan:
    """Return the places of the layers in the order in which they compute, with options for their forward passes.

    Two neighbours are told of each other here, and nowhere else. A ReLU before a max pooling changes places with it:
    the largest element is the same either way, so are all gradients, and fewer elements are left to cut off. A layer
    that can apply the ReLU behind it does. And for inference a convolution takes in the batch norm behind it, whose
    place is then one of its options.
    """
    order = list(range(len(layers)))
    for first, second in pairwise(range(len(layers))):
        if type(layers[first]) is ReLU and type(layers[second]) is MaxPool2D:
            order[first], order[second] = second, first
    plan: Plan = []
    for place in order:
        layer, (before, taken) = layers[place], plan[-1] if plan else (None, {})
        if (
            before is not None
            and type(layer) is ReLU
            and layers[before].supports_fused_relu
            and "fused_relu" not in taken
        ):
            plan[-1] = before, taken | {"fused_relu": True}
        elif inference and before is not None and (type(layers[before]), type(layer), taken) == (Conv2D, BatchNorm, {}):
            plan[-1] = before, {"folded_norm": place}
        else:
            plan.append((place, {}))
    return plan


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

    supports_fused_relu = True
    per_sample = capturable = True

    def __init__(
        self, main: Layer | list[Layer], shortcut: Layer | list[Layer] | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.main = main if isinstance(main, Layer) else Sequential(main)
        self.shortcut = shortcut if shortcut is None or isinstance(shortcut, Layer) else Sequential(shortcut)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Build both branches and see that their outputs can be added."""
        main_shape = self.main.ensure_built(input_shape, rng)
        shortcut_shape = self.shortcut.ensure_built(input_shape, rng) if self.shortcut else input_shape
        if main_shape != shortcut_shape:
            raise ShapeError(
                f"{self.display_name}: main returns {main_shape} but the shortcut {shortcut_shape}, which cannot be "
                "added; pass a shortcut that changes the shape alike, such as Conv2D(filters, 1, strides=…)"
            )
        return main_shape

    def forward(self, x: Array, *, train: bool, fused_relu: bool = False) -> tuple[Array, Backward]:
        """Return the sum of both branches and the backward function, which is the sum of both backward functions."""
        add = self.backend.add
        main, main_backward = self.main.forward(x, train=train)
        shortcut, shortcut_backward = self.shortcut.forward(x, train=train) if self.shortcut else (x, lambda dy: dy)
        y = add(main, shortcut, fused_relu)

        def backward(dy: Array) -> Array:
            if fused_relu:
                dy = self.backend.relu_gradient(dy, y)
            return add(main_backward(dy), shortcut_backward(dy))

        return y, backward
