"""A drop-in API of MNIST-CNN, a NumPy LeNet project: its scripts run with only their imports changed.

    from gpucnn.compat.mnist_cnn import *

They are thin wrappers: `Model.network` is the `gpucnn.Model` that `finalize` builds. Paths may have the
separators of Windows, and a data file may also be gzipped or be named `train-images.idx3-ubyte`.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import gpucnn
from gpucnn.backends import Array, Backend
from gpucnn.callbacks import Callback
from gpucnn.core import checks
from gpucnn.core.files import user_path, write_atomic
from gpucnn.core.text import duration
from gpucnn.data.batches import batches, check_batch_size
from gpucnn.data.idx import check_content, find_idx, read_idx
from gpucnn.errors import ConfigurationError, DataError, ShapeError
from gpucnn.layers import AveragePool2D as AveragePooling
from gpucnn.layers import Conv2D, Dense, Flatten, Layer
from gpucnn.layers import ReLU as ActivationReLU
from gpucnn.layers import Sigmoid as ActivationSigmoid
from gpucnn.layers import Softmax as ActivationSoftmax
from gpucnn.layers.base import Shape
from gpucnn.losses import CategoricalCrossEntropy as LossCategoricalCrossEntropy
from gpucnn.losses import Loss
from gpucnn.metrics import Accuracy as AccuracyCategorical
from gpucnn.optimizers import SGD, Optimizer
from gpucnn.optimizers.base import LearningRates

__all__ = [
    "AccuracyCategorical",
    "ActivationReLU",
    "ActivationSigmoid",
    "ActivationSoftmax",
    "AveragePooling",
    "ConvolutionLayer",
    "DenseLayer",
    "Flatten",
    "LossCategoricalCrossEntropy",
    "Model",
    "OptimizerSGD",
    "StatisticsTracker",
    "formatData",
    "load_mnist_images",
    "load_mnist_labels",
]

# --- data -------------------------------------------------------------------------------------


def load_mnist_images(path: str | os.PathLike[str]) -> Any:
    """Read an IDX file of images: (N, H, W) uint8.

    Raises:
        DataError: the file is missing or damaged, or holds no images.
    """
    return _load(path, rank=3, what="images")


def load_mnist_labels(path: str | os.PathLike[str]) -> Any:
    """Read an IDX file of labels: (N,) int64.

    Raises:
        DataError: the file is missing or damaged, or holds no labels.
    """
    return _load(path, rank=1, what="labels").astype("int64")


def formatData(train_images: Any, test_images: Any, train_labels: Any, test_labels: Any) -> tuple[Any, Any, Any, Any]:
    """Return images with a channel axis, (N, H, W, 1) float32 from 0 to 1, and the labels unchanged."""
    for what, images in (("train_images", train_images), ("test_images", test_images)):
        shape = getattr(images, "shape", None)
        if shape is None or len(shape) != 3:
            raise ShapeError(
                f"formatData: {what} has shape {shape}; expected images (N, H, W): pass what load_mnist_images "
                "returns, in the order (train_images, test_images, train_labels, test_labels)"
            )
    x_train, x_test = (images[..., None].astype("float32") / 255 for images in (train_images, test_images))
    return x_train, x_test, train_labels, test_labels


def _load(path: str | os.PathLike[str], rank: int, what: str) -> Any:
    given = _portable(path)
    stem = given.name.removesuffix(".gz").replace(".idx", "-idx")
    found = given if given.is_file() else find_idx(given.parent, stem) or given
    array = read_idx(found)
    check_content(array, found, rank, what, f": pass the {what} file to load_mnist_{what}")
    return array


def _portable(path: str | os.PathLike[str]) -> Path:
    """Return a path, which may have the separators of Windows."""
    given = user_path(path)
    return given if given.exists() else Path(str(given).replace("\\", "/"))


# --- layers and optimizer ---------------------------------------------------------------------


class ConvolutionLayer:
    """A `Conv2D` with `depth` filters and a declared input shape (H, W, C)."""

    def __init__(
        self,
        depth: int,
        kernel_size: int | tuple[int, int],
        padding: Any = "valid",
        input_size: tuple[int, int, int] | None = None,
    ) -> None:
        self.layer = Conv2D(depth, kernel_size, padding=padding)
        self.told = None if input_size is None else tuple(input_size)

    def call(self, input_shape: Shape | None) -> str:
        """Return the call that tells an input shape, as one would write it."""
        return f"ConvolutionLayer(depth={self.layer.filters}, …, input_size={input_shape})"


class DenseLayer:
    """A `Dense` with `outputs` units and a declared number of inputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.layer = Dense(outputs)
        self.told = (inputs,)

    def call(self, input_shape: Shape | None) -> str:
        """Return the call that tells an input shape, as one would write it."""
        return f"DenseLayer({', '.join(map(str, input_shape or ()))}, {self.layer.units})"


@dataclass
class OptimizerSGD:
    """Gradient descent with the learning rate learning_rate / (1 + decay·t) in step t = 0, 1, …."""

    learning_rate: float = 1.0
    decay: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        self.decay = checks.number(self.decay, "OptimizerSGD: decay", minimum=0)
        self.new()  # checks the other arguments

    def new(self) -> SGD:
        """Return the optimizer, with the initial learning rate."""
        return SGD(self.learning_rate, momentum=self.momentum)

    def rate(self, steps: int) -> float:
        """Return the rate after a number of steps."""
        return self.learning_rate / (1.0 + self.decay * steps)


# --- statistics -------------------------------------------------------------------------------

# of a run, in the order of the text
TIMES = ("step_seconds", "epoch_seconds", "training_seconds", "validation_seconds", "total_seconds")


class StatisticsTracker:
    """Times and accuracies of a network's runs, in a JSON file with one entry per run.

    The averages over all runs of the file are written into a .txt next to it.

    Raises
        DataError  the file has other content, which is not overwritten, or cannot be written
    """

    def __init__(self, name: str, json_path: str | os.PathLike[str]) -> None:
        self.name, self.path = name, _portable(json_path)
        self.run: dict[str, Any] = {}
        self.runs()  # fail before training, not after it
        if not self.path.parent.is_dir():
            raise DataError(f"{self.path}: there is no folder {self.path.parent}; make it, or name another file")

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs of the file, the oldest first; none where there is no file yet."""
        if not self.path.exists():
            return []
        try:
            runs = list(json.loads(self.path.read_text(encoding="utf-8"))["runs"])
            for run in runs:
                _averages_of([run])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{self.path}: holds no statistics that can be read ({type(error).__name__}: {error}); expected the "
                "JSON file of a StatisticsTracker. It is left as it is: fix it, move it away, or name another file"
            ) from error
        return runs

    def add_training(self, logs: Sequence[dict[str, float]], steps: int) -> None:
        """Begin a run with the logs of each epoch; `steps` is the total number of steps."""
        seconds = [log["seconds"] for log in logs]
        self.run = {
            "started": datetime.now().isoformat(),
            "steps": steps,
            "step_seconds": sum(seconds) / steps,
            "epoch_seconds": seconds,
            "training_seconds": sum(seconds),
            "total_seconds": sum(seconds),
            "epoch_accuracies": [log["accuracy"] for log in logs],
            "epoch_losses": [log["loss"] for log in logs],
        }
        self._write()

    def add_validation(self, scores: dict[str, float], seconds: float) -> None:
        """Add a validation to the run, if there is one."""
        if not self.run:
            return
        self.run |= {
            "validation_seconds": seconds,
            "total_seconds": self.run["training_seconds"] + seconds,
            "validation_accuracy": scores["accuracy"],
            "validation_loss": scores["loss"],
        }
        self._write()

    def _write(self) -> None:
        runs = [run for run in self.runs() if run.get("started") != self.run["started"]] + [self.run]
        content = json.dumps({"name": self.name, "runs": runs}, indent=1) + "\n"
        heading = f"{self.name}: averages over {len(runs)} run{'s' * (len(runs) != 1)}\n\n"
        try:
            write_atomic(self.path, content.encode())
            write_atomic(self.path.with_suffix(".txt"), (heading + _averages_of(runs)).encode())
        except OSError as error:
            raise DataError(
                f"{self.path}: the statistics of this run cannot be written ({error.strerror or error}); name a file "
                "in a folder that may be written, on a disk that is not full"
            ) from error


def _averages_of(runs: list[dict[str, Any]]) -> str:
    """Return averages over runs, one per line; a KeyError or TypeError where one is not a run."""
    rows = [(key.removesuffix("_seconds"), duration(_mean(runs, key))) for key in TIMES if any(key in r for r in runs)]
    for epoch in range(max(len(run["epoch_accuracies"]) for run in runs)):
        accuracies = [run["epoch_accuracies"][epoch] for run in runs if epoch < len(run["epoch_accuracies"])]
        rows.append((f"accuracy of epoch {epoch + 1}", f"{100 * sum(accuracies) / len(accuracies):.2f} %"))
    if any("validation_accuracy" in run for run in runs):
        rows.append(("validation accuracy", f"{100 * _mean(runs, 'validation_accuracy'):.2f} %"))
    return "".join(f"{what:<22}{text}\n" for what, text in rows)


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a number, or of all numbers of a list, over the runs that have it."""
    values = [run[key] for run in runs if key in run]
    flat = [number for value in values for number in (value if isinstance(value, list) else [value])]
    return float(sum(flat) / len(flat))


# --- the model --------------------------------------------------------------------------------


class Model:
    """A network that is built with `add`, `set` and `finalize`, then trained and validated.

    Arguments
        stats          a `StatisticsTracker`, or None to keep no statistics
        seed, backend  as for the `gpucnn.Model` that `network` is after `finalize`
    """

    def __init__(
        self, stats: StatisticsTracker | None = None, *, seed: int = 0, backend: str | Backend = "auto"
    ) -> None:
        if stats is not None and not isinstance(stats, StatisticsTracker):
            raise ConfigurationError(f"Model: stats must be a StatisticsTracker or None, not {stats!r}")
        self.stats, self.seed, self.backend = stats, seed, backend
        self.items: list[Layer | ConvolutionLayer | DenseLayer] = []
        self.network: _Network | None = None
        self._training: tuple[Loss, OptimizerSGD | Optimizer, AccuracyCategorical] | None = None
        self._final = False

    def add(self, layer: Layer | ConvolutionLayer | DenseLayer) -> None:
        """Append a layer."""
        if not isinstance(layer, Layer | ConvolutionLayer | DenseLayer):
            hint = f"; did you mean {layer.__name__}()?" if isinstance(layer, type) else ""
            raise ConfigurationError(f"add: {layer!r} is not a layer{hint}")
        if self._final:
            raise ConfigurationError("add: the model is finalized already; add every layer before finalize()")
        self.items.append(layer)

    def set(self, *, loss: Loss, optimizer: OptimizerSGD | Optimizer, accuracy: AccuracyCategorical) -> None:
        """Set the loss, the optimizer and the metric."""
        if not isinstance(accuracy, AccuracyCategorical):
            raise ConfigurationError(f"set: accuracy must be AccuracyCategorical(), not {accuracy!r}")
        self._training = loss, optimizer, accuracy

    def finalize(self) -> None:
        """Build the network, or defer that to `train` if the first layer does not declare its input shape.

        Raises:
            ShapeError: a layer declares another input shape than it gets.
            ConfigurationError: there are no layers, or `set` has not been called.
        """
        if not self.items or self._training is None:
            missing = "add(…)" if not self.items else "set(loss=…, optimizer=…, accuracy=…)"
            raise ConfigurationError(f"finalize: the model is not complete; call {missing} before")
        self._final = True
        told = getattr(self.items[0], "told", None)
        if told is not None:
            self.network = self._built_for(told)

    def train(self, X: Any, y: Any, *, epochs: int = 1, print_every: int = 1, batch_size: int = 128) -> None:
        """Train, and print accuracy, loss and rate of every `print_every`-th step (0 for none) and of each epoch."""
        network, size = self._network_for(X), check_batch_size(batch_size)
        X, y = network.checked(X, y)
        settings = self._training[1] if self._training else None
        steps = math.ceil(len(X) / size)
        printer = _Printer(epochs, steps, _check_every(print_every))
        decay = [_Decay(settings)] if isinstance(settings, OptimizerSGD) and settings.decay else []
        network.fit(X, y, epochs=epochs, batch_size=size, callbacks=[*decay, printer], verbose=0)
        if self.stats is not None and printer.logs:
            self.stats.add_training(printer.logs, steps * len(printer.logs))

    def validate(self, *, validation_data: tuple[Any, Any], batch_size: int = 128, print_every: int = 0) -> None:
        """Evaluate data, and print accuracy and loss of every `print_every` steps (0 for none) and of all."""
        X, y = validation_data
        network, size, every = self._network_for(X), check_batch_size(batch_size), _check_every(print_every)
        X, y = network.checked(X, y)
        started, totals = perf_counter(), {"accuracy": 0.0, "loss": 0.0}
        for part in batches(len(X), size * every or len(X)):
            scores = network.evaluate(X[part], y[part], batch_size=size)
            totals = {key: total + scores[key] * (part.stop - part.start) for key, total in totals.items()}
            if every:
                print(f"validation step: {math.ceil(part.stop / size) - 1}, {_shown(scores)}", flush=True)
        means = {key: total / len(X) for key, total in totals.items()}
        seconds = perf_counter() - started
        print(f"validation, {_shown(means)}, {duration(seconds)}", flush=True)
        if self.stats is not None:
            self.stats.add_validation(means, seconds)

    def _network_for(self, X: Any) -> "_Network":
        """Return the network, built for these data if necessary."""
        if not self._final:
            raise ConfigurationError("the model is not finalized; call finalize() before training or validating it")
        if self.network is None:
            self.network = self._built_for(tuple(getattr(X, "shape", ()))[1:])
        return self.network

    def _built_for(self, input_shape: Shape) -> "_Network":
        assert self._training is not None
        loss, optimizer, accuracy = self._training
        layers = [item if isinstance(item, Layer) else item.layer for item in self.items]
        network = _Network(layers, input_shape, seed=self.seed, backend=self.backend)
        for place, item in enumerate(self.items):
            if not isinstance(item, Layer) and item.told not in (None, item.layer.input_shape):
                given, before = item.layer.input_shape, network.layers[place - 1].display_name if place else "the data"
                raise ShapeError(
                    f"{item.layer.display_name}: {item.call(item.told)} is told inputs of shape {item.told}, but "
                    f"{before} before it gives {given}; write {item.call(given)}"
                )
        chosen = optimizer.new() if isinstance(optimizer, OptimizerSGD) else optimizer
        network.compile(chosen, loss, [accuracy], jit=False)  # a step that is inspected cannot be replayed
        return network


class _Network(gpucnn.Model):
    """A model that keeps the results of its last step for printing: mean loss, outputs, labels and learning rate."""

    last: Any = None

    def train_step(self, x: Array, labels: Array, learning_rate: LearningRates, *options: Any) -> tuple[Array, Array]:
        """Take a training step, and keep its results."""
        loss, outputs = super().train_step(x, labels, learning_rate, *options)
        self.last = loss, outputs, labels, self.optimizer.broadcast_rates(learning_rate)[0]
        return loss, outputs

    def checked(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return checked data and labels as host arrays."""
        return self._check_data(x, y)


class _Decay(Callback):
    """Sets the learning rate of the next step; a second training run continues the decay."""

    def __init__(self, settings: OptimizerSGD) -> None:
        self.settings = settings

    def on_fit_begin(self, model: gpucnn.Model) -> None:
        model.optimizer.learning_rate = self.settings.rate(model.optimizer.steps)

    def on_step_end(self, model: gpucnn.Model, step: int) -> None:
        model.optimizer.learning_rate = self.settings.rate(model.optimizer.steps)


class _Printer(Callback):
    """Prints every n-th step and every epoch, and keeps the logs of epochs."""

    def __init__(self, epochs: int, steps: int, every: int) -> None:
        self.epochs, self.steps, self.every = epochs, steps, every
        self.logs: list[dict[str, float]] = []

    def on_epoch_begin(self, model: gpucnn.Model, epoch: int) -> None:
        print(f"epoch: {epoch + 1} of {self.epochs}", flush=True)

    def on_step_end(self, model: gpucnn.Model, step: int) -> None:
        if not self.every or (step % self.every and step != self.steps - 1):
            return
        assert isinstance(model, _Network)
        loss, outputs, labels, rate = model.last
        right = model.metrics[0].batch_sum(outputs, labels)
        read = model.backend.to_host
        numbers = {"accuracy": float(read(right)) / len(labels), "loss": float(read(loss))}
        print(f"step: {step}, {_shown(numbers)}, lr: {rate:g}", flush=True)

    def on_epoch_end(self, model: gpucnn.Model, epoch: int, logs: dict[str, float]) -> None:
        self.logs.append(logs)
        print(f"training, {_shown(logs)}, lr: {logs['learning_rate']:g}, {duration(logs['seconds'])}", flush=True)


def _shown(numbers: dict[str, float]) -> str:
    return f"acc: {numbers['accuracy']:.3f}, loss: {numbers['loss']:.3f}"


def _check_every(print_every: Any) -> int:
    return checks.integer(print_every, "print_every, in steps, or 0 for no lines,", minimum=0)
