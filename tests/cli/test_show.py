"""`gpucnn show`: what is drawn from a run folder, where it goes, and what is said where there is nothing to draw."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import layers, plots
from gpucnn.callbacks.snapshots import load_snapshots
from gpucnn.data.synthetic import synthetic_digits
from gpucnn.saving.tree import read_tensors
from tests.helpers import write_digits


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small MNIST of synthetic digits, and the folder of a run of two epochs on it."""
    data = write_digits(tmp_path_factory.mktemp("data") / "mnist", 600, 80)
    folder = tmp_path_factory.mktemp("run") / "run"
    command = f"train --data mnist --epochs 2 --batch-size 50 --data-dir {data} --run-dir {folder}"
    subprocess.run([sys.executable, "-m", "gpucnn", *command.split()], check=True, capture_output=True)
    return data, folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run that a test may spoil."""
    return shutil.copytree(trained[1], tmp_path / "run")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, by the function that drew them."""
    figures = {}

    def watch(name, function):
        def draw(*arguments, **options):
            figures[name] = function(*arguments, **options)
            return figures[name]

        monkeypatch.setattr(plots, name, draw)

    for name in ("filters", "filters_by_epoch", "feature_maps", "history", "confusion", "mistakes", "histograms"):
        watch(name, getattr(plots, name))
    return figures


def tiles(axes):
    return [np.asarray(image.get_array()) for image in axes.images]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("filters",), "filters.png"),
        (("filters", "--layer", "conv2d_1"), "filters-conv2d_1.png"),
        (("filters", "--epoch", "0"), "filters-epoch-0.png"),
        (("filters-by-epoch",), "filters-by-epoch.png"),
        (("filters-by-epoch", "--layer", "conv2d_1", "--channel", "2"), "filters-by-epoch-conv2d_1-channel-2.png"),
        (("feature-maps",), "feature-maps-0.png"),
        (("feature-maps", "--index", "7", "--count", "3"), "feature-maps-7.png"),
        (("history",), "history.png"),
        (("confusion",), "confusion.png"),
        (("mistakes", "--count", "4"), "mistakes.png"),
        (("histograms",), "histograms.png"),
    ],
)
def test_show_writes_into_the_run_folder(run, folder, arguments, name):
    status, shown, errors = run("show", arguments[0], folder, *arguments[1:])
    assert (status, errors) == (0, "")
    assert shown == f"{folder / name}\n"
    with Image.open(folder / name) as picture:
        assert picture.format == "PNG"


def test_show_writes_where_it_is_told(run, folder, tmp_path):
    assert run("show", "history", folder, "-o", "curves.svg")[1] == "curves.svg\n"
    assert "<svg" in (tmp_path / "curves.svg").read_text()[:1000]
    assert run("show", "filters-by-epoch", folder, "-o", "filters.gif")[0] == 0
    with Image.open(tmp_path / "filters.gif") as animation:
        assert animation.n_frames == 3


def test_show_writes_beside_a_model_outside_a_run(run, folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "mine.safetensors")
    assert run("show", "filters", "mine.safetensors")[1] == "mine-filters.png\n"
    assert (tmp_path / "mine-filters.png").is_file()


def test_show_takes_the_newest_run(run, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs" / "first")
    assert run("show", "history")[1].replace("\\", "/") == "runs/first/history.png\n"


def test_show_filters_of_the_model_or_of_an_epoch(run, folder, drawn):
    run("show", "filters", folder)
    weight = gpucnn.load(folder / "model.safetensors").state_dict()["conv2d.weight"]
    assert all(np.array_equal(tile, weight[:, :, 0, f]) for f, tile in enumerate(tiles(drawn["filters"].axes[0])))
    run("show", "filters", folder, "--epoch", 1, "--layer", "conv2d_1")
    weight = load_snapshots(folder)[1]["conv2d_1.weight"]
    assert np.array_equal(tiles(drawn["filters"].axes[0])[0], weight[:, :, 0, 0])
    assert drawn["filters"].get_suptitle() == "conv2d_1, epoch 1"


def test_show_filters_by_epoch_ends_with_the_model(run, folder, drawn):
    run("show", "filters-by-epoch", folder, "--layer", "conv2d_1", "--channel", 5)
    weight = gpucnn.load(folder / "model.safetensors").state_dict()["conv2d_1.weight"]
    shown = tiles(drawn["filters_by_epoch"].axes[0])
    assert len(shown) == 16 * 3
    assert all(np.array_equal(shown[3 * f + 2], weight[:, :, 5, f]) for f in range(16))


def test_show_history_has_the_test_scores(run, folder, drawn):
    run("show", "history", folder)
    test = json.loads((folder / "config.json").read_text())["test"]
    kept = json.loads((folder / "history.json").read_text())
    loss, accuracy = drawn["history"].axes
    assert loss.lines[0].get_ydata().tolist() == kept["loss"]
    assert loss.lines[-1].get_ydata()[0] == test["loss"]
    assert accuracy.lines[-1].get_ydata()[0] == 100 * test["accuracy"]


def drawn_shares(figure, title):
    axes = next(axes for axes in figure.axes if axes.get_title().startswith(title))
    return [patch.get_data() for patch in axes.patches]


def test_show_histograms_of_a_run(run, folder, drawn, tmp_path):
    run("show", "histograms", folder)
    kept = json.loads((folder / "defects.json").read_text())["histograms"]
    counts = np.array(kept["dense.weight"]["counts"])
    (shown,) = drawn_shares(drawn["histograms"], "dense.weight")
    np.testing.assert_allclose(shown.edges, kept["dense.weight"]["edges"], atol=1e-9)
    np.testing.assert_allclose(shown.values, 100 * counts / counts.sum(), atol=1e-6)
    assert any("gradient" in axes.get_title() for axes in drawn["histograms"].axes)
    (folder / "defects.json").unlink()  # without them the model's own weights are drawn
    run("show", "histograms", folder)
    (again,) = drawn_shares(drawn["histograms"], "dense.weight")
    np.testing.assert_allclose(again.values, shown.values, atol=0.1)
    assert not any("gradient" in axes.get_title() for axes in drawn["histograms"].axes)
    other = shutil.copytree(folder, tmp_path / "other")
    run("show", "histograms", folder, "--compare", other)
    assert len(drawn_shares(drawn["histograms"], "dense.weight")) == 2


def test_show_histograms_of_a_defective_run_beside_a_good_one(run, folder, drawn):
    def record(seed, defect, low):
        held = {"counts": [3, 1], "edges": [low, low + 1.0, low + 2.0], "not_finite": 0}
        return {"seed": seed, "numbers": {}, "defect": defect, "histograms": {"dense.weight": held}}

    dead = {"kind": "dead ReLUs", "step": 20, "layer": "relu", "detail": "all of it"}
    records = [record(0, None, 0.0), record(1, dead, 10.0), record(2, dead, 20.0)]
    (folder / "runs.json").write_text(json.dumps({"format": 1, "settings": {}, "runs": records}))
    run("show", "histograms", folder)
    names = [text.get_text() for text in drawn["histograms"].legends[0].get_texts()]
    assert names == ["seed 1: dead ReLUs at step 20", "seed 0, successful"]
    bad, good = drawn_shares(drawn["histograms"], "dense.weight")
    assert (good.edges[0], good.edges[-1]) == (0, 12)
    middle = np.searchsorted(bad.edges, 6)
    assert (bad.values[:middle].sum(), good.values[middle:].sum()) == (0, 0)
    run("show", "histograms", folder, "--seed", 2)
    assert drawn["histograms"].legends[0].get_texts()[0].get_text().startswith("seed 2")
    run("show", "histograms", folder, "--seed", 0)
    assert len(drawn_shares(drawn["histograms"], "dense.weight")) == 1
    assert "--seed 7" in refused(run, "histograms", folder, "--seed", 7)
    (folder / "runs.json").unlink()
    assert "is a single run" in refused(run, "histograms", folder, "--seed", 1)


def test_show_confusion_and_mistakes_of_the_test_set(run, folder, trained, drawn):
    (_, (images, labels)) = gpucnn.datasets.mnist(trained[0])
    probabilities = gpucnn.load(folder / "model.safetensors").predict(images)
    wrong = probabilities.argmax(axis=1) != labels
    run("show", "confusion", folder)
    run("show", "mistakes", folder, "--count", 1)
    assert drawn["confusion"].get_suptitle() == f"Confusion matrix (accuracy {100 - wrong.sum() / 0.8:.2f} %)"
    surest = np.where(wrong, probabilities.max(axis=1), 0).argmax()
    (axes,) = drawn["mistakes"].axes
    np.testing.assert_allclose(tiles(axes)[0], images[surest, ..., 0] / 255)
    assert axes.get_title().startswith(f"true: {labels[surest]}\npredicted: {probabilities[surest].argmax()}\n")


def test_show_feature_maps_of_a_test_image(run, folder, trained, drawn):
    (_, (images, labels)) = gpucnn.datasets.mnist(trained[0])
    run("show", "feature-maps", folder, "--index", 5, "--count", 2)
    *rows, bars = drawn["feature_maps"].axes
    np.testing.assert_allclose(tiles(rows[0])[0], images[5, ..., 0] / 255)
    assert len(tiles(rows[2])) == 2
    probabilities = gpucnn.load(folder / "model.safetensors").predict(images[5:6])[0]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], 100 * probabilities, rtol=1e-4, atol=1e-4)
    assert drawn["feature_maps"].get_suptitle() == f"test image 5 ({labels[5]}) in lenet"


def test_show_feature_maps_of_an_image_file(run, folder, drawn, tmp_path):
    image = synthetic_digits(1, 3)[0][0, ..., 0]
    Image.fromarray(255 - image).save("paper.png")
    status, shown, _ = run("show", "feature-maps", folder, "--image", "paper.png")
    assert (status, shown) == (0, f"{folder / 'feature-maps-paper.png'}\n")
    np.testing.assert_allclose(tiles(drawn["feature_maps"].axes[0])[0], image / 255)


def test_show_takes_other_data(run, folder, trained, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "mine.safetensors")
    options = ("--data", "mnist", "--data-dir", trained[0])
    assert run("show", "confusion", "mine.safetensors", *options)[0] == 0
    assert (tmp_path / "mine-confusion.png").is_file()


# --- mistakes ---------------------------------------------------------------------------------


def refused(run, *arguments):
    """Return the message of a command that fails as it should: one message, no trace."""
    status, shown, errors = run("show", *arguments)
    assert (status, shown) == (1, "")
    assert "Traceback" not in errors
    assert errors.split(":")[0] in ("ConfigurationError", "CheckpointError", "DataError")
    return errors.strip()


@pytest.mark.parametrize("what", ["filters", "filters-by-epoch", "feature-maps", "history", "confusion", "mistakes"])
def test_show_of_an_empty_run_folder(run, what, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "model.safetensors: not found; pass a run folder" in refused(run, what, "empty")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("what", ["filters", "feature-maps", "confusion", "mistakes"])
def test_show_of_a_model_of_another_version(run, folder, what):
    file = folder / "model.safetensors"
    described = json.loads(read_tensors(file)[0]["gpucnn"])
    save_file(load_file(file), file, metadata={"gpucnn": json.dumps(described | {"format": 99})})
    assert "holds a gpucnn model of format 99, and this gpucnn reads format 1; was it written" in refused(
        run, what, folder
    )


@pytest.mark.parametrize("what", ["feature-maps", "history", "confusion", "mistakes"])
def test_show_with_damaged_settings(run, folder, what):
    (folder / "config.json").write_text("network: lenet")
    assert "config.json: cannot be read as JSON (Expecting value" in refused(run, what, folder)
    (folder / "config.json").write_text("[1, 2]")
    assert "config.json: contains [1, 2] where a run's settings were expected" in refused(run, what, folder)


def test_show_of_a_missing_or_damaged_history(run, folder):
    for content, message in (
        ('{"loss": [1.0,', "history.json: cannot be read as JSON (Expecting value"),
        ('{"loss": ["low"]}', "history.json: is not a history; expected a list of numbers"),
        ("[1.0]", "history.json: is not a history; expected a list of numbers"),
        ("{}", "the history holds no epoch to draw"),
    ):
        (folder / "history.json").write_text(content)
        assert message in refused(run, "history", folder)
    (folder / "history.json").unlink()
    assert "history.json: not found; `gpucnn train` writes a history" in refused(run, "history", folder)


def test_show_without_snapshots(run, folder):
    assert "run has no snapshot of epoch 9; there are 0, 1, 2" in refused(run, "filters", folder, "--epoch", 9)
    (folder / "snapshots.safetensors").unlink()
    for arguments in (("filters-by-epoch", folder), ("filters", folder, "--epoch", 1)):
        assert "snapshots.safetensors: there are no snapshots; `gpucnn train`" in refused(run, *arguments)


def test_show_of_a_file_that_is_not_an_image(run, folder, tmp_path):
    (tmp_path / "page.png").write_text("<html>404</html>")
    assert "page.png: is not a supported image" in refused(run, "feature-maps", folder, "--image", "page.png")
    assert "nowhere.png" in refused(run, "feature-maps", folder, "--image", "nowhere.png")
    assert "name two images; pass one" in refused(run, "feature-maps", folder, "--image", "page.png", "--index", 3)
    for index in (80, -1):
        assert f"--index {index}: the test set has 80 images, 0 to 79" in refused(
            run, "feature-maps", folder, f"--index={index}"
        )


def test_show_refuses_unknown_choices(run, folder):
    for what in ("filters", "filters-by-epoch"):
        assert "no convolution named 'dense'; there are conv2d, conv2d_1" in refused(
            run, what, folder, "--layer", "dense"
        )
    assert "conv2d_1 has 6 input channels, 0 to 5" in refused(
        run, "filters-by-epoch", folder, "--layer", "conv2d_1", "--channel", 6
    )
    assert "unknown data set 'svhn'" in refused(run, "confusion", folder, "--data", "svhn")


def test_show_into_files_that_cannot_be_written(run, folder):
    assert "x.txt: pictures cannot be written as .txt" in refused(run, "history", folder, "-o", "x.txt")
    assert "cannot write nowhere" in refused(run, "history", folder, "-o", "nowhere/x.png")


def test_show_of_models_that_do_not_fit(run, trained, tmp_path):
    features = gpucnn.Model([layers.Dense(2), layers.Softmax()], (4,)).compile()
    features.save(tmp_path / "features.safetensors")
    for what in ("feature-maps", "confusion", "mistakes"):
        message = refused(run, what, "features.safetensors")
        assert "takes inputs of shape (4,), not greyscale or colour images" in message
    assert "there is no convolution whose" in refused(run, "filters", "features.safetensors")
    two = gpucnn.Model([layers.Flatten(), layers.Dense(2), layers.Softmax()], (28, 28, 1)).compile()
    two.save(tmp_path / "two.safetensors")
    assert "two.safetensors does not record its training data" in refused(run, "confusion", "two.safetensors")
    message = refused(run, "confusion", "two.safetensors", "--data", "mnist", "--data-dir", trained[0])
    assert "has outputs of shape (2,), but the test set of mnist has 10 classes" in message
