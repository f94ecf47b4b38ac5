"""The checks of arguments that the whole package shares."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, initializers, layers, losses, optimizers, schedules
from gpucnn.core import checks
from gpucnn.errors import ConfigurationError

NOT_NUMBERS = [True, np.True_, "3", None, [3], np.array(3), np.array([3]), 3j, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_integers_of_python_and_numpy_become_int(value):
    assert checks.integer(value, "units", minimum=1) == 3
    assert type(checks.integer(value, "units")) is int


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 3.0, np.float32(3)], ids=repr)
def test_integers_refuse_other_values_by_value(value):
    with pytest.raises(ConfigurationError, match="units must be a positive integer, not "):
        checks.integer(value, "units", minimum=1)


@pytest.mark.parametrize(
    ("ends", "wanted"),
    [
        ({}, "an integer"),
        ({"minimum": 0}, "an integer of at least 0"),
        ({"maximum": 4}, "an integer of at most 4"),
        ({"minimum": 0, "maximum": 4}, "an integer from 0 to 4"),
    ],
)
def test_integers_out_of_range_are_refused_with_the_range(ends, wanted):
    with pytest.raises(ConfigurationError, match=f"^n must be {wanted}, not 2.5$"):
        checks.integer(2.5, "n", **ends)
    for wrong in [ends[end] + (1 if end == "maximum" else -1) for end in ends]:
        with pytest.raises(ConfigurationError, match=f"not {wrong}"):
            checks.integer(wrong, "n", **ends)
    for right in ends.values():
        assert checks.integer(right, "n", **ends) == right


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_python_and_numpy_become_float(value):
    assert checks.number(value, "rate") == 0.5
    assert type(checks.number(value, "rate")) is float


def test_numbers_keep_integers():
    assert type(checks.number(np.int64(2), "rate")) is int


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_numbers_must_be_finite(value):
    with pytest.raises(ConfigurationError, match="rate must be a finite number, not "):
        checks.number(value, "rate")


def test_numbers_ranges_are_open_or_closed():
    assert checks.number(0, "rate", minimum=0) == 0
    assert checks.number(1.0, "rate", maximum=1) == 1
    with pytest.raises(ConfigurationError, match="rate must be a number that is above 0 and at most 1, not 0"):
        checks.number(0, "rate", above=0, maximum=1)
    with pytest.raises(ConfigurationError, match="rate must be a number that is at least 0 and below 1, not 1"):
        checks.number(1, "rate", minimum=0, below=1)


@pytest.mark.parametrize("value", [True, np.True_])
def test_flags_are_true_or_false(value):
    assert checks.flag(value, "shuffle") is True


@pytest.mark.parametrize("value", [1, 0, "yes", None, 0.0005, np.array(True)], ids=repr)
def test_flags_refuse_other_values(value):
    with pytest.raises(ConfigurationError, match="nesterov must be True or False, not "):
        checks.flag(value, "nesterov")


def test_choices_are_one_of_those_there_are():
    assert checks.one_of("max", "mode", ("min", "max")) == "max"
    for wrong in ("maximum", 1, None):
        with pytest.raises(ConfigurationError, match="mode must be one of 'min', 'max', not "):
            checks.one_of(wrong, "mode", ("min", "max"))


@pytest.mark.parametrize(("value", "means"), [("1", True), ("0", False), ("", True), (" 0 ", False), (None, True)])
def test_environment_flags_are_one_or_zero(monkeypatch, value, means):
    monkeypatch.delenv("GPUCNN_WINOGRAD", raising=False)
    if value is not None:
        monkeypatch.setenv("GPUCNN_WINOGRAD", value)
    assert checks.environment_flag("GPUCNN_WINOGRAD", default=True) is means


@pytest.mark.parametrize("name", ["GPUCNN_WINOGRAD", "GPUCNN_TF32"])
@pytest.mark.parametrize("value", ["yes", "-1", "off"])
def test_environment_flags_that_are_neither_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    conv = layers.Conv2D(16, 3)

    def predict():
        gpucnn.Model([conv], (8, 8, 16), backend="numpy").predict(np.zeros((8, 8, 8, 16), np.float32))

    with pytest.raises(ConfigurationError, match=f"the environment variable {name} must be 1 or 0, not '{value}'"):
        predict()


REQUIRED = {
    "after": 1,
    "before": 1,
    "every": 2,
    "factor": 0.5,
    "filters": 4,
    "high": 1.0,
    "kernel_size": 3,
    "low": -1.0,
    "match": "*",
    "power": 2.0,
    "rate": 0.1,
    "schedule": 0.1,
    "units": 4,
}


def numeric_arguments():
    """Yield every public class of a description or callback, with each of its arguments that is a number."""
    for module in (layers, optimizers, schedules, losses, callbacks, initializers):
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and kind.__module__.startswith(module.__name__):
                for argument in inspect.signature(kind).parameters.values():
                    options = str(argument.annotation).removeprefix("<class '").removesuffix("'>").split(" | ")
                    if {"int", "float"} & set(options) and (module, name) != (optimizers, "Optimizer"):
                        yield pytest.param(kind, argument, options, id=f"{name}.{argument.name}")


@pytest.mark.parametrize(("kind", "argument", "options"), list(numeric_arguments()))
def test_numeric_arguments_are_checked_alike(kind, argument, options):
    required = [a.name for a in inspect.signature(kind).parameters.values() if a.default is a.empty and a.kind < 2]
    others = {name: REQUIRED[name] for name in required}
    wrong = [True, "1", math.nan, math.inf, 3j, np.array([1.0])] + [1.5] * ("float" not in options)
    for value in wrong:
        with pytest.raises(ConfigurationError):
            kind(**others | {argument.name: value})
    given = REQUIRED.get(argument.name, argument.default)
    if isinstance(given, int | float):
        scalar = np.int64(given) if isinstance(given, int) else np.float64(given)
        kept = getattr(kind(**others | {argument.name: scalar}), argument.name, given)
        assert kept == given or isinstance(kept, schedules.Schedule)
        assert not isinstance(kept, np.generic)
