"""Passes that are captured and replayed: the same bits as eager passes, or no capture at all."""

import copy
import gc
import inspect
import os
import threading

import numpy as np
import pytest

import gpucnn
from benchmarks.nets import gpucnn_model
from gpucnn import layers as L
from gpucnn.backends import Backend, get_backend
from gpucnn.backends.numpy import (
    arena,
    convolution,
    depthwise,
    elementwise,
    im2col,
    kernel_row_gemm,
    lowered_rows,
    memory_layout,
    norm,
    pooling,
    threads,
    tracer,
    winograd,
    winograd_1d,
    workspace,
)
from gpucnn.backends.numpy.tracer import TracedArray, Tracer, as_single_call, on_replay, untraced
from gpucnn.data.augment import Flip, Translate
from gpucnn.engine.signature import Signature
from gpucnn.errors import ConfigurationError, NumericError
from tests.cases import CASES
from tests.helpers import traced_bytes

ENGINE = get_backend("numpy")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(threads, "MIN_SHARD_FLOPS", 1.0)
    monkeypatch.setattr(threads, "MIN_SHARD_IMAGES", 16)
    gpucnn.set_num_threads(1)
    yield
    gpucnn.set_num_threads(None)


# --- functions of arrays ----------------------------------------------------------------------


def written_in_place(x):
    x = x * 1
    x += 1.0
    x[0] = 0
    x[1:, 2] *= 3
    x[..., -1] -= x[..., 0]
    return x


def with_a_mask(x):
    y = np.maximum(x, 0)
    y[x > 1] = 7.0
    return y + x[[2, 0, 1]][:, ::-1].sum()


def quiet(x):
    with np.errstate(all="ignore"):
        return np.log(x - 100) * 0 + np.exp(x * 1e4)


def in_the_scratch(x):
    lines = workspace.get("lines", x.shape, x.dtype)
    np.multiply(x, 2, out=lines)
    sums = workspace.get("lines", x.shape[:1], x.dtype)  # the same memory again
    return lines.sum(axis=(1, 2, 3), out=sums) + 1


def in_several_blocks(x):
    total = np.zeros_like(x[0], shape=(x.shape[2],))
    for part in memory_layout.blocks(len(x), 1, 5):
        total += x[part].sum(axis=(0, 1, 3))
    return total


@as_single_call
def _largest_alone(x):
    if x.max() > 0:  # decides by a number
        x[x < x.max()] = 0


def decides_as_one(x):
    y = x.copy()
    _largest_alone(y)
    return y


FUNCTIONS = {
    "arithmetic": lambda x: (2.0 * x - 1) / (x * x + 1.0) + np.sqrt(np.abs(x)) ** 3,
    "comparison": lambda x: (x > 0.5) * x,
    "product": lambda x: x.reshape(len(x), -1) @ x.reshape(len(x), -1).T,
    "stacked product": lambda x: np.matmul(x, x.swapaxes(2, 3)),
    "sums": lambda x: x.sum(axis=(1, 2), dtype=np.float64) + x.sum() + x.mean(axis=(1, 2)),
    "largest": lambda x: x - x.max(axis=-1, keepdims=True),
    "largest of windows": lambda x: np.maximum.reduce(x[:, :2], axis=1, out=np.empty_like(x[:, 0])),
    "standard deviation": lambda x: x.std(axis=0) + x.var(),
    "in place": written_in_place,
    "a mask": with_a_mask,
    "a single number": lambda x: x[0, 0, 0, 0] * x + x.reshape(-1)[5],
    "turned and copied": lambda x: x.transpose(3, 1, 0, 2).reshape(x.shape[3], -1) + 0,
    "turned, kept in order": lambda x: np.add(x.transpose(1, 2, 3, 0), 1),
    "contiguous": lambda x: memory_layout.contiguous(x[:, ::2]).ravel(),
    "flat": lambda x: x[:, 1:].flatten(),
    "column by column": lambda x: x.reshape(len(x), -1, order="F") * 2,
    "batch last": lambda x: memory_layout.to_hwcn(x) * 2,
    "overlapping": lambda x: memory_layout.strided(y := x.copy(), (5, 8), (4, 4), 8).sum(axis=1) + y.sum(),
    "converted": lambda x: (x.astype(np.float64) * 1.1).astype(np.float32, copy=False),
    "joined": lambda x: np.concatenate([x, x[:2] * 2], axis=0),
    "stacked": lambda x: np.stack([x[0], x[1] + x[2]]),
    "chosen": lambda x: np.where(x > 0, x, 0.1 * x).astype(x.dtype),
    "spread": lambda x: np.broadcast_to(x[:1, :, :1], x.shape) * 2,
    "spread and laid": lambda x: memory_layout.contiguous(np.broadcast_to((x / 3)[:, :1], x.shape)),
    "zeros like it": lambda x: np.zeros_like(x, shape=(2, 3), dtype=np.float32) + x.sum(),
    "padded": lambda x: np.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0))),
    "np.repeat": lambda x: np.repeat(x[0], 3, axis=0),
    "clipped": lambda x: np.clip(x, -0.5, 0.5) + x.clip(0, 1),
    "einsum": lambda x: np.einsum("nhwc,nhwc->c", x, x),
    "windows": lambda x: np.lib.stride_tricks.sliding_window_view(x, (2, 2), axis=(1, 2)).max(axis=(4, 5)),
    "filled": lambda x: (y := np.empty_like(x)).fill(3) or y * x,
    "nothing": lambda x: np.concatenate([x[:0], x]) + x[:, :0].sum(),
    "in the scratch": in_the_scratch,
    "in several blocks": in_several_blocks,
    "warnings": quiet,
    "decides as one": decides_as_one,
    "counts": lambda x: x * np.count_nonzero(x > 0, keepdims=True),
    "places": lambda x: x[:, 1] * x.argmax() + x.repeat(2, axis=0)[: len(x), 0] + x.argmax(axis=0).sum(),
    "draws": lambda x: x * on_replay(lambda: np.arange(x.size, dtype=np.float32).reshape(x.shape)),
    "itself": lambda x: x,
}


def new_tracer():
    return Tracer(arena.Arena(), workspace.detach)


def numbers(seed, batch=16):
    """Images with the batch innermost, from 8 on."""
    x = np.random.default_rng(seed).normal(size=(batch, 4, 5, 3)).astype(np.float32)
    return memory_layout.to_nhwc(memory_layout.to_hwcn(x)) if batch > 7 else x


@pytest.mark.parametrize("batch", [3, 16], ids=["channels innermost", "batch innermost"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_replay_returns_what_the_function_returns(name, batch):
    function, own = FUNCTIONS[name], new_tracer()
    first, replay = own.capture(function, numbers(0, batch))
    assert replay.failure == ""
    assert type(first) is np.ndarray
    for seed, result in ((0, first.copy()), (1, replay(numbers(1, batch)).copy()), (2, replay(numbers(2, batch)))):
        expected = np.asarray(function(numbers(seed, batch)))
        assert result.dtype == expected.dtype
        assert result.tobytes() == expected.tobytes(), seed


def decides(x):
    return x + 1 if x.max() > 100 else x - 1


def sorts(x):
    y = x.copy()
    y.sort(axis=0)
    return y


def adds_at(x):
    y = x.copy()
    np.add.at(y, [0, 0, 1], 1.0)
    return y


def past_it(x):
    y = x.copy()
    np.copyto(np.asarray(y)[:1], 0)
    return np.asarray(y) * 2


def into_its_own(x):
    y = np.empty(x.shape, x.dtype)
    np.add(x, 1, out=y)
    return x + y * 2


def copied_into_its_own(x):
    y = np.empty(x.shape, x.dtype)
    np.copyto(y, x)
    return x + y * 2


UNTRACEABLE = {
    "decides by a number": (decides, "__bool__"),
    "takes a number": (lambda x: x * float(x.sum()), "__float__"),
    "takes an item": (lambda x: x * x.sum().item(), "item"),
    "takes a place": (lambda x: x[: int(x.argmax()) + 1], "__int__"),
    "sorts": (sorts, "sort"),
    "adds at places": (adds_at, "numpy.add.at is not captured"),
    "two results": (lambda x: np.modf(x)[0], "modf"),
    "a separate array": (into_its_own, "an array is written to that is not captured; make it with self.backend.xp"),
    "a separate copy": (copied_into_its_own, "an array is written to that is not captured"),
    "past it": (past_it, "the result was computed"),
    "a method without an explicit wrapper": (
        lambda x: x.compress([True, False, True], axis=0) + 1,
        "numpy.ndarray.compress is not captured",
    ),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_capture_falls_back_where_it_cannot_trace(name):
    function, why = UNTRACEABLE[name]
    own = new_tracer()
    result, replay = own.capture(function, numbers(0))
    assert why in replay.failure
    np.testing.assert_array_equal(result, function(numbers(0)))


def test_capture_notes_its_own_thread_alone():
    own, seen = new_tracer(), []

    def function(x):
        y = x + 1
        other = threading.Thread(target=lambda: seen.append((type(y * 2), tracer.current_tracer())))
        other.start()
        other.join()
        return y

    own.capture(function, numbers(0))
    assert seen == [(np.ndarray, None)]
    assert tracer.current_tracer() is None


def test_capture_ends_on_an_error():
    with pytest.raises(ZeroDivisionError):
        new_tracer().capture(lambda x: x / (1 // 0), numbers(0))
    assert tracer.current_tracer() is None


def test_capture_passes_warnings_on():
    def function(x):
        with np.errstate(divide="ignore"):
            return 1 / (x - x)

    _, replay = new_tracer().capture(function, numbers(0))
    with np.errstate(all="raise"):
        with pytest.raises(FloatingPointError):
            1 / np.zeros(3)
        replay(numbers(1))


def test_capture_reuses_memory():
    def chain(x, length):
        for _ in range(length):
            x = np.add(x.transpose(0, 2, 1, 3), 1)
            x = x.reshape(len(x), -1).copy().reshape(x.shape)
            x = np.broadcast_to(x, x.shape) * 2
        return x

    held = []
    for length in (2, 40):
        own = new_tracer()
        own.capture(lambda x, length=length: chain(x, length), np.zeros((64, 16, 16, 8), np.float32))
        held.append(traced_bytes(own))
    assert held[1] == held[0] < 5 * (64 * 16 * 16 * 8 * 4)


def test_capture_is_not_kept_alive_by_traced_arrays():
    own, created = new_tracer(), []
    _, replay = own.capture(lambda x: created.append(x + 1) or created[0] * 2, numbers(0))
    assert isinstance(created[0], TracedArray)
    del created[:]
    gc.collect()
    assert not any(block.in_use() for blocks in own._arena.blocks.values() for block in blocks)
    np.testing.assert_array_equal(replay(numbers(3)), (numbers(3) + 1) * 2)


def test_traced_arrays_are_plain_without_capture():
    x, own = numbers(0), new_tracer()
    traced = own.traced(x)
    assert untraced(traced).base is x or untraced(traced).base.base is x
    results = [traced + 1, traced[0], traced[0, 0, 0, 0], traced.copy(), traced.astype("f8"), np.stack([traced, x])]
    assert not any(isinstance(result, TracedArray) for result in results)
    traced[0] = 5
    assert (x[0] == 5).all()
    assert float(traced.sum()) == float(x.sum())


KERNELS = (
    im2col,
    convolution,
    depthwise,
    elementwise,
    kernel_row_gemm,
    norm,
    pooling,
    lowered_rows,
    winograd,
    winograd_1d,
)


@pytest.mark.parametrize("module", KERNELS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_kernels_take_memory_from_the_tracer(module):
    text = inspect.getsource(module)
    for past in ("np.zeros(", "np.empty(", "np.ascontiguousarray(", "np.asarray("):
        assert past not in text, f"{past}…) creates arrays that are not traced; see memory.py and memory_layout.py"


# --- layers and networks ----------------------------------------------------------------------


def alike(make, input_shape, *, dtype="float32", **options):
    """Two models that are the same, one of which captures passes."""
    models = []
    for jit in (True, False):
        optimizer = gpucnn.optimizers.SGD(0.05, momentum=0.9)
        model = gpucnn.Model(make(), input_shape, seed=3, backend=ENGINE, dtype=dtype)
        models.append(model.compile(optimizer, options.get("loss", "categorical_crossentropy"), jit=jit))
    return models


def batch_of(seed, input_shape, batch=32, classes=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, *input_shape)).astype("float32"), rng.integers(0, classes, batch)


def assert_same(models):
    first, second = (model.state_dict() for model in models)
    for path in first:
        assert first[path].tobytes() == second[path].tobytes(), path


def train(models, steps, input_shape, batch=32, start=0):
    """Train both by the same batches, and see that they stay the same."""
    for step in range(start, start + steps):
        losses = {float(model.train_on_batch(*batch_of(step, input_shape, batch))) for model in models}
        assert len(losses) == 1
    assert_same(models)


def replays(model, train=True):
    """Whether the model has a captured pass that is valid."""
    captures = model._sharded.captures
    assert captures.failure == ""
    captured = captures._captured["train" if train else "outputs"]
    return captured.replayed is not None and captured.replayed.is_valid() and captured._signature.is_current()


def small():
    return [
        *[L.Conv2D(8, 3, padding="same"), L.BatchNorm(), L.ReLU(), L.MaxPool2D(2), L.Dropout(0.3)],
        *[L.Flatten(), L.Dense(3), L.Softmax()],
    ]


SHAPE = (8, 8, 3)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_replay_the_same_bits(case, count):
    gpucnn.set_num_threads(count)
    batch = max(48, case.batch)

    def make():
        return [L.BatchNorm(), case.make(), L.Flatten(), L.BatchNorm(), L.Dense(3), L.Softmax()]

    models = alike(make, case.input_shape)
    train(models, 5, case.input_shape, batch)
    assert replays(models[0])
    assert models[1]._sharded.captures._captured["train"].replayed is None
    for seed in range(10, 14):
        x = batch_of(seed, case.input_shape, batch)[0]
        first, second = (model.forward(x)[0] for model in models)
        assert first.tobytes() == second.tobytes()
    assert replays(models[0], train=False)
    assert_same(models)


@pytest.mark.parametrize("name", ["lenet", "network-3", "resnet20"])
@pytest.mark.parametrize("count", [1, 2])
def test_networks_replay_the_same_bits(name, count):
    gpucnn.set_num_threads(count)
    models = []
    for jit in (True, False):
        model = gpucnn.networks.by_name(name)(backend=ENGINE, seed=1)
        models.append(model.compile(model.optimizer, "categorical_crossentropy", jit=jit))
    shape = models[0].input_shape
    train(models, 4, shape, 32)
    assert replays(models[0])
    assert len({model.predict(batch_of(9, shape)[0]).tobytes() for model in models}) == 1


@pytest.mark.parametrize("batch", [128, 512])
def test_scratch_of_a_captured_vgg_stays_below_16_megabytes_per_thread(batch):
    gpucnn.set_num_threads(2)
    model = gpucnn_model("vgg", ENGINE)
    for step in range(2):
        model.train_step(*batch_of(step, (32, 32, 3), batch), 0.01)
    captured = model._sharded.captures._captured["train"].replayed
    for one in captured._tracers:
        assert 1 << 20 < sum(buffer.nbytes for buffer in one._scratch.values()) < 16 << 20


def test_float64_is_captured():
    models = alike(small, SHAPE, dtype="float64")
    train(models, 4, SHAPE)
    assert replays(models[0])


def test_replay_is_compared_with_an_eager_pass_once(monkeypatch):
    model, _ = alike(small, SHAPE)
    created = []
    forward = L.Conv2D.forward
    monkeypatch.setattr(L.Conv2D, "forward", lambda *args, **kw: created.append(1) or forward(*args, **kw))
    for expected in (1, 2, 3, 3, 3):
        model.train_on_batch(*batch_of(0, SHAPE))
        assert len(created) == expected


def test_jit_off_captures_nothing():
    _, model = alike(small, SHAPE)
    for step in range(4):
        model.train_on_batch(*batch_of(step, SHAPE))
    assert not replays(model)


def test_portable_backend_captures_nothing():
    model = gpucnn.Model(small(), SHAPE, backend=Backend()).compile()
    for step in range(4):
        model.train_on_batch(*batch_of(step, SHAPE))
    assert not replays(model)


CHANGES = {
    "freeze": lambda model: model.freeze("conv2d.weight"),
    "an attribute": lambda model: setattr(model.layers[4], "rate", 0.6),
    "momentum": lambda model: setattr(model.layers[1], "momentum", 0.5),
    "a state": lambda model: model.load_state_dict(halved(model.state_dict())),
    "values": lambda model: setattr(model.layers[0].bias, "value", np.full(8, 0.5, "float32")),
    "another optimizer": lambda model: model.compile("adam", jit=model.jit),
    "another dtype": lambda model: model.to(ENGINE, "float64"),
    "another backend and back": lambda model: model.to(Backend()).to(ENGINE),
    "another layer": lambda model: list.__setitem__(model.layers, 2, L.LeakyReLU(0.5).to(ENGINE)),
    "no Winograd": lambda model: os.environ.__setitem__("GPUCNN_WINOGRAD", "0"),
}


def halved(state):
    return state | {path: array * 0.5 for path, array in state.items() if path.endswith("weight")}


@pytest.mark.parametrize("what", CHANGES)
def test_changes_between_steps_are_obeyed(what, monkeypatch):
    monkeypatch.setenv("GPUCNN_WINOGRAD", "1")  # and so put back afterwards
    models = alike(lambda: [*small()[:5], L.Conv2D(8, 3, padding="same"), *small()[5:]], SHAPE)
    assert models[0].layers[5].algorithm(32) == "winograd-1d"
    train(models, 4, SHAPE)
    assert replays(models[0])
    for model in models:
        CHANGES[what](model)
    train(models, 5, SHAPE, start=4)
    assert replays(models[0])


@pytest.mark.parametrize("count", [1, 2])
def test_capture_survives_other_batches_in_between(count):
    gpucnn.set_num_threads(count)
    models = alike(small, SHAPE)
    for step, batch in enumerate((32, 32, 32, 20, 32, 50, 50, 50, 32, 32, 1 + 32, 32, 32, 32)):
        train(models, 1, SHAPE, batch, start=step)


def test_capture_survives_the_smaller_last_batch():
    model, _ = alike(small, SHAPE)
    for _ in range(4):
        for batch in (32, 32, 32, 20):
            model.train_on_batch(*batch_of(0, SHAPE, batch))
        assert model._sharded.captures._captured["train"]._key[0] == (32, *SHAPE)


@pytest.mark.parametrize("count", [1, 2])
def test_fit_is_the_same_captured_and_eager(count):
    gpucnn.set_num_threads(count)
    models = alike(small, SHAPE)
    x, y = batch_of(0, SHAPE, 150)
    histories = [
        model.fit(
            *(x, y), epochs=3, batch_size=32, validation_data=(x, y), augment=[Flip(), Translate(1)], verbose=0
        ).history
        for model in models
    ]
    for what in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert histories[0][what] == histories[1][what]
    assert_same(models)


def test_fit_releases_captured_memory():
    model, _ = alike(small, SHAPE)
    x, y = batch_of(0, SHAPE, 150)
    model.fit(x, y, epochs=2, batch_size=32, verbose=0)
    assert model._sharded.captures._captured["train"].replayed is None


def test_layer_that_declares_nothing_is_not_captured():
    class Counts(L.ReLU):
        batch_independent = True

        def forward(self, x, *, train):
            self.count = getattr(self, "count", 0) + 1
            return super().forward(x, train=train)

    assert not Counts.capturable
    model = gpucnn.Model([Counts(), *small()], SHAPE, backend=ENGINE).compile()
    for step in range(5):
        model.train_on_batch(*batch_of(step, SHAPE))
    assert model.why_not_captured == "layers that do not declare capturable = True: counts"
    assert model.layers[0].count == 5


def test_layer_with_a_false_declaration_runs_eagerly():
    class Decides(L.Layer):
        batch_independent = capturable = True

        def forward(self, x, *, train):
            factor = 2.0 if float(x.sum()) > 0 else 0.5
            return x * factor, lambda dy: dy * factor

    models = alike(lambda: [L.Conv2D(3, 1), Decides(), *small()], SHAPE)
    train(models, 6, SHAPE)
    assert "__float__" in models[0]._sharded.captures.failure
    assert models[0]._sharded.captures._captured["train"].replayed is None


def test_capture_backs_off_where_settings_change_each_step(monkeypatch):
    model, _ = alike(small, SHAPE)
    captures = []
    capture = Tracer.capture
    monkeypatch.setattr(Tracer, "capture", lambda *args: captures.append(1) or capture(*args))
    for step in range(40):
        model.layers[1].epsilon = 1e-5 + step * 1e-9
        model.train_on_batch(*batch_of(step, SHAPE))
    assert len(captures) <= 2 * 5


def test_backward_of_a_replayed_inference():
    models = alike(small, SHAPE)
    x, dy = batch_of(0, SHAPE)[0], np.ones((32, 3), "float32")
    for _ in range(4):
        results = []
        for model in models:
            model.zero_grad()
            _, backward = model.forward(x)
            results.append((backward(dy).tobytes(), model.flat_gradients().tobytes()))
        assert results[0] == results[1]
    assert replays(models[0], train=False)


def test_outputs_belong_to_the_caller():
    model, _ = alike(small, SHAPE)
    outputs = [model.forward(batch_of(seed, SHAPE)[0])[0] for seed in range(5)]
    assert len({y.tobytes() for y in outputs}) == 5


def test_predict_in_several_threads_at_once():
    model, other = alike(small, SHAPE)
    expected = [other.predict(batch_of(seed, SHAPE)[0]) for seed in range(20)]
    wrong = []

    def predict():
        for seed in range(20):
            if not np.array_equal(model.predict(batch_of(seed, SHAPE)[0]), expected[seed]):
                wrong.append(seed)

    together = [threading.Thread(target=predict) for _ in range(4)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert not wrong
    assert not any(isinstance(p.value, TracedArray) for p in model.parameters().values())


def test_copy_of_a_model_learns_for_itself():
    model, _ = alike(small, SHAPE)
    for step in range(4):
        model.train_on_batch(*batch_of(step, SHAPE))
    before = model.predict(batch_of(9, SHAPE)[0])
    clone = copy.deepcopy(model)
    clone.to(ENGINE)
    for step in range(4):
        clone.train_on_batch(*batch_of(step, SHAPE))
    np.testing.assert_array_equal(model.predict(batch_of(9, SHAPE)[0]), before)
    assert not np.array_equal(clone.predict(batch_of(9, SHAPE)[0]), before)


def test_capture_that_fails_leaves_the_model_as_it_was(monkeypatch):
    model, _ = alike(small, SHAPE)
    model.train_on_batch(*batch_of(0, SHAPE))
    with monkeypatch.context() as patch:
        patch.setattr(L.MaxPool2D, "forward", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.train_on_batch(*batch_of(1, SHAPE))
    assert not any(isinstance(p.value, TracedArray) for p in model.parameters().values())
    for step in range(3):
        assert np.isfinite(float(model.train_on_batch(*batch_of(step, SHAPE))))
    assert replays(model)


def test_nan_in_a_replay_is_traced_to_its_layer():
    model, _ = alike(small, SHAPE)
    x, y = batch_of(0, SHAPE, 32 * 6)

    class Spoil(gpucnn.callbacks.Callback):
        def on_step_end(self, model, step):
            assert replays(model) == (step > 0)
            if step == 3:
                model.layers[0].bias.value[2] = np.nan

    with pytest.raises(NumericError, match="conv2d") as caught:
        model.fit(x, y, batch_size=32, callbacks=[Spoil()], verbose=0)
    assert caught.value.step == 5


def test_backward_of_a_training_step_runs_once():
    model, _ = alike(small, SHAPE)
    for step in range(2):
        model.train_on_batch(*batch_of(step, SHAPE))
    _, backward = model._sharded.forward(ENGINE, batch_of(0, SHAPE)[0], train=True, need_dx=False)
    backward(np.ones((32, 3), "float32"))
    with pytest.raises(ConfigurationError, match="already called"):
        backward(np.ones((32, 3), "float32"))


def test_backward_belongs_to_the_latest_forward():
    model, _ = alike(small, SHAPE)
    for step in range(2):
        model.train_on_batch(*batch_of(step, SHAPE))
    _, first = model.forward_train(batch_of(0, SHAPE)[0], capture=True)
    _, second = model.forward_train(batch_of(1, SHAPE)[0], capture=True)
    with pytest.raises(ConfigurationError, match="already called"):
        first(np.ones((32, 3), "float32"))
    second(np.ones((32, 3), "float32"))


def test_inference_between_forward_and_backward():
    models = alike(small, SHAPE)
    train(models, 3, SHAPE)
    x = batch_of(5, SHAPE)[0]
    for model in models:
        for _ in range(3):
            expected = model.forward(x)[0]
    results = []
    for model in models:
        model.zero_grad()
        _, backward = model.forward_train(batch_of(1, SHAPE)[0], capture=model.jit)
        between = model.forward(x)[0]
        assert not np.array_equal(between, expected)  # the running statistics moved
        backward(np.ones((32, 3), "float32"))
        results.append((between.tobytes(), model.flat_gradients().tobytes(), model.forward(x)[0].tobytes()))
    assert results[0] == results[1]
    assert replays(models[0])


def test_training_and_inference_share_their_memory():
    model, _ = alike(small, SHAPE)
    for step in range(3):
        model.train_on_batch(*batch_of(step, SHAPE))
    shared = model._sharded.captures._captured["train"].replayed._tracers[0]
    held = traced_bytes(shared)
    for step in range(3):
        model.forward(batch_of(step, SHAPE)[0])
        model.train_on_batch(*batch_of(step, SHAPE))
    assert replays(model)
    assert replays(model, train=False)
    assert model._sharded.captures._captured["outputs"].replayed._tracers[0] is shared
    assert traced_bytes(shared) < 1.2 * held


def test_signature_notices_arrays_and_attributes():
    model, _ = alike(small, SHAPE)
    changes = [
        lambda: setattr(model.layers[1], "epsilon", 1e-3),
        lambda: model.layers[0].bias.rebind(model.layers[0].bias.value.copy(), model.layers[0].bias.grad),
        lambda: model.layers[0].bias.rebind(model.layers[0].bias.value, None),
        lambda: model.layers[1].running_mean.rebind(np.zeros(8, "float32")),
        lambda: setattr(model.layers[0].weight, "frozen", True),
        lambda: list.append(model.layers, L.ReLU()),  # which users cannot do
    ]
    for change in changes:
        signature = Signature(model.network)
        assert signature.is_current()
        change()
        assert not signature.is_current()
