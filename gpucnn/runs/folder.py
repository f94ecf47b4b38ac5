"""Run folders of `gpucnn train` and `gpucnn runs`: their files, and the data set of a run."""

import contextlib
import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucnn import datasets
from gpucnn.backends import Backend
from gpucnn.core.files import make_folder, read_json, user_path, write_into
from gpucnn.datasets import Dataset
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.model import Model, load
from gpucnn.training.checkpoints import BEST
from gpucnn.training.history import History, current_key

RUNS = Path("runs")
MODEL, HISTORY, CONFIG = "model.safetensors", "history.json", "config.json"
STATISTICS = "runs.json"
DATA_FOLDERS = "data-folders.json"  # that this user account has trained on
RENAMED = {"hold_out": "validation_split"}  # settings that older runs hold, and what they are called now
DATA_NAMES = "mnist, cifar10, synthetic, or images (with --data-dir)"
DATA_TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10"} | dict.fromkeys(
    ("synthetic", "synthetic_digits"), "synthetic digits"
)


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for the test images of a data set.

    Shapes
        images         (N, H, W, C) uint8
        labels         (N,) class indices
        probabilities  (N, K)
        names          K class names
    """

    dataset: Dataset
    images: Any
    labels: Any
    probabilities: Any
    names: list[str]


def find_model(where: str | Path | None) -> Path:
    """Return a model file from its own path, a run folder, or (None) the newest run in `runs`.

    Raises:
        CheckpointError: there is none, or the run is not finished.
    """
    if where is None:
        found = sorted(RUNS.glob(f"*/{MODEL}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise CheckpointError(
                f"no folder in {RUNS}/ contains a {MODEL}; train one with `gpucnn train`, or pass a run folder"
            )
        return found[-1]
    where = user_path(where)
    path = where / MODEL if os.path.isdir(where) else where
    if not os.path.isfile(path):
        if os.path.isdir(where) and is_unfinished(where):
            best = f"; its best model so far is {where / BEST}" if os.path.isfile(where / BEST) else ""
            raise CheckpointError(
                f"{where}: this run is not finished; continue it with `{resume_command(where)}`{best}"
            )
        raise CheckpointError(f"{path}: not found; pass a run folder or a .safetensors file")
    return path


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder contains an unfinished run of `gpucnn train`."""
    settings = run_config(folder / MODEL)
    return "network" in settings and "test" not in settings


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run."""
    return f"gpucnn train --run-dir {shlex.quote(str(folder))} --resume"


def beside(model_path: Path, name: str) -> Path:
    """Return the default path of a page or figure: next to the model, but not through a link.

    Raises:
        ConfigurationError: there is a symbolic link of that name, which may not be the user's own.
    """
    path = model_path.parent / name
    if path.is_symlink():
        raise ConfigurationError(
            f"{path}: is a symbolic link to {os.readlink(path)}; choose a file with --output, or remove the link"
        )
    return path


def open_model(where: str | Path | None, backend: str | Backend) -> tuple[Model, Path]:
    """Load a model as `find_model` finds it, and return it with its path."""
    path = find_model(where)
    return load(path, backend=backend), path


def run_config(model_path: Path) -> dict[str, Any]:
    """Return the settings of the run that a model file belongs to; empty if there is none.

    Raises:
        CheckpointError: they cannot be read.
    """
    file = model_path.parent / CONFIG
    try:
        settings = read_json(file)
    except FileNotFoundError:
        return {}
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{file}: contains {settings!r:.40} where a run's settings were expected; fix it, or move the model"
        )
    return {RENAMED.get(str(name), str(name)): value for name, value in settings.items()}


def validated_on_test(settings: dict[str, Any]) -> bool:
    """Return whether a run validated on the test set: by option, or because it is older than the option."""
    if "validate_on_test" in settings:
        return bool(settings["validate_on_test"])
    return settings.get("validation_split") is None and bool(settings.get("validate") or settings.get("early_stopping"))


def count_images(counts: dict[str, int]) -> str:
    """Return the sizes of the parts as text: 45,000 training, 5,000 validation, 10,000 test images."""
    return ", ".join(f"{number:,} {part}" for part, number in counts.items()) + " images"


def read_history(model_path: Path) -> History:
    """Return the history of the run that a model file belongs to.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = model_path.parent / HISTORY
    try:
        found = read_json(file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: not found; `gpucnn train` writes a history to its run folder, and so does fit(…).save(file)"
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(v, list) and all(isinstance(number, int | float) for number in v) for v in found.values()
    ):
        raise CheckpointError(f"{file}: is not a history; expected a list of numbers, one per epoch, for each name")
    return History({current_key(key): values for key, values in found.items()})


def remember_data(folder: Path) -> None:
    """Remember for this user account that it trains on the data in a folder, so that runs may refer to it."""
    held = _remembered()
    if (place := os.path.realpath(folder)) not in held:
        with contextlib.suppress(OSError):  # then --data-dir must be passed again
            make_folder(_state_folder())
            content = json.dumps([*(one for one in held if os.path.isdir(one)), place], indent=1) + "\n"
            write_into(_state_folder(), DATA_FOLDERS, content.encode(errors="surrogateescape"))


def _remembered() -> list[str]:
    try:
        held = read_json(_state_folder() / DATA_FOLDERS)
    except (OSError, CheckpointError):
        return []
    return [str(place) for place in held] if isinstance(held, list) else []


def _state_folder() -> Path:
    """Return the folder where programs of this user account keep their state."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpucnn"
    chosen = os.environ.get("XDG_STATE_HOME", "")
    return Path(chosen if os.path.isabs(chosen) else os.path.expanduser("~/.local/state")) / "gpucnn"


def _recorded_folder(path: Path, settings: dict[str, Any]) -> Path | None:
    """Return the data folder in a run's settings, if this user account has trained on it.

    Raises:
        ConfigurationError: it has not; a downloaded run could name any private folder.
    """
    if not settings.get("data_dir"):
        return None
    recorded = Path(str(settings["data_dir"]))
    if os.path.realpath(recorded) not in _remembered():
        raise ConfigurationError(
            f"{path.parent}: its settings name the data in {recorded}, which this account has not trained on, so they "
            f"are not read by default; to read them, pass --data-dir {shlex.quote(str(recorded))}"
        )
    return recorded


def load_data(name: str, folder: Path | None, image_size: tuple[int, int] | None = None) -> Dataset:
    """Return a data set by the name that commands take; images are resized to `image_size` (H, W)."""
    if name == "synthetic":
        return datasets.synthetic_digits()
    if name == "images":
        if folder is None:
            raise ConfigurationError("--data images needs --data-dir, a folder with a subfolder for each class")
        return datasets.image_folder(folder, size=image_size)
    if name not in ("mnist", "cifar10"):
        raise ConfigurationError(f"unknown data set {name!r}; choose one of {DATA_NAMES}")
    return datasets.mnist(folder) if name == "mnist" else datasets.cifar10(folder)


def dataset_of(network: Model, path: Path, data: str | None, data_dir: str | Path | None) -> Dataset:
    """Return the requested data set, or else the one that a model was trained on.

    Raises:
        ConfigurationError: it is unknown, or in a folder that this account has not trained on.
    """
    data_dir = None if data_dir is None else user_path(data_dir)
    if data is None:
        settings = run_config(path)
        data = settings.get("data") or (network.recipe.data if network.recipe else None)
        data = "synthetic" if data == "synthetic_digits" else data
        data_dir = data_dir or _recorded_folder(path, settings)
    if data is None:
        raise ConfigurationError(f"{path} does not record its training data; choose with --data ({DATA_NAMES})")
    return load_data(str(data), data_dir, image_size=(network.input_shape[0], network.input_shape[1]))


def dataset_title(dataset: Dataset) -> str:
    """Return the data set's name as it is usually written."""
    return DATA_TITLES.get(dataset.name, dataset.name)


def check_takes_images(network: Model, path: Path) -> None:
    """Reject a model whose inputs are not images.

    Raises:
        ConfigurationError: names the shape.
    """
    if len(network.input_shape) != 3 or network.input_shape[2] not in (1, 3):
        raise ConfigurationError(f"{path}: takes inputs of shape {network.input_shape}, not greyscale or colour images")


def predict_test_set(network: Model, path: Path, data: str | None, data_dir: str | Path | None) -> Predictions:
    """Return a model's predictions for the requested test set, or that of its training data.

    Raises:
        ConfigurationError: the model does not fit the data, or the data set is unknown.
        DataError: the data are not available.
    """
    check_takes_images(network, path)
    dataset = dataset_of(network, path, data, data_dir)
    _, (images, labels) = dataset
    probabilities = network.predict(images)
    if probabilities.ndim != 2 or labels.max() >= probabilities.shape[1]:
        raise ConfigurationError(
            f"{path}: has outputs of shape {network.output_shape}, but the test set of {dataset.name} has "
            f"{len(dataset.class_names)} classes; choose its training data with --data"
        )
    K = probabilities.shape[1]
    named = next((names for names in (network.class_names, dataset.class_names) if names and len(names) == K), None)
    return Predictions(dataset, images, labels, probabilities, named or [str(k) for k in range(K)])
