"""Public docstrings: each ends with an example, which `pytest --doctest-modules gpucnn` runs."""

import importlib
import inspect
from operator import attrgetter

import pytest

import gpucnn
from gpucnn import callbacks, datasets, initializers, layers, losses, metrics, networks, optimizers, plots, schedules
from gpucnn.data import augment

NOT_TYPED = BaseException, Warning  # raised and caught, not called

OTHERS = (
    "gpucnn.callbacks.defects.TrainingMonitor",
    "gpucnn.callbacks.snapshots.Snapshots",
    "gpucnn.callbacks.snapshots.load_snapshots",
    "gpucnn.data.tta.Views",
    "gpucnn.networks.whitening.whiten",
    "gpucnn.report.write",
)

VERBS = "apply_gradients", "compile", "forward", "freeze"


def public():
    """Return the public classes and functions by their full names."""
    found = {}
    for module in (gpucnn, callbacks, layers, networks, optimizers, plots):
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    for module in (augment, datasets, initializers, losses, metrics, schedules):
        found |= {
            f"{module.__name__}.{name}": value
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and is_for_users(module, name, value)
        }
    for name in OTHERS:
        module, _, last = name.rpartition(".")
        found[name] = getattr(importlib.import_module(module), last)
    found |= {f"gpucnn.Model.{verb}": attrgetter(verb)(gpucnn.Model) for verb in VERBS}
    return {name: value for name, value in found.items() if is_documented(name, value)}


def is_for_users(module, name, value):
    """Return whether a module without `__all__` holds something for users: its settings and data sets."""
    if module is datasets:
        return not name.startswith("_")
    bases = augment.Augmentation, initializers.Initializer, losses.Loss, metrics.Metric, schedules.Schedule
    return inspect.isclass(value) and issubclass(value, bases) and not name.startswith("_")


def is_documented(name, value):
    if name.endswith(".check_callbacks"):
        return False
    if inspect.isclass(value):
        return not issubclass(value, NOT_TYPED)
    return inspect.isfunction(value)


@pytest.mark.parametrize("name", public())
def test_public_docstring_has_an_example(name):
    assert ">>> " in (inspect.getdoc(public()[name]) or ""), f"end the docstring of {name} with an example"


def test_public_objects_are_found():
    assert {"gpucnn.Model", "gpucnn.layers.Dense", "gpucnn.plots.history", "gpucnn.schedules.Cosine"} <= set(public())
