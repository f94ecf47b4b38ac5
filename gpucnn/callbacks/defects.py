"""Detection of defects during training: divergence, no learning, dead ReLUs, late collapse."""

import json
import math
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from gpucnn.callbacks import Callback
from gpucnn.core import checks
from gpucnn.core.files import explained, read_json, user_path, write_into
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.layers.activation import ReLU
from gpucnn.layers.hooks import find_not_finite
from gpucnn.saving.tree import misfit

DEFECTS, FORMAT = "defects.json", 1
ON_DEFECT = ("flag", "stop")
BINS = 40  # of a histogram
MAX_CHANCE_DEVIATIONS = 5.0  # standard deviations of chance, up to which an accuracy counts as chance
MIN_LEARNED = 0.3  # of the way from chance to perfection, from which a run counts as having learned
MIN_DEAD = 0.9  # fraction of a layer's units that never fire, from which it counts as dead
PATIENCE = 3  # observations in a row at chance, after which a run that had learned has collapsed: many dip and recover
MIN_SINGLE_CLASS = 0.99  # fraction of predictions that are one class, from which a run counts as predicting only that
FORMER_KINDS = {"broke down": "late collapse", "dead layer": "dead ReLUs", "collapsed": "single-class predictions"}


@dataclass(frozen=True)
class Defect:
    """A defect of a training run, and the step at which it was found.

    `kind` is "diverged" (NaN or infinity), "late collapse" (it had learned, and fell back to chance), "dead ReLUs" (a
    layer whose units never fire), "single-class predictions" or "not learning" (accuracy still at chance).
    """

    kind: str
    step: int
    layer: str
    detail: str

    def __str__(self) -> str:
        where = f" in {self.layer}" if self.layer else ""
        return f"{self.kind}{where} at step {self.step}: {self.detail}"


class TrainingMonitor(Callback):
    """Check a model every few steps on a fixed sample of data, and report defects of its training.

    Afterwards `defect` is a `Defect` or None, `observations` holds the measurements, and `histograms` those of
    weights, biases and gradients when the defect was found, or at the end.

    Arguments
        monitor_data  inputs and class indices, some hundreds, host arrays
        every         steps between two observations; each costs one forward pass over `monitor_data`
        grace_steps   steps after which a run must have started to learn
        on_defect     "flag" continues, "stop" ends the run when a defect is found

    Raises
        ConfigurationError  an argument is invalid

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.callbacks.defects import TrainingMonitor
        >>> monitor = TrainingMonitor((x, y), on_defect="stop")
        >>> history = networks.lenet().fit(x, y, epochs=1, callbacks=[monitor], verbose=0)
        >>> monitor.defect is None
        True
    """

    former_names = ("DefectWatch",)
    renamed: ClassVar = {"grace": "grace_steps", "action": "on_defect", "looks": "observations"}

    def __init__(
        self, monitor_data: tuple[Any, Any], *, every: int = 50, grace_steps: int = 400, on_defect: str = "flag"
    ) -> None:
        self.on_defect = checks.one_of(on_defect, "on_defect", ON_DEFECT)
        if len(monitor_data) != 2 or len(monitor_data[0]) != len(monitor_data[1]) or not len(monitor_data[0]):
            raise ConfigurationError(
                "monitor_data must be a pair of inputs and class indices, one per input, not empty"
            )
        self.monitor_data = monitor_data
        self.every = checks.integer(every, "every", minimum=1)
        self.grace_steps = checks.integer(grace_steps, "grace_steps", minimum=1)
        self._model: weakref.ref[Any] | None = None
        self._forget()

    def _forget(self) -> None:
        self.defect: Defect | None = None
        self.observations: list[dict[str, Any]] = []
        self.histograms: dict[str, Any] = {}
        self._steps, self._best, self._at_chance = 0, 0.0, 0

    def on_fit_begin(self, model: Any) -> None:
        """Start over with another model; a further fit of the same model continues.

        Raises:
            ConfigurationError: the model's outputs are not class scores, or the labels are not class indices.
        """
        shape = model.output_shape
        if len(shape) != 1 or shape[0] < 2 or getattr(self.monitor_data[1], "ndim", 1) != 1:
            raise ConfigurationError(
                f"TrainingMonitor compares class indices (N,) with outputs (N, K) of at least 2 classes; this model's "
                f"are {('N', *shape)}: leave it out for another task"
            )
        if self._model is None or self._model() is not model:
            self._forget()
            self._model = weakref.ref(model)

    def on_step_end(self, model: Any, step: int) -> None:
        """Observe the model every few steps."""
        self._steps += 1
        if self.defect is None and self._steps % self.every == 0:
            self._observe(model)

    def on_fit_end(self, model: Any) -> None:
        """Observe the model a last time, and keep the histograms of a successful run, to compare others with."""
        if self.defect is None:
            self._observe(model)
        if self.defect is None:
            self.histograms = histograms(model)

    def on_exception(self, model: Any) -> None:
        """Record that NaN or infinity ended the run."""
        fault = model.training.fault
        if self.defect is None and fault is not None:
            where = f" in the {fault.direction} pass" if fault.direction else ""
            self.defect = Defect("diverged", self._steps + 1, fault.layer, f"NaN or infinity{where}")
            self.histograms = histograms(model)

    def state(self, model: Any) -> dict[str, Any]:
        """Return the report, and the state of the diagnosis."""
        return {**self.report(), "steps": self._steps, "best": self._best, "at_chance": self._at_chance}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            CheckpointError: it is not the state of a monitor.
        """
        state = with_current_names(state)
        if not is_report(state):
            raise CheckpointError("TrainingMonitor: not a defect, observations and histograms")
        self.defect = None if state["defect"] is None else Defect(**state["defect"])
        self.observations, self.histograms = state["observations"], state["histograms"]
        self._steps, self._best, self._at_chance = state["steps"], state["best"], state["at_chance"]

    def _observe(self, model: Any) -> None:
        found = self._diagnose(model)
        if found is not None:
            self.defect = found
            self.histograms = histograms(model)
            if self.on_defect == "stop":
                model.stop_training = True

    def _diagnose(self, model: Any) -> Defect | None:
        """Return the first defect, most severe first, that the measurements show."""
        inputs, labels = self.monitor_data
        outputs, dead, not_finite = _observe_layers(model, inputs)
        if not_finite:  # the loss need not show it: fused with a softmax it is finite by construction
            layer, direction, what = not_finite[0]
            return Defect("diverged", self._steps, layer, f"{what} in the {direction} pass")
        predicted = outputs.argmax(axis=1)
        num_classes, count = outputs.shape[1], len(labels)
        accuracy, chance = float((predicted == labels).mean()), 1.0 / num_classes
        near_chance = accuracy < chance + MAX_CHANCE_DEVIATIONS * math.sqrt(chance * (1 - chance) / count)
        largest = max(float((predicted == k).mean()) for k in range(num_classes))
        self.observations.append({"step": self._steps, "accuracy": accuracy, "one_class": largest, "dead": dead})
        self._best = max(self._best, accuracy)
        self._at_chance = self._at_chance + 1 if near_chance else 0
        if not near_chance:
            return None
        if self._best > chance + MIN_LEARNED * (1 - chance):
            if self._at_chance < PATIENCE:
                return None
            fell = f"accuracy fell from {self._best:.1%} to {accuracy:.1%}"
            return Defect("late collapse", self._steps, _first_dead_layer(dead), fell)
        if self._steps < self.grace_steps:
            return None
        layer = _first_dead_layer(dead)
        if layer:
            return Defect("dead ReLUs", self._steps, layer, f"{dead[layer]:.0%} of its units never fire")
        if largest >= MIN_SINGLE_CLASS:
            detail = f"class {int(predicted[0])} is predicted for {largest:.0%}"
            return Defect("single-class predictions", self._steps, "", detail)
        return Defect("not learning", self._steps, "", f"accuracy {accuracy:.1%} where chance is {chance:.1%}")

    def report(self) -> dict[str, Any]:
        """Return everything as plain data."""
        defect = None if self.defect is None else asdict(self.defect)
        return {"defect": defect, "observations": self.observations, "histograms": self.histograms}

    def save(self, folder: str | Path) -> None:
        """Write `defects.json` into a run folder; raises CheckpointError if it cannot be written."""
        folder, held = user_path(folder), {"format": FORMAT, **self.report()}
        with explained(folder / DEFECTS):
            write_into(folder, DEFECTS, (json.dumps(held, indent=1) + "\n").encode())


def load_report(folder: str | Path) -> dict[str, Any]:
    """Read what `TrainingMonitor.save` wrote into a run folder: `defect`, `observations` and `histograms`.

    Raises:
        CheckpointError: the file is missing, damaged or of another version.
    """
    file = user_path(folder) / DEFECTS
    try:
        held = read_json(file)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: not found; this run was not monitored for defects, as `gpucnn train` and `gpucnn runs` do"
        ) from error
    form = held.get("format") if isinstance(held, dict) else None
    if form != FORMAT:
        raise CheckpointError(f"{file}: has format {form!r}, expected {FORMAT}; was it written by another version?")
    held = with_current_names(held)
    if not is_report(held):
        raise CheckpointError(
            f"{file}: is not a TrainingMonitor's report of a defect, observations and histograms; was it edited?"
        )
    return held


def with_current_names(held: dict[str, Any]) -> dict[str, Any]:
    """Return a report with the current names of its keys and of its kind of defect."""
    held = {TrainingMonitor.renamed.get(key, key): value for key, value in held.items()}
    if isinstance(defect := held.get("defect"), dict):
        kind = defect.get("kind")
        held["defect"] = defect | ({"kind": FORMER_KINDS[kind]} if kind in FORMER_KINDS else {})
    return held


def _observe_layers(model: Any, inputs: Any) -> tuple[Any, dict[str, float], list[tuple[str, str, str]]]:
    """Return the outputs as a host array, the fraction of dead units of each ReLU, and the source of NaN or infinity.

    A unit is a feature, or a channel of an image; it is dead if it is 0 for all inputs.
    """
    backend, dead = model.backend, {}
    with backend.on_device(), find_not_finite(model.network) as not_finite:
        x = model.as_floats(backend.from_host(inputs))
        for name, layer in model.network.children():
            x, _ = layer.forward(x, train=False)
            if isinstance(layer, ReLU):
                fires = backend.to_host((x > 0).any(axis=tuple(range(x.ndim - 1))))
                dead[name] = 1.0 - float(fires.mean())
        return backend.to_host(x), dead, not_finite


def _first_dead_layer(dead: dict[str, float]) -> str:
    """Return the name of the first dead layer, or ""."""
    return next((layer for layer, fraction in dead.items() if fraction >= MIN_DEAD), "")


def histograms(model: Any) -> dict[str, Any]:
    """Return histograms of each parameter's values and last gradients, by path: counts and bin edges.

    Values that are not finite are counted separately.
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
    bins = ((finite - low) / (width or 1.0)).astype("int64").clip(0, BINS - 1)
    counts = [int((bins == k).sum()) for k in range(BINS)]
    edges = [low + width * k for k in range(BINS + 1)]
    return {"counts": counts, "edges": edges, "not_finite": int(values.size - finite.size)}


def is_report(found: Any) -> bool:
    """Return whether plain data have the form of what `TrainingMonitor.report` returns."""
    try:
        held = {name: found[name] for name in ("defect", "observations", "histograms")}
        form = {
            "defect": held["defect"] and {"kind": "", "step": 0, "layer": "", "detail": ""},
            "observations": [
                {"step": 0.0, "accuracy": 0.0, "one_class": 0.0, "dead": dict.fromkeys(one["dead"], 0.0)}
                for one in held["observations"]
            ],
            "histograms": {
                name: {"counts": [0.0] * len(one["counts"]), "edges": [0.0] * (len(one["counts"]) + 1), "not_finite": 0}
                for name, one in held["histograms"].items()
            },
        }
    except (AttributeError, KeyError, TypeError):
        return False
    return not misfit(held, form)
