"""`plots.augmented` and `gpucnn show augment`: what each tile shows, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from gpucnn import plots
from gpucnn.cli.show import _of_each_class
from gpucnn.data.augment import AlternatingFlip, Cutout, Flip, RandomCrop, Translate
from gpucnn.errors import ConfigurationError, ShapeError


def pictures(count=3, H=6, W=5, C=3):
    return np.random.default_rng(0).integers(0, 256, (count, H, W, C)).astype("uint8")


def tiles(figure, columns):
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    return [shown[start : start + columns] for start in range(0, len(shown), columns)]


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_augmented_rows_are_epochs(C, kind):
    images = pictures(C=C)
    shown = images if kind == "uint8" else (images / 255).astype("float32")
    figure = plots.augmented(shown, AlternatingFlip(), 4)
    rows = tiles(figure, 3)
    assert len(rows) == 5
    plain = (images / 255)[..., 0] if C == 1 else images / 255
    mirrored = plain[:, :, ::-1]
    for n in range(3):
        assert np.allclose(rows[0][n], plain[n], atol=1e-7)
        which = [np.allclose(row[n], mirrored[n], atol=1e-7) for row in rows[1:]]
        assert which in ([True, False, True, False], [False, True, False, True])
    words = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert words == ["original", "epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    assert figure.axes[0].get_title() == "AlternatingFlip()"


def test_augmented_epochs_differ_and_follow_the_seed():
    augment = [Translate(2), Cutout(2)]
    first, again, other = (tiles(plots.augmented(pictures(), augment, 2, seed=seed), 3) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[1], first[2])
    assert not np.array_equal(first[1:], other[1:])


def test_augmented_crop_is_centred():
    rows = tiles(plots.augmented(pictures(), RandomCrop((4, 3), padding=0), 1), 3)
    for n, tile in enumerate(rows[1]):
        assert tile.shape == (6, 5, 3)
        assert (tile[[0, 5]] == 1).all()
        assert (tile[:, [0, 4]] == 1).all()
        parts = [pictures()[n, h : h + 4, w : w + 3] / 255 for h in range(3) for w in range(3)]
        assert any(np.allclose(tile[1:5, 1:4], part, atol=1e-7) for part in parts)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: plots.augmented(pictures(), []), ConfigurationError, "there is no augmentation to draw; pass one"),
        (lambda: plots.augmented(pictures(), Flip(), 0), ConfigurationError, "epochs must be a positive integer"),
        (lambda: plots.augmented(pictures(17), Flip()), ShapeError, "expected 1 to 16 images"),
        (lambda: plots.augmented(pictures(C=2), Flip()), ShapeError, r"\(3, 6, 5, 2\); expected 1 to 16 images"),
        (lambda: plots.augmented(pictures()[0], Flip()), ShapeError, r"\(6, 5, 3\); expected 1 to 16 images"),
        (lambda: plots.augmented(pictures(), Translate(5)), ShapeError, "6x5 has no 5 pixels to reflect"),
        (lambda: plots.augmented(pictures(), RandomCrop(9, 1)), ShapeError, "too small for a crop of 9x9"),
        (lambda: plots.augmented(pictures(), "flip"), ConfigurationError, "takes objects of gpucnn.data.augment"),
    ],
)
def test_augmented_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_show_augmented_needs_no_run(run, digits, monkeypatch):
    drawn = []
    draw = plots.augmented
    monkeypatch.setattr(plots, "augmented", lambda *a, **o: drawn.append((a, draw(*a, **o))) or drawn[-1][1])
    options = ["--flip", "--translate", "3", "--cutout", "8", "--count", "4", "--epochs", "2"]
    status, shown, errors = run("show", "augment", "--data", "mnist", "--data-dir", digits, *options, "-o", "seen.png")
    assert status == 0, errors
    assert shown.strip() == "seen.png"
    with Image.open("seen.png") as picture:
        assert picture.width > 300
    (images, augment, epochs), figure = drawn.pop()
    assert (len(images), epochs, repr(augment)) == (4, 2, "[Flip(), Translate(3), Cutout(8)]")
    assert figure.axes[0].get_title() == "MNIST: Flip(), Translate(3), Cutout(8)"
    status, shown, errors = run("show", "augment", "--data", "mnist", "--data-dir", digits, "--crop", 2)
    assert (status, shown.strip()) == (0, "augment.png")
    assert repr(drawn.pop()[0][1]) == "[RandomCrop(padding=2)]"
    assert run("show", "augment", "--data", "mnist", "--data-dir", digits, "--alternating-flip")[0] == 0
    assert repr(drawn.pop()[0][1]) == "[AlternatingFlip()]"
    assert run("show", "augment", "--data", "mnist", "--data-dir", digits, "--rotate", 10, "--scale", 0.2)[0] == 0
    assert repr(drawn.pop()[0][1]) == "[Rotate(10.0, scale=0.2)]"
    assert run("show", "augment", "--data", "mnist", "--data-dir", digits)[0] == 0
    assert drawn.pop()[0][1]  # something that suits digits


def test_show_augmented_takes_a_recipe(run, digits, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "augmented", lambda *a, **o: drawn.append((a, o)))
    folder = ("--data", "mnist", "--data-dir", digits)  # in place of the recipe's CIFAR-10
    assert run("show", "augment", "--network", "resnet20", *folder)[0] == 0
    (images, augment, _), options = drawn.pop()
    assert repr(augment) == "[Flip(), RandomCrop()]"
    assert options["title"] == "MNIST, resnet20: Flip(), RandomCrop()"
    assert images.shape[1:] == (28, 28, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--network lenet", "the recipe of lenet has no augmentation; choose some instead"),
        ("--network resnet20 --flip", "--network resnet20 and Flip() both set augmentations; pass only one"),
        ("--network lenet-9", "lenet-9"),
        ("--translate 28", "has no 28 pixels to reflect"),
        ("--flip --alternating-flip", "each flips images; remove one of them"),
        ("--flip --count 17", "expected 1 to 16 images"),
        ("--flip -o seen.txt", "seen.txt: pictures cannot be written as .txt"),
    ],
)
def test_show_augmented_rejects_invalid_options(run, digits, options, message):
    status, _, errors = run("show", "augment", "--data", "mnist", "--data-dir", digits, *options.split())
    assert status != 0
    assert message in " ".join(errors.split())


def test_show_augmented_takes_images_class_by_class():
    assert _of_each_class([2, 2, 0, 1, 0, 2], 4) == [2, 3, 0, 4]
    assert _of_each_class([2, 2, 0, 1, 0, 2], 9) == [2, 3, 0, 4, 1, 5]
