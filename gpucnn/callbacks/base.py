"""`Callback`: what else happens while a model is fitted; and `EarlyStopping`."""

import inspect
from typing import Any, ClassVar

from gpucnn.core import checks
from gpucnn.core.hints import hinted
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.metrics import MODES, is_larger_better
from gpucnn.saving.tree import misfit


class Callback:
    """Base of every callback: each method is called at its time and may be left out.

    `model` is the `gpucnn.Model` that is fitted, `logs` the epoch's numbers as they go into the history. A callback
    stops the run by setting `model.stop_training = True`; `model.training` holds what is known of the run.

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> class Steps(callbacks.Callback):
        ...     count = 0
        ...     def on_step_end(self, model, step):
        ...         self.count += 1
        >>> steps = Steps()
        >>> history = networks.lenet().fit(x, y, epochs=2, batch_size=32, callbacks=[steps], verbose=0)
        >>> steps.count
        4
    """

    #: names in older checkpoints: of the class, and of its arguments and the keys of its state
    former_names: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse arguments that do not fit the constructor with a hint."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = hinted(cls.__init__)  # type: ignore[method-assign]

    def on_fit_begin(self, model: Any) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Before an epoch, the first of which is 0."""

    def on_step_end(self, model: Any, step: int) -> None:
        """After a step; `step` counts from 0 within the epoch. Reading from the device here slows training down."""

    def on_train_epoch_end(self, model: Any, epoch: int) -> None:
        """After an epoch's steps, before its validation, if there is one."""

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch and its validation."""

    def on_fit_end(self, model: Any) -> None:
        """After the last epoch."""

    def on_exception(self, model: Any) -> None:
        """In place of `on_fit_end` where an error or the user's Ctrl-C ends the run; the error is raised after."""

    def state(self, model: Any) -> dict[str, Any]:
        """Return what a run that is resumed needs of this callback, for its checkpoints.

        Host arrays (`model.backend.to_host`), numbers and strings, in lists and dictionaries; tuples come back
        as lists. Asked between two steps, or when an epoch is over. A callback that keeps nothing from one step or
        epoch to the next leaves this and `load_state` out.
        """
        return {}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Take over what `state` returned, when a run is resumed.

        The model has its weights by then. It is called after `on_fit_begin` and, where the run resumes within an
        epoch, after that epoch's `on_epoch_begin`.
        """


# what Keras and earlier versions call a method, and what it is called here
OTHER_NAMES = {
    "on_train_begin": "on_fit_begin",
    "on_train_end": "on_fit_end",
    "on_batch_end": "on_step_end",
    "on_train_batch_end": "on_step_end",
    "on_epoch_trained": "on_train_epoch_end",
    "on_fit_interrupted": "on_exception",
}


def check_callbacks(callbacks: Any) -> None:
    """Refuse what is not a list of callbacks, and methods that would never be called, or not as they are written.

    Raises:
        ConfigurationError: names the method, and what it is to look like.
    """
    for callback in checks.listed(callbacks, "callbacks"):
        if not isinstance(callback, Callback):
            hint = f"; pass an object: {callback.__name__}(…)" if isinstance(callback, type) else ""
            raise ConfigurationError(f"callbacks must be Callback objects, and {callback!r} is not one{hint}")
        for name in dir(callback):
            if name.startswith("on_") and callable(getattr(callback, name)):
                _check_method(callback, name)


def _check_method(callback: Callback, name: str) -> None:
    """Refuse a method that `fit` does not call, or whose arguments are not those it is called with."""
    kind, called = type(callback).__name__, getattr(Callback, name, None)
    if called is None:
        known = ", ".join(sorted(method for method in vars(Callback) if method.startswith("on_")))
        other = f"; here it is {OTHER_NAMES[name]}(self, model, …)" if name in OTHER_NAMES else ""
        raise ConfigurationError(f"{kind} has a method {name}, which nothing calls{other}; there are {known}")
    wanted = list(inspect.signature(called).parameters)[1:]
    signature = inspect.signature(getattr(callback, name))
    given = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    try:
        signature.bind(*wanted)
    except TypeError:
        fits = False
    else:
        fits = not given or given[0] not in ("epoch", "batch", "step", "logs")
    if not fits:
        raise ConfigurationError(
            f"{kind}.{name}({', '.join(['self', *given])}) is called with other arguments; write "
            f"{name}({', '.join(['self', *wanted])})"
        )


class EarlyStopping(Callback):
    """Stop when a number has not become better for a while, and go back to the best weights.

    Arguments
        monitor       a key of the history
        patience      stop after this many epochs in a row without improvement
        min_delta             the smallest change that counts as an improvement, at least 0
        restore_best_weights  load the weights of the best epoch when the run ends
        mode          "min": smaller is better; "max": larger is better; "auto" asks the metric, and a loss is "min"

    Raises
        ConfigurationError  an argument is invalid, an epoch does not give that number, or with "auto" the metric
                            does not say which way is better

    Example
        >>> (x, y), test = datasets.synthetic_digits(64)
        >>> stop = callbacks.EarlyStopping("val_accuracy", patience=1)
        >>> history = networks.lenet().fit(x, y, epochs=50, validation_data=test, callbacks=[stop], verbose=0)
        >>> history.epochs < 50
        True
    """

    renamed: ClassVar = {"minimum": "min_delta", "restore_best": "restore_best_weights"}

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        min_delta: float = 0.0,
        restore_best_weights: bool = True,
        *,
        mode: str = "auto",
    ) -> None:
        if not isinstance(monitor, str):
            raise ConfigurationError(f'monitor must be a key of the history such as "val_loss", not {monitor!r}')
        self.monitor, self.patience = monitor, checks.integer(patience, "patience", 1)
        self.min_delta = checks.number(min_delta, "min_delta", 0)
        self.restore_best_weights = checks.flag(restore_best_weights, "restore_best_weights")
        self.mode = checks.one_of(mode, "mode", MODES)
        self.best_epoch = -1

    def on_fit_begin(self, model: Any) -> None:
        """Forget earlier runs."""
        self._sign = -1.0 if is_larger_better(self.monitor, model.metrics, self.mode) else 1.0
        self.best_epoch, self._best = -1, float("inf")
        self._state: dict[str, Any] | None = None

    def state(self, model: Any) -> dict[str, Any]:
        """Return the best number, when it was, and the weights of then."""
        return {"best": self._best, "best_epoch": self.best_epoch, "weights": self._state}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Compare with the best of before.

        Raises:
            CheckpointError: the weights are not those of this model.
        """
        if wrong := misfit(state["weights"], model.state_dict() if state["weights"] is not None else None, "weights"):
            raise CheckpointError(f"EarlyStopping: {wrong}")
        self._best, self.best_epoch, self._state = state["best"], state["best_epoch"], state["weights"]

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        """Compare with the best so far."""
        if self.monitor not in logs:
            raise ConfigurationError(
                f"EarlyStopping monitors {self.monitor!r}, but an epoch reports only {', '.join(sorted(logs))}; "
                "pass validation_data, or another monitor"
            )
        value = self._sign * logs[self.monitor]
        if value < self._best - self.min_delta:
            self._best, self.best_epoch = value, epoch
            self._state = model.state_dict() if self.restore_best_weights else None
        elif epoch - self.best_epoch >= self.patience:
            model.stop_training = True

    def on_fit_end(self, model: Any) -> None:
        """Load the best weights."""
        if self._state is not None:
            model.load_state_dict(self._state)
