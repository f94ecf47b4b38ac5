"""Groups of parameters: their own rates and weight decays, in plain numbers, captured, moved and saved."""

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, layers, losses, optimizers, schedules
from gpucnn.backends import Backend
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.optimizers import Group
from gpucnn.testing.strict import StrictBackend
from tests.helpers import (
    DECAY,
    GROUPS,
    OPTIMIZERS,
    adam,
    assert_same_bits,
    described,
    rewritten,
    sgd,
    simulated_backend,
    small_model,
    stripes,
)

OF_PATHS = {  # factor of the rate, weight decay
    "conv2d.weight": (1.0, DECAY),
    "batch_norm.scale": (0.5, 0.0),
    "batch_norm.shift": (0.5, 0.0),
    "conv2d_1.weight": (1.0, DECAY),
    "conv2d_1.bias": (2.0, DECAY),
    "dense.weight": (0.25, 0.3),
    "dense.bias": (2.0, DECAY),
}
FORMULAS = {
    "sgd": (sgd, {"momentum": 0.9, "nesterov": True}),
    "plain sgd": (sgd, {}),
    "adam": (adam, {}),
    "adamw": (adam, {"decoupled": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_set_rate_and_weight_decay_of_each_parameter(backend, name):
    """Three steps along gradients that are given, against the formula with the group's rate and weight decay."""
    model = small_model(backend=backend, dtype="float64", optimizer=OPTIMIZERS[name](GROUPS))
    formula, settings = FORMULAS[name]
    generator = np.random.default_rng(3)
    start = {path: model.state_dict()[path].ravel() for path in model.parameters()}
    gradients = []
    for _ in range(3):
        gradients.append({path: generator.normal(size=values.size) for path, values in start.items()})
        for path, parameter in model.parameters().items():
            parameter.grad[...] = backend.from_host(gradients[-1][path].reshape(parameter.shape))
        model.optimizer.update(backend, model._flat.values, model._flat.gradients, model.optimizer.learning_rates_at())
    for path, (factor, decay) in OF_PATHS.items():
        expected = [
            formula(value, [step[path][i] for step in gradients], weight_decay=decay, rate=0.1 * factor, **settings)
            for i, value in enumerate(start[path])
        ]
        assert model.state_dict()[path].ravel() == pytest.approx(np.array(expected), rel=1e-12, abs=1e-13), path


def test_groups_update_by_one_kernel_each(monkeypatch):
    updates = []
    monkeypatch.setattr(Backend, "sgd_update", lambda self, values, *rest, **kwargs: updates.append(len(values)))
    x, y = stripes(8)
    small_model(optimizer=OPTIMIZERS["sgd"](GROUPS)).train_on_batch(x, y)
    assert len(updates) == 4
    assert sum(updates) == len(small_model()._flat.values)
    updates.clear()
    small_model().train_on_batch(x, y)
    assert len(updates) == 1


def test_groups_with_the_optimizers_own_settings_change_nothing(backend):
    x, y = stripes(64)
    grouped = small_model(backend=backend, optimizer=OPTIMIZERS["sgd"]([Group("*.bias"), Group("conv2d")]))
    plain = small_model(backend=backend, optimizer=OPTIMIZERS["sgd"](()))
    for model in (grouped, plain):
        model.fit(x, y, epochs=2, batch_size=20, verbose=0)
    assert_same_bits(grouped, plain)
    assert list(grouped.parameters()) == list(plain.parameters()), "paths keep the order of the network"


def test_groups_take_a_schedule():
    """A bias that is trained in the first epoch only stands still from then on, and the others do not."""
    rate = schedules.PiecewiseConstant([(0, 1.0), (1, 0.0)])
    seen = []

    class Observer(callbacks.Callback):
        def on_epoch_end(self, model, epoch, logs):
            seen.append(model.state_dict())

    x, y = stripes(60)
    model = small_model(optimizer=optimizers.SGD(0.1, momentum=0.9, groups=[Group("dense.bias", rate)]))
    before = model.state_dict()
    history = model.fit(x, y, epochs=3, batch_size=20, callbacks=[Observer()], verbose=0)
    assert (seen[0]["dense.bias"] != before["dense.bias"]).all()
    assert (seen[2]["dense.bias"] == seen[0]["dense.bias"]).all()
    assert (seen[2]["dense.weight"] != seen[0]["dense.weight"]).any()
    assert history["learning_rate"] == [0.1, 0.1, 0.1], "the history shows the rate without a group"


def test_groups_take_their_peak_outside_fit():
    optimizer = optimizers.SGD(0.1, groups=[Group("*", schedules.OneCycle(3.0)), Group("*", 0.5)])
    assert optimizer.learning_rates_at() == pytest.approx([0.1, 0.3, 0.05])
    assert optimizer.learning_rates_at(0, 10) == pytest.approx([0.1, 0.012, 0.05])
    assert optimizer.broadcast_rates(0.2) == pytest.approx([0.2, 0.6, 0.1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.smoke
def test_groups_are_the_same_with_captured_steps(name, dtype):
    """Every group's rate changes from step to step."""
    x, y = stripes(70)
    groups = (*GROUPS[:2], Group("dense", schedules.OneCycle(1.0), 0.3))
    models = []
    for jit in (True, False):
        model = small_model(backend=simulated_backend(), dtype=dtype, optimizer=OPTIMIZERS[name](groups))
        model.compile(model.optimizer, model.loss, jit=jit)
        model.fit(x, y, epochs=3, batch_size=16, verbose=0)
        models.append(model)
    assert_same_bits(*models)


def test_groups_captured_agree_with_portable_kernels():
    x, y = stripes(70)
    groups = (*GROUPS[:2], Group("dense", schedules.OneCycle(1.0), 0.3))
    states = []
    for backend in (simulated_backend(), Backend()):
        model = small_model(backend=backend, dtype="float64", optimizer=OPTIMIZERS["adamw"](groups))
        model.fit(x, y, epochs=2, batch_size=16, verbose=0)
        states.append(model.state_dict())
    for path, value in states[1].items():
        assert states[0][path] == pytest.approx(value, rel=1e-8, abs=1e-9), path


def test_groups_and_slots_survive_moving():
    x, y = stripes(64)
    stay, move = (small_model(dtype="float64", optimizer=OPTIMIZERS["adamw"](GROUPS)) for _ in range(2))
    for model in (stay, move):
        model.fit(x, y, epochs=1, batch_size=16, verbose=0)
    move.to(StrictBackend())
    for model in (stay, move):
        model.fit(x, y, epochs=1, batch_size=16, verbose=0)
    for path, array in stay.state_dict().items():
        assert move.to("numpy").state_dict()[path] == pytest.approx(array, rel=1e-12), path


def test_slots_follow_into_another_dtype_and_layout():
    model = small_model(optimizer=OPTIMIZERS["sgd"](GROUPS))
    x, y = stripes(20)
    model.train_on_batch(x, y)
    before = {path: model.optimizer.slots["velocity"][place.slice] for path, place in model._flat.layout.places.items()}
    assert model.to("numpy", "float64").optimizer.slots["velocity"].dtype == "float64"
    model._groups = [list(reversed(model.parameters()))]
    model._lay_out()
    model.optimizer.rebind(model.backend, model.backend, model._flat.values, model._flat.layout)
    for path, place in model._flat.layout.places.items():
        assert (model.optimizer.slots["velocity"][place.slice] == before[path]).all(), path


def test_groups_are_saved_with_the_model(tmp_path):
    groups = [Group("*.bias", schedules.PiecewiseConstant([(0, 1.0), (3, 0.0)]), 0.0), GROUPS[1]]
    model = small_model(optimizer=OPTIMIZERS["sgd"](groups))
    model.save(tmp_path / "m.safetensors")
    loaded = gpucnn.load(tmp_path / "m.safetensors", backend="numpy")
    assert loaded.optimizer.config() == model.optimizer.config()
    assert repr(loaded.optimizer.groups[0]) == (
        "Group('*.bias', lr_multiplier=PiecewiseConstant([[0.0, 1.0], [3.0, 0.0]]), weight_decay=0.0)"
    )
    assert loaded._flat.layout == model._flat.layout
    assert_same_bits(loaded, model)
    wrong = rewritten(tmp_path / "m.safetensors", lambda d: d["training"]["optimizer"]["groups"][1].update(match="x"))
    with pytest.raises(CheckpointError, match="no parameter matches 'x'"):
        gpucnn.load(wrong)
    assert "groups" not in described_without_groups(tmp_path)


def described_without_groups(folder):
    small_model().save(folder / "plain.safetensors")
    return described(folder / "plain.safetensors")["training"]["optimizer"]


def test_groups_without_a_parameter_are_refused_and_change_nothing():
    model = small_model()
    before, optimizer = model._flat.values, model.optimizer
    message = r"no parameter matches 'conv2d_7\.\*'; there are conv2d\.weight, batch_norm\.scale, .*dense\.bias; a patt"
    with pytest.raises(ConfigurationError, match=message):
        model.compile(optimizers.SGD(groups=[Group("dense"), Group(["*.bias", "conv2d_7.*"])]))
    assert model._flat.values is before
    assert model.optimizer is optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Group(3), r'a group\'s match must be a pattern such as "\*\.bias", or a list of them, not 3'),
        (lambda: Group([]), r"not \[\]"),
        (lambda: Group(["*.bias", ""]), r"not \['\*\.bias', ''\]"),
        (lambda: Group("*", lr_multiplier=-1.0), "a learning rate must be a number that is at least 0, not -1.0"),
        (lambda: Group("*", weight_decay=-1), "weight_decay must be a number that is at least 0, not -1"),
        (lambda: optimizers.SGD(groups=Group("*")), r"groups must be a list of Group objects such as \[Group"),
        (lambda: optimizers.Adam(groups=["*.bias"]), r"groups must be a list of Group objects .*not \['\*\.bias'\]"),
        (lambda: schedules.PiecewiseConstant([(1, 0.5)]), "must stand at position 0, not at 1.0"),
        (lambda: schedules.PiecewiseConstant([]), r"points must be pairs \(position, rate\) with growing positions"),
        (lambda: schedules.PiecewiseConstant([(0, 1)], unit="steps"), "one of 'epochs', 'training', not 'steps'"),
    ],
)
def test_groups_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_groups_decay_weights_alone():
    """The effect groups are most used for: a decay that pulls weights towards 0 leaves what is in another group."""
    model = gpucnn.Model([layers.Dense(3), layers.BatchNorm(), layers.Softmax()], (4,), backend="numpy")
    groups = [Group(["*.bias", "batch_norm"], weight_decay=0.0)]
    model.compile(optimizers.AdamW(0.01, weight_decay=20.0, groups=groups), losses.CategoricalCrossEntropy())
    x, y = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 3
    start = abs(model.state_dict()["dense.weight"]).mean()
    model.fit(x, y, epochs=10, batch_size=20, verbose=0)
    state = model.state_dict()
    assert abs(state["dense.weight"]).mean() < 0.25 * start
    assert abs(state["batch_norm.scale"] - 1.0).max() < 0.3
