"""The parts of a data set in a run: what is trained on, what is scored after each epoch, and what is at the end."""

from dataclasses import dataclass
from typing import Any

from gpucnn import rng
from gpucnn.data.splits import stratified
from gpucnn.datasets import Dataset, Split
from gpucnn.errors import ConfigurationError
from gpucnn.run_folder import in_words, validated_on_test

HELD_OUT = 0.1  # of the training images, for validation, where nothing else is asked for


@dataclass(frozen=True)
class Parts:
    """Images with their labels; `validation` are training images that were held out, or (`on_test`) the test images."""

    dataset: Dataset
    training: Split
    validation: Split | None
    test: Split
    on_test: bool

    @property
    def counts(self) -> dict[str, int]:
        """How many images each part has, as a run's settings keep it; test images count once."""
        held = {"validation": len(self.validation[0])} if self.validation is not None and not self.on_test else {}
        return {"training": len(self.training[0]), **held, "test": len(self.test[0])}

    def __str__(self) -> str:
        return in_words(self.counts) + (", scored after each epoch" if self.on_test else "")


def checked(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run with the share that is held out for validation, where that was left open.

    Raises:
        ConfigurationError: options that contradict each other.
    """
    share = asked["hold_out"]
    if validated_on_test(asked):
        if share is not None:
            raise ConfigurationError(
                f"--hold-out {share:g} validates on training images, --validate-on-test on the test images; give one "
                "of them"
            )
        return asked
    wanted = asked["validate"] or asked["early_stopping"] is not None
    return asked | {"hold_out": HELD_OUT if share is None and wanted else share}


def parts_of(dataset: Dataset, asked: dict[str, Any]) -> Parts:
    """Return the parts of a data set, by options that `checked` returned: the same for the same seed."""
    (x, y), test = dataset
    if validated_on_test(asked):
        return Parts(dataset, (x, y), test, test, True)
    if asked["hold_out"] is None:
        return Parts(dataset, (x, y), None, test, False)
    held = stratified(y, asked["hold_out"], rng.host_generator(asked["seed"], "hold out"))
    return Parts(dataset, (x[~held], y[~held]), (x[held], y[held]), test, False)
