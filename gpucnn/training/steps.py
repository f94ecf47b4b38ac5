"""One step after another: a batch is loaded, the model takes a training step, the totals grow.

On a backend that can, a step is captured once and then replayed, by the rule of `engine/capture.py`. What changes from
one step to the next, which samples, the learning rates, the number of the step, lies in arrays on the device that
Python fills before each replay; what Python itself counts is advanced by what the captured step counted.
"""

from collections.abc import Sequence
from typing import Any

from gpucnn import rng
from gpucnn.backends import Array, first_line
from gpucnn.backends.base import Replay, StreamedDataset
from gpucnn.data.augment import Augmentation, AugmentationPipeline, count_random_words
from gpucnn.engine.executor import Executor
from gpucnn.engine.signature import Signature
from gpucnn.errors import GpucnnError, OutOfMemoryError
from gpucnn.optimizers.base import LearningRates
from gpucnn.training.finite_check import FiniteCheck

REMEDY = (
    "in custom layers and losses multiply with backend.dense and read nothing from the device, choose a smaller batch "
    "where memory is short, or compile(…, jit=False)"
)


class Input:
    """The samples of a training run on the device: `load` returns a batch of them, augmented as they are wanted.

    resident    all inputs lie on the device; a batch is picked there by indices
    streamed    inputs lie on the host; a batch is uploaded
    staged      either of them, read from fixed places on the device, which `stage` fills: for captured steps
    """

    def __init__(self, model: Executor, data: tuple[Array, Array], augment: Sequence[Augmentation]) -> None:
        self._backend, self._dtype, (self._x, self._y), self.augment = model.backend, model.dtype, data, augment
        self.stream = rng.new_stream(rng.host_generator(model.seed, "augment", model.epochs_trained))
        self._pipeline = self._make_pipeline(model.seed) if augment else None
        self._host_order: Any = None
        self._order: Array | None = None
        self._indices: Any = None  # of the samples that are staged
        self._buffer: Array | None = None

    def _make_pipeline(self, seed: int) -> AugmentationPipeline:
        """Upload what the augmentations need; the random words of each image depend on the seed alone."""
        per_image, count = None, count_random_words(self.augment, per_image=True)
        if count:
            state = rng.new_stream(rng.host_generator(seed, "augment for good"))
            per_image = rng.random_bits(self._backend, state, (len(self._x), count))
        H, W, _ = self._x.shape[1:]
        return AugmentationPipeline(self.augment, self._backend, (H, W), per_image)

    def begin_epoch(self, order: Any, epoch: int) -> None:
        """Begin to visit the samples in an order, a host array (P,), or None for that of the data."""
        if self._pipeline is not None:
            self._pipeline.begin_epoch(epoch)
        self._host_order = order
        self._order = None if order is None else self._backend.from_host(order)

    def load(self, part: slice) -> tuple[Array, Array]:
        """Return the inputs and labels of one part of the order."""
        picked = part if self._order is None else self._order[part]
        if isinstance(self._x, StreamedDataset):
            return self._load(self._uploaded(part), slice(None), picked)
        return self._load(self._x, picked, picked)

    def _uploaded(self, part: slice) -> Array:
        return self._x[part if self._host_order is None else self._host_order[part]]

    def _load(self, x: Array, picked: Any, picked_labels: Any) -> tuple[Array, Array]:
        labels, transform = self._y[picked_labels], None
        if self._pipeline is not None:
            words = rng.random_bits(self._backend, self.stream, (len(labels), count_random_words(self.augment)))
            transform = self._pipeline.sample(words, picked_labels)
        return self._backend.load_batch(x, picked, self._dtype, transform), labels

    def stage(self, part: slice) -> None:
        """Write which samples, and those that are streamed themselves, where `load_staged` reads them."""
        xp, x = self._backend.xp, self._x
        if self._indices is None:
            size = part.stop - part.start
            self._indices = xp.zeros(size, dtype=xp.int64)
            streamed = isinstance(x, StreamedDataset)
            self._buffer = xp.zeros((size, *x.shape[1:]), dtype=x.dtype) if streamed else None
        if self._order is None:
            self._order = xp.arange(len(x))
        self._indices[...] = self._order[part]
        if self._buffer is not None:
            self._buffer[...] = self._uploaded(part)

    def load_staged(self) -> tuple[Array, Array]:
        """Return the inputs and labels of the part that was staged last."""
        if self._buffer is None:
            return self._load(self._x, self._indices, self._indices)
        return self._load(self._buffer, slice(None), self._indices)


class StepRunner:
    """The steps of a training run over inputs and labels on the device; `totals` are the epoch's so far."""

    def __init__(
        self,
        model: Executor,
        data: tuple[Array, Array],
        batch_size: int,
        augment: Sequence[Augmentation] = (),
        check_numerics: bool = True,
    ) -> None:
        self.model, self._batch_size, self.input = model, batch_size, Input(model, data, augment)
        self.finite_check, self.totals = FiniteCheck(model, check_numerics), model.new_metrics()

    def begin_epoch(self, order: Any) -> None:
        """Begin to visit the samples in an order, a host array (P,), or None for that of the data."""
        self.totals.reset()
        self.input.begin_epoch(order, self.model.epochs_trained)

    def close(self) -> None:
        """Free memory that only further steps would need."""

    def run(self, part: slice, rate: LearningRates) -> None:
        """Take the step on one part of the order, at one learning rate or at those of the optimizer's groups."""
        with self.model.execution_context(self._batch_size):
            self._train(*self.input.load(part), rate)

    def _train(self, x: Array, labels: Array, rate: LearningRates, number: Array | None = None) -> None:
        loss, outputs = self.model.train_step(x, labels, rate, number, self.finite_check)
        self.totals.add(loss, outputs, labels)


class CapturedSteps(StepRunner):
    """Steps that are captured as a whole and replayed; a last, smaller batch is eager.

        step 1     eager      in separate memory
        step 2     captured   in the same memory
        step 3 …   replayed   as long as the settings stay what they were

    Where the step cannot be captured, because of what a custom layer or loss does or for want of memory, a warning says
    so once, and all steps are eager.
    """

    _rates: Sequence[Array] = ()  # on the device, as the number of the step
    _number: Any = None

    def close(self) -> None:
        """Free the captured step with its memory; the next step is the first again."""
        self.model.captured_step.clear()

    def run(self, part: slice, rate: LearningRates) -> None:
        """Take the step on one part of the order: eagerly, captured or replayed."""
        if part.stop - part.start < self._batch_size or self.model.why_not_captured:
            super().run(part, rate)
            return
        step = self.model.captured_step.find()
        self._stage(part, rate)
        if step is None:
            self._run_eagerly()
        elif step.replay is not None:
            step.run()
        elif not self._capture(step):
            super().run(part, rate)

    def _stage(self, part: slice, rate: LearningRates) -> None:
        """Write what changes with each step where the step reads it."""
        rates, xp = self.model.optimizer.broadcast_rates(rate), self.model.backend.xp
        if len(self._rates) != len(rates):
            self._rates = [xp.zeros((), dtype=xp.float64) for _ in rates]
            self._number = xp.zeros((), dtype=xp.int64)
        self.input.stage(part)
        for place, number in zip(self._rates, rates, strict=True):
            place[...] = number
        self._number[...] = self.model.optimizer.steps + 1

    def _run_staged(self) -> None:
        with self.model.execution_context(self._batch_size):
            self._train(*self.input.load_staged(), self._rates, self._number)

    def _run_eagerly(self) -> None:
        """Take a step; the last one before a capture in the memory that this will find."""
        if not self.model.captured_step.is_due():
            self._run_staged()
            return
        model, first = self.model, self.model.captured_step.warmup == 1
        step = CapturedStep(self, self._run_staged)
        settings = ("network", "backend", "dtype", "allow_tf32", "loss", "optimizer", "metrics")
        signature = Signature(model.network, (model, settings), (self.input, ("augment",)))
        step.warm_up()
        if signature.is_current():
            self.model.captured_step.keep(step, signature)
        elif first:  # what a layer makes when it is first used, perhaps
            self.model.captured_step.outdate()
        else:
            self._fall_back("a step changes attributes of layers, loss, optimizer or metrics, which a replay would not")

    def _capture(self, step: "CapturedStep") -> bool:
        """Capture a step, which runs it; return whether it could be captured. If not, nothing was done."""
        try:
            step.capture()
        except Exception as error:  # CuPy and CUDA have many ways to say that a graph cannot hold this
            if isinstance(error, GpucnnError) and not isinstance(error, OutOfMemoryError):
                raise
            cause: BaseException = error
            while isinstance(cause, OutOfMemoryError) and cause.__cause__ is not None:  # without its advice
                cause = cause.__cause__
            self._fall_back(f"{type(cause).__name__}: {first_line(cause)}")
        return step.replay is not None

    def _fall_back(self, reason: str) -> None:
        self.close()
        self.model.captured_step.fail(reason, REMEDY)


class CapturedStep:
    """A training step that is warmed up in separate memory, captured there, and replayed.

    Random streams advance by themselves in a replay, which is given its number: it draws at the counter of the capture
    plus that number times what a step counts. So Python's counters, of samples, the optimizer's steps and the streams,
    are advanced by as much. (On the CPU a replay asks `gpucnn.rng` to draw, which counts: there is nothing to advance.)
    """

    def __init__(self, runner: StepRunner, step: Any) -> None:
        model = runner.model
        self._step, self._tracer = step, model.backend.tracer()
        self.replay: Replay | None = None
        self._totals, self._optimizer = runner.totals, model.optimizer
        self._streams = [buffer.value for buffer in model.network.buffers().values() if buffer.on_host]
        self._streams.append(runner.input.stream)
        self._keys = [int(state[0]) for state in self._streams]

    def warm_up(self) -> None:
        """Run the step eagerly in the memory that the capture will find, and note by how much it counts."""
        before = self._counters()
        with self._tracer.warm_up():
            self._step()
        self._increments = [now - then for now, then in zip(self._counters(), before, strict=True)]

    def capture(self) -> None:
        """Capture the step, which runs it; if it fails, the counters are what they were.

        Raises:
            RuntimeError: two streams have one key, but are drawn from unequally often; or what the tracer raises.
        """
        self._begin = self._counters()
        increments = dict(zip(self._keys, self._increments[2:], strict=True))
        if [increments[key] for key in self._keys] != self._increments[2:]:
            raise RuntimeError("two layers draw from random streams of one key, and not equally often")
        try:
            _, self.replay = self._tracer.capture(self._step, increments=increments)
        except Exception:
            self._set_counters(self._begin)
            raise

    def run(self) -> None:
        """Replay the step, and advance the counters."""
        assert self.replay is not None
        self.replay(number=self._steps_since())
        counters = zip(self._counters(), self._increments, strict=True)
        self._set_counters([count + increment for count, increment in counters])

    def is_valid(self) -> bool:
        """Return whether the random streams are where replays would continue them."""
        return self.replay is None or self._steps_since() >= 0

    def _counters(self) -> list[int]:
        return [self._totals.samples, self._optimizer.steps, *(int(state[1]) for state in self._streams)]

    def _set_counters(self, counters: list[int]) -> None:
        self._totals.samples, self._optimizer.steps = counters[:2]
        for state, count in zip(self._streams, counters[2:], strict=True):
            state[1] = count

    def _steps_since(self) -> int:
        """Return how many steps the streams have gone on since the capture, those that were not replayed as well.

        It is −1 where they have not gone on together, step by step, with the same keys.
        """
        if [int(state[0]) for state in self._streams] != self._keys:
            return -1
        gone = zip(self._counters()[2:], self._begin[2:], self._increments[2:], strict=True)
        steps = {divmod(now - then, increment) for now, then, increment in gone if increment}
        if len(steps) > 1 or any(rest for _, rest in steps):
            return -1
        return max((number for number, _ in steps), default=0)


def make_step_runner(model: Executor, data: tuple[Array, Array], batch_size: int, *options: Any) -> StepRunner:
    """Return the steps of a training run: captured if backend and layers can, the model wants it, and it pays."""
    can, enough = model.backend.captured_unit == "step" and not model.why_not_captured, len(data[0]) >= 2 * batch_size
    kind = CapturedSteps if can and model.jit and enough else StepRunner
    return kind(model, data, batch_size, *options)
