"""Stochastic gradient descent."""

from collections.abc import Sequence

from gpucnn.backends import Array, Backend
from gpucnn.core import checks
from gpucnn.errors import ConfigurationError
from gpucnn.optimizers.base import Number, Optimizer, Slots, Step
from gpucnn.optimizers.groups import Group
from gpucnn.schedules import Schedule


class SGD(Optimizer):
    """Stochastic gradient descent: velocity ← momentum·velocity + gradient; value ← value − rate·velocity.

    Arguments
        learning_rate  a number or a schedule
        momentum       at least 0, below 1
        nesterov       look ahead: the step is momentum·velocity + gradient
        weight_decay   adds weight_decay·value to the gradient
        groups, clip_norm, clip_value
                       parameters with another rate, and limits of the gradients: see `Optimizer`

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum" (2013).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> sgd = optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        >>> model = networks.lenet().compile(sgd, "categorical_crossentropy")
        >>> history = model.fit(x, y, epochs=1, verbose=0)
    """

    def __init__(
        self,
        learning_rate: Schedule | float = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, groups, clip_norm, clip_value)
        self.momentum = checks.number(momentum, "momentum", minimum=0, below=1)
        self.nesterov = checks.flag(nesterov, "nesterov")
        if self.nesterov and not self.momentum:
            raise ConfigurationError("nesterov=True needs a momentum above 0, such as 0.9")

    def slot_names(self) -> tuple[str, ...]:
        """Return the velocity, which plain gradient descent does without."""
        return ("velocity",) if self.momentum else ()

    def _update(
        self, backend: Backend, values: Array, gradients: Array, slots: Slots, rate: Number, decay: float, step: Step
    ) -> None:
        backend.sgd_update(
            values,
            gradients,
            slots.get("velocity"),
            learning_rate=rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=decay,
        )
