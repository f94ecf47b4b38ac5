"""Mistakes in models and data, one after another: each is an error with the values, what was expected, the remedy."""

import gzip
import re

import numpy as np
import pytest

import gpucnn
from gpucnn import datasets, layers, losses, optimizers
from gpucnn.data.cifar import read_cifar10_batch
from gpucnn.data.idx import read_idx, read_idx_pair
from gpucnn.errors import ConfigurationError, DataError, DataWarning, DTypeError, GpucnnError, ShapeError
from tests.helpers import pictures, write_idx

HEAD = [layers.Flatten(), layers.Dense(3), layers.Softmax()]


def built(*network, shape=(6, 6, 2)):
    return gpucnn.Model(list(network), shape, backend="numpy")


def classifier():
    return built(layers.Flatten(), layers.Dense(3), layers.Softmax()).compile("sgd")


X, Y = np.zeros((4, 6, 6, 2), "float32"), np.array([0, 1, 2, 0])

MODEL_FAULTS = {
    "a kernel larger than its input": (
        lambda: built(layers.Conv2D(4, 7)),
        ShapeError,
        'conv2d: kernel 7x7 does not fit a 6x6 input with padding 0; use padding="same" or a smaller kernel',
    ),
    "a kernel larger than its padded input": (
        lambda: built(layers.Conv2D(4, 9, padding=1)),
        ShapeError,
        "conv2d: kernel 9x9 does not fit a 6x6 input with padding 1",
    ),
    "a dilated kernel": (
        lambda: built(layers.Conv2D(4, 3, dilation=3)),
        ShapeError,
        "conv2d: kernel 3x3 dilated by 3x3 does not fit a 6x6 input",
    ),
    "a pooling after too many others": (
        lambda: built(*[layers.MaxPool2D(2) for _ in range(3)]),
        ShapeError,
        "or a smaller kernel; the layer before it, max_pool2d_1, gives (1, 1, 2)",
    ),
    "a stride of 0": (lambda: layers.Conv2D(4, 3, strides=0), GpucnnError, "conv2d: strides"),
    "a negative dilation": (lambda: layers.Conv2D(4, 3, dilation=-1), GpucnnError, "conv2d: dilation"),
    "groups that do not divide": (
        lambda: built(layers.Conv2D(4, 3, groups=3)),
        ShapeError,
        "conv2d: groups=3 must divide the 2 input channels and the 4 filters",
    ),
    "a dense layer on images": (
        lambda: built(layers.Conv2D(4, 3), layers.Dense(3)),
        ShapeError,
        "dense: expected features (D,), got inputs of shape (4, 4, 4); put Flatten() or GlobalAveragePool2D() before it"
        "; the layer before it, conv2d, gives (4, 4, 4)",
    ),
    "a convolution on features": (
        lambda: built(layers.Flatten(), layers.Conv2D(4, 3)),
        ShapeError,
        "the layer before it, flatten, gives (72,)",
    ),
    "branches that do not meet": (
        lambda: built(layers.Residual([layers.Conv2D(4, 3)], None)),
        ShapeError,
        "residual: ",
    ),
    "something that is not a layer": (
        lambda: built(layers.Conv2D(4, 3), np.tanh),
        ConfigurationError,
        "item 1 is <ufunc 'tanh'>, which is not a layer",
    ),
    "a class in place of a layer": (
        lambda: built(layers.Flatten),
        ConfigurationError,
        "which is not a layer; did you mean",
    ),
    "a softmax that is taken twice": (
        lambda: built(*HEAD).compile("sgd", losses.CategoricalCrossEntropy(from_logits=True)),
        ConfigurationError,
        "the network ends with Softmax, but the loss has from_logits=True",
    ),
    "training before compiling": (lambda: built(layers.Flatten()).fit(X, Y), ConfigurationError, "is not compiled"),
    "channels first": (
        lambda: classifier().fit(np.zeros((4, 2, 6, 6), "float32"), Y),
        ShapeError,
        "x has shape (4, 2, 6, 6), the model takes (N, 6, 6, 2); this looks like channels first (N, C, H, W): pass "
        "np.moveaxis(x, 1, -1)",
    ),
    "a single sample": (
        lambda: classifier().predict(X[0]),
        ShapeError,
        "x has shape (6, 6, 2), the model takes (N, 6, 6, 2); for a single sample pass x[None]",
    ),
    "integers that are not pixels": (
        lambda: classifier().fit(X.astype("int64"), Y),
        DTypeError,
        "whose scale is ambiguous; uint8 pixels 0 … 255 count as 0 … 1, floats as they are: pass x.astype(",
    ),
    "words": (lambda: classifier().predict(np.full((4, 6, 6, 2), "a")), DTypeError, "x holds <U1"),
    "batch norm on a batch of one": (
        lambda: (
            built(layers.Flatten(), layers.BatchNorm(), layers.Dense(3), layers.Softmax())
            .compile("sgd")
            .fit(X[:1], Y[:1], verbose=0)
        ),
        ShapeError,
        "batch_norm: needs 2 samples in each batch, and 1 samples in batches of 128 leave a last one of 1",
    ),
    "a last batch of one": (
        lambda: (
            built(layers.Flatten(), layers.BatchNorm(), layers.Dense(3), layers.Softmax())
            .compile("sgd")
            .fit(X[:3], Y[:3], batch_size=2, verbose=0)
        ),
        ShapeError,
        "batch_norm: needs 2 samples in each batch, and 3 samples in batches of 2 leave a last one of 1; choose",
    ),
    "no data": (
        lambda: classifier().fit(X[:0], Y[:0]),
        DataError,
        "x is empty: shape (0, 6, 6, 2); expected at least one",
    ),
    "no data to predict": (lambda: classifier().predict(X[:0]), DataError, "x is empty"),
    "no data to validate": (
        lambda: classifier().fit(X, Y, validation_data=(X[:0], Y[:0]), verbose=0),
        DataError,
        "validation_data[0] is empty",
    ),
    "a batch of no samples": (
        lambda: classifier().fit(X, Y, batch_size=0),
        ConfigurationError,
        "batch_size must be a positive integer, not 0",
    ),
    "a rate that is not a number": (lambda: optimizers.SGD("fast"), GpucnnError, "fast"),
    "NaN by its index": (
        lambda: classifier().fit(np.where(np.arange(288).reshape(X.shape) == 100, np.nan, X), Y),
        DataError,
        "x holds nan at index (1, 2, 2, 0), and 1 such value in all; a network cannot learn from NaN or infinity",
    ),
    "infinity in what is predicted": (
        lambda: classifier().predict(np.where(np.arange(288).reshape(X.shape) >= 287, -np.inf, X)),
        DataError,
        "x holds -inf at index (3, 5, 5, 1)",
    ),
    "more labels than inputs": (
        lambda: classifier().fit(X, np.zeros(5, int)),
        ShapeError,
        "y has shape (5,) for 4 inputs; expected one label per input",
    ),
    "a label out of range": (
        lambda: classifier().fit(X, np.array([0, 1, 3, 7])),
        DataError,
        "y[2] is 3, and 2 labels in all are outside 0 … 2; the model has 3 outputs: number the classes from 0",
    ),
    "a negative label": (lambda: classifier().fit(X, np.array([0, -1, 2, 0])), DataError, "y[1] is -1"),
    "a label that is a fraction": (
        lambda: classifier().fit(X, np.array([0, 1.5, 2, 0])),
        DTypeError,
        "y holds float64; class indices must be integers 0 … 2, and 1.5 is not one",
    ),
    "rows that are not a distribution": (
        lambda: classifier().fit(X, np.eye(3)[[0, 1, 2, 0]] * 2),
        DataError,
        "y[0] is [2.0, 0.0, 0.0], which is not a probability distribution over 3 classes",
    ),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_errors_of_models(fault):
    use, kind, message = MODEL_FAULTS[fault]
    with pytest.raises(kind, match=re.escape(message)):
        use()


def test_batch_larger_than_the_data_is_all_of_it():
    """As everywhere: one step on what there is."""
    model = classifier()
    assert model.fit(X, Y, batch_size=1000, verbose=0)["loss"]
    assert model.optimizer.steps == 1


def test_inputs_of_float64_and_uint8_are_converted():
    """Float64 is computed in the model's precision; uint8 counts as 0 … 1 and not as 0 … 255."""
    model = classifier()
    pixels = np.random.default_rng(0).integers(0, 256, X.shape, dtype=np.uint8)
    assert model.predict(pixels.astype("float64") / 255) == pytest.approx(model.predict(pixels), abs=1e-6)
    with pytest.warns(DataWarning, match=r"x holds floats from \d+ to 25\d, which count as they are"):
        assert model.predict(pixels.astype("float64")).dtype == "float32"


# --- files -------------------------------------------------------------------------------------


IMAGES = np.zeros((3, 4, 4), np.uint8)


def truncated(folder):
    path = write_idx(folder / "i", IMAGES)
    path.write_bytes(path.read_bytes()[:-5])
    return read_idx(path)


def page(folder):
    (folder / "i").write_text("<!DOCTYPE html><title>404</title>")
    return read_idx(folder / "i")


def damaged_gzip(folder):
    noise = np.random.default_rng(0).integers(0, 256, (50, 20, 20), dtype=np.uint8)
    content = bytearray(gzip.compress(write_idx(folder / "i", noise).read_bytes()))
    content[len(content) // 2] ^= 255
    (folder / "i.gz").write_bytes(bytes(content))
    return read_idx(folder / "i.gz")


def cut_gzip(folder):
    (folder / "i.gz").write_bytes(gzip.compress(write_idx(folder / "i", IMAGES).read_bytes())[:-12])
    return read_idx(folder / "i.gz")


def unequal(folder):
    return read_idx_pair(write_idx(folder / "i", IMAGES), write_idx(folder / "l", np.zeros(4, np.uint8)))


def exchanged(folder):
    return read_idx_pair(write_idx(folder / "l", np.zeros(3, np.uint8)), write_idx(folder / "i", IMAGES))


def odd_cifar(folder):
    (folder / "b.bin").write_bytes(bytes(3073 + 17))
    return read_cifar10_batch(folder / "b.bin")


def bad_label(folder):
    (folder / "b.bin").write_bytes(bytes(3073) + b"\x0b" + bytes(3072))
    return read_cifar10_batch(folder / "b.bin")


def python_layout(folder):
    (folder / "cifar-10-batches-py").mkdir()
    return datasets.cifar10(folder)


def empty_class(folder):
    (pictures(folder) / "birds").mkdir()
    return datasets.image_folder(folder)


def one_class(folder):
    return datasets.image_folder(pictures(folder) / "cats")


def mixed(folder):
    return datasets.image_folder(pictures(folder, ((8, 8), (8, 9))))


def no_folder(folder):
    return datasets.image_folder(folder / "missing")


FILE_FAULTS = {
    "a truncated file": (truncated, "holds 43 bytes of data where its header declares 48 (3 items of 4x4 uint8)"),
    "an error page": (page, "looks like an HTML page, perhaps a server's error message saved under this name"),
    "a header that claims more": (
        lambda f: read_idx(write_idx(f / "i", IMAGES, (60_000, 28, 28))),
        "holds 48 bytes of data where its header declares 47,040,000",
    ),
    "a header that claims everything": (
        lambda f: read_idx(write_idx(f / "i", IMAGES, (2**31, 2**31, 4))),
        "the header is damaged: download the file again",
    ),
    "a damaged gzip": (damaged_gzip, "its gzip data are damaged"),
    "a cut gzip": (cut_gzip, "the file is cut short: download it again"),
    "images and labels that differ in number": (unequal, "holds 3 images of 4x4 pixels and"),
    "images and labels exchanged": (exchanged, "pass the images file here"),
    "a CIFAR file of odd length": (odd_cifar, "holds 3,090 bytes, 1 records and 17 bytes over"),
    "a label of CIFAR out of range": (bad_label, "record 1 has the label 11, and 1 of 2 labels lie outside 0..9"),
    "the Python version of CIFAR": (python_layout, "pickle files, which can run any code and are not read here"),
    "an empty class": (empty_class, "birds: this class folder holds no file; expected at least one image"),
    "one class instead of all": (one_class, "pass"),
    "images of several sizes": (mixed, "size="),
    "no folder": (no_folder, "does not exist; expected a folder with a sub-folder of images for each class"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_errors_of_files(fault, tmp_path):
    """Each names the file or the folder."""
    use, message = FILE_FAULTS[fault]
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        use(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_image_folder_of_one_class_offers_its_parent(tmp_path):
    folder = pictures(tmp_path / "animals")
    with pytest.raises(DataError, match=re.escape(f"pass its parent {folder}")):
        datasets.image_folder(folder / "cats")
