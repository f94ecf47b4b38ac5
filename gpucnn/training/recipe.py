"""`Recipe`: how a named network is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpucnn.callbacks import Callback
from gpucnn.data.augment import Augmentation
from gpucnn.data.batches import check_batch_size, check_epochs


@dataclass(frozen=True)
class Recipe:
    """What `fit` uses for a named network where it is not told otherwise.

    Attributes
        data        the data set's name
        epochs      how often it is visited
        batch_size  samples per step
        augment     how its images are changed
        callbacks   creates the callbacks of a training run, new ones for each run
        prepare     is called with the model and the training images before the model's first epoch

    Example
        >>> recipe = networks.lenet().recipe
        >>> recipe.epochs, recipe.batch_size
        (3, 128)
    """

    data: str
    epochs: float
    batch_size: int
    augment: tuple[Augmentation, ...] = ()
    callbacks: Callable[[], Sequence[Callback]] = tuple
    prepare: Callable[[Any, Any], None] | None = None

    def config(self) -> dict[str, Any]:
        """Return as plain data what a file can hold of a recipe: all but its functions."""
        augment = [augmentation.config() for augmentation in self.augment]
        return {"data": self.data, "epochs": self.epochs, "batch_size": self.batch_size, "augment": augment}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Recipe":
        """Return the recipe that `config` described; raises ConfigurationError where a number is not valid."""
        return cls(
            str(config.get("data")),
            check_epochs(config.get("epochs", 1)),
            check_batch_size(config.get("batch_size", 128)),
            tuple(Augmentation.from_config(augmentation) for augmentation in config.get("augment", [])),
        )
