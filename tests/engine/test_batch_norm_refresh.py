"""Statistics of batch norms recomputed: means over batches by hand, PyTorch's, and what is left alone."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, optimizers
from gpucnn.callbacks import MovingAverage
from gpucnn.errors import ConfigurationError, ShapeError
from gpucnn.testing.strict import StrictBackend
from tests.helpers import simulated_backend, small_model, stripes


def stack(backend="numpy", dtype="float64"):
    """Two batch norms one behind the other, the second in a branch, and dropout between."""
    inner = [layers.Conv2D(5, 3, padding="same"), layers.BatchNorm(0.3), layers.ReLU()]
    branch = layers.Residual([layers.Dropout(0.2), layers.Conv2D(5, 1), layers.BatchNorm()])
    return gpucnn.Model([*inner, branch, layers.Flatten(), layers.Dense(3)], (6, 6, 2), backend=backend, dtype=dtype)


@pytest.mark.parametrize("batch_size", [64, 16, 24])
def test_refresh_averages_statistics_over_batches(backend, rng, batch_size):
    """Of the first batch norm, whose inputs a convolution gives; the last batch of 24 is smaller, and counts so."""
    x = rng.normal(size=(64, 6, 6, 2))
    model = stack(backend)
    _ = model.forward(x[:10], train=True)
    before = model.state_dict()
    assert model.recalibrate_batch_norm(x, batch_size=batch_size) is model
    after = model.state_dict()
    convolved = gpucnn.Model([layers.Conv2D(5, 3, padding="same")], (6, 6, 2), backend="numpy", dtype="float64")
    convolved.load_state_dict({path: value for path, value in before.items() if path.startswith("conv2d.")})
    features = convolved.predict(x).reshape(64, -1, 5)
    parts = [features[start : start + batch_size].reshape(-1, 5) for start in range(0, 64, batch_size)]
    weights = [len(part) / 36 / 64 for part in parts]
    mean = sum(weight * part.mean(axis=0) for weight, part in zip(weights, parts, strict=True))
    variance = sum(weight * part.var(axis=0, ddof=1) for weight, part in zip(weights, parts, strict=True))
    assert after["batch_norm.running_mean"] == pytest.approx(mean, rel=1e-9, abs=1e-11)
    assert after["batch_norm.running_var"] == pytest.approx(variance, rel=1e-9)
    changed = {path for path in before if (before[path] != after[path]).any()}
    assert changed == {path for path in before if "running" in path}, "nothing else has changed"
    assert [layer.momentum for layer in model.network.all_layers() if hasattr(layer, "momentum")] == [0.3, 0.9]


def test_refresh_is_pytorchs_update_bn(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(60, 4, 4, 3)) + 2.0
    model = gpucnn.Model([layers.BatchNorm(), layers.Conv2D(2, 1), layers.BatchNorm()], (4, 4, 3), dtype="float64")
    model.recalibrate_batch_norm(x, batch_size=20)
    state = model.state_dict()
    theirs = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2)).double()
    with torch.no_grad():
        theirs[1].weight.copy_(torch.tensor(state["conv2d.weight"].transpose(3, 2, 0, 1).copy()))
        theirs[1].bias.copy_(torch.tensor(state["conv2d.bias"]))
    torch.optim.swa_utils.update_bn(torch.tensor(x.transpose(0, 3, 1, 2).copy()).split(20), theirs)
    for ours, norm in (("batch_norm", theirs[0]), ("batch_norm_1", theirs[2])):
        assert state[f"{ours}.running_mean"] == pytest.approx(norm.running_mean.numpy(), rel=1e-9)
        assert state[f"{ours}.running_var"] == pytest.approx(norm.running_var.numpy(), rel=1e-9)


def test_refresh_agrees_on_all_backends(backend, rng):
    x = rng.integers(0, 256, (50, 6, 6, 2)).astype("uint8")
    states = [stack(where).recalibrate_batch_norm(x, batch_size=20).state_dict() for where in (backend, "reference")]
    for path, value in states[1].items():
        assert states[0][path] == pytest.approx(value, rel=1e-9, abs=1e-12), path


def test_refresh_forgets_statistics_that_are_not_finite(rng):
    model = stack()
    model.network.buffers()["batch_norm.running_mean"].value[...] = np.nan
    model.network.buffers()["batch_norm.running_var"].value[...] = np.inf
    model.recalibrate_batch_norm(rng.normal(size=(20, 6, 6, 2)))
    assert all(np.isfinite(value).all() for value in model.state_dict().values())


def test_refresh_reads_nothing_back_and_leaves_training_alone():
    x, y = stripes(64)
    backend = StrictBackend()
    refreshed, plain = small_model(backend=backend), small_model(backend=backend)
    for model in (refreshed, plain):
        model.fit(x, y, batch_size=16, verbose=0)
    before = backend.reads
    refreshed.recalibrate_batch_norm(x)
    assert backend.reads == before
    for model in (refreshed, plain):
        model.fit(x, y, batch_size=16, verbose=0)
    for path in plain.parameters():
        assert refreshed.state_dict()[path].tobytes() == plain.state_dict()[path].tobytes(), path


def test_refresh_is_seen_by_captured_steps():
    """Between two fits of captured steps: the same bits as between two fits of eager steps."""
    x, y = stripes(70)
    states = []
    for jit in (True, False):
        model = small_model(backend=simulated_backend())
        model.compile(model.optimizer, model.loss, jit=jit)
        for _ in range(2):
            model.fit(x, y, batch_size=16, verbose=0)
            model.recalibrate_batch_norm(x, batch_size=32)
        states.append(model.state_dict())
    assert all(states[0][path].tobytes() == states[1][path].tobytes() for path in states[0])


def test_refresh_refuses_a_batch_of_one_and_keeps_statistics():
    model = gpucnn.Model([layers.Dense(3), layers.BatchNorm(0.7)], (4,), backend="numpy")
    model.network.buffers()["batch_norm.running_mean"].value[...] = 5.0
    with pytest.raises(ShapeError, match="has one value a channel"):
        model.recalibrate_batch_norm(np.ones((9, 4)), batch_size=4)
    assert (model.state_dict()["batch_norm.running_mean"] == 5.0).all()
    assert model.layers[1].momentum == 0.7


def test_refresh_arguments_out_of_range_are_refused():
    with pytest.raises(ShapeError, match="x"):
        stack().recalibrate_batch_norm(np.ones((3, 5, 5, 2)))
    with pytest.raises(ConfigurationError, match="batch_size must be a positive integer, not 0"):
        stack().recalibrate_batch_norm(np.ones((3, 6, 6, 2)), batch_size=0)
    without = gpucnn.Model([layers.Dense(3)], (4,), backend="numpy")
    assert without.recalibrate_batch_norm(np.ones((3, 4))) is without


def test_refresh_restores_accuracy_of_averaged_weights():
    """The effect it exists for: statistics of other weights spoil a network; refreshed, it is as good as it can be."""
    x, y = stripes(300)
    model = small_model(optimizer=optimizers.SGD(0.3, momentum=0.9))
    model.fit(x, y, epochs=3, batch_size=32, callbacks=[MovingAverage(0.99)], verbose=0)
    good = model.recalibrate_batch_norm(x).evaluate(x, y)["loss"]
    first = model.state_dict() | {
        path: value for path, value in small_model(seed=1).state_dict().items() if "running" in path
    }
    model.load_state_dict(first)
    assert model.evaluate(x, y)["loss"] > 2 * good
    assert model.recalibrate_batch_norm(x).evaluate(x, y)["loss"] == pytest.approx(good, rel=1e-6)
