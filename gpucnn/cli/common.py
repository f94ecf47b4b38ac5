"""What commands share: the console, models, data sets and JSON files."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.status import Status

from gpucnn.backends import auto_choice
from gpucnn.core.console import Part, PlainConsole, styled
from gpucnn.datasets import Dataset
from gpucnn.errors import CheckpointWarning, ConfigurationError, DataError
from gpucnn.model import Model
from gpucnn.networks import by_name
from gpucnn.runs.folder import load_data, open_model

console = PlainConsole()
errors = PlainConsole(stderr=True)


def say(*parts: Part) -> None:
    """Print a line of parts, each plain or with a style; markup in them is shown as text."""
    console.print(styled(*parts), soft_wrap=True)


def working(what: str) -> Status:
    """Show a status line during a block, on a terminal."""
    return console.status(styled(what), spinner="line")  # of characters that every terminal has


def say_error(error: Exception | str, kind: str = "") -> None:
    """Print an error with its class on standard error."""
    errors.print(styled((f"{kind or type(error).__name__}: ", "bold red")), end="")
    errors.print(str(error), soft_wrap=True)


def write_json(path: Path, results: Any) -> None:
    """Write results to a JSON file, and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    say(f"results are in {path}")


def network_or_model(network: str | None, model: Path | None, backend: str, seed: int = 0) -> Model:
    """Return a named network with fresh weights, lenet by default, or a saved model.

    Raises:
        ConfigurationError: both are given.
    """
    if network is not None and model is not None:
        raise ConfigurationError("--network and --model both select a network; pass one of them")
    return open_model(model, backend)[0] if model is not None else by_name(network or "lenet")(seed, backend)


def load_data_or_digits(name: str, folder: Path | None) -> Dataset:
    """Return a data set, or synthetic digits, with a notice, if MNIST is not available."""
    try:
        return load_data(name, folder)
    except DataError as error:
        if name != "mnist" or folder is not None:
            raise
        say(("MNIST is not available, so this run uses gpucnn's synthetic digits instead.", "bold yellow"))
        console.print(str(error), style="dim", soft_wrap=True)
        return load_data("synthetic", None)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Print the warnings of a training run as plain sentences, without the line of code."""
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


def describe_backend(model: Model, requested: str) -> str:
    """Return the backend's description, with the reason if it was chosen automatically."""
    text = model.backend.describe()
    if requested == "auto" and model.backend.name == "numpy":
        choice, reason = auto_choice()
        return f"{text}; {reason}" if choice == "numpy" else text
    return text
