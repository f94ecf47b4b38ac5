"""`Trainer`: the loop over epochs and batches, with validation, callbacks and checkpoints.

Nothing is read back from the device inside an epoch, except by the progress bar at its refresh rate: losses and counts
add up on the device, and the epoch's sum is read when it is over.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from gpucnn.engine.evaluation import evaluate
from gpucnn.engine.memory import Pair, suggest_batch_size, to_device
from gpucnn.engine.signals import whole_step
from gpucnn.errors import NumericError
from gpucnn.saving.tree import Tree
from gpucnn.training.checkpoints import Checkpoints
from gpucnn.training.history import History
from gpucnn.training.interrupt import DeferredInterrupt
from gpucnn.training.progress import Progress, make_progress
from gpucnn.training.session import Training
from gpucnn.training.state import restore
from gpucnn.training.steps import StepRunner, make_step_runner

EVALUATION_BATCH = 256


@dataclass(eq=False)
class Trainer(Training):
    """Runs a `Training`: trains, validates, tells the callbacks, shows and saves."""

    verbose: bool | int | str = "auto"
    checkpoints: Checkpoints | None = None
    resume: bool | Path = False

    def fit(self) -> History:
        """Train, and return the numbers of every epoch."""
        if self.model.claim is not None:
            self.model.claim.steps = True
        with self._handle_errors(), self.model.backend.fixed_num_threads() if self.deterministic else nullcontext():
            if self.checkpoints is None:
                return self._fit_epochs(None)
            found = self.checkpoints.open(self, self.resume)
            try:
                return self._fit_epochs(found)
            finally:
                self.checkpoints.close()

    @contextmanager
    def _handle_errors(self) -> Iterator[None]:
        """Tell the callbacks of an error, before it is raised; free memory in any case."""
        try:
            yield
        except BaseException as error:
            self.fault = error if isinstance(error, NumericError) else None
            self.notify("on_exception")
            if isinstance(error, MemoryError):
                raise suggest_batch_size(self.model, self.data, self.batch_size, error) from error
            raise
        finally:
            with whole_step:
                self.model.freeze_finished_groups(None)
                self.model.free_memory()

    def _fit_epochs(self, found: Tree | None) -> History:
        """Train from the beginning, or from where a checkpoint was written."""
        model, checkpoints = self.model, self.checkpoints
        pairs = [self.data] if self.validation_data is None else [self.data, self.validation_data]
        data, *validation = to_device(model, *pairs, batch_size=self.batch_size)
        steps = make_step_runner(model, data, self.batch_size, self.augment, self.check_numerics)
        self.finite_check = steps.finite_check
        model.stop_training = False
        self.notify("on_fit_begin")
        if found is not None:
            restore(self, steps, found)
        elif checkpoints is not None:
            checkpoints.on_start(self, steps)
        interrupting = nullcontext() if checkpoints is None else DeferredInterrupt()
        with closing(steps), interrupting as self._interrupt, make_progress(self.verbose) as progress:
            while self.epoch < math.ceil(self.epochs) and (self.step or not model.stop_training):
                logs = self._fit_epoch(steps, progress, *validation)
                if checkpoints is not None:
                    checkpoints.on_epoch(self, steps, logs)
                    self._stop_if_interrupted(checkpoints, steps)
        self.notify("on_fit_end")
        return self.history

    def _fit_epoch(self, steps: StepRunner, progress: Progress, validation: Pair | None = None) -> dict[str, float]:
        """Train for one epoch, or what is left of it, and validate; return its numbers."""
        parts = self.batches_of_epoch()
        progress.begin_epoch(self.epoch, self.epochs, len(parts), self.step, self._seconds_of_epochs())
        logs = self._train_epoch(steps, parts, progress)
        steps.finite_check.raise_if_bad()
        self.notify("on_train_epoch_end", self.epoch)
        if validation is not None:
            started = time.perf_counter()
            scores = evaluate(self.model, validation, EVALUATION_BATCH)
            logs |= {f"val_{key}": value for key, value in scores.items()}
            logs["val_seconds"] = time.perf_counter() - started
        self.history.add(logs)
        progress.end_epoch(logs)
        for callback in self.callbacks:
            callback.on_epoch_end(self.model, self.epoch, dict(logs))
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        return logs

    def _train_epoch(self, steps: StepRunner, parts: Sequence[slice], progress: Progress) -> dict[str, float]:
        """Visit every sample of these batches once, in the order that seed and epoch give, or those that are left."""
        model, checkpoints, count = self.model, self.checkpoints, len(self.data[0])
        if not self.step:
            self.notify("on_epoch_begin", self.epoch)
        started = time.perf_counter() - self.seconds
        model.freeze_finished_groups(self.epoch)
        if not self.step:
            steps.begin_epoch(self.order())
        for part in parts[self.step :]:
            if self.step and model.stop_training:
                break
            rates = model.optimizer.learning_rates_at(self.epoch + part.start / count, self.epochs)
            model.bind()
            steps.run(part, rates)
            self.learning_rate = rates[0]
            self.progress = min(self.epoch + part.stop / count, self.epochs), self.epochs
            progress.step(steps.totals)
            for callback in self.callbacks:
                callback.on_step_end(model, self.step)
            self.step += 1
            if checkpoints is not None:
                self.seconds = time.perf_counter() - started
                checkpoints.on_step(self, steps)
                self._stop_if_interrupted(checkpoints, steps)
        model.epochs_trained += 1
        self.samples_per_epoch.append(steps.totals.samples)
        logs, seconds = steps.totals.read(), time.perf_counter() - started
        cumulative = {f"cumulative_{key}": self._mean_with_earlier(key, value) for key, value in logs.items()}
        times = {"seconds": seconds, "seconds_per_step": seconds / self.step}
        return logs | cumulative | {"learning_rate": self.learning_rate} | times

    def _stop_if_interrupted(self, checkpoints: Checkpoints, steps: StepRunner) -> None:
        """End the run here, with a checkpoint of now, if Ctrl-C or SIGTERM asked for it."""
        if self._interrupt is not None and self._interrupt.requested:
            checkpoints.save(self, steps, interrupted=True)
            raise self._interrupt.error()

    def _seconds_of_epochs(self) -> list[float]:
        """Return what each epoch so far has taken, with its validation."""
        history = self.history.history
        validations = history.get("val_seconds") or [0.0] * self.history.epochs
        return [steps + after for steps, after in zip(history.get("seconds", []), validations, strict=True)]

    def _mean_with_earlier(self, key: str, value: float) -> float:
        """Return the mean over all samples since the run began; an epoch that was cut short has fewer of them."""
        values = [*self.history.history.get(key, []), value]
        visited = sum(count * value for count, value in zip(self.samples_per_epoch, values, strict=True))
        return visited / sum(self.samples_per_epoch)
