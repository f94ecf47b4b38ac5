"""The network, the data and the settings of a run: the head of the report."""

from dataclasses import dataclass
from typing import Any

from gpucnn.core.checks import is_number
from gpucnn.core.text import duration, format_count, format_loss, format_shape, percent, plural
from gpucnn.engine.profiling import frozen_count, parameter_count
from gpucnn.errors import GpucnnError
from gpucnn.optimizers import Optimizer
from gpucnn.report.run import Run
from gpucnn.runs.folder import DATA_TITLES, Predictions, count_images, dataset_title, validated_on_test
from gpucnn.schedules import Schedule

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Fact:
    """One property of a run, with a remark in small print."""

    term: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Scores:
    """Accuracy and loss on the test set, if known, and their origin."""

    accuracy: float | None
    loss: float | None
    remark: str


def final_scores(run: Run, test: Predictions | str) -> Scores:
    """Return the final test scores of the run, or measure them now if it does not record them."""
    scores, remark = run.test_scores, "after training"
    if not scores and not isinstance(test, str) and run.model.loss is not None:
        scores = run.model.evaluate(test.images, test.labels)
        remark = "measured for this report"
    return Scores(scores.get("accuracy"), scores.get("loss"), remark)


def headline(run: Run, scores: Scores) -> list[Fact]:
    """Return the key figures: final scores, parameters and training time."""
    accuracy, loss = scores.accuracy, scores.loss
    result = [
        Fact("test accuracy", *((UNKNOWN,) if accuracy is None else (percent(accuracy), scores.remark))),
        Fact("test loss", *((UNKNOWN,) if loss is None else (format_loss(loss), scores.remark))),
        Fact("parameters", format_count(parameter_count(run.model.network)), _trained(run)),
    ]
    seconds = run.history.history.get("seconds") if run.history else None
    if run.history is not None and seconds:
        epochs = run.settings.get("epochs")
        epochs_text = plural(run.history.epochs, "epoch") if not isinstance(epochs, float) else f"{epochs:g} epochs"
        result.append(Fact("training time", duration(sum(seconds)), epochs_text))
    return result


def _trained(run: Run) -> str:
    frozen = frozen_count(run.model.network)
    return f"{format_count(frozen)} of them frozen" if frozen else "trainable"


def facts(run: Run, test: Predictions | str) -> list[Fact]:
    """Return the settings of a run; what its folder does not hold is reported as not recorded."""
    model, settings, recipe = run.model, run.settings, run.model.recipe
    optimizer, schedule = _optimizer(run)
    batch_size = settings.get("batch_size") or (recipe and recipe.batch_size)
    epochs = settings.get("epochs") or (run.history and run.history.epochs) or model.epochs_trained
    versions = settings.get("versions")
    titles = {"python": "Python", "numpy": "NumPy", "cupy": "CuPy", "cuda": "CUDA"}
    listed = [f"{titles.get(name, name)} {v}" for name, v in versions.items()] if isinstance(versions, dict) else []
    return [
        Fact("Network", model.name, f"{format_shape(model.input_shape)} → {format_shape(model.output_shape)}"),
        _data(run, test),
        Fact("Validation", _validation(run)),
        Fact("Optimizer", optimizer),
        Fact("Learning rate", schedule),
        Fact("Augmentation", UNKNOWN if recipe is None else ", ".join(map(repr, recipe.augment)) or "none"),
        Fact("Loss", UNKNOWN if model.loss is None else repr(model.loss)),
        Fact("Epochs", _setting(epochs)),
        Fact("Batch size", _setting(batch_size)),
        Fact("Seed", _setting(settings.get("seed", model.seed)), "initialization, shuffling, dropout"),
        Fact("Backend", _setting(settings.get("backend")), _setting(settings.get("dtype", model.dtype))),
        Fact("Versions", ", ".join(listed) or UNKNOWN),
    ]


def _data(run: Run, test: Predictions | str) -> Fact:
    """Return the data set of the run, and the number of images if they are known."""
    recipe, source = run.model.recipe, run.settings.get("source")
    data = run.settings.get("data") or (recipe.data if recipe else None)
    named = UNKNOWN if data is None else DATA_TITLES.get(str(data), str(data))
    remarks = [str(source)] if source else []
    if (images := _counts(run)) is not None:
        remarks.insert(0, count_images(images))
    elif not isinstance(test, str) and (data in (None, "images") or dataset_title(test.dataset) == named):
        (x_train, _), (x_test, _) = test.dataset
        named = dataset_title(test.dataset) if data is None else named
        remarks.insert(0, count_images({"training": len(x_train), "test": len(x_test)}))
    return Fact("Data", named, "; ".join(remarks))


def _counts(run: Run) -> dict[str, int] | None:
    """Return the number of images of each split; None if the run does not record it."""
    images = run.settings.get("images")
    if not isinstance(images, dict) or not all(isinstance(number, int) for number in images.values()):
        return None
    return {str(part): number for part, number in images.items()}


def _validation(run: Run) -> str:
    """Return the validation data."""
    if run.history is None or "val_loss" not in run.history.history:
        return "none"
    if validated_on_test(run.settings):
        return "on the test images, after each epoch; they also selected the best model"
    fraction: Any = run.settings.get("validation_split")
    if not is_number(fraction):
        return UNKNOWN
    return f"on a random {percent(fraction, 0)} of the training images, held out"


def _optimizer(run: Run) -> tuple[str, str]:
    """Return the optimizer and its schedule as the calls that construct them."""
    optimizer: Optimizer | None = None
    if run.model.loss is not None:
        optimizer = run.model.optimizer
    elif isinstance(run.settings.get("optimizer"), dict):
        try:
            optimizer = Optimizer.from_config(run.settings["optimizer"])
        except GpucnnError:
            return str(run.settings["optimizer"]), UNKNOWN
    if optimizer is None:
        return UNKNOWN, UNKNOWN
    rate = optimizer.learning_rate
    return repr(optimizer), repr(rate) if isinstance(rate, Schedule) else f"{rate:g}, constant"


def _setting(value: Any) -> str:
    """Return a setting as text."""
    if value is None or value == "":
        return UNKNOWN
    return format_count(value) if is_number(value) and isinstance(value, int) else str(value)
