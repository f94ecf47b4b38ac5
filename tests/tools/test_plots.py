"""Pictures: the numbers behind what is drawn."""

import os
import pickle
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import gpucnn
from gpucnn import layers, plots
from gpucnn.callbacks import defects
from gpucnn.callbacks.snapshots import Snapshots
from gpucnn.errors import ConfigurationError, DataError, ShapeError
from gpucnn.plots.svg import inline_svg
from gpucnn.training.history import History
from tests.helpers import small_model, stripes

RUN = History(
    {
        "loss": [1.0, 0.5, 0.25],
        "cumulative_loss": [1.0, 0.75, 0.6],
        "val_loss": [0.9, 0.7, 0.5],
        "accuracy": [0.5, 0.75, 1.0],
        "cumulative_accuracy": [0.5, 0.625, 0.75],
    }
)


def lines(axes):
    return {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}


def tiles(axes):
    return [np.asarray(image.get_array()) for image in axes.images]


def words(texts):
    return [text.get_text() for text in texts]


def colour_model():
    return gpucnn.Model(
        [
            layers.Conv2D(5, 3, padding="same", use_bias=False),
            layers.ReLU(),
            layers.MaxPool2D(2),
            layers.Sequential([layers.Conv2D(20, (3, 2)), layers.ReLU()]),
            layers.Flatten(),
            layers.Dense(12),
            layers.Softmax(),
        ],
        (8, 8, 3),
        name="colours",
        backend="numpy",
    )


# --- curves -----------------------------------------------------------------------------------


def test_loss_curve_has_final_test_loss():
    (axes,) = plots.loss(RUN, 0.375).axes
    assert lines(axes) == {
        "train": [1.0, 0.5, 0.25],
        "validation": [0.9, 0.7, 0.5],
        "test, after the last epoch: 0.3750": [0.375, 0.375],
    }
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss")
    assert all(tick == int(tick) for tick in axes.get_xticks())
    assert "test" not in str(lines(plots.loss(RUN).axes[0]))


def test_accuracy_curve_has_cumulative_mean():
    (axes,) = plots.accuracy(RUN, 0.9876).axes
    assert lines(axes) == {
        "train": [50.0, 75.0, 100.0],
        "train (cumulative mean)": [50.0, 62.5, 75.0],
        "test, after the last epoch: 98.76 %": [98.76, 98.76],
    }


def test_history_has_test_scores_as_lines():
    loss, accuracy = plots.history(RUN, test={"loss": 0.5, "accuracy": 0.75}).axes
    assert lines(loss)["test, after the last epoch: 0.5000"] == [0.5, 0.5]
    assert lines(accuracy)["test, after the last epoch: 75.00 %"] == [75, 75]


def test_curve_without_metric_is_rejected():
    with pytest.raises(ConfigurationError, match=r"holds no 'accuracy' to draw, only loss; compile .*\['accuracy'\]"):
        plots.accuracy(History({"loss": [1.0]}))
    with pytest.raises(ConfigurationError, match="holds no epoch to draw"):
        plots.loss(History())


def test_runs_have_mean_std_and_confidence_interval():
    curves = [[0.1, 0.5], [0.2, 0.5, 0.9], [0.6, 0.8]]
    (axes,) = plots.runs([History({"accuracy": curve}) for curve in curves]).axes
    assert [line.get_ydata().tolist() for line in axes.lines[:3]] == [[100 * v for v in curve] for curve in curves]
    np.testing.assert_allclose(lines(axes)["mean"], [30, 60])  # as far as every run goes
    std = np.std([[10, 50], [20, 50], [60, 80]], axis=0, ddof=1)
    half = 4.302653 * std / np.sqrt(3)  # t for 2 degrees of freedom, 97.5 %
    bands = {band.get_label(): band.get_paths()[0].vertices for band in axes.collections}
    for label, width in (("± 1 standard deviation of the runs", std), ("95 % confidence interval of the mean", half)):
        at_two = bands[label][bands[label][:, 0] == 2, 1]
        np.testing.assert_allclose([at_two.min(), at_two.max()], [60 - width[1], 60 + width[1]], rtol=1e-6)
    assert axes.get_title() == "3 runs"


def test_runs_with_nan_are_drawn_but_not_averaged():
    curves = [{"loss": [1.0, 0.5]}, {"loss": [3.0, 0.7]}, {"loss": [9.0, float("nan")]}]
    (axes,) = plots.runs(curves, "loss").axes
    np.testing.assert_allclose(lines(axes)["mean"], [2.0, 0.6])
    assert len(axes.lines) == 4
    assert axes.get_title() == "3 runs, mean of the 2 whose values are finite"
    (axes,) = plots.runs(curves[2:], "loss").axes
    assert len(axes.lines) == 1
    assert axes.get_title() == "1 run; none has only finite values"
    (axes,) = plots.runs(curves[:1], "loss").axes
    assert (axes.get_title(), len(axes.collections)) == ("1 run", 0)


def test_runs_without_metric_are_rejected():
    with pytest.raises(ConfigurationError, match="run 1 has no 'accuracy' to draw; it has loss"):
        plots.runs([RUN, History({"loss": [1.0]})])
    with pytest.raises(ConfigurationError, match="there are no runs to draw"):
        plots.runs([])


def test_observations_are_curves():
    seen = [
        {"step": 50, "accuracy": 0.25, "one_class": 0.5, "dead": {"relu": 0.0, "relu_1": 0.75}},
        {"step": 90, "accuracy": 0.5, "one_class": 0.2, "dead": {"relu": 0.1, "relu_1": 0.0}},
    ]
    (axes,) = plots.observations(seen).axes
    assert lines(axes) == {
        "accuracy on the monitoring subset": [25, 50],
        "most-predicted class (% of predictions)": [50, 20],
        "dead units in the worst layer": [75, 10],
    }
    assert axes.lines[0].get_xdata().tolist() == [50, 90]
    (axes,) = plots.observations([{**seen[0], "dead": {}}]).axes
    assert len(axes.lines) == 2
    with pytest.raises(ConfigurationError, match="there are no observations to draw"):
        plots.observations([])


def test_inline_svg_of_a_figure():
    """Ids and references of its own, letters as text, the page's colours, and nothing that a policy forbids."""
    figures = [inline_svg(plots.accuracy(RUN, 0.9), prefix, 'the "accuracy" & more') for prefix in ("a", "b")]
    ids = []
    for figure, prefix in zip(figures, "ab", strict=True):
        root = ElementTree.fromstring(figure)
        assert (root.tag, root.attrib["role"]) == ("svg", "img")
        assert root.attrib["aria-label"] == 'the "accuracy" & more'
        for one in root.iter():
            assert not {"style", "xmlns"} & one.attrib.keys()
            assert one.tag not in ("style", "metadata")
            ids.append(one.attrib.get("id", f"{prefix}-{len(ids)}"))
            assert ids[-1].startswith(f"{prefix}-")
        references = re.findall(r'(?:url\(#|href="#)([^")]+)', figure)
        assert references
        assert set(references) <= set(ids)
        assert "http" not in figure
        assert {"epoch", "accuracy (%)", "validation"} & {text.text for text in root.iter("text")}
    assert len(set(ids)) == len(ids)


# --- filters ----------------------------------------------------------------------------------


def test_filters_share_a_symmetric_scale(backend):
    model = small_model(backend=backend)
    weight = model.state_dict()["conv2d.weight"]
    axes, scale = plots.filters(model).axes
    assert len(axes.images) == 4
    for f, image in enumerate(axes.images):
        np.testing.assert_array_equal(image.get_array(), weight[:, :, 0, f])
        np.testing.assert_allclose(image.get_clim(), [-abs(weight).max(), abs(weight).max()])
        assert image.get_cmap().name == "gray"
    assert words(axes.texts) == ["0", "1", "2", "3"]
    assert scale.get_ylabel() == "weight"


def test_filters_of_colour_images_have_their_own_scales():
    model = colour_model()
    weight = model.state_dict()["conv2d.weight"]
    figure = plots.filters(model)
    (axes,) = figure.axes
    for f, tile in enumerate(tiles(axes)):
        np.testing.assert_allclose(tile, 0.5 + weight[..., f] / (2 * abs(weight[..., f]).max()))
    assert "each on its own scale: mid-grey is 0" in figure.get_suptitle()


def test_filters_of_many_channels_are_rows():
    model = colour_model()
    weight = model.state_dict()["sequential.conv2d.weight"]  # (3, 2, 5, 20)
    figure = plots.filters(model, "sequential.conv2d", max_tiles=4)
    axes = figure.axes[0]
    assert len(axes.images) == 16
    for place, image in enumerate(axes.images):
        f, c = divmod(place, 4)
        np.testing.assert_array_equal(image.get_array(), weight[:, :, c, f])
        left, right, bottom, top = image.get_extent()
        assert (bottom - top) / (right - left) == 1.5
    tops = [image.get_extent()[3] for image in axes.images]
    assert tops == sorted(tops)
    assert len(set(tops)) == 4  # rows
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("input channel", "filter")
    assert "shown: 4 of 20 filters, 4 of 5 input channels" in figure.get_suptitle()
    assert "shown" not in plots.filters(model, "sequential.conv2d", max_tiles=20).get_suptitle()


def test_filters_of_unknown_convolution_are_rejected():
    with pytest.raises(ConfigurationError, match=r"no convolution named 'dense'; there are conv2d, sequential\.conv2d"):
        plots.filters(colour_model(), "dense")
    with pytest.raises(ConfigurationError, match="there is no convolution whose"):
        plots.filters(gpucnn.Model([layers.Dense(2)], (4,)))


def test_filters_of_zero_or_nan_weights_are_drawn():
    weight = np.zeros((3, 3, 1, 2))
    assert plots.filters({"conv2d.weight": weight}).axes[0].images[0].get_clim() == (-1, 1)
    weight[0, 0, 0, 0], weight[1, 1, 0, 1] = np.nan, -2
    assert plots.filters({"conv2d.weight": weight}).axes[0].images[0].get_clim() == (-2, 2)


@pytest.fixture(scope="module")
def snapshots():
    kept = Snapshots()
    x, y = stripes(60)
    small_model().fit(x, y, epochs=3, batch_size=20, verbose=0, callbacks=[kept])
    return kept


def test_filters_by_epoch_share_one_scale(snapshots):
    figure = plots.filters_by_epoch(snapshots)
    axes = figure.axes[0]
    limit = max(abs(kept["conv2d.weight"]).max() for kept in snapshots.epochs.values())
    assert len(axes.images) == 4 * 4
    for place, image in enumerate(axes.images):
        f, epoch = divmod(place, 4)
        np.testing.assert_array_equal(image.get_array(), snapshots.epochs[epoch]["conv2d.weight"][:, :, 0, f])
        np.testing.assert_allclose(image.get_clim(), [-limit, limit])
    assert words(axes.get_xticklabels()) == ["0", "1", "2", "3"]
    assert axes.get_xlabel() == "epoch (0: before training)"


def test_filters_by_epoch_of_one_input_channel(snapshots):
    figure = plots.filters_by_epoch(snapshots.epochs, "conv2d_1", channel=3, max_tiles=2)
    axes = figure.axes[0]
    wanted = [snapshots.epochs[epoch]["conv2d_1.weight"][:, :, 3, f] for f in (0, 1) for epoch in (0, 3)]
    for image, weight in zip(axes.images, wanted, strict=True):
        np.testing.assert_array_equal(image.get_array(), weight)
    assert "input channel 3 of 4" in figure.get_suptitle()
    assert "shown: 2 of 8 filters, 2 of 4 epochs" in figure.get_suptitle()
    with pytest.raises(ConfigurationError, match="conv2d_1 has 4 input channels, 0 to 3; there is no channel 4"):
        plots.filters_by_epoch(snapshots, "conv2d_1", channel=4)
    with pytest.raises(ConfigurationError, match="there are no snapshots to draw"):
        plots.filters_by_epoch({})


def test_filters_by_epoch_in_colour_share_one_scale():
    small, large = np.full((2, 2, 3, 1), 0.5), np.full((2, 2, 3, 1), -2.0)
    axes = plots.filters_by_epoch({0: {"conv2d.weight": small}, 1: {"conv2d.weight": large}}).axes[0]
    assert [tile[0, 0, 0] for tile in tiles(axes)] == [0.625, 0.0]


def test_animation_has_one_frame_per_epoch(tmp_path):
    light, dark = np.ones((1, 1, 1, 1)), -np.ones((1, 1, 1, 1))
    epochs = {0: {"conv2d.weight": light}, 1: {"conv2d.weight": 0 * light}, 2: {"conv2d.weight": dark}}
    plots.animate_filters(epochs, tmp_path / "a.gif", frames_per_second=10)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 3
        frames, durations = [], []
        for number in range(3):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("L")).astype(int))
            durations.append(picture.info["duration"])
    assert durations == [100, 100, 2000]
    changed = np.ptp(np.stack(frames), axis=0) > 200  # the filter alone goes from white to black
    rows, columns = np.nonzero(changed)
    row, column = int(np.median(rows)), int(np.median(columns))
    assert [frame[row, column] for frame in frames] == pytest.approx([255, 128, 0], abs=3)


def test_animation_is_a_gif(tmp_path, snapshots):
    with pytest.raises(ConfigurationError, match=r"a.png: animations are written as GIF"):
        plots.animate_filters(snapshots, tmp_path / "a.png")
    with pytest.raises(ConfigurationError, match="frames_per_second must be a number that is above 0, not 0"):
        plots.animate_filters(snapshots, tmp_path / "a.gif", frames_per_second=0)
    with pytest.raises(ConfigurationError, match=r"cannot write .*a.gif \(No such file or directory\)"):
        plots.animate_filters(snapshots, tmp_path / "nowhere" / "a.gif")


# --- feature maps -----------------------------------------------------------------------------


def test_feature_maps_of_every_layer(backend):
    model = colour_model().to(backend)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    figure = plots.feature_maps(model, image, [f"class {k}" for k in range(12)], max_maps=6)
    *rows, bars = figure.axes
    np.testing.assert_allclose(tiles(rows[0])[0], image / 255)
    clone = colour_model()  # of the same seed
    parts = [*clone.layers[:3], *(layer for layer in clone.layers[3])]
    x = clone.as_floats(image[None])
    for layer, axes in zip(parts, rows[1:], strict=True):
        x, _ = layer.forward(x, train=False)
        expected = x[0]
        assert len(axes.images) == min(6, expected.shape[2])
        for c, drawn in enumerate(axes.images):
            np.testing.assert_allclose(drawn.get_array(), expected[..., c], atol=1e-5)
            np.testing.assert_allclose(drawn.get_clim(), [expected.min(), expected.max()], atol=1e-5)
        assert ("shown" in axes.get_ylabel()) == (expected.shape[2] > 6)
    assert [axes.get_ylabel().splitlines()[0] for axes in rows] == [
        "input", "conv2d", "relu", "max_pool2d", "conv2d", "relu",
    ]  # fmt: skip
    assert "2 × 3 × 20" in rows[4].get_ylabel()
    probabilities = model.predict(image[None])[0]
    order = probabilities.argsort()[::-1][:10]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], 100 * probabilities[order], rtol=1e-4)
    assert words(bars.get_yticklabels()) == [f"class {k}" for k in order]
    assert bars.get_title() == "softmax, 10 of 12 classes"


def test_feature_maps_bars_keep_class_order():
    model = small_model()
    model.class_names = ["across", "down", "$slant$"]
    image = stripes(1)[0][0]
    bars = plots.feature_maps(model, image).axes[-1]
    probabilities = model.predict(image[None])[0]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], 100 * probabilities, rtol=1e-4)
    assert words(bars.get_yticklabels()) == ["across", "down", r"\$slant\$"]
    colours = [bar.get_facecolor() for bar in bars.patches]
    assert [colours.count(colour) for colour in colours] == [1 if k == probabilities.argmax() else 2 for k in range(3)]


def test_feature_maps_without_dense_outputs_have_no_bars():
    model = gpucnn.Model([layers.Conv2D(2, 3)], (5, 5, 1))
    assert len(plots.feature_maps(model, np.zeros((5, 5, 1), np.uint8)).axes) == 2


def test_feature_maps_reject_other_images():
    with pytest.raises(ShapeError, match=r"image has shape \(1, 28, 28\), the model takes \(N, 8, 8, 3\)"):
        plots.feature_maps(colour_model(), np.zeros((28, 28), np.uint8))
    with pytest.raises(ConfigurationError, match=r"takes inputs of shape \(4,\), not images"):
        plots.feature_maps(gpucnn.Model([layers.Dense(2)], (4,)), np.zeros(4))
    with pytest.raises(ConfigurationError, match="max_maps must be a positive integer, not 0"):
        plots.feature_maps(colour_model(), np.zeros((8, 8, 3)), max_maps=0)


# --- predictions ------------------------------------------------------------------------------


def test_confusion_matrix_rows_are_true_classes():
    assert plots.confusion_matrix([0, 0, 1, 2], [0, 2, 1, 1], 4).tolist() == [
        [1, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]
    probabilities = [[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]
    assert plots.confusion_matrix([0, 0], probabilities).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_confusion_matrix_rejects_other_labels():
    with pytest.raises(ShapeError, match=r"labels have shape \(2,\) and predictions \(3,\)"):
        plots.confusion_matrix([0, 1], [0, 1, 2])
    with pytest.raises(DataError, match="class indices go from 0 to 5; expected 0 to 2, for 3 classes"):
        plots.confusion_matrix([0, 5], [[0.1, 0.8, 0.1]] * 2)
    with pytest.raises(DataError, match="there are no labels to count"):
        plots.confusion_matrix([], [])


def test_confusion_has_counts_and_percentages():
    matrix = np.array([[3, 1, 0], [0, 2000, 0], [0, 0, 0]])
    figure = plots.confusion(matrix, ["cat", "$dog", "owl"])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[75, 25, 0], [0, 100, 0], [0, 0, 0]])
    cells = {(text.get_position()[1], text.get_position()[0]): text for text in axes.texts}
    shown = {place: (text.get_text(), text.get_color()) for place, text in cells.items()}
    assert shown == {
        (0, 0): ("3\n75.0 %", "white"),
        (0, 1): ("1\n25.0 %", "black"),
        (1, 1): ("2,000\n100.0 %", "white"),
    }
    assert words(axes.get_xticklabels()) == words(axes.get_yticklabels()) == ["cat", r"\$dog", "owl"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert figure.get_suptitle() == "Confusion matrix (accuracy 99.95 %)"


def test_confusion_of_many_classes_has_no_numbers():
    axes = plots.confusion(np.eye(100, dtype=int)).axes[0]
    assert len(axes.texts) == 0
    assert len(axes.get_xticklabels()) == 100
    assert len(plots.confusion(np.eye(250, dtype=int)).axes[0].get_xticks()) <= 100


def test_confusion_rejects_other_matrices():
    with pytest.raises(ShapeError, match=r"a confusion matrix is square, .*, not \(2, 3\)"):
        plots.confusion(np.zeros((2, 3)))
    with pytest.raises(ShapeError, match="there are 1 class names for 2 classes"):
        plots.confusion(np.eye(2), ["one"])


def test_mistakes_are_sorted_by_confidence():
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4, 1)
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.0004, 0.9996]])
    labels = np.array([0, 1, 0, 0, 0])  # the first is right
    figure = plots.mistakes(images, labels, probabilities, ["no", "yes"], 3)
    assert [axes.get_title() for axes in figure.axes] == [
        "true: no\npredicted: yes\n> 99.9 %",
        "true: no\npredicted: yes\n80.0 %",
        "true: no\npredicted: yes\n70.0 %",
    ]
    for axes, index in zip(figure.axes, (4, 2, 3), strict=True):
        np.testing.assert_allclose(tiles(axes)[0], images[index, ..., 0] / 255)
    assert figure.get_suptitle().startswith("3 most confident of 4 mistakes among 5 images")
    coloured = np.random.default_rng(0).random((5, 4, 4, 3))
    last = plots.mistakes(coloured, labels, probabilities).axes[-1]
    np.testing.assert_allclose(tiles(last)[0], coloured[1])
    assert last.get_title() == "true: 1\npredicted: 0\n60.0 %"


def test_mistakes_of_a_perfect_model():
    figure = plots.mistakes(np.zeros((2, 4, 4, 1)), np.array([0, 1]), np.eye(2))
    assert figure.get_suptitle().startswith("no mistakes among 2 images")
    assert figure.axes == []


def test_mistakes_reject_shapes_that_do_not_match():
    images, labels, probabilities = np.zeros((2, 4, 4, 1)), np.array([0, 1]), np.eye(2)
    with pytest.raises(ConfigurationError, match="count must be a positive integer, not 0"):
        plots.mistakes(images, labels, probabilities, count=0)
    with pytest.raises(ShapeError, match=r"images have shape \(2, 4, 4\) and probabilities \(2, 2\)"):
        plots.mistakes(images[..., 0], labels, probabilities)
    with pytest.raises(ShapeError, match=r"there are 2 images, labels of shape \(1,\) and 2 rows"):
        plots.mistakes(images, labels[:1], probabilities)
    with pytest.raises(ShapeError, match="there are 1 class names for 2 classes"):
        plots.mistakes(images, labels, probabilities, ["one"])


# --- histograms -------------------------------------------------------------------------------


def test_histograms_of_two_runs_share_their_bins():
    good = {"conv2d.weight": np.array([[0.0, 1.0], [1.0, 4.0]]), "conv2d.bias": np.zeros(3)}
    bad = {"conv2d.weight": np.array([8.0, 8.0, np.nan, np.inf])}
    figure = plots.histograms(good, bad, names=("good", "bad"))
    weight, bias = figure.axes
    filled, line = (patch.get_data() for patch in weight.patches)
    np.testing.assert_array_equal(filled.edges, line.edges)
    assert (filled.edges[0], filled.edges[-1]) == (0, 8)
    assert [filled.values[0], filled.values[5], filled.values[20]] == [25, 50, 25]
    assert filled.values.sum() == 100
    assert line.values[-1] == line.values.sum() == 50  # of four values two are not finite
    assert weight.get_title() == "conv2d.weight\n2 of 4 not finite"
    assert len(bias.patches) == 1
    assert words(figure.legends[0].get_texts()) == ["good", "bad"]


def test_histograms_of_a_model_show_its_gradients(backend):
    model = small_model(backend=backend)
    model.train_on_batch(*stripes(20))
    values = plots.parameter_values(model)
    assert list(values)[:2] == ["conv2d.weight", "conv2d.weight gradient"]
    for name, parameter in model.parameters().items():
        np.testing.assert_array_equal(values[name], model.backend.to_host(parameter.value))
        np.testing.assert_array_equal(values[f"{name} gradient"], model.backend.to_host(parameter.grad))
        assert np.any(values[f"{name} gradient"])
    figure = plots.histograms(model)
    titles = [axes.get_title() for axes in figure.axes]
    assert sorted(titles) == sorted(values)
    drawn = figure.axes[titles.index("dense.weight gradient")].patches[0].get_data()
    counts, _ = np.histogram(values["dense.weight gradient"], drawn.edges)
    np.testing.assert_allclose(drawn.values, 100 * counts / counts.sum())
    assert list(plots.parameter_values(model, gradients=False)) == list(model.parameters())


def test_histograms_with_other_bins_are_compared():
    """Values within a bin count as evenly spread; with the bins of the drawing itself nothing is lost."""
    kept = {"w": {"counts": [4, 0, 12], "edges": [0.0, 1.0, 2.0, 3.0], "not_finite": 4}}
    wide = {"w": {"counts": [10, 30], "edges": [0.0, 4.0, 8.0], "not_finite": 0}}
    (axes,) = plots.histograms(kept, wide).axes
    first, second = (patch.get_data() for patch in axes.patches)
    np.testing.assert_array_equal(first.edges, second.edges)
    assert (first.edges[0], first.edges[-1]) == (0, 8)
    np.testing.assert_allclose(first.values.sum(), 80)
    np.testing.assert_allclose(second.values.sum(), 100)
    for share, drawn, edge in ((20, first, 1.0), (20, first, 2.0), (80, first, 3.0), (12.5, second, 2.0)):
        np.testing.assert_allclose(np.interp(edge, drawn.edges, [0, *np.cumsum(drawn.values)]), share, atol=4)
    assert axes.get_title() == "w\n4 of 20 not finite"


def test_histograms_of_equal_values_are_drawn():
    """Such as the gradients of a dead network: they must not hide those that they are drawn beside."""
    alive = {"w gradient": np.array([-1e-4, 0.0, 1e-4])}
    layer = layers.Dense(1)
    model = gpucnn.Model([layer], (3,), backend="numpy")
    dead = {"w gradient": defects.histograms(model)["dense.weight gradient"]}
    assert dead["w gradient"]["counts"][0] == 3
    assert set(dead["w gradient"]["edges"]) == {0.0}
    (axes,) = plots.histograms(alive, dead).axes
    filled, line = (patch.get_data() for patch in axes.patches)
    assert (filled.edges[0], filled.edges[-1]) == (-1e-4, 1e-4)
    place = np.flatnonzero(line.values)
    assert line.edges[place[0]] <= 0 <= line.edges[place[0] + 1]
    assert line.values[place].tolist() == [100]


def test_histograms_of_a_watch_match_their_values():
    model = small_model()
    model.train_on_batch(*stripes(20))
    kept = defects.histograms(model)
    assert list(kept) == list(plots.parameter_values(model))
    for of_kept, of_values in zip(plots.histograms(kept).axes, plots.histograms(model).axes, strict=True):
        assert of_kept.get_title() == of_values.get_title()
        a, b = of_kept.patches[0].get_data(), of_values.patches[0].get_data()
        np.testing.assert_allclose(a.edges[[0, -1]], b.edges[[0, -1]], rtol=1e-6)
        below = [np.interp(a.edges, drawn.edges, [0, *np.cumsum(drawn.values)]) for drawn in (a, b)]
        np.testing.assert_allclose(*below, atol=100 / 3)  # a bin's worth, and the bias has three values


def test_histograms_of_nothing_are_refused():
    with pytest.raises(ConfigurationError, match="there are no values to draw"):
        plots.histograms({})
    (axes,) = plots.histograms({"bias": np.full(3, np.nan)}).axes
    assert axes.get_title() == "bias\n3 of 3 not finite"


# --- saving -----------------------------------------------------------------------------------


def every_picture(snapshots):
    images, labels = stripes(30)
    model = small_model()
    probabilities = model.predict(images)
    yield "history", lambda path: plots.history(RUN, path=path)
    yield "loss", lambda path: plots.loss(RUN, path=path)
    yield "accuracy", lambda path: plots.accuracy(RUN, path=path)
    yield "runs", lambda path: plots.runs([RUN, RUN], path=path)
    yield "filters", lambda path: plots.filters(model, path=path)
    yield "by_epoch", lambda path: plots.filters_by_epoch(snapshots, path=path)
    yield "maps", lambda path: plots.feature_maps(model, images[0], path=path)
    yield "confusion", lambda path: plots.confusion(plots.confusion_matrix(labels, probabilities), path=path)
    yield "mistakes", lambda path: plots.mistakes(images, labels, probabilities, path=path)
    yield "histograms", lambda path: plots.histograms(model, model, path=path)


def test_pictures_are_saved_by_extension(tmp_path, snapshots):
    for name, draw in every_picture(snapshots):
        draw(tmp_path / f"{name}.png")
        draw(tmp_path / f"{name}.svg")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert np.ptp(np.asarray(picture.convert("L"))) > 200
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()[:1000]


def test_pictures_reject_other_extensions(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"a.bmp2: pictures cannot be written as \.bmp2; expected .* \.png, \.svg"
    ):
        plots.loss(RUN, path=tmp_path / "a.bmp2")
    with pytest.raises(ConfigurationError, match=r"picture: pictures cannot be written as a file without extension"):
        plots.loss(RUN, path=tmp_path / "picture")
    with pytest.raises(ConfigurationError, match=r"cannot write .*a.png \(No such file or directory\); the folder"):
        plots.loss(RUN, path=tmp_path / "nowhere" / "a.png")


# Where pictures are shown


def test_picture_is_displayed_in_a_notebook():
    """Without `%matplotlib inline`; pyplot, which would show it a second time, knows nothing of it."""
    figure = plots.history(History({"loss": [1.0, 0.5], "accuracy": [0.5, 0.75]}))
    assert figure._repr_png_().startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
    again = pickle.loads(pickle.dumps(figure))
    assert again._repr_png_() == figure._repr_png_()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline_missing.backend_inline", "nonsense"])
def test_picture_needs_no_matplotlib_backend(tmp_path, backend):
    """A command that a notebook starts inherits its MPLBACKEND, which another environment need not have."""
    script = (
        "import os\nfrom gpucnn import plots\nfrom gpucnn.training.history import History\n"
        f"plots.history(History({{'loss': [1.0, 0.5]}}), {str(tmp_path / 'a.png')!r})\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}"
    )
    environment = os.environ | {"MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
