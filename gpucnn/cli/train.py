"""`gpucnn train`: train a named network and leave a run folder."""

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import numpy  # noqa: TID251 (its version goes into the run's settings; no array is made)
import typer
from rich.markup import escape

from gpucnn import __version__, networks
from gpucnn.cli.common import (
    CONFIG,
    DATA_NAMES,
    HISTORY,
    MODEL,
    RUNS,
    console,
    describe,
    describe_backend,
    load_data,
    load_data_or_digits,
)
from gpucnn.data.batches import check_epochs
from gpucnn.datasets import Dataset
from gpucnn.errors import ConfigurationError
from gpucnn.files import write_whole
from gpucnn.layers import Normalization
from gpucnn.model import Model
from gpucnn.reproduction import PROBE
from gpucnn.schedules import Schedule
from gpucnn.training.defects import DefectWatch
from gpucnn.training.history import History
from gpucnn.training.snapshots import Snapshots


def train(
    network: Annotated[str, typer.Option(help=f"One of {', '.join(networks.NETWORKS)}.")] = "lenet",
    data: Annotated[
        str | None, typer.Option(help=f"{DATA_NAMES}. Without it: what the network's recipe names.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="The folder that holds the data.")] = None,
    epochs: Annotated[float | None, typer.Option(min=0.001, help="Default: the recipe's; 2.5 is possible.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest rate. Default: the recipe's.")] = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, cupy or cupy:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float64, or float16 on a GPU.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data order and dropout.")] = 0,
    run_dir: Annotated[Path | None, typer.Option(help="A new folder. Default: one below runs/.")] = None,
) -> None:
    """Train a network, test it, and leave the model, its history, settings, snapshots and defects in a run folder.

    Without any option: LeNet on MNIST, or on synthetic digits where MNIST cannot be had.
    """
    make = networks.by_name(network)
    if run_dir is not None:
        check_unused(run_dir)
    dataset = _data_for(make, data, data_dir)
    (x_train, y_train), (x_test, y_test) = dataset
    model = make(seed, backend, input_shape=x_train.shape[1:], classes=len(dataset.class_names), dtype=dtype)
    model.class_names = dataset.class_names
    assert model.recipe is not None
    if model.recipe.data != dataset.name:
        _adapt(model, x_train)
    if learning_rate is not None:
        model.optimizer.learning_rate = _with_rate(model.optimizer.learning_rate, learning_rate)
    folder = make_run_folder(run_dir, f"{model.name}-{dataset.name.replace('_', '-')}")
    settings: dict[str, Any] = {
        "network": network,
        "data": dataset.name if data is None else data,
        "data_dir": None if data_dir is None else str(data_dir.absolute()),
        "source": dataset.source,
        "epochs": check_epochs(epochs or model.recipe.epochs),
        "batch_size": batch_size or model.recipe.batch_size,
        "optimizer": model.optimizer.config(),
        "backend": model.backend.name,
        "dtype": dtype,
        "seed": seed,
        "versions": {"gpucnn": __version__, "python": platform.python_version(), "numpy": numpy.__version__},
    }
    _print_head(model, dataset, folder, backend)
    snapshots = Snapshots()  # written with the rest, after the model: a full disk shall not cost the training
    watch = DefectWatch((x_train[:PROBE], y_train[:PROBE]))
    history = model.fit(
        x_train, y_train, epochs=settings["epochs"], batch_size=settings["batch_size"], callbacks=[snapshots, watch]
    )
    scores = model.evaluate(x_test, y_test)
    _write_run(folder, model, history, settings | {"test": scores})
    snapshots.save(folder)
    watch.save(folder)
    console.print(f"  saved     {folder / MODEL}", soft_wrap=True)
    if watch.defect is not None:
        console.print(f"[bold yellow]defect: {escape(str(watch.defect))}[/]", soft_wrap=True)
        console.print(
            "  another --seed or a lower --learning-rate may help; `gpucnn show histograms` draws what it came to",
            style="dim",
            soft_wrap=True,
        )
    console.print(
        f"[bold]test accuracy {100 * scores['accuracy']:.2f} %[/] "
        f"(loss {scores['loss']:.4f}) on {len(x_test):,} images ({describe(dataset)})"
    )


def check_unused(folder: Path) -> None:
    """Refuse a run folder that holds a run: nothing is overwritten.

    Raises:
        ConfigurationError: it holds files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"--run-dir {folder}: is there already and not empty; name a new folder")


def make_run_folder(asked: Path | None, name: str) -> Path:
    """Make the folder of a run: the one asked for, or the next of `runs/NAME-1`, `runs/NAME-2` and so on."""
    try:
        if asked is not None:
            asked.mkdir(parents=True, exist_ok=True)
            return asked
        number = 1
        while True:
            folder = RUNS / f"{name}-{number}"
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1
    except OSError as error:
        where = asked or RUNS
        raise ConfigurationError(
            f"cannot make a run folder at {where} ({error.strerror}); name a place that may be written with --run-dir"
        ) from error


def _data_for(make: Any, data: str | None, folder: Path | None) -> Dataset:
    """Return the data that was asked for, or that the network's recipe names."""
    template = make(backend="numpy")
    if data is None:
        return load_data_or_digits(template.recipe.data, folder)
    return load_data(data, folder, image_size=template.input_shape[:2])


def _adapt(model: Model, images: Any) -> None:
    """Take the statistics for a leading normalisation from data that the recipe does not know."""
    if isinstance(model.layers[0], Normalization):
        model.layers[0].adapt(images)


def _with_rate(schedule: Schedule | float, rate: float) -> Schedule | float:
    """Return the schedule with another highest rate."""
    if not isinstance(schedule, Schedule):
        return rate
    return Schedule.from_config({**schedule.config(), "rate": rate})


def _print_head(model: Model, dataset: Dataset, folder: Path, asked: str) -> None:
    count = sum(parameter.size for parameter in model.parameters().values())
    (x_train, _), (x_test, _) = dataset
    console.print(f"  network   {model.name}, {count:,} parameters")
    console.print(
        f"  data      {describe(dataset)}: {len(x_train):,} training and {len(x_test):,} test images; {dataset.source}",
        soft_wrap=True,
    )
    console.print(f"  backend   {describe_backend(model, asked)}", soft_wrap=True)
    console.print(f"  run       {folder}", soft_wrap=True)


def _write_run(folder: Path, model: Model, history: History, settings: dict[str, Any]) -> None:
    model.save(folder / MODEL)
    history.save(folder / HISTORY)
    write_whole(folder / CONFIG, (json.dumps(settings, indent=1) + "\n").encode())
