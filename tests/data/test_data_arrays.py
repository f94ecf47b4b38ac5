"""What users pass as data: read by one rule in every verb, or refused with a remedy that works and spoils nothing."""

import re
import warnings

import numpy as np
import pytest
from PIL import Image

import gpucnn
from gpucnn import layers, losses
from gpucnn.data.arrays import host_array
from gpucnn.data.augment import RandomCrop
from gpucnn.data.batches import check_inputs
from gpucnn.errors import DataError, DataWarning, DTypeError, GpucnnError, ShapeError

RANDOM = np.random.default_rng(0)
X = RANDOM.random((8, 4, 4, 1)).astype("float32")
Y = np.arange(8) % 2
BYTES = RANDOM.integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)


def classifier(shape=(4, 4, 1), *before):
    network = [*before, layers.Flatten(), layers.Dense(2), layers.Softmax()]
    return gpucnn.Model(network, shape, backend="numpy").compile()


def autoencoder(last=True, shape=(4, 4, 1)):
    network = [layers.Conv2D(1, 1), *([layers.Sigmoid()] if last else [])]
    return gpucnn.Model(network, shape, backend="numpy").compile("sgd", "mean_squared_error")


class Foreign:
    """An array of another library, which NumPy cannot read."""

    shape, dtype = (8, 4, 4, 1), "float32"

    def __init__(self, error, **attributes):
        self.error = error
        vars(self).update(attributes)

    def __array__(self, *arguments, **options):
        raise self.error

    def __len__(self):
        return 8


class Device:
    type = "cuda"


NUMPY = {"numpy": lambda: X}
READ_BY_CALLS = {
    ".get()": Foreign(TypeError("Implicit conversion"), get=lambda: X),
    ".detach().numpy()": Foreign(RuntimeError("requires grad"), requires_grad=True, **NUMPY),
    ".cpu().numpy()": Foreign(TypeError("can't convert cuda:0"), device=Device(), **NUMPY),
    ".float().numpy()": Foreign(TypeError("BFloat16"), dtype="torch.bfloat16", **NUMPY),
    ".to_dense().numpy()": Foreign(TypeError("Sparse"), layout="torch.sparse_coo", **NUMPY),
    ".detach().cpu().float().numpy()": Foreign(
        RuntimeError("grad"), dtype="torch.bfloat16", device=Device(), requires_grad=True, **NUMPY
    ),
}
VERBS = {
    "fit": lambda data: classifier().fit(data, Y, verbose=0),
    "fit's labels": lambda data: classifier().fit(X, data, verbose=0),
    "validation": lambda data: classifier().fit(X, Y, validation_data=(data, Y), verbose=0),
    "evaluate": lambda data: classifier().evaluate(data, Y),
    "predict": lambda data: classifier().predict(data),
    "train_on_batch": lambda data: classifier().train_on_batch(data, Y),
    "adapt": lambda data: layers.Normalization().adapt(data),
    "recalibrate_batch_norm": lambda data: classifier().recalibrate_batch_norm(data),
    "profile": lambda data: classifier().profile(data, Y),
    "parity": lambda data: gpucnn.parity(classifier(), data),
    "crop": lambda data: classifier().fit(data, Y, augment=[RandomCrop(4)], verbose=0),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("calls", READ_BY_CALLS)
def test_arrays_of_other_libraries_come_with_the_call_that_reads_them(verb, calls):
    with pytest.raises(
        DTypeError, match=rf"that cannot be read as it is \(.*\); pass [a-z_01\[\]]+{re.escape(calls)}$"
    ):
        VERBS[verb](READ_BY_CALLS[calls])


@pytest.mark.parametrize("verb", VERBS)
def test_arrays_of_other_libraries_are_refused_by_name(verb):
    ragged = [np.zeros((4, 4, 1)), np.zeros((4, 5, 1))]
    things = [(item for item in X), {"image": X}, "x.npy", object(), ragged, [[1, 0], [1]], [None, X[0]], ["a", {}]]
    for thing in [*things, ((X, Y), (X[:2], Y[:2])), (X, Y), Foreign(KeyError("?"))]:
        with pytest.raises(GpucnnError):
            VERBS[verb](thing)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((item for item in X), DataError, r"x is a generator, .* np.stack\(\[sample for sample, label in x\]\)"),
        (None, DataError, "x is None, which is not an array"),
        ({"image": X}, DataError, r"x is a dict, .* such as x\['image'\]"),
        (
            [X[0], np.zeros((4, 5, 1))],
            ShapeError,
            r"x\[0\] has shape \(4, 4, 1\) and x\[1\] \(4, 5, 1\); all must .* resize",
        ),
        ([X[:4], X[4:7]], ShapeError, r"if these are batches pass np.concatenate\(x\)"),
        (((X, Y), (X[:2], Y[:2])), DataError, r"unpack it: \(x_train, y_train\), \(x_test, y_test\) = x"),
        ((X, Y), DataError, "unpack it: x, y = x"),
        (np.ma.masked_greater(X, 0.5), DataError, r"masked array with \d+ masked values, .* pass x.filled\(value\)"),
        (Foreign(KeyError("odd")), DataError, "x cannot be read as an array: KeyError: 'odd'; pass a NumPy array"),
    ],
)
def test_inputs_that_are_not_arrays_are_explained(data, error, message):
    with pytest.raises(error, match=message):
        classifier().predict(data)


def test_labels_that_are_missing_are_asked_for():
    for verb in (classifier().fit, classifier().evaluate):
        with pytest.raises(DataError, match="y is missing; pass inputs and labels as two arrays"):
            verb((X, Y))


def test_lists_of_pictures_are_read_and_the_remedy_for_grey_ones_works():
    pictures = [Image.fromarray(image[..., 0]) for image in BYTES]
    with pytest.raises(ShapeError, match=r"pass np.asarray\(x\)\[..., None\]"):
        classifier().predict(pictures)
    model = classifier()
    assert np.array_equal(model.predict(np.asarray(pictures)[..., None]), model.predict(BYTES))
    with pytest.raises(ShapeError, match=r"if these are batches pass np.concatenate\(np.asarray\(x\)\)"):
        classifier().predict([X[:4], X[4:]])


# --- kinds of numbers -----------------------------------------------------------------------------

INTEGERS = {
    "0 … 255": (BYTES.astype("int64"), BYTES / 255),
    "16 bits": ((257 * BYTES.astype("uint16")), BYTES / 255),
    "16 bits, signed": ((128 * BYTES.astype("int16")), None),
    "0 and 1": ((X > 0.5).astype("int32"), X > 0.5),
    "negative": (BYTES.astype("int64") - 128, None),
    "large": (BYTES.astype("int64") * 1000, None),
    "int8": ((BYTES // 2).astype("int8"), None),
}


def remedies(message):
    """Return the values of all expressions for x that a message tells to pass."""
    found = re.findall(r'(?:\(x / 65535\)|x)\.astype\("\w+"\)', message)
    assert found, message
    return found


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_instead_of_pixels_are_refused_with_remedies_that_keep_them(kind):
    """Each is taken, and tells apart what the data tell apart: nothing wraps around or is cut off."""
    x, meant = INTEGERS[kind]
    for verb in ("fit", "adapt"):
        with pytest.raises(DTypeError, match=f"holds {x.dtype} from {x.min()} to {x.max()}, whose scale") as caught:
            VERBS[verb](x)
    message = str(caught.value).replace("data.astype", "x.astype").replace("(data /", "(x /")
    results = []
    for expression in remedies(message):
        fixed = eval(expression, {"x": x})
        inputs = check_inputs(fixed, (4, 4, 1)).astype("float64") / (255 if fixed.dtype == "uint8" else 1)
        assert len(np.unique(inputs)) == len(np.unique(x))
        assert np.array_equal(np.argsort(inputs, axis=None, kind="stable"), np.argsort(x, axis=None, kind="stable"))
        results.append(inputs)
    assert meant is None or np.allclose(results[0], meant, atol=1e-6)


def test_bools_count_as_zero_and_one_in_images_features_and_statistics():
    mask = X > 0.5
    for shape in ((4, 4, 1), (16,)):
        model, inputs = classifier(shape), mask.reshape(8, *shape)
        assert np.array_equal(model.predict(inputs), model.predict(inputs.astype("float32")))
        assert np.array_equal(model.predict(inputs[:, ::-1]), model.predict(inputs[:, ::-1].astype("float32")))
    assert layers.Normalization().adapt(mask).mean == layers.Normalization().adapt(mask.astype("float64")).mean


def test_integers_are_features_where_there_are_no_images():
    table = RANDOM.integers(-5, 100, (8, 3))
    model = classifier((3,))
    assert np.array_equal(model.predict(table), model.predict(table.astype("float64")))
    assert layers.Normalization().adapt(table).mean == pytest.approx(table.mean(axis=0))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype("complex64"), r"holds complex64; expected numbers: pass np.abs\(x\) or x.real"),
        (X.astype(object), r'holds object; expected numbers: pass x.astype\("float32"\)'),
        (X.astype(str), r'holds <U32; expected numbers: pass x.astype\("float32"\)'),
        (np.full(X.shape, "a"), "holds <U1; expected numbers: remove or encode"),
        (X.astype("datetime64[s]"), "expected numbers: remove or encode"),
    ],
)
def test_inputs_that_are_not_numbers_are_refused(x, message):
    with pytest.raises(DTypeError, match=message):
        classifier().predict(x)


@pytest.mark.parametrize("value", [1e300, -1e39, 1.7e308])
def test_numbers_beyond_the_models_dtype_are_named_by_their_place(value):
    x = X.astype("float64")
    x[3, 1, 0, 0] = x[5, 1, 0, 0] = value
    message = rf"holds {re.escape(str(value))} at index \(3, 1, 0, 0\), and 2 such values in all;"
    for verb in ("fit", "evaluate", "predict", "train_on_batch"):
        with pytest.raises(DataError, match=message):
            VERBS[verb](x)
    with pytest.raises(DataError, match=r"data holds .* at index|has no deviation"), np.errstate(all="ignore"):
        layers.Normalization().adapt(np.where(x > 1e38, np.inf, x) if value > 0 else np.full(X.shape, np.nan))
    wide = gpucnn.Model([layers.Flatten(), layers.Dense(2)], (4, 4, 1), backend="numpy", dtype="float64")
    assert wide.predict(np.where(np.abs(x) > 1e38, 1e39, x)).shape == (8, 2)
    with pytest.raises(DataError, match=r"x holds 70000.0 at index \(3, 1, 0, 0\), .* of float16 is 6.6e\+04"):
        check_inputs(np.where(np.abs(x) > 1e38, 7e4, x), (4, 4, 1), dtype="float16")


# --- labels and targets ---------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["cat", "dog"] * 4, np.array(["cat", "dog"] * 4, object)])
def test_labels_of_text_are_encoded_by_the_remedy(labels):
    with pytest.raises(
        DTypeError, match=r"encode them, classes, y = np.unique\((np.asarray\(y\)|y), return_inverse=True\)"
    ):
        classifier().fit(X, labels)
    assert classifier().fit(X, np.unique(labels, return_inverse=True)[1], verbose=0).epochs == 1


def test_labels_that_are_bools_are_numbers_of_two_classes():
    first, second = classifier(), classifier()
    first.fit(X, Y > 0, verbose=0)
    second.fit(X, Y, verbose=0)
    assert np.array_equal(first.state_dict()["dense.weight"], second.state_dict()["dense.weight"])


def segmentation():
    model = gpucnn.Model([layers.Conv2D(3, 1), layers.Softmax()], (4, 4, 1), backend="numpy")
    return model.compile()


def test_labels_of_positions_are_checked_by_their_place():
    labels = RANDOM.integers(0, 3, (8, 4, 4))
    labels[2, 3, 1] = 3
    with pytest.raises(DataError, match=r"y\[2, 3, 1\] is 3, and 1 labels in all are outside 0 … 2"):
        segmentation().fit(X, labels)
    rows = np.eye(4)[labels][..., :3]
    with pytest.raises(
        DataError, match=r"y\[2, 3, 1\] is \[0.0, 0.0, 0.0\], which is not a probability distribution over 3 classes"
    ):
        segmentation().fit(X, rows)
    with pytest.raises(
        ShapeError, match=r"expected class indices \(8, 4, 4\) or targets \(8, 4, 4, 3\); pass y\[..., 0\]"
    ):
        segmentation().fit(X, labels[..., None])


def test_uint8_targets_count_as_inputs_do():
    model = autoencoder()
    assert model.evaluate(BYTES, BYTES) == model.evaluate(BYTES, (BYTES / 255).astype("float32"))
    flat = gpucnn.Model([layers.Dense(16), layers.Sigmoid()], (16,), backend="numpy").compile(
        "sgd", "mean_squared_error"
    )
    pixels = BYTES.reshape(8, 16)
    assert flat.evaluate(pixels, pixels) == flat.evaluate(pixels, pixels / 255)


def test_uint8_targets_of_zeros_and_ones_stay_and_others_have_to_say_what_they_are():
    model = gpucnn.Model([layers.Dense(1)], (16,), backend="numpy").compile("sgd", "mean_squared_error")
    x, bits = X.reshape(8, 16), (Y[:, None] > 0).astype("uint8")
    assert model.evaluate(x, bits) == model.evaluate(x, bits.astype("float32"))
    ages = np.arange(20, 28, dtype=np.uint8)[:, None]
    with pytest.raises(
        DTypeError, match=r'y holds uint8 from 20 to 27, .* pass y.astype\("float32"\) for the numbers as'
    ):
        model.fit(x, ages)
    assert model.evaluate(x, ages.astype("int64")) == model.evaluate(x, ages.astype("float32"))


def test_targets_of_integers_are_refused_where_they_may_be_pixels():
    with pytest.raises(
        DTypeError, match=r'y holds int64 from 0 to 255, whose scale .* pass y.astype\("uint8"\) for pixels'
    ):
        autoencoder().fit(X, 255 * (BYTES > 100).astype("int64"))


def test_targets_of_two_columns_are_numbers():
    model = gpucnn.Model([layers.Dense(2)], (16,), backend="numpy").compile("sgd", "mean_squared_error")
    x, y = X.reshape(8, 16), RANDOM.integers(-9, 9, (8, 2))
    assert model.evaluate(x, y)["loss"] == pytest.approx(((model.predict(x) - y) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_targets_that_are_not_finite_are_named_by_their_place(value):
    model = gpucnn.Model([layers.Dense(2)], (16,), backend="numpy").compile("sgd", "mean_squared_error")
    y = np.zeros((8, 2))
    y[4, 1] = value
    with pytest.raises(DataError, match=r"y holds .* at index \(4, 1\), and 1 such value in all"):
        model.fit(X.reshape(8, 16), y)


class Seen(losses.Loss):
    """A custom loss that keeps its labels."""

    def __call__(self, y, labels):
        Seen.labels = labels
        return (y * y).mean(), lambda dloss=1.0: 2 * dloss * y / y.size


losses.Loss.registry.pop("Seen")


@pytest.mark.parametrize("D", [4, 16])
def test_custom_loss_gets_labels_untouched(D):
    model = gpucnn.Model([layers.Dense(D)], (16,), backend="numpy").compile("sgd", Seen())
    numbers = np.array([7, -1, 300, 0, 5, 5, 2, 9])
    assert "accuracy" not in model.evaluate(X.reshape(8, 16), numbers)
    assert np.array_equal(Seen.labels, numbers)
    marked = np.where(np.arange(8 * D).reshape(8, D) == 3, np.nan, 1.0)
    model.evaluate(X.reshape(8, 16), marked)
    assert np.isnan(Seen.labels).sum() == 1


# --- scales that can hardly be meant ---------------------------------------------------------------


def warned(model, verb, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"verbose": 0} if verb == "fit" else {}
        getattr(model, verb)(*arguments, **options)
        getattr(model, verb)(*arguments, **options)
    return [str(warning.message) for warning in caught if issubclass(warning.category, DataWarning)]


MANY = RANDOM.integers(0, 256, (200, 4, 4, 2), dtype=np.uint8)
LABELS = np.arange(200) % 2
FLOATS = MANY.astype("float32")


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_floats_of_pixels_are_warned_of_once(verb):
    arguments = () if verb == "predict" else (LABELS,)
    said = warned(classifier((4, 4, 2)), verb, FLOATS, *arguments)
    assert len(said) == 1
    assert "x holds floats from 0 to 255, which count as they are, though the network has no Normalization" in said[0]
    for fine in (MANY, FLOATS / 255, FLOATS / 255 - 0.5, FLOATS - 128):
        assert not warned(classifier((4, 4, 2)), verb, fine, *arguments)
    for first in (layers.Normalization().adapt(FLOATS), layers.Normalization(128, 70), layers.BatchNorm()):
        assert not warned(classifier((4, 4, 2), first), verb, FLOATS, *arguments)


def test_bytes_of_zeros_and_ones_are_warned_of():
    masks = (MANY > 100).astype("uint8")
    assert "all 0 or 1, which count as 0 and 1/255" in warned(classifier((4, 4, 2)), "predict", masks)[0]
    assert not warned(classifier((4, 4, 2)), "predict", masks.astype(bool))
    assert not warned(classifier((4, 4, 2)), "predict", 0 * masks)


@pytest.mark.parametrize(("adapted", "given"), [(FLOATS, MANY), (MANY, FLOATS), (FLOATS, FLOATS / 255)])
def test_statistics_of_other_units_are_warned_of(adapted, given):
    model = classifier((4, 4, 2), layers.Normalization().adapt(adapted))
    said = warned(model, "fit", given, LABELS)
    assert len(said) == 1
    assert re.search(r"x has mean .* but normalization has mean .*: they are not in the same units", said[0])
    assert not warned(classifier((4, 4, 2), layers.Normalization().adapt(given)), "fit", given, LABELS)


def test_statistics_are_not_judged_by_a_single_picture():
    model = classifier((4, 4, 2), layers.Normalization().adapt(MANY))
    for picture in (0 * MANY[:1], MANY[:1] // 200, np.full_like(MANY[:1], 255)):
        assert not warned(model, "predict", picture)


def test_adapt_refuses_what_fit_refuses_and_takes_what_fit_takes():
    for bad in (MANY.astype("int64"), MANY.astype("uint16"), MANY.astype(str), None, 3.0, MANY[:0]):
        for verb in (layers.Normalization().adapt, lambda x: classifier((4, 4, 2)).predict(x)):
            with pytest.raises(GpucnnError):
                verb(bad)
    expected = layers.Normalization().adapt(MANY)
    for same in (FLOATS / 255, (FLOATS / 255).tolist(), list(MANY)):
        assert layers.Normalization().adapt(same).mean == pytest.approx(expected.mean, rel=1e-6)


def test_host_arrays_are_not_copied():
    assert host_array(X) is X
    assert np.shares_memory(host_array(memoryview(X)), X)
