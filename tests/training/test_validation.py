"""What `gpucnn train` validates on: training images that it holds out, and test images only where it is told to."""

import json

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, rng
from gpucnn.callbacks.defects import TrainingMonitor
from gpucnn.data.splits import stratified
from gpucnn.errors import ConfigurationError
from gpucnn.report.overview import facts
from gpucnn.report.run import open_run
from gpucnn.runs.folder import validated_on_test


def drawn(labels, fraction, seed=0):
    return stratified(np.asarray(labels), fraction, rng.host_generator(seed, "hold out"))


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.25, 0.5, 0.9])
def test_stratified_split_has_each_class_by_its_share(fraction):
    labels = np.random.default_rng(0).choice(7, 5000, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.04, 0.01])
    held = drawn(labels, fraction)
    assert held.sum() == round(fraction * 5000)
    for k in range(7):
        of_class = labels == k
        assert abs(held[of_class].sum() - fraction * of_class.sum()) < 1


def test_stratified_split_is_a_function_of_the_seed():
    labels = np.arange(300) % 10
    assert (drawn(labels, 0.1) == drawn(labels, 0.1)).all()
    assert (drawn(labels, 0.1) != drawn(labels, 0.1, seed=1)).any()


def test_stratified_split_leaves_one_of_each_class():
    held = drawn([0, 0, 1, 1, 1, 2], 0.9)
    assert not held[5]
    assert [held[:2].sum(), held[2:5].sum()] == [1, 2]
    assert drawn([0, 1, 1, 2], 0.01).tolist().count(True) == 1
    with pytest.raises(ConfigurationError, match="no validation set can be split off 3 images of 3 classes"):
        drawn([0, 1, 2], 0.5)


@pytest.fixture
def fits(monkeypatch):
    """Note what each training is given, without training."""
    seen = []

    def fit(model, x, y, **options):
        seen.append({"x": x, "y": y, "model": model, **options})
        raise KeyboardInterrupt

    monkeypatch.setattr(gpucnn.Model, "fit", fit)
    return seen


def test_validation_off_trains_on_all_images(run, digits, fits):
    shown = run("train", "--data", "mnist", "--data-dir", digits)[1]
    assert "MNIST: 2,000 training, 300 test images; " in shown
    assert len(fits[0]["x"]) == 2000
    assert fits[0]["validation_data"] is None


@pytest.mark.parametrize(
    ("options", "held"),
    [
        (("--validate",), 200),
        (("--early-stopping", 3), 200),
        (("--validation-split", 0.25), 500),
        (("--early-stopping", 3, "--validation-split", 0.05), 100),
    ],
)
def test_validation_sees_held_out_training_images(run, digits, fits, options, held, tmp_path):
    """`--validate` scored the test images, chose the best model by them, and then called their score the test's."""
    shown = run("train", "--data", "mnist", "--data-dir", digits, "--run-dir", "here", *options)[1]
    assert f"MNIST: {2000 - held:,} training, {held} validation, 300 test images; " in shown
    (given,) = fits
    (x, y), (x_test, _) = gpucnn.datasets.mnist(digits)
    x_held, y_held = given["validation_data"]
    assert (len(given["x"]), len(x_held)) == (2000 - held, held)
    assert (abs(np.bincount(y_held) - np.bincount(y) * held / 2000) < 1).all()
    whole = {image.tobytes() for image in x}
    parts = [{image.tobytes() for image in part} for part in (given["x"], x_held)]
    assert parts[0] | parts[1] == whole
    assert not parts[0] & parts[1]
    assert not parts[1] & {image.tobytes() for image in x_test}
    (watch,) = (callback for callback in given["callbacks"] if isinstance(callback, TrainingMonitor))
    assert not {image.tobytes() for image in watch.monitor_data[0]} & parts[1]
    settings = json.loads((tmp_path / "here" / "config.json").read_text())
    assert settings["images"] == {"training": 2000 - held, "validation": held, "test": 300}
    assert settings["validation_split"] == held / 2000
    assert settings["validate_on_test"] is False
    run("train", "--run-dir", "here", "--resume")
    assert (fits[1]["x"] == given["x"]).all()
    assert (fits[1]["validation_data"][0] == x_held).all()


def test_normalization_adapts_to_training_images_alone(run, digits, fits, tmp_path):
    """Where a network's recipe does not know the data, its normalisation is adapted: not to what is held out."""
    run("train", "--network", "network-3", "--data", "mnist", "--data-dir", digits, "--validate")
    (given,) = fits
    expected = layers.Normalization().adapt(given["x"])
    assert given["model"].layers[0].mean == pytest.approx(expected.mean)
    (x, _), _ = gpucnn.datasets.mnist(digits)
    assert given["model"].layers[0].mean != pytest.approx(layers.Normalization().adapt(x).mean, rel=1e-9)


def test_defect_watch_sees_all_classes_of_sorted_data(run, tmp_path, fits, monkeypatch):
    x, y = np.zeros((3000, 28, 28, 1), np.uint8), np.repeat(np.arange(3), 1000)
    data = gpucnn.datasets.Dataset([(x, y), (x[:9], y[:9])], name="mnist", class_names="abc", source="here")
    monkeypatch.setattr("gpucnn.runs.folder.datasets.mnist", lambda folder: data)
    run("train", "--data", "mnist")
    (watch,) = (callback for callback in fits[0]["callbacks"] if isinstance(callback, TrainingMonitor))
    assert len(watch.monitor_data[1]) == 500
    assert set(watch.monitor_data[1]) == {0, 1, 2}


def test_validation_on_the_test_images_is_explicit(run, digits, tmp_path):
    options = ("--data", "mnist", "--data-dir", digits, "--epochs", 1, "--batch-size", 200, "--run-dir", "here")
    status, shown, errors = run("train", *options, "--validate-on-test")
    assert (status, errors) == (0, "")
    assert "MNIST: 2,000 training, 300 test images, also used for validation; " in shown
    settings = json.loads((tmp_path / "here" / "config.json").read_text())
    accuracy = f"{100 * settings['test']['accuracy']:.2f} %"
    assert f"best      epoch 1, test accuracy (which selected it) {accuracy}" in shown
    told = {fact.term: fact for fact in facts(open_run(tmp_path / "here", "numpy"), "not tested")}
    assert told["Validation"].value == "on the test images, after each epoch; they also selected the best model"
    status, _, errors = run("train", "--validate-on-test", "--validation-split", 0.1)
    assert status == 1
    assert "--validation-split 0.1 validates on training images, --validate-on-test on the test images" in errors


def test_validation_split_is_shown_in_the_report(run, digits, tmp_path):
    options = ("--data", "mnist", "--data-dir", digits, "--epochs", 1, "--batch-size", 200, "--run-dir", "here")
    assert run("train", *options, "--validate")[0] == 0
    told = {fact.term: fact for fact in facts(open_run(tmp_path / "here", "numpy"), "not tested")}
    assert told["Data"].remark.startswith("1,800 training, 200 validation, 300 test images; IDX files in ")
    assert told["Validation"].value == "on a random 10 % of the training images, held out"


@pytest.mark.parametrize(
    ("settings", "on_test"),
    [
        ({"validate": True, "validation_split": None, "early_stopping": None}, True),
        ({"validate": False, "validation_split": None, "early_stopping": 3}, True),
        ({"validate": True, "validation_split": 0.1, "early_stopping": None}, False),
        ({"validate": False, "validation_split": None, "early_stopping": None}, False),
        ({"validate": True, "validation_split": 0.1, "early_stopping": None, "validate_on_test": False}, False),
        ({}, False),
    ],
)
def test_validation_of_older_runs_is_read(settings, on_test):
    assert validated_on_test(settings) == on_test


def test_validation_of_older_runs_is_kept_on_resume(run, digits, fits, tmp_path):
    run("train", "--data", "mnist", "--data-dir", digits, "--run-dir", "here", "--validate-on-test")
    settings = json.loads((tmp_path / "here" / "config.json").read_text())
    del settings["validate_on_test"], settings["images"]
    (tmp_path / "here" / "config.json").write_text(json.dumps(settings | {"validate": True}))
    run("train", "--run-dir", "here", "--resume")
    _, (x_test, _) = gpucnn.datasets.mnist(digits)
    assert (fits[1]["validation_data"][0] == x_test).all()
    assert len(fits[1]["x"]) == 2000
