"""Settings are obeyed or refused: every number, every flag, every name, when an object is made and afterwards."""

import importlib
import inspect
import json
import pkgutil

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, layers, losses, optimizers, schedules
from gpucnn.core.config import Configurable
from gpucnn.errors import ArgumentError, ConfigurationError, GpucnnError, UnknownNameError
from gpucnn.layers.geometry import make_window
from gpucnn.training.checkpoints import Checkpoints
from tests.helpers import assert_same_bits

for module in pkgutil.walk_packages(gpucnn.__path__, "gpucnn."):
    if not module.name.startswith(
        ("gpucnn.backends", "gpucnn.plots", "gpucnn.report", "gpucnn.cli", "gpucnn.__main__")
    ):
        importlib.import_module(module.name)  # whose classes are then registered

INTEGER, NUMBER, FLAG = "an integer", "a number", "a flag"

# what a constructor needs, where its defaults do not do
NEEDED = {
    "Conv2D": {"filters": 4, "kernel_size": 3},
    "Dense": {"units": 3},
    "Dropout": {"rate": 0.5},
    "PadChannels": {"before": 1, "after": 2},
    "Sequential": {"layers": [layers.ReLU()]},
    "Residual": {"main": layers.ReLU()},
    "Constant": {"rate": 0.1},
    "StepDecay": {"rate": 0.1, "every": 2},
    "ExponentialDecay": {"rate": 0.1, "factor": 0.5},
    "Cosine": {"rate": 0.1},
    "Power": {"rate": 0.1, "power": 2},
    "PiecewiseLinear": {"points": [(0, 0.1), (1, 0.2)]},
    "PiecewiseConstant": {"points": [(0, 0.1), (1, 0.2)]},
    "OneCycle": {"rate": 0.1},
    "WarmUp": {"schedule": 0.1},
    "Uniform": {"low": -0.5, "high": 0.5},
    "Group": {"match": "*.bias"},
    "Translate": {"pixels": 2},
    "Cutout": {"size": 3},
    "Rotate": {"degrees": 12.5},
    "Normalization": {"mean": 0.5, "std": 0.25},
    "SGD": {"momentum": 0.5},
    "BinaryAccuracy": {},
}
# a value that is allowed, where that of an example is not to be found
EXAMPLES = {
    "Group.weight_decay": 0.25,
    "Group.train_epochs": 2,
    "SGD.clip_norm": 0.5,
    "Adam.clip_norm": 0.5,
    "AdamW.clip_norm": 0.5,
    "Muon.clip_norm": 0.5,
    "SGD.clip_value": 0.5,
    "Adam.clip_value": 0.5,
    "AdamW.clip_value": 0.5,
    "Muon.clip_value": 0.5,
    "RandomCrop.size": 3,
    "MaxPool2D.strides": 2,
    "AveragePool2D.strides": 2,
}
# arguments that hold words, objects, or lists of them
OTHERS = {
    "name", "padding", "weight_initializer", "layers", "main", "shortcut", "groups", "fallback", "match", "schedule",
    "points", "unit", "remaining", "mode",
}  # fmt: skip


def ours():
    """Every class that can be made by a constructor with arguments, once."""
    found = {}
    for family in Configurable.__subclasses__():
        for kind in [*family.registry.values(), *family.__subclasses__()]:
            if kind.__module__.startswith("gpucnn.") and not kind.__name__.startswith("_"):
                found[kind.__name__] = kind
    for base in list(found.values()):
        for kind in base.__subclasses__():
            if kind.__module__.startswith("gpucnn.") and not kind.__name__.startswith("_"):
                found[kind.__name__] = kind
    return found


def arguments():
    """Each class with each of its arguments, a value that is allowed, and of which kind that is."""
    for name, kind in sorted(ours().items()):
        for argument in kind.argument_names():
            if argument in OTHERS:
                continue
            default = inspect.signature(kind).parameters[argument].default
            value = EXAMPLES.get(f"{name}.{argument}", NEEDED.get(name, {}).get(argument, default))
            shape = FLAG if isinstance(value, bool) else INTEGER if isinstance(value, int) else NUMBER
            if argument in ("every", "factor", "power", "degrees", "learning_rate", "epochs") and name != "Group":
                shape = INTEGER if name in ("MovingAverage", "Lookahead") and argument == "every" else NUMBER
            yield kind, argument, value, shape


ALL = list(arguments())
NAMES = [f"{kind.__name__}.{argument}" for kind, argument, *_ in ALL]


def make(kind, **changes):
    return kind(**NEEDED.get(kind.__name__, {}) | changes)


def test_settings_all_have_an_example():
    """Whoever adds a class or an argument says here which number it takes, or that it takes none."""
    assert [
        name for name, (*_, value, _) in zip(NAMES, ALL, strict=True) if not isinstance(value, bool | int | float)
    ] == []
    assert len(NAMES) > 50


@pytest.mark.parametrize(("kind", "argument", "value", "shape"), ALL, ids=NAMES)
def test_settings_take_numpy_numbers(kind, argument, value, shape):
    """And come out of a description as Python's own."""
    plain = make(kind, **{argument: value})
    types = {FLAG: [np.bool_], INTEGER: [np.int64, np.int32, np.uint8], NUMBER: [np.float64, np.float32]}[shape]
    for of_numpy in types:
        given = of_numpy(value)
        if float(given) != value:  # 0.1 in float32
            assert make(kind, **{argument: given}).config() == make(kind, **{argument: float(given)}).config()
            continue
        new = make(kind, **{argument: given})
        assert type(getattr(new, argument)) in (bool, int, float), argument
        assert repr(new) == repr(plain)
        assert json.dumps(new.config()) == json.dumps(plain.config())
        if kind.family != "average":
            assert type(new).from_config(json.loads(json.dumps(new.config()))).config() == plain.config()


@pytest.mark.parametrize(("kind", "argument", "value", "shape"), ALL, ids=NAMES)
def test_settings_refuse_what_is_not_a_number(kind, argument, value, shape):
    """When an object is made, and when the setting is assigned later."""
    wrong = ["1", b"1", [], np.ones(3), object()]
    wrong += [1, 0.0, None] if shape is FLAG else [True, np.bool_(True), float("nan"), np.float32("inf"), -np.inf]
    wrong += [1.5, np.float64(2.0)] if shape is INTEGER else []
    wrong += [] if shape is FLAG or kind._arguments()[argument].default is None else [None]
    accepts_lists = kind is layers.Normalization
    made = make(kind, **{argument: value})
    for bad in wrong:
        if accepts_lists and isinstance(bad, np.ndarray):
            continue
        with pytest.raises(ConfigurationError):
            make(kind, **{argument: bad})
        with pytest.raises(ConfigurationError):
            setattr(made, argument, bad)
        assert getattr(made, argument) == getattr(make(kind, **{argument: value}), argument)


LISTS = {
    "kernel_size": lambda bad: layers.Conv2D(4, (3, bad)),
    "strides": lambda bad: layers.Conv2D(4, 3, strides=[bad, 1]),
    "dilation": lambda bad: layers.Conv2D(4, 3, dilation=(bad, bad)),
    "padding": lambda bad: layers.MaxPool2D(2, padding=((0, bad), (0, 0))),
    "pool_size": lambda bad: layers.AveragePool2D((bad, 2)),
    "mean": lambda bad: layers.Normalization([bad, 0.5], [1.0, 1.0]),
    "std": lambda bad: layers.Normalization(0.5, [1.0, bad]),
    "points": lambda bad: schedules.PiecewiseLinear([(0, 0.1), (1, bad)]),
    "positions": lambda bad: schedules.PiecewiseConstant([(0, 0.1), (bad, 0.2)]),
    "rate of a group": lambda bad: optimizers.Group("*", bad),
    "rate of an optimizer": lambda bad: optimizers.SGD(bad),
    "rate of a schedule": lambda bad: schedules.WarmUp(bad),
}


@pytest.mark.parametrize("where", LISTS)
@pytest.mark.parametrize("bad", ["x", True, np.True_, float("nan"), np.float32("inf"), -1e400, None, [1], 3j], ids=repr)
def test_settings_refuse_what_is_not_a_number_in_lists(where, bad):
    with pytest.raises(ConfigurationError):
        LISTS[where](bad)


@pytest.mark.parametrize("where", LISTS)
def test_settings_take_numpy_numbers_in_lists(where):
    """An integer of NumPy is a number everywhere; how large it may be differs."""
    LISTS[where](np.int64(1))


@pytest.mark.parametrize("kind", ours().values(), ids=lambda kind: kind.__name__)
def test_settings_refuse_unknown_names(kind):
    """As arguments, and as attributes."""
    with pytest.raises(ArgumentError, match=f"{kind.__name__} takes no argument 'nonsense'; it takes"):
        make(kind, nonsense=1)
    new = make(kind)
    for name in ("trainable", "nonsense", "learning_rte"):
        with pytest.raises(UnknownNameError, match=f"{kind.__name__} has no attribute '{name}' that could be set"):
            setattr(new, name, 1)
        assert not hasattr(new, name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Conv2D(4, 3, stride=2), "Conv2D takes no argument 'stride'; did you mean strides=…?"),
        (lambda: layers.Conv2D(4, 3, kernel_initializer="zeros"), "did you mean weight_initializer=…?"),
        (lambda: layers.Conv2D(4, 3, dilation_rate=2), "did you mean dilation=…?"),
        (lambda: layers.Conv2D(4, 3, activation="relu"), "add the activation after it as a layer"),
        (lambda: layers.Conv2D(4, 3, padding="SAME"), 'padding must be "valid", "same" or numbers'),
        (lambda: layers.Conv2D(4, 3, 2), "Conv2D takes filters, kernel_size by position, and got 3 arguments; write"),
        (lambda: layers.Conv2D(4), "Conv2D needs kernel_size: pass Conv2D"),
        (lambda: layers.Conv2D(4, 3, filters=4), "Conv2D got filters twice"),
        (lambda: layers.Dense(4, use_bais=False), "did you mean use_bias=…?"),
        (lambda: layers.Dense(4, trainable=False), "model.freeze"),
        (lambda: layers.LeakyReLU(negative_slope=0.1), "did you mean slope=…?"),
        (lambda: layers.Dropout(p=0.5), "did you mean rate=…?"),
        (lambda: layers.BatchNorm(eps=0.5), "did you mean epsilon=…?"),
        (lambda: optimizers.SGD(lr=0.1), "SGD takes no argument 'lr'; did you mean learning_rate=…?"),
        (
            lambda: optimizers.SGD(0.1, 0.9),
            "SGD takes learning_rate by position, and got 2 arguments; write the others",
        ),
        (lambda: optimizers.SGD(0.1, 0.9, 5e-4), "write the others with their names: momentum=…, nesterov=…"),
        (lambda: optimizers.Adam(beta_1=0.9), "did you mean beta1=…?"),
        (lambda: optimizers.Adam(betas=(0.9, 0.99)), "did you mean beta1=…?"),
        (lambda: optimizers.Adam(1e-3, 0.9, 0.999, 1e-7, True), "write the others with their names: beta1=…, beta2=…"),
        (lambda: optimizers.AdamW(1e-3, 0.05), "write the others with their names"),
        (lambda: optimizers.Muon(0.02, 0.9), "write the others with their names"),
        (lambda: optimizers.Adam(params=[]), "an optimizer is given to model.compile"),
        (lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=5e-4), "nesterov must be True or False, not 0.0005"),
        (lambda: optimizers.SGD(0.1, momentum=0.9, nesterov="False"), "nesterov must be True or False, not 'False'"),
        (lambda: callbacks.EarlyStopping(minimum=0.1), "did you mean min_delta=…?"),
        (lambda: callbacks.EarlyStopping(restore_best=True), "did you mean restore_best_weights=…?"),
        (lambda: gpucnn.networks.lenet(classes=3), "did you mean num_classes=…?"),
        (lambda: gpucnn.Model([layers.Dense(2)]), "Model needs input_shape"),
        (lambda: gpucnn.Model([layers.Dense(2)], (3,), sed=1), "did you mean seed=…?"),
        (lambda: layers.MaxPooling2D, "module 'gpucnn.layers' has no 'MaxPooling2D'; did you mean MaxPool2D?"),
        (lambda: layers.BatchNormalization, "did you mean BatchNorm?"),
        (lambda: layers.Linear, "did you mean Dense?"),
        (lambda: layers.Conv2d, "did you mean Conv2D?"),
        (lambda: layers.Input, "pass input_shape to gpucnn.Model"),
        (lambda: optimizers.Sgd, "did you mean SGD?"),
        (lambda: gpucnn.Sequential, "takes the layers in order"),
    ],
)
def test_settings_hint_at_names_of_other_libraries(make, message):
    with pytest.raises(GpucnnError) as caught:
        make()
    assert message in str(caught.value)
    assert isinstance(caught.value, TypeError | AttributeError | ValueError)


def model_of(*inside, **options):
    model = gpucnn.Model([layers.Flatten(), *inside, layers.Dense(3), layers.Softmax()], (4, 4, 1), backend="numpy")
    return model.compile(options.pop("optimizer", optimizers.SGD(0.1)), **options)


@pytest.fixture
def data(rng):
    return rng.standard_normal((48, 4, 4, 1)).astype("float32"), rng.integers(0, 3, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.layers[-2], "trainable", False), "model.freeze"),
        (lambda model: setattr(model.layers[-2].weight, "requires_grad", False), "model.freeze"),
        (lambda model: setattr(model.layers[-2].weight, "trainable", False), "model.freeze"),
        (lambda model: setattr(model.layers[-2].weight, "gradient", None), "Parameter has no attribute 'gradient'"),
        (lambda model: setattr(model, "trainable", False), "model.freeze"),
        (lambda model: setattr(model, "optimiser", None), "did you mean optimizer?"),
        (lambda model: setattr(model, "optimizer", None), "call model.compile"),
        (lambda model: setattr(model, "dtype", "float64"), "call model.to"),
        (lambda model: setattr(model, "backend", "cupy"), "call model.to"),
        (lambda model: setattr(model, "input_shape", (3,)), "make a new Model"),
        (lambda model: setattr(model.optimizer, "lr", 0.5), "did you mean learning_rate?"),
        (
            lambda model: setattr(model.optimizer, "learning_rate", -1),
            "a learning rate must be a number that is at least",
        ),
        (lambda model: setattr(model.optimizer, "groups", [optimizers.Group("*")]), "compile it with a new one"),
        (lambda model: setattr(model.layers[-2], "units", 5), "dense: units cannot be changed any more"),
        (lambda model: setattr(model.layers[-2], "name", "other"), "name cannot be changed any more"),
    ],
)
def test_settings_refuse_attributes_that_would_be_ignored(change, message, data):
    model, control = model_of(), model_of()
    with pytest.raises(ConfigurationError) as caught:
        change(model)
    assert message in str(caught.value)
    for one in (model, control):
        one.fit(*data, verbose=0)
    assert_same_bits(model, control)


def test_custom_layers_take_any_attribute_but_those_of_other_libraries():
    class Scaled(layers.Layer):
        def __init__(self, factor=2.0, *, name=None):
            super().__init__(name=name)
            self.factor = factor

        def forward(self, x, *, train):
            self.seen = x.shape
            return x * self.factor, lambda dy: dy * self.factor

    scaled = Scaled()
    scaled.note = "mine"
    scaled.factor = "anything"
    with pytest.raises(UnknownNameError, match=r"model\.freeze"):
        scaled.trainable = False
    with pytest.raises(ArgumentError, match="Scaled takes no argument 'facter'; did you mean factor"):
        Scaled(facter=3)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (lambda o: setattr(o, "momentum", 0.0), {"momentum": 0.0}),
        (lambda o: setattr(o, "weight_decay", 0.1), {"momentum": 0.9, "weight_decay": 0.1}),
        (lambda o: setattr(o, "learning_rate", schedules.Constant(0.01)), {"learning_rate": 0.01, "momentum": 0.9}),
        (lambda o: setattr(o, "clip_norm", np.float32(0.5)), {"momentum": 0.9, "clip_norm": 0.5}),
        (lambda o: setattr(o, "nesterov", True), {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_optimizer_settings_count_from_the_next_step(change, settings, jit, data):
    """As a model does that is compiled with them, and has the state of before."""
    model = model_of(optimizer=optimizers.SGD(0.1, momentum=0.9), jit=jit)
    model.fit(*data, batch_size=16, verbose=0)
    control = model_of(optimizer=optimizers.SGD(**{"learning_rate": 0.1} | settings), jit=jit)
    control.load_state_dict(model.state_dict())
    control.epochs_trained = 1
    for name, slot in model.optimizer.slots.items():
        if name in control.optimizer.slots:
            control.optimizer.slots[name][...] = slot
    change(model.optimizer)
    for one in (model, control):
        one.fit(*data, batch_size=16, epochs=2, verbose=0)
    assert_same_bits(model, control)
    assert model.optimizer.slots.keys() == control.optimizer.slots.keys()


def test_momentum_that_is_set_later_begins_with_no_velocity(data):
    model = model_of(optimizer=optimizers.SGD(0.1))
    model.fit(*data, verbose=0)
    model.optimizer.momentum = 0.9
    model.fit(*data, batch_size=16, epochs=3, verbose=0)
    assert model.optimizer.slots["velocity"].any()


# --- schedules ------------------------------------------------------------------------------------


NO_RATES = {"nan": np.nan, "inf": np.inf, "None": None, "text": "0.1", "True": True, "huge": 10**5000}


class Jump(schedules.Schedule):
    """A rate that becomes something else after a while."""

    def __init__(self, then):
        self.then = then  # a word, or a number

    @property
    def peak(self):
        return 0.1

    def __call__(self, epoch, epochs):
        return 0.1 if epoch < 1.5 else NO_RATES.get(self.then, self.then)


@pytest.mark.parametrize("then", [*NO_RATES, -1.0])
@pytest.mark.parametrize("where", ["the optimizer", "a group"])
def test_schedule_that_returns_no_rate_is_refused_at_that_step(then, where, data, tmp_path):
    """Before the weights are touched, so that what was saved then can be gone on with."""

    groups = [optimizers.Group("*.bias", lr_multiplier=Jump(then))] if where == "a group" else []
    model = model_of(optimizer=optimizers.SGD(0.1 if groups else Jump(then), momentum=0.5, groups=groups))
    ckpt = Checkpoints(tmp_path / "run", every_steps=1)
    for resume in (False, True):
        with pytest.raises(
            ConfigurationError, match=r"Jump\(.*\) gave .* at epoch 1.667 of 3.*step 6 of the optimizer was not made"
        ):
            model.fit(*data, batch_size=16, epochs=3, verbose=0, checkpoints=ckpt, resume=resume)
        assert all(np.isfinite(value).all() for value in model.state_dict().values())
        assert model.optimizer.steps == 5


def test_schedule_that_returns_no_rate_leaves_the_weights(data):
    model, control = (model_of(optimizer=optimizers.SGD(rate)) for rate in (Jump("nan"), 0.1))
    with pytest.raises(ConfigurationError, match="gave nan at epoch"):
        model.fit(*data, batch_size=16, epochs=3, verbose=0)
    control.fit(*data, batch_size=16, epochs=5 / 3, verbose=0)
    assert_same_bits(model, control)


def test_warm_up_reaches_the_rate_of_its_schedule():
    """As Keras' warm-up and PyTorch's chain of schedules do, and the other schedule then has the rest."""
    warm = schedules.WarmUp(schedules.Cosine(0.1), 5)
    rates = [warm(epoch / 10, 20) for epoch in range(200)]
    assert max(rates) == warm(5.0, 20) == 0.1
    assert warm(2.5, 20) == pytest.approx(0.05)
    assert warm(12.5, 20) == pytest.approx(0.05)
    assert warm(20.0, 20) == pytest.approx(0.0)
    assert rates[:50] == sorted(rates[:50])
    steps = schedules.WarmUp(schedules.StepDecay(1.0, every=2), 1)
    assert [steps(epoch, 6) for epoch in (0.5, 1, 2.9, 3, 5)] == pytest.approx([0.5, 1, 1, 0.1, 0.01])


@pytest.mark.parametrize("groups", [1, 2, 64])
def test_glorot_counts_a_convolutions_outputs_whatever_its_groups(groups):
    """KH·KW·C/groups and KH·KW·F, as Keras and PyTorch do."""
    layer = layers.Conv2D(64, 3, groups=groups, weight_initializer="glorot_uniform")
    layer.ensure_built((8, 8, 64), np.random.default_rng(0))
    limit = np.sqrt(6 / (9 * 64 / groups + 9 * 64))
    assert 0.97 * limit < np.abs(layer.weight.value).max() <= limit


def test_one_cycle_settings_changed_count():
    cycle = schedules.OneCycle(0.1)
    cycle.rate = 0.5
    assert [cycle(epoch, 10) for epoch in (0, 3, 10)] == pytest.approx([0.02, 0.5, 0.0])


def test_window_takes_numbers_of_numpy():
    i = np.int64
    conv = layers.Conv2D(i(4), (i(3), i(2)), strides=[i(2), i(1)], padding=((i(1), i(0)), (i(2), i(1))), dilation=i(1))
    assert repr(conv) == "Conv2D(4, (3, 2), strides=(2, 1), padding=((1, 0), (2, 1)))"
    json.dumps(conv.config())
    assert make_window("x", (8, 8), (3, 2), (2, 1), conv.padding).padding == ((1, 0), (2, 1))


def test_models_take_numbers_of_numpy(data):
    i = np.int64
    model = gpucnn.Model([layers.Flatten(), layers.Dense(3), layers.Softmax()], (i(4), i(4), i(1)), seed=i(3))
    assert json.dumps(model.input_shape) == "[4, 4, 1]"
    assert type(model.seed) is int
    model.compile().fit(*data, epochs=i(2), batch_size=i(16), verbose=0)


def test_custom_losses_are_configurable():
    class Half(losses.MeanSquaredError):
        def __init__(self, factor=0.5):
            super().__init__()
            self.factor = factor

    half = Half()
    half.factor = 2.0
    assert half.config() == {"Loss": "Half", "factor": 2.0}
