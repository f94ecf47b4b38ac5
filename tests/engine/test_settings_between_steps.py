"""What changes between two steps is obeyed in the very next one, on every backend, captured or not."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn import losses, optimizers, schedules
from gpucnn.backends import get_backend
from gpucnn.backends.numpy import threads
from gpucnn.data.augment import Flip
from gpucnn.optimizers import Group
from tests.helpers import After, model_with_settings, outcome


def setting(get, name, value):
    def change(model):
        assert hasattr(get(model), name)
        setattr(get(model), name, value)

    return change


def of_layer(name, value, layer):
    return setting(lambda model: next(one for one in model.layers if one.display_name == layer), name, value)


def of_optimizer(name, value):
    return setting(lambda model: model.optimizer, name, value)


def of_first_group(name, value):
    return setting(lambda model: model.optimizer.groups[0], name, value)


def new_stream(model):
    model.network.buffers()["dropout.stream"].value[...] = (77, 5)


def earlier_stream(model):
    model.network.buffers()["dropout_1.stream"].value[1] = 0


def another_loss(model):
    model.loss = losses.CategoricalCrossEntropy(label_smoothing=0.4)


def halve_in_place(model):
    model.parameters()["dense.weight"].value[...] *= 0.5


def assign_weights(model):
    parameter = model.parameters()["dense.weight"]
    parameter.value = parameter.value * 0.5


def load_state(model):
    state = model.state_dict()
    model.load_state_dict(state | {"dense.weight": state["dense.weight"] * 0.5})


def rebind(model):
    parameter = model.parameters()["dense.weight"]
    parameter.rebind(parameter.value.copy(), parameter.grad.copy())


def with_groups():
    return optimizers.SGD(0.05, momentum=0.9, groups=[Group("dense.*", 0.5, weight_decay=1e-2)])


def adam():
    return optimizers.Adam(1e-2, weight_decay=1e-3)


def muon():
    return optimizers.Muon(0.02)


def muon_with_adam():
    return optimizers.Muon(0.02, fallback=adam())


SETTINGS = {
    "dropout rate": (None, of_layer("rate", 0.7, "dropout")),
    "dropout off": (None, of_layer("rate", 0.0, "dropout")),
    "slope": (None, of_layer("slope", 0.4, "leaky_relu")),
    "batch norm's momentum": (None, of_layer("momentum", 0.5, "batch_norm")),
    "batch norm's epsilon": (None, of_layer("epsilon", 0.1, "batch_norm")),
    "momentum": (None, of_optimizer("momentum", 0.5)),
    "nesterov": (None, of_optimizer("nesterov", True)),
    "weight decay": (None, of_optimizer("weight_decay", 0.1)),
    "learning rate": (None, of_optimizer("learning_rate", 0.2)),
    "schedule": (None, of_optimizer("learning_rate", schedules.ExponentialDecay(0.2, 0.5))),
    "steps": (adam, of_optimizer("steps", 0)),
    "clip_norm": (None, of_optimizer("clip_norm", 1e-2)),
    "clip_value": (None, of_optimizer("clip_value", 1e-3)),
    "beta1": (adam, of_optimizer("beta1", 0.5)),
    "beta2": (adam, of_optimizer("beta2", 0.9)),
    "epsilon": (adam, of_optimizer("epsilon", 0.1)),
    "group's multiplier": (with_groups, of_first_group("lr_multiplier", 3.0)),
    "group's weight decay": (with_groups, of_first_group("weight_decay", 0.5)),
    "label smoothing": (None, setting(lambda model: model.loss, "label_smoothing", 0.5)),
    "another loss": (None, another_loss),
    "Muon's momentum": (muon, of_optimizer("momentum", 0.5)),
    "Muon's fallback": (muon_with_adam, setting(lambda model: model.optimizer.fallback, "beta1", 0.0)),
    "freeze": (None, lambda model: model.freeze("dense*")),
    "frozen": (None, lambda model: setattr(model.parameters()["dense.weight"], "frozen", True)),
    "weights in place": (None, halve_in_place),
    "weights assigned": (None, assign_weights),
    "weights loaded": (None, load_state),
    "another key of a stream": (None, new_stream),
    "a stream from the beginning": (None, earlier_stream),
}
SAME = {  # changes of where arrays lie, which change no number
    "other arrays": rebind,
    "arrays laid out again": lambda model: model._lay_out(),
    "another model over the layers": lambda m: gpucnn.Model(m.layers, m.input_shape, backend=m.backend),
}

_unchanged = {}


def unchanged(backend_name, backend, optimizer):
    """The result of a training run without a change."""
    if (backend_name, optimizer) not in _unchanged:
        model = model_with_settings(backend, optimizer and optimizer())
        _unchanged[backend_name, optimizer] = outcome(model, 1), model.why_not_captured
    result, why = _unchanged[backend_name, optimizer]
    assert why == ""
    return result


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_changed_count_from_the_next_step(backend, backend_name, name):
    """Of 8 steps the 2nd is captured; what changes after the 5th counts from the 6th, and the 8th is captured again."""
    optimizer, change = SETTINGS[name]
    captured, eager = (
        outcome(model_with_settings(backend, optimizer and optimizer(), jit), 1, callbacks=[After(change, 5)])
        for jit in (True, False)
    )
    assert captured == eager
    assert captured != unchanged(backend_name, backend, optimizer)


@pytest.mark.parametrize("name", SAME)
def test_arrays_moved_between_steps_change_nothing(backend, backend_name, name):
    for jit in (True, False):
        result = outcome(model_with_settings(backend, jit=jit), 1, callbacks=[After(SAME[name], 5)])
        assert result == unchanged(backend_name, backend, None)


@pytest.mark.parametrize("after", range(1, 6))
def test_settings_changed_after_any_step_count(backend, after):
    """Also between the warm-up and the capture, and right after that."""
    change = of_layer("rate", 0.7, "dropout")
    captured, eager = (
        outcome(model_with_settings(backend, jit=jit), callbacks=[After(change, after)]) for jit in (True, False)
    )
    assert captured == eager


def test_augmentation_settings_changed_count_from_the_next_step(backend):
    results = []
    for jit in (True, False):
        augment = [Flip(0.5)]
        change = After(lambda model, flip=augment[0]: setattr(flip, "probability", 0.0), 5)
        results.append(outcome(model_with_settings(backend, jit=jit), callbacks=[change], augment=augment))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["dropout rate", "slope", "batch norm's momentum", "freeze", "weights assigned"])
def test_settings_changed_count_for_every_shard(name, monkeypatch):
    monkeypatch.setattr(threads, "MIN_SHARD_FLOPS", 1.0)
    monkeypatch.setattr(threads, "MIN_SHARD_IMAGES", 2)
    gpucnn.set_num_threads(3)
    try:
        results = []
        for jit in (True, False):
            model = model_with_settings(get_backend("numpy"), jit=jit)
            results.append(outcome(model, callbacks=[After(SETTINGS[name][1], 5)]))
    finally:
        gpucnn.set_num_threads(None)
    assert results[0] == results[1]


def test_attribute_of_a_layers_class_changed_counts_from_the_next_step(backend):
    class Scales(L.Layer):
        capturable = True
        factor = 2.0

        def forward(self, x, *, train):
            return x * self.factor, lambda dy, factor=self.factor: dy * factor

    try:
        results = []
        for jit in (True, False):
            Scales.factor = 2.0
            network = [L.Flatten(), Scales(), L.Dense(4), L.Softmax()]
            model = gpucnn.Model(network, (6, 6, 2), backend=backend).compile(optimizers.SGD(0.01), jit=jit)
            results.append(outcome(model, callbacks=[After(lambda model: setattr(Scales, "factor", 0.5), 5)]))
        assert results[0] == results[1]
        assert np.isfinite(results[0][0]).all()
    finally:
        L.Layer.registry.pop("Scales")
