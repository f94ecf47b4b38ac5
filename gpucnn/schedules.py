"""Schedules: the learning rate as a function of how far the training run is.

A schedule is called with the epoch as a number that grows within an epoch (1.5 is the middle of the second) and with
the number of epochs in all, before each step.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.errors import ConfigurationError

UNITS = ("epochs", "training")  # of the positions of points


class Schedule(Configurable, family="schedule"):
    """Base of every schedule.

    Example
        >>> class Linear(schedules.Schedule):
        ...     peak = 0.1
        ...     def __call__(self, epoch, epochs):
        ...         return 0.1 * (1 - epoch / epochs)
        >>> optimizers.SGD(Linear()).learning_rate_at(1, 4)
        0.075...
    """

    @property
    def peak(self) -> float:
        """The highest rate; a step outside `fit`, which has no length, uses it."""
        raise ConfigurationError(
            f"{type(self).__name__} does not say its highest rate, which a step outside fit uses; give the class "
            "a property peak that returns it"
        )

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the learning rate at `epoch`, 0 ≤ epoch < epochs."""
        raise ConfigurationError(
            f"{type(self).__name__} has no __call__(self, epoch, epochs), which returns the learning rate"
        )


class Constant(Schedule):
    """One rate throughout.

    Example
        >>> [round(schedules.Constant(0.1)(epoch, 4), 4) for epoch in range(4)]
        [0.1, 0.1, 0.1, 0.1]
    """

    def __init__(self, rate: float) -> None:
        self.rate = check_rate(rate)

    @property
    def peak(self) -> float:
        """The rate itself."""
        return self.rate

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the rate."""
        return self.rate


class StepDecay(Constant):
    """Multiply the rate by `factor` after each `every` epochs.

    Example
        >>> [round(schedules.StepDecay(0.1, every=2)(epoch, 4), 4) for epoch in range(4)]
        [0.1, 0.1, 0.01, 0.01]
    """

    def __init__(self, rate: float, every: float, factor: float = 0.1) -> None:
        super().__init__(rate)
        self.every, self.factor = checks.positive(every, "every"), checks.positive(factor, "factor")

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return rate · factor^⌊epoch / every⌋."""
        return self.rate * self.factor ** math.floor(epoch / self.every)


class ExponentialDecay(Constant):
    """Multiply the rate by `factor` per epoch, smoothly.

    Example
        >>> [round(schedules.ExponentialDecay(0.1, 0.5)(epoch, 4), 4) for epoch in range(4)]
        [0.1, 0.05, 0.025, 0.0125]
    """

    def __init__(self, rate: float, factor: float) -> None:
        super().__init__(rate)
        self.factor = checks.positive(factor, "factor")

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return rate · factor^epoch."""
        return self.rate * self.factor**epoch


class Cosine(Constant):
    """From `rate` to `final` along half a cosine over the whole training run.

    Source: Loshchilov, Hutter, "SGDR: Stochastic gradient descent with warm restarts" (2017).

    Example
        >>> [round(schedules.Cosine(0.1)(epoch, 4), 4) for epoch in range(4)]
        [0.1, 0.0854, 0.05, 0.0146]
    """

    def __init__(self, rate: float, final: float = 0.0) -> None:
        super().__init__(rate)
        self.final = check_rate(final)

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the rate at this fraction of the training run."""
        return self.final + (self.rate - self.final) * 0.5 * (1.0 + math.cos(math.pi * min(epoch / epochs, 1.0)))


class Power(Constant):
    """From 0 to `rate` at the end of the training run, as a power of the fraction that is done.

    Example
        >>> [round(schedules.Power(0.1, 2)(epoch, 4), 4) for epoch in range(4)]
        [0.0, 0.0063, 0.025, 0.0563]
    """

    def __init__(self, rate: float, power: float) -> None:
        super().__init__(rate)
        self.power = checks.positive(power, "power")

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return rate · (epoch / epochs)^power."""
        return self.rate * min(epoch / epochs, 1.0) ** self.power


class _Piecewise(Schedule):
    """Points (position, rate), with positions in epochs or as fractions of the training run."""

    _min_count = 1  # of points

    def __init__(self, points: Sequence[Sequence[float]], unit: str = "epochs") -> None:
        self.points, self.unit = _checked_points(points, self._min_count), checks.one_of(unit, "unit", UNITS)

    @property
    def peak(self) -> float:
        """The highest rate of the points."""
        return max(rate for _, rate in self.points)

    def _position(self, epoch: float, epochs: float) -> float:
        return epoch if self.unit == "epochs" else epoch / epochs


class PiecewiseLinear(_Piecewise):
    """Straight lines between points (position, rate); flat before the first and after the last.

    Arguments
        points  at least two, their positions growing
        unit    "epochs", or "training" for positions from 0 (start) to 1 (end)

    Example
        >>> schedule = schedules.PiecewiseLinear([(0, 0.0), (2, 0.1), (4, 0.0)])
        >>> [round(schedule(epoch, 4), 4) for epoch in range(4)]
        [0.0, 0.05, 0.1, 0.05]
    """

    _min_count = 2

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the rate on the line between the two points around this position."""
        at = self._position(epoch, epochs)
        if at <= self.points[0][0]:
            return self.points[0][1]
        for (start, low), (end, high) in pairwise(self.points):
            if at <= end:
                return _interpolate(at, start, low, end, high)
        return self.points[-1][1]


class PiecewiseConstant(_Piecewise):
    """One rate after another: each holds from its position on until the next.

    Arguments
        points  pairs (position, rate), the first position 0 and the others growing
        unit    "epochs", or "training" for positions from 0 (start) to 1 (end)

    Example
        >>> schedule = schedules.PiecewiseConstant([(0, 0.1), (3, 0.01)])
        >>> [round(schedule(epoch, 4), 4) for epoch in range(4)]
        [0.1, 0.1, 0.1, 0.01]
    """

    def __init__(self, points: Sequence[Sequence[float]], unit: str = "epochs") -> None:
        super().__init__(points, unit)
        if self.points[0][0] != 0:
            raise ConfigurationError(f"the first of points must stand at position 0, not at {self.points[0][0]!r}")

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the rate of the last point that is not ahead."""
        at = self._position(epoch, epochs)
        return next((rate for position, rate in reversed(self.points) if position <= at), self.points[0][1])


class OneCycle(Constant):
    """Straight up to a peak, then straight down to nearly nothing, over the whole training run.

    Arguments
        rate             the peak
        warmup_fraction  the fraction of the training run before the peak, above 0 and below 1
        start_factor     the rate at the start, relative to the peak
        end_factor       the rate at the end, relative to the peak

    Source: Smith, Topin, "Super-convergence" (2018).

    Example
        >>> [round(schedules.OneCycle(0.1, 0.5)(epoch, 4), 4) for epoch in range(4)]
        [0.004, 0.052, 0.1, 0.05]
    """

    renamed: ClassVar = {"rise": "warmup_fraction", "initial": "start_factor", "final": "end_factor"}

    def __init__(
        self, rate: float, warmup_fraction: float = 0.3, start_factor: float = 0.04, end_factor: float = 0.0
    ) -> None:
        super().__init__(rate)
        self.warmup_fraction = checks.number(warmup_fraction, "warmup_fraction", above=0, below=1)
        self.start_factor = float(checks.number(start_factor, "start_factor", minimum=0))
        self.end_factor = float(checks.number(end_factor, "end_factor", minimum=0))

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return the rate at this fraction of the training run."""
        done = min(epoch / epochs, 1.0)
        if done <= self.warmup_fraction:
            return _interpolate(done, 0.0, self.start_factor * self.rate, self.warmup_fraction, self.rate)
        return _interpolate(done, self.warmup_fraction, self.rate, 1.0, self.end_factor * self.rate)


class WarmUp(Schedule):
    """First grow from almost 0 to the rate at which another schedule begins; that one has the rest of the run.

    Arguments
        schedule  any schedule, or a constant rate; a `Cosine` reaches its rate when the warm-up is over, and falls from
                  there to the end
        epochs    the length of the warm-up

    Source: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour" (2017).

    Example
        >>> schedule = schedules.WarmUp(schedules.Constant(0.1), epochs=2)
        >>> [round(schedule(epoch, 4), 2) for epoch in range(4)]
        [0.0, 0.05, 0.1, 0.1]
    """

    def __init__(self, schedule: Schedule | float, epochs: float = 1.0) -> None:
        self.schedule = schedule if isinstance(schedule, Schedule) else Constant(schedule)
        self.epochs = checks.positive(epochs, "epochs")

    @property
    def peak(self) -> float:
        """The peak of the schedule within."""
        return self.schedule.peak

    def __call__(self, epoch: float, epochs: float) -> float:
        """Return a growing fraction of the first rate, at least 1 %; then the other schedule's rate."""
        if epoch < self.epochs:
            return self.schedule(0.0, max(epochs - self.epochs, 1.0)) * max(epoch / self.epochs, 0.01)
        return self.schedule(epoch - self.epochs, epochs - self.epochs)


def as_rate(rate: "Schedule | float") -> "Schedule | float":
    """Return a schedule as it is, and a rate as `check_rate` does."""
    return rate if isinstance(rate, Schedule) else check_rate(rate)


def rate_of(rate: "Schedule | float", epoch: float | None, epochs: float) -> float:
    """Return the rate at a point of a training run, or the highest one where `epoch` is None.

    Raises:
        ConfigurationError: the schedule returns what is not a finite number of at least 0; says what, and when.
    """
    if not isinstance(rate, Schedule):
        return check_rate(rate)
    value = rate.peak if epoch is None else rate(epoch, epochs)
    try:
        return check_rate(value)
    except ConfigurationError:
        when = "as its peak" if epoch is None else f"at epoch {epoch:.4g} of {epochs:.4g}"
        raise ConfigurationError(
            f"{checks.shown(rate)} gave {checks.shown(value)} {when}, and a learning rate must be a finite number of "
            "at least 0"
        ) from None


def check_rate(rate: Any) -> float:
    """Return a rate as a float, or raise ConfigurationError where it is not a finite number of at least 0."""
    return float(checks.number(rate, "a learning rate", minimum=0))


def _checked_points(points: Sequence[Sequence[float]], min_count: int) -> list[list[float]]:
    plain = points.tolist() if hasattr(points, "tolist") else points
    given = plain if isinstance(plain, list | tuple) else []
    pairs = [tuple(point) if isinstance(point, list | tuple) else () for point in given]
    numbers = [[checks.number(position, "a position") for position in pair[:1]] for pair in pairs]
    if len(pairs) < min_count or any(len(p) != 2 for p in pairs) or any(b <= a for a, b in pairwise(numbers)):
        count = "at least two pairs" if min_count == 2 else "pairs"
        raise ConfigurationError(f"points must be {count} (position, rate) with growing positions, not {points!r}")
    return [[float(position), check_rate(rate)] for position, rate in pairs]


def _interpolate(at: float, start: float, low: float, end: float, high: float) -> float:
    """Return the number at a place on the straight line through (start, low) and (end, high)."""
    return low + (high - low) * (at - start) / (end - start)
