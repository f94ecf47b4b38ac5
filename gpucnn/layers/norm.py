"""Normalisation: by the statistics of the batch, or by given numbers."""

import math
from typing import Any, ClassVar

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

    Example
        >>> x = np.random.default_rng(0).normal(3, 2, (64, 5)).astype(np.float32)
        >>> y, backward = Model([layers.BatchNorm()], (5,)).forward(x, train=True)
        >>> float(abs(y.mean(axis=0)).max()) < 1e-5, round(float(y.std()), 3)
        (True, 1.0)
    """

    supports_fused_relu = True
    batch_independent = capturable = shapes_verified = True
    adjustable = "momentum", "epsilon"

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.momentum = checks.number(momentum, f"{self.display_name}: momentum", minimum=0, below=1)
        self.epsilon = checks.number(epsilon, f"{self.display_name}: epsilon", above=0)

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Start with scale 1, shift 0 and the statistics of a standard distribution."""
        C = input_shape[-1]
        self.scale = Parameter(initializers.ones((C,)))
        self.shift = Parameter(initializers.zeros((C,)))
        self.running_mean = Buffer(initializers.zeros((C,)))
        self.running_var = Buffer(initializers.ones((C,)))
        return input_shape

    def min_batch_size(self) -> int:
        """Return 2 for features, of which one sample has no variance; the pixels of an image have one."""
        return 2 if math.prod((self.input_shape or (1,))[:-1]) < 2 else 1

    def forward(self, x: Array, *, train: bool, fused_relu: bool = False) -> tuple[Array, Backward]:
        """Return y and the backward function, by the statistics of the batch in training, else by the running ones."""
        return self._forward_train(x, fused_relu) if train else self._forward_inference(x, fused_relu)

    def _forward_train(self, x: Array, fused_relu: bool) -> tuple[Array, Backward]:
        backend, scale, shift = self.backend, self.scale, self.shift
        count = backend.global_batch_size(len(x)) * math.prod(x.shape[1:-1])
        if count < 2:
            raise ShapeError(
                f"{self.display_name}: a batch of shape {tuple(x.shape)} has one value a channel, so its variance is "
                "0; choose a batch size that leaves no batch of one, not even the last of an epoch"
            )
        y, mean, variance, saved = backend.batch_norm(x, scale.value, shift.value, self.epsilon, fused_relu)
        for running, batch in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            backend.lerp_(running.value, batch, 1.0 - self.momentum)

        def backward(dy: Array) -> Array:
            dx, dscale, dshift = backend.batch_norm_gradient(dy, saved, variance, scale.value, self.epsilon)
            scale.add_grad(dscale)
            shift.add_grad(dshift)
            return dx

        return y, backward

    def scale_and_offset(self) -> tuple[Array, Array]:
        """Return what inference multiplies each channel by, and then adds to it: both (C,)."""
        factor = self.scale.value / self._running_std()
        return factor, self.shift.value - self.running_mean.value * factor

    def _running_std(self) -> Array:
        return self.backend.xp.sqrt(self.running_var.value + self.epsilon)

    def _forward_inference(self, x: Array, fused_relu: bool) -> tuple[Array, Backward]:
        backend, std, (factor, offset) = self.backend, self._running_std(), self.scale_and_offset()
        y = backend.scale_and_shift(x, factor, offset, fused_relu)

        def backward(dy: Array) -> Array:
            if fused_relu:
                dy = backend.relu_gradient(dy, y)
            normalized = (x - self.running_mean.value) / std
            self.scale.add_grad(backend.channel_sums(dy * normalized))
            self.shift.add_grad(backend.channel_sums(dy))
            return (dy * factor).astype(dy.dtype, copy=False)

        return y, backward


class Normalization(Layer):
    """Subtract a mean and divide by a standard deviation that are given, or taken once from data by `adapt`.

    Shapes
        x, y       (N, …, C)
        mean, std  a number, or one for each channel (C,)

    uint8 images count as 0 … 1 everywhere in gpucnn, so their mean and standard deviation are those of pixel / 255.

    Raises
        ConfigurationError  a standard deviation that is not positive, or only one of the two numbers
        ShapeError          not one number, nor one for each channel

    Example
        >>> x = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
        >>> y = Model([layers.Normalization().adapt(x)], (4, 4, 3)).predict(x)
        >>> round(float(abs(y.mean(axis=(0, 1, 2))).max()), 4), round(float(y.std()), 3)
        (0.0, 1.0)
    """

    batch_independent = capturable = shapes_verified = True

    renamed: ClassVar[dict[str, str]] = {"deviation": "std"}

    def __init__(self, mean: Any = None, std: Any = None, *, name: str | None = None) -> None:
        super().__init__(name=name)
        if (mean is None) != (std is None):
            raise ConfigurationError(
                f"{self.display_name}: got mean={mean!r} and std={std!r}; pass both, or neither and adapt(data)"
            )
        self.mean = _numbers(mean, f"{self.display_name}: mean")
        self.std = _numbers(std, f"{self.display_name}: std")
        if self.std is not None and not min(_as_list(self.std)) > 0:
            raise ConfigurationError(f"{self.display_name}: std must be positive, not {std!r}")

    def adapt(self, data: Any) -> "Normalization":
        """Take mean and standard deviation of each channel from host data (N, …, C), as `fit` takes; returns the layer.

        The data are read once, a part after another, so that any array will do, also one that is mapped from a file.

        Raises:
            ShapeError, DTypeError, DataError: data that `fit` refuses, or a constant channel, which cannot be scaled.
        """
        mean, std = channel_statistics(data, "data")
        if not std.min() > 0:
            raise DataError(
                f"{self.display_name}: channel {int(std.argmin())} of the data is constant, so it has no deviation to "
                "divide by; leave it out, or pass mean and std yourself"
            )
        vars(self).update(mean=mean.tolist(), std=std.tolist())
        if self.output_shape is not None:
            self._fill()
        return self

    def build(self, input_shape: Shape, rng: Any) -> Shape:
        """Hold both as buffers, so that they are moved, cast and saved with the rest."""
        C = input_shape[-1]
        for what, numbers in (("mean", self.mean), ("std", self.std)):
            if isinstance(numbers, list) and len(numbers) not in (1, C):
                raise ShapeError(
                    f"{self.display_name}: {what} has {len(numbers)} numbers for {C} channels; pass one number or {C}"
                )
        self.subtract = Buffer(initializers.zeros((C,)))
        self.divide = Buffer(initializers.ones((C,)))
        self._channels = C
        self._fill()
        return input_shape

    def _fill(self) -> None:
        if self.mean is not None:
            for buffer, numbers in ((self.subtract, self.mean), (self.divide, self.std)):
                listed = _as_list(numbers)
                for channel in range(self._channels):
                    buffer.value[channel] = listed[channel % len(listed)]  # one number, or one for each channel

    def forward(self, x: Array, *, train: bool) -> tuple[Array, Backward]:
        """Return (x − mean) / std and the backward function."""
        if self.mean is None:
            raise ConfigurationError(
                f"{self.display_name}: has neither mean nor std; pass both to Normalization(…), or call adapt(data)"
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
    if not listed:
        raise ConfigurationError(f"{what} must be a finite number or a list of them, not {value!r}")
    numbers = [float(checks.number(number, what)) for number in listed]
    return numbers if isinstance(plain, list | tuple) else numbers[0]


def _as_list(numbers: Any) -> list[float]:
    return numbers if isinstance(numbers, list) else [numbers]
