"""`Callback`: what else happens while a model is fitted; and `EarlyStopping`."""

from typing import TYPE_CHECKING, Any

from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.trees import misfit

if TYPE_CHECKING:
    from gpucnn.model import Model


class Callback:
    """Base of every callback: each method is called at its time and may be left out.

    `model` is the model that is fitted, `logs` the epoch's numbers as they go into the history. A callback ends the
    training early by setting `model.stop_training = True`.
    """

    def on_fit_begin(self, model: "Model") -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, model: "Model", epoch: int) -> None:
        """Before an epoch, the first of which is 0."""

    def on_step_end(self, model: "Model", step: int) -> None:
        """After a step; `step` counts from 0 within the epoch. Reading from the device here slows training down."""

    def on_epoch_trained(self, model: "Model", epoch: int) -> None:
        """After an epoch's steps, before its validation, if there is one."""

    def on_epoch_end(self, model: "Model", epoch: int, logs: dict[str, float]) -> None:
        """After an epoch and its validation."""

    def on_fit_end(self, model: "Model") -> None:
        """After the last epoch."""

    def on_fit_interrupted(self, model: "Model") -> None:
        """In place of `on_fit_end` where an error or the user's Ctrl-C ends the training; the error is raised after."""

    def state(self, model: "Model") -> dict[str, Any]:
        """Return what a training that is resumed needs of this callback, for its checkpoints.

        Host arrays (`model.backend.to_host`), numbers and words, in lists and in dictionaries by words; tuples come
        back as lists. Asked between two steps, or when an epoch is over. A callback that keeps nothing from one step or
        epoch to the next leaves this and `load_state` out.
        """
        return {}

    def load_state(self, model: "Model", state: dict[str, Any]) -> None:
        """Take over what `state` returned, when a training is resumed.

        The model has its weights by then. It is called after `on_fit_begin` and, where the training goes on within an
        epoch, after that epoch's `on_epoch_begin`.
        """


def as_loss(monitor: str, value: float) -> float:
    """Return a number of the history so that smaller is better, as it is but for accuracies."""
    return -value if "accuracy" in monitor else value


class EarlyStopping(Callback):
    """Stop when a number has not become better for a while, and go back to the best weights.

    Arguments
        monitor       a key of the history: smaller is better, except for accuracies
        patience      stop after this many epochs in a row without improvement
        minimum       the change that counts as one
        restore_best  load the weights of the best epoch when the training ends
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int = 3, minimum: float = 0.0, restore_best: bool = True
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ConfigurationError(f"patience must be a positive number of epochs, not {patience!r}")
        self.monitor, self.patience, self.minimum, self.restore_best = monitor, patience, minimum, restore_best
        self.best_epoch = -1

    def on_fit_begin(self, model: "Model") -> None:
        """Forget earlier trainings."""
        self.best_epoch, self._best = -1, float("inf")
        self._state: dict[str, Any] | None = None

    def state(self, model: "Model") -> dict[str, Any]:
        """Return the best number, when it was, and the weights of then."""
        return {"best": self._best, "best_epoch": self.best_epoch, "weights": self._state}

    def load_state(self, model: "Model", state: dict[str, Any]) -> None:
        """Compare with the best of before.

        Raises:
            CheckpointError: the weights are not those of this model.
        """
        if wrong := misfit(state["weights"], model.state_dict() if state["weights"] is not None else None, "weights"):
            raise CheckpointError(f"EarlyStopping: {wrong}")
        self._best, self.best_epoch, self._state = state["best"], state["best_epoch"], state["weights"]

    def on_epoch_end(self, model: "Model", epoch: int, logs: dict[str, float]) -> None:
        """Compare with the best so far."""
        if self.monitor not in logs:
            raise ConfigurationError(
                f"EarlyStopping watches {self.monitor!r}, but an epoch gives only {', '.join(sorted(logs))}; "
                "pass validation_data, or another monitor"
            )
        value = as_loss(self.monitor, logs[self.monitor])
        if value < self._best - self.minimum:
            self._best, self.best_epoch = value, epoch
            self._state = model.state_dict() if self.restore_best else None
        elif epoch - self.best_epoch >= self.patience:
            model.stop_training = True

    def on_fit_end(self, model: "Model") -> None:
        """Load the best weights."""
        if self._state is not None:
            model.load_state_dict(self._state)
