"""Custom layers that declare nothing about sharding and capture: what that costs is said, once, where it costs."""

import warnings

import numpy as np
import pytest

import gpucnn
from gpucnn import layers
from gpucnn.errors import CaptureWarning

X, Y = np.zeros((256, 16, 16, 3), "uint8"), np.arange(256) % 3


class Silent(layers.Layer):
    def forward(self, x, *, train):
        return x * 2, lambda dy: dy * 2


class Declares(Silent):
    batch_independent, capturable = False, True


@pytest.fixture(autouse=True)
def two_threads():
    gpucnn.set_num_threads(2)
    yield
    gpucnn.set_num_threads(None)


def model_with(layer, backend="numpy", jit=True, filters=64):
    network = [layers.Conv2D(filters, 3), layer, layers.Flatten(), layers.Dense(3), layers.Softmax()]
    return gpucnn.Model(network, (16, 16, 3), backend=backend).compile(jit=jit)


def warnings_of(model, batch_size=128):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y, batch_size=batch_size, verbose=0)
    return [str(warning.message) for warning in caught if warning.category is CaptureWarning]


def test_silent_layer_warns_once_what_it_costs():
    model = model_with(Silent())
    (message,) = warnings_of(model)
    assert message.startswith(
        "training is slower than it could be: batches are not split among threads, since silent does not declare "
        "batch_independent; passes are not captured and replayed, since silent does not declare capturable. Set them"
    )
    assert warnings_of(model) == []
    assert model.why_not_captured == "layers that do not declare capturable = True: silent"


def test_silent_layer_warns_only_of_what_it_costs():
    (message,) = warnings_of(model_with(Silent()), batch_size=16)  # too few to split
    assert "threads" not in message
    (message,) = warnings_of(model_with(Silent(), jit=False))
    assert "captured" not in message
    assert warnings_of(model_with(Silent(), backend="reference")) == []
    assert warnings_of(model_with(Declares())) == []
    assert warnings_of(model_with(layers.ReLU())) == []


def test_summary_says_what_silent_layers_cost(capsys):
    model_with(Silent()).summary()
    shown = " ".join(capsys.readouterr().out.split())
    assert "batches are not split among threads, since silent does not declare batch_independent; passes are" in shown
    model_with(Declares()).summary()
    assert "since" not in capsys.readouterr().out


def test_flags_of_a_layer_with_another_forward_are_undeclared_again():
    class Bolder(layers.Conv2D):
        def forward(self, x, *, train):
            return super().forward(x, train=train)

    assert Bolder.batch_independent is Bolder.capturable is None
    assert Declares.batch_independent is False
    assert layers.Conv2D.batch_independent is True


def test_silent_layer_sees_whole_batches_eagerly():
    seen = []

    class Watches(layers.Layer):
        def forward(self, x, *, train):
            seen.append(len(x))
            return x * 2, lambda dy: dy * 2

    model = model_with(Watches())
    warnings_of(model, batch_size=64)
    assert seen == [64] * 4
