"""The state of a training run between two steps: collected as a tree for a checkpoint, compared, and restored.

The tree holds everything that the next steps depend on: parameters, buffers with their random streams, the optimizer's
slots and step count, the position, the epoch's running sums as they are on the device, the random stream of
augmentation, the history, and the states of callbacks. What follows from these, such as an epoch's order, is left out.
"""

import inspect
import json
import math
from collections.abc import Iterator
from typing import Any

from gpucnn.callbacks import Callback
from gpucnn.core import config
from gpucnn.core.checks import is_integer, is_number
from gpucnn.core.config import Configurable
from gpucnn.data.batches import batches, num_steps
from gpucnn.data.fingerprint import fingerprint
from gpucnn.errors import CheckpointError, GpucnnError
from gpucnn.saving.tree import Tree, misfit
from gpucnn.training.history import current_key
from gpucnn.training.session import Training
from gpucnn.training.steps import StepRunner
from gpucnn.version import __version__

MAX_SHOWN = 6  # differences that a message names
POSITION = ("epoch", "step", "seconds", "learning_rate")  # attributes of a `Training`
FORMER_KEYS = {"epochs_seen": "epochs_trained", "circumstances": "environment"}


def with_current_keys(tree: Tree) -> Tree:
    """Return a tree with the keys that are written now, whenever it was written."""
    if not isinstance(tree, dict):
        return tree
    tree = {FORMER_KEYS.get(key, key): value for key, value in tree.items()}
    if isinstance(tree.get("model"), dict):
        tree["model"] = {FORMER_KEYS.get(key, key): value for key, value in tree["model"].items()}
    if isinstance(tree.get("history"), dict):
        tree["history"] = {current_key(key): values for key, values in tree["history"].items()}
    found = tree.get("environment")
    if isinstance(found, dict) and found.get("backend") == "portable":
        tree["environment"] = found | {"backend": "reference"}
    return tree


def settings(training: Training) -> dict[str, Any]:
    """Return, as plain data, what must be equal for a run to be the one that was interrupted."""
    model, data = training.model, training.data
    assert model.loss is not None
    described = {
        "network": model.network.config(),
        "input_shape": model.input_shape,
        "dtype": model.dtype,
        "allow_tf32": model.allow_tf32,
        "frozen": model.frozen_parameters(),
        "seed": model.seed,
        "optimizer": model.optimizer.config(),
        "loss": model.loss.config(),
        "metrics": [metric.config() for metric in model.metrics],
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "shuffle": training.shuffle,
        "augment": [augmentation.config() for augmentation in training.augment],
        "callbacks": [_arguments(callback) for callback in _stateful(training)],
        "data": fingerprint(*data),
        "validation_data": None if training.validation_data is None else fingerprint(*training.validation_data),
    }
    return dict(json.loads(json.dumps(described)))  # tuples become lists, as they will be read


def with_current_names(tree: Tree, training: Training) -> Tree:
    """Return a checkpoint with current names for what was renamed, and defaults for newer arguments."""
    callbacks, known = _stateful(training), config.with_current_names(tree["settings"])
    described, states = known.get("callbacks"), tree.get("callbacks")
    if _is_list_of_dicts(described, len(callbacks)):
        known |= {"callbacks": [_defaults(c) | _current(c, held) for c, held in zip(callbacks, described, strict=True)]}
    if _is_list_of_dicts(states, len(callbacks)):
        states = [_renamed(callback, held) for callback, held in zip(callbacks, states, strict=True)]
    return {**tree, "settings": known, "callbacks": states}


def _is_list_of_dicts(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(isinstance(item, dict) for item in value)


def _renamed(callback: Callback, held: dict[str, Any]) -> dict[str, Any]:
    return {type(callback).renamed.get(name, name): value for name, value in held.items()}


def _current(callback: Callback, described: dict[str, Any]) -> dict[str, Any]:
    """Return a callback's saved class and arguments with the names that they have now."""
    described = _renamed(callback, described)
    if described.get("Callback") in type(callback).former_names:
        described["Callback"] = type(callback).__name__
    if isinstance(monitor := described.get("monitor"), str):
        described["monitor"] = current_key(monitor)
    return described


def environment(training: Training) -> dict[str, Any]:
    """Return, as plain data, what may differ, at the cost of the last bits of the results."""
    return {**training.model.backend.environment(), "gpucnn": __version__}


def diff(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield descriptions of the differences between two pieces of plain data."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*then, *now)):
            yield from diff(then.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for place, (before, after) in enumerate(zip(then, now, strict=True)):
            yield from diff(before, after, f"{path}.{place}")
    elif then != now:
        yield f"{path} was {_short(then)} and is {_short(now)}"


def format_diff(found: list[str]) -> str:
    """Return the first differences as a list in one sentence."""
    more = len(found) - MAX_SHOWN
    return "; ".join(found[:MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def is_head(tree: Tree) -> bool:
    """Return whether a tree holds the settings of its run, its position in it, and the best model so far."""
    parts = [tree.get(name) for name in ("settings", "environment", "position", "model", "optimizer")]
    if not all(isinstance(part, dict) for part in parts) or "best" not in tree:
        return False
    known, position, best = tree["settings"], tree["position"], tree["best"]
    try:
        json.dumps([known, tree["environment"]])
    except TypeError:  # an array among plain data
        return False
    return (
        is_number(known.get("epochs"))
        and all(is_integer(position.get(name)) and position[name] >= 0 for name in ("epoch", "step"))
        and (best is None or not misfit(best, {"monitor": "", "value": 0.0, "epoch": 0}))
    )


def is_over(tree: Tree, epochs: float) -> bool:
    """Return whether a checkpoint is that of the end of a run of this many epochs."""
    return tree["model"].get("stop") is True or tree["position"]["epoch"] >= math.ceil(epochs)


def same_so_far(training: Training, tree: Tree, epochs: float) -> bool:
    """Return whether a run of another number of epochs has taken the same steps up to a checkpoint.

    Only schedules, of the learning rate and of averages, depend on the number of epochs.
    """
    optimizer, count = training.model.optimizer, len(training.data[0])
    last, step = tree["position"]["epoch"], tree["position"]["step"]
    if epochs < last:  # the last epoch was shortened
        return False
    if any(callable(getattr(callback, "decay", None)) for callback in training.callbacks):
        return False
    parts = list(batches(count, training.batch_size))
    made = [(epoch, part.start) for epoch in range(last) for part in parts] + [(last, p.start) for p in parts[:step]]
    points = [epoch + start / count for epoch, start in made]
    return all(
        optimizer.learning_rates_at(point, epochs) == optimizer.learning_rates_at(point, training.epochs)
        for point in points
    )


def snapshot(training: Training, steps: StepRunner) -> Tree:
    """Return the state as a tree, with copies of all arrays on the host."""
    model, to_host = training.model, training.model.backend.to_host
    held = {
        "arrays": model.state_dict(),
        "epochs_trained": model.epochs_trained,
        "progress": training.progress,
        "stop": model.stop_training,
    }
    if not training.has_next_step:  # which would forget the gradients; callbacks may still look at them
        grads = {path: parameter.grad for path, parameter in model.parameters().items() if parameter.grad is not None}
        held["gradients"] = {path: to_host(grad).copy() for path, grad in grads.items()}
    return {
        "position": {name: getattr(training, name) for name in POSITION},
        "history": training.history.history,
        "samples": training.samples_per_epoch,
        "model": held,
        "optimizer": {"steps": model.optimizer.steps, "slots": model.optimizer.state_dict(model.backend)},
        "augment": steps.input.stream.copy(),
        "totals": steps.totals.state() if training.step else None,
        "callbacks": [callback.state(model) for callback in _stateful(training)],
    }


def restore(training: Training, steps: StepRunner, tree: Tree) -> None:
    """Restore what `snapshot` returned, after the callbacks' `on_fit_begin`.

    Within an epoch, the callbacks' `on_epoch_begin` is called before their states are restored, so that one without a
    state finds what it creates there.

    Raises:
        CheckpointError: the tree does not fit this run; the model is unchanged.
    """
    model = training.model
    weights, counts = model.state_dict(), (model.epochs_trained, training.progress, model.optimizer.steps)
    slots = model.optimizer.state_dict(model.backend)
    if isinstance(saved := tree["optimizer"].get("slots"), dict):
        tree["optimizer"]["slots"] = model.optimizer.with_current_slots(saved)
    try:
        if wrong := _misfit(training, steps, tree):
            raise CheckpointError(wrong)
        _restore(training, steps, tree)
    except (GpucnnError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        model.load_state_dict(weights)
        model.optimizer.load_state_dict(model.backend, slots)
        model.epochs_trained, training.progress, model.optimizer.steps = counts
        training.notify("on_fit_begin")  # discards what it has restored
        raise CheckpointError(
            f"the checkpoint can be read, but does not fit this run: {error}; was it edited? Start a new run in "
            "another folder"
        ) from error


def _restore(training: Training, steps: StepRunner, tree: Tree) -> None:
    model, held = training.model, tree["model"]
    for name in POSITION:
        setattr(training, name, tree["position"][name])
    if training.step:
        training.notify("on_epoch_begin", training.epoch)
    training.history.history, training.samples_per_epoch = tree["history"], tree["samples"]
    model.load_state_dict(held["arrays"])
    for path, gradient in held.get("gradients", {}).items():
        model.parameters()[path].grad[...] = model.backend.from_host(gradient)  # type: ignore[index]
    model.epochs_trained, model.stop_training = held["epochs_trained"], held["stop"]
    training.progress = held["progress"][0], training.epochs
    model.optimizer.steps = tree["optimizer"]["steps"]
    model.optimizer.load_state_dict(model.backend, tree["optimizer"]["slots"])
    steps.input.stream[...] = tree["augment"]
    for callback, state in zip(_stateful(training), tree["callbacks"], strict=True):
        callback.load_state(model, state)
    if training.step:
        steps.begin_epoch(training.order())
        steps.totals.load_state(tree["totals"])


def _misfit(training: Training, steps: StepRunner, tree: Tree) -> str:
    """Return what in a tree does not have the form of this run's state, as text, or ""."""
    own, varies = snapshot(training, steps), {"history": None, "samples": None, "totals": None, "callbacks": None}
    parameters = training.model.parameters()
    gradients = tree["model"].get("gradients", {})
    own["model"]["gradients"] = {path: training.model.backend.to_host(parameters[path].value) for path in gradients}
    fixed = {**own, **varies}
    wrong = misfit({name: tree.get(name) for name in own} | {"model": {"gradients": {}} | tree["model"]}, fixed)
    if not wrong and tree["position"]["step"]:
        wrong = misfit(tree["totals"], steps.totals.state(), "totals")
    if not wrong:  # callbacks check the rest themselves
        wrong = misfit(tree["callbacks"], own["callbacks"], "callbacks", depth=2)
    return wrong or _wrong_numbers(training, tree)


def measured(training: Training) -> list[str]:
    """Return the keys of a run's history, without times and the learning rate."""
    own = ["loss", *(metric.name for metric in training.model.metrics)]
    validation = [] if training.validation_data is None else [f"val_{key}" for key in own]
    return [*own, *(f"cumulative_{key}" for key in own), *validation]


def _wrong_numbers(training: Training, tree: Tree) -> str:
    """Return which counts of a tree are impossible, as text, or ""."""
    epoch, step = tree["position"]["epoch"], tree["position"]["step"]
    whole = math.ceil(training.epochs)
    max_step = (
        num_steps(epoch, training.epochs, -(-len(training.data[0]) // training.batch_size)) if epoch < whole else 0
    )
    if not (0 <= epoch <= whole and 0 <= step <= max_step):
        return f"its position, epoch {epoch} and step {step}, is outside the run"
    counts = [tree["model"]["epochs_trained"], tree["optimizer"]["steps"], tree["position"]["seconds"]]
    if not all(0 <= count < math.inf for count in counts):
        return f"its counts are {counts}"
    samples, history = tree["samples"], tree["history"]
    if not isinstance(samples, list) or len(samples) != epoch or not all(is_integer(n) and n > 0 for n in samples):
        return f"samples is not a list of {epoch} positive numbers"
    if not isinstance(history, dict) or not all(
        isinstance(values, list) and len(values) == epoch and all(is_number(value) for value in values)
        for values in history.values()
    ):
        return f"history is not lists of {epoch} numbers"
    keys = [*measured(training), "learning_rate", "seconds", "seconds_per_step"] if epoch else []
    missing = [key for key in keys if key not in history]
    return f"history lacks {', '.join(missing)}" if missing else ""


def _stateful(training: Training) -> list[Callback]:
    """Return the callbacks that have state."""
    return [callback for callback in training.callbacks if type(callback).state is not Callback.state]


def _arguments(callback: Callback) -> dict[str, Any]:
    """Return a callback's class, and those of its arguments that are attributes and plain data."""
    described: dict[str, Any] = {"Callback": type(callback).__name__}
    for name in inspect.signature(type(callback)).parameters:
        value = getattr(callback, name, None)
        if isinstance(value, Configurable):
            described[name] = value.config()
        elif isinstance(value, bool | int | float | str):
            described[name] = value
    return described


def _defaults(callback: Callback) -> dict[str, Any]:
    """Return the plain defaults of the arguments that `_arguments` returns."""
    own, parameters = _arguments(callback), inspect.signature(type(callback)).parameters.values()
    return {p.name: p.default for p in parameters if p.name in own and isinstance(p.default, bool | int | float | str)}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:20] + "…"
