"""`gpucnn report`: the numbers and the pixels of the page against the model, the history and the data behind them."""

import base64
import hashlib
import io
import itertools
import json
import math
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import layers, losses, optimizers, report
from gpucnn.callbacks.defects import TrainingMonitor
from gpucnn.callbacks.snapshots import load_snapshots
from gpucnn.core.text import duration
from gpucnn.errors import CheckpointError, ConfigurationError, DataError, OutOfMemoryError
from gpucnn.report.feature_maps import choose_images
from gpucnn.runs.folder import Predictions
from gpucnn.runs.statistics import Runs
from gpucnn.saving.tree import read_tensors
from tests.tools.conftest import CLASS_NAMES

VOID = {"meta", "link", "img", "br", "input", "hr"}


# --- reading a page ---------------------------------------------------------------------------


class Element:
    """An element of a page: its tag, attributes and what is inside, in order."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.inside = tag, dict(attributes), []

    def all(self, tag=None, **attributes):
        """Every element below with this tag and these attributes; `cls` is one of its classes."""
        wanted = attributes.pop("cls", None)
        found = []
        for one in self.inside:
            if isinstance(one, str):
                continue
            named = {name.replace("_", "-"): value for name, value in attributes.items()}
            if (
                tag in (None, one.tag)
                and all(name in one.attributes and one.attributes[name] == value for name, value in named.items())
                and (wanted is None or wanted in one.attributes.get("class", "").split())
            ):
                found.append(one)
            found += one.all(tag, cls=wanted, **attributes) if wanted else one.all(tag, **attributes)
        return found

    def one(self, tag=None, **attributes):
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self):
        """The words inside, blanks as one."""
        inside = "".join(one if isinstance(one, str) else f" {one.text} " for one in self.inside)
        return " ".join(inside.split())


class Page(HTMLParser):
    """A page as a tree; an element that is closed wrongly fails the test."""

    def __init__(self, text):
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], f"not closed: {self._open[-1].tag}"

    def handle_starttag(self, tag, attributes):
        element = Element(tag, attributes)
        assert len(element.attributes) == len(attributes), f"an attribute of {tag} stands twice"
        self._open[-1].inside.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        self._open[-1].inside.append(data)


def parse(page):
    return Page(page if isinstance(page, str) else page.read_text(encoding="utf-8")).root


def section(page, name):
    return page.one("section", id=name)


def pixels(img):
    """The pixels of an `<img>`, as it stands in the page."""
    head, _, data = img.attributes["src"].partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture).astype(int)


def tile(picture, row, column, height, width):
    """One of the tiles of a grid, which are a transparent pixel apart."""
    top, left = row * (height + 1), column * (width + 1)
    cut = picture[top : top + height, left : left + width]
    assert (cut[..., -1] == 255).all(), "a tile is not transparent"
    return cut[..., 0] if picture.shape[-1] == 2 else cut[..., :3]


def rows(table):
    """The words of a table's body and foot, cell by cell."""
    return [
        [cell.text for cell in line.inside if not isinstance(cell, str)]
        for part in ("tbody", "tfoot")
        for body in table.all(part)
        for line in body.all("tr")
    ]


def facts(page):
    """The configuration and the headline: what stands for each term, and the small words below."""
    return {pair.one("dt").text: pair.one("dd").text for where in page.all("dl") for pair in where.all("div")}


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(run_folder):
    return gpucnn.load(run_folder / "model.safetensors", backend="numpy")


@pytest.fixture(scope="module")
def test_set(data):
    return gpucnn.datasets.mnist(data)[1]


@pytest.fixture(scope="module")
def profiles():
    return []


@pytest.fixture(scope="module")
def source(run_folder, tmp_path_factory, profiles):
    """The report of the run, whose profile is kept beside it."""
    measured = gpucnn.Model.profile

    def profile(*arguments, **options):
        profiles.append(measured(*arguments, **options))
        return profiles[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpucnn.Model, "profile", profile)
        path = report.write(run_folder, tmp_path_factory.mktemp("page") / "page.html", backend="numpy", images=6)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return parse(source)


@pytest.fixture
def folder(run_folder, tmp_path):
    """A copy of the run that a test may spoil."""
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture(scope="module")
def coloured_page(coloured):
    return parse(report.render(coloured, backend="numpy", images=4))


# --- the head and the configuration -----------------------------------------------------------


def test_headline_and_settings(page, run_folder, model):
    settings = json.loads((run_folder / "config.json").read_text())
    history = json.loads((run_folder / "history.json").read_text())
    found = facts(page)
    assert found["test accuracy"] == f"{100 * settings['test']['accuracy']:.2f} % after training"
    assert found["test loss"].startswith(f"{settings['test']['loss']:.4f} ")
    count = sum(parameter.size for parameter in model.parameters().values())
    assert found["parameters"].startswith(f"{count:,} ")
    assert found["training time"] == f"{duration(sum(history['seconds']))} 3 epochs"
    assert found["Network"] == "lenet 28 × 28 × 1 → 10"
    assert found["Data"].startswith("MNIST 600 training, 200 test images; IDX files in ")
    assert found["Optimizer"] == "SGD(learning_rate=OneCycle(0.1), momentum=0.9)"
    assert found["Learning rate"] == "OneCycle(0.1)"
    assert found["Augmentation"] == "none"
    assert found["Loss"] == "CategoricalCrossEntropy()"
    assert (found["Epochs"], found["Batch size"]) == ("3", "50")
    assert found["Seed"].startswith("0 ")
    assert found["Backend"] == "numpy float32"
    assert found["Versions"] == ", ".join(
        f"{name} {settings['versions'][key]}"
        for name, key in (("gpucnn", "gpucnn"), ("Python", "python"), ("NumPy", "numpy"))
    )
    assert page.one("h1").text == "lenet"
    assert page.one("title").text == f"digits: lenet, {100 * settings['test']['accuracy']:.2f} %"


# --- the curves -------------------------------------------------------------------------------


def points(path):
    """The corners of an SVG path of straight lines."""
    numbers = [float(word) for word in re.findall(r"-?[\d.]+", path.attributes["d"])]
    return np.array(numbers).reshape(-1, 2)


def curves(svg):
    """The lines that are drawn in the axes of a figure, in the order in which they were drawn."""
    return [
        points(path)
        for line in svg.all("g")
        if re.search(r"-line2d_\d+$", line.attributes.get("id", ""))
        for path in line.inside
        if not isinstance(path, str)
        and path.tag == "path"
        and path.attributes.get("stroke-width") == "1.5"
        and "clip-path" in path.attributes
    ]


def scale_of(svg, axis):
    """What turns places of a figure into numbers: slope and offset, from the words beside the ticks."""
    places, numbers = [], []
    for tick in svg.all("g"):
        if re.search(rf"-{axis}tick_\d+$", tick.attributes.get("id", "")):
            places.append(float(tick.all("use")[0].attributes[axis]))
            numbers.append(float(tick.one("text").text.replace("−", "-")))
    return np.polyfit(places, numbers, 1)


@pytest.mark.parametrize(
    ("number", "keys", "test", "unit"),
    [(0, ["accuracy", "cumulative_accuracy"], "accuracy", 100.0), (1, ["loss"], "loss", 1.0)],
)
def test_curves_are_those_of_the_history(page, run_folder, number, keys, test, unit):
    history = json.loads((run_folder / "history.json").read_text())
    final = json.loads((run_folder / "config.json").read_text())["test"][test]
    svg = section(page, "training").all("svg")[number]
    *drawn, across = curves(svg)
    assert len(drawn) == len(keys)
    span = unit * np.ptp(history[test])
    for key, line in zip(keys, drawn, strict=True):
        np.testing.assert_allclose(np.polyval(scale_of(svg, "x"), line[:, 0]), [1, 2, 3], atol=1e-4)
        shown = np.polyval(scale_of(svg, "y"), line[:, 1])
        np.testing.assert_allclose(shown, unit * np.array(history[key]), atol=1e-4 * span)
    np.testing.assert_allclose(np.polyval(scale_of(svg, "y"), across[:, 1]), unit * final, atol=1e-4 * span)


def test_curves_table_of_all_epochs(page, run_folder):
    history = json.loads((run_folder / "history.json").read_text())
    table = section(page, "training").one("table")
    assert [heading.text for heading in table.all("th", scope="col")] == [
        "epoch",
        "accuracy",
        "accuracy (cumulative mean)",
        "loss",
        "time",
    ]
    found = rows(table)
    assert [line[0] for line in found] == ["1", "2", "3"]
    for epoch, line in enumerate(found):
        assert line[1] == f"{100 * history['accuracy'][epoch]:.2f} %"
        assert line[2] == f"{100 * history['cumulative_accuracy'][epoch]:.2f} %"
        assert line[3] == f"{history['loss'][epoch]:.4f}"


def test_report_figures_follow_the_theme_of_the_page(page):
    for svg in page.all("svg", cls="plot"):
        assert svg.attributes["fill"] == "currentColor"
        assert svg.attributes["aria-label"]
        for one in svg.all():
            assert "style" not in one.attributes
            assert "#000000" not in one.attributes.values()
            assert "#ffffff" not in one.attributes.values()


# --- the layers -------------------------------------------------------------------------------


def test_layers_table_is_that_of_the_model(page, model, profiles):
    (profile,) = profiles
    part = section(page, "layers")
    *found, whole = rows(part.one("table"))
    assert len(found) == len(model.layers)
    total = sum(row.seconds for row in profile.layers)
    for line, (name, layer), row in zip(found, model.network.children(), profile.layers, strict=True):
        title, output, parameters, flops, size, forward, backward, share, speed, algorithm = line
        assert title == f"{name} {layer!r}"
        assert output == " × ".join(map(str, layer.output_shape))
        count = sum(parameter.size for parameter in layer.parameters().values())
        assert parameters == (f"{count:,}" if count else "")
        work = row.flops_forward + row.flops_backward
        assert flops == (f"{work / 1e6:,.1f}" if work else "")
        assert size == f"{50 * math.prod(layer.output_shape) * 4 / 1e6:,.3f}"
        assert (forward, backward) == (f"{1e3 * row.forward_seconds:.2f}", f"{1e3 * row.backward_seconds:.2f}")
        assert float(re.sub("[<>%]", "", share)) == pytest.approx(100 * row.seconds / total, abs=0.1)
        assert speed == (f"{work / row.seconds / 1e9:,.1f}" if work else "")
        assert algorithm == layer.algorithm(50)
    convolution = dict(zip([line[0].split()[0] for line in found], found, strict=True))["conv2d"]
    assert convolution[3] == f"{2 * 50 * 2 * 28 * 28 * 6 * 25 / 1e6:,.1f}"  # products, twice: its input has no gradient
    assert whole[2] == "61,706"
    assert whole[7] == "100.0 %"
    assert "Timed for this report" in part.text
    assert "a batch of 50 random inputs on numpy" in part.text


# --- the test set -----------------------------------------------------------------------------


def test_confusion_matrix_counts_the_test_set(page, model, test_set):
    images, labels = test_set
    predictions = model.predict(images).argmax(axis=1)
    counts = [[0] * 10 for _ in range(10)]
    for label, prediction in zip(labels, predictions, strict=True):
        counts[label][prediction] += 1
    part = section(page, "test")
    *found, last = rows(part.one("table"))
    for k, line in enumerate(found):
        assert line[0] == str(k)
        assert [int(cell.replace(",", "")) for cell in line[1:-1]] == counts[k]
        assert line[-1] == f"{100 * counts[k][k] / sum(counts[k]):.1f} %"
    for k, cell in enumerate(last[1:-1]):
        taken = sum(counts[i][k] for i in range(10))
        assert cell == (f"{100 * counts[k][k] / taken:.1f} %" if taken else "–")
    right = sum(counts[k][k] for k in range(10))
    assert f"{right} of the 200 test images of MNIST classified correctly: accuracy {right / 2:.2f} %" in part.text
    largest = max((counts[i][j], -i, -j) for i in range(10) for j in range(10) if i != j)
    first = part.one("ul", cls="columns").all("li")[0].text
    assert first == f"{-largest[1]} classified as {-largest[2]}: {largest[0]} of {sum(counts[-largest[1]])}"


def test_confusion_matrix_shades(page):
    """Blue by the fraction of the row; orange relative to the most frequent mistake; nothing where nothing is."""
    body = section(page, "test").one("table").one("tbody")
    lines = [line.all("td")[:-1] for line in body.all("tr")]
    largest = max(int(c.text) for i, line in enumerate(lines) for j, c in enumerate(line) if i != j)
    for i, line in enumerate(lines):
        total = sum(int(cell.text) for cell in line)
        for j, cell in enumerate(line):
            kind, shade = cell.attributes["class"].split()
            number = int(cell.text)
            assert kind == ("right" if i == j else "wrong")
            wanted = max(1, round(10 * number / (total if i == j else largest))) if number else 0
            assert shade == f"shade-{wanted}"


def test_mistakes_are_the_most_confident(page, model, test_set):
    images, labels = test_set
    probabilities = model.predict(images)
    wrong = [n for n in range(200) if probabilities[n].argmax() != labels[n]]
    wrong.sort(key=lambda n: -probabilities[n].max())
    shown = section(page, "test").one("ul", cls="gallery").all("li")
    assert len(shown) == min(18, len(wrong)) > 3
    for n, item in zip(wrong, shown, strict=False):
        np.testing.assert_array_equal(pixels(item.one("img"))[..., 0], images[n, ..., 0])
        assert [bold.text for bold in item.all("b")] == [str(labels[n]), str(probabilities[n].argmax())]
        assert item.one("small").text.endswith(f"#{n}")
        assert item.one("small").text.startswith(f"{100 * probabilities[n].max():.1f}")


def test_confusion_matrix_of_many_classes_is_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(21):
        (tmp_path / "data" / f"k{k}").mkdir(parents=True)
        for n in range(2):
            Image.fromarray(rng.integers(0, 255, (6, 6), dtype=np.uint8)).save(tmp_path / "data" / f"k{k}" / f"{n}.png")
    model = gpucnn.Model([layers.Flatten(), layers.Dense(21), layers.Softmax()], (6, 6, 1), backend="numpy").compile()
    model.save(tmp_path / "model.safetensors")
    found = parse(report.render(tmp_path, data="images", data_dir=tmp_path / "data", backend="numpy"))
    part = section(found, "test")
    assert part.all("table") == []
    (svg,) = part.all("svg")
    assert {"k0", "k20", "true class"} <= {text.text for text in svg.all("text")}


# --- filters ----------------------------------------------------------------------------------


def grey(value, limit):
    return min(255, max(0, round(255 * (0.5 + value / (2 * limit)))))


def frames(part, layer):
    panel = part.one("div", data_layer=str(layer))
    return panel, panel.all("figure")


def stated_limit(panel):
    return float(re.search(r"−([\d.]+)", panel.one("p", cls="scale").text)[1])


def close(shown, wanted):
    """Return whether grey levels agree; a half may be rounded either way."""
    return np.abs(np.asarray(shown) - np.asarray(wanted)).max() <= 1


@pytest.mark.parametrize(("layer", "name"), [(0, "conv2d"), (1, "conv2d_1")])
def test_filters_are_the_snapshots_on_one_scale(page, run_folder, layer, name):
    snapshots = load_snapshots(run_folder)
    panel, shown = frames(section(page, "filters"), layer)
    assert panel.one("h3").text == name
    limit = max(abs(kept[f"{name}.weight"]).max() for kept in snapshots.values())
    assert stated_limit(panel) == pytest.approx(limit, rel=5e-3)
    assert [one.attributes["data-label"] for one in shown] == [
        "before training",
        "after epoch 1",
        "after epoch 2",
        "after epoch 3",
    ]
    for epoch, figure in enumerate(shown):
        picture, weight = pixels(figure.one("img")), snapshots[epoch][f"{name}.weight"]
        C, F = weight.shape[2:]
        for c in range(C):
            for f in range(F):
                wanted = [[grey(weight[i, j, c, f], limit) for j in range(5)] for i in range(5)]
                assert close(tile(picture, c, f, 5, 5), wanted)
        assert picture.shape == (6 * C - 1, 6 * F - 1, 2)
        assert (picture[5::6, :, 1] == 0).all()
        assert (picture[:, 5::6, 1] == 0).all()


def test_filters_of_colour_images_are_in_colour(coloured_page, coloured):
    snapshots = load_snapshots(coloured)
    part = section(coloured_page, "filters")
    panel, shown = frames(part, 0)
    limit = max(abs(kept["conv2d.weight"]).max() for kept in snapshots.values())
    assert "filters of 3 × 3 in RGB" in panel.text
    assert stated_limit(panel) == pytest.approx(limit, rel=5e-3)
    for epoch, figure in enumerate(shown):
        picture, weight = pixels(figure.one("img")), snapshots[epoch]["conv2d.weight"]
        for f in range(5):
            wanted = [[[grey(w, limit) for w in pixel] for pixel in line] for line in weight[..., f]]
            assert close(tile(picture, 0, f, 3, 3), wanted)
    panel, shown = frames(part, 1)
    assert "shown: 32 of 40 filters" in panel.text
    assert pixels(shown[0].one("img")).shape == (5 * 4 - 1, 32 * 4 - 1, 2)
    panel, _ = frames(part, 2)
    assert "shown: 32 of 40 input channels" in panel.text


def test_filters_of_many_epochs_are_evenly_spaced(coloured, tmp_path, monkeypatch):
    monkeypatch.setattr("gpucnn.report.filters.MAX_EPOCHS", 3)
    part = section(parse(report.render(coloured, backend="numpy")), "filters")
    assert "3 of 5 epochs shown, evenly spaced." in part.text
    assert part.one("input", type="range").attributes["max"] == "2"
    _, shown = frames(part, 0)
    assert [one.attributes["data-label"] for one in shown] == ["before training", "after epoch 2", "after epoch 4"]


# --- feature maps -----------------------------------------------------------------------------


def test_images_are_chosen_by_class_and_confidence(page, model, test_set):
    images, labels = test_set
    probabilities = model.predict(images)
    predictions = probabilities.argmax(axis=1)
    part = section(page, "feature-maps")
    numbers = [int(label.one("small").text.removeprefix("#")) for label in part.all("label", cls="tile")]
    confidence = [p.max() if k != label else -1 for p, k, label in zip(probabilities, predictions, labels, strict=True)]
    *right, wrong = numbers
    assert wrong == int(np.argmax(confidence))
    assert [labels[n] for n in right] == sorted({labels[n] for n in right})
    for n in right:
        assert n == next(m for m in range(200) if labels[m] == labels[n] == predictions[m])
    for number, panel in zip(numbers, part.all("div", data_panel=None), strict=True):
        best = int(probabilities[number].argmax())
        said = f"{labels[number]}, classified as {best}" if best != labels[number] else str(best)
        assert panel.one("h3").text == f"Test image #{number}: {said}"
        assert f"Predicted: {best} (" in panel.text


def test_report_feature_maps_are_those_of_the_forward_pass(page, model, test_set):
    images, _ = test_set
    part = section(page, "feature-maps")
    panels = part.all("div", data_panel=None)
    assert len(panels) == 6
    for panel in panels:
        number = int(re.search(r"Test image #(\d+)", panel.text)[1])
        values = model.as_floats(images[number : number + 1])
        passed = [("input", None)]
        for layer in model.layers:
            values, _ = layer.forward(values, train=False)
            if values.ndim == 4:
                passed.append((layer.display_name, np.array(values[0])))
        shown = panel.all("figure")
        assert len(shown) == len(passed) == 8
        np.testing.assert_array_equal(pixels(shown[0].one("img"))[..., 0], images[number, ..., 0])
        for figure, (name, maps) in list(zip(shown, passed, strict=True))[1:]:
            assert figure.one("figcaption").text.startswith(f"{name} ")
            low, high = maps.min(), maps.max()
            black, white = re.search(r"black is ([−\d.]+), white ([−\d.]+)", figure.text).groups()
            assert float(black.replace("−", "-")) == pytest.approx(low, rel=6e-3, abs=1e-6)
            assert float(white.replace("−", "-")) == pytest.approx(high, rel=6e-3)
            H, W, C = maps.shape
            picture = pixels(figure.one("img"))
            for c in range(C):
                wanted = np.rint(255 * (maps[..., c].astype(float) - low) / (high - low))
                assert close(tile(picture, *divmod(c, 8), H, W), wanted)


def test_images_are_chosen_by_index(run_folder):
    part = section(parse(report.render(run_folder, backend="numpy", images=[7, 3, 7])), "feature-maps")
    assert [h3.text.split(":")[0] for h3 in part.all("h3")] == ["Test image #7", "Test image #3"]
    part = section(parse(report.render(run_folder, backend="numpy", images=1)), "feature-maps")
    assert len(part.all("h3")) == 1
    assert len(part.all("fieldset")) == 1  # no choice of one image
    with pytest.raises(ConfigurationError, match="no test image 200: the test set has 200 images, 0 to 199"):
        report.render(run_folder, backend="numpy", images=[200])
    for wrong in (0, -1, [], True, [1.5], "3"):
        with pytest.raises(ConfigurationError, match=r"images.* must be|empty list|index of a test image must be"):
            report.render(run_folder, backend="numpy", images=wrong)


def test_images_of_an_untrained_network():
    """One class is never recognised, one is not in the test set, and there are more images to show than classes."""
    probabilities = np.eye(4)[[0, 0, 0, 2, 0]] * 0.5
    probabilities[4, 0] = 0.9
    known = Predictions(None, None, np.array([0, 0, 1, 2, 1]), probabilities, list("abcd"))
    assert choose_images(known, 4) == [0, 2, 3, 4]  # 2 is of a class that is not recognised; 4 is the surest mistake
    assert choose_images(known, 5) == [0, 1, 2, 3, 4]
    assert choose_images(known, 9) == [0, 1, 2, 3, 4]
    assert len(choose_images(known, 1)) == 1


def test_feature_maps_are_downscaled_and_limited(tmp_path):
    rng = np.random.default_rng(1)
    for k in range(2):
        (tmp_path / "data" / f"k{k}").mkdir(parents=True)
        for n in range(2):
            picture = rng.integers(0, 255, (200, 100), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / f"k{k}" / f"{n}.png")
    model = gpucnn.Model(
        [layers.Conv2D(20, 1, use_bias=False), layers.Flatten(), layers.Dense(2), layers.Softmax()],
        (200, 100, 1),
        backend="numpy",
    ).compile()
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"batch_size": 2}')
    found = parse(report.render(tmp_path, data="images", data_dir=tmp_path / "data", backend="numpy", images=[0]))
    shown = section(found, "feature-maps").all("figure")[1]
    assert shown.one("figcaption").text.endswith("16 of 20 maps shown, downscaled 3 times")
    assert pixels(shown.one("img")).shape == (2 * 68 - 1, 8 * 35 - 1, 2)
    labels = [label.text for label in section(found, "feature-maps").all("label", cls="chip")]
    assert labels == ["input", "conv2d"]


def test_layers_with_the_same_name_get_numbers(coloured_page):
    part = section(coloured_page, "feature-maps")
    labels = [label.text for label in part.all("label", cls="chip")]
    assert labels == ["input", "conv2d", "relu", "max_pool2d", "conv2d (2)", "relu (2)", "conv2d (3)", "relu (3)"]
    table = section(coloured_page, "layers").one("table")
    assert [line[0] for line in rows(table)[3:5]] == [
        "sequential Sequential of Conv2D, ReLU",
        "sequential_1 Sequential of Conv2D, ReLU",
    ]
    (first,) = [label for label in part.all("label", cls="chip") if "checked" in label.one("input").attributes]
    assert first.text == "conv2d"


# --- defects ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched(model, test_set):
    """What a monitor reports of a training run without a defect and of one with."""
    reports = []
    for rate, values in ((0.01, False), (0.01, True)):
        small = gpucnn.Model(
            [layers.Flatten(), layers.Dense(8), layers.ReLU(), layers.Dense(10), layers.Softmax()],
            (28, 28, 1),
            backend="numpy",
        ).compile(optimizers.SGD(rate))
        if values:
            small.parameters()["dense.weight"].value[0, 0] = np.nan
        watch = TrainingMonitor((test_set[0][:50], test_set[1][:50]), every=2)
        small.fit(*test_set, epochs=2, batch_size=10, callbacks=[watch], check_numerics=False, verbose=0)
        reports.append(watch.report())
    return reports


def test_defects_of_a_run_without_a_watch(folder):
    (folder / "defects.json").unlink()
    found = section(parse(report.render(folder, backend="numpy", images=1)), "defects")
    assert "This run was not monitored for defects: there is no defects.json" in found.text


def test_defects_of_a_command_line_run(page, run_folder):
    kept = json.loads((run_folder / "defects.json").read_text())
    assert f"No problems in {len(kept['observations'])} check" in section(page, "defects").text
    names = [
        item.one("figcaption").inside[0] for item in section(page, "defects").one("ul", cls="histograms").all("li")
    ]
    assert names == list(kept["histograms"])


def test_defects_none_found(folder, watched):
    good = watched[0]
    assert good["defect"] is None
    (folder / "defects.json").write_text(json.dumps({"format": 1, **good}))
    found = parse(report.render(folder, backend="numpy"))
    part = section(found, "defects")
    checks = good["observations"]
    assert f"No problems in {len(checks)} checks (last at step {checks[-1]['step']})." in part.text
    table = rows(part.one("table"))
    assert len(table) == 12
    for line, look in ((table[0], checks[0]), (table[-1], checks[-1])):
        assert line[:3] == [str(look["step"]), f"{100 * look['accuracy']:.1f} %", f"{100 * look['one_class']:.1f} %"]
    assert "12 of 21 checks, evenly spaced." in part.text
    svg = part.all("svg", cls="plot")[0]
    accuracy = curves(svg)[0]
    np.testing.assert_allclose(
        np.polyval(scale_of(svg, "x"), accuracy[:, 0]), [look["step"] for look in checks], atol=1e-2
    )
    np.testing.assert_allclose(
        np.polyval(scale_of(svg, "y"), accuracy[:, 1]), [100 * look["accuracy"] for look in checks], atol=1e-2
    )
    assert found.all("a", href="#defects")[-1].text == "Defects"


def test_report_histograms_are_drawn_as_counted(folder, watched):
    (folder / "defects.json").write_text(json.dumps({"format": 1, **watched[0]}))
    items = section(parse(report.render(folder, backend="numpy")), "defects").one("ul", cls="histograms").all("li")
    assert len(items) == len(watched[0]["histograms"])
    for item, (name, one) in zip(items, watched[0]["histograms"].items(), strict=True):
        assert item.text.startswith(name)
        heights = [float(v) for v in re.findall(r"V([\d.]+)H", item.one("path").attributes["d"])]
        np.testing.assert_allclose(heights, [40 - 40 * c / max(one["counts"]) for c in one["counts"]], atol=0.005)


def test_defects_are_reported_at_the_top(folder, watched):
    bad = watched[1]
    assert bad["defect"]["kind"] == "diverged"
    (folder / "defects.json").write_text(json.dumps({"format": 1, **bad}))
    found = parse(report.render(folder, backend="numpy"))
    sentence = f"Diverged in dense at step 2: {bad['defect']['detail']}."
    assert sentence in section(found, "defects").text
    assert sentence in found.one("header").text
    assert "not finite" in section(found, "defects").one("ul", cls="histograms").text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "defects.json: cannot be read as JSON"),
        ("[]", "defects.json: has format None, expected 1"),
        (
            '{"format": 1, "defect": null, "observations": [{"step": 1}], "histograms": {}}',
            "is not a TrainingMonitor's report",
        ),
        (
            '{"format": 1, "defect": {"kind": "x"}, "observations": [], "histograms": {}}',
            "is not a TrainingMonitor's report",
        ),
        (
            '{"format": 1, "defect": null, "observations": [], "histograms": {"w": {"counts": [1]}}}',
            "is not a TrainingMonitor's report",
        ),
    ],
)
def test_defects_file_that_is_damaged(folder, content, message):
    (folder / "defects.json").write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        report.render(folder, backend="numpy")


# --- many runs --------------------------------------------------------------------------------


def record(accuracy, loss, training, defect=None):
    numbers = {
        "training accuracy": training,
        "training cumulative_accuracy": training,
        "test loss": loss,
        "test accuracy": accuracy,
        "step time (s)": 0.01,
        "total time (s)": 61.0,
    }
    return {"numbers": numbers, "defect": defect, "observations": [], "histograms": {}}


@pytest.fixture
def many(folder):
    """The run's folder as one of `gpucnn runs`, with a defective run among four."""
    (folder / "defects.json").unlink()
    broken = {"kind": "single-class predictions", "step": 400, "layer": "", "detail": "class 3 is predicted for <100%>"}
    runs = Runs(folder / "runs.json", {"recipe": "lenet"})
    for seed, (accuracy, loss) in enumerate([(0.9, 0.3), (0.95, 0.2), (0.1, 2.3), (0.91, 0.28)]):
        found = record(accuracy, loss, [0.5, accuracy + 0.01], broken if accuracy == 0.1 else None)
        runs.add({"seed": seed, **found, **({"restarts": [broken]} if seed == 3 else {})})
    settings = json.loads((folder / "config.json").read_text())
    del settings["test"]
    (folder / "config.json").write_text(json.dumps(settings | {"recipe": "lenet", "seed": 1}))
    return folder


def test_all_runs_table(many):
    found = parse(report.render(many, backend="numpy"))
    part = section(found, "runs")
    assert part.text.startswith("All runs 4 runs of lenet, 1 of them with a defect and excluded from the averages.")
    table = part.one("table")
    assert [h.text for h in table.all("th", scope="col")] == [
        "seed",
        "test accuracy",
        "test loss",
        "training accuracy, last epoch",
        "total time (s)",
        "defect",
    ]
    lines = rows(table)
    assert lines[0] == ["0", "90.00 %", "0.300", "91.00 %", "61.0 s", "none"]
    assert lines[1][:2] == ["1 this run", "95.00 %"]
    assert lines[2][-1] == "single-class predictions: class 3 is predicted for <100%>"
    assert lines[3][-1] == "after 1 restart"
    good = np.array([0.9, 0.95, 0.91])
    assert lines[4][:2] == ["mean", f"{100 * good.mean():.2f} %"]
    assert lines[5][:2] == ["std", f"± {100 * good.std(ddof=1):.2f} %"]
    svg = part.one("svg", cls="plot")
    grey_lines = [p for p in svg.all("path", stroke="#888888") if "clip-path" in p.attributes]
    assert len(grey_lines) == 4
    np.testing.assert_allclose(np.polyval(scale_of(svg, "y"), points(grey_lines[1])[:, 1]), [50, 96], atol=0.01)


def test_all_runs_report_has_scores_and_defects_of_one_run(many):
    found = parse(report.render(many, backend="numpy"))
    assert facts(found)["test accuracy"].startswith("95.00 %")
    assert "No problems were found." in section(found, "defects").text


def test_all_runs_table_is_missing_for_a_single_run(page):
    assert page.all("section", id="runs") == []


# --- what a run lacks -------------------------------------------------------------------------


def test_report_of_a_model_file(model, tmp_path, test_set, monkeypatch):
    """Nothing lies next to the model, and its data are unavailable."""
    monkeypatch.setattr(
        "gpucnn.runs.folder.load_data", lambda *a, **k: (_ for _ in ()).throw(DataError("no <network>"))
    )
    model.save(tmp_path / "mine.safetensors")
    path = report.write(tmp_path / "mine.safetensors", backend="numpy")
    assert path == tmp_path / "mine-report.html"
    found = parse(path)
    assert "There is no history.json next to the model" in section(found, "training").text
    for part in ("test", "feature-maps"):
        assert "The test results are not available: no <network>." in section(found, part).text
    assert "The run has no snapshots" in section(found, "filters").text
    assert section(found, "filters").all("input", type="range") == []
    _, (frame,) = frames(section(found, "filters"), 0)
    weight = model.state_dict()["conv2d.weight"]
    wanted = [[grey(w, abs(weight).max()) for w in line] for line in weight[:, :, 0, 2]]
    assert close(tile(pixels(frame.one("img")), 0, 2, 5, 5), wanted)
    assert "not monitored" in section(found, "defects").text
    assert facts(found)["test accuracy"] == "not recorded"
    assert facts(found)["Versions"] == "not recorded"
    assert len(rows(section(found, "layers").one("table"))) == 15


def test_headline_of_frozen_parameters_and_partial_epochs(run_folder, model, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    part = gpucnn.load(folder / "model.safetensors", backend="numpy")
    part.freeze("conv2d.*")
    part.save(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"epochs": 2.5}))
    found = facts(parse(report.render(folder, backend="numpy", images=1)))
    assert found["parameters"] == "61,706 156 of them frozen"
    assert found["Epochs"] == "2.5"
    assert found["training time"].endswith(" 2.5 epochs")


def test_scores_are_measured_if_not_recorded(folder, model, test_set):
    (folder / "config.json").write_text(
        json.dumps({"data": "mnist", "data_dir": json.loads((folder / "config.json").read_text())["data_dir"]})
    )
    found = parse(report.render(folder, backend="numpy"))
    accuracy = model.evaluate(*test_set)["accuracy"]
    assert facts(found)["test accuracy"] == f"{100 * accuracy:.2f} % measured for this report"


def test_report_of_a_network_without_convolutions(tmp_path, data):
    model = gpucnn.Model([layers.Flatten(), layers.Dense(10), layers.Softmax()], (28, 28, 1), backend="numpy").compile()
    model.save(tmp_path / "model.safetensors")
    found = parse(report.render(tmp_path, data="mnist", data_dir=data, backend="numpy"))
    assert "The network has no convolution" in section(found, "filters").text
    assert [figure.text for figure in section(found, "feature-maps").all("figure")] == ["input 28 × 28 × 1"] * 6


def test_report_of_a_network_without_images(tmp_path):
    model = gpucnn.Model([layers.Dense(3)], (7,), backend="numpy").compile(loss=losses.MeanSquaredError(), metrics=[])
    model.save(tmp_path / "model.safetensors")
    found = parse(report.render(tmp_path, backend="numpy"))
    for part in ("test", "feature-maps"):
        assert "takes inputs of shape (7,), not greyscale or colour images" in section(found, part).text
    assert len(rows(section(found, "layers").one("table"))) == 2


def test_curves_without_accuracy_or_epochs(folder):
    (folder / "history.json").write_text('{"loss": [1.0, 0.5]}')
    part = section(parse(report.render(folder, backend="numpy")), "training")
    assert len(part.all("svg")) == 1
    assert rows(part.one("table")) == [["1", "1.0000"], ["2", "0.5000"]]
    (folder / "history.json").write_text("{}")
    assert "The history holds no epoch" in section(parse(report.render(folder, backend="numpy")), "training").text


def test_filters_without_snapshots_are_noted(folder, model, monkeypatch):
    kept = load_snapshots(folder)
    short = {epoch: {"conv2d.weight": weights["conv2d.weight"]} for epoch, weights in kept.items()}
    monkeypatch.setattr("gpucnn.report.run.load_snapshots", lambda folder: short)
    part = section(parse(report.render(folder, backend="numpy")), "filters")
    assert "There are no snapshots of conv2d_1, which would have taken too much space." in part.text
    assert [h3.text for h3 in part.all("h3")] == ["conv2d"]


def test_filters_of_nan_weights_are_drawn(run_folder, model, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    broken = gpucnn.load(folder / "model.safetensors", backend="numpy")
    broken.parameters()["conv2d.weight"].value[0, 0, 0, 0] = np.nan
    broken.save(folder / "model.safetensors")
    (folder / "snapshots.safetensors").unlink()
    (folder / "history.json").write_text('{"loss": [1.0, NaN], "accuracy": [0.5, NaN], "seconds": [1.0, 2.0]}')
    found = parse(report.render(folder, backend="numpy"))
    picture = pixels(frames(section(found, "filters"), 0)[1][0].one("img"))
    assert tile(picture, 0, 0, 5, 5)[0, 0] == 0
    assert rows(section(found, "training").one("table"))[1] == ["2", "nan %", "nan", "2.0 s"]
    assert "nan %" in section(found, "test").text


def test_report_on_every_backend(run_folder, model, test_set, backend):
    """Arrays cross to the host by name, and the counts are the same wherever the network computes."""
    found = parse(report.render(run_folder, backend=backend, images=2))
    counts = [[int(cell) for cell in line[1:-1]] for line in rows(section(found, "test").one("table"))[:-1]]
    wanted = np.zeros((10, 10), int)
    np.add.at(wanted, (test_set[1], model.predict(test_set[0]).argmax(axis=1)), 1)
    assert np.array_equal(counts, wanted)
    assert len(section(found, "feature-maps").all("figure")) == 16
    assert f"random inputs on {backend.describe()}" in section(found, "layers").text


def test_layers_are_timed_up_to_a_batch_size(folder):
    settings = json.loads((folder / "config.json").read_text())
    for asked, timed in ((60_000, 256), ("many", 128), (True, 128), (-3, 128)):
        (folder / "config.json").write_text(json.dumps(settings | {"batch_size": asked}))
        part = section(parse(report.render(folder, backend="numpy", images=1)), "layers")
        assert f"a batch of {timed} random inputs" in part.text


def test_report_of_layers_that_cannot_be_timed(folder, monkeypatch):
    def fail(*arguments, **options):
        raise OutOfMemoryError("conv2d: out of memory")

    monkeypatch.setattr(gpucnn.Model, "profile", fail)
    found = parse(report.render(folder, backend="numpy"))
    assert "The layers could not be timed: conv2d: out of memory." in section(found, "layers").text


# --- the page is safe, whole and readable ------------------------------------------------------


def everything(*pages):
    return [one for found in pages for one in found.all()]


def test_page_loads_no_resource(page, coloured_page):
    for one in everything(page, coloured_page):
        for name, value in one.attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "cite"):
                assert value.startswith(("data:", "#")), (one.tag, name, value[:60])
            assert not name.startswith("on"), "scripts stand in the script alone"
            assert name != "style"
            assert "url(" not in (value or "") or value.startswith("url(#")
        assert one.tag not in ("iframe", "object", "embed", "base", "form", "audio", "video", "source")
    style = page.one("style").inside[0]
    assert "url(" not in style
    assert "@import" not in style


def test_page_policy_allows_only_its_script_and_style(page):
    (meta,) = [m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
    policy = dict(part.split(" ", 1) for part in meta.attributes["content"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    for tag in ("script", "style"):
        (text,) = page.one(tag).inside
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_page_escapes_names(coloured_page, coloured):
    found = coloured_page
    assert len(found.all("script")) == 1
    assert found.all("em") == found.all("u") == found.all("s") == []
    assert found.one("h1").text == "<em>network</em>"
    assert found.one("header").one("p", cls="eyebrow").text == f"Training report: {coloured.name}"
    assert found.one("title").text.startswith(f"{coloured.name}: <em>network</em>")
    headings = section(found, "test").one("table").one("thead").all("th")
    assert [heading.text for heading in headings[:3]] == CLASS_NAMES
    assert facts(found)["Data"].endswith("<u>here</u>")
    assert facts(found)["Versions"] == "<s> 1"
    titles = [h3.text for h3 in section(found, "feature-maps").all("h3")]
    assert all(any(name in title for name in CLASS_NAMES) for title in titles)
    assert str(coloured) in found.one("footer").text


def test_page_ids_are_unique_and_references_resolve(page, coloured_page):
    for found in (page, coloured_page):
        ids = [one.attributes["id"] for one in found.all() if "id" in one.attributes]
        assert len(ids) == len(set(ids))
        for one in found.all():
            for name, value in one.attributes.items():
                if name in ("for", "aria-labelledby", "aria-describedby"):
                    assert value in ids
                if name == "href" and value.startswith("#"):
                    assert value[1:] in ids
                if (value or "").startswith("url(#"):
                    assert value[5:-1] in ids


def test_page_is_accessible(page, coloured_page):
    for found in (page, coloured_page):
        assert found.one("html").attributes["lang"] == "en"
        levels = [int(one.tag[1]) for one in found.all() if one.tag in ("h1", "h2", "h3", "h4")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert all("alt" in img.attributes for img in found.all("img"))
        for svg in found.all("svg"):
            assert svg.attributes.get("aria-hidden") == "true" or svg.attributes["aria-label"]
        labelled = {label.attributes.get("for") for label in found.all("label")}
        wrapped = [one for label in found.all("label") for one in label.all("input")]
        for field in found.all("input"):
            assert field in wrapped or field.attributes["id"] in labelled
        assert all(one.one("legend").text for one in found.all("fieldset"))
        for box in found.all("div", cls="scroll"):
            assert (box.attributes["tabindex"], box.attributes["role"]) == ("0", "region")
            assert box.attributes["aria-label"]
        assert all("scope" in th.attributes for th in found.all("th"))
    slider = section(page, "filters").one("input", type="range")
    assert (slider.attributes["min"], slider.attributes["max"], slider.attributes["value"]) == ("0", "3", "3")
    assert section(page, "filters").one("output").text == "after epoch 3"


def test_page_without_script_shows_everything(page):
    hidden = [one for one in page.all() if "hidden" in one.attributes]
    assert [one.attributes["class"] for one in hidden] == ["controls", "controls"]


def luminance(colour):
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_page_contrast_in_light_and_dark(page):
    """Letters 4.5 to 1 and lines 3 to 1, as the W3C's guidelines (WCAG 2.1, AA) ask."""
    schemes = re.findall(r":root \{([^}]*--text[^}]*)\}", page.one("style").inside[0])
    assert len(schemes) == 2
    for scheme in schemes:
        colour = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", scheme))
        for ground in ("ground", "raised"):
            for letters in ("text", "quiet", "accent", "bad"):
                assert contrast(colour[letters], colour[ground]) >= 4.5, (letters, ground)
        for shade in ("right", "wrong"):
            assert contrast(colour["text"], colour[shade]) >= 4.5
        for line in ("blue", "vermillion", "green", "orange", "grey", "good"):
            assert contrast(colour[line], colour["ground"]) >= 3, line


def test_page_size_is_limited(source):
    assert len(source.encode()) < 600_000


def test_templates_are_packaged():
    root = Path(gpucnn.__file__).parent
    if not (root.parent / "pyproject.toml").exists():
        pytest.skip("not a source tree")
    settings = tomllib.loads((root.parent / "pyproject.toml").read_text())
    packed = {
        path for pattern in settings["tool"]["setuptools"]["package-data"]["gpucnn"] for path in root.glob(pattern)
    }
    assert packed >= set((root / "report" / "templates").iterdir())


# --- the command, and what it refuses ----------------------------------------------------------


def test_report_path_is_the_run_folder_or_as_requested(run, folder, tmp_path):
    status, shown, errors = run("report", folder, "--backend", "numpy")
    assert (status, shown, errors) == (0, f"{folder / 'report.html'}\n", "")
    assert parse(folder / "report.html").one("h1").text == "lenet"
    assert run("report", folder, "-o", "mine.html", "--index", 3, "--index", 9)[1] == "mine.html\n"
    assert [h3.text[:14] for h3 in section(parse(tmp_path / "mine.html"), "feature-maps").all("h3")] == [
        "Test image #3:",
        "Test image #9:",
    ]
    assert run("report", folder, "-o", "few.html", "--images", 2)[0] == 0
    assert len(section(parse(tmp_path / "few.html"), "feature-maps").all("h3")) == 2


def test_report_of_the_newest_run(run, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs" / "first")
    assert run("report")[1].replace("\\", "/") == "runs/first/report.html\n"


def test_report_on_other_data(run, folder, data):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"data": "cifar10"}))
    assert run("report", folder, "--data", "mnist", "--data-dir", data)[0] == 0
    found = parse(folder / "report.html")
    assert "of the 200 test images of MNIST" in section(found, "test").text
    assert facts(found)["Data"].startswith("CIFAR-10 600 training, 200 test images; IDX")  # so says the run
    older = {key: value for key, value in settings.items() if key != "images"}  # as runs were, which did not count
    (folder / "config.json").write_text(json.dumps(older | {"data": "cifar10"}))
    assert run("report", folder, "--data", "mnist", "--data-dir", data)[0] == 0
    assert facts(parse(folder / "report.html"))["Data"].startswith("CIFAR-10 IDX")


def refused(run, *arguments):
    """Return the message of a command that fails as it should: one message, no trace, no file."""
    status, shown, errors = run("report", *arguments)
    assert (status, shown) == (1, "")
    assert "Traceback" not in errors
    assert errors.split(":")[0] in ("ConfigurationError", "CheckpointError", "DataError")
    return errors.strip()


def test_report_of_a_folder_without_a_run(run, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "model.safetensors: not found; pass a run folder" in refused(run, "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    assert "no folder in runs/ contains a model.safetensors" in refused(run)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    described = json.loads(read_tensors(file)[0]["gpucnn"])
    save_file(load_file(file), file, metadata={"gpucnn": json.dumps(described | {"format": 99})})
    assert "of format 99, and this gpucnn reads format 1" in refused(run, folder)
    file.write_bytes(whole[:1000])
    assert "is not a whole safetensors file" in refused(run, folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "network: lenet", "config.json: cannot be read as JSON"),
        ("history.json", '{"loss": [1.0,', "history.json: cannot be read as JSON"),
        ("history.json", "[1.0]", "history.json: is not a history"),
        ("snapshots.safetensors", "x", "is not a whole safetensors file"),
        ("runs.json", "{}", "runs.json: contains no readable runs"),
        ("runs.json", '{"format": 1, "settings": {}, "runs": [3]}', "its run 0 is 3, where a seed and numbers"),
    ],
)
def test_report_of_damaged_files(run, folder, file, content, message):
    (folder / file).write_text(content)
    assert message in refused(run, folder)


def test_report_path_that_cannot_be_written(run, folder, tmp_path):
    assert "cannot write nowhere/x.html (No such file or directory)" in refused(run, folder, "-o", "nowhere/x.html")
    assert "x.pdf: reports are written as HTML; expected a file name that ends with .html" in refused(
        run, folder, "-o", "x.pdf"
    )
    (tmp_path / "taken.html").mkdir()
    assert "cannot write taken.html (Is a directory)" in refused(run, folder, "-o", "taken.html")
    assert list(tmp_path.glob("*.part")) == []


def test_report_rejects_invalid_arguments(run, folder, tmp_path):
    assert "--images 3 and --index 1 both select images" in refused(run, folder, "--images", 3, "--index", 1)
    assert "there is no test image 999" in refused(run, folder, "--index", 999)
    assert "unknown data set 'svhn'" in refused(run, folder, "--data", "svhn")
    assert "nowhere: does not exist" in refused(run, folder, "--data", "mnist", "--data-dir", "nowhere")
