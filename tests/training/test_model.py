"""The model: building, training, scoring, predicting, and what it reads back from the device."""

import json
import math

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, layers, losses, networks, optimizers, schedules
from gpucnn.errors import CheckpointError, ConfigurationError, ShapeError
from gpucnn.testing.strict import StrictBackend
from gpucnn.training.history import History
from tests.helpers import small_model, stripes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.smoke
def test_fit_learns_and_moves_every_parameter(backend, dtype):
    """A network with dead filters still learns, so each element of each parameter must have moved."""
    x, y = stripes(300)
    model = small_model(backend=backend, dtype=dtype)
    before = model.state_dict()
    history = model.fit(x, y, epochs=4, batch_size=32, validation_data=stripes(100, seed=1), verbose=0)
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["val_accuracy"][-1] > 0.95
    after = model.state_dict()
    for path in model.parameters():
        assert after[path].dtype == dtype
        assert np.isfinite(after[path]).all(), path
        assert (after[path] != before[path]).all(), (
            f"{path}: {(after[path] == before[path]).sum()} elements stood still"
        )


def test_fit_twice_gives_the_same_bits(backend):
    x, y = stripes(100)
    states = []
    for _ in range(2):
        model = small_model(backend=backend)
        model.fit(x, y, epochs=2, batch_size=32, verbose=0)
        states.append(model.state_dict())
    assert all(states[0][path].tobytes() == states[1][path].tobytes() for path in states[0])
    other = small_model(seed=1, backend=backend).state_dict()
    assert (other["conv2d.weight"] != small_model(backend=backend).state_dict()["conv2d.weight"]).all()


@pytest.mark.smoke
def test_fit_is_the_same_on_all_backends(backend):
    """The same first weights, batches and dropout masks; float64 arithmetic keeps two steps together."""
    x, y = stripes(64)
    models = [small_model(backend=name, dtype="float64") for name in (backend, "numpy")]
    for model in models:
        model.fit(x, y, epochs=2, batch_size=32, verbose=0)
    ours, theirs = (model.state_dict() for model in models)
    for path, array in ours.items():
        assert array == pytest.approx(theirs[path], rel=1e-9, abs=1e-12), path


@pytest.mark.smoke
def test_gradient_of_a_whole_network(backend):
    """The gradient that a training step follows, softmax and loss fused, against central differences."""
    x, y = stripes(3)
    model = gpucnn.Model(
        [
            layers.Conv2D(2, 3),
            layers.Tanh(),
            layers.AveragePool2D(2),
            layers.Flatten(),
            layers.Dense(3),
            layers.Softmax(),
        ],
        (8, 8, 1),
        backend=backend,
        dtype="float64",
    )
    model.compile(optimizers.SGD(0.0), losses.CategoricalCrossEntropy(label_smoothing=0.1))
    model.train_on_batch(x, y)
    gradients = {path: backend.to_host(p.grad).copy() for path, p in model.parameters().items()}
    state, step = model.state_dict(), 1e-6
    for path, gradient in gradients.items():
        for index in [(0,) * gradient.ndim, tuple(side - 1 for side in gradient.shape)]:
            values = []
            for sign in (1, -1):
                changed = state[path].copy()
                changed[index] += sign * step
                model.load_state_dict(state | {path: changed})
                values.append(model.evaluate(x, y)["loss"])
            assert gradient[index] == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-7), path


def test_forward_and_backward(backend):
    x, _ = stripes(5)
    model = small_model(backend=backend, dtype="float64")
    y, backward = model.forward(x, train=True)
    dy = np.random.default_rng(0).standard_normal(y.shape)  # not all alike: a softmax has no gradient for that
    dx = backward(backend.from_host(dy))
    owner = type(backend.from_host(np.zeros(1)))
    assert type(y) is type(dx) is owner
    assert (tuple(y.shape), tuple(dx.shape)) == ((5, 3), (5, 8, 8, 1))
    gradients = {path: backend.to_host(parameter.grad) for path, parameter in model.parameters().items()}
    assert all(np.abs(gradient).max() > 1e-3 for path, gradient in gradients.items() if "dense" in path)
    model.zero_grad()
    assert not any(backend.to_host(p.grad).any() for p in model.parameters().values())


def test_predict_returns_host_arrays_for_any_batch_size(backend):
    x, _ = stripes(50)
    model = small_model(backend=backend)
    whole, parts = model.predict(x), model.predict(x, batch_size=7)
    assert type(whole) is np.ndarray
    assert whole.shape == (50, 3)
    assert whole.dtype == np.float32
    assert whole.sum(axis=1) == pytest.approx(np.ones(50), abs=1e-6)
    assert parts == pytest.approx(whole, abs=1e-6)


def test_inputs_of_uint8_count_as_zero_to_one():
    x, y = stripes(20)
    model = small_model()
    floats = x.astype("float32") / 255
    assert np.array_equal(model.predict(x), model.predict(floats))
    assert model.predict(x.astype("float64") / 255).dtype == np.float32
    assert model.evaluate(x, y) == model.evaluate(floats, y)


def test_evaluate_averages_over_samples():
    x, y = stripes(50)
    model = small_model()
    probabilities = model.predict(x)
    expected = {
        "loss": -np.log(probabilities[np.arange(50), y]).mean(),
        "accuracy": (probabilities.argmax(axis=1) == y).mean(),
    }
    for batch_size in (50, 16, 1):
        assert model.evaluate(x, y, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


def test_labels_one_hot_and_integer_train_alike():
    x, y = stripes(64)
    states = []
    for labels in (y, np.eye(3)[y], y.astype("uint8")):
        model = small_model()
        model.fit(x, labels, epochs=1, batch_size=32, verbose=0)
        states.append(model.state_dict()["dense.weight"])
    assert np.array_equal(states[0], states[1])
    assert np.array_equal(states[0], states[2])


def test_mean_squared_error_trains_a_regression():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3))
    y = x @ [[1.0], [-2.0], [0.5]] + 0.25
    model = gpucnn.Model([layers.Dense(1)], (3,), backend="numpy")
    model.compile(optimizers.Adam(0.05), losses.MeanSquaredError(), metrics=[])
    history = model.fit(x, y, epochs=40, batch_size=32, verbose=0)
    assert set(history.history) == {"loss", "cumulative_loss", "learning_rate", "seconds", "seconds_per_step"}
    assert history["loss"][-1] < 1e-3
    assert model.state_dict()["dense.weight"].ravel() == pytest.approx([1.0, -2.0, 0.5], abs=0.02)


def test_history_per_epoch_and_cumulative():
    x, y = stripes(100)
    model = small_model()
    history = model.fit(x, y, epochs=3, batch_size=40, verbose=0, validation_data=(x, y))
    assert history.epochs == 3
    for key in ("loss", "accuracy"):
        running = [sum(history[key][: n + 1]) / (n + 1) for n in range(3)]
        assert history[f"cumulative_{key}"] == pytest.approx(running)
    assert len(history["val_loss"]) == len(history["seconds"]) == len(history["val_seconds"]) == 3
    assert all(seconds > 0 for seconds in history["seconds"])
    assert history["val_accuracy"][-1] == model.evaluate(x, y)["accuracy"]


def test_history_is_saved_as_plain_json(tmp_path):
    history = History({"loss": [1.0, 0.5]})
    history.save(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text()) == {"loss": [1.0, 0.5]}
    assert repr(history) == "<History of 2 epochs, the last: {'loss': 0.5}>"


def test_fit_reads_nothing_back_inside_an_epoch():
    """Reads do not grow with the number of steps: only an epoch's sums are read, when it is over."""
    backend = StrictBackend()
    x, y = stripes(320)
    reads = {}
    for batch_size in (160, 8):
        model = small_model(backend=backend)
        before = backend.reads
        model.fit(x, y, epochs=2, batch_size=batch_size, verbose=0)
        reads[batch_size] = backend.reads - before
    assert reads[160] == reads[8] == 2 * 3  # loss, accuracy and the first bad step, two epochs


def test_train_on_batch_leaves_the_loss_on_the_device():
    backend = StrictBackend()
    x, y = stripes(32)
    model = small_model(backend=backend)
    before = backend.reads
    losses_seen = [model.train_on_batch(x, y) for _ in range(20)]
    assert backend.reads == before
    assert float(losses_seen[-1]) < float(losses_seen[0])


def test_learning_rate_follows_its_schedule():
    rates = []

    class Observer(callbacks.Callback):
        def on_step_end(self, model, step):
            rates.append(model.optimizer.steps)

    x, y = stripes(64)
    model = small_model(optimizer=optimizers.SGD(schedules.PiecewiseLinear([(0, 0.0), (1, 0.1), (2, 0.0)])))
    history = model.fit(x, y, epochs=2, batch_size=16, callbacks=[Observer()], verbose=0)
    assert rates == list(range(1, 9))
    assert history["learning_rate"] == pytest.approx([0.075, 0.025])
    still = small_model(optimizer=optimizers.SGD(0.0))
    before = still.state_dict()
    still.fit(x, y, epochs=1, batch_size=16, verbose=0)
    assert all(np.array_equal(before[path], still.state_dict()[path]) for path in still.parameters())


def test_callbacks_are_called_in_order():
    calls = []

    class Diary(callbacks.Callback):
        def on_fit_begin(self, model):
            calls.append("begin")

        def on_epoch_begin(self, model, epoch):
            calls.append(f"epoch {epoch}")

        def on_step_end(self, model, step):
            calls.append(f"step {step}")

        def on_epoch_end(self, model, epoch, logs):
            calls.append(f"end {epoch} {'val_loss' in logs}")
            model.stop_training = epoch == 1

        def on_fit_end(self, model):
            calls.append("over")

    x, y = stripes(20)
    history = small_model().fit(x, y, epochs=5, batch_size=10, callbacks=[Diary()], validation_data=(x, y), verbose=0)
    epochs = [f"{word}" for e in (0, 1) for word in (f"epoch {e}", "step 0", "step 1", f"end {e} True")]
    assert calls == ["begin", *epochs, "over"]
    assert history.epochs == 2


def test_early_stopping_restores_the_best_weights():
    x, y = stripes(60)
    model = small_model(optimizer=optimizers.SGD(3.0))  # far too fast: the loss gets worse at once
    stopping = callbacks.EarlyStopping("val_loss", patience=2)
    kept = {}

    class Keep(callbacks.Callback):
        def on_epoch_end(self, model, epoch, logs):
            kept[epoch] = model.state_dict(), logs["val_loss"]

    model.fit(x, y, epochs=30, batch_size=20, callbacks=[Keep(), stopping], validation_data=(x, y), verbose=0)
    best = min(kept, key=lambda epoch: kept[epoch][1])
    assert stopping.best_epoch == best
    assert len(kept) == best + 1 + 2 < 30
    assert all(np.array_equal(array, model.state_dict()[path]) for path, array in kept[best][0].items())


def test_early_stopping_names_a_missing_quantity():
    x, y = stripes(10)
    with pytest.raises(ConfigurationError, match="monitors 'val_loss', but an epoch reports only accuracy"):
        small_model().fit(x, y, callbacks=[callbacks.EarlyStopping()], verbose=0)


def test_early_stopping_patience_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="patience must be a positive integer, not 0"):
        callbacks.EarlyStopping(patience=0)


def test_data_order_goes_on_over_two_fits():
    x, y = stripes(40)
    together, apart = small_model(), small_model()
    together.fit(x, y, epochs=2, batch_size=10, verbose=0)
    for _ in range(2):
        apart.fit(x, y, epochs=1, batch_size=10, verbose=0)
    assert np.array_equal(together.state_dict()["dense.weight"], apart.state_dict()["dense.weight"])


def test_shuffle_off_keeps_the_order_of_samples():
    x, y = stripes(32)
    plain, by_hand = small_model(), small_model()
    plain.fit(x, y, epochs=1, batch_size=16, shuffle=False, verbose=0)
    for start in (0, 16):
        by_hand.train_on_batch(x[start : start + 16], y[start : start + 16])
    assert np.array_equal(plain.state_dict()["dense.weight"], by_hand.state_dict()["dense.weight"])


def test_moving_between_backends_keeps_the_training_state():
    """Half the training on one backend and half on another gives what one backend gives alone."""
    x, y = stripes(64)
    stay, move = small_model(dtype="float64"), small_model(dtype="float64")
    for model in (stay, move):
        model.fit(x, y, epochs=1, batch_size=16, verbose=0)
    move.to(StrictBackend())
    for model in (stay, move):
        model.fit(x, y, epochs=1, batch_size=16, verbose=0)
    moved = move.to("numpy").state_dict()
    for path, array in stay.state_dict().items():
        assert moved[path] == pytest.approx(array, rel=1e-12), path


def test_parameters_are_views_of_one_flat_buffer_and_can_be_assigned():
    model = small_model()
    parameter = model.parameters()["conv2d.weight"]
    before = parameter.value
    parameter.value = np.full(parameter.shape, 0.5)
    assert parameter.value is before
    assert model.state_dict()["conv2d.weight"].max() == 0.5
    with pytest.raises(ShapeError, match=r"shape \(3, 3, 1, 4\) cannot take values of shape \(3,\)"):
        parameter.value = np.zeros(3)


def test_gradient_of_a_wrong_shape_is_named():
    with pytest.raises(ShapeError, match=r"shape \(2, 3\) got a gradient of shape \(3,\); the backward pass"):
        layers.Parameter(np.zeros((2, 3))).add_grad(np.zeros(3))


def test_normalization_adapts_to_data():
    x, y = stripes(200)
    model = gpucnn.Model([layers.Normalization(), layers.Flatten(), layers.Dense(3), layers.Softmax()], (8, 8, 1))
    model.compile()
    with pytest.raises(ConfigurationError, match="neither mean nor std"):
        model.fit(x, y, verbose=0)
    model.layers[0].adapt(x)
    seen = model.backend.to_host(model.layers[0].forward(model.as_floats(model.backend.from_host(x)), train=True)[0])
    assert abs(seen.mean()) < 1e-5
    assert seen.std() == pytest.approx(1.0, abs=1e-5)
    loaded = layers.Layer.from_config(model.layers[0].config())
    assert loaded.mean == model.layers[0].mean


def test_batch_norm_keeps_running_statistics_as_the_paper_says(backend):
    x = np.random.default_rng(0).normal(3.0, 2.0, (6, 2, 2, 3))
    layer = layers.BatchNorm(momentum=0.75)
    layer.ensure_built((2, 2, 3), None)
    layer.to(backend)
    layer.forward(backend.from_host(x), train=True)
    state = layer.state_dict()
    flat = x.reshape(-1, 3)
    assert state["running_mean"] == pytest.approx(0.25 * flat.mean(axis=0))
    assert state["running_var"] == pytest.approx(0.75 + 0.25 * flat.var(axis=0, ddof=1))


def test_batch_norm_on_a_batch_of_one_is_refused():
    layer = layers.BatchNorm(name="norm")
    layer.ensure_built((3,), None)
    with pytest.raises(ShapeError, match=r"norm: a batch of shape \(1, 3\) has one value a channel"):
        layer.forward(np.ones((1, 3)), train=True)
    assert layer.forward(np.ones((1, 3)), train=False)[0].shape == (1, 3)


def test_first_layer_skips_its_input_gradient(monkeypatch):
    asked = []
    backend = gpucnn.get_backend("numpy")
    original = type(backend).conv2d_gradients  # the kernel of who wants the input's gradient too
    monkeypatch.setattr(
        type(backend),
        "conv2d_gradients",
        lambda self, x, dy, *rest: asked.append(dy.shape) or original(self, x, dy, *rest),
    )
    x, y = stripes(8)
    model = small_model(backend=backend)
    model.train_on_batch(x, y)
    assert asked == [(8, 2, 2, 8)]  # the second convolution alone
    _, backward = model.forward(x, train=True)
    backward(np.ones((8, 3), "float32"))
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gpucnn.Model([], (3,)), ConfigurationError, "at least one layer"),
        (
            lambda: gpucnn.Model([layers.ReLU], (3,)),
            ConfigurationError,
            r"which is not a layer; did you mean ReLU\(\)\?",
        ),
        (lambda: gpucnn.Model(layers.Dense(3), (3,)), ConfigurationError, "expected a list of layers, not Dense"),
        (lambda: gpucnn.Model([layers.Dense(3)], 3), ConfigurationError, "input_shape must be the shape of one sample"),
        (lambda: gpucnn.Model([layers.Dense(3)], (0,)), ConfigurationError, r"not \(0,\)"),
        (lambda: gpucnn.Model([layers.Dense(3)], (3,), dtype="float16", backend="numpy"), ConfigurationError, "GPUs"),
        (lambda: gpucnn.Model([layers.Dense(3)], (3,), seed=-1), ConfigurationError, "seed must be .* not -1"),
        (lambda: gpucnn.Model([layers.Dense(3)], (4, 4, 1)), ShapeError, r"dense: expected features .* put Flatten"),
        (lambda: gpucnn.Model([layers.Conv2D(3, 3)], (4,)), ShapeError, r"conv2d: expected images \(H, W, C\)"),
        (
            lambda: gpucnn.Model([layers.Conv2D(2, 3), layers.Conv2D(2, 5)], (5, 5, 1)),
            ShapeError,
            'conv2d_1: kernel 5x5 does not fit a 3x3 input with padding 0; use padding="same" or a smaller kernel',
        ),
        (
            lambda: gpucnn.Model([layers.Conv2D(2, 3, dilation=2)], (4, 4, 1)),
            ShapeError,
            "kernel 3x3 dilated by 2x2 does not fit a 4x4 input",
        ),
        (
            lambda: gpucnn.Model([layers.MaxPool2D(3)], (2, 2, 1)),
            ShapeError,
            "max_pool2d: kernel 3x3 does not fit a 2x2 input",
        ),
        (
            lambda: gpucnn.Model([layers.AveragePool2D(2, padding=2)], (4, 4, 1)),
            ShapeError,
            "padding 2 is not smaller than the 2x2 window",
        ),
        (
            lambda: gpucnn.Model([layers.Conv2D(4, 3, groups=2)], (4, 4, 3)),
            ShapeError,
            "groups=2 must divide the 3 input channels and the 4 filters",
        ),
        (lambda: layers.Conv2D(0, 3), ConfigurationError, "conv2d: filters must be a positive integer, not 0"),
        (lambda: layers.Conv2D(2, 3.5), ConfigurationError, "conv2d: kernel_size must be an integer of at least 1"),
        (lambda: layers.Conv2D(2, (3, 3, 3)), ConfigurationError, r"a pair of them, not \(3, 3, 3\)"),
        (lambda: layers.Conv2D(2, 3, strides=0), ConfigurationError, "conv2d: strides must be an integer"),
        (lambda: layers.Conv2D(2, 3, padding="full"), ConfigurationError, '"valid", "same" or numbers, not \'full\''),
        (lambda: layers.Conv2D(2, 3, padding=-1), ConfigurationError, "padding must be an integer of at least 0"),
        (lambda: layers.Conv2D(2, 3, padding=((1, 2), (3,))), ConfigurationError, "each side of conv2d: padding must"),
        (lambda: layers.Dense(True), ConfigurationError, "dense: units must be a positive integer, not True"),
        (
            lambda: layers.Dropout(1.0),
            ConfigurationError,
            "dropout: rate, the fraction that is dropped, must be .* below 1",
        ),
        (lambda: layers.LeakyReLU(-1), ConfigurationError, "slope must be a number that is at least 0, not -1"),
        (
            lambda: layers.BatchNorm(1.0),
            ConfigurationError,
            "momentum must be a number .* and below 1, not 1.0",
        ),
        (lambda: layers.BatchNorm(epsilon=0), ConfigurationError, "epsilon must be a number that is above 0, not 0"),
        (lambda: layers.Normalization(0.5), ConfigurationError, "pass both, or neither"),
        (lambda: layers.Normalization(0.5, 0), ConfigurationError, "std must be positive, not 0"),
        (lambda: layers.Normalization("a", 1), ConfigurationError, "mean must be a finite number"),
        (
            lambda: gpucnn.Model([layers.Normalization([0.1, 0.2], [1, 1])], (4, 4, 3)),
            ShapeError,
            "mean has 2 numbers for 3 channels",
        ),
        (lambda: layers.Dense(3, name="my layer"), ConfigurationError, "a layer's name must be a word"),
        (
            lambda: layers.Sequential([layers.Dense(3, name="a"), layers.Dense(3, name="a")]),
            ConfigurationError,
            "two layers are named 'a'",
        ),
        (
            lambda: gpucnn.Model([layers.Residual([layers.Dense(4)])], (3,)),
            ShapeError,
            r"residual: main returns \(4,\) but the shortcut \(3,\)",
        ),
        (
            lambda: gpucnn.Model([d := layers.Dense(4), d], (3,)),
            ShapeError,
            r"dense: was built for inputs of shape \(3,\) and cannot be used again for \(4,\)",
        ),
        (lambda: layers.Dense(3, weight_initializer="random"), ConfigurationError, "no initializer named 'random'"),
        (lambda: networks.by_name("alexnet"), ConfigurationError, "no network named 'alexnet'; there are lenet"),
    ],
)
def test_networks_that_do_not_fit_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("last", "loss", "message"),
    [
        (layers.Dense(3), losses.CategoricalCrossEntropy(), "whose outputs are not probabilities; add layers.Softmax"),
        (
            layers.Softmax(),
            losses.CategoricalCrossEntropy(from_logits=True),
            "ends with Softmax, but the loss has from_logits",
        ),
        (layers.Tanh(), losses.CategoricalCrossEntropy(), "tanh, whose outputs are not probabilities"),
        (layers.BatchNorm(), losses.CategoricalCrossEntropy(), "batch_norm, whose outputs are not probabilities"),
        (
            layers.Sequential([layers.Softmax(), layers.Dense(3)]),
            losses.CategoricalCrossEntropy(),
            "dense, whose outputs are not probabilities",
        ),
        (layers.Dense(1), losses.CategoricalCrossEntropy(from_logits=True), "over a single class is always 0"),
    ],
)
def test_loss_that_does_not_fit_the_last_layer_is_refused(last, loss, message):
    model = gpucnn.Model([layers.Dense(3), last], (4,))
    with pytest.raises(ConfigurationError, match=message):
        model.compile("sgd", loss)


def test_loss_on_pooled_convolutions_wants_probabilities():
    network = [layers.Conv2D(3, 3), layers.GlobalAveragePool2D()]
    with pytest.raises(ConfigurationError, match="conv2d, whose outputs are not probabilities"):
        gpucnn.Model(network, (4, 4, 1)).compile()
    gpucnn.Model([*network, layers.Softmax()], (4, 4, 1)).compile()
    gpucnn.Model([layers.Conv2D(3, 3), layers.Softmax(), layers.Flatten()], (3, 3, 1)).compile()


@pytest.mark.parametrize("verb", ["fit", "evaluate", "train_on_batch"])
def test_fit_needs_compile(verb):
    model = gpucnn.Model([layers.Dense(3), layers.Softmax()], (4,))
    with pytest.raises(ConfigurationError, match="the model is not compiled"):
        getattr(model, verb)(np.ones((2, 4)), np.array([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"epochs": -1},
            "epochs must be a number that is at least 0, not -1; 2.5 is two epochs and half of a third",
        ),
        ({"epochs": -0.5}, "epochs must be a number that is at least 0, not -0.5"),
        ({"epochs": math.inf}, "epochs must be a number that is at least 0, not inf"),
        ({"epochs": math.nan}, "epochs must be a number that is at least 0, not nan"),
        ({"epochs": True}, "epochs must be a number that is at least 0, not True"),
        ({"epochs": "3"}, "epochs must be a number that is at least 0, not '3'"),
        ({"batch_size": 0}, "batch_size must be a positive integer, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a positive integer, not 2.5"),
    ],
)
def test_fit_refuses_numbers_out_of_range(arguments, message):
    x, y = stripes(4)
    with pytest.raises(ConfigurationError, match=message):
        small_model().fit(x, y, verbose=0, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_data": np.zeros((4, 8, 8, 1))}, r"validation_data must be a pair \(x, y\), not ndarray"),
        ({"callbacks": callbacks.Callback()}, r"callbacks must be a list, not <.*Callback.*>; pass \["),
        ({"validation_data": (1, 2, 3)}, r"a pair \(x, y\), not 3 items; .* sample weights are not supported"),
        ({"callbacks": [callbacks.Callback]}, r"and <class .*> is not one; pass an object: Callback\(…\)"),
        ({"verbose": "yes"}, r'verbose must be "auto", True, False, 0, 1 or 2, not \'yes\''),
        ({"verbose": 7}, "verbose must be .*, not 7"),
        ({"shuffle": "no"}, "shuffle must be True or False, not 'no'"),
        ({"check_numerics": None}, "check_numerics must be True or False, not None"),
        ({"callbacks": [print]}, "callbacks must be Callback objects, and <built-in function print> is not one"),
    ],
)
def test_fit_refuses_other_types(arguments, message):
    x, y = stripes(4)
    with pytest.raises(ConfigurationError, match=message):
        small_model().fit(x, y, **{"verbose": 0, **arguments})


def test_metric_class_without_brackets_is_refused():
    with pytest.raises(ConfigurationError, match=r"metrics must be a list, not 'accuracy'; pass \['accuracy'\]"):
        small_model().compile("sgd", losses.CategoricalCrossEntropy(), "accuracy")


def test_load_state_dict_names_the_wrong_entry_and_changes_nothing():
    model = small_model()
    before = model.state_dict()
    wrong = {path: array + 1 for path, array in before.items()}
    with pytest.raises(CheckpointError, match=r"missing dense\.bias; not known here nothing"):
        model.load_state_dict({path: array for path, array in wrong.items() if path != "dense.bias"})
    with pytest.raises(CheckpointError, match=r"missing nothing; not known here dense_9\.bias"):
        model.load_state_dict(wrong | {"dense_9.bias": before["dense.bias"]})
    with pytest.raises(CheckpointError, match=r"dense\.weight: this network holds shape \(8, 3\), the state \(3, 8\)"):
        model.load_state_dict(wrong | {"dense.weight": before["dense.weight"].T})
    assert all(np.array_equal(array, model.state_dict()[path]) for path, array in before.items())


def test_state_dict_returns_copies():
    model = small_model()
    model.state_dict()["conv2d.weight"][...] = math.nan
    assert np.isfinite(model.state_dict()["conv2d.weight"]).all()


def test_repr_of_a_model():
    assert repr(small_model()) == "<Model 'model': 12 layers, (8, 8, 1) → (3,), 367 parameters, float32 on numpy>"


def method(name, function):
    return type("Mine", (callbacks.Callback,), {name: function})()


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        (
            "on_train_begin",
            lambda self, logs=None: None,
            "on_train_begin, which nothing calls; here it is on_fit",
        ),
        ("on_epochs_end", lambda self, model: None, "on_epochs_end, which nothing calls; there are on_epoch_begin"),
        ("on_epoch_end", lambda self, epoch, logs=None: None, r"write on_epoch_end\(self, model, epoch, logs\)"),
        ("on_epoch_begin", lambda self, epoch, logs=None: None, r"on_epoch_begin\(self, epoch, logs\) is called with"),
        ("on_fit_end", lambda self: None, r"write on_fit_end\(self, model\)"),
        ("on_step_end", lambda self, model, step, more: None, r"write on_step_end\(self, model, step\)"),
    ],
)
def test_callbacks_that_would_not_be_called_as_written_are_refused(name, function, message):
    x, y = stripes(4)
    with pytest.raises(ConfigurationError, match=message):
        small_model().fit(x, y, callbacks=[method(name, function)], verbose=0)


def test_callbacks_may_name_their_arguments_as_they_like():
    x, y = stripes(4)
    mine = [
        method("on_epoch_end", function) for function in (lambda s, m, *rest: None, lambda s, net, e, numbers: None)
    ]
    assert small_model().fit(x, y, callbacks=mine, verbose=0).epochs == 1


def test_predict_and_evaluate_take_keras_arguments():
    x, y = stripes(20)
    model = small_model()
    assert model.predict(x, 7, verbose=0) == pytest.approx(model.predict(x), abs=1e-6)
    loss, accuracy = model.evaluate(x, y, 7, verbose=False).values()
    assert model.evaluate(x, y) == pytest.approx({"loss": loss, "accuracy": accuracy}, abs=1e-6)
    for verb, arguments in ((model.predict, (x,)), (model.evaluate, (x, y))):
        with pytest.raises(ConfigurationError, match='shows nothing, so verbose must be 0, False or "auto", not 1'):
            verb(*arguments, verbose=1)
