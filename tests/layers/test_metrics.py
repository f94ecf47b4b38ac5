"""Accuracy in the form that loss and labels call for, refused where it means nothing; and which way is better."""

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, layers, losses, metrics, optimizers
from gpucnn.errors import ConfigurationError

RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.standard_normal((64, 6)).astype("float32")
IMAGES = RANDOM.random((12, 6, 5, 2), dtype=np.float32)
ONES = (FEATURES[:, :3] > 0).astype("float32")
MAP = RANDOM.integers(0, 3, (12, 6, 5))
ROWS = np.eye(3)


def compiled(*network, shape=(6,), loss="mean_squared_error", metrics="auto", backend="numpy"):
    model = gpucnn.Model(list(network), shape, backend=backend)
    return model.compile(optimizers.SGD(0.01), loss, metrics)


def classes(loss="categorical_crossentropy", **options):
    return compiled(layers.Dense(3), layers.Softmax(), loss=loss, **options)


def pixels(units, last, loss, **options):
    return compiled(layers.Conv2D(units, 3, padding="same"), last, shape=(6, 5, 2), loss=loss, **options)


def above_half(y, labels):
    return ((y > 0.5) == labels).mean()


def largest(y, labels):
    return (y.argmax(axis=-1) == (labels if labels.ndim < y.ndim else labels.argmax(axis=-1))).mean()


CROSS_ENTROPY, MSE = "categorical_crossentropy", "mean_squared_error"
FORMS = {  # model, inputs, labels, and what accuracy is
    "class numbers": (classes, FEATURES, ONES.argmax(axis=1), largest),
    "one-hot rows": (classes, FEATURES, ROWS[ONES.argmax(axis=1)], largest),
    "squared error of class numbers": (lambda **o: classes(MSE, **o), FEATURES, ONES.argmax(axis=1), largest),
    "squared error of one-hot rows": (lambda **o: classes(MSE, **o), FEATURES, ROWS[ONES.argmax(axis=1)], largest),
    "one output": (lambda **o: compiled(layers.Dense(1), layers.Sigmoid(), **o), FEATURES, ONES[:, :1], above_half),
    "one output, bools": (lambda **o: compiled(layers.Dense(1), **o), FEATURES, ONES[:, :1] > 0, above_half),
    "one output, uint8": (
        lambda **o: compiled(layers.Dense(1), **o),
        FEATURES,
        ONES[:, :1].astype("uint8"),
        above_half,
    ),
    "several tags": (lambda **o: compiled(layers.Dense(3), layers.Sigmoid(), **o), FEATURES, ONES, above_half),
    "a map of classes": (lambda **o: pixels(3, layers.Softmax(), CROSS_ENTROPY, **o), IMAGES, MAP, largest),
    "one-hot maps": (lambda **o: pixels(3, layers.Softmax(), CROSS_ENTROPY, **o), IMAGES, ROWS[MAP], largest),
    "a mask": (lambda **o: pixels(1, layers.Sigmoid(), MSE, **o), IMAGES, MAP[..., None] > 1, above_half),
}


@pytest.mark.parametrize("chosen", ["auto", ["accuracy"]], ids=["default", "asked for"])
@pytest.mark.parametrize("form", FORMS)
def test_accuracy_has_the_form_of_loss_and_labels(form, chosen, backend):
    make, x, y, expected = FORMS[form]
    model = make(metrics=chosen, backend=backend)
    assert model.evaluate(x, y, batch_size=5)["accuracy"] == pytest.approx(expected(model.predict(x), y), abs=1e-12)
    history = model.fit(x, y, validation_data=(x[:7], y[:7]), batch_size=5, verbose=0)
    assert history["val_accuracy"][0] == pytest.approx(expected(model.predict(x[:7]), y[:7]), abs=1e-12)


def test_accuracy_of_logits_has_its_threshold_at_zero():
    class OnLogits(losses.MeanSquaredError):
        from_logits = True

    y = metrics.Accuracy().suited(OnLogits(), (1,), [ONES[:, :1]])
    assert float(y.batch_sum(np.array([[0.3], [-0.3], [0.7]]), np.array([[1.0], [1.0], [1.0]]))) == 2


MEANINGLESS = {
    "a regression": (lambda **o: compiled(layers.Dense(1), **o), FEATURES, FEATURES[:, :1]),
    "a regression of whole numbers": (
        lambda **o: compiled(layers.Dense(2), **o),
        FEATURES,
        MAP[:64, 0, :2].repeat(6, 0)[:64],
    ),
    "an autoencoder": (lambda **o: pixels(2, layers.Sigmoid(), MSE, **o), IMAGES, IMAGES),
    "an autoencoder of bytes": (
        lambda **o: pixels(2, layers.Sigmoid(), MSE, **o),
        (255 * IMAGES).astype("uint8"),
        (255 * IMAGES).astype("uint8"),
    ),
}


@pytest.mark.parametrize("case", MEANINGLESS)
def test_accuracy_that_means_nothing_is_left_out_or_refused(case):
    make, x, y = MEANINGLESS[case]
    model = make()
    assert "accuracy" not in model.fit(x, y, validation_data=(x, y), verbose=0).history
    assert set(model.evaluate(x, y)) == {"loss"}
    model = make(metrics=["accuracy"])
    before = model.state_dict()
    for verb in (model.fit, model.evaluate):
        with pytest.raises(ConfigurationError, match=r"accuracy means nothing for outputs \(N, .*metrics=\[\]"):
            verb(x, y)
    assert all(np.array_equal(array, model.state_dict()[path]) for path, array in before.items())


def test_accuracy_of_tags_stays_that_of_elements():
    """A part of the samples may have one tag each by chance; and validation data decide with the training data."""
    model = compiled(layers.Dense(3), layers.Sigmoid())
    single = ONES.sum(axis=1) == 1
    history = model.fit(FEATURES, ONES, validation_data=(FEATURES[single], ONES[single]), verbose=0)
    expected = above_half(model.predict(FEATURES[single]), ONES[single])
    assert history["val_accuracy"] == [pytest.approx(expected)]
    assert model.evaluate(FEATURES[single], ONES[single])["accuracy"] == pytest.approx(expected)


def test_metrics_none_measures_nothing():
    for nothing in (None, [], ()):
        assert set(classes(metrics=nothing).evaluate(FEATURES, ONES.argmax(axis=1))) == {"loss"}


def test_metrics_chosen_by_the_data_are_so_after_loading(tmp_path):
    path = tmp_path / "m.safetensors"
    compiled(layers.Dense(1), layers.Sigmoid()).save(path)
    loaded = gpucnn.load(path, backend="numpy")
    assert "accuracy" in loaded.evaluate(FEATURES, ONES[:, :1])
    assert "accuracy" not in loaded.evaluate(FEATURES, RANDOM.random((len(FEATURES), 1)))


class Top2(metrics.Metric):
    """The fraction of samples whose class is among the two largest outputs."""

    name = "top_2"
    larger_is_better = True

    def batch_sum(self, y, labels):
        return (y.argsort(axis=-1)[:, -2:] == labels[:, None]).sum()


class Named(Top2):
    def __init__(self, name):
        self.name = name


class Silent(Top2):
    name = "score"
    larger_is_better = None


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["accuracy", "accuracy"], "two metrics are named 'accuracy'; leave one of them out"),
        ([metrics.Accuracy(), Named("accuracy")], "two metrics are named 'accuracy'"),
        ([Named("loss")], r"is named 'loss', which the history uses itself \(loss, learning_rate"),
        ([Named("seconds")], "is named 'seconds'"),
        ([Named("val_f1")], "is named 'val_f1'"),
        ([Named("cumulative_f1")], "is named 'cumulative_f1'"),
        ([Named("")], "the metric Named has no name"),
        ([len], "each of metrics must be a metric or its name, not .* derived from gpucnn.metrics.Metric"),
        ([metrics.Accuracy], r"pass an object, Accuracy\(\)"),
        ([None], "each of metrics must be a metric or its name, not None"),
        ("accuracy", r"metrics must be a list, not 'accuracy'; pass \['accuracy'\]"),
    ],
)
def test_metrics_that_the_history_cannot_hold_are_refused(chosen, message):
    with pytest.raises(ConfigurationError, match=message):
        classes(metrics=chosen)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, labels: 0, "derived from gpucnn.losses.Loss whose __call__"),
        (losses.MeanSquaredError, r"pass an object, MeanSquaredError\(\)"),
        (None, "loss must be a loss or its name, not None"),
    ],
)
def test_loss_of_another_type_is_refused(loss, message):
    with pytest.raises(ConfigurationError, match=message):
        classes(loss)


# --- which way is better -------------------------------------------------------------------------


class Scripted(callbacks.Callback):
    """Passes custom metrics to another callback."""

    def __init__(self, key, values, inner):
        self.key, self.values, self.inner = key, values, inner

    def on_fit_begin(self, model):
        self.inner.on_fit_begin(model)

    def on_epoch_end(self, model, epoch, logs):
        self.inner.on_epoch_end(model, epoch, logs | {self.key: self.values[epoch]})


def stopped_after(monitor, values, chosen=("accuracy",), **options):
    """Return the best epoch, and how many there were, where a key of the history takes these values."""
    stopping = callbacks.EarlyStopping(monitor, patience=2, restore_best_weights=False, **options)
    labels = ONES.argmax(axis=1)
    history = classes(metrics=list(chosen)).fit(
        FEATURES, labels, epochs=len(values), callbacks=[Scripted(monitor, values, stopping)], verbose=0
    )
    return stopping.best_epoch, history.epochs


RISING, FALLING = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("monitor", "values", "options"),
    [
        ("val_loss", FALLING, {}),
        ("val_accuracy", RISING, {}),
        ("cumulative_accuracy", RISING, {}),
        ("val_top_2", RISING, {"chosen": [Top2()]}),
        ("val_score", RISING, {"chosen": [Silent()], "mode": "max"}),
        ("val_score", FALLING, {"chosen": [Silent()], "mode": "min"}),
        ("val_accuracy", FALLING, {"mode": "min"}),
        ("learning_rate", FALLING, {}),
    ],
)
def test_early_stopping_follows_the_direction_of_the_metric(monitor, values, options):
    assert stopped_after(monitor, values, **options) == (4, 5)
    assert stopped_after(monitor, values[::-1], **options) == (0, 3)


def test_metric_that_does_not_say_which_direction_is_better_is_refused(tmp_path):
    message = (
        r"it is not known whether a larger 'val_score' is better; pass mode=\"max\" or mode=\"min\", or set larger_is_b"
    )
    model, labels = classes(metrics=[Silent()]), ONES.argmax(axis=1)
    data = {"validation_data": (FEATURES, labels), "verbose": 0}
    with pytest.raises(ConfigurationError, match=message):
        model.fit(FEATURES, labels, callbacks=[callbacks.EarlyStopping("val_score")], **data)
    with pytest.raises(ConfigurationError, match=message):
        model.fit(FEATURES, labels, checkpoints=gpucnn.Checkpoints(tmp_path / "a", monitor="val_score"), **data)
    for mode in ("up", None, True):
        with pytest.raises(ConfigurationError, match="mode must be one of 'auto', 'min', 'max', not"):
            callbacks.EarlyStopping(mode=mode)
        with pytest.raises(ConfigurationError, match="mode must be one of 'auto', 'min', 'max', not"):
            gpucnn.Checkpoints(tmp_path, mode=mode)


@pytest.mark.parametrize(
    ("metric", "mode", "best"), [(Top2(), "auto", max), (Silent(), "max", max), (Silent(), "min", min)]
)
def test_best_model_follows_the_direction_of_the_metric(tmp_path, metric, mode, best):
    model, labels = classes(metrics=[metric]), ONES.argmax(axis=1)
    model.compile(optimizers.SGD(0.3), metrics=[metric])
    ckpt = gpucnn.Checkpoints(tmp_path / "run", monitor=f"val_{metric.name}", mode=mode)
    history = model.fit(
        FEATURES, labels, epochs=6, batch_size=16, validation_data=(FEATURES, labels), checkpoints=ckpt, verbose=0
    )
    values = history[f"val_{metric.name}"]
    assert len(set(values)) > 1
    assert ckpt.best["value"] == best(values)
    assert ckpt.best["epoch"] == values.index(best(values))
