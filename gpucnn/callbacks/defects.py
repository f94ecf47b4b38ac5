"""What can go wrong with a training run, found while it runs: divergence, no learning, collapse, death, a breakdown."""

import json
import math
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpucnn.callbacks import Callback
from gpucnn.core import checks
from gpucnn.core.files import explained, read_json, user_path, write_into
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.layers.activation import ReLU

DEFECTS, FORMAT = "defects.json", 1
ACTIONS = ("flag", "stop")
BINS = 40  # of a histogram
DEVIATIONS = 5.0  # of chance itself, up to which an accuracy counts as chance
LEARNED = 0.3  # of the way from chance to perfection, from which a run counts as having learned
DEAD = 0.9  # the share of a layer's units that never fire, from which it counts as dead
LASTS = 3  # looks in a row at chance, after which a run that had learned counts as broken: many dip early and recover
ONE_CLASS = 0.99  # the share of predictions that are one class, from which a run counts as collapsed


@dataclass(frozen=True)
class Defect:
    """What is wrong with a run, and since when.

    `kind` is "diverged", "broke down", "dead layer", "collapsed" or "not learning".
    """

    kind: str
    step: int
    layer: str
    detail: str

    def __str__(self) -> str:
        where = f" in {self.layer}" if self.layer else ""
        return f"{self.kind}{where} at step {self.step}: {self.detail}"


class DefectWatch(Callback):
    """Look at a model every so many steps through a fixed sample of data, and say what is wrong with its training.

    Afterwards `defect` is a `Defect` or None, `looks` holds what was seen, and `histograms` those of weights, biases
    and gradients when the defect was found, or at the end.

    Arguments
        probe   inputs and class numbers, some hundreds, host arrays
        every   steps between two looks; each costs one pass forward over the probe
        grace   steps after which a run must have begun to learn
        action  "flag" goes on, "stop" ends the training when a defect is found

    Raises
        ConfigurationError  an argument makes no sense
    """

    def __init__(self, probe: tuple[Any, Any], *, every: int = 50, grace: int = 400, action: str = "flag") -> None:
        self.action = checks.one_of(action, "action", ACTIONS)
        if len(probe) != 2 or len(probe[0]) != len(probe[1]) or not len(probe[0]):
            raise ConfigurationError("probe must be a pair of inputs and class numbers, as many of each, at least one")
        self.probe = probe
        self.every, self.grace = checks.integer(every, "every", minimum=1), checks.integer(grace, "grace", minimum=1)
        self._model: weakref.ref[Any] | None = None
        self._forget()

    def _forget(self) -> None:
        self.defect: Defect | None = None
        self.looks: list[dict[str, Any]] = []
        self.histograms: dict[str, Any] = {}
        self._steps, self._best, self._at_chance = 0, 0.0, 0

    def on_fit_begin(self, model: Any) -> None:
        """Forget another model's training; a further one of the same model goes on.

        Raises:
            ConfigurationError: the model's outputs are not scores of classes, or the probe's labels not their numbers.
        """
        shape = model.output_shape
        if len(shape) != 1 or shape[0] < 2 or getattr(self.probe[1], "ndim", 1) != 1:
            raise ConfigurationError(
                f"DefectWatch compares class numbers (N,) with outputs (N, K) of at least 2 classes; this model's are "
                f"{('N', *shape)}: leave it out for another task"
            )
        if self._model is None or self._model() is not model:
            self._forget()
            self._model = weakref.ref(model)

    def on_step_end(self, model: Any, step: int) -> None:
        """Look, from time to time."""
        self._steps += 1
        if self.defect is None and self._steps % self.every == 0:
            self._look(model)

    def on_fit_end(self, model: Any) -> None:
        """Look a last time, and keep the histograms of a good run beside which those of others can be drawn."""
        if self.defect is None:
            self._look(model)
        if self.defect is None:
            self.histograms = histograms(model)

    def on_fit_interrupted(self, model: Any) -> None:
        """Take over what ended the training, where that was NaN or infinity."""
        fault = model.training.fault
        if self.defect is None and fault is not None:
            way = f" on the way {fault.direction}" if fault.direction else ""
            self.defect = Defect("diverged", self._steps + 1, fault.layer, f"NaN or infinity{way}")
            self.histograms = histograms(model)

    def state(self, model: Any) -> dict[str, Any]:
        """Return what was seen, and what was made of it."""
        return {**self.report(), "steps": self._steps, "best": self._best, "at_chance": self._at_chance}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Go on watching.

        Raises:
            CheckpointError: it is not what a watch keeps.
        """
        if not is_report(state):
            raise CheckpointError("DefectWatch: not a defect, looks and histograms")
        self.defect = None if state["defect"] is None else Defect(**state["defect"])
        self.looks, self.histograms = state["looks"], state["histograms"]
        self._steps, self._best, self._at_chance = state["steps"], state["best"], state["at_chance"]

    def _look(self, model: Any) -> None:
        found = self._diagnose(model)
        if found is not None:
            self.defect = found
            self.histograms = histograms(model)
            if self.action == "stop":
                model.stop_training = True

    def _diagnose(self, model: Any) -> Defect | None:
        """Return the first of the defects, from the gravest down, that the probe shows."""
        lost = not_finite(model, self.probe)
        if lost is not None:
            layer, direction, number = lost
            return Defect("diverged", self._steps, layer, f"{number} on the way {direction}")
        outputs, dead = _activity(model, self.probe[0])
        predicted, labels = outputs.argmax(axis=1), self.probe[1]
        classes, count = outputs.shape[1], len(labels)
        accuracy, chance = float((predicted == labels).mean()), 1.0 / classes
        near_chance = accuracy < chance + DEVIATIONS * math.sqrt(chance * (1 - chance) / count)
        share = max(float((predicted == k).mean()) for k in range(classes))
        self.looks.append({"step": self._steps, "accuracy": accuracy, "one_class": share, "dead": dead})
        self._best = max(self._best, accuracy)
        self._at_chance = self._at_chance + 1 if near_chance else 0
        if not near_chance:
            return None
        if self._best > chance + LEARNED * (1 - chance):
            if self._at_chance < LASTS:
                return None
            fell = f"accuracy fell from {self._best:.1%} to {accuracy:.1%}"
            return Defect("broke down", self._steps, _worst(dead), fell)
        if self._steps < self.grace:
            return None
        worst = _worst(dead)
        if worst:
            return Defect("dead layer", self._steps, worst, f"{dead[worst]:.0%} of its units never fire")
        if share >= ONE_CLASS:
            return Defect("collapsed", self._steps, "", f"class {int(predicted[0])} is predicted for {share:.0%}")
        return Defect("not learning", self._steps, "", f"accuracy {accuracy:.1%} where chance is {chance:.1%}")

    def report(self) -> dict[str, Any]:
        """Return everything as plain data."""
        defect = None if self.defect is None else asdict(self.defect)
        return {"defect": defect, "looks": self.looks, "histograms": self.histograms}

    def save(self, folder: str | Path) -> None:
        """Write `defects.json` into a run folder; raises CheckpointError where it cannot be written."""
        folder, held = user_path(folder), {"format": FORMAT, **self.report()}
        with explained(folder / DEFECTS):
            write_into(folder, DEFECTS, (json.dumps(held, indent=1) + "\n").encode())


def load_report(folder: str | Path) -> dict[str, Any]:
    """Read what `DefectWatch.save` wrote into a run folder: `defect`, `looks` and `histograms`.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    file = user_path(folder) / DEFECTS
    try:
        held = read_json(file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: this run was not watched for defects; `gpucnn train` and `gpucnn runs` watch theirs"
        ) from error
    form = held.get("format") if isinstance(held, dict) else None
    if form != FORMAT:
        raise CheckpointError(
            f"{file}: is of format {form!r}, and this gpucnn reads {FORMAT}; was it written by another?"
        )
    if not is_report(held):
        raise CheckpointError(
            f"{file}: does not hold what a DefectWatch reports, a defect, looks and histograms; was it edited?"
        )
    return held


def not_finite(model: Any, probe: tuple[Any, Any]) -> tuple[str, str, str] | None:
    """Return where a NaN or an infinity first stands: the layer, "forward" or "backward", and what it is in words.

    The loss is finite by construction where a softmax is fused with it, so the layers themselves are looked at.
    """
    backend = model.backend
    for path, parameter in model.parameters().items():
        values = backend.to_host(parameter.value)
        if not _finite(values):
            return path.rpartition(".")[0], "backward", f"its {path.rpartition('.')[2]} is not finite"
    with backend.on_device():
        x = model.as_floats(backend.from_host(probe[0]))
        for name, layer in model.network.children():
            x, _ = layer.forward(x, train=False)
            if not _finite(backend.to_host(x)):
                return name, "forward", "its output is not finite"
    return None


def _finite(array: Any) -> bool:
    return math.isfinite(float(abs(array).max())) if array.size else True


def _activity(model: Any, x: Any) -> tuple[Any, dict[str, float]]:
    """Return the outputs for a probe as a host array, and the share of each ReLU's units that are 0 for all of it.

    A unit is a feature, or a channel of an image.
    """
    backend, dead = model.backend, {}
    x = model.as_floats(backend.from_host(x))
    for name, layer in model.network.children():
        x, _ = layer.forward(x, train=False)
        if isinstance(layer, ReLU):
            fires = backend.to_host((x > 0).any(axis=tuple(range(x.ndim - 1))))
            dead[name] = 1.0 - float(fires.mean())
    return backend.to_host(x), dead


def _worst(dead: dict[str, float]) -> str:
    """Return the first layer that is dead, or ""."""
    return next((layer for layer, share in dead.items() if share >= DEAD), "")


def histograms(model: Any) -> dict[str, Any]:
    """Return, for each parameter by path, how its values and its last gradients are distributed: counts and edges.

    What is not finite is counted apart.
    """
    result: dict[str, Any] = {}
    for path, parameter in model.parameters().items():
        for what, array in ((path, parameter.value), (f"{path} gradient", parameter.grad)):
            if array is not None:
                result[what] = _histogram(model.backend.to_host(array).astype("float64").ravel())
    return result


def _histogram(values: Any) -> dict[str, Any]:
    finite = values[abs(values) < math.inf]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    width = (high - low) / BINS  # 0 where all values are one: then all edges are that value
    places = ((finite - low) / (width or 1.0)).astype("int64").clip(0, BINS - 1)
    counts = [int((places == k).sum()) for k in range(BINS)]
    edges = [low + width * k for k in range(BINS + 1)]
    return {"counts": counts, "edges": edges, "not_finite": int(values.size - finite.size)}


def is_report(found: Any) -> bool:
    """Tell whether this is what `DefectWatch.report` returns."""
    if not isinstance(found, dict) or not {"defect", "looks", "histograms"} <= found.keys():
        return False
    defect, looks, histograms = found["defect"], found["looks"], found["histograms"]
    return (
        (defect is None or (isinstance(defect, dict) and {"kind", "step", "layer", "detail"} <= defect.keys()))
        and isinstance(looks, list)
        and all(_is_look(look) for look in looks)
        and isinstance(histograms, dict)
        and all(_is_histogram(one) for one in histograms.values())
    )


def _is_look(look: Any) -> bool:
    return (
        isinstance(look, dict)
        and all(is_number(look.get(name)) for name in ("step", "accuracy", "one_class"))
        and isinstance(look.get("dead"), dict)
        and all(is_number(share) for share in look["dead"].values())
    )


def _is_histogram(one: Any) -> bool:
    if not isinstance(one, dict):
        return False
    counts, edges = one.get("counts"), one.get("edges")
    return (
        isinstance(counts, list)
        and isinstance(edges, list)
        and len(edges) == len(counts) + 1
        and all(is_number(number) for number in [*counts, *edges, one.get("not_finite")])
    )


def is_number(value: Any) -> bool:
    """Tell whether this is a number, and not a truth value that counts as one."""
    return isinstance(value, int | float) and not isinstance(value, bool)
