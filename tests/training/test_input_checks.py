"""What a model refuses to be given, and what it says."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, losses
from gpucnn.errors import DataError, DTypeError, ShapeError

X, Y = np.zeros((4, 8, 6, 3), "uint8"), np.array([0, 1, 2, 1])


def model(shape=(8, 6, 3), units=3, loss=None):
    last = [layers.Softmax()] if loss is None else []
    made = gpucnn.Model([layers.Flatten(), layers.Dense(units), *last], shape, backend="numpy")
    return made.compile("sgd", loss or losses.CategoricalCrossEntropy())


INPUTS = [
    (np.zeros((4, 3, 8, 6), "uint8"), ShapeError, r"looks like channels first .* np.moveaxis\(x, 1, -1\)"),
    (np.zeros((8, 6, 3), "uint8"), ShapeError, r"for a single sample pass x\[None\]"),
    (np.zeros((4, 8, 6, 1), "uint8"), ShapeError, "the images have 1 channels where the model was built for 3"),
    (np.zeros((4, 8, 6), "uint8"), ShapeError, r"x has shape \(4, 8, 6\), the model takes \(N, 8, 6, 3\)"),
    (np.zeros((4, 7, 6, 3), "uint8"), ShapeError, r"x has shape \(4, 7, 6, 3\)"),
    (np.float32(3.0), ShapeError, r"x has shape \(\)"),
    (X.astype("complex64"), DTypeError, "x holds complex64"),
    (X.astype("U1"), DTypeError, "x holds <U1"),
    (X[:0], DataError, r"x is empty: shape \(0, 8, 6, 3\)"),
    (
        np.where(np.arange(X.size).reshape(X.shape) == 150, np.nan, 0.0),
        DataError,
        r"x holds nan at index \(1, 0, 2, 0\), and 1 such value in all",
    ),
    (
        np.where(np.arange(X.size).reshape(X.shape) % 3 > 0, np.array([np.inf, -np.inf, 0]), 0),
        DataError,
        "x holds -inf",
    ),
    (np.where(np.arange(X.size).reshape(X.shape) > 500, np.inf, 0.0), DataError, "x holds inf at index .* 75 such"),
]


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict", "train_on_batch"])
@pytest.mark.parametrize(("x", "error", "message"), INPUTS)
def test_inputs_of_a_wrong_shape_or_dtype_are_refused(verb, x, error, message):
    arguments = (x,) if verb == "predict" else (x, np.zeros(len(x) if x.ndim else 1, int))
    network = model()
    before = network.state_dict()
    with pytest.raises(error, match=message):
        getattr(network, verb)(*arguments)
    assert all(np.array_equal(array, network.state_dict()[path]) for path, array in before.items())


def test_inputs_of_grey_images_without_a_channel_axis():
    with pytest.raises(ShapeError, match=r"grey images need their channel axis: pass x\[..., None\]"):
        model((8, 6, 1)).predict(np.zeros((4, 8, 6), "uint8"))


LABELS = [
    (Y[:3], ShapeError, r"y has shape \(3,\) for 4 inputs"),
    (np.int64(1), ShapeError, r"y has shape \(\) for 4 inputs"),
    (np.array([0, 1, 3, 5]), DataError, r"y\[2\] is 3, and 2 labels in all are outside 0 … 2; the model has 3 outputs"),
    (np.array([0, -1, 1, 1]), DataError, r"y\[1\] is -1, and 1 labels in all"),
    (
        np.array([0, 1.5, 1, 1]),
        DTypeError,
        r"y holds float64; class indices must be integers 0 … 2, and 1.5 is not one; for a regression",
    ),
    (np.array([0.0, 1.0, 1.0, 1.0]), DTypeError, r"y holds float64; .* pass y\.astype\(int\)"),
    (np.array(["a", "b", "c", "a"]), DTypeError, "y holds <U1"),
    (Y[:, None], ShapeError, r"y has shape \(4, 1\); expected class indices \(4,\) or targets \(4, 3\); pass y.ravel"),
    (np.eye(4)[Y], ShapeError, r"y has shape \(4, 4\); expected class indices"),
    (
        np.eye(3)[Y] * 2,
        DataError,
        r"y\[0\] is \[2.0, 0.0, 0.0\], which is not a probability distribution",
    ),
    (np.array([[1.0, 0, 0], [2.0, -1.0, 0], [0, 1, 0], [0, 1, 0]]), DataError, r"y\[1\] is \[2.0, -1.0, 0.0\]"),
]


@pytest.mark.parametrize(("y", "error", "message"), LABELS)
def test_labels_out_of_range_are_refused(y, error, message):
    for verb in ("fit", "evaluate", "train_on_batch"):
        with pytest.raises(error, match=message):
            getattr(model(), verb)(X, y)


def test_targets_of_a_regression_must_be_a_column():
    network = model(units=1, loss=losses.MeanSquaredError())
    with pytest.raises(ShapeError, match=r"expected targets \(4, 1\); pass y\[:, None\]"):
        network.train_on_batch(X, np.zeros(4))
    assert np.isfinite(float(network.train_on_batch(X, np.zeros((4, 1)))))


def test_targets_of_text_are_refused():
    with pytest.raises(DTypeError, match="y holds <U1; expected numbers"):
        model(loss=losses.MeanSquaredError()).train_on_batch(X, np.full((4, 3), "a"))


def test_validation_data_are_named():
    with pytest.raises(ShapeError, match=r"validation_data\[0\] has shape \(4, 2\)"):
        model().fit(X, Y, validation_data=(np.zeros((4, 2)), Y))
    with pytest.raises(DataError, match=r"validation_data\[1\]\[0\] is 9"):
        model().fit(X, Y, validation_data=(X, np.full(4, 9)))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_inputs_of_pixels_and_floats_are_taken(dtype):
    network = model()
    assert network.predict(X.astype(dtype)).dtype == np.float32
    assert network.fit(X.astype(dtype), Y.astype("uint8"), verbose=0).epochs == 1


def test_inputs_of_lists_are_taken():
    assert model((2,), 2).predict([[0.5, 1.0], [0.0, 2.0]]).shape == (2, 2)
