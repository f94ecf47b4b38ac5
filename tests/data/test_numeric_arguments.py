"""Numeric arguments of data sets, augmentations and pictures: NumPy's scalars are taken, other types refused alike."""

import numpy as np
import pytest

import gpucnn
from gpucnn import datasets, layers, plots
from gpucnn.data import augment, tta
from gpucnn.data.batches import check_batch_size, check_epochs
from gpucnn.data.folders import read_image_folder
from gpucnn.errors import ConfigurationError
from gpucnn.training.history import History

IMAGES, LABELS, PROBABILITIES = np.zeros((2, 8, 8, 1)), np.array([0, 1]), np.eye(2)
WEIGHTS = {"conv2d.weight": np.ones((3, 3, 2, 4))}
HISTORY = History({"loss": [1.0], "accuracy": [0.5]})
MODEL = gpucnn.Model([layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2)], (8, 8, 1), backend="numpy")

INTEGERS = {
    "Translate.pixels": (lambda n, folder: augment.Translate(n), 2),
    "RandomCrop.size": (lambda n, folder: augment.RandomCrop(n), 2),
    "RandomCrop.padding": (lambda n, folder: augment.RandomCrop(padding=n), 2),
    "RandomCrop.fill": (lambda n, folder: augment.RandomCrop(fill=n), 2),
    "Rotate.fill": (lambda n, folder: augment.Rotate(10, fill=n), 2),
    "Cutout.size": (lambda n, folder: augment.Cutout(n), 2),
    "Cutout.fill": (lambda n, folder: augment.Cutout(2, fill=n), 2),
    "Views.shift": (lambda n, folder: tta.Views(shift=n), 1),
    "batch_size": (lambda n, folder: check_batch_size(n), 2),
    "synthetic_digits.n": (lambda n, folder: datasets.synthetic_digits(n), 5),
    "synthetic_digits.seed": (lambda n, folder: datasets.synthetic_digits(5, n), 1),
    "image_folder.seed": (lambda n, folder: datasets.image_folder(folder, seed=n), 1),
    "read_image_folder.size": (lambda n, folder: read_image_folder(folder, n), 4),
    "confusion_matrix.num_classes": (lambda n, folder: plots.confusion_matrix(LABELS, LABELS, n), 2),
    "mistakes.count": (lambda n, folder: plots.mistakes(IMAGES, LABELS, PROBABILITIES[::-1], count=n), 1),
    "feature_maps.max_maps": (lambda n, folder: plots.feature_maps(MODEL, IMAGES[0], max_maps=n), 1),
    "filters.max_tiles": (lambda n, folder: plots.filters(WEIGHTS, max_tiles=n), 2),
    "filters_by_epoch.max_tiles": (lambda n, folder: plots.filters_by_epoch({0: WEIGHTS}, max_tiles=n), 2),
    "filters_by_epoch.channel": (lambda n, folder: plots.filters_by_epoch({0: WEIGHTS}, channel=n), 1),
    "augmented.epochs": (lambda n, folder: plots.augmented(IMAGES, augment.Flip(), n), 1),
    "augmented.seed": (lambda n, folder: plots.augmented(IMAGES, augment.Flip(), 1, seed=n), 1),
}
NUMBERS = {
    "Flip.probability": (lambda n, folder: augment.Flip(n), 0.5),
    "Rotate.degrees": (lambda n, folder: augment.Rotate(n), 0.5),
    "Rotate.scale": (lambda n, folder: augment.Rotate(10, n), 0.25),
    "image_folder.test_fraction": (lambda n, folder: datasets.image_folder(folder, test_fraction=n), 0.5),
    "epochs": (lambda n, folder: check_epochs(n), 0.5),
    "accuracy.test_accuracy": (lambda n, folder: plots.accuracy(HISTORY, n), 0.5),
    "loss.test_loss": (lambda n, folder: plots.loss(HISTORY, n), 0.5),
    "animate_filters.frames_per_second": (
        lambda n, folder: plots.animate_filters({0: WEIGHTS}, folder.parent / "a.gif", frames_per_second=n),
        2.5,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("numeric") / "images"
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (6, 6), 40 * number).save(path / name / f"{number}.png")
    return path


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_arguments(name, folder):
    call, value = INTEGERS[name]
    call(np.int64(value), folder)
    for wrong in (True, 1.5, float("nan"), float("inf"), "1", [[1]]):
        with pytest.raises(ConfigurationError, match="must be"):
            call(wrong, folder)


@pytest.mark.parametrize("name", NUMBERS)
def test_number_arguments(name, folder):
    call, value = NUMBERS[name]
    call(np.float32(value), folder)
    for wrong in (True, float("nan"), float("inf"), "1", [1]):
        with pytest.raises(ConfigurationError, match="must be"):
            call(wrong, folder)
