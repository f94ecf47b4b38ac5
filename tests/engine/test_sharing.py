"""Copies of a model, and models that share layers: all owners train, and all see what any of them has trained."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, layers, optimizers
from gpucnn.backends.numpy import threads
from gpucnn.errors import ConfigurationError, ShapeError
from gpucnn.layers import Buffer, Parameter

SHAPE = (6, 6, 2)
CLASSES = 3


@pytest.fixture
def data(rng):
    return rng.standard_normal((48, *SHAPE)).astype("float32"), rng.integers(0, CLASSES, 48)


def momentum():
    return optimizers.SGD(0.1, momentum=0.9)


def fresh(backend="numpy", optimizer=None, seed=1, **options):
    model = gpucnn.Model(
        [
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNorm(),
            layers.ReLU(),
            layers.Conv2D(4, 3),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(CLASSES),
            layers.Softmax(),
        ],
        SHAPE,
        seed=seed,
        backend=backend,
        **options,
    )
    return model.compile(momentum() if optimizer is None else optimizer)


def fit(model, data, epochs=1, **options):
    return model.fit(*data, epochs=epochs, batch_size=16, verbose=0, **options)


def steps(model, x, y, count=3):
    for _ in range(count):
        model.train_on_batch(x, y)


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[path].tobytes() == b[path].tobytes() for path in a)


def moved(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


def pickled(model):
    return pickle.loads(pickle.dumps(model))


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copy_of_a_model_trains_as_the_original_does(copied, data, backend):
    """With its momentum, and apart from the original."""
    model = fresh(backend)
    fit(model, data)
    if copied is pickled and gpucnn.backends._instances.get(backend.name) is not backend:
        pytest.skip("a backend that is found by no name")
    clone = copied(model)
    assert clone.backend is model.backend
    before = model.state_dict()
    assert same_bits(clone.state_dict(), before)
    fit(clone, data, epochs=2)
    assert same_bits(model.state_dict(), before)
    assert clone.optimizer.steps == 9
    fit(model, data, epochs=2)
    assert same_bits(model.state_dict(), clone.state_dict())
    assert moved(before, clone.state_dict()) == set(before)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("jit", [True, False])
def test_copy_of_a_model_that_several_threads_have_trained_trains_as_it_does(copied, jit, data, monkeypatch):
    monkeypatch.setattr(threads, "MIN_SHARD_FLOPS", 1.0)
    monkeypatch.setattr(threads, "MIN_SHARD_IMAGES", 4)
    gpucnn.set_num_threads(2)
    try:
        model = fresh()
        model.compile(momentum(), jit=jit)
        fit(model, data, validation_data=data)
        clone = copied(model)
        fit(model, data)
        fit(clone, data)
        assert same_bits(model.state_dict(), clone.state_dict())
        assert model.predict(data[0]).tobytes() == clone.predict(data[0]).tobytes()
    finally:
        gpucnn.set_num_threads(None)


def test_copy_of_a_copy_that_was_never_used_trains(data):
    model = fresh()
    fit(model, data)
    clone = pickled(copy.deepcopy(pickled(model)))
    fit(model, data)
    fit(clone, data)
    assert same_bits(model.state_dict(), clone.state_dict())


def test_copy_of_a_model_trains_in_another_process(data, tmp_path):
    model = fresh()
    fit(model, data)
    (tmp_path / "in").write_bytes(pickle.dumps((model, data)))
    text = (
        "import pickle, sys; model, data = pickle.load(open(sys.argv[1], 'rb')); "
        "model.fit(*data, batch_size=16, verbose=0); pickle.dump(model.state_dict(), open(sys.argv[2], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", text, tmp_path / "in", tmp_path / "out"], check=True, timeout=120)
    fit(model, data)
    assert same_bits(pickle.loads((tmp_path / "out").read_bytes()), model.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copy_of_a_model_that_shows_averages_has_them(copied, data):
    model = fresh()
    fit(model, data, callbacks=[callbacks.MovingAverage(0.9)])
    clone = copied(model)
    assert same_bits(clone.state_dict(), model.state_dict())
    fit(clone, data, callbacks=[callbacks.MovingAverage(0.9)])


def test_shallow_copy_of_a_model_shares_its_weights(data):
    model, control = fresh(), fresh()
    clone = copy.copy(model)
    fit(clone, data)
    fit(model, data)
    fit(control, data, epochs=1)
    fit(control, data, epochs=1)
    assert same_bits(model.state_dict(), clone.state_dict())
    assert moved(model.state_dict(), fresh().state_dict()) == set(model.state_dict())
    clone.compile(momentum())  # from here on it is a second model of the same layers
    before = model.state_dict()
    fit(model, data)
    fit(clone, data)
    assert same_bits(model.state_dict(), clone.state_dict())
    assert moved(before, clone.state_dict()) == set(before)


def test_copied_layers_are_of_no_model(data):
    model = fresh()
    clone = gpucnn.Model(copy.deepcopy(list(model.layers)), SHAPE, backend="numpy", dtype="float64").compile()
    before = model.state_dict()
    fit(clone, data)
    assert same_bits(model.state_dict(), before)


def test_networks_with_names_can_be_copied_to_other_processes():
    for name, network in gpucnn.networks.NETWORKS.items():
        if network.image == (28, 28, 1) or name in ("resnet20", "airbench94"):
            assert pickle.loads(pickle.dumps(network.recipe)).data == network.recipe.data


# --- models that share layers ---------------------------------------------------------------------

SECOND = {
    "a new head": lambda base: [*base.layers[:-2], layers.Dense(2), layers.Softmax()],
    "a new head, by a sum": lambda base: base.layers[:-2] + [layers.Dense(2), layers.Softmax()],  # noqa: RUF005
    "a feature extractor": lambda base: base.layers[:3],
    "the same layers": lambda base: base.layers,
    "the same list": lambda base: list(base.layers),
    "the same network": lambda base: base.network,
    "the end alone": lambda base: base.layers[5:],
}


def second_of(base, kind):
    shape = base.layers[5].input_shape if kind == "the end alone" else SHAPE
    return gpucnn.Model(SECOND[kind](base), shape, seed=5, backend=base.backend)


@pytest.mark.parametrize("kind", SECOND)
def test_second_model_of_the_same_layers_changes_nothing(kind, data, backend):
    control, base = fresh(backend), fresh(backend)
    for model in (control, base):
        fit(model, data)
    second = second_of(base, kind)
    second.predict(np.zeros((4, *second.input_shape), "float32"))
    assert list(base.parameters()) == list(control.parameters())
    for model in (control, base):
        fit(model, data, epochs=2)
    assert same_bits(base.state_dict(), control.state_dict())
    assert base.evaluate(*data) == control.evaluate(*data)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("second", ["sgd", "adam", "groups"])
def test_shared_layers_train_in_turn_with_two_models(second, jit, data, backend):
    """As models do that share nothing, and hand the weights of the shared layers over before each step."""
    x, y = data
    make = {
        "sgd": momentum,
        "adam": lambda: optimizers.Adam(0.01),
        "groups": lambda: optimizers.SGD(
            0.1,
            momentum=0.5,
            groups=[optimizers.Group("*.bias", lr_multiplier=2.0), optimizers.Group("dense*", lr_multiplier=0.5)],
        ),
    }[second]

    def pair(share):
        base = fresh(backend)
        trunk = base.layers[:-2] if share else fresh(backend).layers[:-2]
        other = gpucnn.Model([*trunk, layers.Dense(2), layers.Softmax()], SHAPE, seed=5, backend=base.backend)
        base.compile(momentum(), jit=jit)
        return base, other.compile(make(), jit=jit)

    def hand_over(source, target):
        shared = source.state_dict()
        target.load_state_dict(
            {path: value if path.startswith("dense") else shared[path] for path, value in target.state_dict().items()}
        )

    (base, other), (apart, other_apart) = pair(True), pair(False)
    for count in (1, 1, 3, 2, 4, 1):
        hand_over(other_apart, apart)
        for model in (base, apart):
            steps(model, x, y, count)
        hand_over(apart, other_apart)
        for model in (other, other_apart):
            steps(model, x, y % 2, count)
        assert same_bits(other.state_dict(), other_apart.state_dict())
    assert same_bits(base.layers[0].state_dict(), other.layers[0].state_dict())
    hand_over(other_apart, apart)
    assert same_bits(base.state_dict(), apart.state_dict())


def test_model_within_a_model_trains_as_in_a_gan(data):
    """Generator and discriminator, and both as one model, whose steps train the discriminator's layers too."""
    discriminator = gpucnn.Model([layers.Dense(8), layers.ReLU(), layers.Dense(2), layers.Softmax()], (6,))
    generator = gpucnn.Model([layers.Dense(5), layers.ReLU(), layers.Dense(6)], (4,))
    both = gpucnn.Model([*generator.layers, *discriminator.layers], (4,))
    for model in (discriminator, both):
        model.compile(momentum())
    generator.compile(momentum(), "mean_squared_error", [])
    rng = np.random.default_rng(0)
    for _ in range(4):
        noise = rng.standard_normal((16, 4)).astype("float32")
        before = discriminator.state_dict() | {f"g.{k}": v for k, v in generator.state_dict().items()}
        discriminator.train_on_batch(generator.predict(noise), np.zeros(16, int))
        after = discriminator.state_dict() | {f"g.{k}": v for k, v in generator.state_dict().items()}
        assert moved(before, after) == set(discriminator.state_dict())
        both.train_on_batch(noise, np.ones(16, int))
        assert moved(after, discriminator.state_dict() | {f"g.{k}": v for k, v in generator.state_dict().items()}) == {
            *after
        }
        np.testing.assert_array_equal(both.predict(noise), discriminator.predict(generator.predict(noise)))


def test_frozen_parameters_are_frozen_in_all_models_that_share_them(data):
    base = fresh()
    fit(base, data)
    head = gpucnn.Model([*base.layers[:-2], layers.Dense(2), layers.Softmax()], SHAPE, backend="numpy")
    head.compile(momentum()).freeze("conv2d*")
    before = base.state_dict()
    fit(head, (data[0], data[1] % 2))
    fit(base, data)
    still = {path for path in before if path.startswith("conv2d")}
    assert set(before) - moved(before, base.state_dict()) == still
    slots = base.optimizer.state_dict(base.backend)
    base.unfreeze()
    before = head.state_dict()
    fit(head, (data[0], data[1] % 2))
    assert moved(before, head.state_dict()) == set(before)
    base.bind()
    assert same_bits(slots, base.optimizer.state_dict(base.backend))


def test_layers_have_their_own_names_in_each_model(data):
    base = fresh()
    paths = list(base.parameters())
    end = gpucnn.Model(base.layers[3:], (6, 6, 4), backend="numpy").compile()
    assert list(end.parameters()) == ["conv2d.weight", "conv2d.bias", "dense.weight", "dense.bias"]
    assert list(base.parameters()) == paths
    assert "conv2d_1" in [row.path for row in base.profile(*data, repeats=1).layers]


# --- what else takes the state out of a model's hands -----------------------------------------------

REPLACED = {
    "a Parameter": lambda layer: setattr(layer, "weight", Parameter(np.full(layer.weight.shape, 0.1))),
    "rebind": lambda layer: layer.weight.rebind(layer.weight.value.copy(), layer.weight.grad.copy()),
    "rebind without a gradient": lambda layer: layer.weight.rebind(layer.weight.value.copy(), None),
    "the gradient is None": lambda layer: setattr(layer.weight, "grad", None),
    "the value": lambda layer: setattr(layer.weight, "value", 0 * layer.weight.value + 0.1),
    "to the same place": lambda layer: layer.to(layer.backend),
    "a second model": lambda layer: gpucnn.Model([layer], SHAPE, backend=layer.backend),
    "frozen and unfrozen": lambda layer: gpucnn.Model([layer], SHAPE, backend=layer.backend).freeze().unfreeze(),
}


class Once(callbacks.Callback):
    """Does something to a layer after one step."""

    def __init__(self, act, at=1):
        self.act, self.at, self.count = act, at, 0

    def on_step_end(self, model, step):
        self.count += 1
        if self.count == self.at:
            self.act(model)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("what", REPLACED)
def test_state_that_is_replaced_in_a_fit_trains_on(what, jit, data, backend):
    """As it does where the numbers alone are assigned, or nothing at all is; on a GPU with steps that are replayed."""
    assigned = what in ("a Parameter", "the value")
    control, model = fresh(backend), fresh(backend)
    for one in (control, model):
        one.compile(momentum(), jit=jit)

    def by_hand(model):
        if assigned:
            model.layers[0].weight.value[...] = 0.1

    fit(control, data, epochs=3, callbacks=[Once(by_hand, at=4)])
    fit(model, data, epochs=3, callbacks=[Once(lambda model: REPLACED[what](model.layers[0]), at=4)])
    assert same_bits(control.state_dict(), model.state_dict())


@pytest.mark.parametrize("average", [callbacks.MovingAverage(0.8), callbacks.Lookahead(2)])
def test_averages_go_on_where_a_second_model_is_made_of_the_layers(average, data):
    results = []
    for act in (lambda model: None, lambda model: gpucnn.Model(model.layers[:3], SHAPE, backend="numpy")):
        model, kept = fresh(), copy.deepcopy(average)
        for _ in range(2):
            fit(model, data, epochs=2, callbacks=[kept, Once(act, at=2)])
            act(model)
        results.append(model.state_dict())
    assert same_bits(*results)


def test_averages_leave_alone_what_another_model_freezes(data):
    model, seen = fresh(), {}
    other = gpucnn.Model(model.layers[:3], SHAPE, backend="numpy")
    freeze = Once(lambda model: seen.update(other.freeze().state_dict()))
    fit(model, data, epochs=2, callbacks=[callbacks.MovingAverage(0.9), freeze])
    after = model.state_dict()
    for path in model.parameters():
        assert (path in other.parameters()) == (path in seen and bool((after[path] == seen[path]).all())), path


@pytest.mark.parametrize(
    "moved_by",
    [
        lambda model: model.layers[3].to("numpy", "float64"),
        lambda model: model.network.to("numpy", "float64"),
        lambda model: model.layers[3].to("reference"),
        lambda model: gpucnn.Model(model.layers[:4], SHAPE, backend="reference"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda model, x, y: model.fit(x, y, verbose=0),
        lambda model, x, y: model.train_on_batch(x, y),
        lambda model, x, y: model.forward(x, train=True),
        lambda model, x, y: model.predict(x),
        lambda model, x, y: model.evaluate(x, y),
        lambda model, x, y: model.evaluate(x, y, tta="flip"),
        lambda model, x, y: model.freeze(),
        lambda model, x, y: model.compile(),
        lambda model, x, y: model.apply_gradients(),
        lambda model, x, y: model.profile(x, y, repeats=1),
        lambda model, x, y: model.state_dict(),
        lambda model, x, y: model.load_state_dict(fresh().state_dict()),
    ],
)
def test_layers_that_were_moved_are_refused_by_name_until_they_are_moved_back(moved_by, use, data):
    model, control = fresh(), fresh()
    second = moved_by(model)
    with pytest.raises(
        ConfigurationError, match=r"conv2d.*: its weight is float.*model.to\('numpy', 'float32'\) moves"
    ):
        use(model, *data)
    model.to("numpy", "float32")
    fit(model, data)
    fit(control, data)
    assert same_bits(model.state_dict(), control.state_dict())
    if isinstance(second, gpucnn.Model):
        with pytest.raises(ConfigurationError, match=r"model.to\('reference', 'float32'\) moves"):
            second.predict(data[0])


def test_shared_layers_need_one_dtype(data):
    model = fresh(dtype="float64")
    before = model.state_dict()
    with pytest.raises(ConfigurationError, match="conv2d: belongs to a model whose weights are float64 already"):
        gpucnn.Model(model.layers[:3], SHAPE, backend="numpy")
    assert same_bits(model.state_dict(), before)
    gpucnn.Model(model.layers[:3], SHAPE, backend="numpy", dtype="float64").predict(data[0])
    fit(model, data)


def test_layers_that_were_changed_are_refused(data):
    class Two(layers.Layer):
        def __init__(self, *, name=None):
            super().__init__(name=name)
            self.branches = [layers.Dense(3), layers.Dense(3)]

        def build(self, input_shape, rng):
            return {branch.ensure_built(input_shape, rng) for branch in self.branches}.pop()

        def forward(self, x, *, train):
            outputs = [branch.forward(x, train=train) for branch in self.branches]
            return sum(y for y, _ in outputs), lambda dy: sum(backward(dy) for _, backward in outputs)

    model = gpucnn.Model([layers.Flatten(), Two(), layers.Softmax()], SHAPE, backend="numpy").compile(momentum())
    assert [path for path in model.parameters() if "weight" in path] == ["two.dense.weight", "two.dense_1.weight"]
    before = model.state_dict()
    fit(model, data)
    assert moved(before, model.state_dict()) == set(before)
    model.layers[1].branches.append(layers.Dense(3))
    model.layers[1].branches[2].ensure_built((72,), np.random.default_rng(0))
    with pytest.raises(ConfigurationError, match="the layers were changed since"):
        fit(model, data)


@pytest.mark.parametrize("holder", [lambda p: [p], lambda p: {"a": p}, lambda p: [[p]]])
def test_parameters_where_nobody_would_find_them_are_refused(holder):
    class Hidden(layers.Layer):
        def build(self, input_shape, rng):
            self.weights = holder(Parameter(np.ones(input_shape)))
            return input_shape

    with pytest.raises(ConfigurationError, match="hidden: weights holds a Parameter where it would not be found"):
        gpucnn.Model([Hidden()], (3,), backend="numpy")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda dense: setattr(dense, "weight", np.ones((72, 3))), ConfigurationError, r"weight\.value = …"),
        (lambda dense: setattr(dense, "weight", None), ConfigurationError, "NoneType cannot take its place"),
        (lambda dense: setattr(dense, "weight", Buffer(np.ones((72, 3)))), ConfigurationError, "Buffer cannot take"),
        (lambda dense: setattr(dense, "weight", Parameter(np.ones((3, 72)))), ShapeError, r"has shape \(64, 3\)"),
        (lambda dense: setattr(dense, "gain", Parameter(np.ones(3))), ConfigurationError, "cannot be set from outside"),
    ],
)
def test_parameters_that_cannot_be_replaced_so(change, error, message):
    model = fresh()
    with pytest.raises(error, match=message):
        change(model.layers[-2])


def test_parameters_set_before_they_are_built_are_refused():
    dense = layers.Dense(3)
    with pytest.raises(ConfigurationError, match=r"dense\.weight: a Parameter cannot be set from outside"):
        dense.weight = Parameter(np.ones((4, 3)))


def test_arrays_of_parameters_are_their_values(backend):
    model = fresh(backend)
    weight = model.layers[0].weight
    if backend.name == "strict":  # which pretends to be a device without a way to the host but its own
        with pytest.raises(TypeError, match="use backend"):
            np.asarray(weight)
        return
    np.testing.assert_array_equal(np.asarray(weight), backend.to_host(weight.value))
    assert np.asarray(weight, dtype="float64").dtype == "float64"
    assert np.array(model.layers[1].running_var).tolist() == [1.0] * 4
    assert np.asarray(weight).dtype == "float32"


# --- gradients applied by hand --------------------------------------------------------------------


@pytest.mark.parametrize("make", [momentum, lambda: optimizers.Adam(0.01)])
def test_apply_gradients_makes_the_step_that_train_on_batch_makes(make, data, backend):
    x, y = data
    model, control = (
        gpucnn.Model(
            [layers.Flatten(), layers.Dense(8), layers.Tanh(), layers.Dense(3), layers.Softmax()],
            SHAPE,
            backend=backend,
        ).compile(make())
        for _ in range(2)
    )
    for _ in range(3):
        control.train_on_batch(x, y)
        outputs, backward = model.forward(x, train=True)
        _, loss_backward = model.loss(outputs, model.backend.from_host(y))
        backward(loss_backward())
        model.apply_gradients()
        assert not model.backend.to_host(model.flat_gradients()).any()
    for path, value in control.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[path], value, atol=2e-5, err_msg=path)
    assert model.optimizer.steps == 3


def test_apply_gradients_takes_the_sum_of_several_backward_passes(data):
    x = data[0]
    results = []
    for parts in ([slice(0, 48)], [slice(0, 16), slice(16, 48)]):
        model = gpucnn.Model([layers.Flatten(), layers.Dense(2)], SHAPE, backend="numpy")
        model.compile(momentum(), "mean_squared_error", [])
        for _ in range(2):
            for part in parts:
                y, backward = model.forward(x[part], train=True)
                backward(y / 48)
            model.apply_gradients()
        results.append(model.state_dict())
    for path, value in results[0].items():
        np.testing.assert_allclose(results[1][path], value, rtol=1e-4, atol=1e-6)


def test_apply_gradients_through_another_model_trains_the_first_alone(data):
    rng = np.random.default_rng(0)
    first = gpucnn.Model([layers.Dense(16), layers.ReLU(), layers.Dense(8)], (4,), backend="numpy")
    first.compile(optimizers.Adam(), "mean_squared_error", [])
    judge = gpucnn.Model([layers.Dense(2), layers.Softmax()], (8,), backend="numpy").compile(optimizers.Adam())
    before, judged = first.state_dict(), judge.state_dict()
    losses = []
    x = rng.standard_normal((32, 4)).astype("float32")
    for _ in range(20):
        fake, first_backward = first.forward(x, train=True)
        outputs, judge_backward = judge.forward(fake, train=True)
        loss, loss_backward = judge.loss(outputs, np.ones(32, int))
        first_backward(judge_backward(loss_backward()))
        first.apply_gradients()
        judge.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert moved(before, first.state_dict()) == set(before)
    assert same_bits(judge.state_dict(), judged)


def test_apply_gradients_needs_an_optimizer_of_its_own(data):
    with pytest.raises(ConfigurationError, match="the model is not compiled"):
        gpucnn.Model([layers.Dense(2)], (3,), backend="numpy").apply_gradients()
    shared = momentum()
    first, second = fresh(optimizer=shared), fresh(optimizer=shared)
    with pytest.raises(ConfigurationError, match="is already bound to another model, which was compiled with it since"):
        first.apply_gradients()
    second.apply_gradients()


# --- the list of layers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.layers.append(layers.Dense(3)),
        lambda model: model.layers.pop(),
        lambda model: model.layers.insert(0, layers.ReLU()),
        lambda model: model.layers.extend([]),
        lambda model: model.layers.remove(model.layers[0]),
        lambda model: model.layers.clear(),
        lambda model: model.layers.reverse(),
        lambda model: model.layers.sort(),
        lambda model: model.layers.__setitem__(0, layers.ReLU()),
        lambda model: model.layers.__delitem__(0),
        lambda model: model.layers.__iadd__([layers.ReLU()]),
        lambda model: setattr(model, "layers", []),
        lambda model: setattr(model, "network", model.network),
        lambda model: setattr(model.network, "layers", [layers.Dense(3)]),
    ],
)
def test_layers_of_a_model_cannot_be_changed(change):
    model = fresh()
    with pytest.raises(ConfigurationError, match=r"make a new"):
        change(model)
    assert len(model.layers) == 8
    assert type(model.layers[2:4]) is list
    assert type(copy.deepcopy(model.layers)) is type(model.layers)
