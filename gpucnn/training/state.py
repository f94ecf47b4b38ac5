"""What a training is between two steps: gathered as a tree for a checkpoint, compared, and put back.

The tree holds all that the next step and everything after it depend on: parameters, buffers and their random streams,
the optimizer's slots and count, the position, the epoch's sums as they are on the device, the stream of augmentation,
the history, and the states of callbacks. What is a function of these alone, such as an epoch's order, is left out.
"""

import inspect
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpucnn.callbacks import Callback
from gpucnn.config import Configurable
from gpucnn.data.fingerprint import fingerprint
from gpucnn.trees import Tree

if TYPE_CHECKING:
    from gpucnn.training.loop import Training
    from gpucnn.training.steps import Steps

MOST_SAID = 6  # differences that a message names


def settings(training: "Training") -> dict[str, Any]:
    """Return, as plain data, what must be the same for a training to be the one that was interrupted."""
    model, data = training.model, training.data
    assert model.loss is not None
    described = {
        "network": model.network.config(),
        "input_shape": model.input_shape,
        "dtype": model.dtype,
        "allow_tf32": model.allow_tf32,
        "frozen": [path for path, parameter in model.parameters().items() if parameter.frozen],
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
    plain: dict[str, Any] = json.loads(json.dumps(described))  # tuples become lists, as they will be read
    return plain


def circumstances(training: "Training") -> dict[str, Any]:
    """Return, as plain data, what may change, but not without changing the last bits of results."""
    from gpucnn import __version__

    return {**training.model.backend.circumstances(), "gpucnn": __version__}


def differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield, in words, where two pieces of plain data differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*then, *now)):
            yield from differences(then.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for place, (before, after) in enumerate(zip(then, now, strict=True)):
            yield from differences(before, after, f"{path}.{place}")
    elif then != now:
        yield f"{path} was {_short(then)} and is {_short(now)}"


def in_words(found: list[str]) -> str:
    """Return the first differences as one sentence's list."""
    more = len(found) - MOST_SAID
    return "; ".join(found[:MOST_SAID]) + (f"; and {more} more" if more > 0 else "")


def gather(training: "Training", steps: "Steps") -> Tree:
    """Return the tree, with copies of all arrays on the host."""
    model, to_host = training.model, training.model.backend.to_host
    held = {
        "arrays": model.state_dict(),
        "epochs_seen": model.epochs_seen,
        "progress": model.progress,
        "stop": model.stop_training,
    }
    if not training.a_step_follows:  # which would forget the gradients; callbacks may still look at them
        grads = {path: parameter.grad for path, parameter in model.parameters().items() if parameter.grad is not None}
        held["gradients"] = {path: to_host(grad).copy() for path, grad in grads.items()}
    return {
        "position": {
            "epoch": training.epoch,
            "step": training.step,
            "seconds": training.seconds,
            "learning_rate": training.learning_rate,
        },
        "history": training.history.history,
        "samples": training.samples,
        "model": held,
        "optimizer": {"steps": model.optimizer.steps, "slots": model.optimizer.state_dict(model.backend)},
        "augment": steps.stream.copy(),
        "totals": steps.totals.state() if training.step else None,
        "callbacks": [callback.state(model) for callback in _stateful(training)],
    }


def restore(training: "Training", steps: "Steps", tree: Tree) -> None:
    """Put everything back that `gather` returned; the callbacks have been told that the fit begins.

    Within an epoch they are told that it begins as well, before their states are put back: one without a state finds
    what it makes for itself there.
    """
    model, held, position = training.model, tree["model"], tree["position"]
    training.epoch, training.step, training.seconds = position["epoch"], position["step"], position["seconds"]
    training.learning_rate = position["learning_rate"]
    if training.step:
        for callback in training.callbacks:
            callback.on_epoch_begin(model, training.epoch)
    training.history.history, training.samples = tree["history"], tree["samples"]
    model.load_state_dict(held["arrays"])
    for path, gradient in held.get("gradients", {}).items():
        model.parameters()[path].grad[...] = model.backend.from_host(gradient)  # type: ignore[index]
    model.epochs_seen, model.stop_training = held["epochs_seen"], held["stop"]
    model.progress = held["progress"][0], held["progress"][1]
    model.optimizer.steps = tree["optimizer"]["steps"]
    model.optimizer.load_state_dict(model.backend, tree["optimizer"]["slots"])
    steps.stream[...] = tree["augment"]
    for callback, state in zip(_stateful(training), tree["callbacks"], strict=True):
        callback.load_state(model, state)
    if training.step:
        steps.begin_epoch(training.order())
        steps.totals.load_state(tree["totals"])


def _stateful(training: "Training") -> list[Callback]:
    """Return the callbacks that have a state of their own."""
    return [callback for callback in training.callbacks if type(callback).state is not Callback.state]


def _arguments(callback: Callback) -> dict[str, Any]:
    """Return a callback's class, and those of its arguments that are kept by their names and are plain data."""
    described: dict[str, Any] = {"Callback": type(callback).__name__}
    for name in inspect.signature(type(callback)).parameters:
        value = getattr(callback, name, None)
        if isinstance(value, Configurable):
            described[name] = value.config()
        elif isinstance(value, bool | int | float | str):
            described[name] = value
    return described


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:20] + "…"
