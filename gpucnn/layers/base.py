"""`Layer`, the base of all layers; what it holds is in `parameter.py`.

A layer's `forward` returns its output and the backward function: from dy to dx that adds the parameters' gradients.
What the backward pass needs is in its scope, so a layer keeps nothing between calls, and one used twice is right.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.core.checks import shown
from gpucnn.core.config import Configurable, is_ours, snake_case
from gpucnn.errors import CheckpointError, ConfigurationError, ShapeError
from gpucnn.layers.parameter import Buffer as Buffer
from gpucnn.layers.parameter import Parameter as Parameter
from gpucnn.layers.parameter import Variable, holds_numbers

DECLARATIONS = ("supports_skip_dx", "supports_fused_relu", "batch_independent", "capturable")  # of `forward`
MAX_ELEMENTS = 1 << 40  # of one sample: more than any machine's memory

Shape = tuple[int, ...]
Backward = Callable[[Array], Array]


class Layer(Configurable, family="layer"):
    """Base of every layer: `build` makes the parameters, `forward` computes and returns the backward pass.

    A custom layer needs `forward`, and `build` if it has parameters or changes the shape; every constructor
    argument must become an attribute of the same name, and `name` goes to `super().__init__(name=name)`.

    Example
        >>> class Halve(layers.Layer):
        ...     def forward(self, x, *, train):
        ...         return x * 0.5, lambda dy: dy * 0.5
        >>> check_layer(Halve(), input_shape=(6,)).failures
        []
    """

    #: whether `forward` takes `need_dx=False`, with which its backward function leaves dx out and returns None
    supports_skip_dx = False

    #: whether `forward` takes `fused_relu=True`, with which it applies the `ReLU` that follows while its output is in
    #: the cache; its backward function then begins with that of the ReLU
    supports_fused_relu = False

    #: whether each sample's output depends on that sample alone, so that `forward` may be given shards of the batch, on
    #: several threads at a time. True also where a kernel joins the shards; only parameters and buffers are written to.
    #: None, where a class says nothing: the batch is not split, and `summary` and a warning say so
    batch_independent: ClassVar[bool | None] = None

    #: whether a pass may be captured and replayed: true where `forward` and its backward function do the same with
    #: arrays of one shape each time, decide nothing by their numbers, and draw random ones by `gpucnn.rng` alone. On
    #: the CPU what is not known to be captured rightly falls back to eager passes, and the first replay is compared
    #: with one; undetected is Python that decides rarely, by a module's variables or memory that it reads past NumPy.
    #: None, where a class says nothing: nothing is captured, and `summary` and a warning say so
    capturable: ClassVar[bool | None] = None

    #: whether `forward` and its backward function are known to return shapes as `build` declares them; those of other
    #: layers are checked in each eager pass
    shapes_verified = False

    #: settings that `forward` reads in each pass, so that they may be changed once the layer is built
    adjustable: ClassVar[tuple[str, ...]] = ()

    foreign = "trainable", "requires_grad"

    def __init_subclass__(cls, **options: Any) -> None:
        """Apply what a class declares to its own `forward` only: a class that overrides it must declare it again."""
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            for flag in DECLARATIONS:
                if flag not in vars(cls):
                    setattr(cls, flag, getattr(Layer, flag))
        if {"forward", "build"} & vars(cls).keys() and "shapes_verified" not in vars(cls):
            cls.shapes_verified = False

    def __init__(self, *, name: str | None = None) -> None:
        if name is not None and (not isinstance(name, str) or not name.isidentifier()):
            raise ConfigurationError(f"a layer's name must be a word of letters, digits and _, not {name!r}")
        self.name = name
        self._default_name = ""  # what a container calls it if the user gave no name
        self.backend: Backend = get_backend("numpy")  # born on the host; `to` moves it
        self.input_shape: Shape | None = None
        self.output_shape: Shape | None = None

    # --- what a custom layer defines ----------------------------------------------------------

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Make the parameters on the host for inputs of (N, *input_shape); return the output's shape without N."""
        return input_shape

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return the output for x (N, …) and the backward function: from dy (as y) to dx (as x)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def flops(self) -> int:
        """Return the floating-point operations of the products in one sample's forward pass (a product-sum is 2)."""
        return 0

    def min_batch_size(self) -> int:
        """Return the smallest batch that the layer can be trained on."""
        return 1

    def algorithm(self, batch_size: int) -> str:
        """Return how the backend computes this layer, or those inside it, for this batch size; "" without a choice."""
        names = [name for _, child in self.children() for name in child.algorithm(batch_size).split(", ")]
        return ", ".join(name for name in dict.fromkeys(names) if name)

    def total_flops(self) -> int:
        """Return `flops` with those of the layers inside."""
        return self.flops() + sum(child.total_flops() for _, child in self.children())

    # --- what every layer can do --------------------------------------------------------------

    @property
    def display_name(self) -> str:
        """The layer's name, or the word for its class: what messages call it."""
        return self.name or self._default_name or snake_case(type(self).__name__)

    def check_begun(self) -> None:
        """Refuse a layer whose class has an `__init__` that leaves out that of `Layer`."""
        if "output_shape" not in vars(self):
            raise ConfigurationError(
                f"{type(self).__name__}: its __init__ does not call super().__init__(name=name), which makes it a "
                "layer; call it first (in the __post_init__ of a dataclass)"
            )

    def ensure_built(self, input_shape: Shape, rng: Any) -> Shape:
        """Build the layer where it stands first, and check that it fits where it stands again."""
        self.check_begun()
        if self.output_shape is None:
            vars(self)["_settled"] = False  # what build makes need not be there before
            self.output_shape = self.build(input_shape, rng)
            if max(math.prod(input_shape), math.prod(self.output_shape)) > MAX_ELEMENTS:
                raise ShapeError(
                    f"{self.display_name}: makes {self.output_shape} of {input_shape}, and no array holds more than "
                    f"{MAX_ELEMENTS:,} numbers per sample; choose smaller ones"
                )
            self.input_shape = input_shape
            vars(self)["_settled"] = True
            self._refuse_hidden_state()
        elif self.input_shape != input_shape and self.has_state():
            raise ShapeError(
                f"{self.display_name}: was built for inputs of shape {self.input_shape} and cannot be used again for "
                f"{input_shape}; a shared layer needs the same input shape in each of its places"
            )
        elif self.input_shape != input_shape:
            return self.build(input_shape, rng)
        return self.output_shape

    def _admitted(self, name: str, value: Any) -> Any:
        """Return what an attribute is set to; the state and the shape of a layer that is built stay what they are."""
        held: Any = vars(self).get(name)
        if isinstance(held, Variable) or isinstance(value, Variable):
            _check_replacement(f"{self.display_name}.{name}", held, value, self.output_shape is not None)
            value.convert(lambda array: self.backend.from_host(array).astype(held.value.dtype, copy=False))
        elif is_ours(self) and name in self._arguments() and name not in self.adjustable and self._is_settled(value):
            raise ConfigurationError(
                f"{self.display_name}: {name} cannot be changed any more, since the layer was made or built with it; "
                "make a new layer, and a new Model of the layers"
            )
        return super()._admitted(name, value)

    def _is_settled(self, value: Any) -> bool:
        """Return whether a setting can have this value only from the beginning."""
        return self.output_shape is not None or any(True for _ in _layers_in(value))

    def _refuse_hidden_state(self) -> None:
        """Reject parameters and layers that would not be found: in a list of lists, or not as attributes."""
        found = {id(item) for item in vars(self).values()} | {id(child) for _, child in self.children()}
        for name, value in vars(self).items():
            for item in _items_in(value):
                if id(item) not in found:
                    raise ConfigurationError(
                        f"{self.display_name}: {name} holds a {type(item).__name__} where it would not be found to "
                        "train or save it; keep each parameter and buffer as an attribute of the layer, and layers "
                        "inside as attributes, in a list or in a dictionary"
                    )

    def children(self) -> Iterator[tuple[str, "Layer"]]:
        """Yield the layers inside this one with the names that lead to them, in order of definition."""
        taken: dict[str, Layer] = {}
        for name, value in vars(self).items():
            if not isinstance(value, (Layer, list, tuple, dict)):  # most are not, and this is asked in every step
                continue
            for word, layer in _layers_in(value, name):
                path, number = word, 0
                while taken.setdefault(path, layer) is not layer:
                    number += 1
                    path = f"{word}_{number}"
                yield path, layer

    def _named_members(self, kind: type, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
        """Yield what of `kind` this layer and its children hold, each once, by path."""
        if id(self) in seen:
            return
        seen.add(id(self))
        for name, value in vars(self).items():
            if isinstance(value, kind):
                yield path + name, value
        for name, child in self.children():
            yield from child._named_members(kind, f"{path}{name}.", seen)

    def parameters(self) -> dict[str, Parameter]:
        """Return every parameter by its path, such as `conv2d_1.weight`."""
        return dict(self._named_members(Parameter, "", set()))

    def buffers(self) -> dict[str, Buffer]:
        """Return every buffer by its path, such as `batch_norm.running_mean`."""
        return dict(self._named_members(Buffer, "", set()))

    def has_state(self) -> bool:
        """Return whether there is any parameter or buffer."""
        return bool(self.parameters() or self.buffers())

    def all_layers(self) -> Iterator["Layer"]:
        """Yield this layer and every layer inside it, each once."""
        seen: set[int] = set()
        waiting: list[Layer] = [self]
        while waiting:
            layer = waiting.pop()
            if id(layer) not in seen:
                seen.add(id(layer))
                yield layer
                waiting += [child for _, child in layer.children()][::-1]

    def leaves(self, inside: type["Layer"] | tuple[type["Layer"], ...] | None = None) -> Iterator[tuple[str, "Layer"]]:
        """Yield the layers that have none inside, in order, each with the path that leads to it.

        Arguments:
            inside: the types of layers that are taken apart; others count as one layer. None for all.
        """
        for name, child in self.children():
            if isinstance(child, Layer if inside is None else inside) and any(True for _ in child.children()):
                yield from ((f"{name}.{path}", leaf) for path, leaf in child.leaves(inside))
            else:
                yield name, child

    def to(self, backend: "Backend | str", dtype: str | None = None) -> "Layer":
        """Move every array to a backend, and floats to a dtype; returns the layer."""
        target, moved = get_backend(backend), set()
        for layer in self.all_layers():
            for held in vars(layer).values():
                if isinstance(held, Variable) and id(held) not in moved:  # two layers may hold the same
                    moved.add(id(held))
                    held.convert(partial(_move, source=layer.backend, target=target, dtype=dtype))
            layer.backend = target
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return host copies of every parameter and buffer by path; moves nothing."""
        to_host, held = self.backend.to_host, {**self.parameters(), **self.buffers()}
        return {path: (v.value if v.on_host else to_host(v.value)).copy() for path, v in held.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over host arrays by path, all or none.

        Raises:
            CheckpointError: a path is missing or unknown, a shape differs (names the path and both shapes), or what is
                there is not an array of real numbers.
        """
        if not isinstance(state, Mapping):
            raise CheckpointError(
                f"expected a dictionary of arrays by path, as state_dict returns it, not {shown(state)}"
            )
        held: dict[str, Variable] = {**self.parameters(), **self.buffers()}
        missing, unknown = sorted(held.keys() - state.keys()), sorted(state.keys() - held.keys())
        if missing or unknown:
            raise CheckpointError(
                f"the state does not fit this network: missing {', '.join(missing) or 'nothing'}; "
                f"not known here {', '.join(unknown) or 'nothing'}; was it saved from another architecture?"
            )
        for path, holder in held.items():
            if not hasattr(state[path], "shape") or not holds_numbers(state[path]):
                raise CheckpointError(
                    f"{path}: the state holds {shown(state[path])}; expected an array of real numbers"
                )
            if tuple(holder.value.shape) != tuple(state[path].shape):
                raise CheckpointError(
                    f"{path}: this network holds shape {tuple(holder.value.shape)}, the state "
                    f"{tuple(state[path].shape)}; was it saved from another architecture?"
                )
        for path, holder in held.items():
            array = state[path] if holder.on_host else self.backend.from_host(state[path])
            holder.value[...] = array.astype(holder.value.dtype)


def _layers_in(value: Any, name: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield the layers that an attribute holds, with what they are called."""
    if isinstance(value, Layer):
        yield name, value
    elif isinstance(value, list | tuple):
        yield from ((item.display_name, item) for item in value if isinstance(item, Layer))
    elif isinstance(value, dict):
        yield from ((f"{name}.{key}", item) for key, item in value.items() if isinstance(item, Layer))


def _items_in(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the layers, parameters and buffers that lists and dictionaries hold, at any depth."""
    if isinstance(value, list | tuple | dict) and depth < 8:
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, Layer | Variable):
                yield item
            yield from _items_in(item, depth + 1)


def _check_replacement(path: str, held: Any, value: Any, is_built: bool) -> None:
    """Refuse what cannot take the place of a parameter or buffer.

    Raises:
        ConfigurationError: it is of another kind, or there was none before; says how numbers are assigned.
        ShapeError: it has another shape.
    """
    if held is None or not is_built:
        raise ConfigurationError(
            f"{path}: a {type(value).__name__} cannot be set from outside before build, or in addition to what build "
            "makes; put the layer into a Model first, and assign the parameter's .value, or make it in build"
        )
    if type(value) is not type(held):
        raise ConfigurationError(
            f"{path} is a {type(held).__name__}, and {type(value).__name__} cannot take its place; assign numbers with "
            f"{path}.value = …, which are copied into it"
        )
    if tuple(value.value.shape) != tuple(held.value.shape):
        raise ShapeError(
            f"{path} has shape {tuple(held.value.shape)}: one of shape {tuple(value.value.shape)} cannot replace it"
        )


def _move(array: Array, source: Backend, target: Backend, dtype: str | None) -> Array:
    """Bring an array from one backend to another; a float array takes the dtype if one is given."""
    if source is not target:
        array = target.from_host(source.to_host(array))
    with target.on_device():
        return array.astype(dtype) if dtype is not None and array.dtype.kind == "f" else array
