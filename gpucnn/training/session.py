"""`Training`: what one call of `fit` is, for the loop that runs it and for what looks at it or saves it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpucnn import rng
from gpucnn.callbacks import Callback
from gpucnn.data.augment import Augmentation
from gpucnn.data.batches import batches, num_steps
from gpucnn.engine.executor import Executor
from gpucnn.engine.memory import Pair
from gpucnn.errors import NumericError
from gpucnn.training.finite_check import FiniteCheck
from gpucnn.training.history import History


@dataclass(eq=False)
class Training:
    """One training run: checked host data, how they are visited, and how far the run is.

    While it lasts, callbacks find it as `model.training`.
    """

    model: Executor
    data: Pair
    epochs: float
    batch_size: int
    validation_data: Pair | None = None
    callbacks: Sequence[Callback] = ()
    shuffle: bool = True
    augment: Sequence[Augmentation] = ()
    check_numerics: bool = True
    deterministic: bool = True
    history: History = field(default_factory=History)
    samples_per_epoch: list[int] = field(default_factory=list)  # of those that are over
    epoch: int = 0  # the current one, from 0
    step: int = 0  # how many of its steps are done
    seconds: float = 0.0  # that these took
    learning_rate: float = 0.0  # of the last step
    progress: tuple[float, float] = 0.0, 1.0  # epochs that are done, with a fraction of the current one, and all epochs
    finite_check: FiniteCheck | None = None  # looks at the gradients of each step
    fault: NumericError | None = None  # what ended the run
    averaged_by: Callback | None = None  # whose averages the model holds in place of the weights

    @property
    def has_next_step(self) -> bool:
        """Whether the next thing to happen is a step, not the end of an epoch or of the run."""
        if self.model.stop_training or self.epoch >= math.ceil(self.epochs):
            return False
        return self.step < len(self.batches_of_epoch())

    def batches_of_epoch(self) -> list[slice]:
        """Return the batches of the current epoch, as slices of its order."""
        parts = list(batches(len(self.data[0]), self.batch_size))
        return parts[: num_steps(self.epoch, self.epochs, len(parts))]

    def order(self) -> Any:
        """Return the order in which the current epoch visits its samples, by the seed; None is that of the data."""
        model = self.model
        return rng.epoch_order(model.seed, model.epochs_trained, len(self.data[0])) if self.shuffle else None

    def notify(self, event: str, *arguments: Any) -> None:
        """Call a method of every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(self.model, *arguments)

    def __reduce__(self) -> Any:
        """Leave it out of copies of the model: they are not being trained."""
        return type(None), ()
