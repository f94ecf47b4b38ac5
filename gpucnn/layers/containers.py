"""Layers made of layers: one after another, and side by side."""

from collections.abc import Iterator
from typing import Any

from gpucnn.backends import Array
from gpucnn.core.config import snake_case
from gpucnn.errors import ConfigurationError, OutOfMemoryError, ShapeError
from gpucnn.layers.base import Backward, Layer, Shape
from gpucnn.layers.fusion import FoldedConv2D, Plan, fuse

PREVIOUS_LAYER = "the layer before it"  # stands in messages of shapes that do not meet


class Layers(list[Layer]):
    """The layers of a network, in order: a list to read. Slices and sums are plain lists, for other networks.

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
        ConfigurationError  something that is not a layer, or two layers of one name

    Example
        >>> block = layers.Sequential([layers.Dense(8), layers.ReLU()])
        >>> list(Model([block, layers.Dense(2)], input_shape=(4,)).parameters())
        ['sequential.dense.weight', 'sequential.dense.bias', 'dense.weight', 'dense.bias']
    """

    supports_skip_dx = True
    batch_independent = capturable = shapes_verified = True

    def __init__(self, layers: list[Layer] | tuple[Layer, ...], *, name: str | None = None) -> None:
        super().__init__(name=name)
        if not isinstance(layers, list | tuple):
            raise ConfigurationError(f"{self.display_name}: expected a list of layers, not {type(layers).__name__}")
        self.layers = Layers(layers)
        for place, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                hint = f"; did you mean {layer.__name__}()?" if isinstance(layer, type) else ""
                raise ConfigurationError(f"{self.display_name}: item {place} is {layer!r}, which is not a layer{hint}")
            layer.check_begun()
        self._name_layers()

    def _name_layers(self) -> None:
        """Note what each layer is called here; one that stands in another network too may be called otherwise there."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        for layer in sorted(self.layers, key=lambda layer: not layer.name):  # the names that were chosen come first
            if id(layer) in names:
                continue
            name, word, number = layer.name or "", snake_case(type(layer).__name__), 0
            if name in taken:
                raise ConfigurationError(f"{self.display_name}: two layers are named {name!r}; names must differ")
            if not name:
                while (name := f"{word}_{number}" if number else word) in taken:
                    number += 1
                layer._default_name = name
            taken.add(name)
            names[id(layer)] = name
        self._names = [names[id(layer)] for layer in self.layers]

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers in order, each with its name in this network."""
        return zip(self._names, self.layers, strict=True)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Build the layers one after another, each for the shape that the one before it returns."""
        shape = input_shape
        self._declared_shapes: dict[str, set[Shape]] = {}  # by name: what layers return whose shapes are checked
        for place, layer in enumerate(self.layers):
            try:
                shape = layer.ensure_built(shape, rng)
            except ShapeError as error:
                if place == 0 or PREVIOUS_LAYER in str(error):
                    raise
                raise ShapeError(
                    f"{error}; {PREVIOUS_LAYER}, {self.layers[place - 1].display_name}, gives {shape}"
                ) from error
            if not layer.shapes_verified:
                self._declared_shapes.setdefault(self._names[place], set()).add(shape)
        self.refresh_trainable()
        self._train_plan, self._inference_plan = fuse(self.layers), fuse(self.layers, inference=True)
        return shape

    def refresh_trainable(self) -> None:
        """Find out again which layers have trainable parameters.

        The list is a new object each time, by which replicas of this layer notice that they are out of date.
        """
        self._trainable = [any(p.trainable for p in layer.parameters().values()) for layer in self.layers]

    def forward(self, x: Array, *, train: bool, need_dx: bool = True, logits: bool = False) -> tuple[Array, Backward]:
        """Return y and the backward function, which returns None for dx without `need_dx`.

        Without it the backward function is that of a training step: it may be called once, and frees what each layer
        saved as soon as it has run that layer. With `logits`, y is what the last layer, a `Softmax`, is given.
        """
        backwards: list[tuple[str, Backward]] = []
        plan = self._inference_plan if self.backend.folds_batch_norm and not train else self._train_plan
        for name, layer, options, needs_backward in self.execution_order(need_dx, plan[:-1] if logits else plan):
            given = x
            try:
                x, layer_backward = layer.forward(given, train=train, **options)
            except MemoryError as error:
                raise OutOfMemoryError.at(name, error) from error
            if name in self._declared_shapes:
                layer_backward = _check_shapes(layer, self._declared_shapes[name], given, x, layer_backward)
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
    ) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
        """Yield the name of each layer that computes, the layer, its options, and whether its backward is needed.

        Where dx is not needed, the backward pass ends at the first layer that has trainable parameters, and that layer
        leaves its own dx out if it can.
        """
        needed = need_dx
        for place, options in self._train_plan if plan is None else plan:
            layer: Any = self.layers[place]
            trainable = self._trainable[place]
            if not needed and layer.supports_skip_dx:
                options = options | {"need_dx": False}
            if "folded_norm" in options:
                norm = options["folded_norm"]
                trainable = trainable or self._trainable[norm]
                layer = FoldedConv2D(layer, self.layers[norm])  # type: ignore[arg-type]
                options = {name: value for name, value in options.items() if name != "folded_norm"}
            needed = needed or trainable
            yield self._names[place], layer, options, needed

    def unfused_plan(self) -> Plan:
        """Return the plan in which no layers are fused."""
        return [(place, {}) for place in range(len(self.layers))]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)


def already_run(label: str) -> ConfigurationError:
    """Return the error for a backward function of a training step that was called twice, or after the next forward."""
    return ConfigurationError(
        f"{label}: backward was already called for this training step, which frees what it has used, or another step "
        "has begun; call forward again, or forward with need_dx=True for a backward function that can be called often"
    )


def _run_backward(label: str, layer_backward: Backward, dy: Array) -> Array:
    """Run one layer's backward function; where memory runs out, the error gets the layer's name."""
    try:
        return layer_backward(dy)
    except MemoryError as error:
        raise OutOfMemoryError.at(label, error) from error


def _check_shapes(layer: Layer, declared: set[Shape], x: Array, y: Array, layer_backward: Backward) -> Backward:
    """Check the shape of an output against what `build` declared; return a backward function that checks that of dx.

    Raises:
        ShapeError: it is not; names the layer and both.
    """
    remedy = f"gpucnn.check_layer({type(layer).__name__}(…), {tuple(x.shape[1:])}) tries all of it"
    if tuple(y.shape[1:]) not in declared or len(y) != len(x):
        expected = " or ".join(str((len(x), *shape)) for shape in sorted(declared))
        raise ShapeError(
            f"{layer.display_name}: its forward returned shape {tuple(y.shape)} where its build declared {expected}; "
            f"{remedy}"
        )
    shape = tuple(x.shape)

    def checked(dy: Array) -> Array:
        dx = layer_backward(dy)
        if dx is not None and tuple(dx.shape) != shape:
            raise ShapeError(
                f"{layer.display_name}: its backward function returned shape {tuple(dx.shape)} for inputs of shape "
                f"{shape}; dx must have theirs; {remedy}"
            )
        return dx

    return checked


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

    Example
        >>> Model([layers.Residual([layers.ReLU()])], (3,)).predict(np.float32([[-2, 0, 1]]))  # x + relu(x)
        array([[-2.,  0.,  2.]], dtype=float32)
    """

    supports_fused_relu = True
    batch_independent = capturable = shapes_verified = True

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
