"""Test-time augmentation: the views and their weights, averaged logits, and the gain in accuracy."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn import losses
from gpucnn.backends import Backend
from gpucnn.data.tta import Views, check_tta
from gpucnn.errors import ConfigurationError, ShapeError

H, W, C = 5, 6, 3


def network(backend="numpy", end=(), dtype="float64"):
    layers = [L.Conv2D(4, 3), L.ReLU(), L.Flatten(), L.Dense(3), *end]
    return gpucnn.Model(layers, (H, W, C), backend=backend, dtype=dtype)


def images(count=7, kind="uint8"):
    x = np.random.default_rng(0).integers(0, 256, (count, H, W, C)).astype("uint8")
    return x if kind == "uint8" else x / 255


def by_hand(model, x, flip, shift):
    """The weighted mean of the outputs over views made by NumPy's own padding and slices, one at a time."""
    views = [(x, 1.0)]
    if shift:
        wide = np.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
        first, last = wide[:, : x.shape[1], : x.shape[2]], wide[:, 2 * shift :, 2 * shift :]
        views = [(x, 0.5), (first, 0.25), (last, 0.25)]
    total = np.zeros((len(x), 3))
    for view, weight in views:
        if flip:
            total += weight / 2 * (model.predict(view) + model.predict(view[:, :, ::-1]))
        else:
            total += weight * model.predict(view)
    return total


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


VIEWS = [Views(), Views(flip=False, shift=2), Views(shift=1), Views(flip=False)]


@pytest.mark.parametrize("kind", ["uint8", "float64"])
@pytest.mark.parametrize("views", VIEWS, ids=str)
def test_tta_averages_predictions(backend, views, kind):
    model, x = network(backend), images(kind=kind)
    expected = by_hand(model, x, views.flip, views.shift)
    assert np.abs(model.predict(x, tta=views, batch_size=3) - expected).max() < 1e-12
    assert views == Views(flip=False) or np.abs(expected - model.predict(x)).max() > 1e-3


@pytest.mark.parametrize(
    ("loss", "end"),
    [
        (None, [L.Softmax]),
        (losses.CategoricalCrossEntropy(), [L.Softmax]),
        (losses.MeanSquaredError(), [L.Softmax]),
        (losses.CategoricalCrossEntropy(from_logits=True), []),
    ],
)
@pytest.mark.parametrize("views", ["flip", "flip+shift"])
def test_tta_averages_logits_before_a_softmax(backend, loss, end, views):
    """And so the loss is that of the mean of the logits, whether the softmax is fused with it or not."""
    model, plain = network(backend, [make() for make in end]), network(backend)
    plain.load_state_dict(model.state_dict())
    x, y = images(), np.array([0, 1, 2, 2, 1, 0, 0])
    logits = by_hand(plain, x, True, int(views == "flip+shift"))
    expected = softmax(logits) if end else logits
    predicted = model.predict(x, tta=views, batch_size=4)
    assert np.abs(predicted - expected).max() < 1e-12
    if loss is None:
        return
    model.compile("sgd", loss)
    assert np.array_equal(model.predict(x, tta=views, batch_size=4), predicted)
    probabilities, one_hot = softmax(logits), np.eye(3)[y]
    if isinstance(loss, losses.MeanSquaredError):
        expected_loss = ((probabilities - one_hot) ** 2).mean()
    else:
        expected_loss = -np.log(probabilities[np.arange(7), y]).mean()
    scores = model.evaluate(x, y, tta=views, batch_size=4)
    assert scores["loss"] == pytest.approx(expected_loss, rel=1e-12)
    assert scores["accuracy"] == (logits.argmax(axis=1) == y).mean()
    assert scores["loss"] != pytest.approx(model.evaluate(x, y)["loss"], rel=1e-4)


def test_tta_trains_nothing_and_keeps_dtypes(backend):
    model = network(backend, [L.Softmax()], dtype="float32").compile()
    before = model.state_dict()
    assert model.predict(images(), tta="flip").dtype == "float32"
    model.evaluate(images(), np.zeros(7, int), tta="flip")
    for path, value in model.state_dict().items():
        assert np.array_equal(value, before[path])


def test_tta_improves_accuracy():
    """Classes that a flip leaves alone: the part of the weights that is not symmetric is noise, and averaged out."""
    rng = np.random.default_rng(0)
    symmetric = rng.normal(size=(8, 8, 1))
    symmetric = symmetric + symmetric[:, ::-1]
    x = rng.normal(size=(2100, 8, 8, 1)).astype("float32")
    y = ((x * symmetric).sum(axis=(1, 2, 3)) > 0).astype(int)
    for seed in range(3):
        model = gpucnn.Model([L.Flatten(), L.Dense(2), L.Softmax()], (8, 8, 1), seed=seed, backend="numpy").compile()
        model.fit(x[:100], y[:100], epochs=20, batch_size=20, verbose=0)
        plain, flipped = (model.evaluate(x[100:], y[100:], tta=v)["accuracy"] for v in (None, "flip"))
        assert flipped > plain + 0.03, seed  # the standard deviation of each is below 0.01


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Views(flip=1), ConfigurationError, "Views: flip must be True or False, not 1"),
        (lambda: Views(shift=-1), ConfigurationError, "Views: shift must be an integer of at least 0, not -1"),
        (lambda: Views(shift=0.5), ConfigurationError, "Views: shift must be an integer of at least 0"),
        (
            lambda: network().predict(images(), tta="mirror"),
            ConfigurationError,
            r"'flip', 'flip\+shift', or .* not 'mirror'",
        ),
        (
            lambda: network().predict(images(), tta=[Views()]),
            ConfigurationError,
            "tta must be one of",
        ),
        (
            lambda: network().predict(images(), tta=Views(shift=5)),
            ShapeError,
            "fewer than 6 pixels a side to reflect",
        ),
        (lambda: check_tta("flip", (7,)), ShapeError, r"takes images \(H, W, C\).*shape \(7,\)"),
    ],
)
def test_tta_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_tta_is_the_same_on_every_backend(backend):
    x = images()
    for views in VIEWS:
        pairs = zip(views.of(backend, backend.from_host(x), "float32"), views.of(Backend(), x, "float32"), strict=True)
        for (one, weight), (other, same) in pairs:
            assert weight == same
            assert np.array_equal(backend.to_host(one), other)
