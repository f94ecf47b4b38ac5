"""The peers of the benchmarks are what they claim to be."""

import numpy as np
import pytest

from benchmarks.naive import NaiveLeNet
from benchmarks.nets import NETS, gpucnn_model
from gpucnn.backends import Backend


def test_naive_lenet_takes_the_same_step():
    """From the same weights one step of plain gradient descent leads both networks to the same weights."""
    model = gpucnn_model("lenet", Backend())
    naive = NaiveLeNet()
    trained = [layer for layer in naive.layers if hasattr(layer, "weight")]
    state = {}
    for name, layer in zip(("conv2d", "conv2d_1", "dense", "dense_1", "dense_2"), trained, strict=True):
        weight = layer.weight.transpose(1, 2, 3, 0) if layer.weight.ndim == 4 else layer.weight
        state |= {f"{name}.weight": weight.astype("float32"), f"{name}.bias": layer.bias.astype("float32")}
    model.load_state_dict(state)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 28, 28, 1)).astype("float32"), rng.integers(0, 10, 4)
    loss, _ = model.train_step(x, y, 0.1)
    assert float(loss) == pytest.approx(naive.step(x, y, 0.1), rel=1e-5)
    after = model.state_dict()
    for name, layer in zip(("conv2d", "conv2d_1", "dense", "dense_1", "dense_2"), trained, strict=True):
        weight = layer.weight.transpose(1, 2, 3, 0) if layer.weight.ndim == 4 else layer.weight
        assert after[f"{name}.weight"] == pytest.approx(weight, abs=1e-5), name
        assert after[f"{name}.bias"] == pytest.approx(layer.bias, abs=1e-5), name


@pytest.mark.parametrize(
    ("name", "parameters"), [("lenet", 61_706), ("net2", 28_794), ("net3", 137_818), ("resnet20", 269_722)]
)
def test_benchmark_networks_have_their_published_sizes(name, parameters):
    model = gpucnn_model(name, Backend())
    count = sum(parameter.size for parameter in model.parameters().values())
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64  # He et al. pad the shortcut with zeros instead
    assert count - (projections if name == "resnet20" else 0) == parameters


def test_benchmark_networks_have_descriptions():
    assert set(NETS) == {"lenet", "net2", "net3", "vgg", "resnet20"}
