"""What is assigned to weights, and targets that no output can meet: taken as it is meant, refused or said."""

import warnings

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, losses
from gpucnn.errors import CheckpointError, DataWarning, DTypeError, ShapeError

rng = np.random.default_rng(0)


def model(last, loss="mean_squared_error"):
    built = gpucnn.Model([layers.Conv2D(3, 3, padding="same"), layers.BatchNorm(), last], (6, 6, 3), backend="numpy")
    return built.compile("sgd", loss, metrics=None)


@pytest.mark.parametrize("value", [0.0, [1.0, 1.0, 1.0], None, "zeros", np.array(["a", "b", "c"]), np.ones(3) * 1j])
@pytest.mark.parametrize("held", ["bias", "running_mean"])
def test_parameter_values_must_be_arrays_of_real_numbers(held, value):
    built = model(layers.ReLU())
    holder = getattr(built.layers[0 if held == "bias" else 1], held)
    before = np.array(holder)
    with pytest.raises(DTypeError, match=r"of shape \(3,\) cannot take .*; assign an array of real numbers"):
        holder.value = value
    assert np.array_equal(np.array(holder), before)


def test_parameter_values_of_any_real_dtype_are_taken_and_other_shapes_refused():
    bias = model(layers.ReLU()).layers[0].bias
    for value in (np.ones(3), np.arange(3), np.ones(3, bool), np.ones(3, "float16")):
        bias.value = value
        assert np.array_equal(np.array(bias), value)
    with pytest.raises(ShapeError, match=r"a parameter of shape \(3,\) cannot take values of shape \(4,\)"):
        bias.value = np.ones(4)


def test_state_dict_without_real_arrays_is_refused_whole():
    built = model(layers.ReLU())
    state = built.state_dict()
    for path, wrong in (("conv2d.bias", [1.0, 1.0, 1.0]), ("conv2d.bias", np.ones(3) * 1j)):
        with pytest.raises(CheckpointError, match=rf"{path}: the state holds .*; expected an array of real numbers"):
            built.load_state_dict({name: array + 1 for name, array in state.items()} | {path: wrong})
    with pytest.raises(CheckpointError, match="expected a dictionary of arrays by path"):
        built.load_state_dict(None)
    assert all(np.array_equal(state[path], array) for path, array in built.state_dict().items())


class Own(losses.Loss):
    def __call__(self, y, labels):
        return (y - labels).mean(), lambda dloss=1.0: 0 * y + dloss / y.size


X = rng.integers(0, 256, (16, 6, 6, 3)).astype("uint8")
FRACTIONS = (X / 255).astype("float32")


@pytest.mark.parametrize(
    ("last", "targets", "said"),
    [
        (layers.Sigmoid, X.astype("float32"), "y holds targets from 0 to 255, and sigmoid, the last layer, gives"),
        (layers.Sigmoid, 2 * FRACTIONS - 1, "only numbers from 0 to 1"),
        (layers.Tanh, 4 * FRACTIONS, "only numbers from -1 to 1"),
        (layers.Sigmoid, X, ""),
        (layers.Sigmoid, FRACTIONS * 1.05, ""),
        (layers.Tanh, 2 * FRACTIONS - 1, ""),
        (layers.ReLU, X.astype("float32"), ""),
    ],
)
def test_targets_out_of_reach_warn_once(last, targets, said):
    built = model(last())
    for call in (built.fit, built.evaluate):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(X, targets, batch_size=8, verbose=0)
        found = [str(each.message) for each in caught if issubclass(each.category, DataWarning)]
        assert len(found) == bool(said)
        assert not found or said in found[0]
        said = ""


def test_targets_of_a_custom_loss_may_be_any():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(layers.Sigmoid(), Own()).fit(X, FRACTIONS - 9, verbose=0)
