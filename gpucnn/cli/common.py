"""What several commands need: the console, data by its name, and runs on the disk."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.status import Status

from gpucnn.backends import auto_choice
from gpucnn.core.console import Part, PlainConsole, styled
from gpucnn.datasets import Dataset
from gpucnn.errors import CheckpointWarning, DataError
from gpucnn.model import Model
from gpucnn.runs.folder import (
    CONFIG,
    DATA_NAMES,
    HISTORY,
    MODEL,
    RUNS,
    dataset_of,
    dataset_title,
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
    "dataset_of",
    "dataset_title",
    "describe_backend",
    "errors",
    "find_model",
    "load_data",
    "load_data_or_digits",
    "open_model",
    "run_config",
    "say",
    "say_error",
    "warnings_shown",
    "working",
]

console = PlainConsole()
errors = PlainConsole(stderr=True)


def say(*parts: Part) -> None:
    """Print a line of parts, each plain or with a style: what stands in them is shown, and never obeyed."""
    console.print(styled(*parts), soft_wrap=True)


def working(what: str) -> Status:
    """Show what goes on while it does, on a terminal."""
    return console.status(styled(what), spinner="line")  # of characters that every terminal has


def say_error(error: Exception | str, kind: str = "") -> None:
    """Print what went wrong on the standard error, behind the error's class."""
    errors.print(styled((f"{kind or type(error).__name__}: ", "bold red")), end="")
    errors.print(str(error), soft_wrap=True)


def load_data_or_digits(name: str, folder: Path | None) -> Dataset:
    """Return a data set, or synthetic digits in place of an MNIST that cannot be had, and say so plainly."""
    try:
        return load_data(name, folder)
    except DataError as error:
        if name != "mnist" or folder is not None:
            raise
        say(("MNIST cannot be had here, so this run uses gpucnn's own synthetic digits.", "bold yellow"))
        console.print(str(error), style="dim", soft_wrap=True)
        return load_data("synthetic", None)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show what a training warns of as a sentence, each time, without the line of code that warned."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, CheckpointWarning):
                errors.print(str(message), style="yellow", soft_wrap=True)
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
