"""The executor below the model: its contexts, what it leaves to the parts above, and the training run of a `fit`."""

import copy

import numpy as np
import pytest

from gpucnn.callbacks import Callback
from gpucnn.engine.executor import Executor
from gpucnn.errors import NumericError, UnknownNameError
from tests.helpers import small_model, stripes


class Calls(Callback):
    """Calls a function with the model after the first step."""

    def __init__(self, function):
        self.function, self.result = function, None

    def on_step_end(self, model, step):
        if self.result is None:
            self.result = self.function(model)


def count_contexts(model, monkeypatch):
    """Return a list that grows by an item each time the backend is set up for a pass."""
    entered, enter = [], type(model.backend).execution_context
    monkeypatch.setattr(
        type(model.backend), "execution_context", lambda self, **how: entered.append(how) or enter(self, **how)
    )
    return entered


def test_execution_context_is_entered_once_per_step(monkeypatch):
    model, (x, y) = small_model(), stripes(40)
    entered = count_contexts(model, monkeypatch)
    model.train_step(model.as_floats(x), y, 0.1)
    assert len(entered) == 1
    model.train_on_batch(x, y)
    assert len(entered) == 2
    model.fit(x, y, batch_size=10, verbose=0)
    assert len(entered) == 2 + 4


def test_execution_context_of_another_model_is_its_own(monkeypatch):
    one, other = small_model(), small_model()
    entered = count_contexts(one, monkeypatch)
    with one.execution_context(1), other.execution_context(1), one.execution_context(1):
        assert len(entered) == 3
        with one.execution_context(1):
            assert len(entered) == 3
    with one.execution_context(1):
        assert len(entered) == 4


def test_executor_trains_and_scores_without_a_model():
    model, (x, y) = small_model(), stripes(20)
    executor = Executor(copy.deepcopy(model.layers), model.input_shape, backend="numpy").compile("sgd")
    inputs = executor.as_floats(x)
    before = float(executor.test_step(inputs, y)[0])
    for _ in range(5):
        executor.train_step(inputs, y, 0.1)
    assert float(executor.test_step(inputs, y)[0]) < before
    assert not hasattr(executor, "fit")
    assert set(model.config()) - set(executor.config()) == {"class_names", "recipe"}


def test_training_is_that_of_the_running_fit():
    model, (x, y) = small_model(), stripes(40)
    calls = Calls(lambda model: (model.training, model.training.progress))
    model.fit(x, y, epochs=2, batch_size=10, callbacks=[calls], verbose=0)
    training, progress = calls.result
    assert progress == (0.25, 2)
    assert training.progress == (2, 2)
    assert (training.model, training.epoch, training.batch_size) == (model, 2, 10)
    assert model.training is None


def test_training_is_left_out_of_copies():
    model, (x, y) = small_model(), stripes(20)
    calls = Calls(copy.deepcopy)
    model.fit(x, y, batch_size=10, callbacks=[calls], verbose=0)
    assert calls.result.training is None
    calls.result.fit(x, y, verbose=0)


def test_training_step_of_a_callback_is_checked():
    model, (x, y) = small_model(), stripes(20)

    def spoil(model):
        model.parameters()["conv2d_1.bias"].value = np.full(8, np.nan)
        model.train_on_batch(x, y)

    with pytest.raises(NumericError, match="holds NaN"):
        model.fit(x, y, batch_size=10, callbacks=[Calls(spoil)], verbose=0)


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("refresh_statistics", "recalibrate_batch_norm"),
        ("step", "train_step"),
        ("fault", "training.fault"),
        ("evaluat", "evaluate"),
        ("epochs_seen", "epochs_trained"),
    ],
)
def test_missing_attributes_name_the_one_that_was_meant(name, now):
    with pytest.raises(UnknownNameError, match=f"'Model' object has no attribute '{name}'; did you mean {now}?"):
        getattr(small_model(), name)
    assert getattr(small_model(), name, None) is None
    with pytest.raises(AttributeError, match=r"has no attribute '_made_up'$"):
        _ = small_model()._made_up
