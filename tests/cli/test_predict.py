"""`gpucnn predict` on pictures as people have them: any size, colour, polarity and state of repair."""

import importlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gpucnn
from gpucnn import layers
from gpucnn.data.images import centre_digit, is_dark_on_light, read_image
from gpucnn.data.synthetic import synthetic_digits
from gpucnn.errors import ShapeError
from gpucnn.plots.prediction import prediction


def on_paper(digit, size=(300, 400), scale=6, corner=(40, 150), paper=225, ink=40):
    """A digit (28, 28) in black ink somewhere on a page, as floats."""
    side = 28 * scale
    large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    page = np.full(size, float(paper))
    top, left = corner
    page[top : top + side, left : left + side] -= (paper - ink) * large
    return page


def as_pixels(page):
    return np.rint(page).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def drawn():
    images, labels = synthetic_digits(40, 3)
    return images[..., 0], labels


# Reading


def test_image_transparency_is_paper_in_grey_and_black_in_colour(tmp_path):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    picture.putpixel((1, 2), (10, 20, 30, 255))
    picture.save(tmp_path / "a.png")
    picture.quantize(8).save(tmp_path / "palette.png")
    for name in ("a.png", "palette.png"):
        grey, colour = (read_image(tmp_path / name, None, channels) for channels in (1, 3))
        assert grey[..., 0].tolist() == [[255] * 4, [255] * 4, [255, 18, 255, 255], [255] * 4]  # 0.299·10 + …
        assert colour[2, 1].tolist() == [10, 20, 30]
        assert colour[0, 0].tolist() == [0, 0, 0]


def test_image_palettes_and_sixteen_bits(tmp_path):
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 200, 200, 200])
    picture.save(tmp_path / "palette.png")
    deep = np.array([[0, 65535], [32768, 257]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.new("1", (2, 2), 1).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "palette.png", None, 1).tolist() == [[[200]] * 2] * 2
    assert read_image(tmp_path / "deep.png", None, 1)[..., 0].tolist() == [[0, 255], [128, 1]]
    assert read_image(tmp_path / "bits.png", None, 3).tolist() == [[[255] * 3] * 2] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_of_a_photograph_is_upright(tmp_path, orientation):
    """Each of the eight ways in which a camera can have been held gives the same picture."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    flipped = [upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1]]
    turned = [upright.T, upright.T[::-1], upright.T[::-1, ::-1], upright.T[:, ::-1]]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray([*flipped, *turned][orientation - 1]).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "photo.png", None, 1)[..., 0], upright)


# Polarity


@pytest.mark.parametrize(
    ("paper", "ink", "dark"), [(225, 40, True), (110, 30, True), (5, 250, False), (90, 220, False)]
)
def test_polarity_is_seen_at_the_border(drawn, paper, ink, dark):
    for digit in drawn[0]:
        assert is_dark_on_light(as_pixels(on_paper(digit, paper=paper, ink=ink))[..., None]) == dark


def test_polarity_of_an_empty_page():
    assert is_dark_on_light(np.full((5, 5, 1), 250, np.uint8))
    assert not is_dark_on_light(np.full((5, 5, 1), 3, np.uint8))


# Centring


def test_digit_fills_twenty_pixels_around_its_centre_of_mass(drawn):
    for digit in drawn[0]:
        image = centre_digit(255 - as_pixels(on_paper(digit))[..., None], (28, 28))
        assert image.shape == (28, 28, 1)
        assert image.max() == 255
        ink = image[..., 0] / 255
        rows, columns = (np.flatnonzero((ink > 0.2).any(axis=axis)) for axis in (1, 0))
        assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        for axis in (0, 1):
            centre = (ink.sum(axis=1 - axis) * (np.arange(28) + 0.5)).sum() / ink.sum()
            assert abs(centre - 14) <= 0.51


def difference(one, two):
    """How far two images lie apart on average, where one of them may be moved by a pixel."""
    moved = [np.roll(one, (down, right), axis=(0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return min(np.abs(image.astype(float) - two).mean() for image in moved)


@pytest.mark.parametrize("size", [(28, 28), (56, 56), (20, 32)])
def test_digit_position_and_size_do_not_matter(drawn, size):
    for digit in drawn[0][:10]:
        one, two = (
            centre_digit(255 - as_pixels(on_paper(digit, **how))[..., None], size)[..., 0]
            for how in ({}, {"scale": 9, "corner": (2, 3), "size": (280, 300), "paper": 140, "ink": 60})
        )
        assert difference(one, two) < 4


def test_digit_ink_excludes_shadow_noise_and_specks(drawn, rng):
    for digit in drawn[0][:10]:
        page = on_paper(digit)
        clean = centre_digit(255 - as_pixels(page)[..., None], (28, 28))
        page += np.linspace(0, -70, 400) + np.linspace(0, -30, 300)[:, None] + rng.normal(0, 5, page.shape)
        page[10:14, 20:24] = page[290:293, 380:384] = 0
        found = centre_digit(255 - as_pixels(page)[..., None], (28, 28))
        assert difference(found, clean) < 10  # of 255 levels, where 30 are ink on average
        assert (found == 0).mean() > (clean == 0).mean() - 0.12


def test_digit_may_touch_the_border(drawn):
    """Its strokes are not background there, however the light falls."""
    for digit in drawn[0][:10]:
        rows, columns = (np.flatnonzero((digit > 60).any(axis=axis)) for axis in (1, 0))
        page = on_paper(digit, scale=9, size=(252, 252), corner=(0, 0))
        clean = centre_digit(255 - as_pixels(page)[..., None], (28, 28))
        page += np.linspace(0, -80, 252)
        tight = page[9 * rows[0] : 9 * rows[-1] + 9, max(0, 9 * columns[0] - 40) : 9 * columns[-1] + 50]
        assert difference(centre_digit(255 - as_pixels(tight)[..., None], (28, 28)), clean) < 10


def test_digit_with_a_heavy_end_stays_inside():
    page = np.zeros((300, 300, 1), np.uint8)
    page[100:150, 20:70] = page[120:128, 70:280] = 255
    image = centre_digit(page, (28, 28))
    columns = np.flatnonzero((image[..., 0] > 60).any(axis=0))
    assert (columns[0], columns[-1]) == (8, 27)


def test_digit_of_thin_strokes_does_not_vanish():
    page = np.zeros((400, 400, 1), np.uint8)
    page[50:350, 200:202] = 255  # 2 of 300 pixels: an eighth of a pixel when reduced to 20
    image = centre_digit(page, (28, 28))
    assert (image[6:22, :, 0].max(axis=1) > 200).all()
    assert 1.5 <= image[14].sum() / 255 <= 2.6


@pytest.mark.parametrize("level", [0, 100, 255])
def test_digit_on_an_empty_page_is_black(level, rng):
    page = np.full((60, 80, 1), float(level))
    assert not centre_digit(as_pixels(page), (28, 28)).any()
    assert not centre_digit(as_pixels(page + rng.normal(0, 4, page.shape)), (28, 28)).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (3000, 3), (28, 27)])
@pytest.mark.filterwarnings("error")
def test_digit_of_odd_image_shapes(shape, rng):
    image = centre_digit(rng.integers(0, 256, (*shape, 1), dtype=np.uint8), (28, 28))
    assert image.shape == (28, 28, 1)
    assert image.dtype == np.uint8


# The command


def rows_of(shown):
    """The first line of each image in the table, as words."""
    return [line.split() for line in shown.splitlines() if "█" in line and ".png" in line]


def test_predict_reads_drawings_and_photographs(run, trained, drawn, rng):
    files, right = [], 0
    for number, (digit, label) in enumerate(zip(*drawn, strict=True)):
        page = on_paper(digit, corner=rng.integers(0, 120, 2))
        page = page + np.linspace(0, -60, 400) + rng.normal(0, 4, page.shape)
        picture = Image.fromarray(as_pixels(page if number % 2 else 255 - page))
        files.append(Path(f"{label}-{number}.{'png' if number % 3 else 'jpg'}"))
        picture.convert("RGB" if number % 5 else "L").save(files[-1])
    status, _, errors = run("predict", *files, "--model", trained, "--json", "results.json")
    assert (status, errors) == (0, "")
    results = json.loads(Path("results.json").read_text())["images"]
    assert [result["image"] for result in results] == [str(file) for file in files]
    assert [result["inverted"] for result in results] == [number % 2 == 1 for number in range(len(files))]
    assert all(result["centred"] for result in results)
    right = sum(result["classes"][0]["class"] == str(label) for result, label in zip(results, drawn[1], strict=True))
    assert right >= 32  # of 40, by a network that has seen 2,000 digits
    Path("as-is").mkdir()
    run("predict", *files, "--model", trained, "--no-centre", "--json", "as-is/results.json")
    results = json.loads(Path("as-is/results.json").read_text())["images"]
    assert not any(result["centred"] for result in results)
    small = sum(result["classes"][0]["class"] == str(label) for result, label in zip(results, drawn[1], strict=True))
    assert small < right - 10


def test_predict_takes_an_image_of_the_models_size_unchanged(run, trained, drawn):
    model = gpucnn.load(trained / "model.safetensors")
    moved = np.roll(drawn[0][0], 3, axis=1)
    Image.fromarray(moved).save("digit.png")
    expected = model.predict(moved[None, ..., None])[0]
    _, shown, _ = run("predict", "digit.png", "--model", trained, "--top", 10, "--json", "r.json")
    (result,) = json.loads(Path("r.json").read_text())["images"]
    assert (result["inverted"], result["centred"]) == (False, False)
    assert [one["probability"] for one in result["classes"]] == sorted(expected.tolist(), reverse=True)
    assert result["classes"][0]["class"] == str(expected.argmax())
    assert "centred" not in shown


def test_predict_table(run, trained, drawn, monkeypatch):
    for number in range(2):
        Image.fromarray(as_pixels(on_paper(drawn[0][number]))).save(f"{number}.png")
    Image.new("L", (50, 40), 255).save("white.png")
    _, shown, _ = run("predict", "0.png", "1.png", "white.png", "--model", trained, "--top", 2)
    assert shown.count(" inverted, centred ") == 2
    assert shown.count(" blank ") == 1
    assert shown.count(" %") == 6
    for word in ("image", "prediction", "probability"):
        assert shown.count(word) == 1
    _, shown, _ = run("predict", "0.png", "--model", trained, "--top", 99)
    assert shown.count(" %") == 10
    assert run("predict", "0.png", "--top", 0)[0] == 2
    monkeypatch.setattr("gpucnn.cli.common.console.width", 60)
    _, shown, _ = run("predict", "0.png", "--model", trained)
    assert "█" not in shown
    assert " prediction " in shown


def test_polarity_can_be_given(run, trained, drawn):
    Image.fromarray(drawn[0][0]).save("light.png")
    Image.fromarray(255 - drawn[0][0]).save("dark.png")
    found = {}
    for options in ((), ("--invert",), ("--no-invert",)):
        run("predict", "light.png", "dark.png", "--model", trained, "--json", "r.json", *options)
        results = json.loads(Path("r.json").read_text())["images"]
        found[options] = [(one["inverted"], one["classes"][0]["probability"]) for one in results]
    assert [inverted for inverted, _ in found[()]] == [False, True]
    assert found[()][0][1] == found[()][1][1] == found["--no-invert",][0][1] == found["--invert",][1][1]
    assert [inverted for inverted, _ in found["--invert",]] == [True, True]
    assert [inverted for inverted, _ in found["--no-invert",]] == [False, False]


def saved_model(path, mean, class_names, shape=(28, 28, 1)):
    network = [layers.Normalization(mean, 0.3), layers.Flatten(), layers.Dense(len(class_names)), layers.Softmax()]
    model = gpucnn.Model(network, shape, backend="numpy")
    model.class_names = class_names
    model.save(path)
    return path


def seen_by(model, file):
    """What a saved network is shown of an image file."""
    module = importlib.import_module("gpucnn.cli.predict")  # the package's `predict` is the command
    return module.predict_file(gpucnn.load(model, backend="numpy"), Path(file), None, no_centre=False).pixels


def test_polarity_of_a_model_trained_on_paper(run, drawn):
    """Its normalisation says that its images are light, so light digits are inverted, not dark ones."""
    model = saved_model("paper.safetensors", 0.85, list("0123456789"))
    Image.fromarray(as_pixels(on_paper(drawn[0][0]))).save("paper.png")
    Image.fromarray(as_pixels(255 - on_paper(drawn[0][0]))).save("board.png")
    run("predict", "paper.png", "board.png", "--model", model, "--json", "r.json", "--show", "p.png")
    paper, board = json.loads(Path("r.json").read_text())["images"]
    assert (paper["inverted"], board["inverted"]) == (False, True)
    for one, two in zip(paper["classes"], board["classes"], strict=True):
        assert one["class"] == two["class"]
        assert one["probability"] == pytest.approx(two["probability"], abs=0.05)
    assert seen_by(model, "paper.png")[0].min() == 255
    assert seen_by(model, "paper.png").min() == 0


def test_predict_centres_digits_alone(run, drawn):
    model = saved_model("shirts.safetensors", 0.3, ["shirt", "shoe"])
    Image.fromarray(as_pixels(on_paper(drawn[0][0]))).save("page.png")
    run("predict", "page.png", "--model", model, "--json", "r.json")
    (result,) = json.loads(Path("r.json").read_text())["images"]
    assert (result["inverted"], result["centred"]) == (True, False)
    assert seen_by(model, "page.png")[0].max() == 255 - 225


def test_polarity_of_colours_is_kept_unless_asked(run):
    model = saved_model("colours.safetensors", 0.3, ["red", "blue"], (8, 8, 3))
    Image.new("RGB", (20, 10), (250, 250, 255)).save("sky.png")
    for options, expected in (((), False), (("--invert",), True)):
        run("predict", "sky.png", "--model", model, "--json", "r.json", *options)
        (result,) = json.loads(Path("r.json").read_text())["images"]
        assert result["inverted"] is expected


def test_predict_with_a_model_that_takes_no_images(run):
    gpucnn.Model([layers.Dense(2)], (5,), backend="numpy").save("features.safetensors")
    status, _, errors = run("predict", "x.png", "--model", "features.safetensors")
    assert status == 1
    assert "features.safetensors: takes inputs of shape (5,), not greyscale or colour images" in errors


# What goes wrong


def bad_files(folder):
    """Files that are not images, by name, and what is said about each."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:900])
    Image.new("RGB", (60, 60), (9, 99, 200)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:500])
    (folder / "empty.png").touch()
    (folder / "page.png").write_text("<html>404</html>")
    (folder / "folder.png").mkdir()
    (folder / "bomb.png").write_bytes(bomb())
    return {
        "missing.png": "no such file in the folder",
        "cut.png": "cannot be decoded",
        "cut.jpg": "cannot be decoded",
        "empty.png": "is empty (0 bytes)",
        "page.png": "is not a supported image; it looks like an HTML page",
        "folder.png": "is a folder; expected an image: name the files in it, such as folder.png",
        "bomb.png": "Expected at most 89,478,485 pixels",
    }


def bomb():
    """A PNG of a few bytes whose header declares 100 million pixels: more than Pillow allows, less than twice that."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_predict_goes_on_after_a_bad_image(run, trained, drawn, tmp_path):
    expected = bad_files(tmp_path)
    Image.fromarray(drawn[0][0]).save("good.png")
    Image.fromarray(drawn[0][1]).save("fine.png")
    names = ["missing.png", "good.png", *(name for name in expected if name != "missing.png"), "fine.png"]
    status, shown, errors = run("predict", *names, "--model", trained, "--json", "r.json")
    assert status == 1
    assert [row[0] for row in rows_of(shown)] == ["good.png", "fine.png"]
    lines = errors.splitlines()
    assert len(lines) == len(expected)
    for line, (name, message) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"DataError: {name}: ")
        assert message in line
    results = json.loads(Path("r.json").read_text())["images"]
    assert [result["image"] for result in results[:2]] == ["good.png", "fine.png"]
    assert {result["image"]: result["error"] in errors for result in results[2:]} == dict.fromkeys(expected, True)


def test_predict_without_any_good_image(run, trained):
    status, shown, errors = run("predict", "a.png", "b.png", "--model", trained)
    assert (status, shown) == (1, "")
    assert errors.count("DataError") == 2


def test_predict_results_that_cannot_be_written(run, trained, drawn):
    Image.fromarray(drawn[0][0]).save("good.png")
    status, shown, errors = run("predict", "good.png", "--model", trained, "--json", "nowhere/r.json")
    assert status == 1
    assert "good.png" in shown
    assert (
        "--json nowhere/r.json: cannot be written (No such file or directory); choose a file in an existing folder"
        in errors
    )
    status, shown, errors = run("predict", "good.png", "--model", trained, "--show", "picture.docx")
    assert (status, shown) == (1, "")  # before any work is done
    assert "picture.docx: pictures cannot be written as .docx" in errors


# Pictures


def test_predict_show_draws_one_and_numbers_several(run, trained, drawn):
    for number in range(2):
        Image.fromarray(as_pixels(on_paper(drawn[0][number]))).save(f"{number}.png")
    status, shown, _ = run("predict", "0.png", "--model", trained, "--show", "one.png")
    assert status == 0
    assert "plotted   one.png and one-feature-maps.png" in shown
    run("predict", "0.png", "missing.png", "1.png", "--model", trained, "--show", "all.svg")
    assert sorted(path.name for path in Path().glob("*.svg")) == [
        *("all-1-feature-maps.svg", "all-1.svg", "all-2-feature-maps.svg", "all-2.svg")
    ]
    with Image.open("one.png") as picture:
        assert min(picture.size) > 300


def test_prediction_figure(drawn, tmp_path):
    image = drawn[0][0][..., None]
    probabilities = np.array([0.1, 0.7, 0.2])
    figure = prediction(image, probabilities, ["a", "b$^2$", "c"], tmp_path / "p.png", original=np.zeros((9, 7, 1)))
    original, shown, bars = figure.axes
    assert original.images[0].get_array().shape == (9, 7)
    assert np.array_equal(shown.images[0].get_array(), image[..., 0] / 255)
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([10, 70, 20])
    assert [text.get_text() for text in bars.texts] == ["10.0 %", "70.0 %", "20.0 %"]
    assert bars.get_title() == r"prediction: b\$^2\$"
    assert len({bar.get_facecolor() for bar in bars.patches}) == 2
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert len(prediction(np.zeros((4, 4, 3)), probabilities).axes) == 2


def test_prediction_figure_of_many_classes_shows_the_most_probable():
    probabilities = np.arange(30.0)[::-1] / 435
    _, bars = prediction(np.zeros((4, 4, 3), np.uint8), probabilities).axes
    assert [label.get_text() for label in bars.get_yticklabels()] == [f"class {k}" for k in range(10)]


@pytest.mark.parametrize(
    ("image", "probabilities", "names", "message"),
    [
        (np.zeros((1, 28, 28, 1)), np.ones(3), None, r"image has shape \(1, 28, 28, 1\); expected one image"),
        (np.zeros((28, 28, 2)), np.ones(3), None, r"image has shape \(28, 28, 2\)"),
        (np.zeros((28, 28, 1)), np.ones((1, 3)), None, r"probabilities have shape \(1, 3\); expected those of one"),
        (np.zeros((28, 28, 1)), np.ones(3), ["a"], "1 class names for 3 probabilities; pass a name for each"),
    ],
)
def test_prediction_figure_of_wrong_arguments_is_refused(image, probabilities, names, message):
    with pytest.raises(ShapeError, match=message):
        prediction(image, probabilities, names)
