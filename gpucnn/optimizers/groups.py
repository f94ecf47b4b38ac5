"""`Group`: parameters that are trained with another learning rate or weight decay."""

from collections.abc import Sequence
from typing import Any, ClassVar

from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.errors import ConfigurationError
from gpucnn.optimizers.patterns import check_patterns, is_matched, matched
from gpucnn.schedules import Schedule, as_rate, rate_of


class Group(Configurable, family="group"):
    """Parameters by path, and how they are trained.

    Arguments
        match          a pattern such as "*.bias" or "conv2d_1.weight", the name of a layer for all that it holds, or a
                       list of them
        lr_multiplier  multiplies the optimizer's learning rate; a number, or a schedule
        weight_decay   takes the place of the optimizer's; None keeps that
        train_epochs   how many epochs of a training run they are trained for; after these they are frozen until it
                       ends: their gradients are not computed any more, nor what only these need. None for all

    Raises
        ConfigurationError  an argument is not valid

    Example
        >>> biases = optimizers.Group("*.bias", lr_multiplier=2.0, weight_decay=0.0)
        >>> optimizers.SGD(0.1, groups=[biases]).learning_rates_at()
        [0.1, 0.2]
    """

    renamed: ClassVar[dict[str, str]] = {"rate": "lr_multiplier", "epochs": "train_epochs"}

    def __init__(
        self,
        match: str | Sequence[str],
        lr_multiplier: Schedule | float = 1.0,
        weight_decay: float | None = None,
        train_epochs: int | None = None,
    ) -> None:
        check_patterns(match, "a group's match")
        self.match = match
        self.lr_multiplier = as_rate(lr_multiplier)
        self.weight_decay = checks.optional(checks.number, weight_decay, "weight_decay", 0)
        self.train_epochs = checks.optional(checks.integer, train_epochs, "a group's train_epochs", 1)

    def _admitted(self, name: str, value: Any) -> Any:
        """Return what an attribute is set to; which parameters it is for is settled when a model is compiled."""
        if name == "match":
            raise ConfigurationError(
                "which parameters a group is for cannot be changed; compile the model with a new Group and optimizer"
            )
        return super()._admitted(name, value)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The pattern or patterns, as a tuple."""
        return check_patterns(self.match, "a group's match")

    def is_finished(self, epoch: float | None) -> bool:
        """Return whether its epochs are over at a point of a training run; outside of any they are not."""
        return self.train_epochs is not None and epoch is not None and epoch >= self.train_epochs

    def multiplier_at(self, epoch: float | None, epochs: float) -> float:
        """Return what the learning rate is multiplied by at a point of a training run, or at most outside of any."""
        return 0.0 if self.is_finished(epoch) else rate_of(self.lr_multiplier, epoch, epochs)


Group.registry[Group.__name__] = Group  # the only one of its family


def check_groups(groups: Any) -> tuple[Group, ...]:
    """Return groups as a tuple, or raise ConfigurationError where they are none."""
    if not isinstance(groups, list | tuple) or not all(isinstance(group, Group) for group in groups):
        raise ConfigurationError(f'groups must be a list of Group objects such as [Group("*.bias")], not {groups!r}')
    return tuple(groups)


def partition(paths: Sequence[str], groups: Sequence[Group]) -> list[list[str]]:
    """Return the paths that no group matches, and then those of each group; the first that matches counts.

    Raises:
        ConfigurationError: a pattern matches no path; lists the paths there are.
    """
    for group in groups:
        matched(paths, group.patterns)
    parts: list[list[str]] = [[] for _ in range(len(groups) + 1)]
    for path in paths:
        fitting = (number for number, group in enumerate(groups, start=1) if is_matched(path, group.patterns))
        parts[next(fitting, 0)].append(path)
    return parts
