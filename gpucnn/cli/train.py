"""`gpucnn train`: train a named network and leave a run folder."""

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
from gpucnn.cli.common import (
    CONFIG,
    DATA_NAMES,
    HISTORY,
    MODEL,
    RUNS,
    dataset_title,
    describe_backend,
    load_data,
    load_data_or_digits,
    run_config,
    say,
    warnings_shown,
)
from gpucnn.cli.parts import Parts, check_kept, checked, parts_of
from gpucnn.core.files import (
    PART,
    FolderLock,
    elsewhere,
    explained,
    make_folder,
    remove_parts,
    sync_folder,
    user_path,
    write_into,
)
from gpucnn.data.batches import check_epochs
from gpucnn.datasets import Dataset
from gpucnn.errors import CheckpointError, ConfigurationError, NumericError
from gpucnn.layers import Normalization
from gpucnn.model import Model
from gpucnn.runs.folder import is_unfinished, remember_data, resume_command, validated_on_test
from gpucnn.runs.reproduction import PROBE
from gpucnn.saving.model_file import to_bytes
from gpucnn.schedules import Schedule
from gpucnn.training.checkpoints import BEST, Checkpoints, position_of
from gpucnn.training.history import History
from gpucnn.version import __version__

OVERRIDABLE = ("run_dir", "resume", "backend", "data_dir", "epochs")  # options that may be given with --resume


def train(
    context: typer.Context,
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
    validate: Annotated[
        bool,
        typer.Option(
            "--validate", help="Hold out a tenth of the training images, score them after each epoch, keep the best."
        ),
    ] = False,
    validation_split: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.9, help="Validate on this share of the training images, of each class."),
    ] = None,
    validate_on_test: Annotated[
        bool,
        typer.Option(
            "--validate-on-test",
            help="Validate on the test images, as many published figures did: then they choose the best model, too.",
        ),
    ] = False,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="PATIENCE", help="Validate, and stop after so many epochs without improvement, at the best."
        ),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Between two checkpoints; epochs end with one, too.")
    ] = 60.0,
    run_dir: Annotated[Path | None, typer.Option(help="A new folder. Default: one below runs/.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --run-dir, by its own settings; --epochs may be more."),
    ] = False,
) -> None:
    """Train a network, test it, and leave the model, its history, settings, snapshots and defects in a run folder.

    Without any option: LeNet on MNIST, or on synthetic digits where MNIST cannot be had. The training is saved as it
    goes; Ctrl-C ends it after a step, and --resume goes on from there, or from a crash, to the same weights.
    """
    names = [parameter.name or "" for parameter in context.command.params]  # in their own order, not the user's
    options = {
        name: context.params[name] for name in names if name in context.params and name not in ("run_dir", "resume")
    }
    options["data_dir"] = None if data_dir is None else str(user_path(data_dir).absolute())
    folder = None if run_dir is None else user_path(run_dir)
    if resume:
        if folder is None:
            raise ConfigurationError("--resume needs --run-dir, the folder of the run that was interrupted")
        given = {name: value for name, value in options.items() if name in OVERRIDABLE and _is_given(context, name)}
        # so no lock goes into what is no run's folder
        every = (options | _resume_settings(context, folder))["checkpoint_every"]
        with (checkpoints := Checkpoints(folder, every_seconds=every)).writing():
            settings = _resume_settings(context, folder)  # as nobody else changes them any more
            remove_parts(folder)
            if "test" in settings and not _is_longer(folder, settings, given.get("epochs")):
                checkpoints.clear(keep=1)  # where it was killed just before that
                return
            before = {name: value for name, value in settings.items() if name not in ("test", "best")}
            settings = options | before | given
            _train(settings, *_prepared(settings), checkpoints, resume=True)
        return
    if folder is not None:
        check_unused(folder)
    options = checked(options)
    model, parts = _prepared(options)
    folder = make_run_folder(folder, f"{model.name}-{parts.dataset.name.replace('_', '-')}")
    with (checkpoints := Checkpoints(folder, every_seconds=options["checkpoint_every"])).writing():
        check_unused(folder)  # once more, now that nobody else can write into it
        _train(options, model, parts, checkpoints, resume=False)


def _is_longer(folder: Path, settings: dict[str, Any], epochs: float | None) -> bool:
    """Tell whether a run that is finished is to be trained on; if not, say that it is finished.

    Raises:
        ConfigurationError: it is, but the state that it would go on from is not kept.
    """
    if epochs is None or epochs <= settings["epochs"]:
        score = f"test accuracy {100 * settings['test']['accuracy']:.2f} %"
        more = f"; --epochs with more than {settings['epochs']} trains it on"
        say(f"{folder}: this run is finished ({score}); there is nothing to resume{more}")
        return False
    if not Checkpoints(folder).files():
        raise ConfigurationError(
            f"--run-dir {folder}: this run is finished, and its last checkpoint is not there to train it on from; "
            "begin another with another --run-dir"
        )
    return True


def _resume_settings(context: typer.Context, folder: Path) -> dict[str, Any]:
    """Return the settings of a run that is to be resumed.

    Raises:
        ConfigurationError: a folder without a run, or options that contradict the run's own.
    """
    settings = run_config(folder / MODEL)
    if "network" not in settings:
        raise ConfigurationError(
            f"--run-dir {folder}: holds no run that could be resumed (no {CONFIG} of one); leave out --resume to "
            "begin one"
        )
    check_kept(settings, folder / CONFIG)
    given = [name for name in context.params if name not in OVERRIDABLE and _is_given(context, name)]
    if given:
        words = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigurationError(
            f"--resume takes the settings from {folder / CONFIG}; leave out {words}, or begin another run with another "
            "--run-dir"
        )
    data = {"synthetic_digits": "synthetic"}.get(settings["data"], settings["data"])
    return settings | {"data": data, "validate_on_test": validated_on_test(settings)}


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _prepared(options: dict[str, Any]) -> tuple[Model, Parts]:
    """Return the model and the data that options ask for, which are those of a new run or of one that goes on."""
    make = networks.by_name(options["network"])
    dataset = _data_for(make, options["data"], None if options["data_dir"] is None else Path(options["data_dir"]))
    parts = parts_of(dataset, options)
    images, _ = parts.training
    shape, classes = images.shape[1:], len(dataset.class_names)
    model = make(options["seed"], options["backend"], input_shape=shape, num_classes=classes, dtype=options["dtype"])
    model.class_names = dataset.class_names
    assert model.recipe is not None
    if model.recipe.data != dataset.name:
        _adapt(model, images)
    if options["learning_rate"] is not None:
        model.optimizer.learning_rate = _with_rate(model.optimizer.learning_rate, options["learning_rate"])
    return model, parts


def _train(options: dict[str, Any], model: Model, parts: Parts, checkpoints: Checkpoints, resume: bool) -> None:
    """Train, test, and write everything into the folder of the checkpoints, into which nobody else writes."""
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
    snapshots = Snapshots()  # written with the rest, after the model: a full disk shall not cost the training
    step = max(len(images) // PROBE, 1)  # so that all classes are watched, also where they stand one after another
    watch = TrainingMonitor((images[::step][:PROBE], labels[::step][:PROBE]))
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
                callbacks=[snapshots, watch, *stopping, begun],
                checkpoints=checkpoints,
                resume=resume,
            )
    except (KeyboardInterrupt, SystemExit) as error:
        if checkpoints.elsewhere is not None:
            folder, checkpoints = checkpoints.elsewhere, Checkpoints(checkpoints.elsewhere)
            _write_config(folder, settings)
        saved = f", saved {position_of(checkpoints.files()[-1])}" if checkpoints.files() else ""
        say((f"interrupted{saved}", "bold yellow"), f"; go on with: {resume_command(folder)}")
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else int(error.code or 0)) from None
    except NumericError as error:
        watch.save(folder)
        saved = (
            f"; {checkpoints.files()[-1]}, saved {position_of(checkpoints.files()[-1])}, is good"
            if checkpoints.files()
            else ""
        )
        message = f"{error}{saved}. `gpucnn show histograms` draws what it came to"
        raise NumericError(message, error.step, error.layer, error.direction) from error
    settings |= {"best": checkpoints.best, "test": model.evaluate(*parts.test)}
    _write_run(folder, checkpoints, model, history, settings, (snapshots, watch))
    checkpoints.clear(keep=1)  # from which more epochs can go on
    _print_result(folder, settings, f"{len(parts.test[0]):,} images ({dataset_title(dataset)})", watch)


class _Begun(Callback):
    """Write a run's settings when it makes a step: those of before stay where a training is refused to go on."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings, self._written = folder, settings, False

    def write(self) -> None:
        """Write them, unless that is done."""
        if not self._written:
            _write_config(self._folder, self._settings)
            self._written = True

    def on_step_end(self, model: Model, step: int) -> None:
        """Write them before the first checkpoint that goes by them."""
        self.write()


def check_unused(folder: Path) -> None:
    """Refuse a run folder that holds a run: nothing is overwritten.

    Raises:
        ConfigurationError: it holds files; says how to go on with a run that is not finished.
    """
    if not folder.exists():
        return
    if folder.is_dir():
        names = [path.name for path in folder.iterdir()]
        if all(name.endswith(PART) or name == FolderLock.NAME for name in names):
            return
        if is_unfinished(folder):
            files = Checkpoints(folder).files()
            saved = f"saved {position_of(files[-1])}" if files else "of which nothing is saved yet"
            raise ConfigurationError(
                f"--run-dir {folder}: holds an unfinished run, {saved}; go on with --resume, or name a new folder"
            )
    raise ConfigurationError(f"--run-dir {folder}: is there already and not empty; name a new folder")


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
            f"cannot make a run folder at {where} ({error.strerror}); name a place that may be written with --run-dir"
        ) from error


def _data_for(make: Any, data: str | None, folder: Path | None) -> Dataset:
    """Return the data that was options for, or that the network's recipe names."""
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


def _print_head(model: Model, data: str, folder: Path, options: str) -> None:
    count = sum(parameter.size for parameter in model.parameters().values())
    say(f"  network   {model.name}, {count:,} parameters")
    say(f"  data      {data}")
    say(f"  backend   {describe_backend(model, options)}")
    say(f"  run       {folder}")


def _write_config(folder: Path, settings: dict[str, Any]) -> None:
    with explained(folder / CONFIG):
        write_into(folder, CONFIG, (json.dumps(settings, indent=1) + "\n").encode())


def _write_run(
    folder: Path,
    checkpoints: Checkpoints,
    model: Model,
    history: History,
    settings: dict[str, Any],
    watchers: tuple[Snapshots, TrainingMonitor],
) -> None:
    """Write everything into the run's folder; where that cannot be, see that what was trained is not lost.

    Raises:
        CheckpointError: it could not be written there; says where it is.
    """
    try:
        _write_results(folder, model, history, settings, watchers)
    except CheckpointError as error:
        if checkpoints.end_is_saved:
            raise CheckpointError(
                f"{error}; the training is over, and saved in its last checkpoint: make room, and "
                f"`{resume_command(folder)}` writes what it came to"
            ) from error
        other = elsewhere(folder.name)
        try:
            if other is None:
                raise error
            _write_results(other, model, history, settings, watchers)
        except CheckpointError as again:
            raise CheckpointError(
                f"{error}; nor could it be written anywhere else ({again}), and what was trained is lost"
            ) from again
        raise CheckpointError(
            f"{error}; so the finished run, with its model, is in {other} instead: move it where you want it"
        ) from error


def _write_results(
    folder: Path,
    model: Model,
    history: History,
    settings: dict[str, Any],
    watchers: tuple[Snapshots, TrainingMonitor],
) -> None:
    """Write a run that is over; the settings with the test's scores come last: it is finished then."""
    with explained(folder / MODEL):
        write_into(folder, MODEL, to_bytes(model))
        write_into(folder, HISTORY, history.to_bytes())
    for watcher in watchers:
        watcher.save(folder)
    _write_config(folder, settings)


def _print_result(folder: Path, settings: dict[str, Any], tested: str, watch: TrainingMonitor) -> None:
    scores, best = settings["test"], settings["best"]
    say(f"  saved     {folder / MODEL}")
    if best is not None:
        scored = "test accuracy, by which it was chosen," if settings["validate_on_test"] else "validation accuracy"
        say(f"  best      epoch {best['epoch'] + 1}, {scored} {100 * best['value']:.2f} %: {folder / BEST}")
    if watch.defect is not None:
        say((f"defect: {watch.defect}", "bold yellow"))
        remedy = "another --seed or a lower --learning-rate may help; `gpucnn show histograms` draws what it came to"
        say((f"  {remedy}", "dim"))
    say(
        (f"test accuracy {100 * scores['accuracy']:.2f} %", "bold"),
        f" (loss {scores['loss']:.4f}) on {tested}",
    )
