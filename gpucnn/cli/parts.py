"""The training, validation and test part of a data set in a run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpucnn import rng
from gpucnn.core import checks
from gpucnn.data.splits import stratified
from gpucnn.datasets import Dataset, Split
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.runs.folder import count_images, validated_on_test

DEFAULT_VALIDATION_SPLIT = 0.1  # of the training images, for validation, where nothing else is options for


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a text, not {checks.shown(value)}")


def _score(value: Any, name: str) -> None:
    if not (isinstance(value, dict) and checks.is_number(value.get("accuracy"))):
        raise ConfigurationError(f"{name} must hold an accuracy, not {checks.shown(value)}")


# the options and the result in a run's settings, and how they are checked
NEEDED, MAY_BE_NONE = ("network", "data", "epochs"), ("data_dir", "learning_rate", "validation_split", "early_stopping")
KEPT: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("network", "data", "data_dir", "backend", "dtype"), _text),
    **dict.fromkeys(("validate", "validate_on_test"), checks.flag),
    **dict.fromkeys(("batch_size", "early_stopping"), partial(checks.integer, minimum=1)),
    **dict.fromkeys(("epochs", "learning_rate"), partial(checks.number, above=0)),
    "validation_split": partial(checks.number, above=0, below=1),
    "checkpoint_every": partial(checks.number, minimum=0),
    "seed": partial(checks.integer, minimum=0),
    "test": _score,
}


def check_kept(settings: dict[str, Any], file: Path) -> None:
    """Check the saved settings of a run before it is resumed.

    Raises:
        CheckpointError: one is missing or invalid.
    """
    try:
        for name, check in KEPT.items():
            if name in NEEDED or (name in settings and not (name in MAY_BE_NONE and settings[name] is None)):
                check(settings.get(name), name)
    except ConfigurationError as error:
        raise CheckpointError(f"{file}: {error}; was it edited?") from error


@dataclass(frozen=True)
class Parts:
    """Images with their labels; `validation` is held out of the training set, or (`on_test`) the test set."""

    dataset: Dataset
    training: Split
    validation: Split | None
    test: Split
    on_test: bool

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each part, for the run's settings; test images count once."""
        held = {"validation": len(self.validation[0])} if self.validation is not None and not self.on_test else {}
        return {"training": len(self.training[0]), **held, "test": len(self.test[0])}

    def __str__(self) -> str:
        return count_images(self.counts) + (", also used for validation" if self.on_test else "")


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run with the default validation split, if validation was requested without one.

    Raises:
        ConfigurationError: options that contradict each other.
    """
    fraction = options["validation_split"]
    if validated_on_test(options):
        if fraction is not None:
            raise ConfigurationError(
                f"--validation-split {fraction:g} validates on training images, --validate-on-test on the test images; "
                "pass one of them"
            )
        return options
    wanted = options["validate"] or options["early_stopping"] is not None
    return options | {"validation_split": DEFAULT_VALIDATION_SPLIT if fraction is None and wanted else fraction}


def parts_of(dataset: Dataset, options: dict[str, Any]) -> Parts:
    """Return the parts of a data set for options from `checked`; the split depends on the seed alone."""
    (x, y), test = dataset
    if validated_on_test(options):
        return Parts(dataset, (x, y), test, test, True)
    if options["validation_split"] is None:
        return Parts(dataset, (x, y), None, test, False)
    held = stratified(y, options["validation_split"], rng.host_generator(options["seed"], "hold out"))
    return Parts(dataset, (x[~held], y[~held]), (x[held], y[held]), test, False)
