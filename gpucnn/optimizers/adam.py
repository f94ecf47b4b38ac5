"""Adam, and AdamW with decoupled weight decay."""

from collections.abc import Sequence

from gpucnn.backends import Array, Backend
from gpucnn.core import checks
from gpucnn.optimizers.base import Number, Optimizer, Slots, Step
from gpucnn.optimizers.groups import Group
from gpucnn.schedules import Schedule


class Adam(Optimizer):
    """Divide the running mean of the gradient by the root of its running square.

    Arguments
        learning_rate  a number or a schedule
        beta1, beta2   how much of the running mean and square is kept per step
        epsilon        added to the root
        weight_decay   adds weight_decay·value to the gradient; `AdamW` takes it off the value instead
        groups, clip_norm, clip_value
                       parameters with another rate, and limits of the gradients: see `Optimizer`

    Source: Kingma, Ba, "Adam: a method for stochastic optimization" (2015).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> model = networks.lenet().compile(optimizers.Adam(1e-3), "categorical_crossentropy")
        >>> history = model.fit(x, y, epochs=1, verbose=0)
    """

    decoupled = False

    def __init__(
        self,
        learning_rate: Schedule | float = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, groups, clip_norm, clip_value)
        self.beta1 = checks.number(beta1, "beta1", minimum=0, below=1)
        self.beta2 = checks.number(beta2, "beta2", minimum=0, below=1)
        self.epsilon = checks.number(epsilon, "epsilon", above=0)

    def slot_names(self) -> tuple[str, ...]:
        """Return both running averages."""
        return "mean", "square"

    def _update(
        self, backend: Backend, values: Array, gradients: Array, slots: Slots, rate: Number, decay: float, step: Step
    ) -> None:
        backend.adam_update(
            values,
            gradients,
            slots["mean"],
            slots["square"],
            step=step,
            learning_rate=rate,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            weight_decay=decay,
            decoupled=self.decoupled,
        )


class AdamW(Adam):
    """Adam whose weight decay shrinks the values directly: value ← value·(1 − rate·weight_decay).

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization" (2019).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> model = networks.lenet().compile(optimizers.AdamW(1e-3, weight_decay=0.01), "categorical_crossentropy")
        >>> history = model.fit(x, y, epochs=1, verbose=0)
    """

    decoupled = True

    def __init__(
        self,
        learning_rate: Schedule | float = 0.001,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        groups: Sequence[Group] = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(
            learning_rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            groups=groups,
            clip_norm=clip_norm,
            clip_value=clip_value,
        )
