"""Optimizers against their formulas in plain numbers, on every backend; schedules at their corners."""

import math

import numpy as np
import pytest

import gpucnn.backends.numpy
from gpucnn import optimizers, schedules
from gpucnn.backends import get_backend
from gpucnn.errors import ConfigurationError
from gpucnn.optimizers.base import FLUSH_EVERY
from tests.helpers import RATE, adam, sgd

START = [1.0, -2.0, 0.5]
GRADIENTS = [[0.1, -0.2, 0.3], [0.4, 0.0, -0.1], [-0.3, 0.2, 0.2]]


ROWS = {
    "sgd": (optimizers.SGD(RATE), sgd, {}),
    "momentum": (optimizers.SGD(RATE, momentum=0.9), sgd, {"momentum": 0.9}),
    "nesterov": (
        optimizers.SGD(RATE, momentum=0.8, nesterov=True, weight_decay=0.1),
        sgd,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "sgd_decay": (optimizers.SGD(RATE, weight_decay=0.2), sgd, {"weight_decay": 0.2}),
    "adam": (optimizers.Adam(RATE), adam, {}),
    "adam_decay": (optimizers.Adam(RATE, weight_decay=0.1), adam, {"weight_decay": 0.1}),
    "adamw": (optimizers.AdamW(RATE, weight_decay=0.1), adam, {"weight_decay": 0.1, "decoupled": True}),
    "adam_betas": (
        optimizers.Adam(RATE, beta1=0.5, beta2=0.9, epsilon=1e-3),
        adam,
        {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3},
    ),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.smoke
def test_optimizers_three_steps(row, backend, dtype, tolerance):
    template, formula, settings = ROWS[row]
    optimizer = type(template).from_config(template.config())
    values = backend.from_host(np.array(START, dtype))
    optimizer.reset(backend, values)
    for gradients in GRADIENTS:
        optimizer.update(backend, values, backend.from_host(np.array(gradients, dtype)), optimizer.learning_rate_at())
    expected = [formula(start, [g[i] for g in GRADIENTS], **settings) for i, start in enumerate(START)]
    moved = backend.to_host(values)
    assert moved.dtype == dtype
    assert moved == pytest.approx(np.array(expected), rel=tolerance, abs=tolerance)
    assert optimizer.steps == 3


@pytest.mark.parametrize("row", ROWS)
def test_optimizers_update_part_by_part_with_the_same_bits(row, monkeypatch):
    monkeypatch.setattr(gpucnn.backends.numpy, "UPDATE_BLOCK", 7)
    rng = np.random.default_rng(0)
    start, steps = rng.normal(size=23).astype("float32"), rng.normal(size=(3, 23)).astype("float32")
    ends = []
    for name in ("reference", "numpy"):
        optimizer, values = type(ROWS[row][0]).from_config(ROWS[row][0].config()), start.copy()
        optimizer.reset(get_backend(name), values)
        for gradients in steps:
            optimizer.update(get_backend(name), values, gradients, RATE)
        ends.append((values, *optimizer.slots.values()))
    for reference, engine in zip(*ends, strict=True):
        assert reference.tobytes() == engine.tobytes()


@pytest.mark.parametrize("name", ["reference", "numpy"])
@pytest.mark.parametrize(("optimizer", "slot"), [("sgd", "velocity"), ("adam", "mean")])
def test_momentum_without_gradients_decays_to_zero(optimizer, slot, name):
    """0.9 of the smallest numbers there are rounds to themselves, so that it would never reach 0 by itself."""
    backend = get_backend(name)
    optimizer = optimizers.SGD(RATE, momentum=0.9) if optimizer == "sgd" else optimizers.Adam(RATE)
    values, gradients = np.ones(3, np.float32), np.array([1, 0, 0], np.float32)
    optimizer.reset(backend, values)
    for _ in range(4 * FLUSH_EVERY):
        optimizer.update(backend, values, gradients, RATE)
        gradients[:] = [0, 0, 1e-37]  # the last is small, but it is a normal number
    assert optimizer.slots[slot][0] == 0
    assert optimizer.slots[slot][2] > 9e-38
    assert np.isfinite(values).all()


def test_optimizers_are_all_tested():
    shipped = {kind for kind in vars(optimizers).values() if isinstance(kind, type)}
    shipped = {kind for kind in shipped if issubclass(kind, optimizers.Optimizer)} - {optimizers.Optimizer}
    shipped -= {optimizers.Muon}  # which is for matrices; see tests/training/test_muon.py
    assert {type(row[0]) for row in ROWS.values()} == shipped


def test_optimizer_serves_one_model(backend):
    optimizer = optimizers.SGD(0.1, momentum=0.9)
    first, second = (backend.from_host(np.zeros(3)) for _ in range(2))
    optimizer.reset(backend, first)
    optimizer.reset(backend, second)
    with pytest.raises(ConfigurationError, match="is already bound to another model"):
        optimizer.update(backend, first, first, 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.SGD(-0.1), "a learning rate must be a number that is at least 0, not -0.1"),
        (lambda: optimizers.SGD("fast"), "not 'fast'"),
        (lambda: optimizers.SGD(math.nan), "not nan"),
        (
            lambda: optimizers.SGD(0.1, momentum=1.0),
            "momentum must be a number .* below 1, not 1.0",
        ),
        (lambda: optimizers.SGD(0.1, nesterov=True), "nesterov=True needs a momentum above 0"),
        (lambda: optimizers.SGD(0.1, weight_decay=-1), "weight_decay must be a number that is at least 0, not -1"),
        (lambda: optimizers.Adam(0.1, beta2=1.5), "beta2 must be a number that is at least 0 and below 1, not 1.5"),
        (lambda: optimizers.Adam(0.1, epsilon=0), "epsilon must be a number that is above 0, not 0"),
        (lambda: schedules.Cosine(-1), "a learning rate must be a number that is at least 0, not -1"),
        (lambda: schedules.StepDecay(0.1, every=0), "every must be a number that is above 0, not 0"),
        (lambda: schedules.ExponentialDecay(0.1, factor=-1), "factor must be a number that is above 0, not -1"),
        (
            lambda: schedules.OneCycle(0.1, warmup_fraction=1.0),
            "warmup_fraction must be a number that is above 0 and below 1, not 1.0",
        ),
        (lambda: schedules.PiecewiseLinear([(0, 1)]), "at least two pairs"),
        (lambda: schedules.PiecewiseLinear([(0, 1), (0, 2)]), "growing positions"),
        (lambda: schedules.PiecewiseLinear([(0, 1), (1, 2)], unit="steps"), "one of 'epochs', 'training', not 'steps'"),
        (lambda: schedules.WarmUp(0.1, epochs=-1), "epochs must be a number that is above 0, not -1"),
        (lambda: optimizers.Optimizer.resolve("fastest"), "there is no optimizer named 'fastest'; there are Adam"),
        (lambda: optimizers.Optimizer.resolve(3), "expected an optimizer or its name, not 3"),
    ],
)
def test_optimizer_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        (schedules.Constant(0.3), 4, {0: 0.3, 3.9: 0.3}),
        (schedules.StepDecay(1.0, every=2, factor=0.5), 6, {0: 1.0, 1.99: 1.0, 2: 0.5, 4.5: 0.25}),
        (schedules.ExponentialDecay(2.0, factor=0.5), 4, {0: 2.0, 1: 1.0, 3: 0.25}),
        (schedules.Cosine(1.0), 4, {0: 1.0, 2: 0.5, 4: 0.0}),
        (schedules.Cosine(1.0, final=0.2), 4, {0: 1.0, 2: 0.6, 4: 0.2}),
        (schedules.PiecewiseLinear([(0, 0.0), (2, 0.4), (4, 0.0)]), 9, {0: 0, 1: 0.2, 2: 0.4, 3: 0.2, 4: 0, 8: 0}),
        (schedules.PiecewiseLinear([(0.25, 1.0), (1, 0.0)], unit="training"), 8, {0: 1, 2: 1, 5: 0.5, 8: 0}),
        (schedules.PiecewiseConstant([(0, 1.0), (3, 0.5)]), 4, {0: 1.0, 2.9: 1.0, 3: 0.5, 3.9: 0.5}),
        (schedules.PiecewiseConstant([(0, 0.1), (0.5, 0.4)], unit="training"), 4, {0: 0.1, 1.9: 0.1, 2: 0.4, 4: 0.4}),
        (schedules.OneCycle(1.0, warmup_fraction=0.25, start_factor=0.0), 8, {0: 0.0, 1: 0.5, 2: 1.0, 5: 0.5, 8: 0.0}),
        (schedules.WarmUp(0.4, epochs=2), 8, {0: 0.004, 1: 0.2, 2: 0.4, 7: 0.4}),
        (schedules.WarmUp(schedules.Cosine(1.0), epochs=1), 5, {0: 0.01, 0.5: 0.5, 1: 1.0, 3: 0.5, 5: 0.0}),
        (schedules.WarmUp(schedules.Cosine(1.0), epochs=5), 3, {0: 0.01, 1: 0.2, 2.5: 0.5}),
    ],
    ids=lambda value: repr(value) if isinstance(value, schedules.Schedule) else None,
)
@pytest.mark.smoke
def test_schedules_at_their_corners(schedule, epochs, expected):
    for epoch, rate in expected.items():
        assert schedule(epoch, epochs) == pytest.approx(rate, abs=1e-12), epoch
    assert schedule.peak >= max(expected.values()) - 1e-12
    again = schedules.Schedule.from_config(schedule.config())
    assert again.config() == schedule.config()
    assert [again(e, epochs) for e in expected] == [schedule(e, epochs) for e in expected]


def test_schedule_is_at_its_peak_outside_fit():
    optimizer = optimizers.SGD(schedules.OneCycle(0.1))
    assert optimizer.learning_rate_at() == 0.1
    assert optimizer.learning_rate_at(0, 10) == pytest.approx(0.004)
