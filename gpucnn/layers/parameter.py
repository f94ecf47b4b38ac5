"""What a layer holds: `Parameter`, an array that is trained, and `Buffer`, one that is only stored."""

from collections.abc import Callable
from typing import Any, ClassVar

from gpucnn.backends import Array
from gpucnn.core.checks import shown
from gpucnn.core.config import Closed
from gpucnn.errors import DTypeError, ShapeError

Shape = tuple[int, ...]


class Variable(Closed):
    """An array that a layer holds: what parameters and buffers have in common."""

    on_host = False  # whether it stays in the host's memory whatever the backend

    def __init__(self, value: Array) -> None:
        self._value = value

    @property
    def value(self) -> Array:
        """The array itself; what is assigned is copied into it."""
        return self._value

    @value.setter
    def value(self, array: Array) -> None:
        if array is self._value:
            return
        what = f"a {type(self).__name__.lower()} of shape {tuple(self._value.shape)}"
        if not hasattr(array, "shape") or not holds_numbers(array):
            raise DTypeError(f"{what} cannot take {shown(array)}; assign an array of real numbers of that shape")
        if tuple(array.shape) != tuple(self._value.shape):
            raise ShapeError(f"{what} cannot take values of shape {tuple(array.shape)}")
        self._value[...] = array

    def convert(self, function: Callable[[Array], Array]) -> None:
        """Replace each array by what a function returns for it, such as a copy on another backend."""
        if not self.on_host:
            self._value = function(self._value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the value as a host array: what NumPy's functions see."""
        host = self._value.get() if hasattr(self._value, "get") else self._value.__array__()
        host = host if dtype is None else host.astype(dtype, copy=False)
        return host.copy() if copy and host is self._value else host

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self._value.shape)}, dtype={self._value.dtype})"


class Parameter(Variable):
    """An array that is trained, and the gradient that backward passes add up.

    Both are born on the host in float64; `Layer.to` moves them. `value` can be assigned: the numbers are copied into
    the array that is there, which may be a part of a larger buffer. A `frozen` one takes no gradient, in all models
    that share it; `Model.freeze` makes it so.

    Example
        >>> weight = layers.Parameter(np.zeros((2, 3), np.float32))
        >>> weight.add_grad(np.ones((2, 3), np.float32))
        >>> weight.shape, float(weight.grad.sum())
        ((2, 3), 6.0)
    """

    changed_by: ClassVar[dict[str, str]] = {
        "trainable": "call model.freeze(…) or model.unfreeze(…)",
        "on_host": "only a Buffer(…, on_host=True) stays on the host",
    }
    grad: Array | None = None
    frozen = False
    of_a_model = False  # whether it lies in the flat arrays of a model, in the dtype of its weights

    @property
    def shape(self) -> Shape:
        """The shape of the value."""
        return tuple(self._value.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(self._value.size)

    @property
    def trainable(self) -> bool:
        """Whether it takes a gradient."""
        return not self.frozen

    def add_grad(self, gradient: Array | None) -> None:
        """Add to the gradient, if it is trainable; a layer that is used twice in one pass adds twice.

        None, for a gradient that was not needed, adds nothing.
        """
        if gradient is None:
            return
        if tuple(gradient.shape) != self.shape:
            raise ShapeError(
                f"a parameter of shape {self.shape} got a gradient of shape {tuple(gradient.shape)}; "
                "the backward pass of its layer is wrong"
            )
        if not self.trainable:
            return
        if self.grad is None:
            self.grad = gradient.copy()
        else:
            self.grad += gradient

    def zero_grad(self) -> None:
        """Set the gradient to 0."""
        if self.grad is not None:
            self.grad[...] = 0

    def rebind(self, value: Array, grad: Array | None) -> None:
        """Put other arrays in place of value and gradient, on another backend or inside a larger buffer."""
        self._value, self.grad = value, grad

    def convert(self, function: Callable[[Array], Array]) -> None:
        """Replace value and gradient by what a function returns for them."""
        super().convert(function)
        self.grad = None if self.grad is None else function(self.grad)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model to the original: a copy is of none."""
        return {name: value for name, value in vars(self).items() if name != "of_a_model"}


def needed(need_dx: bool, *parameters: Parameter | None) -> tuple[bool, ...]:
    """Return which gradients a backward pass computes: dx, and those of trainable parameters."""
    return need_dx, *(parameter is not None and parameter.trainable for parameter in parameters)


class Buffer(Variable):
    """An array that is stored and saved but not trained, such as running statistics.

    One with `on_host=True` stays in the host's memory whatever the backend, such as the state of a random stream.
    `value` can be assigned as that of a `Parameter`.

    Example
        >>> running_mean = layers.Buffer(np.zeros(3, np.float32))
        >>> running_mean.value
        array([0., 0., 0.], dtype=float32)
    """

    def __init__(self, value: Array, *, on_host: bool = False) -> None:
        super().__init__(value)
        self.on_host = on_host

    def rebind(self, value: Array) -> None:
        """Put another array in place, on another backend or inside a larger one."""
        self._value = value


def holds_numbers(array: Any) -> bool:
    """Return whether an array of any library holds real numbers, which no cast loses."""
    return getattr(getattr(array, "dtype", None), "kind", "f") in "biuf"
