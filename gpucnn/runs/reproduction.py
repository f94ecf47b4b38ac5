"""Published results, reproduced: those of four from-scratch projects, documents 000 to 004, and of deeper networks.

Where a document leaves a setting open, the network's docstring in `gpucnn/networks/` names the choice made here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpucnn import datasets, networks
from gpucnn.backends import Backend
from gpucnn.callbacks import Callback
from gpucnn.callbacks.defects import TrainingMonitor
from gpucnn.datasets import Dataset
from gpucnn.errors import ConfigurationError
from gpucnn.runs.statistics import TOTAL_TIME
from gpucnn.training.checkpoints import Checkpoints
from gpucnn.training.history import History

if TYPE_CHECKING:
    from gpucnn.model import Model

MILESTONES = (0.80, 0.90, 0.93, 0.94)  # test accuracies; long runs record when they reach them
PROBE = 500  # images on which a run is monitored
MAX_RESTARTS = 5  # of one run
SEED_STEP = 10_000  # added to the seed at each restart, so that no other run has it
MINUTE = 60.0
HOUR = 60 * MINUTE


@dataclass(frozen=True)
class Published:
    """A published result: the test accuracy, and training accuracies by epoch, as fractions."""

    source: str
    accuracy: float
    by_epoch: tuple[float, ...] = ()
    seconds: float | None = None  # in all
    runs: int | None = None


@dataclass(frozen=True)
class Reproduction:
    """A recipe to reproduce: the network's name, the published result, and the accuracy it must reach.

    A `long` one is validated on the test set after each epoch, as published, to record when it reached which accuracy;
    the reported result is that of the last epoch, whatever the others scored. `chunks` parts of the training set, of
    `chunk_size` images each, are trained on one after another, each for all of the recipe's epochs.
    """

    network: str
    required_accuracy: float
    published: Published | None = None
    chunks: int = 0
    chunk_size: int = 0
    long: bool = False

    def train(
        self,
        model: "Model",
        data: tuple[Any, Any],
        validation: tuple[Any, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        epochs: float | None = None,
        checkpoints: Checkpoints | None = None,
        verbose: bool | int | str = "auto",
    ) -> History:
        """Train a model as published; return the history of all epochs, over all chunks.

        With checkpoints, for recipes without chunks, an interrupted run is resumed.
        """
        x, y = data
        size = self.chunk_size or len(x)
        together = History()
        for chunk in range(self.chunks or 1):
            part = slice(chunk * size, (chunk + 1) * size)
            history = model.fit(
                x[part],
                y[part],
                epochs=epochs,
                validation_data=validation,
                callbacks=callbacks,
                checkpoints=checkpoints,
                resume=checkpoints is not None,
                check_numerics=False,  # the run's record says whether and when it diverged
                verbose=verbose,
            )
            for place in range(history.epochs):
                together.add({key: values[place] for key, values in history.history.items()})
            if model.stop_training:
                break
        return together


_TWO = "document 002, MNIST-CNN"
_THREE = "document 003, CNN in NumPy"
_HE = "He and others, 2016"

REPRODUCTIONS = {
    entry.network: entry
    for entry in (
        Reproduction("sigmoid-3x3", 0.91, Published("documents 000, 001", 0.8504, (0.575, 0.8286, 0.8736))),
        Reproduction("feedforward", 0.97, Published(_TWO, 0.97, (0.88, 0.95, 0.97), 2.13, 48)),
        Reproduction("single-conv", 0.98, Published(_TWO, 0.97, (0.86, 0.95, 0.97), 1.9 * MINUTE, 22)),
        Reproduction("double-conv", 0.98, Published(_TWO, 0.94, (0.70, 0.85, 0.94), 35.4 * MINUTE, 5)),
        Reproduction("single-conv-pool", 0.975, Published(_TWO, 0.96, (0.85, 0.94, 0.96), 31 * MINUTE, 3)),
        Reproduction("lenet-002", 0.975, Published(_TWO, 0.84, (0.49, 0.72, 0.84), 2.1 * HOUR, 9)),
        Reproduction("lenet", 0.99),
        Reproduction("network-1", 0.98, Published(_THREE, 0.96)),
        Reproduction("network-2", 0.99, Published(_THREE, 0.978)),
        Reproduction("network-3", 0.70, Published(_THREE, 0.60)),
        Reproduction("convnet-1000s", 0.966, Published("document 004, ConvNet", 0.966), chunks=5, chunk_size=1000),
        Reproduction("network-4", 0.90, long=True),
        Reproduction("resnet20", 0.86, Published(_HE, 0.9125), long=True),
        Reproduction("resnet32", 0.86, Published(_HE, 0.9249), long=True),
        Reproduction("resnet56", 0.86, Published(_HE, 0.9303), long=True),
        Reproduction("resnet9", 0.94, Published("Page, 2018, on a V100", 0.9408, seconds=79.0, runs=50), long=True),
        Reproduction("airbench94", 0.937, Published("Jordan, 2024, on an A100", 0.9401, seconds=3.83), long=True),
    )
}


def by_name(name: str) -> Reproduction:
    """Return a recipe.

    Raises:
        ConfigurationError: there is none of that name.
    """
    plain = name.lower().replace("_", "-")
    if plain not in REPRODUCTIONS:
        raise ConfigurationError(f"unknown recipe {name!r}; choose one of {', '.join(REPRODUCTIONS)}")
    return REPRODUCTIONS[plain]


def load_dataset(name: str) -> Dataset:
    """Return the data set of a recipe."""
    return {"mnist": datasets.mnist, "cifar10": datasets.cifar10}[networks.by_name(name).recipe.data]()


def run(
    name: str,
    seed: int,
    data: Dataset,
    *,
    backend: str | Backend = "auto",
    epochs: float | None = None,
    dtype: str = "float32",
    on_defect: str = "flag",
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
    verbose: bool | int | str = "auto",
) -> tuple["Model", History, dict[str, Any]]:
    """Train a recipe once, monitored for defects; return the model, its history, and a record as plain data.

    The record holds `numbers` (accuracy and loss by epoch, test scores, times), the `defect` or None, and the monitor's
    observations and histograms. With checkpoints an interrupted run is resumed; its total time counts from then.
    """
    recipe = by_name(name)
    (x_train, y_train), (x_test, y_test) = data
    model = networks.by_name(recipe.network)(seed, backend, dtype=dtype)
    model.class_names = data.class_names
    monitor = TrainingMonitor((x_train[:PROBE], y_train[:PROBE]), on_defect=on_defect)
    started = time.perf_counter()
    history = recipe.train(
        model,
        (x_train, y_train),
        validation=(x_test, y_test) if recipe.long else None,
        callbacks=[monitor, *callbacks],
        epochs=epochs,
        checkpoints=checkpoints,
        verbose=verbose,
    )
    trained = time.perf_counter()
    scores = model.evaluate(x_test, y_test)
    tested = time.perf_counter()
    numbers: dict[str, Any] = {f"training {key}": history[key] for key in ("accuracy", "cumulative_accuracy", "loss")}
    numbers |= {f"test {key}": value for key, value in scores.items()}
    numbers |= {
        "step time (s)": sum(history["seconds_per_step"]) / history.epochs,
        "epoch time (s)": sum(history["seconds"]) / history.epochs,
        "training time (s)": trained - started,
        "test time (s)": tested - trained,
        TOTAL_TIME: tested - started,
    }
    if recipe.long:
        several = model.evaluate(x_test, y_test, tta="flip+shift")
        numbers["test accuracy (TTA)"] = several["accuracy"]
        numbers["test accuracy by epoch"] = history["val_accuracy"]
        passed = {level: history.seconds_to(level) for level in MILESTONES}
        numbers |= {f"time to {level:.0%} (s)": seconds for level, seconds in passed.items() if seconds is not None}
    return model, history, {"numbers": numbers, **monitor.report()}


def run_with_restarts(name: str, seed: int, data: Dataset, **options: Any) -> tuple["Model", History, dict[str, Any]]:
    """Train a recipe as `run` does; after a defect, restart with another seed, up to 5 times.

    The record's `restarts` are the defects that were found.
    """
    restarts: list[Any] = []
    while True:
        model, history, record = run(name, seed + SEED_STEP * len(restarts), data, **options, on_defect="stop")
        if record["defect"] is None or len(restarts) == MAX_RESTARTS:
            return model, history, record | {"restarts": restarts}
        restarts.append(record["defect"])
