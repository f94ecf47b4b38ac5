"""Optimizers: how a gradient moves the parameters, all at once over one flat buffer.

The arithmetic is a kernel of the backend; an optimizer keeps the settings and the slots (velocity, running means).
"""

from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.config import Configurable
from gpucnn.errors import ConfigurationError
from gpucnn.schedules import Schedule, as_schedule


class Optimizer(Configurable, family="optimizer"):
    """Base of every optimizer.

    `slots` are arrays as long as the flat parameter buffer, by name; `steps` counts the updates.
    """

    learning_rate: Schedule | float

    def __init__(self, learning_rate: Schedule | float) -> None:
        as_schedule(learning_rate)
        self.learning_rate = learning_rate
        self.steps = 0
        self.slots: dict[str, Array] = {}
        self._values: Array = None

    def slot_names(self) -> tuple[str, ...]:
        """Return the names of the slots that the update keeps."""
        return ()

    def reset(self, backend: Backend, values: Array) -> None:
        """Start anew for the flat parameter buffer `values` (P,): all slots 0."""
        self.steps = 0
        self.slots = {name: backend.xp.zeros_like(values) for name in self.slot_names()}
        self._values = values

    def move(self, source: Backend, target: Backend, values: Array) -> None:
        """Follow the parameters, now the flat buffer `values` (P,), to another backend."""
        self.slots = {name: target.from_host(source.to_host(slot)) for name, slot in self.slots.items()}
        self._values = values

    def rate_at(self, epoch: float | None = None, epochs: float = 1.0) -> float:
        """Return the learning rate at a point of the training, or the highest one outside of any."""
        schedule = as_schedule(self.learning_rate)
        return float(schedule.peak if epoch is None else schedule(epoch, epochs))

    def update(
        self,
        backend: Backend,
        values: Array,
        gradients: Array,
        learning_rate: float | Array,
        number: Array | None = None,
    ) -> None:
        """Move `values` (P,) in place by one step.

        A step that is to be recorded and repeated takes the learning rate and its number, from 1, as arrays () of one;
        otherwise the number is the optimizer's own count.

        Raises:
            ConfigurationError: the optimizer serves another model by now.
        """
        if values is not self._values:
            raise ConfigurationError(
                f"this {type(self).__name__} keeps its state for another model since that was compiled with it; "
                "make an optimizer of its own for each model"
            )
        self.steps += 1
        self._update(backend, values, gradients, learning_rate, self.steps if number is None else number)

    def _update(
        self, backend: Backend, values: Array, gradients: Array, learning_rate: float | Array, number: int | Array
    ) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no _update")


class SGD(Optimizer):
    """Stochastic gradient descent: velocity ← momentum·velocity + gradient; value ← value − rate·velocity.

    Arguments
        learning_rate  a number or a schedule
        momentum       at least 0, below 1
        nesterov       look ahead: the step is momentum·velocity + gradient
        weight_decay   adds weight_decay·value to the gradient

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum" (2013).
    """

    def __init__(
        self,
        learning_rate: Schedule | float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum = _share(momentum, "momentum")
        self.nesterov = nesterov
        self.weight_decay = _decay(weight_decay)
        if nesterov and not momentum:
            raise ConfigurationError("nesterov=True needs a momentum above 0, such as 0.9")

    def slot_names(self) -> tuple[str, ...]:
        """Return the velocity, which plain gradient descent does without."""
        return ("velocity",) if self.momentum else ()

    def _update(
        self, backend: Backend, values: Array, gradients: Array, learning_rate: float | Array, number: int | Array
    ) -> None:
        backend.sgd_update(
            values,
            gradients,
            self.slots.get("velocity"),
            learning_rate=learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


class Adam(Optimizer):
    """Divide the running mean of the gradient by the root of its running square.

    Arguments
        learning_rate  a number or a schedule
        beta1, beta2   how much of the running mean and square is kept a step
        epsilon        added to the root
        weight_decay   adds weight_decay·value to the gradient; `AdamW` takes it off the value instead

    Source: Kingma, Ba, "Adam: a method for stochastic optimization" (2015).
    """

    decoupled = False

    def __init__(
        self,
        learning_rate: Schedule | float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.beta1, self.beta2 = _share(beta1, "beta1"), _share(beta2, "beta2")
        if not epsilon > 0:
            raise ConfigurationError(f"epsilon must be above 0, not {epsilon!r}")
        self.epsilon = epsilon
        self.weight_decay = _decay(weight_decay)

    def slot_names(self) -> tuple[str, ...]:
        """Return both running averages."""
        return "mean", "square"

    def _update(
        self, backend: Backend, values: Array, gradients: Array, learning_rate: float | Array, number: int | Array
    ) -> None:
        backend.adam_update(
            values,
            gradients,
            self.slots["mean"],
            self.slots["square"],
            step=number,
            learning_rate=learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
            decoupled=self.decoupled,
        )


class AdamW(Adam):
    """Adam whose weight decay shrinks the values directly: value ← value·(1 − rate·weight_decay).

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization" (2019).
    """

    decoupled = True

    def __init__(
        self,
        learning_rate: Schedule | float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay)


def _share(value: Any, what: str) -> float:
    if not (isinstance(value, int | float) and 0 <= value < 1):
        raise ConfigurationError(f"{what} must be at least 0 and below 1, not {value!r}")
    return value


def _decay(value: Any) -> float:
    if not (isinstance(value, int | float) and value >= 0):
        raise ConfigurationError(f"weight_decay must be a number of at least 0, not {value!r}")
    return value
