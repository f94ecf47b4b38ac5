"""How weights begin: host arrays in float64, drawn from the model's seed and cast to its dtype afterwards."""

import math
from typing import Any

import numpy as np

from gpucnn.config import Configurable
from gpucnn.errors import ConfigurationError


class Initializer(Configurable, family="initializer"):
    """Makes the first values of a weight.

    `fan_in` and `fan_out` are the numbers of inputs that feed one output, and of outputs that one input feeds.
    """

    def __call__(
        self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator
    ) -> "np.ndarray[Any, Any]":
        """Return float64 values of `shape`."""
        raise NotImplementedError


class _Scaled(Initializer):
    """Zero mean and a variance of gain / fan, normal or uniform."""

    gain = 1.0
    uniform = False

    def fan(self, fan_in: int, fan_out: int) -> float:
        """Return the fan that divides the variance."""
        return fan_in

    def __call__(
        self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator
    ) -> "np.ndarray[Any, Any]":
        deviation = math.sqrt(self.gain / self.fan(fan_in, fan_out))
        if self.uniform:
            limit = math.sqrt(3.0) * deviation  # a uniform draw in ±a has a variance of a²/3
            return rng.uniform(-limit, limit, shape)
        return rng.normal(0.0, deviation, shape)


class HeNormal(_Scaled):
    """Variance 2 / fan_in, normal: keeps the scale of activations through ReLU.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers" (2015).
    """

    gain = 2.0


class HeUniform(HeNormal):
    """Variance 2 / fan_in, uniform (He et al., 2015)."""

    uniform = True


class LecunNormal(_Scaled):
    """Variance 1 / fan_in, normal. Source: LeCun, Bottou, Orr, Müller, "Efficient backprop" (1998)."""


class LecunUniform(LecunNormal):
    """Variance 1 / fan_in, uniform (LeCun et al., 1998)."""

    uniform = True


class FanInUniform(LecunUniform):
    """Uniform in ±1/√fan_in, a variance of 1 / (3·fan_in): how PyTorch begins its layers."""

    gain = 1.0 / 3.0


class GlorotNormal(_Scaled):
    """Variance 2 / (fan_in + fan_out), normal.

    Source: Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010).
    """

    def fan(self, fan_in: int, fan_out: int) -> float:
        """Return the mean of both fans."""
        return (fan_in + fan_out) / 2


class GlorotUniform(GlorotNormal):
    """Variance 2 / (fan_in + fan_out), uniform (Glorot & Bengio, 2010)."""

    uniform = True


class Uniform(Initializer):
    """Uniform in [low, high)."""

    def __init__(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigurationError(f"Uniform({low}, {high}): expected two finite numbers, low < high")
        self.low, self.high = low, high

    def __call__(
        self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator
    ) -> "np.ndarray[Any, Any]":
        """Draw from the interval."""
        return rng.uniform(self.low, self.high, shape)


class Dirac(Initializer):
    """Filters that pass the channels on as they are: filter i of the first C is 1 at its centre in channel i, else 0.

    With `padding="same"`, stride 1 and no dilation a convolution's first C outputs are its input then, so a deep
    network begins as a shallow one. Of several groups each begins so.

    Arguments
        rest  what makes the filters beyond these: an initializer or its name

    Raises
        ConfigurationError  a weight that is not a convolution's

    Source: Zagoruyko, Komodakis, "DiracNets: training very deep neural networks without skip-connections" (2017).
    """

    def __init__(self, rest: str | Initializer = "he_normal") -> None:
        Initializer.get(rest)
        self.rest = rest

    def __call__(
        self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator
    ) -> "np.ndarray[Any, Any]":
        """Draw all filters (KH, KW, C/groups, F), and put identities in place of the first of each group."""
        if len(shape) != 4:
            raise ConfigurationError(
                f"{self!r} makes the weight of a convolution (KH, KW, C, F), not one of shape {shape}; choose another "
                'initializer here, such as "he_normal"'
            )
        KH, KW, C, F = shape
        weight = Initializer.get(self.rest)(shape, fan_in, fan_out, rng)
        a_group = fan_out // (KH * KW)  # filters
        for first in range(0, F, a_group):
            same = np.arange(min(C, a_group))
            weight[..., first + same] = 0.0
            weight[(KH - 1) // 2, (KW - 1) // 2, same, first + same] = 1.0  # "same" pads an odd pixel at the end
        return weight


class Zeros(Initializer):
    """All zero."""

    def __call__(
        self, shape: tuple[int, ...], fan_in: int, fan_out: int, rng: np.random.Generator
    ) -> "np.ndarray[Any, Any]":
        """Return zeros."""
        return zeros(shape)


def zeros(shape: tuple[int, ...]) -> "np.ndarray[Any, Any]":
    """Return float64 zeros of `shape`: the start of a bias or a running mean."""
    return np.zeros(shape)


def ones(shape: tuple[int, ...]) -> "np.ndarray[Any, Any]":
    """Return float64 ones of `shape`: the start of a scale or a running variance."""
    return np.ones(shape)
