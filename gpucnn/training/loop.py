"""The training loop: epochs, batches, steps, validation.

Nothing is read back from the device inside an epoch, except by the progress bar at its refresh rate: losses and counts
add up on the device, and the epoch's sum is read when it is over.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpucnn import rng
from gpucnn.callbacks import Callback
from gpucnn.data.augment import Augmentation
from gpucnn.data.batches import batches, steps_of
from gpucnn.training.history import History
from gpucnn.training.progress import Silent, make_progress
from gpucnn.training.steps import Steps, make_steps

if TYPE_CHECKING:
    from gpucnn.model import Model

EVALUATION_BATCH = 256

Pair = tuple[Any, Any]  # inputs and labels


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
    history: History = field(default_factory=History)
    samples: list[int] = field(default_factory=list)  # that each epoch has visited

    def run(self) -> History:
        """Train, and return what every epoch gave."""
        self.model.fitting = True
        try:
            return self._run()
        except BaseException:
            for callback in self.callbacks:
                callback.on_fit_interrupted(self.model)
            raise
        finally:
            self.model.fitting = False
            self.model.backend.release()

    def _run(self) -> History:
        model = self.model
        data = to_device(model, self.data)
        steps = make_steps(model, data, self.batch_size, self.augment)
        validation = None if self.validation_data is None else to_device(model, self.validation_data)
        model.stop_training = False
        for callback in self.callbacks:
            callback.on_fit_begin(model)
        with make_progress(self.verbose) as progress:
            for epoch in range(math.ceil(self.epochs)):
                parts = list(batches(len(data[0]), self.batch_size))
                parts = parts[: steps_of(epoch, self.epochs, len(parts))]
                progress.begin_epoch(epoch, self.epochs, len(parts))
                logs = self._train(steps, epoch, parts, progress)
                for callback in self.callbacks:
                    callback.on_epoch_trained(model, epoch)
                logs |= self._validate(validation)
                self.history.add(logs)
                progress.end_epoch(logs)
                for callback in self.callbacks:
                    callback.on_epoch_end(model, epoch, dict(logs))
                if model.stop_training:
                    break
        for callback in self.callbacks:
            callback.on_fit_end(model)
        return self.history

    def _train(self, steps: Steps, epoch: int, parts: Sequence[slice], progress: Silent) -> dict[str, float]:
        """Visit every sample of these batches once, in the order that seed and epoch give."""
        model, count = self.model, len(self.data[0])
        for callback in self.callbacks:
            callback.on_epoch_begin(model, epoch)
        started = time.perf_counter()
        order = rng.shuffled_order(model.seed, model.epochs_seen, count) if self.shuffle else None
        steps.begin_epoch(order)
        for step, part in enumerate(parts):
            rates = model.optimizer.rates_at(epoch + part.start / count, self.epochs)
            steps.make(part, rates)
            model.progress = min(epoch + part.stop / count, self.epochs), self.epochs
            progress.step(steps.totals)
            for callback in self.callbacks:
                callback.on_step_end(model, step)
            if model.stop_training:
                break
        model.epochs_seen += 1
        self.samples.append(steps.totals.samples)
        logs = steps.totals.read()
        so_far = {f"{key}_so_far": self._mean_with_earlier(key, value) for key, value in logs.items()}
        seconds = time.perf_counter() - started
        times = {"seconds": seconds, "step_seconds": seconds / (step + 1)}
        return logs | so_far | {"learning_rate": rates[0]} | times

    def _mean_with_earlier(self, key: str, value: float) -> float:
        """Return the mean over all samples since the training began; an epoch that was cut has fewer of them."""
        values = [*self.history.history.get(key, []), value]
        visited = sum(count * value for count, value in zip(self.samples, values, strict=True))
        return visited / sum(self.samples)

    def _validate(self, validation: Pair | None) -> dict[str, float]:
        if validation is None:
            return {}
        started = time.perf_counter()
        scores = evaluate(self.model, validation, EVALUATION_BATCH)
        named = {f"val_{key}": value for key, value in scores.items()}
        return named | {"val_seconds": time.perf_counter() - started}


def evaluate(model: "Model", on_device: Pair, batch_size: int) -> dict[str, float]:
    """Return the mean loss and metrics over data that is on the device."""
    x, y = on_device
    totals = model.new_totals()
    for part in batches(len(x), batch_size):
        loss, outputs = model.score(model.as_floats(x[part]), y[part])
        totals.add(loss, outputs, y[part])
    return totals.read()


def to_device(model: "Model", data: Pair) -> Pair:
    """Bring inputs and labels across as they are: uint8 images stay uint8. Inputs that are too many become a feed."""
    return model.backend.bring(data[0]), model.backend.from_host(data[1])
