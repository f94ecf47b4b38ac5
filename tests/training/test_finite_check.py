"""NaN and infinity in a training run: step, layer and direction are named, and the weights of before are kept."""

import re
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

import gpucnn
from gpucnn import layers, optimizers
from gpucnn.backends import Backend
from gpucnn.callbacks.defects import TrainingMonitor, load_report
from gpucnn.cli import app
from gpucnn.core.files import FolderLock
from gpucnn.errors import NumericError
from gpucnn.testing.strict import StrictBackend
from tests.helpers import simulated_backend

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of what overflows
BATCH, BAD = 4, 9  # the sample that spoils the third step
HERE = {"reference": Backend, "numpy": lambda: "numpy"}


def data(value=1e30):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 3)).astype("float32"), rng.normal(size=(16, 1)).astype("float32")
    x[BAD] = value
    return x, y


def regression(backend="numpy", jit=True, **options):
    """Return a model of squared errors, whose gradients overflow where inputs are huge."""
    network = [layers.Dense(5, name="first"), layers.Dense(1, name="second")]
    model = gpucnn.Model(network, (3,), seed=2, backend=backend)
    return model.compile(optimizers.SGD(1e-3, **options), "mean_squared_error", [], jit=jit)


def fit(model, x, y, **options):
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, **options)


def after_two_steps(backend="numpy"):
    model, (x, y) = regression(backend), data()
    fit(model, x[: 2 * BATCH], y[: 2 * BATCH])
    return model.state_dict()


@pytest.mark.parametrize("backend", HERE)
def test_finite_check_of_gradients(backend):
    model = regression(HERE[backend]())
    message = (
        r"second: the gradient of its weight holds (NaN|infinity) at step 3, in the backward pass; the weights are "
        r"from before it\. A lower learning rate or the optimizer's clip_norm often helps; "
        r"fit\(check_numerics=False\) continues regardless"
    )
    with pytest.raises(NumericError, match=message) as caught:
        fit(model, *data(), epochs=2)
    error = caught.value
    assert (error.step, error.layer, error.direction) == (3, "second", "backward")
    assert isinstance(error, FloatingPointError)
    for path, array in after_two_steps(HERE[backend]()).items():
        assert (model.state_dict()[path] == array).all(), path


def test_finite_check_of_outputs():
    model, (x, y) = regression(), data()
    x[np.arange(16) != BAD] = 0
    model.parameters()["first.weight"].value *= 1e10
    with pytest.raises(NumericError, match=r"first: its output holds (NaN|infinity) at step 3, in the forward pass"):
        fit(model, x, y)


def test_finite_check_of_weights():
    model = regression()
    model.parameters()["second.bias"].value = np.full(1, np.nan, "float32")
    with pytest.raises(NumericError, match=r"second: its bias holds NaN at step 1, in the forward pass"):
        fit(model, *data(1.0))


def test_finite_check_counts_steps_over_all_epochs():
    class Spoil(gpucnn.callbacks.Callback):
        def on_epoch_begin(self, model, epoch):
            if epoch == 2:
                model.parameters()["first.weight"].value = np.full((3, 5), np.inf, "float32")

    with pytest.raises(NumericError, match="at step 9, in the forward pass"):
        fit(regression(), *data(1.0), epochs=3, callbacks=[Spoil()])


def test_finite_check_names_the_path_within_blocks():
    block = layers.Residual([layers.Dense(3, name="inside")], name="block")
    model = gpucnn.Model([block, layers.Dense(1)], (3,), backend="numpy").compile(
        optimizers.SGD(1e-3), "mean_squared_error", []
    )
    model.parameters()["block.main.inside.weight"].value = np.full((3, 3), 1e20, "float32")
    x, y = data()
    x[np.arange(16) != BAD] = 0
    with pytest.raises(NumericError, match=r"^block\.main\.inside: its output holds infinity"):
        fit(model, x, y)


def test_finite_check_on_two_threads():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(128, 12, 12, 8)).astype("float32"), rng.integers(0, 3, 128)
    x[40] = 3e38
    gpucnn.set_num_threads(2)
    network = [layers.Conv2D(64, 3, name="conv"), layers.ReLU(), layers.Flatten(), layers.Dense(3), layers.Softmax()]
    model = gpucnn.Model(network, (12, 12, 8), backend="numpy").compile("sgd")
    with pytest.raises(NumericError, match=r"conv: .* at step 1") as caught:
        model.fit(x, y, batch_size=128, verbose=0)
    assert caught.value.layer == "conv"


def test_finite_check_leaves_random_streams_alone():
    """Finding the layer repeats the step with the same mask, and draws no further one."""
    network = [layers.Dense(5), layers.Dropout(0.5), layers.Dense(1)]
    model = gpucnn.Model(network, (3,), seed=2, backend="numpy").compile(optimizers.SGD(1e-3), "mean_squared_error", [])
    stream = next(buffer for buffer in model.network.buffers().values() if buffer.on_host)
    with pytest.raises(NumericError, match="at step 3"):
        fit(model, *data())
    assert stream.value[1] == 3


def test_finite_check_can_be_switched_off():
    model = regression()
    history = fit(model, *data(), check_numerics=False)
    assert not np.isfinite(history["loss"][0])
    assert not np.isfinite(model.state_dict()["first.weight"]).all()


def test_finite_check_allows_gradients_whose_sum_overflows():
    model = gpucnn.Model([layers.Dense(1)], (2,), backend="numpy").compile(
        optimizers.SGD(1e-38), "mean_squared_error", []
    )
    model.parameters()["dense.weight"].value = np.zeros((2, 1), "float32")
    model.fit(np.full((1, 2), 2e38, "float32"), [[-0.5]], batch_size=1, verbose=0)
    assert model.state_dict()["dense.weight"].ravel() == pytest.approx([-2.0, -2.0])


def test_finite_check_allows_what_clipping_makes_finite():
    model = regression(clip_value=0.1)
    fit(model, *data(1e25))
    assert np.isfinite(model.state_dict()["first.weight"]).all()
    with pytest.raises(NumericError):
        fit(model, *data(np.float32(3e38)))  # infinity less infinity: NaN, which clipping cannot fix


# --- on a device, where reading costs ----------------------------------------------------------


def test_finite_check_on_a_device_at_the_end_of_the_epoch():
    model = regression(StrictBackend())
    message = (
        r"since step 3 of the optimizer, and so do the weights; the last checkpoint, .* jit=False\) names the layer"
    )
    with pytest.raises(NumericError, match=message) as caught:
        fit(model, *data(), epochs=2)
    assert caught.value.step == 3
    assert model.optimizer.steps == 4


def test_finite_check_on_a_device_reads_nothing_within_an_epoch():
    reads = []
    for wanted in (False, True):
        backend = StrictBackend()
        model = regression(backend)
        before = backend.reads
        fit(model, *data(1.0), check_numerics=wanted)
        reads.append(backend.reads - before)
    assert reads[1] == reads[0] + 1


def test_finite_check_on_a_device_without_jit_is_immediate():
    model = regression(StrictBackend(), jit=False)
    with pytest.raises(NumericError, match="second: the gradient of its weight holds"):
        fit(model, *data())
    assert model.optimizer.steps == 2


def test_finite_check_names_the_captured_step():
    x, y = data()
    x = np.concatenate([np.zeros_like(x), x])  # the bad one is a replayed step, not the first or the captured
    y = np.concatenate([y, y])
    model = regression(simulated_backend())
    with pytest.raises(NumericError, match="since step 7 of the optimizer"):
        fit(model, x, y)


# --- what is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [lambda: "numpy", StrictBackend], ids=["numpy", "strict"])
def test_finite_check_keeps_the_last_good_checkpoint(backend, tmp_path):
    keep = gpucnn.Checkpoints(tmp_path, every_steps=1, keep=2)
    with pytest.raises(NumericError, match="step 3"):
        fit(regression(backend()), *data(), checkpoints=keep)
    assert [path.name for path in keep.files()] == [
        "checkpoint-00000-000001.safetensors",
        "checkpoint-00000-000002.safetensors",
    ]
    resumed, (x, y) = regression(), data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another backend
        with pytest.raises(NumericError, match="step 3"):
            fit(resumed, x, y, checkpoints=keep, resume=True)
    for path, array in after_two_steps().items():
        assert resumed.state_dict()[path] == pytest.approx(array, rel=1e-6), path


def test_training_monitor_reports_what_the_finite_check_found():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("float32"), rng.integers(0, 3, 64)
    x[50] = 1e36
    network = [layers.Dense(5), layers.Dense(3), layers.Softmax()]
    model = gpucnn.Model(network, (6,), backend="numpy").compile(optimizers.SGD(1e-6))
    model.parameters()["dense.weight"].value *= 1e4
    watch = TrainingMonitor((x[:20], y[:20]), every=1000)
    with pytest.raises(NumericError):
        model.fit(x, y, batch_size=8, shuffle=False, callbacks=[watch], verbose=0)
    assert str(watch.defect).startswith("diverged in dense at step 7: NaN or infinity in the ")
    assert watch.histograms["dense.weight"]["not_finite"] == 0
    model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    assert model.training is None


def test_finite_check_in_the_train_command(tmp_path):
    """A rate at which the first step already leads nowhere."""
    run = tmp_path / "run"
    options = ["--data", "synthetic", "--network", "feedforward", "--backend", "numpy", "--epochs", "1"]
    result = CliRunner().invoke(app, ["train", *options, "--learning-rate", "1e36", "--run-dir", str(run)])
    assert isinstance(result.exception, NumericError)
    message = str(result.exception)
    assert result.exception.layer.startswith("dense")
    assert re.search(r"dense\S*: .* holds (NaN|infinity) at step \d+, in the (forward|backward) pass", message)
    assert message.endswith("is good. `gpucnn show histograms` plots the final weights and gradients")
    (kept,) = run.glob("checkpoint-*.safetensors")
    assert str(kept) in message
    assert load_report(run)["defect"]["kind"] == "diverged"
    assert not (run / FolderLock.NAME).exists()


@pytest.mark.parametrize("jit", [True, False])
def test_finite_check_of_batch_norm_statistics(backend, jit):
    """Squares of inputs of 1e20 are infinite in float32, though loss, gradients and weights stay finite."""
    x = (np.random.default_rng(0).normal(size=(48, 4, 4, 2)) * 1e20).astype("float32")
    network = [layers.BatchNorm(), layers.Flatten(), layers.Dense(3), layers.Softmax()]
    model = gpucnn.Model(network, (4, 4, 2), backend=backend).compile("sgd", jit=jit)
    with np.errstate(all="ignore"), pytest.raises(NumericError) as caught:
        model.fit(x, np.arange(48) % 3, batch_size=16, verbose=0)
    assert caught.value.step == 1
    if backend.is_host or not jit:
        assert caught.value.layer == "batch_norm"
        assert re.search(r"batch_norm: its (output|running_var) holds", str(caught.value))
