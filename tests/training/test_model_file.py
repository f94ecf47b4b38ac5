"""Saving and loading: everything comes back, and what is not a model is rejected."""

import json
import os
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import layers, losses, networks, optimizers
from gpucnn.core.config import with_current_names
from gpucnn.errors import CheckpointError, ConfigurationError
from tests.helpers import described, rewritten, small_model, stripes


@pytest.fixture
def saved(tmp_path):
    small_model().save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.smoke
def test_model_file_restores_a_trained_model(backend, tmp_path):
    x, y = stripes(60)
    model = small_model(backend=backend)
    model.fit(x, y, epochs=1, batch_size=20, verbose=0)
    model.class_names = ["vertical", "horizontal", "diagonal"]
    model.save(tmp_path / "model.safetensors")
    loaded = gpucnn.load(tmp_path / "model.safetensors", backend="numpy")
    for path, array in model.state_dict().items():
        assert loaded.state_dict()[path].dtype == array.dtype
        assert loaded.state_dict()[path].tobytes() == array.tobytes(), path
    assert loaded.predict(x) == pytest.approx(model.predict(x), abs=1e-6)
    assert loaded.evaluate(x, y) == pytest.approx(model.evaluate(x, y), rel=1e-5)
    assert repr(loaded.network) == repr(model.network)
    assert loaded.optimizer.config() == model.optimizer.config()
    assert loaded.class_names == model.class_names
    assert (loaded.seed, loaded.dtype, loaded.epochs_trained) == (0, "float32", 1)


def test_model_file_trains_on(saved):
    x, y = stripes(60)
    losses_seen = gpucnn.load(saved).fit(x, y, epochs=3, batch_size=20, verbose=0)["loss"]
    assert losses_seen[-1] < losses_seen[0]


def test_model_file_keeps_the_recipe(tmp_path):
    model = networks.lenet(seed=3, backend="numpy")
    model.save(tmp_path / "lenet.safetensors")
    loaded = gpucnn.load(tmp_path / "lenet.safetensors")
    assert loaded.recipe == model.recipe
    assert loaded.name == "lenet"
    assert loaded.loss.config() == {"Loss": "CategoricalCrossEntropy"}


def test_model_file_of_a_model_that_is_not_compiled(tmp_path):
    gpucnn.Model([layers.Dense(2)], (3,), dtype="float64").save(tmp_path / "m.safetensors")
    loaded = gpucnn.load(tmp_path / "m.safetensors")
    assert loaded.loss is None
    assert loaded.dtype == "float64"


def test_model_file_keeps_layers_shared(tmp_path):
    dense = layers.Dense(4)
    residual = layers.Residual([dense, layers.ReLU()])
    model = gpucnn.Model([dense, layers.Tanh(), dense, residual], (4,), backend="numpy")
    model.save(tmp_path / "m.safetensors")
    loaded = gpucnn.load(tmp_path / "m.safetensors")
    assert loaded.layers[0] is loaded.layers[2] is loaded.layers[3].main.layers[0]
    assert list(loaded.parameters()) == list(model.parameters()) == ["dense.weight", "dense.bias"]


def test_model_file_is_plain_safetensors(saved):
    assert set(load_file(saved)) == set(small_model().state_dict())
    network = described(saved)["network"]
    assert network["Layer"] == "Sequential"
    assert network["layers"][1] == {
        "Layer": "Conv2D",
        "filters": 4,
        "kernel_size": 3,
        "padding": "same",
        "use_bias": False,
    }
    assert "gpucnn." not in json.dumps(described(saved)), "no import path"


def test_model_file_survives_a_failing_save(saved, monkeypatch):
    before = saved.read_bytes()

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match=r"cannot write .* \(No space left on device\); free disk space"):
        small_model(seed=1).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_model_file_in_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write .*; the folder .*nowhere does not exist"):
        small_model().save(tmp_path / "nowhere" / "m.safetensors")


def test_model_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.safetensors: there is no such file"):
        gpucnn.load(tmp_path / "missing.safetensors")


def test_model_file_refuses_other_files(tmp_path, saved):
    path = tmp_path / "other.safetensors"
    for content in (b"", b"not safetensors at all", saved.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is not a whole safetensors file .*truncated"):
            gpucnn.load(path)
    save_file({"weight": np.zeros(3, "float32")}, path)
    with pytest.raises(CheckpointError, match="does not hold a gpucnn model"):
        gpucnn.load(path)
    save_file({}, path, metadata={"gpucnn": "{"})
    with pytest.raises(CheckpointError, match="its description cannot be read"):
        gpucnn.load(path)
    save_file({}, path, metadata={"gpucnn": '{"format": 99}'})
    with pytest.raises(CheckpointError, match="a gpucnn model of format 99, and this gpucnn reads format 1"):
        gpucnn.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["network"]["layers"][1].update(Layer="os.system"), "there is no layer named 'os.system'"),
        (lambda d: d["network"]["layers"][1].update(Layer="SGD"), "there is no layer named 'SGD'"),
        (lambda d: d["network"]["layers"][1].update(color="red"), "Conv2D takes no argument 'color'"),
        (lambda d: d["network"]["layers"][1].update(filters={"Layer": "ReLU"}), "filters must be a positive integer"),
        (lambda d: d["network"]["layers"][1].pop("filters"), "Conv2D needs filters: pass"),
        (lambda d: d["network"]["layers"][1].update(filters=2), r"conv2d\.weight: this network holds shape"),
        (lambda d: d["network"]["layers"].pop(1), r"not known here conv2d_1\.bias"),
        (
            lambda d: d["network"]["layers"].append({"Layer": "same", "as": 99}),
            "refers to a layer that was not described",
        ),
        (lambda d: d["network"].update(layers=3), "expected a list of layers, not int"),
        (lambda d: d.update(network={"Layer": "ReLU"}), "describes a ReLU where a Sequential was expected"),
        (lambda d: d.update(network=7), 'expected a description {"Layer": name, …}, not 7'),
        (lambda d: d.update(network=nested(100)), "nested more than 64 deep"),
        (lambda d: d.update(input_shape="wide"), "input_shape must be the shape of one sample"),
        (lambda d: d.update(dtype="object"), "dtype must be"),
        (lambda d: d.update(seed="x"), "seed must be an integer"),
        (lambda d: d.update(epochs_trained="many"), "invalid literal for int"),
        (lambda d: d["training"].update(optimizer={"Optimizer": "Evil"}), "there is no optimizer named 'Evil'"),
    ],
)
def test_model_file_with_a_wrong_description_is_refused(saved, change, message):
    with pytest.raises(CheckpointError, match=message):
        gpucnn.load(rewritten(saved, change))


def nested(depth):
    inner = {"Layer": "ReLU"}
    for _ in range(depth):
        inner = {"Layer": "Sequential", "layers": [inner]}
    return inner


def test_model_file_of_a_custom_layer_names_its_class(tmp_path):
    class Doubled(layers.Layer):
        def __init__(self, factor=2.0, *, name=None):
            super().__init__(name=name)
            self.factor = factor

        def forward(self, x, *, train):
            return self.factor * x, lambda dy: self.factor * dy

    try:
        gpucnn.Model([Doubled(3.0)], (2,)).save(tmp_path / "m.safetensors")
        loaded = gpucnn.load(tmp_path / "m.safetensors")
        assert loaded.predict(np.ones((1, 2), "float32")).tolist() == [[3.0, 3.0]]
    finally:
        layers.Layer.registry.pop("Doubled")


def test_custom_layer_with_a_taken_name_is_refused():
    with pytest.raises(ConfigurationError, match="the layer ReLU is part of gpucnn already"):
        type("ReLU", (layers.Layer,), {})
    with pytest.raises(ConfigurationError, match="the loss MeanSquaredError is part of gpucnn already"):
        type("MeanSquaredError", (losses.Loss,), {})
    assert layers.Layer.registry["ReLU"] is layers.ReLU
    assert optimizers.Optimizer.registry["SGD"] is optimizers.SGD


def test_model_file_with_former_names_is_read():
    class NewlyNamed(layers.Layer):
        renamed: ClassVar = {"breadth": "width"}
        former_names: ClassVar = ("OnceNamed",)

        def __init__(self, width, *, name=None):
            super().__init__(name=name)
            self.width = width

    written = {"Layer": "Sequential", "layers": [{"Layer": "OnceNamed", "breadth": 3}]}
    assert layers.Layer.from_config(written).layers[0].width == 3
    assert with_current_names([written]) == [{"Layer": "Sequential", "layers": [{"Layer": "NewlyNamed", "width": 3}]}]
    with pytest.raises(ConfigurationError, match="takes no argument 'depth'"):
        layers.Layer.from_config({"Layer": "OnceNamed", "depth": 3})
