"""What several commands need: the console, data by its name, and runs on the disk."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from gpucnn import datasets
from gpucnn.backends import auto_choice
from gpucnn.checkpoint import load
from gpucnn.datasets import Dataset
from gpucnn.errors import CheckpointError, CheckpointWarning, ConfigurationError, DataError
from gpucnn.model import Model

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

RUNS = Path("runs")
MODEL, HISTORY, CONFIG = "model.safetensors", "history.json", "config.json"
DATA_NAMES = "mnist, cifar10, synthetic, or images (with --data-dir)"


def load_data(name: str, folder: Path | None, image_size: tuple[int, int] | None = None) -> Dataset:
    """Return a data set by the word that commands take; images are brought to `image_size` (H, W)."""
    if name == "synthetic":
        return datasets.synthetic_digits()
    if name == "images":
        if folder is None:
            raise ConfigurationError("--data images needs --data-dir, a folder that holds a folder for each class")
        return datasets.image_folder(folder, size=image_size)
    if name not in ("mnist", "cifar10"):
        raise ConfigurationError(f"there is no data set {name!r}; there are {DATA_NAMES}")
    return datasets.mnist(folder) if name == "mnist" else datasets.cifar10(folder)


def load_data_or_digits(name: str, folder: Path | None) -> Dataset:
    """Return a data set, or synthetic digits in place of an MNIST that cannot be had, and say so plainly."""
    try:
        return load_data(name, folder)
    except DataError as error:
        if name != "mnist" or folder is not None:
            raise
        console.print("[bold yellow]MNIST cannot be had here, so this run uses gpucnn's own synthetic digits.[/]")
        console.print(str(error), style="dim", markup=False, soft_wrap=True)
        return load_data("synthetic", None)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show what a training warns of as a sentence, each time, without the line of code that warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, CheckpointWarning):
                errors.print(str(message), style="yellow", markup=False, soft_wrap=True)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


def describe(dataset: Dataset) -> str:
    """Return the data set's name as people write it."""
    known = {"mnist": "MNIST", "cifar10": "CIFAR-10", "synthetic_digits": "synthetic digits"}
    return known.get(dataset.name, dataset.name)


def describe_backend(model: Model, asked: str) -> str:
    """Return the backend in words, with the reason where it was chosen automatically."""
    words = model.backend.describe()
    if asked == "auto" and model.backend.name == "numpy":
        choice, reason = auto_choice()
        return f"{words}; {reason}" if choice == "numpy" else words
    return words


def find_model(where: Path | None) -> Path:
    """Return a model's file from its own path, a run's folder, or (None) the newest run below `runs`.

    Raises:
        CheckpointError: there is none.
    """
    if where is None:
        found = sorted(RUNS.glob(f"*/{MODEL}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise CheckpointError(
                f"there is no {MODEL} in any folder below {RUNS}/; train one with `gpucnn train`, or name a run"
            )
        return found[-1]
    path = where / MODEL if where.is_dir() else where
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such model; pass a run's folder or a .safetensors file")
    return path


def open_model(where: Path | None, backend: str) -> tuple[Model, Path]:
    """Load a model as `find_model` finds it, and return it with its path."""
    path = find_model(where)
    return load(path, backend=backend), path


def run_config(model_path: Path) -> dict[str, Any]:
    """Return the settings of the run that a model lies in; empty where it lies elsewhere.

    Raises:
        CheckpointError: there are some, but they cannot be read.
    """
    file = model_path.parent / CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as JSON ({error}); mend it, or move the model elsewhere"
        ) from error
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{file}: holds {settings!r:.40} where a run's settings were expected; mend it, or move the model elsewhere"
        )
    return settings


def data_of(network: Model, path: Path, data: str | None, data_dir: Path | None) -> Dataset:
    """Return the data set that was asked for, or else the one that a model was trained on.

    Raises:
        ConfigurationError: nobody says which.
    """
    if data is None:
        settings = run_config(path)
        data = settings.get("data") or (network.recipe.data if network.recipe else None)
        data = "synthetic" if data == "synthetic_digits" else data
        data_dir = data_dir or (Path(str(settings["data_dir"])) if settings.get("data_dir") else None)
    if data is None:
        raise ConfigurationError(f"{path} does not say what it was trained on; name it with --data ({DATA_NAMES})")
    return load_data(str(data), data_dir, image_size=(network.input_shape[0], network.input_shape[1]))
