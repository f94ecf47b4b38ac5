"""Averages of weights: training continues with the raw weights, and is validated and ends with averaged ones.

Averaged are all parameters that are not frozen and all buffers of floats, such as running statistics; both lie flat on
the device, so that an average costs two kernels, and nothing is read from there.
"""

import weakref
from collections.abc import Callable
from typing import Any

from gpucnn.backends import Array
from gpucnn.callbacks.base import Callback
from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.optimizers.layout import Layout
from gpucnn.saving.tree import misfit
from gpucnn.schedules import Schedule

Decay = float | Schedule | Callable[[float], float]


class _Average(Callback, Configurable, family="average"):
    """What both averages share: arrays in addition to the model's, shown in their place between epochs.

    From the end of an epoch's steps until the next epoch begins, the model holds the averages: validation and the
    callbacks of the epoch's end see them, and so does who trained, after the last epoch or an interruption. A further
    fit of a model that still holds them continues with the earlier raw weights; otherwise it starts again.
    """

    def __init__(self, decay: Decay, every: int) -> None:
        self.every = checks.integer(every, "every", minimum=1)
        self.decay = decay if callable(decay) else _checked(decay)
        self._model: weakref.ref[Any] | None = None
        self._layout: Layout | None = None
        self._ranges: list[slice] = []  # of the parameters that are averaged
        self._averages: list[Array] = []
        self._raw_weights: list[Array] | None = None  # the model's own numbers, while it shows the averages
        self._steps = 0

    def on_fit_begin(self, model: Any) -> None:
        """Begin with the weights that the model has, or continue where an earlier fit ended."""
        if self._continues(model):
            model.training.averaged_by = self
            return
        self._model, self._steps, self._raw_weights = weakref.ref(model), 0, None
        self._averages = [array.copy() for array in model.flat_state()]
        self._layout, self._ranges = model.flat_layout(), model.flat_ranges()

    def _is_of(self, model: object) -> bool:
        return self._model is not None and self._model() is model

    def _continues(self, model: Any) -> bool:
        """Return whether the model is as an earlier fit left it."""
        if self._raw_weights is None or not self._is_of(model):
            return False
        arrays = model.flat_state()
        if model.flat_layout() is not self._layout or model.flat_ranges() != self._ranges:
            return False
        pairs = zip(arrays, self._averages, strict=True)
        return not any(int((now != then).astype("int64").sum()) for now, then in pairs)  # numbers: see Accuracy.total

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Put the raw weights back, for the steps."""
        if self._raw_weights is not None:
            for array, raw in zip(self._arrays(model), self._raw_weights, strict=True):
                array[...] = raw
            self._raw_weights = model.training.averaged_by = None

    def on_step_end(self, model: Any, step: int) -> None:
        """Average, from time to time."""
        self._steps += 1
        if self._steps % self.every == 0:
            self._average(model)

    def on_train_epoch_end(self, model: Any, epoch: int) -> None:
        """Show the averages, for the validation and whatever follows until the next epoch."""
        if (other := model.training.averaged_by) not in (None, self):
            raise ConfigurationError(
                f"{self!r} and {other!r} both put averages in the place of the weights; pass one of them"
            )
        arrays = self._arrays(model)
        self._raw_weights, model.training.averaged_by = [array.copy() for array in arrays], self
        for array, average in zip(arrays, self._averages, strict=True):
            array[...] = average

    def on_exception(self, model: Any) -> None:
        """Leave the model with the averages, as at the end."""
        if self._is_of(model) and self._raw_weights is None and model.training.averaged_by is None:
            self.on_train_epoch_end(model, -1)

    def state(self, model: Any) -> dict[str, Any]:
        """Return the averages, the raw weights while the averages are shown, and the number of steps."""
        self._arrays(model)

        def on_host(parts: list[Array]) -> list[Any]:
            flat = model.backend.xp.concatenate([parts[-1][:0], *parts[:-1]])
            return [model.backend.to_host(array).copy() for array in (flat, parts[-1])]

        raw = None if self._raw_weights is None else on_host(self._raw_weights)
        return {"averages": on_host(self._averages), "raw": raw, "steps": self._steps}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Continue from these averages; the model shows them if it did so then.

        Raises:
            CheckpointError: they are not averages of this model.
        """
        from_host, raw, own = model.backend.from_host, state["raw"], self.state(model)["averages"]
        if wrong := misfit(state["averages"], own, "averages") or (raw is not None and misfit(raw, own, "raw")):
            raise CheckpointError(f"{type(self).__name__}: {wrong}")

        def parts_of(saved: list[Any]) -> list[Array]:
            flat, start, parts = from_host(saved[0]), 0, []
            for average in self._averages[:-1]:
                parts.append(flat[start : start + len(average)])
                start += len(average)
            return [*parts, from_host(saved[1])]

        for average, part in zip(self._averages, parts_of(state["averages"]), strict=True):
            average[...] = part
        self._raw_weights = None if raw is None else parts_of(raw)
        model.training.averaged_by = None if raw is None else self
        self._steps = state["steps"]

    def _arrays(self, model: Any) -> list[Array]:
        """Return the model's flat arrays, which may lie elsewhere than a step ago, or be of other parameters.

        Raises:
            ConfigurationError: they are on another backend than when the run began, or of another model's layers.
        """
        arrays, layout = model.flat_state(), model.flat_layout()
        if layout is not self._layout:
            if layout != self._layout or type(arrays[0]) is not type(self._averages[0]):
                raise ConfigurationError(
                    f"{self!r} averages other parameters than those that are trained by now: they were moved since the "
                    "fit began, perhaps in another model of the same layers; do that between two fits"
                )
            self._layout = layout
        if model.flat_ranges() != self._ranges:
            self._follow_frozen(model)
        return arrays

    def _follow_frozen(self, model: Any) -> None:
        """Average what is trainable by now; what was frozen stays as it is, and what was not begins as it is."""
        before, self._ranges = self._ranges, model.flat_ranges()

        def followed(parts: list[Array]) -> list[Array]:
            flat = model.flat_values().copy()
            for place, part in zip(before, parts[:-1], strict=True):
                flat[place] = part
            return [*(flat[place].copy() for place in self._ranges), parts[-1]]

        self._averages = followed(self._averages)
        self._raw_weights = None if self._raw_weights is None else followed(self._raw_weights)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model to the original: a copy starts again."""
        return vars(self) | {"_model": None}

    def _average(self, model: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no _average")

    def _update_averages(self, model: Any, weight: float) -> None:
        for array, average in zip(self._arrays(model), self._averages, strict=True):
            model.backend.lerp_(average, array, weight)

    def _decay_at(self, epoch: float, epochs: float) -> float:
        if isinstance(self.decay, Schedule):
            return _checked(self.decay(epoch, epochs))
        return _checked(self.decay(epoch / epochs)) if callable(self.decay) else self.decay


class MovingAverage(_Average):
    """Exponential moving average of the weights: average ← decay·average + (1 − decay)·weights, every `every` steps.

    Arguments
        decay    a number from 0 to 1; a schedule, which is called with the epoch and the number of epochs; or a
                 function of the fraction of the run that is done, 0 … 1
        every    steps between two updates
        warm_up  after n updates decay by (1 + n) / (10 + n) where that is less, so that the untrained weights of the
                 beginning are soon forgotten

    Validation, callbacks at the end of an epoch and the model after `fit` have the averaged weights.
    `model.recalibrate_batch_norm` computes the statistics of batch norms for them.

    Raises
        ConfigurationError  an argument is invalid, or a schedule or function returns what is not a decay

    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging" (1992).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> history = networks.lenet().fit(x, y, epochs=2, callbacks=[callbacks.MovingAverage(0.9)], verbose=0)
    """

    def __init__(self, decay: Decay = 0.999, every: int = 1, warm_up: bool = True) -> None:
        super().__init__(decay, every)
        self.warm_up = checks.flag(warm_up, "warm_up")

    def _average(self, model: Any) -> None:
        updates = self._steps // self.every - 1
        decay = self._decay_at(*model.training.progress)
        if self.warm_up:
            decay = min(decay, (1 + updates) / (10 + updates))
        self._update_averages(model, 1.0 - decay)


class Lookahead(_Average):
    """Slow weights follow the trained ones, which are set back to them: k steps forward, one step back.

    Every `every` steps slow ← decay·slow + (1 − decay)·fast, and then fast ← slow. Validation and the model after
    `fit` have the slow weights.

    Arguments
        every  k, the steps between two such moves
        decay  a number from 0 to 1; a schedule, which is called with the epoch and the number of epochs; or a function
               of the fraction of the run that is done, 0 … 1. `schedules.Power(0.95**5, 3)` is that of the CIFAR-10
               speed runs of Jordan (2024)

    Raises
        ConfigurationError  an argument is invalid, or a schedule or function returns what is not a decay

    Source: Zhang, Lucas, Hinton, Ba, "Lookahead optimizer: k steps forward, 1 step back" (2019).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> history = networks.lenet().fit(x, y, epochs=2, callbacks=[callbacks.Lookahead(every=5)], verbose=0)
    """

    former_names = ("LookAhead",)

    def __init__(self, every: int = 5, decay: Decay = 0.5) -> None:
        super().__init__(decay, every)

    def _average(self, model: Any) -> None:
        self._update_averages(model, 1.0 - self._decay_at(*model.training.progress))
        for array, average in zip(self._arrays(model), self._averages, strict=True):
            array[...] = average


def _checked(decay: Any) -> float:
    """Return a decay as a float, or raise ConfigurationError where it is not a number from 0 to 1."""
    return float(checks.number(decay, "decay, or what a schedule or function of it returns,", minimum=0, maximum=1))
