"""What several commands need: the console, data by its name, and runs on the disk."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from gpucnn.backends import auto_choice
from gpucnn.datasets import Dataset
from gpucnn.errors import CheckpointWarning, DataError
from gpucnn.model import Model
from gpucnn.run_folder import (
    CONFIG,
    DATA_NAMES,
    HISTORY,
    MODEL,
    RUNS,
    data_of,
    describe,
    find_model,
    load_data,
    open_model,
    run_config,
)

__all__ = [
    "CONFIG",
    "DATA_NAMES",
    "HISTORY",
    "MODEL",
    "RUNS",
    "console",
    "data_of",
    "describe",
    "describe_backend",
    "errors",
    "find_model",
    "load_data",
    "load_data_or_digits",
    "open_model",
    "run_config",
    "warnings_shown",
]

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


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


def describe_backend(model: Model, asked: str) -> str:
    """Return the backend in words, with the reason where it was chosen automatically."""
    words = model.backend.describe()
    if asked == "auto" and model.backend.name == "numpy":
        choice, reason = auto_choice()
        return f"{words}; {reason}" if choice == "numpy" else words
    return words
