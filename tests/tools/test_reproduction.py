"""The recipes of the projects that this package grew from, and the commands that train them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import gpucnn
from gpucnn import datasets, networks
from gpucnn.callbacks.snapshots import load_snapshots
from gpucnn.cli import app
from gpucnn.cli.reproduce import Outcome, markdown
from gpucnn.errors import ConfigurationError
from gpucnn.plots.canvas import evenly_spaced
from gpucnn.runs import reproduction
from gpucnn.runs.reproduction import REPRODUCTIONS, Published, Reproduction
from gpucnn.training.history import History

PARAMETERS = {  # by hand: (kernel · channels + 1) · filters of a convolution, (inputs + 1) · units of a dense layer
    "sigmoid-3x3": 10 * 3 + 2188 * 20 + 21 * 10,
    "feedforward": 785 * 120 + 121 * 84 + 85 * 10,
    "single-conv": 26 * 6 + 4705 * 120 + 121 * 84 + 85 * 10,
    "double-conv": 26 * 6 + 151 * 16 + 9217 * 120 + 121 * 84 + 85 * 10,
    "single-conv-pool": 26 * 6 + 1177 * 120 + 121 * 84 + 85 * 10,
    "lenet-002": 61_706,
    "lenet": 61_706,
    "network-1": 10 * 4 + (13 * 13 * 4 + 1) * 64 + 650,
    "network-2": 10 * 16 + 145 * 16 + (400 + 1) * 64 + 650,
    "network-3": 28 * 8 + 73 * 16 + 145 * 32 + (2048 + 1) * 64 + 650,
    "convnet-1000s": 26 * 10 + 251 * 20 + 321 * 100 + 1010,
}


@pytest.fixture
def small_data(monkeypatch):
    """Synthetic digits in place of MNIST, few of them."""
    (x, y), (x_test, y_test) = datasets.synthetic_digits(600, seed=1)
    splits = (x[:256], y[:256]), (x_test[:64], y_test[:64])
    small = datasets.Dataset(splits, name="mnist", class_names=map(str, range(10)), source="here")
    monkeypatch.setattr(reproduction, "load_dataset", lambda name: small)
    return small


def test_recipes_and_networks_belong_together():
    vgg = {"vgg11", "vgg13", "vgg16"}  # whose authors did not train them on CIFAR-10
    assert set(REPRODUCTIONS) | vgg == set(networks.NETWORKS)
    assert {name for name, entry in REPRODUCTIONS.items() if not entry.long} == set(PARAMETERS)
    assert all(entry.network == name for name, entry in REPRODUCTIONS.items())


@pytest.mark.parametrize("name", PARAMETERS)
def test_recipes_parameters(name):
    model = networks.by_name(name)(backend="numpy")
    assert sum(parameter.size for parameter in model.parameters().values()) == PARAMETERS[name]
    assert model.name == name
    assert model.output_shape == (10,)


def test_recipe_that_is_unknown_is_refused():
    with pytest.raises(ConfigurationError, match="unknown recipe 'lenet-5'; choose one of sigmoid-3x3"):
        reproduction.by_name("lenet-5")


def test_recipe_trains_chunk_by_chunk(small_data):
    """Each chunk's samples, and no others, for all epochs before the next."""
    seen = []

    class Model:
        stop_training = False

        def fit(self, x, y, epochs, **options):
            seen.append((x[:, 0].tolist(), y.tolist(), epochs))
            from gpucnn.training.history import History

            return History({"loss": [float(len(seen))] * epochs})

    x, y = np.arange(20).reshape(10, 2), np.arange(10)
    history = Reproduction("lenet", 0.9, chunks=3, chunk_size=2).train(Model(), (x, y), epochs=2)
    assert [one[1] for one in seen] == [[0, 1], [2, 3], [4, 5]]
    assert history["loss"] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


def test_reproduce_run_has_all_numbers(small_data):
    model, history, record = reproduction.run("feedforward", 3, small_data, backend="numpy", epochs=2, verbose=0)
    numbers = record["numbers"]
    assert numbers["training accuracy"] == history["accuracy"]
    assert len(numbers["training accuracy"]) == 2
    x, y = small_data[1]
    assert numbers["test accuracy"] == pytest.approx((model.predict(x).argmax(axis=1) == y).mean())
    assert numbers["total time (s)"] == pytest.approx(numbers["training time (s)"] + numbers["test time (s)"])
    assert numbers["step time (s)"] * 2 == pytest.approx(numbers["epoch time (s)"], rel=0.2)
    assert model.seed == 3
    assert model.class_names == small_data.class_names
    assert json.loads(json.dumps(record)) == record


def test_reproduce_restarts_a_defective_run(small_data, monkeypatch):
    seeds = []

    def run(name, seed, data, **options):
        seeds.append(seed)
        assert options["on_defect"] == "stop"
        defect = {"kind": "single-class predictions", "detail": ""} if len(seeds) < 3 else None
        return None, None, {"numbers": {}, "defect": defect}

    monkeypatch.setattr(reproduction, "run", run)
    _, _, record = reproduction.run_with_restarts("lenet", 7, small_data)
    assert seeds == [7, 10_007, 20_007]
    assert [defect["kind"] for defect in record["restarts"]] == ["single-class predictions", "single-class predictions"]
    assert record["defect"] is None


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "140"})


def test_reproduce_prints_and_writes(small_data, tmp_path):
    result = invoke(
        "reproduce", "feedforward", "lenet", "--runs", 2, "--epochs", 1, "--backend", "numpy", "-o", tmp_path
    )
    assert result.exit_code == 0
    assert "97.00 % " in result.output  # on any terminal
    assert "2.1 s" in result.output
    for name in ("feedforward", "lenet"):
        held = json.loads((tmp_path / name / "runs.json").read_text())
        assert [record["seed"] for record in held["runs"]] == [0, 1]
        assert held["settings"]["epochs"] == 1
        assert (tmp_path / name / "model.safetensors").exists()
    assert sorted(load_snapshots(tmp_path / "lenet")) == [0, 1]
    lines = (tmp_path / "reproduction.md").read_text().splitlines()
    assert lines[2].startswith("| feedforward | 97.00 % | ")
    assert len(lines) == 4
    again = invoke(
        "runs", "feedforward", "--runs", 2, "--epochs", 1, "--backend", "numpy", "-o", tmp_path / "feedforward"
    )
    assert "2 of 2 runs are already in" in again.output
    assert "test accuracy" in again.output


def test_reproduce_lists(tmp_path):
    result = invoke("reproduce", "--list")
    assert all(name in result.output for name in REPRODUCTIONS)
    assert "85.04 %" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce"], 'pass a recipe, or "all"'),
        (["reproduce", "lenet-5"], "unknown recipe 'lenet-5'"),
        (
            ["runs", "lenet", "--on-defect", "repair"],
            "--on-defect must be one of 'flag', 'stop', 'restart', not 'repair'",
        ),
    ],
)
def test_reproduce_refuses_wrong_options(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        invoke(*arguments)


def test_reproduce_does_not_mix_settings(small_data, tmp_path):
    invoke("runs", "feedforward", "--runs", 1, "--epochs", 1, "--backend", "numpy", "-o", tmp_path)
    with pytest.raises(Exception, match="holds runs with epochs=1, these have 2"):
        invoke("runs", "feedforward", "--runs", 1, "--epochs", 2, "--backend", "numpy", "-o", tmp_path)


def test_reproduce_table_of_outcomes():
    entry = Reproduction("lenet", 0.975, Published("somewhere", 0.84, seconds=7200.0))
    cells = Outcome(entry, runs=5, defects=2, accuracy=0.98, std=0.001, seconds=12.0).cells()
    assert cells == ["lenet", "84.00 %", "98.00 ± 0.10 %", "97.5 %", "5 (2)", "2 h 0 min", "12.0 s", "600"]
    assert Outcome(entry, 5, 2, 0.98, 0.0, 1.0).reached
    assert not Outcome(entry, 5, 2, 0.97, 0.0, 1.0).reached
    assert Outcome(entry, 2, 2, 0.0, 0.0, 1.0).cells()[2] == "none"
    assert Outcome(entry, 3, 2, 0.5, 0.0, 1.0).cells()[2] == "50.00 %"  # one run has no deviation
    assert markdown([]).count("\n") == 2


def test_indices_of_long_lists_are_evenly_spaced():
    assert evenly_spaced(3, 5) == [0, 1, 2]
    assert evenly_spaced(30, 5) == [0, 7, 14, 22, 29]


def test_reproduce_resumes_a_killed_recipe(small_data, tmp_path, monkeypatch):
    """Scored after each epoch, saved as it trains; what is left of a run that ended is its best model."""
    monkeypatch.setitem(REPRODUCTIONS, "lenet", Reproduction("lenet", 0.9, long=True))
    whole = invoke("runs", "lenet", "--runs", 1, "--epochs", 3, "--backend", "numpy", "-o", tmp_path / "whole")
    assert whole.exit_code == 0
    step, made = gpucnn.Model.train_step, []

    def dies(model, *arguments):
        made.append(model.epochs_trained)
        if len(made) == 4:
            raise RuntimeError("the power went")
        return step(model, *arguments)

    monkeypatch.setattr(gpucnn.Model, "train_step", dies)
    with pytest.raises(RuntimeError, match="the power went"):
        invoke("runs", "lenet", "--runs", 1, "--epochs", 3, "--backend", "numpy", "-o", tmp_path / "cut")
    assert made == [0, 0, 1, 1]
    assert not (tmp_path / "cut" / "runs.json").exists()
    assert list((tmp_path / "cut" / "seed-0").glob("checkpoint-*"))
    monkeypatch.setattr(gpucnn.Model, "train_step", step)
    again = invoke("runs", "lenet", "--runs", 1, "--epochs", 3, "--backend", "numpy", "-o", tmp_path / "cut")
    assert again.exit_code == 0
    numbers = [
        json.loads((tmp_path / name / "runs.json").read_text())["runs"][0]["numbers"] for name in ("whole", "cut")
    ]
    for key in ("test accuracy", "test accuracy (TTA)", "test accuracy by epoch", "training loss"):
        assert numbers[0][key] == numbers[1][key]
    assert len(numbers[0]["test accuracy by epoch"]) == 3
    for name in ("whole", "cut"):
        assert [path.name for path in (tmp_path / name / "seed-0").iterdir()] == ["best.safetensors"]


def test_reproduce_says_when_a_run_passed_which_accuracy():
    history = History({"val_accuracy": [0.7, 0.85, 0.83, 0.94], "seconds": [10.0] * 4, "val_seconds": [1.0] * 4})
    assert [history.seconds_to(level) for level in (0.8, 0.9, 0.95)] == [22.0, 44.0, None]
    assert History({"seconds": [1.0]}).seconds_to(0.1) is None
