"""One step after another: a batch is gathered, the model makes its step, the totals grow.

On a backend that can record, a step is recorded once and then repeated. What changes from one step to the next, which
samples, the learning rates, the number of the step, lies in arrays on the device that Python fills before each repeat;
what Python itself counts is moved on by what it moved in the step that was recorded.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpucnn import rng
from gpucnn.backends import Array, in_short
from gpucnn.backends.base import Feed
from gpucnn.backends.placement import Placement
from gpucnn.data.augment import Augmentation, Placing, words_of
from gpucnn.errors import GpucnnError, RecordingWarning
from gpucnn.optimizers.base import Rates
from gpucnn.training.numerics import Watch

if TYPE_CHECKING:
    from gpucnn.model import Model


class Steps:
    """The steps of a training over inputs and labels on the device; `totals` are the epoch's so far."""

    def __init__(
        self,
        model: "Model",
        data: tuple[Array, Array],
        batch_size: int,
        augment: Sequence[Augmentation] = (),
        check_numerics: bool = True,
    ) -> None:
        self.watch = Watch(model, check_numerics)
        self.model, (self._x, self._y), self._batch_size = model, data, batch_size
        self._augment = augment
        self.stream = rng.new_state(rng.host_generator(model.seed, "augment", model.epochs_seen))
        self._placing = self._prepare() if augment else None
        self.totals = model.new_totals()
        self._host_order: Any = None
        self._order: Array | None = None

    def begin_epoch(self, order: Any) -> None:
        """Begin to visit the samples in an order, a host array (P,), or None for that of the data."""
        self.totals.reset()
        if self._placing is not None:
            self._placing.begin_epoch(self.model.epochs_seen)
        self._host_order = order
        self._order = None if order is None else self.model.backend.from_host(order)

    def forget(self) -> None:
        """Take up that a step computes something else from now on: other parameters learn, or arrays are others."""

    def make(self, part: slice, rate: Rates) -> None:
        """Make the step on one part of the order, at one learning rate or at those of the optimizer's groups."""
        picked = part if self._order is None else self._order[part]
        if isinstance(self._x, Feed):
            self._step(self._fed(part), slice(None), picked, rate)
        else:
            self._step(self._x, picked, picked, rate)

    def _fed(self, part: slice) -> Array:
        """Return the inputs of one part of the order, from the feed."""
        return self._x[part if self._host_order is None else self._host_order[part]]

    def _step(self, x: Array, picked: Any, picked_labels: Any, rate: Rates, number: Array | None = None) -> None:
        model = self.model
        with model.computing(self._batch_size):
            labels = self._y[picked_labels]
            inputs = model.backend.gather(x, picked, model.dtype, self._placement(picked_labels, len(labels)))
            loss, outputs = model.step(inputs, labels, rate, number)
            self.totals.add(loss, outputs, labels)

    def _prepare(self) -> Placing:
        """Bring across what the augmentations need; the words that last are the seed's alone, whichever fit this is."""
        model, augment = self.model, self._augment
        lasting, count = None, words_of(augment, lasting=True)
        if count:
            state = rng.new_state(rng.host_generator(model.seed, "augment for good"))
            lasting = rng.draw_bits(model.backend, state, (len(self._x), count))
        H, W, _ = self._x.shape[1:]
        return Placing(augment, model.backend, (H, W), lasting)

    def _placement(self, picked: Any, N: int) -> Placement | None:
        """Draw how the images of a batch are augmented, by their places in the data set."""
        if self._placing is None:
            return None
        words = rng.draw_bits(self.model.backend, self.stream, (N, words_of(self._augment)))
        return self._placing.of(words, picked)


class RecordedSteps(Steps):
    """Steps of which all but the first are one recorded step, repeated; a last, smaller batch is made as it comes.

    Where the step cannot be recorded, because of what a layer or a loss of the user's own does, that is said once, and
    all steps are made as they come.
    """

    def __init__(
        self,
        model: "Model",
        data: tuple[Array, Array],
        batch_size: int,
        augment: Sequence[Augmentation] = (),
        check_numerics: bool = True,
    ) -> None:
        super().__init__(model, data, batch_size, augment, check_numerics)
        xp = model.backend.xp
        self._picked = xp.zeros(batch_size, dtype=xp.int64)
        self._fed_inputs = (
            xp.zeros((batch_size, *self._x.shape[1:]), dtype=self._x.dtype) if isinstance(self._x, Feed) else None
        )
        groups = len(model.optimizer.rates_at())
        self._rates = [xp.zeros((), dtype=xp.float64) for _ in range(groups)]
        self._number = xp.zeros((), dtype=xp.int64)
        self._counts = _Counts(self)
        self._change: dict[Any, int] | None = None  # of the counts, by one step
        self._recorded: Any = None
        self._recorded_at: dict[Any, int] = {}

    def begin_epoch(self, order: Any) -> None:
        """Begin to visit the samples in an order, which lies on the device in any case."""
        super().begin_epoch(order)
        if self._order is None:
            self._order = self.model.backend.xp.arange(len(self._x))

    def forget(self) -> None:
        """Forget the recorded step; the next is the first again."""
        self._change = self._recorded = None

    def make(self, part: slice, rate: Rates) -> None:
        """Make the step on one part of the order: the first one is made, the second recorded, the others repeated."""
        if part.stop - part.start < self._batch_size or self.model.why_not_repeated:
            super().make(part, rate)
            return
        assert self._order is not None
        self._picked[...] = self._order[part]
        if self._fed_inputs is not None:
            self._fed_inputs[...] = self._fed(part)
        for place, number in zip(self._rates, self.model.optimizer.as_rates(rate), strict=True):
            place[...] = number
        self._number[...] = self.model.optimizer.steps + 1
        if self._change is None:
            self._first()
        elif self._recorded is not None:
            self._repeat(self._change)
        elif not self._record(self._change):
            super().make(part, rate)

    def _whole_step(self) -> None:
        x, picked = (self._x, self._picked) if self._fed_inputs is None else (self._fed_inputs, slice(None))
        self._step(x, picked, self._picked, self._rates, self._number)

    def _first(self) -> None:
        before = self._counts.read()
        with self.model.backend.room_to_record():
            self._whole_step()
        self._change = {what: count - before[what] for what, count in self._counts.read().items()}

    def _record(self, change: dict[Any, int]) -> bool:
        """Record a step and make it; return whether it could be recorded. If not, nothing was done."""
        self._recorded_at = self._counts.read()
        try:
            recorded = self.model.backend.recording(self._whole_step, self._counts.strides(change))
        except GpucnnError:
            raise
        except Exception as error:  # CuPy and CUDA have many ways to say that a graph cannot hold this
            self._counts.put_back(self._recorded_at)
            self._give_up(error)
            return False
        self._recorded = recorded
        recorded(0)  # recording has computed nothing, but Python has counted
        return True

    def _give_up(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {in_short(error)}"
        self.model.give_up_repeating(reason)
        warnings.warn(
            "the training step cannot be recorded and repeated, so its kernels are launched one by one, which takes "
            f"longer ({reason}); in layers and losses of your own multiply with backend.dense and read nothing from "
            "the device, or choose compile(…, jit=False)",
            RecordingWarning,
            stacklevel=2,
        )

    def _repeat(self, change: dict[Any, int]) -> None:
        self._recorded(self._counts.repeats(self._recorded_at, change))
        self._counts.move(change)


class _Counts:
    """What Python counts in a step: samples, the optimizer's steps, and the draws of random streams."""

    def __init__(self, steps: Steps) -> None:
        self._totals, self._optimizer = steps.totals, steps.model.optimizer
        self._streams = [buffer.value for buffer in steps.model.network.buffers().values() if buffer.on_host]
        self._streams.append(steps.stream)

    def read(self) -> dict[Any, int]:
        """Return all counts; a stream's is by its key."""
        counts: dict[Any, int] = {"samples": self._totals.samples, "steps": self._optimizer.steps}
        return counts | {int(state[0]): int(state[1]) for state in self._streams}

    def move(self, change: dict[Any, int]) -> None:
        """Count on by one step."""
        self._totals.samples += change["samples"]
        self._optimizer.steps += change["steps"]
        for state in self._streams:
            state[1] += change[int(state[0])]

    def put_back(self, before: dict[Any, int]) -> None:
        """Count from there again."""
        self._totals.samples, self._optimizer.steps = before["samples"], before["steps"]
        for state in self._streams:
            state[1] = before[int(state[0])]

    def strides(self, change: dict[Any, int]) -> dict[int, int]:
        """Return by how much a step moves on the counter of each stream."""
        return {key: change[key] for key in change if not isinstance(key, str)}

    def repeats(self, then: dict[Any, int], change: dict[Any, int]) -> int:
        """Return how many steps the streams have gone on since then; steps that were not repeated count as well."""
        now, strides = self.read(), self.strides(change)
        return max([(now[key] - then[key]) // stride for key, stride in strides.items() if stride], default=0)


def make_steps(
    model: "Model",
    data: tuple[Array, Array],
    batch_size: int,
    augment: Sequence[Augmentation] = (),
    check_numerics: bool = True,
) -> Steps:
    """Return the steps of a training: recorded ones where backend and layers can, the model wants it, and it pays."""
    can, enough = model.backend.can_record and not model.why_not_repeated, len(data[0]) >= 2 * batch_size
    kind = RecordedSteps if can and model.jit and enough else Steps
    return kind(model, data, batch_size, augment, check_numerics)
