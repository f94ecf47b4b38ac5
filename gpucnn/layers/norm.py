"""Normalisation: by the statistics of the batch, or by given numbers."""

import math
from typing import Any

from gpucnn import initializers
from gpucnn.backends import Array
from gpucnn.core import checks
from gpucnn.data.arrays import channel_statistics
from gpucnn.errors import ConfigurationError, DataError, ShapeError
from gpucnn.layers.base import Backward, Buffer, Layer, Parameter, Shape


class BatchNorm(Layer):
    """Give each channel zero mean and unit variance over the batch, then a learned scale and shift.

    Shapes
        x, y                      (N, H, W, C) or (N, C)
        scale, shift              (C,)
        running_mean, running_var (C,)

    Arguments
        momentum  running ← momentum·running + (1 − momentum)·batch; inference uses the running statistics
        epsilon   added to the variance before its root is taken

    The running variance is the unbiased one, as in the paper; the batch is divided by its biased one.

    Raises
        ShapeError  training on a batch with one value a channel, whose variance is 0

    Source: Ioffe, Szegedy, "Batch normalization" (2015).
    """

    can_apply_relu = True
    per_sample = capturable = True
    adjustable = "momentum", "epsilon"

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.momentum = checks.number(momentum, f"{self.label}: momentum", minimum=0, below=1)
        self.epsilon = checks.number(epsilon, f"{self.label}: epsilon", above=0)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Start with scale 1, shift 0 and the statistics of a standard distribution."""
        C = input_shape[-1]
        self.scale = Parameter(initializers.ones((C,)))
        self.shift = Parameter(initializers.zeros((C,)))
        self.running_mean = Buffer(initializers.zeros((C,)))
        self.running_var = Buffer(initializers.ones((C,)))
        return input_shape

    def least_batch(self) -> int:
        """Return 2 for features, of which one sample has no variance; an image has one of its own."""
        return 2 if math.prod((self.input_shape or (1,))[:-1]) < 2 else 1

    def forward(self, x: Array, *, train: bool, relu: bool = False) -> tuple[Array, Backward]:
        """Return y and the way back, by the batch's statistics in training and by the running ones otherwise."""
        return self._by_batch(x, relu) if train else self._by_running_statistics(x, relu)

    def _by_batch(self, x: Array, relu: bool) -> tuple[Array, Backward]:
        backend, scale, shift = self.backend, self.scale, self.shift
        count = backend.global_batch_size(len(x)) * math.prod(x.shape[1:-1])
        if count < 2:
            raise ShapeError(
                f"{self.label}: a batch of shape {tuple(x.shape)} has one value a channel, so its variance is 0; "
                "choose a batch size that leaves no batch of one, not even the last of an epoch"
            )
        y, mean, variance, kept = backend.batch_norm(x, scale.value, shift.value, self.epsilon, relu)
        for running, batch in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            backend.lerp_(running.value, batch, 1.0 - self.momentum)

        def backward(dy: Array) -> Array:
            dx, dscale, dshift = backend.batch_norm_gradient(dy, kept, variance, scale.value, self.epsilon)
            scale.add_grad(dscale)
            shift.add_grad(dshift)
            return dx

        return y, backward

    def factor_and_level(self) -> tuple[Array, Array]:
        """Return what inference multiplies each channel by, and then adds to it: both (C,)."""
        factor = self.scale.value / self._running_deviation()
        return factor, self.shift.value - self.running_mean.value * factor

    def _running_deviation(self) -> Array:
        return self.backend.xp.sqrt(self.running_var.value + self.epsilon)

    def _by_running_statistics(self, x: Array, relu: bool) -> tuple[Array, Backward]:
        backend, deviation, (factor, level) = self.backend, self._running_deviation(), self.factor_and_level()
        y = backend.scale_and_shift(x, factor, level, relu)

        def backward(dy: Array) -> Array:
            if relu:
                dy = backend.relu_gradient(dy, y)
            normalized = (x - self.running_mean.value) / deviation
            self.scale.add_grad(backend.channel_sums(dy * normalized))
            self.shift.add_grad(backend.channel_sums(dy))
            return (dy * factor).astype(dy.dtype, copy=False)

        return y, backward


class Normalization(Layer):
    """Subtract a mean and divide by a standard deviation that are given, or taken once from data by `adapt`.

    Shapes
        x, y             (N, …, C)
        mean, deviation  a number, or one for each channel (C,)

    uint8 images count as 0 … 1 everywhere in gpucnn, so their mean and deviation are those of pixel / 255.

    Raises
        ConfigurationError  a deviation that is not positive, or only one of the two numbers
        ShapeError          not one number, nor one for each channel
    """

    per_sample = capturable = True

    def __init__(self, mean: Any = None, deviation: Any = None, *, name: str | None = None) -> None:
        super().__init__(name=name)
        if (mean is None) != (deviation is None):
            raise ConfigurationError(
                f"{self.label}: got mean={mean!r} and deviation={deviation!r}; pass both, or neither and adapt(data)"
            )
        self.mean = _numbers(mean, f"{self.label}: mean")
        self.deviation = _numbers(deviation, f"{self.label}: deviation")
        if self.deviation is not None and not min(_as_list(self.deviation)) > 0:
            raise ConfigurationError(f"{self.label}: deviation must be positive, not {deviation!r}")

    def adapt(self, data: Any) -> "Normalization":
        """Take mean and deviation of each channel from host data (N, …, C), which count as in `fit`; returns the layer.

        The data are read once, a part after another, so that any array will do, also one that is mapped from a file.

        Raises:
            ShapeError, DTypeError, DataError: data that `fit` refuses, or a constant channel, which cannot be scaled.
        """
        mean, deviation = channel_statistics(data, "data")
        if not deviation.min() > 0:
            raise DataError(
                f"{self.label}: channel {int(deviation.argmin())} of the data is constant, so it has no deviation to "
                "divide by; leave it out, or pass mean and deviation yourself"
            )
        vars(self).update(mean=mean.tolist(), deviation=deviation.tolist())
        if self.output_shape is not None:
            self._fill()
        return self

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Hold mean and deviation as buffers, so that they are moved, cast and saved with the rest."""
        C = input_shape[-1]
        for what, numbers in (("mean", self.mean), ("deviation", self.deviation)):
            if isinstance(numbers, list) and len(numbers) not in (1, C):
                raise ShapeError(
                    f"{self.label}: {what} has {len(numbers)} numbers for {C} channels; pass one number or {C}"
                )
        self.subtract = Buffer(initializers.zeros((C,)))
        self.divide = Buffer(initializers.ones((C,)))
        self._channels = C
        self._fill()
        return input_shape

    def _fill(self) -> None:
        if self.mean is not None:
            for buffer, numbers in ((self.subtract, self.mean), (self.divide, self.deviation)):
                listed = _as_list(numbers)
                if len(listed) == 1:
                    listed = listed * self._channels
                for channel, number in enumerate(listed):
                    buffer.value[channel] = number

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return (x − mean) / deviation and the way back."""
        if self.mean is None:
            raise ConfigurationError(
                f"{self.label}: has neither mean nor deviation; pass both to Normalization(…), or call adapt(data)"
            )
        divide = self.divide.value
        y = (x - self.subtract.value) / divide
        return y.astype(x.dtype, copy=False), lambda dy: (dy / divide).astype(dy.dtype, copy=False)


def _numbers(value: Any, what: str) -> Any:
    """Return None, a float, or a list of floats; anything else raises ConfigurationError."""
    if value is None:
        return None
    plain = value.tolist() if hasattr(value, "tolist") else value
    listed = plain if isinstance(plain, list | tuple) else [plain]
    if not listed or not all(checks.is_number(n) and math.isfinite(n) for n in listed):
        raise ConfigurationError(f"{what} must be a finite number or a list of them, not {value!r}")
    return [float(n) for n in listed] if isinstance(plain, list | tuple) else float(plain)


def _as_list(numbers: Any) -> list[float]:
    return numbers if isinstance(numbers, list) else [numbers]
