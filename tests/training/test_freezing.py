"""Frozen parameters: nothing moves them, their gradients are left out, and the backward pass ends behind them."""

import threading

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, optimizers
from gpucnn.callbacks import Callback
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.optimizers import Group
from gpucnn.testing.strict import StrictBackend
from tests.helpers import (
    GROUPS,
    OPTIMIZERS,
    assert_same_bits,
    described,
    rewritten,
    simulated_backend,
    small_model,
    stripes,
)

KERNELS = ("conv2d_parameter_gradients", "conv2d_input_gradient", "dense_parameter_gradients", "dense_input_gradient")


def frozen(model):
    return [path for path, parameter in model.parameters().items() if parameter.frozen]


def moved(model, before):
    after = model.state_dict()
    return {path for path in model.parameters() if (after[path] != before[path]).any()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_freeze_keeps_parameters_under_every_optimizer(backend, name):
    """Neither gradient nor weight decay, from the first step on or after some, when momentum has been gathered."""
    x, y = stripes(40)
    model = small_model(backend=backend, optimizer=OPTIMIZERS[name](GROUPS))
    for fits in range(2):
        if fits:
            model.unfreeze()
            model.fit(x, y, batch_size=20, verbose=0)
        before = model.state_dict()
        model.freeze("conv2d", "batch_norm.scale", "*.bias")
        assert_same_bits_of(model.state_dict(), before)
        model.fit(x, y, epochs=2, batch_size=20, verbose=0)
        assert moved(model, before) == {"batch_norm.shift", "conv2d_1.weight", "dense.weight"}


def assert_same_bits_of(a, b):
    assert all(a[path].tobytes() == b[path].tobytes() for path in b)


def test_freeze_changes_no_step_of_the_others(backend):
    """Freezing changes no gradient; the NumPy engine adds up a bias alone in another order, though."""
    x, y = stripes(30)
    part, whole = (small_model(backend=backend, optimizer=optimizers.SGD(0.1)) for _ in range(2))
    part.freeze("conv2d_1.weight", "dense.bias")
    for model in (part, whole):
        model.train_on_batch(x, y)
    for path, value in whole.state_dict().items():
        if path not in frozen(part):
            assert part.state_dict()[path] == pytest.approx(value, rel=1e-5, abs=1e-7), path


def test_freeze_keeps_slots_of_frozen_parameters():
    """They stay where they lie, and what they are, whatever the others do meanwhile."""
    x, y = stripes(20)
    model = small_model(optimizer=OPTIMIZERS["adam"](GROUPS))
    model.train_on_batch(x, y)
    slots, values, layout = model.optimizer.state_dict(model.backend), model._flat.values, model._flat.layout
    model.freeze("conv2d*").train_on_batch(x, y)
    assert model._flat.values is values
    assert model._flat.layout is layout
    for name, slot in model.optimizer.state_dict(model.backend).items():
        assert (slot == slots[name]).all() == ("conv2d" in name), name
    model.unfreeze().train_on_batch(x, y)
    for name, slot in model.optimizer.state_dict(model.backend).items():
        assert (slot != slots[name]).any(), name


@pytest.fixture
def calls(monkeypatch):
    """The gradients that a backend of the reference kernels is asked for, in order."""
    backend, asked = StrictBackend(), []
    for name in KERNELS:
        original = getattr(backend, name)

        def watched(*args, name=name, original=original, **kwargs):
            asked.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(backend, name, watched, raising=False)
    return backend, asked


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ([], [*KERNELS[2:], *KERNELS[:2], KERNELS[0]]),
        (["dense.weight"], [KERNELS[3], *KERNELS[:2], KERNELS[0]]),
        (["conv2d_1"], [*KERNELS[2:], KERNELS[1], KERNELS[0]]),
        (["conv2d"], [*KERNELS[2:], *KERNELS[:2]]),  # the batch norm behind it is trained
        (["conv2d", "batch_norm"], [*KERNELS[2:], KERNELS[0]]),
        (["conv2d", "batch_norm", "conv2d_1.weight"], [*KERNELS[2:]]),
        (["conv2d*", "batch_norm"], [KERNELS[2]]),
        (["conv2d*", "batch_norm", "dense.weight"], []),
        (["*"], []),
    ],
)
def test_freeze_skips_gradients_nobody_needs(calls, what, expected):
    backend, asked = calls
    model = small_model(backend=backend)
    if what:
        model.freeze(*what)
    before = model.state_dict()
    model.train_on_batch(*stripes(10))
    assert asked == expected
    assert moved(model, before) == set(model.parameters()) - set(frozen(model))


def test_freeze_leaves_gradients_zero(backend):
    model = small_model(backend=backend)
    x, y = stripes(10)
    model.train_on_batch(x, y)
    model.freeze("batch_norm.scale", "conv2d")
    model.train_on_batch(x, y)
    for path, parameter in model.parameters().items():
        assert bool((backend.to_host(parameter.grad) == 0).all()) == (path in frozen(model)), path


def test_freeze_reaches_replicas_of_threads():
    """The replicas that take other slices of the batch know of what is frozen after their making too."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(64, 24, 24, 8)).astype("float32"), generator.integers(0, 4, 64)

    def model():
        stack = [layers.Conv2D(32, 3), layers.BatchNorm(), layers.ReLU(), layers.Conv2D(32, 3), layers.Flatten()]
        made = gpucnn.Model([*stack, layers.Dense(4), layers.Softmax()], (24, 24, 8), backend="numpy")
        return made.compile(optimizers.SGD(0.01))

    results = []
    threads = gpucnn.backends.numpy.threads.num_threads()
    try:
        for count in (1, 2):
            gpucnn.set_num_threads(count)
            trained = model()
            trained.train_on_batch(x, y)
            before = trained.state_dict()
            trained.freeze("conv2d.weight", "batch_norm", "conv2d_1.bias")
            trained.train_on_batch(x, y)
            assert moved(trained, before) == {"conv2d.bias", "conv2d_1.weight", "dense.weight", "dense.bias"}
            results.append(trained.state_dict())
    finally:
        gpucnn.set_num_threads(threads)
    for path, value in results[0].items():
        assert results[1][path] == pytest.approx(value, rel=1e-3, abs=1e-5), path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_freeze_is_the_same_with_captured_steps(name):
    x, y = stripes(70)
    models = []
    for jit in (True, False):
        model = small_model(backend=simulated_backend(), optimizer=OPTIMIZERS[name](GROUPS))
        model.compile(model.optimizer, model.loss, jit=jit)
        model.fit(x, y, epochs=1, batch_size=16, verbose=0)
        model.freeze("conv2d", "dense.bias").fit(x, y, epochs=2, batch_size=16, verbose=0)
        model.unfreeze("dense").fit(x, y, epochs=1, batch_size=16, verbose=0)
        models.append(model)
    assert_same_bits(*models)


def test_freeze_takes_layers_parameters_and_patterns():
    model = small_model()
    assert frozen(model.freeze("conv2d")) == ["conv2d.weight"]
    assert frozen(model.freeze("*_1.b*")) == ["conv2d.weight", "conv2d_1.bias"]
    assert frozen(model.unfreeze("conv2d.weight")) == ["conv2d_1.bias"]
    assert frozen(model.freeze(model.layers[2])) == ["batch_norm.scale", "batch_norm.shift", "conv2d_1.bias"]
    assert frozen(model.unfreeze(model.layers[2], "conv2d_1")) == []
    assert frozen(model.freeze()) == list(model.parameters())
    assert frozen(model.unfreeze(model.layers[0])) == list(model.parameters()), "a layer that holds none"
    inner = gpucnn.Model([layers.Residual([layers.Dense(3), layers.Dense(3)])], (3,), backend="numpy")
    assert frozen(inner.freeze("residual.main.dense_1")) == [f"residual.main.dense_1.{x}" for x in ("weight", "bias")]
    assert frozen(inner.freeze("residual")) == list(inner.parameters())


def test_freeze_before_compile_and_with_groups():
    """Groups may name what is frozen, and are there again when it is not any more."""
    model = gpucnn.Model([layers.Dense(3), layers.Dense(2), layers.Softmax()], (4,), backend="numpy")
    model.freeze("dense_1").compile(optimizers.SGD(0.1, groups=[Group("dense_1", 0.0)]))
    x, y = np.ones((4, 4)), np.array([0, 1, 1, 1])
    before = model.state_dict()
    model.fit(x, y, verbose=0)
    assert moved(model, before) == {"dense.weight", "dense.bias"}
    before = model.unfreeze().state_dict()
    model.fit(x, y, verbose=0)
    assert moved(model, before) == {"dense.weight", "dense.bias"}, "its group stands still"


def test_frozen_parameters_can_be_assigned_and_loaded():
    model = small_model().freeze()
    model.parameters()["dense.bias"].value = np.full(3, 2.0)
    assert model.state_dict()["dense.bias"].tolist() == [2.0] * 3
    model.load_state_dict(small_model(seed=1).state_dict())
    assert_same_bits(model, small_model(seed=1))


def test_freeze_survives_moving_and_saving(tmp_path):
    x, y = stripes(20)
    model = small_model(optimizer=OPTIMIZERS["adamw"](GROUPS)).freeze("conv2d", "*.bias")
    paths = frozen(model)
    assert frozen(model.to(StrictBackend()).to("numpy")) == paths
    before = model.state_dict()
    model.fit(x, y, verbose=0)
    assert not moved(model, before) & set(paths)
    model.save(tmp_path / "m.safetensors")
    loaded = gpucnn.load(tmp_path / "m.safetensors", backend="numpy")
    assert frozen(loaded) == paths
    assert loaded._flat.layout == model._flat.layout
    assert_same_bits(loaded, model)
    before = loaded.state_dict()
    loaded.fit(x, y, verbose=0)
    assert not moved(loaded, before) & set(paths)


def test_freeze_is_empty_in_files_of_older_versions(tmp_path):
    path = tmp_path / "m.safetensors"
    small_model().save(path)
    assert described(path)["frozen"] == []
    rewritten(path, lambda d: d.pop("frozen"))
    assert frozen(gpucnn.load(path, backend="numpy")) == []
    rewritten(path, lambda d: d.update(frozen=["conv2d_9.weight"]))
    with pytest.raises(CheckpointError, match=r"no parameter matches 'conv2d_9\.weight'"):
        gpucnn.load(path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("conv2d_4", r"no parameter matches 'conv2d_4'; there are conv2d\.weight, batch_norm\.scale"),
        ("relu", "no parameter matches 'relu'"),
        (3, r"what is frozen or unfrozen must be a pattern .* not \['dense', 3\]"),
        (layers.Dense(3), r"Dense\(3\) is not a layer of this model; pass one of model\.layers, or its name"),
    ],
)
def test_freeze_refuses_unknown_names_and_changes_nothing(what, message):
    model = small_model()
    for verb in (model.freeze, model.unfreeze):
        with pytest.raises(ConfigurationError, match=message):
            verb("dense", what)
    assert frozen(model) == []


class FreezesBetweenSteps(Callback):
    """Freezes before the 4th step and unfreezes before the 8th, and keeps the weights of each step's end."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, model, step):
        self.steps.append(model.state_dict())
        if len(self.steps) == 3:
            model.freeze("conv2d_1", "batch_norm.scale")
        if len(self.steps) == 7:
            model.unfreeze("conv2d_1")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("where", ["numpy", "simulated"])
def test_freeze_between_steps_of_fit_counts_from_the_next(name, where):
    x, y = stripes(80)
    runs = []
    for jit in (True, False):
        backend = simulated_backend() if where == "simulated" else where
        model, watch = small_model(backend=backend, optimizer=OPTIMIZERS[name](GROUPS)), FreezesBetweenSteps()
        model.compile(model.optimizer, model.loss, jit=jit)
        model.fit(x, y, epochs=3, batch_size=16, callbacks=[watch], verbose=0)
        runs.append(watch.steps)
    for before, after, number in zip(runs[0], runs[0][1:], range(2, 99), strict=False):
        still = {path for path in model.parameters() if (before[path] == after[path]).all()}
        paused = {"conv2d_1.weight", "conv2d_1.bias"} if 4 <= number <= 7 else set()
        assert still == paused | ({"batch_norm.scale"} if number >= 4 else set()), number
    for captured, eager in zip(*runs, strict=True):
        assert_same_bits_of(captured, eager)


def test_freeze_in_another_thread_is_refused_during_fit():
    refused = []

    class Freezes(Callback):
        def on_step_end(self, model, step):
            thread = threading.Thread(target=self.freeze, args=(model,))
            thread.start()
            thread.join()

        def freeze(self, model):
            try:
                model.freeze("dense")
            except ConfigurationError as error:
                refused.append(str(error))

    model = small_model()
    model.fit(*stripes(10), callbacks=[Freezes()], verbose=0)
    assert "cannot be frozen or unfrozen while fit is running in another thread" in refused[0]
    assert frozen(model.freeze("dense")) == ["dense.weight", "dense.bias"]


def test_summary_counts_frozen_parameters(capsys):
    model = small_model().freeze("conv2d*")
    model.summary()
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown if line.split()[:1] in (["trained"], ["frozen"])] == [
        ["trained", "35"],
        ["frozen", "332"],
    ]


def test_profile_counts_no_skipped_products():
    x, y = stripes(4)
    model = small_model().freeze("conv2d", "batch_norm", "conv2d_1.weight")
    rows = {row.path: row for row in model.profile(x, y, repeats=1).layers}
    assert rows["conv2d"].flops_backward == rows["conv2d"].backward_seconds == 0
    assert rows["conv2d_1"].flops_backward == rows["conv2d_1"].flops_forward
    assert rows["dense"].flops_backward == 2 * rows["dense"].flops_forward
    model.freeze("conv2d_1")
    rows = {row.path: row for row in model.profile(x, y, repeats=1).layers}
    assert rows["conv2d_1"].flops_backward == 0


def test_freeze_lets_a_head_learn_on_frozen_features():
    """What freezing is for: a trained network's features serve classes in a new order, and only the head is trained."""
    x, y = stripes(300)
    model = small_model()
    model.fit(x, y, epochs=3, batch_size=32, verbose=0)
    others = 2 - y
    assert model.evaluate(x, others)["accuracy"] < 0.5
    before = model.state_dict()
    model.freeze().unfreeze("dense").fit(x, others, epochs=6, batch_size=32, verbose=0)
    assert moved(model, before) == {"dense.weight", "dense.bias"}
    assert model.evaluate(x, others)["accuracy"] > 0.9
