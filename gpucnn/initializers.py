"""How weights begin: host arrays in float64, drawn from the model's seed and cast to its dtype afterwards."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np

from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.errors import ConfigurationError

Shape = tuple[int, ...]
Values = np.ndarray[Any, Any]

_remaining: ContextVar[list[int] | None] = ContextVar("elements that may still be created", default=None)


@contextmanager
def element_budget(count: int) -> Iterator[None]:
    """Let at most `count` elements be created in the block.

    A file may describe a network that is larger than the weights it holds; without the limit, one edited number could
    ask for more memory than there is.
    """
    token = _remaining.set([count, count])
    try:
        yield
    finally:
        _remaining.reset(token)


def _charge(shape: Shape) -> None:
    """Count an array that is to be created.

    Raises:
        ConfigurationError: it exceeds the `element_budget`.
    """
    remaining = _remaining.get()
    if remaining is not None:
        remaining[0] -= math.prod(shape)
        if remaining[0] < 0:
            raise ConfigurationError(
                f"an array of shape {shape} is asked for, and with it more than the {remaining[1]:,} elements there "
                "are; was the description edited?"
            )


class Initializer(Configurable, family="initializer"):
    """Makes the first values of a weight.

    `fan_in` is the number of inputs that feed one output. `fan_out` counts the outputs that one input feeds, for a
    convolution KH·KW·F however many groups it has, as Keras and PyTorch count them.

    Example
        >>> class Ones(initializers.Initializer):
        ...     def create(self, shape, fan_in, fan_out, rng):
        ...         return np.ones(shape, np.float32)
        >>> Model([layers.Dense(2, weight_initializer=Ones())], (3,)).predict(np.ones((1, 3), np.float32))
        array([[3., 3.]], dtype=float32)
    """

    def create(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator, groups: int = 1) -> Values:
        """Return float64 values of `shape` within the element budget; the last axis is cut into `groups`."""
        _charge(shape)
        return self(shape, fan_in, fan_out, rng)

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> Values:
        """Return float64 values of `shape`."""
        raise NotImplementedError


class _Scaled(Initializer):
    """Zero mean and a variance of gain / fan, normal or uniform."""

    gain = 1.0
    uniform = False

    def fan(self, fan_in: int, fan_out: int) -> float:
        """Return the fan that divides the variance."""
        return fan_in

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> Values:
        std = math.sqrt(self.gain / self.fan(fan_in, fan_out))
        if self.uniform:
            limit = math.sqrt(3.0) * std  # a uniform draw in ±a has a variance of a²/3
            return rng.uniform(-limit, limit, shape)
        return rng.normal(0.0, std, shape)


class HeNormal(_Scaled):
    """Variance 2 / fan_in, normal: keeps the scale of activations through ReLU.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers" (2015).

    Example
        >>> weight = initializers.HeNormal().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(weight.std()) * (300 / 2) ** 0.5, 1)
        1.0
    """

    gain = 2.0


class HeUniform(HeNormal):
    """Variance 2 / fan_in, uniform (He et al., 2015).

    Example
        >>> weight = initializers.HeUniform().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(abs(weight).max()) * (300 / 6) ** 0.5, 2)
        1.0
    """

    uniform = True


class LecunNormal(_Scaled):
    """Variance 1 / fan_in, normal. Source: LeCun, Bottou, Orr, Müller, "Efficient backprop" (1998).

    Example
        >>> weight = initializers.LecunNormal().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(weight.std()) * 300**0.5, 1)
        1.0
    """


class LecunUniform(LecunNormal):
    """Variance 1 / fan_in, uniform (LeCun et al., 1998).

    Example
        >>> weight = initializers.LecunUniform().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(abs(weight).max()) * (300 / 3) ** 0.5, 2)
        1.0
    """

    uniform = True


class FanInUniform(LecunUniform):
    """Uniform in ±1/√fan_in, a variance of 1 / (3·fan_in): how PyTorch begins its layers.

    Example
        >>> weight = initializers.FanInUniform().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(abs(weight).max()) * 300**0.5, 2)
        1.0
    """

    gain = 1.0 / 3.0


class GlorotNormal(_Scaled):
    """Variance 2 / (fan_in + fan_out), normal.

    Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010).

    Example
        >>> weight = initializers.GlorotNormal().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(weight.std()) * ((300 + 200) / 2) ** 0.5, 1)
        1.0
    """

    def fan(self, fan_in: int, fan_out: int) -> float:
        """Return the mean of both fans."""
        return (fan_in + fan_out) / 2


class GlorotUniform(GlorotNormal):
    """Variance 2 / (fan_in + fan_out), uniform (Glorot & Bengio, 2010).

    Example
        >>> weight = initializers.GlorotUniform().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(abs(weight).max()) * ((300 + 200) / 6) ** 0.5, 2)
        1.0
    """

    uniform = True


class Uniform(Initializer):
    """Uniform in [low, high).

    Example
        >>> weight = initializers.Uniform(-0.5, 0.5).create((300, 200), 300, 200, np.random.default_rng(0))
        >>> round(float(abs(weight).max()), 2)
        0.5
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = checks.number(low, "Uniform: low"), checks.number(high, "Uniform: high")
        if not self.low < self.high:
            raise ConfigurationError(f"Uniform({low}, {high}): expected two finite numbers, low < high")

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> Values:
        """Draw from the interval."""
        return rng.uniform(self.low, self.high, shape)


class Dirac(Initializer):
    """Filters that pass the channels on as they are: filter i of the first C is 1 at its centre in channel i, else 0.

    With `padding="same"`, stride 1 and no dilation a convolution's first C outputs are its input then, so a deep
    network begins as a shallow one. Of several groups each begins so.

    Arguments
        remaining  what draws the filters beyond these: an initializer or its name

    Raises
        ConfigurationError  a weight that is not a convolution's

    Source: Zagoruyko, Komodakis, "DiracNets: training very deep neural networks without skip-connections" (2017).

    Example
        >>> model = Model([layers.Conv2D(2, 3, padding="same", weight_initializer=initializers.Dirac())], (4, 4, 2))
        >>> x = np.random.default_rng(0).random((1, 4, 4, 2), dtype=np.float32)
        >>> np.allclose(model.predict(x), x)
        True
    """

    renamed: ClassVar = {"rest": "remaining"}

    def __init__(self, remaining: str | Initializer = "he_normal") -> None:
        Initializer.resolve(remaining)
        self.remaining = remaining

    def create(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator, groups: int = 1) -> Values:
        """Draw all filters (KH, KW, C/groups, F), and put identities in place of the first of each group."""
        _charge(shape)
        if len(shape) != 4:
            raise ConfigurationError(
                f"{self!r} makes the weight of a convolution (KH, KW, C, F), not one of shape {shape}; choose another "
                'initializer here, such as "he_normal"'
            )
        KH, KW, C, F = shape
        weight = Initializer.resolve(self.remaining)(shape, fan_in, fan_out, rng)
        for first in range(0, F, F // groups):
            same = np.arange(min(C, F // groups))
            weight[..., first + same] = 0.0
            weight[(KH - 1) // 2, (KW - 1) // 2, same, first + same] = 1.0  # "same" pads an odd pixel at the end
        return weight

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> Values:
        """Return the filters of a convolution of one group."""
        return self.create(shape, fan_in, fan_out, rng)


class Zeros(Initializer):
    """All zero.

    Example
        >>> weight = initializers.Zeros().create((300, 200), 300, 200, np.random.default_rng(0))
        >>> float(abs(weight).max())
        0.0
    """

    def __call__(self, shape: Shape, fan_in: int, fan_out: int, rng: np.random.Generator) -> Values:
        """Return zeros."""
        return np.zeros(shape)


def zeros(shape: Shape) -> Values:
    """Return float64 zeros of `shape`: the start of a bias or a running mean.

    Example:
        >>> initializers.zeros((2,))
        array([0., 0.])
    """
    _charge(shape)
    return np.zeros(shape)


def ones(shape: Shape) -> Values:
    """Return float64 ones of `shape`: the start of a scale or a running variance.

    Example:
        >>> initializers.ones((2,))
        array([1., 1.])
    """
    _charge(shape)
    return np.ones(shape)
