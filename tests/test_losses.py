"""Losses and metrics: meaning by plain loops, gradients by differences, parity, and extreme logits."""

import math

import numpy as np
import pytest

from gpucnn import losses, metrics
from gpucnn.errors import ConfigurationError
from tests import reference
from tests.test_layers import GRADIENT_TOLERANCE, STEP, TOLERANCE, assert_close, spread_out

N, K = 4, 5
LABELS = np.array([3, 0, 4, 3])
ONE_HOT = np.eye(K)[LABELS]


def soft_targets():
    weights = np.random.default_rng(1).uniform(0.1, 1.0, (N, K))
    return weights / weights.sum(axis=1, keepdims=True)


def mean_square(y, targets):
    return sum((y[i] - targets[i]) ** 2 for i in np.ndindex(*y.shape)) / y.size


LOGITS = spread_out((N, K))
PROBABILITIES = reference.softmax(LOGITS)

# loss, what it is called with, labels, and its value by plain loops
ROWS = {
    "probabilities": (
        losses.CategoricalCrossEntropy(),
        PROBABILITIES,
        LABELS,
        reference.cross_entropy(PROBABILITIES, LABELS),
    ),
    "one_hot": (
        losses.CategoricalCrossEntropy(),
        PROBABILITIES,
        ONE_HOT,
        reference.cross_entropy(PROBABILITIES, LABELS),
    ),
    "smoothing": (
        losses.CategoricalCrossEntropy(label_smoothing=0.3),
        PROBABILITIES,
        LABELS,
        reference.cross_entropy(PROBABILITIES, LABELS, 0.3),
    ),
    "logits": (
        losses.CategoricalCrossEntropy(from_logits=True),
        LOGITS,
        LABELS,
        reference.cross_entropy(PROBABILITIES, LABELS),
    ),
    "logits_smoothing": (
        losses.CategoricalCrossEntropy(label_smoothing=0.2, from_logits=True),
        LOGITS,
        ONE_HOT,
        reference.cross_entropy(PROBABILITIES, LABELS, 0.2),
    ),
    "soft_targets": (
        losses.CategoricalCrossEntropy(from_logits=True),
        LOGITS,
        soft_targets(),
        -sum(soft_targets()[i] * math.log(PROBABILITIES[i]) for i in np.ndindex(N, K)) / N,
    ),
    "mean_squared_error": (losses.MeanSquaredError(), LOGITS, soft_targets(), mean_square(LOGITS, soft_targets())),
    "mean_squared_error_classes": (losses.MeanSquaredError(), LOGITS, LABELS, mean_square(LOGITS, ONE_HOT)),
}

every_row = pytest.mark.parametrize("row", ROWS)


def test_every_loss_has_a_row():
    shipped = {kind for kind in vars(losses).values() if isinstance(kind, type) and issubclass(kind, losses.Loss)}
    assert {type(row[0]) for row in ROWS.values()} == shipped - {losses.Loss}


@every_row
def test_meaning(row):
    loss, y, labels, expected = ROWS[row]
    assert float(loss(y, labels)[0]) == pytest.approx(expected, rel=1e-13)


@every_row
def test_gradient(row):
    loss, y, labels, _ = ROWS[row]
    _, backward = loss(y, labels)
    numeric = np.zeros(y.shape)
    for index in np.ndindex(*y.shape):
        above, below = y.copy(), y.copy()
        above[index] += STEP
        below[index] -= STEP
        numeric[index] = (float(loss(above, labels)[0]) - float(loss(below, labels)[0])) / (2 * STEP)
    assert np.abs(backward() - numeric).max() <= GRADIENT_TOLERANCE * max(1.0, np.abs(numeric).max())
    assert_close(backward(2.0), 2.0 * backward(), 1e-13, "twice the loss")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_row
def test_parity(row, backend, dtype):
    loss, y, labels, expected = ROWS[row]
    mine = type(loss).from_config(loss.config())
    mine.backend = backend
    value, backward = mine(backend.from_host(y.astype(dtype)), backend.from_host(labels))
    host = backend.to_host(value)
    assert host.dtype == dtype
    assert float(host) == pytest.approx(expected, rel=20 * TOLERANCE[dtype])
    dy = backend.to_host(backward())
    assert dy.dtype == dtype
    assert_close(dy, loss(y, labels)[1](), 20 * TOLERANCE[dtype], "dy")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_of_ten_thousand_give_a_finite_loss_and_gradient(backend, dtype):
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype)
    loss = losses.CategoricalCrossEntropy(from_logits=True)
    loss.backend = backend
    value, backward = loss(backend.from_host(logits), backend.from_host(np.array([1, 1])))
    assert float(backend.to_host(value)) == pytest.approx(1e4)  # the first row is off by 20,000, the second right
    assert_close(backend.to_host(backward()), np.array([[0.5, -0.5, 0], [0, 0, 0]], dtype), 1e-6, "dy")


def test_a_probability_of_zero_has_a_finite_loss():
    loss, backward = losses.CategoricalCrossEntropy()(np.array([[0.0, 1.0]], "float32"), np.array([0]))
    assert float(loss) == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert np.abs(backward()).max() == pytest.approx(1e7, rel=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, "much"])
def test_label_smoothing_outside_its_range_is_refused(smoothing):
    with pytest.raises(
        ConfigurationError, match="label_smoothing must be a number that is at least 0 and below 1, not"
    ):
        losses.CategoricalCrossEntropy(label_smoothing=smoothing)


def test_names_of_losses():
    assert isinstance(losses.Loss.get("categorical_crossentropy"), losses.CategoricalCrossEntropy)
    assert isinstance(losses.Loss.get("mean_squared_error"), losses.MeanSquaredError)
    with pytest.raises(ConfigurationError, match="no loss named 'hinge'; there are CategoricalCrossEntropy"):
        losses.Loss.get("hinge")


def test_accuracy_counts_right_answers(backend):
    accuracy = metrics.Accuracy()
    y = backend.from_host(np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]))
    for labels in (np.array([1, 1, 1]), np.array([[0, 1], [0, 1], [0, 1]])):
        assert int(backend.to_host(accuracy.total(y, backend.from_host(labels)))) == 2


def test_totals_are_means_over_samples_not_over_batches(backend):
    totals = metrics.Totals(backend, [metrics.Accuracy()])
    for loss, outputs, labels in ((1.0, [[0.0, 1.0]] * 3, [1, 1, 0]), (5.0, [[0.0, 1.0]], [1])):
        totals.add(*(backend.from_host(np.array(array)) for array in (loss, outputs, labels)))
    assert totals.read() == pytest.approx({"loss": (3 * 1.0 + 5.0) / 4, "accuracy": 3 / 4})
