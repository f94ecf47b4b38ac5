"""Runs that go wrong, each provoked, and the one that does not."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn import losses, optimizers
from gpucnn.callbacks.defects import TrainingMonitor, histograms, load_report
from gpucnn.errors import CheckpointError, ConfigurationError


def task(count=400):
    """Which third of six numbers is largest: easily learned."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, count)
    x = generator.normal(0, 0.3, (count, 6)).astype("float32")
    x[np.arange(count), 2 * y] += 2
    return x, y


def network(rate=0.1, momentum=0.0, seed=0):
    layers = [L.Dense(8), L.ReLU(), L.Dense(3), L.Softmax()]
    return gpucnn.Model(layers, (6,), seed=seed, backend="numpy").compile(optimizers.SGD(rate, momentum=momentum))


def watched(model, x, y, epochs=4, callbacks=(), check_numerics=True, **options):
    watch = TrainingMonitor((x[:200], y[:200]), every=5, **{"grace_steps": 20, **options})
    callbacks = [*callbacks, watch]
    history = model.fit(
        x, y, epochs=epochs, batch_size=20, verbose=0, callbacks=callbacks, check_numerics=check_numerics
    )
    return watch, history


def test_defect_watch_finds_nothing_in_a_good_run():
    watch, history = watched(network(), *task())
    assert watch.defect is None
    assert history.epochs == 4
    assert [look["step"] for look in watch.observations] == [*range(5, 81, 5), 80]
    assert watch.observations[-1]["accuracy"] > 0.95
    assert set(watch.observations[-1]["dead"]) == {"relu"}
    assert watch.report()["defect"] is None


def test_defect_of_random_labels_is_not_learning():
    x, y = task()
    watch, _ = watched(network(rate=0.001), x, np.random.default_rng(9).permutation(y))
    assert watch.defect.kind in ("not learning", "single-class predictions")
    assert watch.defect.step == 20
    assert "chance is 33.3%" in watch.defect.detail or "is predicted" in watch.defect.detail


def test_defect_of_one_predicted_class_is_collapse():
    x, y = task()
    model = network(rate=1e-9)
    model.parameters()["dense_1.bias"].value[...] = [0, 50, 0]
    watch, _ = watched(model, x, y)
    assert watch.defect.kind == "single-class predictions"
    assert watch.defect.detail == "class 1 is predicted for 100%"


def test_defect_of_units_that_never_fire_is_a_dead_layer():
    x, y = task()
    model = network(rate=1e-9)
    model.parameters()["dense.bias"].value[...] = -100
    watch, _ = watched(model, x, y)
    assert (watch.defect.kind, watch.defect.layer) == ("dead ReLUs", "relu")
    assert watch.defect.detail == "100% of its units never fire"
    assert watch.observations[-1]["dead"] == {"relu": 1.0}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_defect_of_non_finite_weights_is_divergence():
    x, y = task()
    model = gpucnn.Model([L.Dense(8, name="first"), L.Dense(3, name="second")], (6,), backend="numpy")
    model.compile(optimizers.SGD(1e4), losses.MeanSquaredError(), metrics=["accuracy"])
    watch, history = watched(model, x, y, epochs=6, on_defect="stop", check_numerics=False)
    assert (watch.defect.kind, watch.defect.layer) == ("diverged", "first")
    assert watch.defect.detail == "its weight holds NaN in the forward pass"
    assert history.epochs < 6
    assert watch.histograms["first.weight"]["not_finite"] == 48


def test_defect_of_non_finite_outputs_names_the_layer():
    x, y = task()

    class Explodes(L.Layer):
        def forward(self, x, *, train):
            return x * float("inf"), lambda dy: dy

    model = gpucnn.Model([L.Dense(3), Explodes(name="explodes")], (6,), backend="numpy")
    watch = TrainingMonitor((x, y))
    watch.on_fit_begin(model)
    watch.on_fit_end(model)
    assert (watch.defect.kind, watch.defect.layer) == ("diverged", "explodes")
    assert watch.defect.detail == "its output holds infinity in the forward pass"


def test_defect_of_a_run_that_forgets_is_breakdown():
    x, y = task()

    class Forgets(gpucnn.callbacks.Callback):
        def on_epoch_end(self, model, epoch, logs):
            if epoch == 2:
                model.parameters()["dense.weight"].value[...] = 0
                model.parameters()["dense.bias"].value[...] = -100

    watch, history = watched(network(), x, y, epochs=8, callbacks=[Forgets()], on_defect="stop")
    assert (watch.defect.kind, watch.defect.layer) == ("late collapse", "relu")
    assert watch.defect.step == 75  # the third look in a row
    assert "accuracy fell from" in watch.defect.detail
    assert history.epochs == 4  # it stopped in the fourth


def test_defect_watch_allows_a_dip_that_recovers():
    x, y = task()
    model = network()
    model.fit(x, y, epochs=4, batch_size=20, verbose=0)
    good, bad = model.state_dict(), {path: 0 * value for path, value in model.state_dict().items()}
    watch = TrainingMonitor((x[:200], y[:200]), every=1, grace_steps=2)
    watch.on_fit_begin(model)
    for state in (good, bad, bad, good, bad, bad):
        model.load_state_dict(state)
        watch.on_step_end(model, 0)
    assert [look["accuracy"] > 0.9 for look in watch.observations] == [True, False, False, True, False, False]
    assert watch.defect is None
    watch.on_step_end(model, 0)
    assert watch.defect.kind == "late collapse"  # the third look in a row


def test_defect_does_not_stop_the_run():
    x, y = task()
    model = network(rate=1e-9)
    model.parameters()["dense.bias"].value[...] = -100
    watch, history = watched(model, x, y, on_defect="flag")
    assert watch.defect.kind == "dead ReLUs"
    assert history.epochs == 4
    assert str(watch.defect) == "dead ReLUs in relu at step 20: 100% of its units never fire"


def test_defect_watch_spans_several_fits():
    """Steps, and a defect that was found, are kept from fit to fit; another model starts afresh."""
    x, y = task()
    watch = TrainingMonitor((x[:200], y[:200]), every=5, grace_steps=30)
    model = network(rate=1e-9)
    model.parameters()["dense.bias"].value[...] = -100
    for _ in range(3):
        model.fit(x, y, epochs=1, batch_size=20, verbose=0, callbacks=[watch])
    assert (watch.defect.kind, watch.defect.step) == ("dead ReLUs", 30)  # in the second fit, of 20 steps each
    network().fit(x, y, epochs=2, batch_size=20, verbose=0, callbacks=[watch])
    assert watch.defect is None
    assert watch.observations[0]["step"] == 5


def test_defect_histograms_count_every_number():
    x, y = task()
    model = network()
    model.train_on_batch(x, y)
    found = histograms(model)
    assert set(found) == {f"{p}{g}" for p in model.parameters() for g in ("", " gradient")}
    weight = model.parameters()["dense.weight"].value.astype("float64")
    counts, edges = np.histogram(weight, bins=40)
    assert found["dense.weight"]["counts"] == counts.tolist()
    assert np.allclose(found["dense.weight"]["edges"], edges)
    assert found["dense.weight"]["not_finite"] == 0


def test_defect_report_is_saved_and_loaded(tmp_path):
    x, y = task()
    model = network(rate=1e-9)
    model.parameters()["dense.bias"].value[...] = -100
    watch, _ = watched(model, x, y)
    watch.save(tmp_path)
    held = load_report(tmp_path)
    assert {key: held[key] for key in ("defect", "observations", "histograms")} == watch.report()
    assert held["defect"]["kind"] == "dead ReLUs"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "this run was not monitored for defects"),
        ("{", "cannot be read as JSON"),
        ("[1]", "has format None, expected 1"),
        ('{"format": 9}', "has format 9, expected 1"),
        (
            '{"format": 1, "defect": {"kind": "x"}, "observations": [], "histograms": {}}',
            "is not a TrainingMonitor.s report",
        ),
        ('{"format": 1, "defect": null, "observations": 5, "histograms": {}}', "is not a TrainingMonitor.s report"),
    ],
)
def test_defect_report_that_is_damaged_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "defects.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_report(tmp_path)


def test_defect_watch_changes_nothing():
    x, y = task()
    plain, seen = network(), network()
    plain.fit(x, y, epochs=2, batch_size=20, verbose=0)
    watched(seen, x, y, epochs=2)
    assert np.array_equal(plain.predict(x), seen.predict(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_defect": "restart"}, "on_defect must be one of 'flag', 'stop'"),
        ({"every": 0}, "every must be a positive integer, not 0"),
        ({"grace_steps": 1.5}, "grace_steps must be a positive integer"),
    ],
)
def test_defect_watch_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        TrainingMonitor(task(), **options)
    with pytest.raises(ConfigurationError, match="one per input"):
        TrainingMonitor((task()[0], task()[1][:5]))


@pytest.mark.parametrize("network", [[L.Dense(1), L.Sigmoid()], [L.Dense(3)]])
def test_defect_watch_needs_classes(network):
    x, y = np.zeros((8, 4), "float32"), np.zeros((8, network[0].units), "float32")
    model = gpucnn.Model(network, (4,), backend="numpy").compile("sgd", "mean_squared_error")
    with pytest.raises(
        ConfigurationError, match=r"TrainingMonitor compares class indices \(N,\) with outputs \(N, K\)"
    ):
        model.fit(x, y, callbacks=[TrainingMonitor((x, y))], verbose=0)
