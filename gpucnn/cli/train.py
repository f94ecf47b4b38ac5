"""`gpucnn train`: train a named network and write a run folder."""

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import numpy  # noqa: TID251 (its version goes into the run's settings; no array is made)
import typer

from gpucnn import networks
from gpucnn.callbacks import Callback, EarlyStopping
from gpucnn.callbacks.defects import TrainingMonitor
from gpucnn.callbacks.snapshots import Snapshots
from gpucnn.cli.common import describe_backend, load_data_or_digits, say, warnings_shown
from gpucnn.cli.options import BackendName, DataDir, Dtype, Epochs
from gpucnn.cli.parts import Parts, check_kept, checked, parts_of
from gpucnn.core.files import (
    PARTIAL,
    FolderLock,
    elsewhere,
    explained,
    make_folder,
    remove_partial,
    sync_folder,
    user_path,
    write_into,
)
from gpucnn.data.batches import check_epochs
from gpucnn.datasets import Dataset
from gpucnn.errors import CheckpointError, ConfigurationError, NumericError
from gpucnn.layers import Normalization
from gpucnn.model import Model
from gpucnn.runs.folder import (
    CONFIG,
    DATA_NAMES,
    HISTORY,
    MODEL,
    RUNS,
    dataset_title,
    is_unfinished,
    load_data,
    remember_data,
    resume_command,
    run_config,
    validated_on_test,
)
from gpucnn.runs.reproduction import PROBE
from gpucnn.saving.model_file import to_bytes
from gpucnn.schedules import Schedule
from gpucnn.training.checkpoints import BEST, Checkpoints, position_of
from gpucnn.training.history import History
from gpucnn.version import __version__

Results = tuple[Model, History, dict[str, Any], tuple[Snapshots, TrainingMonitor]]
OVERRIDABLE = ("run_dir", "resume", "backend", "data_dir", "epochs")  # options that may be given with --resume

NetworkName = Annotated[str, typer.Option(help=f"One of {', '.join(networks.NETWORKS)}.")]
DataName = Annotated[str | None, typer.Option(help=f"{DATA_NAMES}. Default: the recipe's.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples per step. Default: the recipe's.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate. Default: the recipe's.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed (initialization, shuffling, dropout).")]
Validate = Annotated[
    bool,
    typer.Option("--validate", help="Hold out a tenth of the training set for validation, and save the best model."),
]
ValidationSplit = Annotated[
    float | None,
    typer.Option(min=0.001, max=0.9, help="Fraction of the training set held out for validation, from each class."),
]
ValidateOnTest = Annotated[
    bool,
    typer.Option(
        "--validate-on-test",
        help="Validate on the test set, as many published results do; it then selects the best model, too.",
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="PATIENCE", help="Validate, and stop after this many epochs without improvement, at the best."
    ),
]
Interval = Annotated[
    float,
    typer.Option(min=0.0, metavar="SECONDS", help="Seconds between checkpoints; every epoch ends with one, too."),
]
RunDir = Annotated[Path | None, typer.Option(help="A new folder for the run. Default: a new one in runs/.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Resume the run in --run-dir with its own settings; --epochs may be increased."),
]


def train(
    context: typer.Context,
    network: NetworkName = "lenet",
    data: DataName = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    validate: Validate = False,
    validation_split: ValidationSplit = None,
    validate_on_test: ValidateOnTest = False,
    early_stopping: Patience = None,
    checkpoint_every: Interval = 60.0,
    run_dir: RunDir = None,
    resume: Resume = False,
) -> None:
    """Train and test a network; write model, history, settings, snapshots and defects to a run folder.

    Without options: LeNet on MNIST, or on synthetic digits if MNIST is not available. Checkpoints are written during
    training; Ctrl-C stops after the current step. --resume continues from there, or after a crash, and ends with the
    same weights as an uninterrupted run.
    """
    names = [parameter.name or "" for parameter in context.command.params]  # in the order of the command
    options = {
        name: context.params[name] for name in names if name in context.params and name not in ("run_dir", "resume")
    }
    options["data_dir"] = None if data_dir is None else str(user_path(data_dir).absolute())
    folder = None if run_dir is None else user_path(run_dir)
    if resume:
        if folder is None:
            raise ConfigurationError("--resume needs --run-dir, the folder of the interrupted run")
        _resume(context, folder, options)
        return
    if folder is not None:
        check_unused(folder)
    options = checked(options)
    model, parts = _prepared(options)
    folder = make_run_folder(folder, f"{model.name}-{parts.dataset.name.replace('_', '-')}")
    with (checkpoints := Checkpoints(folder, every_seconds=options["checkpoint_every"])).writing():
        check_unused(folder)  # again, now that no other process can write to it
        _train(options, model, parts, checkpoints, resume=False)


def _resume(context: typer.Context, folder: Path, options: dict[str, Any]) -> None:
    """Continue an interrupted run with its own settings, or a finished one for more epochs."""
    given = {name: value for name, value in options.items() if name in OVERRIDABLE and _is_given(context, name)}
    # checked before the lock: it must not be created in a folder that is not a run's
    every = (options | _resume_settings(context, folder))["checkpoint_every"]
    with (checkpoints := Checkpoints(folder, every_seconds=every)).writing():
        settings = _resume_settings(context, folder)  # again, now that no other process can change them
        remove_partial(folder)
        if "test" in settings and not _is_longer(folder, settings, given.get("epochs")):
            checkpoints.clear(keep=1)  # if it was killed just before that
            return
        before = {name: value for name, value in settings.items() if name not in ("test", "best")}
        settings = options | before | given
        _train(settings, *_prepared(settings), checkpoints, resume=True)


def _is_longer(folder: Path, settings: dict[str, Any], epochs: float | None) -> bool:
    """Return whether a finished run is to be trained further; print that it is finished if not.

    Raises:
        ConfigurationError: it is, but its last checkpoint is missing.
    """
    if epochs is None or epochs <= settings["epochs"]:
        score = f"test accuracy {100 * settings['test']['accuracy']:.2f} %"
        more = f"; pass --epochs above {settings['epochs']} to train it further"
        say(f"{folder}: this run is finished ({score}); there is nothing to resume{more}")
        return False
    if not Checkpoints(folder).files():
        raise ConfigurationError(
            f"--run-dir {folder}: this run is finished and its last checkpoint is missing, so it cannot be trained "
            "further; start a new run with another --run-dir"
        )
    return True


def _resume_settings(context: typer.Context, folder: Path) -> dict[str, Any]:
    """Return the settings of the run to resume.

    Raises:
        ConfigurationError: the folder contains no run, or options contradict the run's settings.
    """
    settings = run_config(folder / MODEL)
    if "network" not in settings:
        raise ConfigurationError(
            f"--run-dir {folder}: contains no run to resume (no {CONFIG}); omit --resume to start one"
        )
    check_kept(settings, folder / CONFIG)
    given = [name for name in context.params if name not in OVERRIDABLE and _is_given(context, name)]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigurationError(
            f"--resume takes the settings from {folder / CONFIG}; omit {options}, or start a new run with another "
            "--run-dir"
        )
    data = {"synthetic_digits": "synthetic"}.get(settings["data"], settings["data"])
    return settings | {"data": data, "validate_on_test": validated_on_test(settings)}


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _prepared(options: dict[str, Any]) -> tuple[Model, Parts]:
    """Return the model and the data for the options of a new or a resumed run."""
    make = networks.by_name(options["network"])
    dataset = _data_for(make, options["data"], None if options["data_dir"] is None else Path(options["data_dir"]))
    parts = parts_of(dataset, options)
    images, _ = parts.training
    shape, classes = images.shape[1:], len(dataset.class_names)
    model = make(options["seed"], options["backend"], input_shape=shape, num_classes=classes, dtype=options["dtype"])
    model.class_names = dataset.class_names
    assert model.recipe is not None
    if model.recipe.data != dataset.name and isinstance(model.layers[0], Normalization):
        model.layers[0].adapt(images)
    if options["learning_rate"] is not None:
        model.optimizer.learning_rate = _with_rate(model.optimizer.learning_rate, options["learning_rate"])
    return model, parts


def _train(options: dict[str, Any], model: Model, parts: Parts, checkpoints: Checkpoints, resume: bool) -> None:
    """Train and test, and write the results to the locked folder of the checkpoints."""
    dataset, (images, labels) = parts.dataset, parts.training
    folder = checkpoints.folder
    assert model.recipe is not None
    settings: dict[str, Any] = options | {
        "data": dataset.name if options["data"] is None else options["data"],
        "source": dataset.source,
        "images": parts.counts,
        "epochs": check_epochs(options["epochs"] or model.recipe.epochs),
        "batch_size": options["batch_size"] or model.recipe.batch_size,
        "optimizer": model.optimizer.config(),
        "backend": model.backend.name,
        "versions": {"gpucnn": __version__, "python": platform.python_version(), "numpy": numpy.__version__},
    }
    begun = _Begun(folder, settings)
    if not resume:
        begun.write()
    if settings["data_dir"] is not None:
        remember_data(Path(settings["data_dir"]))
    _print_head(model, f"{dataset_title(dataset)}: {parts}; {dataset.source}", folder, options["backend"])
    if resume and checkpoints.files():
        say(f"  resumed   {position_of(checkpoints.files()[-1])}")
    snapshots = Snapshots()  # written last, after the model: a full disk must not cost the trained model
    step = max(len(images) // PROBE, 1)  # to sample all classes, also of sorted data
    monitor = TrainingMonitor((images[::step][:PROBE], labels[::step][:PROBE]))
    patience = options["early_stopping"]
    stopping = [] if patience is None else [EarlyStopping("val_accuracy", patience)]
    try:
        with warnings_shown():
            history = model.fit(
                images,
                labels,
                epochs=settings["epochs"],
                batch_size=settings["batch_size"],
                validation_data=parts.validation,
                callbacks=[snapshots, monitor, *stopping, begun],
                checkpoints=checkpoints,
                resume=resume,
            )
    except (KeyboardInterrupt, SystemExit) as error:
        if checkpoints.elsewhere is not None:
            folder, checkpoints = checkpoints.elsewhere, Checkpoints(checkpoints.elsewhere)
            _write_config(folder, settings)
        saved = f", saved {position_of(checkpoints.files()[-1])}" if checkpoints.files() else ""
        say((f"interrupted{saved}", "bold yellow"), f"; continue with: {resume_command(folder)}")
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else int(error.code or 0)) from None
    except NumericError as error:
        monitor.save(folder)
        files = checkpoints.files()
        saved = f"; {files[-1]}, saved {position_of(files[-1])}, is good" if files else ""
        message = f"{error}{saved}. `gpucnn show histograms` plots the final weights and gradients"
        raise NumericError(message, error.step, error.layer, error.direction) from error
    settings |= {"best": checkpoints.best, "test": model.evaluate(*parts.test)}
    results = model, history, settings, (snapshots, monitor)
    _write_run(folder, checkpoints, results)
    checkpoints.clear(keep=1)  # from which more epochs can continue
    _print_result(folder, settings, f"{len(parts.test[0]):,} images ({dataset_title(dataset)})", monitor)


class _Begun(Callback):
    """Writes a run's settings at its first step, so that a rejected resume keeps the previous ones."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings, self._written = folder, settings, False

    def write(self) -> None:
        """Write the settings, once."""
        if not self._written:
            _write_config(self._folder, self._settings)
            self._written = True

    def on_step_end(self, model: Model, step: int) -> None:
        """Write the settings before the first checkpoint that depends on them."""
        self.write()


def check_unused(folder: Path) -> None:
    """Reject a run folder that is not empty: nothing is overwritten.

    Raises:
        ConfigurationError: it contains files; tells how to continue an unfinished run.
    """
    if not folder.exists():
        return
    if folder.is_dir():
        names = [path.name for path in folder.iterdir()]
        if all(name.endswith(PARTIAL) or name == FolderLock.NAME for name in names):
            return
        if is_unfinished(folder):
            files = Checkpoints(folder).files()
            saved = f"saved {position_of(files[-1])}" if files else "not saved yet"
            raise ConfigurationError(
                f"--run-dir {folder}: contains an unfinished run, {saved}; continue it with --resume, or choose "
                "a new folder"
            )
    raise ConfigurationError(f"--run-dir {folder}: already exists and is not empty; choose a new folder")


def make_run_folder(options: Path | None, name: str) -> Path:
    """Make the folder of a run: the one options for, or the next of `runs/NAME-1`, `runs/NAME-2` and so on."""
    try:
        if options is not None:
            make_folder(options)
            return options
        make_folder(RUNS)
        number = 1
        while True:
            folder = RUNS / f"{name}-{number}"
            try:
                folder.mkdir()
                sync_folder(RUNS)
                return folder
            except FileExistsError:
                number += 1
    except OSError as error:
        where = options or RUNS
        raise ConfigurationError(
            f"cannot create a run folder at {where} ({error.strerror}); choose a writable place with --run-dir"
        ) from error


def _data_for(make: Any, data: str | None, folder: Path | None) -> Dataset:
    """Return the data that was options for, or that the network's recipe names."""
    template = make(backend="numpy")
    if data is None:
        return load_data_or_digits(template.recipe.data, folder)
    return load_data(data, folder, image_size=template.input_shape[:2])


def _with_rate(schedule: Schedule | float, rate: float) -> Schedule | float:
    """Return the schedule with another peak learning rate."""
    if not isinstance(schedule, Schedule):
        return rate
    return Schedule.from_config({**schedule.config(), "rate": rate})


def _print_head(model: Model, data: str, folder: Path, options: str) -> None:
    count = sum(parameter.size for parameter in model.parameters().values())
    say(f"  network   {model.name}, {count:,} parameters")
    say(f"  data      {data}")
    say(f"  backend   {describe_backend(model, options)}")
    say(f"  run       {folder}")


def _write_config(folder: Path, settings: dict[str, Any]) -> None:
    with explained(folder / CONFIG):
        write_into(folder, CONFIG, (json.dumps(settings, indent=1) + "\n").encode())


def _write_run(folder: Path, checkpoints: Checkpoints, results: Results) -> None:
    """Write the results to the run folder; if that fails, save the trained model elsewhere.

    Raises:
        CheckpointError: they could not be written there; says where they are.
    """
    try:
        _write_results(folder, *results)
    except CheckpointError as error:
        if checkpoints.end_is_saved:
            raise CheckpointError(
                f"{error}; training is complete and saved in the last checkpoint: free disk space, and "
                f"`{resume_command(folder)}` writes the results"
            ) from error
        other = elsewhere(folder.name)
        try:
            if other is None:
                raise error
            _write_results(other, *results)
        except CheckpointError as again:
            raise CheckpointError(
                f"{error}; nor could it be written anywhere else ({again}), so the trained model is lost"
            ) from again
        raise CheckpointError(
            f"{error}; the finished run, with its model, is in {other} instead: move it to where you want it"
        ) from error


def _write_results(
    folder: Path,
    model: Model,
    history: History,
    settings: dict[str, Any],
    monitors: tuple[Snapshots, TrainingMonitor],
) -> None:
    """Write a finished run; the settings with the test scores come last, and mark it as finished."""
    with explained(folder / MODEL):
        write_into(folder, MODEL, to_bytes(model))
        write_into(folder, HISTORY, history.to_bytes())
    for monitor in monitors:
        monitor.save(folder)
    _write_config(folder, settings)


def _print_result(folder: Path, settings: dict[str, Any], tested: str, monitor: TrainingMonitor) -> None:
    scores, best = settings["test"], settings["best"]
    say(f"  saved     {folder / MODEL}")
    if best is not None:
        scored = "test accuracy (which selected it)" if settings["validate_on_test"] else "validation accuracy"
        say(f"  best      epoch {best['epoch'] + 1}, {scored} {100 * best['value']:.2f} %: {folder / BEST}")
    if monitor.defect is not None:
        say((f"defect: {monitor.defect}", "bold yellow"))
        shown = "`gpucnn show histograms` plots the final weights and gradients"
        say((f"  try another --seed or a lower --learning-rate; {shown}", "dim"))
    say(
        (f"test accuracy {100 * scores['accuracy']:.2f} %", "bold"),
        f" (loss {scores['loss']:.4f}) on {tested}",
    )
