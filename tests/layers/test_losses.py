"""Losses and metrics: meaning by plain loops, gradients by differences, parity, and extreme logits."""

import math

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, losses, metrics, optimizers
from gpucnn.errors import ConfigurationError
from tests import reference
from tests.helpers import GRADIENT_TOLERANCE, STEP, TOLERANCE, assert_close, spread_out

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

POSITIONS = spread_out((2, 3, 2, K))
POSITION_LABELS = np.random.default_rng(2).integers(0, K, (2, 3, 2))
UNSCALED = np.random.default_rng(3).uniform(0.1, 2.0, (N, K))  # which do not add up to 1


def over_positions(smoothing=0.0):
    rows, labels = POSITIONS.reshape(-1, K), POSITION_LABELS.reshape(-1)
    return reference.cross_entropy(reference.softmax(rows), labels, smoothing)


ROWS |= {
    "positions_logits": (
        losses.CategoricalCrossEntropy(from_logits=True),
        POSITIONS,
        POSITION_LABELS,
        over_positions(),
    ),
    "positions_probabilities": (
        losses.CategoricalCrossEntropy(),
        reference.softmax(POSITIONS.reshape(-1, K)).reshape(POSITIONS.shape),
        np.eye(K)[POSITION_LABELS],
        over_positions(),
    ),
    "positions_smoothing": (
        losses.CategoricalCrossEntropy(label_smoothing=0.2, from_logits=True),
        POSITIONS,
        POSITION_LABELS,
        over_positions(0.2),
    ),
    "positions_squared_error": (
        losses.MeanSquaredError(),
        POSITIONS,
        POSITION_LABELS,
        mean_square(POSITIONS, np.eye(K)[POSITION_LABELS]),
    ),
    "shares": (  # such as sigmoids make them: divided by their sum
        losses.CategoricalCrossEntropy(),
        UNSCALED,
        soft_targets(),
        -sum(soft_targets()[i] * math.log(UNSCALED[i] / UNSCALED[i[0]].sum()) for i in np.ndindex(N, K)) / N,
    ),
}

every_row = pytest.mark.parametrize("row", ROWS)


def test_losses_are_all_tested():
    shipped = {kind for kind in vars(losses).values() if isinstance(kind, type) and issubclass(kind, losses.Loss)}
    assert {type(row[0]) for row in ROWS.values()} == shipped - {losses.Loss}


@every_row
@pytest.mark.smoke
def test_meaning(row):
    loss, y, labels, expected = ROWS[row]
    assert float(loss(y, labels)[0]) == pytest.approx(expected, rel=1e-13)


@every_row
@pytest.mark.smoke
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


@pytest.mark.parametrize("last", [True, False], ids=["fused softmax", "from logits"])
def test_cross_entropy_of_a_map_is_that_of_its_positions_as_samples(last, backend):
    """Loss, gradients and accuracy of a segmentation are those of a network that gets each pixel for itself."""
    generator = np.random.default_rng(0)
    x, labels = generator.random((6, 5, 4, 3)), generator.integers(0, 4, (6, 5, 4))
    found = []
    for network, inputs, classes in (
        (layers.Conv2D(4, 1), x, labels),
        (layers.Conv2D(4, 1), x, np.eye(4)[labels]),
        (layers.Dense(4), x.reshape(-1, 3), labels.ravel()),
    ):
        softmax = [layers.Softmax()] if last else []
        model = gpucnn.Model([network, *softmax], inputs.shape[1:], backend=backend, dtype="float64")
        model.compile(optimizers.SGD(0.1), losses.CategoricalCrossEntropy(0.1, from_logits=not last))
        state = {path: np.arange(array.size) / 9 for path, array in model.state_dict().items()}
        model.load_state_dict({path: state[path].reshape(array.shape) for path, array in model.state_dict().items()})
        model.fit(inputs, classes, batch_size=len(inputs), epochs=3, shuffle=False, verbose=0)
        weights = [array.ravel() for array in model.state_dict().values()]
        found.append((model.evaluate(inputs, classes), np.concatenate(weights)))
    for scores, weights in found[1:]:
        assert scores == pytest.approx(found[0][0], rel=1e-12)
        assert weights == pytest.approx(found[0][1], rel=1e-10)


def test_probability_of_zero_has_a_finite_loss():
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
    assert isinstance(losses.Loss.resolve("categorical_crossentropy"), losses.CategoricalCrossEntropy)
    assert isinstance(losses.Loss.resolve("mean_squared_error"), losses.MeanSquaredError)
    with pytest.raises(ConfigurationError, match="no loss named 'hinge'; there are CategoricalCrossEntropy"):
        losses.Loss.resolve("hinge")


def test_accuracy_counts_right_answers(backend):
    accuracy = metrics.Accuracy()
    y = backend.from_host(np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]))
    for labels in (np.array([1, 1, 1]), np.array([[0, 1], [0, 1], [0, 1]])):
        assert int(backend.to_host(accuracy.batch_sum(y, backend.from_host(labels)))) == 2


def test_metric_totals_are_means_over_samples_not_over_batches(backend):
    totals = metrics.RunningMeans(backend, [metrics.Accuracy()])
    for loss, outputs, labels in ((1.0, [[0.0, 1.0]] * 3, [1, 1, 0]), (5.0, [[0.0, 1.0]], [1])):
        totals.add(*(backend.from_host(np.array(array)) for array in (loss, outputs, labels)))
    assert totals.read() == pytest.approx({"loss": (3 * 1.0 + 5.0) / 4, "accuracy": 3 / 4})
