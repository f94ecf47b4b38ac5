"""One step after another: a batch is gathered, the model makes its step, the totals grow.

On a backend that can, a step is captured once and then replayed. What changes from one step to the next, which samples,
the learning rates, the number of the step, lies in arrays on the device that Python fills before each replay; what
Python itself counts is moved on by what it moved in the step that was captured. All else that a step reads from Python,
such as a dropout's rate or a momentum, is looked at before each replay: where it has changed, the captured step is
dropped, and captured anew when the settings rest.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from gpucnn import rng
from gpucnn.backends import Array, first_line
from gpucnn.backends.base import StreamedDataset
from gpucnn.backends.image_transform import ImageTransform
from gpucnn.core.config import Configurable
from gpucnn.data.augment import Augmentation, AugmentationPipeline, count_random_words
from gpucnn.engine.executor import Executor
from gpucnn.engine.replicas import NetworkSignature
from gpucnn.errors import CaptureWarning, GpucnnError, OutOfMemoryError
from gpucnn.optimizers.base import LearningRates, Optimizer
from gpucnn.optimizers.groups import Group
from gpucnn.training.finite_check import FiniteCheck

MAX_EAGER = 64  # steps between two captures, however often settings change
PLAIN = (bool, int, float, str, type(None))  # settings that are compared by their values
PASSED_ON = {Optimizer: ("learning_rate", "steps"), Group: ("rate",)}  # to each step, in arrays


class StepRunner:
    """The steps of a training over inputs and labels on the device; `totals` are the epoch's so far."""

    def __init__(
        self,
        model: Executor,
        data: tuple[Array, Array],
        batch_size: int,
        augment: Sequence[Augmentation] = (),
        check_numerics: bool = True,
    ) -> None:
        self.finite_check = FiniteCheck(model, check_numerics)
        self.model, (self._x, self._y), self._batch_size = model, data, batch_size
        self.augment = augment
        self.stream = rng.new_stream(rng.host_generator(model.seed, "augment", model.epochs_trained))
        self._augmenter = self._prepare_augmentation() if augment else None
        self.totals = model.new_metrics()
        self._host_order: Any = None
        self._order: Array | None = None

    def begin_epoch(self, order: Any) -> None:
        """Begin to visit the samples in an order, a host array (P,), or None for that of the data."""
        self.totals.reset()
        if self._augmenter is not None:
            self._augmenter.begin_epoch(self.model.epochs_trained)
        self._host_order = order
        self._order = None if order is None else self.model.backend.from_host(order)

    def close(self) -> None:
        """Free memory that only further steps would need."""

    def run(self, part: slice, rate: LearningRates) -> None:
        """Make the step on one part of the order, at one learning rate or at those of the optimizer's groups."""
        picked = part if self._order is None else self._order[part]
        if isinstance(self._x, StreamedDataset):
            self._step(self._stream(part), slice(None), picked, rate)
        else:
            self._step(self._x, picked, picked, rate)

    def _stream(self, part: slice) -> Array:
        """Return the inputs of one part of the order, from the feed."""
        return self._x[part if self._host_order is None else self._host_order[part]]

    def _step(
        self, x: Array, picked: Any, picked_labels: Any, rate: LearningRates, number: Array | None = None
    ) -> None:
        model = self.model
        with model.execution_context(self._batch_size):
            labels = self._y[picked_labels]
            inputs = model.backend.load_batch(x, picked, model.dtype, self._augment(picked_labels, len(labels)))
            loss, outputs = model.train_step(inputs, labels, rate, number, self.finite_check)
            self.totals.add(loss, outputs, labels)

    def _prepare_augmentation(self) -> AugmentationPipeline:
        """Upload what the augmentations need; the random words of each image depend on the seed alone."""
        model, augment = self.model, self.augment
        per_image, count = None, count_random_words(augment, per_image=True)
        if count:
            state = rng.new_stream(rng.host_generator(model.seed, "augment for good"))
            per_image = rng.random_bits(model.backend, state, (len(self._x), count))
        H, W, _ = self._x.shape[1:]
        return AugmentationPipeline(augment, model.backend, (H, W), per_image)

    def _augment(self, picked: Any, N: int) -> ImageTransform | None:
        """Draw how the images of a batch are augmented, by their places in the data set."""
        if self._augmenter is None:
            return None
        words = rng.random_bits(self.model.backend, self.stream, (N, count_random_words(self.augment)))
        return self._augmenter.sample(words, picked)


class CapturedSteps(StepRunner):
    """Steps that are made once, then captured, and replayed from then on; a last, smaller batch is made eagerly.

        step 1     eager      in memory of its own
        step 2     captured   in the same memory, and launched
        step 3 …   replayed   as long as the settings stay what they were

    Where settings change between two steps, the next ones are eager again, twice as many before each new capture, so
    that one which changes all the time costs no more than eager steps do. Where the step cannot be captured, because of
    what a layer or a loss of the user's own does or for want of memory, that is said once, and all steps are eager.
    """

    def __init__(
        self,
        model: Executor,
        data: tuple[Array, Array],
        batch_size: int,
        augment: Sequence[Augmentation] = (),
        check_numerics: bool = True,
    ) -> None:
        super().__init__(model, data, batch_size, augment, check_numerics)
        xp = model.backend.xp
        self._indices = xp.zeros(batch_size, dtype=xp.int64)
        self._input_buffer = (
            xp.zeros((batch_size, *self._x.shape[1:]), dtype=self._x.dtype)
            if isinstance(self._x, StreamedDataset)
            else None
        )
        self._rates: list[Array] = []
        self._number = xp.zeros((), dtype=xp.int64)
        self._eager, self._warmup = 0, 1  # steps since the settings changed, and so many before a capture
        self._settings: _Settings | None = None  # of the last full step
        self._warm: tuple[Any, _Counters] | None = None  # memory with a step's room, and what the step counts
        self._replay: tuple[Any, _Counters] | None = None  # a captured step, and the same

    def begin_epoch(self, order: Any) -> None:
        """Begin to visit the samples in an order, which lies on the device in any case."""
        super().begin_epoch(order)
        if self._order is None:
            self._order = self.model.backend.xp.arange(len(self._x))

    def close(self) -> None:
        """Free the captured step with its memory; the next step is the first again."""
        self._warm = self._replay = self._settings = None
        self._eager = 0

    def run(self, part: slice, rate: LearningRates) -> None:
        """Make the step on one part of the order: eagerly, or by a capture, or by a replay."""
        if part.stop - part.start < self._batch_size or self.model.why_not_captured:
            super().run(part, rate)
            return
        if not self._settings_rest():
            if self._warm or self._replay:
                self._warmup = min(2 * self._warmup, MAX_EAGER)
            self.close()
        self._pass_on(part, rate)
        if self._replay is not None:
            replay, counts = self._replay
            replay(counts.replays())
            counts.advance()
        elif self._warm is None:
            self._warm_up()
        elif not self._capture(*self._warm):
            super().run(part, rate)

    def _settings_rest(self) -> bool:
        """Tell whether nothing that a step reads from Python has changed since the last one."""
        if self._settings is not None and not self._settings.are_current():
            return False
        return self._replay is None or self._replay[1].replays() >= 0

    def _pass_on(self, part: slice, rate: LearningRates) -> None:
        """Write what changes with each step where the step reads it."""
        assert self._order is not None
        rates, xp = self.model.optimizer.broadcast_rates(rate), self.model.backend.xp
        if len(self._rates) != len(rates):
            self._rates = [xp.zeros((), dtype=xp.float64) for _ in rates]
        self._indices[...] = self._order[part]
        if self._input_buffer is not None:
            self._input_buffer[...] = self._stream(part)
        for place, number in zip(self._rates, rates, strict=True):
            place[...] = number
        self._number[...] = self.model.optimizer.steps + 1

    def _full_step(self) -> None:
        x, picked = (self._x, self._indices) if self._input_buffer is None else (self._input_buffer, slice(None))
        self._step(x, picked, self._indices, self._rates, self._number)

    def _warm_up(self) -> None:
        """Make a step; the last one before a capture, in the memory that this will find."""
        self._eager += 1
        if self._eager < self._warmup:
            self._full_step()
            self._settings = _Settings(self)
            return
        before, counts = _Settings(self), _Counters(self)
        with self.model.backend.capture_pool() as pool:
            self._full_step()
        counts.end_step()
        if before.are_current():
            self._warm, self._settings = (pool, counts), before
        elif self._warmup == 1:  # what a layer makes when it is first used, perhaps
            self.close()
            self._warmup = 2
        else:
            self._fall_back("a step changes attributes of layers, loss, optimizer or metrics, which a replay would not")

    def _capture(self, pool: Any, counts: "_Counters") -> bool:
        """Capture a step and make it; return whether it could be captured. If not, nothing was done."""
        self._warm = None
        counts.begin()
        try:
            replay = self.model.backend.capture(pool, self._full_step, counts.increments())
            replay(0)  # capturing has computed nothing, but Python has counted
        except Exception as error:  # CuPy and CUDA have many ways to say that a graph cannot hold this
            if isinstance(error, GpucnnError) and not isinstance(error, OutOfMemoryError):
                raise
            counts.reset_to_begin()
            cause: BaseException = error
            while (
                isinstance(cause, OutOfMemoryError) and cause.__cause__ is not None
            ):  # without its advice for the batch
                cause = cause.__cause__
            self._fall_back(f"{type(cause).__name__}: {first_line(cause)}")
            return False
        self._replay = replay, counts
        return True

    def _fall_back(self, reason: str) -> None:
        self.close()
        self.model.disable_capture(reason)
        warnings.warn(
            "the training step cannot be captured and replayed, so its kernels are launched one by one, which takes "
            f"longer ({reason}); in layers and losses of your own multiply with backend.dense and read nothing from "
            "the device, choose a smaller batch where memory is short, or compile(…, jit=False)",
            CaptureWarning,
            stacklevel=2,
        )


class _Settings:
    """What a step has read from Python: the network's attributes and arrays, and the settings around it."""

    def __init__(self, steps: CapturedSteps) -> None:
        self._steps, self._network, self._around = steps, NetworkSignature(steps.model.network), list(_around(steps))

    def are_current(self) -> bool:
        """Tell whether a step would read the same now."""
        now = list(_around(self._steps))
        return len(now) == len(self._around) and all(map(_is_same, now, self._around)) and self._network.is_current()


def _around(steps: CapturedSteps) -> Iterator[Any]:
    """Yield the settings and arrays that a step reads outside of its network."""
    model = steps.model
    yield from (model.network, model.backend, model.dtype, model.allow_tf32, model.flat_gradients())
    for thing in (model.loss, model.optimizer, model.metrics, steps.augment):
        yield from _inside(thing, set())


def _inside(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Yield a setting, or those in an object with settings, a list or a dictionary."""
    if isinstance(thing, list | tuple):
        yield len(thing)
        held: Iterator[Any] = iter(thing)
    elif isinstance(thing, dict):
        yield len(thing)
        held = iter(thing.values())
    else:
        yield thing
        if not isinstance(thing, Configurable) or id(thing) in seen:
            return
        passed_on = [name for kind, names in PASSED_ON.items() if isinstance(thing, kind) for name in names]
        held = (value for name, value in vars(thing).items() if name not in passed_on)
    seen.add(id(thing))
    for value in held:
        yield from _inside(value, seen)


def _is_same(now: Any, then: Any) -> bool:
    return now is then or (type(now) is type(then) and isinstance(now, PLAIN) and now == then)


class _Counters:
    """What Python counts in a step: samples, the optimizer's steps, and the draws of random streams.

    Made before a step, which `end_step` ends; then it knows by how much each count moves.
    """

    def __init__(self, steps: StepRunner) -> None:
        self._totals, self._optimizer = steps.totals, steps.model.optimizer
        self._streams = [buffer.value for buffer in steps.model.network.buffers().values() if buffer.on_host]
        self._streams.append(steps.stream)
        self._then, self._deltas = self._read(), [0]
        self._keys = [int(state[0]) for state in self._streams]

    def _read(self) -> list[int]:
        return [self._totals.samples, self._optimizer.steps, *(int(state[1]) for state in self._streams)]

    def _write(self, counts: list[int]) -> None:
        self._totals.samples, self._optimizer.steps = counts[:2]
        for state, count in zip(self._streams, counts[2:], strict=True):
            state[1] = count

    def end_step(self) -> None:
        """Take what has been counted since the beginning for what each step counts."""
        self._deltas = [now - then for now, then in zip(self._read(), self._then, strict=True)]

    def begin(self) -> None:
        """Count replays from here on: the next one is number 0."""
        self._then = self._read()

    def reset_to_begin(self) -> None:
        """Count from where it began again."""
        self._write(self._then)

    def advance(self) -> None:
        """Count on by one step."""
        self._write([count + delta for count, delta in zip(self._read(), self._deltas, strict=True)])

    def increments(self) -> dict[int, int]:
        """Return by how much a step moves on the counter of each stream, by its key.

        Raises:
            RuntimeError: two streams have one key, but move on differently.
        """
        increments = dict(zip(self._keys, self._deltas[2:], strict=True))
        if [increments[key] for key in self._keys] != self._deltas[2:]:
            raise RuntimeError("two layers draw from random streams of one key, and not equally often")
        return increments

    def replays(self) -> int:
        """Return how many steps the streams have gone on since the beginning, those that were not replayed as well.

        It is −1 where they have not gone on together, step by step, with the same keys.
        """
        if [int(state[0]) for state in self._streams] != self._keys:
            return -1
        gone = zip(self._read()[2:], self._then[2:], self._deltas[2:], strict=True)
        steps = {divmod(now - then, delta) for now, then, delta in gone if delta}
        if len(steps) > 1 or any(rest for _, rest in steps):
            return -1
        return max((number for number, _ in steps), default=0)


def make_step_runner(
    model: Executor,
    data: tuple[Array, Array],
    batch_size: int,
    augment: Sequence[Augmentation] = (),
    check_numerics: bool = True,
) -> StepRunner:
    """Return the steps of a training: captured ones where backend and layers can, the model wants it, and it pays."""
    can, enough = model.backend.can_capture and not model.why_not_captured, len(data[0]) >= 2 * batch_size
    kind = CapturedSteps if can and model.jit and enough else StepRunner
    return kind(model, data, batch_size, augment, check_numerics)
