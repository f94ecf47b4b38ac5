"""Custom layers, losses, metrics, schedules and optimizers, written as users of other libraries write them."""

import copy
import importlib
import inspect

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, layers, losses, metrics, optimizers, schedules
from gpucnn.errors import ArgumentError, ConfigurationError, ShapeError
from tests.helpers import simulated_backend

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(32, 6)).astype("float32"), rng.integers(0, 3, 32)


class PassingDense(layers.Dense):
    def __init__(self, units, **options):
        super().__init__(units, **options)


class PassingAll(layers.Dense):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


class WithoutBias(layers.Dense):
    def __init__(self, units, gain=1.0, **options):
        super().__init__(units, use_bias=False, **options)
        self.gain = gain


class PassingTwice(PassingDense):
    def __init__(self, **options):
        super().__init__(4, **options)


class NamingThem(WithoutBias):
    def __init__(self, weight_initializer="zeros"):
        super().__init__(4, weight_initializer=weight_initializer)


class PassingSGD(optimizers.SGD):
    def __init__(self, learning_rate=0.1, **options):
        super().__init__(learning_rate, nesterov=True, **options)


class Forgetful(layers.Layer):
    def __init__(self, amount, name=None):
        super().__init__(name=name)
        self.kept = amount

    def forward(self, x, *, train):
        return x, lambda dy: dy


class Applying(layers.Layer):
    def __init__(self, function, name=None):
        super().__init__(name=name)
        self.function = function

    def forward(self, x, *, train):
        return x, lambda dy: dy


def of(layer, optimizer="sgd", loss="categorical_crossentropy", metrics=None):
    built = gpucnn.Model([layer, layers.Dense(3), layers.Softmax()], (6,), backend="numpy")
    return built.compile(optimizer, loss, metrics=metrics)


@pytest.mark.parametrize(
    ("layer", "written"),
    [
        (PassingDense(4, use_bias=False, name="mine"), "PassingDense(4, use_bias=False, name='mine')"),
        (PassingAll(4, use_bias=False), "PassingAll(4, use_bias=False)"),
        (WithoutBias(4, gain=2.0, name="mine"), "WithoutBias(4, gain=2.0, name='mine')"),
        (PassingTwice(use_bias=False), "PassingTwice(use_bias=False)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, layers.Layer) else "",
)
def test_custom_layers_that_pass_options_on_are_saved(layer, written, tmp_path, capsys):
    """`**options` to `super().__init__` is how Keras' layers are extended: those given are kept, fixed ones are not."""
    assert repr(layer) == written
    assert repr(layers.Layer.from_config(layer.config())) == written
    model = of(layer, PassingSGD(0.05, momentum=0.9))
    model.fit(X, Y, batch_size=16, verbose=0, checkpoints=tmp_path / "run")
    model.summary()
    assert type(layer).__name__ in capsys.readouterr().out
    model.save(tmp_path / "model.safetensors")
    again = gpucnn.load(tmp_path / "model.safetensors", backend="numpy")
    assert again.predict(X).tobytes() == model.predict(X).tobytes()
    assert repr(again.layers[0]) == written
    assert repr(copy.deepcopy(model).layers[0]) == written
    assert repr(again.optimizer) == "PassingSGD(learning_rate=0.05, momentum=0.9)"


def test_custom_layers_describe_arguments_that_are_named_again():
    assert WithoutBias(4).config() == {"Layer": "WithoutBias", "units": 4}
    layer = NamingThem()
    layer.weight_initializer = gpucnn.initializers.Initializer.resolve("glorot_uniform")
    assert layer.config() == {"Layer": "NamingThem", "weight_initializer": {"Initializer": "GlorotUniform"}}


def test_custom_layers_refuse_unknown_options_by_name():
    with pytest.raises(ArgumentError, match="PassingDense takes no argument 'bias'; did you mean use_bias"):
        PassingDense(4, bias=False)
    with pytest.raises(ArgumentError, match="PassingDense needs units"):
        PassingDense(use_bias=False)


def test_custom_layers_that_keep_no_argument_cannot_be_saved(tmp_path, capsys):
    model = of(Forgetful(2))
    model.summary()
    assert "Forgetful(…)" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match=r"Forgetful .* does not keep its argument 'amount'.*self.amount"):
        model.save(tmp_path / "model.safetensors")


def test_custom_layers_refuse_arguments_that_no_file_can_hold(tmp_path):
    model = of(Applying(np.tanh))
    with pytest.raises(ConfigurationError, match=r"Applying.function is <ufunc 'tanh'>, which a file cannot hold"):
        model.save(tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"Applying.function"):
        model.fit(X, Y, verbose=0, checkpoints=tmp_path / "run")
    assert not (tmp_path / "model.safetensors").exists()


def test_custom_layers_without_super_init_are_refused_by_name():
    class Bare(layers.Layer):
        def __init__(self, factor=1.0):
            self.factor = factor

        def forward(self, x, *, train):
            return x, lambda dy: dy

    class Around(layers.Layer):
        def __init__(self, name=None):
            super().__init__(name=name)
            self.inner = Bare()

        def build(self, input_shape, rng):
            return self.inner.ensure_built(input_shape, rng)

    for layer in (Bare(), Around()):
        with pytest.raises(ConfigurationError, match=r"Bare: its __init__ does not call super\(\).__init__"):
            of(layer)


def returning(loss=None, metric=None):
    class Own(losses.Loss):
        def __call__(self, y, labels):
            return loss(y)

    class Counted(metrics.Metric):
        name = "counted"

        def batch_sum(self, y, labels):
            return metric(y)

    return of(
        layers.ReLU(),
        loss="categorical_crossentropy" if loss is None else Own(),
        metrics=[] if metric is None else [Counted()],
    )


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda y: (y * y).mean(), ConfigurationError, "Own returned np.float32.*must return the mean loss"),
        (lambda y: ((y * y).mean(), 2 * y / y.size), ConfigurationError, "its backward function"),
        (lambda y: ((y * y).mean(axis=-1), lambda dloss=1.0: y), ConfigurationError, r"loss of shape \(32,\)"),
        (lambda y: (y.mean(), lambda dloss=1.0: dloss / y.size + 0 * y[0]), ShapeError, r"gradient of shape \(3,\)"),
        (lambda y: (y.mean(), lambda dloss=1.0: dloss / y.size), ShapeError, r"gradient of shape \(\)"),
    ],
)
def test_custom_losses_that_return_another_form_are_refused(loss, error, message):
    model = returning(loss=loss)
    before = model.state_dict()
    with pytest.raises(error, match=message):
        model.fit(X, Y, verbose=0)
    assert all(np.array_equal(before[path], array) for path, array in model.state_dict().items())


@pytest.mark.parametrize("metric", [lambda y: y.argmax(axis=-1) == 0, lambda y: None, lambda y: "3"])
def test_custom_metrics_that_return_no_number_are_refused(metric):
    with pytest.raises(ConfigurationError, match=r"the metric counted returned .* must return one number"):
        returning(metric=metric).evaluate(X, Y)


@pytest.mark.parametrize(
    "metric", [lambda y: 3, lambda y: 3.0, lambda y: np.float32(3), lambda y: (y[:3, 0] > -9).sum()]
)
def test_custom_metrics_may_return_any_number(metric):
    assert returning(metric=metric).evaluate(X, Y)["counted"] == 3 / 32


def test_custom_schedules_without_a_peak_train_in_fit_alone():
    class Falling(schedules.Schedule):
        def __call__(self, epoch, epochs):
            return 0.1 / (1 + epoch)

    model = of(layers.ReLU(), optimizers.SGD(Falling()))
    assert model.fit(X, Y, epochs=2, verbose=0).history["learning_rate"] == [0.1, 0.05]
    with pytest.raises(ConfigurationError, match=r"Falling does not say its highest rate.*a property peak"):
        model.train_on_batch(X, Y)


def test_model_settings_are_checked_when_assigned():
    model = of(layers.ReLU())
    for name, value in {"seed": -1, "jit": "no", "allow_tf32": 1, "metrics": ["acuracy"], "loss": "mse"}.items():
        with pytest.raises(ConfigurationError, match=name if name in ("seed", "jit", "allow_tf32") else value[0][:3]):
            setattr(model, name, value)
    model.metrics = ["accuracy"]
    model.loss = losses.CategoricalCrossEntropy(label_smoothing=0.5)
    assert list(model.evaluate(X, Y)) == ["loss", "accuracy"]
    smoothed = of(layers.ReLU(), loss=losses.CategoricalCrossEntropy(label_smoothing=0.5))
    assert model.evaluate(X, Y)["loss"] == smoothed.evaluate(X, Y)["loss"]
    model.metrics = []
    assert list(model.evaluate(X, Y)) == ["loss"]


@pytest.mark.parametrize("backend", ["numpy", "simulated"])
def test_loss_that_changes_between_steps_is_obeyed_with_its_softmax(backend):
    """Cross-entropy takes the logits before the softmax, another loss what comes out of it, captured or not."""

    class Changes(callbacks.Callback):
        def on_step_end(self, model, step):
            if step in (4, 8):
                model.loss = "mean_squared_error" if step == 4 else "categorical_crossentropy"

    runs = []
    for jit, change in ((True, True), (False, True), (True, False)):
        network = [layers.Dense(8), layers.ReLU(), layers.Dense(3), layers.Softmax()]
        model = gpucnn.Model(network, (6,), backend=simulated_backend() if backend == "simulated" else backend)
        model.compile(optimizers.SGD(0.1), metrics=[], jit=jit)
        model.fit(X, Y, batch_size=2, callbacks=[Changes()] if change else [], verbose=0)
        runs.append(model.state_dict())
    captured, eager, unchanged = runs
    assert all(np.array_equal(captured[path], eager[path]) for path in captured)
    assert any((captured[path] != unchanged[path]).any() for path in captured)
    model.loss = "mean_squared_error"
    assert model.evaluate(X, Y)["loss"] == pytest.approx(((model.predict(X) - np.eye(3)[Y]) ** 2).mean(), rel=1e-5)


def test_copied_layer_runs_without_shape_checks_as_the_original_does():
    """What a class declares decides, not the module that it stands in."""
    source = inspect.getsource(layers.Dense).replace("class Dense", "class CopiedDense")
    module = importlib.import_module("gpucnn.layers.dense")
    namespace = vars(module) | {"__name__": "users_own"}
    exec(source, namespace)
    copied = namespace["CopiedDense"]
    assert copied.__module__ == "users_own"
    assert copied.shapes_verified

    class Custom(layers.Dense):
        def build(self, input_shape, rng):
            return super().build(input_shape, rng)

    assert not Custom.shapes_verified
    networks = {kind: layers.Sequential([kind(3), layers.ReLU()]) for kind in (layers.Dense, copied, Custom)}
    for kind, network in networks.items():
        network.ensure_built((4,), np.random.default_rng(0))
        assert list(network._declared_shapes) == (["custom"] if kind is Custom else [])
