"""Random histories of models with custom layers, right ones and wrong ones: captured passes against eager ones.

Two models that are the same, one with jit and one without, go through the same operations, and hold the same bits after
each. A layer that a capture cannot follow makes it fall back; no history may show a number that eager passes do not.
"""

import random
import warnings

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn import rng as random_streams
from gpucnn.backends.numpy import threads
from gpucnn.errors import CaptureWarning, GpucnnError
from gpucnn.layers.base import Buffer, Layer, Parameter

SHAPE = (4, 4, 3)
COUNTS, DRAWS = {}, {}  # what wrong layers keep outside of themselves, by the number of their model


class Own(Layer):
    """Any function of x as a layer, also of dy backward, with a weight, settings, a constant and a stream."""

    operation = None

    def __init__(self, owner=0, *, name=None):
        super().__init__(name=name)
        self.owner, self.settings = owner, Settings()

    def build(self, input_shape, rng):
        self.weight = Parameter(1 + 0.1 * rng.standard_normal(input_shape[-1:]))
        self.kernel = np.linspace(0.5, 1.5, input_shape[-1]).astype("float32")
        self.seen = Buffer(np.zeros(input_shape[-1:]))
        self.stream = Buffer(random_streams.new_stream(rng), on_host=True)
        return input_shape

    def forward(self, x, *, train):
        w, function = self.weight.value, type(self).operation
        y = function(self, self.backend.xp, x, train)

        def backward(dy):
            axes = tuple(range(dy.ndim - 1))
            self.weight.add_grad((dy * y).sum(axis=axes).astype(w.dtype))
            return function(self, self.backend.xp, dy, train) * w

        return y * w, backward


class Settings:
    __slots__ = ("rates",)

    def __init__(self):
        self.rates = {"all": [0.9]}


def left_neighbour(self, xp, x, train):
    z = xp.zeros(x.shape, x.dtype)
    z[:, :, 1:] = x[:, :, :-1]
    return x + z


def pads_in_training_alone(self, xp, x, train):
    return xp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1] if train else left_neighbour(self, xp, x, train)


def collects(self, xp, x, train):
    if train:
        mean = x.mean(axis=(0, 1, 2))
        self.seen.value = (0.9 * self.seen.value + 0.1 * mean).astype(mean.dtype)
    return x - self.seen.value


def draws(self, xp, x, train):
    if not train:
        return x
    return x * random_streams.bernoulli(self.backend, self.stream.value, x.shape, 0.7)


def takes_the_largest(self, xp, x, train):
    return x * xp.eye(x.shape[-1], dtype=x.dtype)[x.argmax(axis=-1)]


def writes_by_a_mask(self, xp, x, train):
    y = x.copy()
    y[x < 0] = -0.5
    return y


RIGHT = {
    "left neighbour": left_neighbour,
    "pads in training alone": pads_in_training_alone,
    "collects": collects,
    "draws": draws,
    "takes the largest": takes_the_largest,
    "writes by a mask": writes_by_a_mask,
    "settings": lambda self, xp, x, train: x * self.settings.rates["all"][0],
    "a constant": lambda self, xp, x, train: (x * self.kernel).astype(x.dtype),
    "asarray": lambda self, xp, x, train: x / (1 + xp.abs(xp.asarray(self.weight.value)).sum()),
    "copies": lambda self, xp, x, train: xp.array(x) - xp.ascontiguousarray(x.mean(axis=-1, keepdims=True)),
    "norm": lambda self, xp, x, train: x / (1 + xp.linalg.norm(x, axis=-1, keepdims=True)),
    "einsum": lambda self, xp, x, train: xp.einsum("nhwc,c->nhwc", x, self.weight.value),
    "sorted": lambda self, xp, x, train: x + xp.take_along_axis(x, xp.argsort(x, axis=-1), axis=-1),
    "rolled": lambda self, xp, x, train: xp.roll(x, 1, axis=1) + xp.where(x > 0, x, 0.1 * x).astype(x.dtype),
}


def counts_outside(self, xp, x, train):
    COUNTS[self.owner] = COUNTS.get(self.owner, 0) + 1
    return x * (1 + 0.01 * (COUNTS[self.owner] % 5))


def draws_outside(self, xp, x, train):
    return x * (1 + 0.1 * float(DRAWS.setdefault(self.owner, np.random.default_rng(0)).random()))


def writes_past(self, xp, x, train):
    y = x * 2
    np.asarray(y)[..., 0] = 0
    return y


def iterates(self, xp, x, train):
    y = x * 1
    with np.nditer(y, op_flags=[["readwrite"]]) as elements:
        for element in elements:
            element[...] = element * 2
    return y


def counts_in_a_buffer(self, xp, x, train):
    if train:
        self.stream.value[1] += np.uint64(1)
    return x / (1 + 0.1 * int(self.stream.value[1]))


def keeps_the_last(self, xp, x, train):
    before = vars(self).get("last", 0.0)
    vars(self)["last"] = x.mean()
    return x - before


def first_of(array):
    return memoryview(array)[(0,) * array.ndim] if array.flags.c_contiguous else 0.5


WRONG = {
    "counts outside": counts_outside,
    "draws outside": draws_outside,
    "writes past": writes_past,
    "iterates": iterates,
    "counts in a buffer": counts_in_a_buffer,
    "keeps the last": keeps_the_last,
    "reads memory": lambda self, xp, x, train: x + 0.1 * first_of(np.ascontiguousarray(x)),
    "reads a weight": lambda self, xp, x, train: x * (1 + 0.1 * first_of(self.weight.value)),
    "reads a weight in inference": lambda self, xp, x, train: x if train else x * first_of(self.weight.value),
    "decides": lambda self, xp, x, train: x if float(x.sum()) > 0 else 2 * x,
    "inverse": lambda self, xp, x, train: (
        x * xp.linalg.inv(xp.eye(3) * xp.abs(self.weight.value) + 1).sum().astype("f4")
    ),
    "vectorize": lambda self, xp, x, train: xp.vectorize(lambda v: v / (1 + abs(v)), otypes=[x.dtype])(x),
    "objects": lambda self, xp, x, train: x.astype(object).astype(x.dtype),
    "flat": lambda self, xp, x, train: x + x.flat[0],
    "by text": lambda self, xp, x, train: x + (0.1 if str(x[0, 0, 0, 0]).startswith("-") else 0.0),
    "fft": lambda self, xp, x, train: xp.fft.irfft(xp.fft.rfft(x, axis=2), n=x.shape[2], axis=2).astype(x.dtype),
    "plain numpy": lambda self, xp, x, train: x + np.array(x).max() + np.full(x.shape, np.asarray(x).min(), x.dtype),
}


def network(names, owner, batch_independent):
    def own(name):
        kind = {
            "operation": (RIGHT | WRONG)[name],
            "capturable": True,
            "batch_independent": batch_independent and name in RIGHT,
        }
        return type("Own", (Own,), kind)(owner)

    first, *others = map(own, names)
    return [
        L.Conv2D(3, 3, padding="same"),
        first,
        L.BatchNorm(),
        L.ReLU(),
        *others,
        L.Flatten(),
        L.Dense(3),
        L.Softmax(),
    ]


def batch_of(chance, count):
    generator = np.random.default_rng(chance.randrange(2**31))
    return generator.normal(size=(count, *SHAPE)).astype("float32"), generator.integers(0, 3, count)


def set_a_setting(model, chance):
    for layer in model.network.all_layers():
        if isinstance(layer, Own):
            layer.settings.rates["all"][0] = chance.choice([0.5, 0.9, 1.1])
            layer.kernel *= chance.choice([1, 2, 0.5])


def change_weights(model, chance):
    parameter = chance.choice(list(model.parameters().values()))
    parameter.value[...] *= chance.choice([0.9, -1.0])


def abandon(model, chance, count):
    return np.array(model.forward_train(model.as_floats(batch_of(chance, count)[0]), capture=model.jit)[0])


def there_and_back(model, chance, count):
    model.zero_grad()
    y, backward = model.forward(batch_of(chance, count)[0], train=chance.random() < 0.3)
    return np.array(backward(np.ones(y.shape, model.dtype)))


OPERATIONS = {
    "train": (10, lambda model, chance, count: float(model.train_on_batch(*batch_of(chance, count)))),
    "burst": (
        8,
        lambda model, chance, count: [float(model.train_on_batch(*batch_of(chance, count))) for _ in range(4)],
    ),
    "predict": (6, lambda model, chance, count: [model.predict(batch_of(chance, count)[0]) for _ in range(3)]),
    "the same again": (
        2,
        lambda model, chance, count: [model.predict(np.ones((count, *SHAPE), "f4")) for _ in range(4)],
    ),
    "evaluate": (2, lambda model, chance, count: model.evaluate(*batch_of(chance, count))["loss"]),
    "there and back": (3, there_and_back),
    "abandon": (1, abandon),
    "setting": (3, lambda model, chance, count: set_a_setting(model, chance)),
    "weights": (3, lambda model, chance, count: change_weights(model, chance)),
    "freeze": (1, lambda model, chance, count: [model.freeze(chance.choice(list(model.parameters()))), 0][1]),
    "unfreeze": (1, lambda model, chance, count: [model.unfreeze(), 0][1]),
    "release": (1, lambda model, chance, count: model.free_memory()),
    "threads": (1, lambda model, chance, count: gpucnn.set_num_threads(chance.choice([1, 2]))),
}


def assert_same_history(seed, length):
    """Go through a history with two models, and compare them after each operation."""
    chance = random.Random(seed)
    names = chance.sample(list(RIGHT), 2) + (chance.sample(list(WRONG), 1) if seed % 2 else [])
    chance.shuffle(names)
    gpucnn.set_num_threads(chance.choice([1, 2]))
    models = []
    for jit in (True, False):
        owner = (seed, jit)
        COUNTS.pop(owner, None)
        DRAWS.pop(owner, None)
        model = gpucnn.Model(network(names, owner, seed % 3 > 0), SHAPE, seed=seed, backend="numpy")
        models.append(model.compile(gpucnn.optimizers.SGD(0.01, momentum=0.9), jit=jit))
    words, weights = list(OPERATIONS), [often for often, _ in OPERATIONS.values()]
    for step in range(length):
        word, count = chance.choices(words, weights)[0], chance.choice([32, 32, 32, 17, 40])
        state, results = chance.getstate(), []
        for model in models:
            chance.setstate(state)
            try:
                results.append(OPERATIONS[word][1](model, chance, count))
            except GpucnnError as error:
                results.append(f"{type(error).__name__}: {error}")
        where = f"seed {seed}, {names}, step {step}: {word}"
        np.testing.assert_equal(*results, err_msg=where)
        states = [model.state_dict() | {"gradients": model.flat_gradients()} for model in models]
        for path in states[0]:
            assert states[0][path].tobytes() == states[1][path].tobytes(), f"{where}, {path}"
    return names, models[0].why_not_captured


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(threads, "MIN_SHARD_FLOPS", 1.0)
    monkeypatch.setattr(threads, "MIN_SHARD_IMAGES", 16)
    yield
    gpucnn.set_num_threads(None)


def histories(seeds, length):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", CaptureWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        return [assert_same_history(seed, length) for seed in seeds]


@pytest.mark.parametrize("first", range(0, 12, 4))
def test_custom_layers_give_the_same_history_captured_and_eager(first):
    histories(range(first, first + 4), 25)


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(1000, 1400, 20))
def test_custom_layers_give_the_same_long_history_captured_and_eager(first):
    histories(range(first, first + 20), 60)


@pytest.mark.parametrize("name", RIGHT)
def test_custom_layers_that_are_right_are_captured(name):
    gpucnn.set_num_threads(1)
    model = gpucnn.Model(network([name], 0, True), SHAPE, backend="numpy").compile()
    chance = random.Random(0)
    for _ in range(6):
        model.train_on_batch(*batch_of(chance, 32))
    assert model.why_not_captured == ""
    assert model._sharded.captures._captured["train"].replayed.is_valid()


@pytest.mark.parametrize("name", WRONG)
def test_custom_layers_that_are_wrong_fall_back(name):
    gpucnn.set_num_threads(1)
    models = [
        gpucnn.Model(network([name], ("wrong", jit), False), SHAPE, backend="numpy").compile(jit=jit)
        for jit in (True, False)
    ]
    captured, chance = models[0], random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(8):
            x, y = batch_of(chance, 32)
            assert len({float(model.train_on_batch(x, y)) for model in models}) == 1
        for _ in range(8):
            x = batch_of(chance, 32)[0]
            assert len({model.predict(x).tobytes() for model in models}) == 1
            for model in models:
                model.layers[1].weight.value[...] *= 1.1
    assert captured.why_not_captured or captured._sharded.captures.failure or name == "keeps the last"
