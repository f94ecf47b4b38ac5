"""Run folders that an earlier version wrote, with other names in their files: resumed, tested, shown and continued.

`tests/data_of_before` was written by the version before its names changed: a network of four filters on synthetic
digits, with a finished run, one that was interrupted in its third epoch, and the records of two runs.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn.callbacks import Lookahead
from gpucnn.callbacks.defects import load_report
from gpucnn.data.augment import Translate
from gpucnn.initializers import Dirac
from gpucnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Normalization, ReLU, Softmax
from gpucnn.networks.registry import MNIST_IMAGE, NETWORKS, Recipe, register
from gpucnn.optimizers import SGD, Group
from gpucnn.runs.folder import read_history
from gpucnn.runs.reproduction import REPRODUCTIONS, Reproduction
from gpucnn.runs.statistics import Runs
from gpucnn.schedules import OneCycle, Power
from tests.helpers import TIMES

BEFORE = Path(__file__).parents[1] / "data_of_before"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The network of these runs."""
    monkeypatch.setitem(NETWORKS, "tiny", None)  # which is taken back after the test
    monkeypatch.setitem(REPRODUCTIONS, "tiny", Reproduction("tiny", 0.1))

    @register(
        "tiny",
        MNIST_IMAGE,
        Recipe("mnist", 4, 100, augment=(Translate(1),), callbacks=lambda: [Lookahead(5, Power(0.9, 3))]),
    )
    def design(image, num_classes):
        layers = [
            *(Normalization(0.1307, 0.3081), Conv2D(4, 5, strides=2, weight_initializer=Dirac("he_normal")), ReLU()),
            *(MaxPool2D(3), Flatten(), Dropout(0.1), Dense(num_classes), Softmax()),
        ]
        groups = [Group("*.bias", lr_multiplier=2.0, weight_decay=0.0), Group("conv2d.weight", train_epochs=3)]
        return layers, SGD(OneCycle(0.01, 0.25, 0.05, 0.01), momentum=0.9, weight_decay=1e-4, groups=groups)

    return design


@pytest.fixture
def before(tmp_path):
    """Copies of the folders."""
    return shutil.copytree(BEFORE, tmp_path / "before")


def test_resume_run_of_before(before, digits, run):
    """It ends as the version that began it would have ended it, but for what rounding differs between machines."""
    folder = before / "interrupted"
    status, out, errors = run("train", "--run-dir", folder, "--resume", "--data-dir", digits)
    assert status == 0, errors
    assert "resumed   after 2 epochs and 10 steps" in out
    ours, theirs = gpucnn.load(folder / "model.safetensors"), gpucnn.load(before / "finished" / "model.safetensors")
    for path, array in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[path], array, atol=1e-4, err_msg=path)
    histories = [read_history(before / name / "model.safetensors").history for name in ("interrupted", "finished")]
    assert histories[0].keys() == histories[1].keys()
    for key in histories[0].keys() - set(TIMES):
        np.testing.assert_allclose(histories[0][key], histories[1][key], atol=2e-3, err_msg=key)
    written = json.loads((folder / "defects.json").read_text())
    steps = [one["step"] for one in written["observations"]]
    assert steps == [one["step"] for one in load_report(before / "finished")["observations"]] == [50, 64]
    settings = json.loads((folder / "config.json").read_text())
    assert settings["validation_split"] == 0.2
    assert "hold_out" not in settings


def test_finished_run_of_before(before, digits, run):
    folder = before / "finished"
    assert "seconds_per_step" in read_history(folder / "model.safetensors").history
    scores = json.loads((folder / "config.json").read_text())["test"]
    status, out, errors = run("test", folder, "--data-dir", digits)
    assert status == 0, errors
    assert f"test accuracy {100 * scores['accuracy']:.2f} %" in out
    for command in ("history", "histograms", "filters"):
        assert run("show", command, folder)[0] == 0
    status, _, errors = run("report", folder, "--data-dir", digits)
    assert status == 0, errors
    page = (folder / "report.html").read_text()
    assert "last at step 64" in page
    assert "so_far" not in page
    status, out, _ = run("train", "--run-dir", folder, "--resume")
    assert status == 0
    assert "nothing to resume" in out


def test_statistics_of_before(before, digits, run, monkeypatch):
    folder = before / "statistics"
    monkeypatch.setenv("GPUCNN_DATA", str(digits.parent))
    arguments = ("--epochs", 2, "--backend", "numpy", "--output", folder)
    status, out, errors = run("runs", "tiny", "--runs", 3, *arguments)
    assert status == 0, errors
    assert f"2 of 3 runs are already in {folder / 'runs.json'}" in out
    records = Runs.read(folder / "runs.json").records
    assert len({tuple(record["numbers"]) for record in records}) == 1  # the same names in all of them
    assert all("observations" in record and "looks" not in record for record in records)


@pytest.mark.parametrize(
    ("then", "now"),
    [("broke down", "late collapse"), ("dead layer", "dead ReLUs"), ("collapsed", "single-class predictions")],
)
def test_defect_of_before(tmp_path, then, now):
    defect = {"kind": then, "step": 3, "layer": "", "detail": ""}
    held = {"format": 1, "defect": defect, "looks": [], "histograms": {}}
    (tmp_path / "defects.json").write_text(json.dumps(held))
    assert load_report(tmp_path)["defect"]["kind"] == now
