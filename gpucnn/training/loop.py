"""The training loop: epochs, batches, steps, validation.

Nothing is read back from the device inside an epoch, except by the progress bar at its refresh rate: losses and counts
add up on the device, and the epoch's sum is read when it is over.
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucnn import rng
from gpucnn.callbacks import Callback
from gpucnn.data.augment import Augmentation
from gpucnn.data.batches import batches, steps_of
from gpucnn.engine.evaluation import evaluate
from gpucnn.engine.memory import Pair, suggest_batch_size, to_device
from gpucnn.engine.signals import whole_step
from gpucnn.errors import NumericError
from gpucnn.saving.tree import Tree
from gpucnn.training.checkpoints import Checkpoints
from gpucnn.training.history import History
from gpucnn.training.interrupt import DeferredInterrupt
from gpucnn.training.progress import Silent, make_progress
from gpucnn.training.state import restore
from gpucnn.training.steps import StepRunner, make_step_runner

if TYPE_CHECKING:
    from gpucnn.model import Model

EVALUATION_BATCH = 256


@dataclass
class Training:
    """One call of `fit`: checked host data, how often and in what pieces it is visited, and who is told."""

    model: "Model"
    data: Pair
    epochs: float
    batch_size: int
    validation_data: Pair | None = None
    callbacks: Sequence[Callback] = ()
    shuffle: bool = True
    augment: Sequence[Augmentation] = ()
    verbose: bool | int | str = "auto"
    checkpoints: Checkpoints | None = None
    resume: bool | Path = False
    check_numerics: bool = True
    deterministic: bool = True
    history: History = field(default_factory=History)
    samples: list[int] = field(default_factory=list)  # that each epoch has visited
    epoch: int = 0  # that goes on, the first of which is 0
    step: int = 0  # how many of its steps are made
    seconds: float = 0.0  # that these took
    learning_rate: float = 0.0  # of the last one

    def run(self) -> History:
        """Train, and return what every epoch gave."""
        self.model.fault = None
        if self.model.claim is not None:
            self.model.claim.steps = True
        try:
            with self.model.backend.fixed_num_threads() if self.deterministic else nullcontext():
                return self._run()
        except BaseException as error:
            self.model.fault = error if isinstance(error, NumericError) else None
            for callback in self.callbacks:
                callback.on_fit_interrupted(self.model)
            if isinstance(error, MemoryError):
                raise suggest_batch_size(self.model, self.data, self.batch_size, error) from error
            raise
        finally:
            with whole_step:
                self.model.numerics = None
                self.model.rest(None)
                self.model.free_memory()

    @property
    def a_step_follows(self) -> bool:
        """Whether the next thing to happen is a step, not the end of an epoch or of the training."""
        if self.model.stop_training or self.epoch >= math.ceil(self.epochs):
            return False
        return self.step < len(self._parts())

    def order(self) -> Any:
        """Return the order in which this epoch visits its samples, by the seed; None is that of the data."""
        model = self.model
        return rng.epoch_order(model.seed, model.epochs_trained, len(self.data[0])) if self.shuffle else None

    def _parts(self) -> list[slice]:
        """Return the batches of this epoch, as parts of its order."""
        parts = list(batches(len(self.data[0]), self.batch_size))
        return parts[: steps_of(self.epoch, self.epochs, len(parts))]

    def _run(self) -> History:
        if self.checkpoints is None:
            return self._train_epochs(None)
        found = self.checkpoints.begin(self, self.resume)
        try:
            return self._train_epochs(found)
        finally:
            self.checkpoints.end()

    def _train_epochs(self, found: Tree | None) -> History:
        model, keeper = self.model, self.checkpoints
        pairs = [self.data] if self.validation_data is None else [self.data, self.validation_data]
        data, *validation = to_device(model, *pairs, batch_size=self.batch_size)
        steps = make_step_runner(model, data, self.batch_size, self.augment, self.check_numerics)
        model.numerics = steps.watch
        model.stop_training = False
        for callback in self.callbacks:
            callback.on_fit_begin(model)
        if found is not None:
            restore(self, steps, found)
        elif keeper is not None:
            keeper.first(self, steps)
        interrupting = nullcontext() if keeper is None else DeferredInterrupt()
        with closing(steps), interrupting as interruption, make_progress(self.verbose) as bar:
            self._interruption = interruption
            while self.epoch < math.ceil(self.epochs) and (self.step or not model.stop_training):
                parts = self._parts()
                bar.begin_epoch(self.epoch, self.epochs, len(parts), self.step, self._seconds_of_epochs())
                logs = self._train(steps, parts, bar)
                steps.watch.check()
                for callback in self.callbacks:
                    callback.on_epoch_trained(model, self.epoch)
                logs |= self._validate(*validation)
                self.history.add(logs)
                bar.end_epoch(logs)
                for callback in self.callbacks:
                    callback.on_epoch_end(model, self.epoch, dict(logs))
                self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
                if keeper is not None:
                    keeper.epoch_over(self, steps, logs)
                    self._obey(keeper, steps)
        for callback in self.callbacks:
            callback.on_fit_end(model)
        return self.history

    def _train(self, steps: StepRunner, parts: Sequence[slice], progress: Silent) -> dict[str, float]:
        """Visit every sample of these batches once, in the order that seed and epoch give, or those that are left."""
        model, keeper, count = self.model, self.checkpoints, len(self.data[0])
        if not self.step:
            for callback in self.callbacks:
                callback.on_epoch_begin(model, self.epoch)
        started = time.perf_counter() - self.seconds
        model.rest(self.epoch)
        if not self.step:
            steps.begin_epoch(self.order())
        for part in parts[self.step :]:
            if self.step and model.stop_training:
                break
            rates = model.optimizer.learning_rates_at(self.epoch + part.start / count, self.epochs)
            model.bind()
            steps.run(part, rates)
            self.learning_rate = rates[0]
            model.progress = min(self.epoch + part.stop / count, self.epochs), self.epochs
            progress.step(steps.totals)
            for callback in self.callbacks:
                callback.on_step_end(model, self.step)
            self.step += 1
            if keeper is not None:
                self.seconds = time.perf_counter() - started
                keeper.step_made(self, steps)
                self._obey(keeper, steps)
        model.epochs_trained += 1
        self.samples.append(steps.totals.samples)
        logs = steps.totals.read()
        so_far = {f"{key}_so_far": self._mean_with_earlier(key, value) for key, value in logs.items()}
        seconds = time.perf_counter() - started
        times = {"seconds": seconds, "step_seconds": seconds / self.step}
        return logs | so_far | {"learning_rate": self.learning_rate} | times

    def _obey(self, keeper: Checkpoints, steps: StepRunner) -> None:
        """End the training here if that was asked for, by Ctrl-C or SIGTERM, with a checkpoint of now."""
        if self._interruption is not None and self._interruption.requested:
            keeper.save(self, steps, interrupted=True)
            raise self._interruption.error()

    def _seconds_of_epochs(self) -> list[float]:
        """Return what each epoch so far has taken, with its validation."""
        history = self.history.history
        validations = history.get("val_seconds") or [0.0] * self.history.epochs
        return [steps + after for steps, after in zip(history.get("seconds", []), validations, strict=True)]

    def _mean_with_earlier(self, key: str, value: float) -> float:
        """Return the mean over all samples since the training began; an epoch that was cut has fewer of them."""
        values = [*self.history.history.get(key, []), value]
        visited = sum(count * value for count, value in zip(self.samples, values, strict=True))
        return visited / sum(self.samples)

    def _validate(self, validation: Pair | None = None) -> dict[str, float]:
        if validation is None:
            return {}
        started = time.perf_counter()
        scores = evaluate(self.model, validation, EVALUATION_BATCH)
        named = {f"val_{key}": value for key, value in scores.items()}
        return named | {"val_seconds": time.perf_counter() - started}
