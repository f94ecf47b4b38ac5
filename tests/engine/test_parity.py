"""`gpucnn.parity`: that it passes where backends agree, finds the layer where they do not, and changes nothing."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import gpucnn
from gpucnn import layers as L
from gpucnn.backends import Backend, NumpyBackend
from gpucnn.cli import app
from gpucnn.errors import ConfigurationError, GpucnnError, ShapeError
from gpucnn.testing.parity import Difference, Parity
from gpucnn.testing.strict import StrictBackend


def network():
    block = [L.Conv2D(8, 3, padding=1, use_bias=False), L.BatchNorm(), L.ReLU(), L.Conv2D(8, 3, padding=1)]
    return [
        *[L.Conv2D(8, 3, padding=1), L.BatchNorm(), L.ReLU(), L.MaxPool2D(2)],
        *[L.Residual(block), L.ReLU(), L.AveragePool2D(2), L.Dropout(0.3)],
        *[L.Flatten(), L.Dense(16), L.GELU(), L.Dense(4), L.Softmax()],
    ]


def data(n=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8, 8, 3)).astype("float32"), rng.integers(0, 4, n)


def model(backend="numpy", dtype="float32"):
    built = gpucnn.Model(network(), (8, 8, 3), seed=3, backend=backend, dtype=dtype)
    return built.compile(gpucnn.optimizers.SGD(0.1, momentum=0.9), "categorical_crossentropy")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parity_of_backends_that_agree(dtype):
    x, y = data()
    result = gpucnn.parity(model(dtype=dtype), x.astype(dtype), y)
    assert result.agrees, str(result)
    assert result.first_divergence is None
    assert (result.backend, result.dtype, result.batch_size) == (model().backend.describe(), dtype, 24)
    assert "reference" in result.reference
    layers = list(dict.fromkeys(d.layer for d in result.differences))
    assert layers == [
        *["conv2d", "batch_norm", "relu", "max_pool2d"],
        *[f"residual.main.{name}" for name in ("conv2d", "batch_norm", "relu", "conv2d_1")],
        *["relu_1", "average_pool2d", "dropout", "flatten", "dense", "gelu", "dense_1", "softmax", "a whole step"],
    ]
    assert {d.what for d in result.differences if d.layer == "batch_norm"} == {
        *["y", "running_mean", "running_var", "dx", "gradient of scale", "gradient of shift"]
    }
    assert {d.what for d in result.differences if d.layer == "a whole step"} == {
        "loss",
        *(f"gradient of {path}" for path in model().parameters()),
    }
    assert any(d.largest > 0 for d in result.differences)  # two computations, not one


def test_parity_of_the_strict_backend_with_numpy():
    x, y = data()
    result = gpucnn.parity(model(StrictBackend()), x, y)
    assert result.agrees, str(result)
    assert "NumPy" in result.reference


class Broken(NumpyBackend):
    """A backend with one kernel that is wrong."""

    name = "broken"

    def __init__(self, kernel, wrong):
        right = getattr(self, kernel)
        setattr(self, kernel, lambda *args, **options: wrong(right(*args, **options)))


def doubled_bias(gradients):
    dweight, dbias, dx = gradients
    return dweight, None if dbias is None else 2 * dbias, dx


@pytest.mark.parametrize(
    ("kernel", "wrong", "layer", "what"),
    [
        ("conv2d", lambda y: y * 1.001, "conv2d", "y"),
        ("max_pool2d_gradient", lambda dx: dx + 1e-3, "max_pool2d", "dx"),
        ("average_pool2d", lambda y: np.roll(y, 1, axis=2), "average_pool2d", "y"),
        ("conv2d_gradients", doubled_bias, "residual.main.conv2d_1", "gradient of bias"),
        ("batch_norm", lambda all: (all[0], all[1] * 1.01, *all[2:]), "batch_norm", "running_mean"),
        ("relu", lambda y: np.where(y > 2, np.nan, y), "relu", "y"),
    ],
)
def test_parity_names_the_first_layer_that_diverges(kernel, wrong, layer, what):
    x, y = data()
    broken = Broken(kernel, wrong)
    result = gpucnn.parity(model(), x, y, backend=broken)
    assert not result.agrees
    first = result.first_divergence
    assert (first.layer, first.what) == (layer, what)
    assert f"the first is {what} of {layer}" in result.verdict()
    assert "DIFFERS" in str(result)


def test_parity_allows_for_cancellation():
    """The gradient of a bias before a batch norm is 0 but for rounding; no backend has a digit of it right."""
    rng = np.random.default_rng(0)
    built = gpucnn.Model([L.Conv2D(8, 3), L.BatchNorm()], (8, 8, 3), backend="numpy")
    result = gpucnn.parity(built, rng.normal(size=(32, 8, 8, 3)).astype("float32"))
    (bias,) = [d for d in result.differences if d.what == "gradient of bias"]
    assert result.agrees, str(result)
    assert bias.allowed > 1e-3


def test_parity_allows_for_another_order_of_summation():
    """The worst order there is: one number after another; the error of the reference is less, and depends on BLAS."""

    class OneByOne(NumpyBackend):
        name = "one by one"

        def conv2d_parameter_gradients(self, x, dy, window, groups=1, bias=True):
            dweight, _ = super().conv2d_parameter_gradients(x, dy, window, groups, bias)
            numbers = np.ascontiguousarray(dy.reshape(-1, dy.shape[-1]))
            return dweight, np.cumsum(numbers, axis=0, dtype=dy.dtype)[-1]

        def conv2d_gradients(self, x, dy, weight, window, groups=1, bias=True):
            dx = self.conv2d_input_gradient(dy, weight, x.shape[1:3], window, groups)
            return *self.conv2d_parameter_gradients(x, dy, window, groups, bias), dx

    for seed, filters, reference in ((1, 1, "numpy"), (2, 3, "numpy"), (4, 1, "reference")):
        x = np.random.default_rng(seed).normal(size=(32, 34, 34, 3)).astype("float32")
        built = gpucnn.Model([L.Conv2D(filters, 3), L.BatchNorm()], (34, 34, 3), seed=seed, backend="numpy")
        result = gpucnn.parity(built, x, backend=OneByOne(), reference=reference)
        assert result.agrees, str(result)
        assert not gpucnn.parity(built, x, backend=Broken("conv2d_gradients", moved_bias)).agrees


def moved_bias(gradients):
    dweight, dbias, dx = gradients
    return dweight, dbias + 1e-3, dx


def test_parity_verdict_shows_which_number_is_greater():
    near = Difference("conv2d", "Conv2D", "y", False, 1.0, 5.917, 1.0, 5.916)
    verdict = Parity("one", "other", "float32", 16, [near]).verdict()
    assert verdict.endswith("off by 5.917e+00 where 5.916e+00 is allowed")
    far = Difference("conv2d", "Conv2D", "y", False, 1.0, 3.0, 1.0, 1e-5)
    assert "off by 3.0e+00 where 1.0e-05 is allowed" in Parity("one", "other", "float32", 16, [far]).verdict()


def test_parity_changes_nothing():
    x, y = data()
    watched, untouched = model(), model()
    for one in (watched, untouched):
        one.train_on_batch(x, y)
    before, plan = watched.state_dict(), watched.network._train_plan
    gpucnn.parity(watched, x, y)
    assert watched.backend.name == "numpy"
    assert watched.dtype == "float32"
    assert watched.network._train_plan is plan
    assert all("forward" not in vars(layer) for layer in watched.network.all_layers())
    for path, array in watched.state_dict().items():
        assert array.dtype == before[path].dtype
        assert np.array_equal(array, before[path]), path
    for one in (watched, untouched):  # the optimizer continues with its momentum, dropout with its masks
        one.train_on_batch(x, y)
    for path, array in watched.state_dict().items():
        assert np.array_equal(array, untouched.state_dict()[path]), path


def test_parity_that_fails_changes_nothing():
    class Stops(L.Layer):
        def forward(self, x, *, train):
            raise RuntimeError("no")

    built = gpucnn.Model([L.Dense(3), Stops()], (4,), backend="numpy")
    before = built.state_dict()
    with pytest.raises(RuntimeError, match="no"):
        gpucnn.parity(built, np.ones((4, 4), "float32"))
    assert all("forward" not in vars(layer) for layer in built.network.all_layers())
    assert built.network._train_plan == [(0, {}), (1, {})]
    assert all(np.array_equal(array, before[path]) for path, array in built.state_dict().items())


def test_parity_without_labels_has_no_full_step():
    x, y = data()
    result = gpucnn.parity(model(), x)
    assert {d.layer for d in result.differences} == {d.layer for d in gpucnn.parity(model(), x, y).differences} - {
        "a whole step"
    }
    built = gpucnn.Model([L.Dense(3)], (4,), backend="numpy")
    with pytest.raises(ConfigurationError, match=r"has no loss; call model\.compile"):
        gpucnn.parity(built, np.ones((4, 4), "float32"), np.zeros(4, int))
    with pytest.raises(ShapeError):
        gpucnn.parity(built, np.ones((4, 5), "float32"))


def run(*arguments):
    return CliRunner().invoke(app, ["parity", *arguments])


def test_parity_command_prints_a_table_and_writes_json(tmp_path):
    result = run("--network", "lenet", "--backend", "numpy", "--json", str(tmp_path / "sub" / "parity.json"))
    assert result.exit_code == 0, result.output
    assert "agree within their tolerances" in " ".join(result.output.split())
    written = json.loads((tmp_path / "sub" / "parity.json").read_text())
    assert written["agrees"] is True
    assert {d["layer"] for d in written["differences"]} >= {"conv2d", "dense", "a whole step"}


def test_parity_command_fails_where_backends_differ(monkeypatch):
    monkeypatch.setattr(Backend, "relu", lambda self, x: x)
    assert run("--backend", "numpy").exit_code == 1


def test_parity_command_takes_a_model_of_any_loss(tmp_path):
    built = gpucnn.Model([L.Flatten(), L.Dense(3)], (4, 4, 1), backend="numpy").compile(loss="mean_squared_error")
    built.save(tmp_path / "model.safetensors")
    result = run("--model", str(tmp_path / "model.safetensors"), "--backend", "numpy")
    assert result.exit_code == 0, result.output
    assert "a whole step" in result.output
    refused = run("--network", "lenet", "--backend", "numpy", "--reference", "nothing")
    assert isinstance(refused.exception, ConfigurationError)
    assert "there is no backend named 'nothing'" in str(refused.exception)


def test_parity_command_takes_a_model(tmp_path):
    built = model()
    built.save(tmp_path / "model.safetensors")
    result = run("--model", str(tmp_path / "model.safetensors"), "--backend", "reference", "--reference", "numpy")
    assert result.exit_code == 0, result.output
    refused = run("--model", str(tmp_path), "--network", "lenet")
    assert isinstance(refused.exception, GpucnnError)
    assert "pass one of them" in str(refused.exception)
