"""The first replay of each capture is compared with an eager pass; and what the signature of a network sees."""

import warnings
from typing import ClassVar

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn.backends import get_backend
from gpucnn.backends.numpy import arena, memory, threads
from gpucnn.backends.numpy.traced_array import TracedArray
from gpucnn.engine import comparison, passes
from gpucnn.engine.signature import Signature
from gpucnn.errors import CaptureWarning, ConfigurationError
from gpucnn.layers.base import Buffer, Layer

ENGINE = get_backend("numpy")
SHAPE = (6,)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(threads, "MIN_SHARD_FLOPS", 1.0)
    monkeypatch.setattr(threads, "MIN_SHARD_IMAGES", 16)
    gpucnn.set_num_threads(1)
    yield
    gpucnn.set_num_threads(None)


def own(function):
    """A layer that computes a function, by which it also sends gradients back."""

    class Own(Layer):
        batch_independent = capturable = True

        def forward(self, x, *, train):
            return function(self, x, train), lambda dy: function(self, dy, train)

    return Own()


def models(function, jits=(True, False)):
    created = []
    for jit in jits:
        layers = [L.Dense(6), own(function), L.BatchNorm(), L.Dense(3), L.Softmax()]
        optimizer = gpucnn.optimizers.SGD(0.1, momentum=0.9)
        created.append(gpucnn.Model(layers, SHAPE, backend=ENGINE).compile(optimizer, jit=jit))
    return created


def batch(seed, count=32):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *SHAPE)).astype("float32"), rng.integers(0, 3, count)


def alike(both, seeds):
    for seed in seeds:
        assert len({float(model.train_on_batch(*batch(seed))) for model in both}) == 1
    first, second = (model.state_dict() for model in both)
    assert all(first[path].tobytes() == second[path].tobytes() for path in first)


def past_the_doors(self, x, train):
    y = x * 2
    np.asarray(y)[..., 0] = 0
    return y


@pytest.mark.parametrize("count", [1, 2])
def test_replay_that_differs_warns_and_is_never_used(count):
    gpucnn.set_num_threads(count)
    both = models(past_the_doors)
    alike(both, range(2))
    assert both[0].why_not_captured == ""
    with pytest.warns(CaptureWarning, match="they run eagerly, which takes longer: the output of a replay is not"):
        alike(both, [2])
    alike(both, range(3, 8))
    assert both[0].why_not_captured == "the output of a replay is not what the layers themselves compute"


def test_backward_that_differs_is_noticed():
    class Own(Layer):
        batch_independent = capturable = True

        def forward(self, x, *, train):
            return x * 2, lambda dy: past_the_doors(self, dy, train)

    both = [
        gpucnn.Model([L.Dense(6), Own(), L.Dense(3), L.Softmax()], SHAPE, backend=ENGINE).compile(jit=jit)
        for jit in (True, False)
    ]
    with pytest.warns(CaptureWarning, match="the gradient of dense.weight of a replay is not"):
        alike(both, range(5))


def test_buffer_counted_in_python_is_noticed():
    class Counts(Layer):
        batch_independent = capturable = True

        def build(self, input_shape, rng):
            self.steps = Buffer(np.zeros(1), on_host=True)
            return input_shape

        def forward(self, x, *, train):
            self.steps.value[0] += train
            return x * 1, lambda dy: dy * 1

    both = [
        gpucnn.Model([L.Dense(6), Counts(), L.Dense(3), L.Softmax()], SHAPE, backend=ENGINE).compile(jit=jit)
        for jit in (True, False)
    ]
    with pytest.warns(CaptureWarning, match="counts.steps of a replay is not"):
        alike(both, range(6))
    assert float(both[0].layers[1].steps.value[0]) == 6


def test_replay_that_fails_falls_back():
    def picky(self, x, train):
        return x * 1 if memoryview(np.ascontiguousarray(x)).nbytes else x

    both = models(picky)
    alike(both, range(2))
    captured = both[0]._sharded.captures._captured["train"].replayed
    captured._replays["forward"][0]._calls.append(lambda: 1 / 0)
    with pytest.warns(CaptureWarning, match="a replay raised ZeroDivisionError"):
        alike(both, range(2, 6))


def test_comparison_waits_for_changed_weights():
    def first_weight(self, x, train):
        return x if train else x * float(memoryview(weight[0])[0, 0])

    for same in (True, False):
        weight = [np.ones((1, 1), "float32")]
        model, eager = models(first_weight)
        x = batch(0)[0]
        for step in range(5):  # captured, compared and replayed with weights that stay, with other inputs or the same
            given = x if same else batch(step)[0]
            assert model.predict(given).tobytes() == eager.predict(given).tobytes()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            weight[0][...] = 2
            for each in (model, eager):
                each.layers[0].weight.value[...] *= 2
            assert model.predict(x).tobytes() == eager.predict(x).tobytes()
        assert any(issubclass(warning.category, CaptureWarning) for warning in caught)


def test_comparison_leaves_buffers_streams_and_gradients_alone():
    make = lambda: [L.Dense(8), L.BatchNorm(), L.ReLU(), L.Dropout(0.5), L.Dense(3), L.Softmax()]  # noqa: E731
    both = [gpucnn.Model(make(), SHAPE, backend=ENGINE).compile("adam", jit=jit) for jit in (True, False)]
    for seed in range(6):
        alike(both, [seed])
        gradients = [model.flat_gradients().tobytes() for model in both]
        assert gradients[0] == gradients[1]
    assert both[0]._sharded.captures._captured["train"].replayed.is_valid()


def test_comparison_happens_once(monkeypatch):
    created = []
    forward = passes.ShardedPass.forward
    model, _ = models(lambda self, x, train: x * 2)
    monkeypatch.setattr(passes.ShardedPass, "forward", lambda *args: created.append(type(args[0])) or forward(*args))
    for seed in range(10):
        model.train_on_batch(*batch(seed))
    # two passes, one replay and the eager pass it is compared with, seven replays
    assert created.count(passes.ShardedPass) == 2
    assert len(created) == 11


interrupted_in = ""  # a variable of the module: a signature does not see it


class Interrupted(Layer):
    batch_independent = capturable = True

    def forward(self, x, *, train):
        if interrupted_in == "forward":
            raise KeyboardInterrupt
        return past_the_doors(self, x, train), self.back

    def back(self, dy):
        if interrupted_in == "backward":
            raise KeyboardInterrupt
        return past_the_doors(self, dy, True)


@pytest.mark.parametrize("where", ["forward", "backward", "between"])
@pytest.mark.parametrize("train", [True, False])
def test_comparison_that_is_interrupted_is_made_again(where, train, monkeypatch):
    layers = lambda: [L.Dense(6), Interrupted(), L.Dense(3), L.Softmax()]  # noqa: E731
    both = [gpucnn.Model(layers(), SHAPE, backend=ENGINE).compile(jit=jit) for jit in (True, False)]

    def compute(model, seed):
        x, y = batch(seed)
        return float(model.train_on_batch(x, y)) if train else model.predict(x).tobytes()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        for seed in range(6):
            if seed == 2 and where == "between":
                for model in both:
                    model.forward_train(batch(seed)[0], capture=model.jit)  # whose backward never runs
            elif seed == 2 and (train or where == "forward"):
                monkeypatch.setitem(globals(), "interrupted_in", where)
                for model in both:
                    with pytest.raises(KeyboardInterrupt):
                        compute(model, seed)
                monkeypatch.undo()
            assert compute(both[0], seed) == compute(both[1], seed)


def test_comparison_without_memory_leaves_the_pass_eager(monkeypatch):
    both = models(lambda self, x, train: x * 2)
    alike(both, range(2))
    forward, failed = passes.ShardedPass.forward, []

    def short(self, x):
        if type(self) is passes.ShardedPass and not failed:
            failed.append(1)
            raise MemoryError
        return forward(self, x)

    monkeypatch.setattr(passes.ShardedPass, "forward", short)
    with pytest.warns(CaptureWarning, match="memory does not suffice to compare"):
        both[0].train_on_batch(*batch(2))
    both[1].train_on_batch(*batch(2))
    alike(both, range(3, 6))


@pytest.mark.parametrize("count", [1, 2])
def test_backward_without_memory_is_run_anew(count, monkeypatch):
    gpucnn.set_num_threads(count)
    both = []
    for jit in (True, False):
        parts = [L.Dense(6), L.BatchNorm(), L.Dropout(0.5), own(lambda self, x, train: x * 2), L.Dense(3), L.Softmax()]
        both.append(gpucnn.Model(parts, SHAPE, backend=ENGINE).compile("adam", jit=jit))
    alike(both, range(2))
    backward, failed = passes.ShardedPass.backward, []

    def short(self, dy):
        dx = backward(self, dy)
        if type(self) is passes.ShardedPass and not failed:
            failed.append(1)
            raise MemoryError
        return dx

    monkeypatch.setattr(passes.ShardedPass, "backward", short)
    with pytest.warns(CaptureWarning, match="memory does not suffice to compare"):
        both[0].train_on_batch(*batch(2))
    monkeypatch.setattr(passes.ShardedPass, "backward", backward)
    both[1].train_on_batch(*batch(2))
    alike(both, range(3, 6))


def test_replay_without_memory_blames_no_layer():
    both = models(lambda self, x, train: x * 2)
    alike(both, range(2))

    def full():
        raise MemoryError

    both[0]._sharded.captures._captured["train"].replayed._replays["forward"][0]._calls.append(full)
    with pytest.warns(CaptureWarning, match="memory does not suffice .* a smaller batch size leaves room for both$"):
        alike(both, range(2, 6))


def test_backward_that_is_compared_runs_once():
    model, _ = models(lambda self, x, train: x * 2)
    for seed in range(2):
        model.train_on_batch(*batch(seed))
    y, back = model.forward_train(batch(2)[0], capture=True)
    back(np.ones(y.shape, y.dtype))
    with pytest.raises(ConfigurationError, match="already called"):
        back(np.ones(y.shape, y.dtype))


def test_layer_arrays_are_restored_and_followed():
    class Remembers(Layer):
        batch_independent = capturable = True

        def build(self, input_shape, rng):
            self.kernel, self.number = np.arange(6, dtype="float32"), np.float32(3)
            return input_shape

        def forward(self, x, *, train):
            return x * self.kernel, lambda dy: dy * self.kernel

    both = [
        gpucnn.Model([Remembers(), L.Dense(3), L.Softmax()], SHAPE, backend=ENGINE).compile(jit=jit)
        for jit in (True, False)
    ]
    alike(both, range(5))
    assert not isinstance(both[0].layers[0].kernel, TracedArray)
    for model in both:
        model.layers[0].kernel *= 2  # in place: the same array
    alike(both, range(5, 8))
    assert both[0]._sharded.captures._captured["train"].replayed.is_valid()


# --- errors of arithmetic ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_underflow_is_ignored_where_all_errors_raise(backend, count):
    gpucnn.set_num_threads(count)
    side = np.where(np.arange(64) % 2, 1.0, -1.0)[:, None] * np.ones(SHAPE)
    with np.errstate(all="raise"):
        model = gpucnn.Model([L.Dense(2), L.Softmax()], SHAPE, backend=backend)
        model.compile(gpucnn.optimizers.SGD(1.0, momentum=0.9)).fit(side, np.arange(64) % 2, epochs=60, verbose=0)
        model.predict(side * 1000)


@pytest.mark.parametrize("count", [1, 2])
def test_arithmetic_errors_reach_the_user_captured_or_not(count):
    gpucnn.set_num_threads(count)
    model, _ = models(lambda self, x, train: self.backend.xp.log(x - 100) * 0)
    for seed in range(5):
        with np.errstate(invalid="raise"), pytest.raises(FloatingPointError):
            model.predict(batch(seed)[0])
        with np.errstate(invalid="ignore"):
            model.predict(batch(seed)[0])


# --- memory -----------------------------------------------------------------------------------


def test_memory_of_many_batch_sizes_is_bounded_by_the_largest(monkeypatch):
    monkeypatch.setattr(memory, "arena", arena.Arena(max_ratio=memory.MAX_RATIO))
    rng = np.random.default_rng(0)

    def held():
        return sum(block.size for blocks in memory.arena.blocks.values() for block in blocks)

    def step(size):
        arrays = [memory.empty((size * 1000,), np.float32) for _ in range(6)]
        return len([memory.empty((size * 500,), np.float32) for _ in range(3)]) + len(arrays)

    step(600)
    largest = held()
    for _ in range(300):
        step(int(rng.integers(100, 600)))
    assert held() <= memory.MAX_RATIO * largest


# --- signatures -------------------------------------------------------------------------------


class Slots:
    __slots__ = ("rate",)

    def __init__(self):
        self.rate = 0.5


class Config:
    shared: ClassVar = [1.0]
    factor = 2.0

    def __init__(self):
        self.rate, self.inner = 0.5, Slots()


class Deep(Layer):
    scale = 3.0

    def build(self, input_shape, rng):
        rate = [0.1]
        self.config, self.table, self.kinds = Config(), {"a": [1, {"b": 2}]}, {1, 2}
        self.function = lambda x: x * rate[0]
        self.steps = Buffer(np.zeros(1))
        return input_shape

    def forward(self, x, *, train):
        return x, lambda dy: dy


CHANGES = {
    "an attribute of an attribute": lambda layer: setattr(layer.config, "rate", 0.6),
    "slots": lambda layer: setattr(layer.config.inner, "rate", 0.6),
    "a list in a dictionary": lambda layer: layer.table["a"].append(3),
    "a dictionary in a list": lambda layer: layer.table["a"][1].update(b=7),
    "a key": lambda layer: (layer.table["a"][1].pop("b"), layer.table["a"][1].update(c=2)),
    "a set": lambda layer: layer.kinds.add(9),
    "what a function closes over": lambda layer: layer.function.__closure__[0].cell_contents.append(0.2),
    "a class' attribute": lambda layer: setattr(type(layer), "scale", 4.0),
    "the attribute of a class of settings": lambda layer: setattr(Config, "factor", 4.0),
    "a list of a class": lambda layer: Config.shared.append(2.0),
    "a method": lambda layer: setattr(type(layer), "forward", lambda self, x, *, train: (x, lambda dy: dy)),
    "a method of one layer": lambda layer: vars(layer).update(forward=lambda x, *, train: (x, lambda dy: dy)),
    "whether a buffer is on the host": lambda layer: setattr(layer.steps, "on_host", True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_signature_sees_nested_changes(what, monkeypatch):
    for kind, name in ((Deep, "scale"), (Deep, "forward"), (Config, "factor"), (Config, "shared")):
        monkeypatch.setattr(kind, name, vars(kind)[name] if name != "shared" else [1.0])  # put back afterwards
    model = gpucnn.Model([Deep(), L.Dense(2)], SHAPE, backend=ENGINE)
    signature = Signature(model.network)
    assert signature.is_current()
    model.predict(batch(0)[0])
    assert signature.is_current()
    CHANGES[what](model.layers[0])
    assert not signature.is_current()


def test_same_bits_takes_nan_for_nan_and_tells_zeros_apart():
    one = np.array([1.0, np.nan, 0.0])
    assert comparison.same_bits(one, np.array([1.0, -np.nan, 0.0]))
    assert not comparison.same_bits(one, np.array([1.0, np.nan, -0.0]))
    assert not comparison.same_bits(one, np.array([np.nan, 1.0, 0.0]))
    assert not comparison.same_bits(one, one.astype("float32"))
    assert not comparison.same_bits(one, one[:2])
