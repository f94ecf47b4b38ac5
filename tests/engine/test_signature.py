"""What a signature notices, and what it does not take for a change; nested changes are in test_comparison.py."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, losses, optimizers
from gpucnn.engine.signature import Signature
from gpucnn.layers.base import Layer


class Holds(Layer):
    def __init__(self):
        super().__init__()
        self.number, self.zero, self.one, self.flag, self.pair, self.word = 0.5, 0.0, 1, True, (1, 2.0), "mean"
        self.array, self.nothing, self.table, self.on, self.off = np.zeros(1), None, {"a": 1, "b": 2}, {"x": 7}, {}
        self.items = [1.0, 2.0]

    def forward(self, x, *, train):
        return x, lambda dy: dy


def swap_order(layer):
    layer.table["a"] = layer.table.pop("a")


def move_between(layer):
    layer.off["x"] = layer.on.pop("x")


CHANGES = {
    "another number": lambda layer: setattr(layer, "number", 0.6),
    "a negative zero": lambda layer: setattr(layer, "zero", -0.0),
    "an integer that becomes a float": lambda layer: setattr(layer, "one", 1.0),
    "a flag that becomes a number": lambda layer: setattr(layer, "flag", 1),
    "a number of NumPy's": lambda layer: setattr(layer, "number", np.float64(0.5)),
    "a tuple of other types": lambda layer: setattr(layer, "pair", (1.0, 2)),
    "an equal array in another place": lambda layer: setattr(layer, "array", np.zeros(1)),
    "an array in the place of nothing": lambda layer: setattr(layer, "nothing", np.zeros(1)),
    "arrays in the place of nothing": lambda layer: setattr(layer, "nothing", np.zeros(3)),
    "an attribute more": lambda layer: vars(layer).update(more=1),
    "an attribute less": lambda layer: vars(layer).pop("word"),
    "another order of a dictionary": swap_order,
    "an item that moves to another dictionary": move_between,
    "an item in place": lambda layer: layer.items.__setitem__(0, 3.0),
    "a list that grows": lambda layer: layer.items.append(3.0),
}


@pytest.mark.parametrize("what", CHANGES)
def test_signature_notices(what):
    layer = Holds()
    signature = Signature(layer)
    assert signature.is_current()
    CHANGES[what](layer)
    assert not signature.is_current()


def test_signature_stays_current_where_equal_values_are_assigned():
    layer = Holds()
    signature = Signature(layer)
    layer.number, layer.word, layer.pair, layer.items = float("0.5"), "".join(["me", "an"]), (1, 2.0), [1.0, 2.0]
    layer.array[...] = 3  # every pass reads the numbers again
    assert signature.is_current()
    layer.items.append(3.0)  # of the new list
    assert not signature.is_current()


def test_signature_of_settings_leaves_out_what_steps_are_given():
    optimizer = optimizers.SGD(0.1, momentum=0.9, groups=[optimizers.Group("*.bias", 0.5)])
    model = gpucnn.Model([layers.Dense(3), layers.Softmax()], (4,), backend="numpy").compile(optimizer)
    make = lambda: Signature(model.network, (model, ("loss", "optimizer", "dtype")))  # noqa: E731
    signature = make()
    model.train_on_batch(np.zeros((5, 4), "float32"), np.zeros(5, int))  # which counts
    optimizer.learning_rate, optimizer.groups[0].lr_multiplier = 0.3, 2.0
    assert signature.is_current()
    for change in (
        lambda: setattr(optimizer, "momentum", 0.5),
        lambda: setattr(optimizer.groups[0], "weight_decay", 0.1),
        lambda: setattr(model, "loss", losses.CategoricalCrossEntropy(label_smoothing=0.1)),
        lambda: setattr(model.loss, "label_smoothing", 0.2),
        lambda: vars(optimizer).update(more=1),
    ):
        signature = make()
        change()
        assert not signature.is_current()
