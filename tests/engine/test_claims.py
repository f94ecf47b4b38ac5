"""A model is trained by one thread at a time: what callbacks and other threads may do meanwhile."""

import copy
import pickle
import threading

import numpy as np
import pytest

import gpucnn
from gpucnn.backends import Backend
from gpucnn.callbacks import Callback
from gpucnn.errors import ConfigurationError, NumericError
from tests.helpers import assert_same_bits, small_model, stripes

DATA = stripes(40)


class Does(Callback):
    """Does something at the end of each epoch, and keeps what was refused."""

    def __init__(self, what):
        self.what, self.refused = what, []

    def on_epoch_end(self, model, epoch, logs):
        try:
            self.what(model)
        except ConfigurationError as error:
            self.refused.append(str(error))


def fitted(*callbacks, model=None, **options):
    model = small_model() if model is None else model
    model.fit(*DATA, epochs=2, batch_size=10, verbose=0, callbacks=list(callbacks), **options)
    return model


REFUSED = {
    "fit": lambda model: model.fit(*DATA, verbose=0),
    "compile": lambda model: model.compile("adam"),
    "to": lambda model: model.to(Backend(), "float64"),
    "parity": lambda model: gpucnn.parity(model, DATA[0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_callback_calls_that_would_disturb_fit_are_refused(name):
    acts = Does(REFUSED[name])
    model = fitted(acts)
    assert len(acts.refused) == 2
    assert "while fit " in acts.refused[0]
    assert "is running" in acts.refused[0]
    assert_same_bits(model, fitted())
    REFUSED[name](model)  # and afterwards it may be done


def test_fit_within_a_fit_is_refused_with_a_remedy():
    acts = Does(REFUSED["fit"])
    fitted(acts)
    assert acts.refused[0] == (
        "fit was called while fit of the same model is running, and both would change the same weights; call it when "
        "that has ended, or train a copy, copy.deepcopy(model)"
    )


ALLOWED = {
    "predict": lambda model: model.predict(DATA[0]),
    "evaluate": lambda model: model.evaluate(*DATA),
    "save": lambda model: model.state_dict(),
    "another model": lambda model: fitted(),
    "a copy": lambda model: copy.deepcopy(model).fit(*DATA, verbose=0),
    "a pickle": lambda model: pickle.loads(pickle.dumps(model)).fit(*DATA, verbose=0),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_callback_may_predict_and_evaluate_without_effect(name):
    acts = Does(ALLOWED[name])
    assert_same_bits(fitted(acts), fitted())
    assert acts.refused == []


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", ALLOWED)
def test_callback_leaves_the_nan_check_on(name):
    def act(model):
        ALLOWED[name](model)
        model.layers[1].weight.value[...] = np.inf

    with pytest.raises(NumericError, match="conv2d: its weight holds infinity"):
        fitted(Does(act))


def test_callback_may_make_a_step_and_load_weights():
    source = small_model()
    state = source.state_dict()

    def act(model):
        model.train_on_batch(*DATA)
        model.load_state_dict(state)

    acts = Does(act)
    model = fitted(acts, model=source)
    assert acts.refused == []
    assert model.optimizer.steps == 2 * 5
    assert all(np.array_equal(array, state[path]) for path, array in model.state_dict().items())


@pytest.mark.parametrize("name", [*REFUSED, "train_on_batch"])
def test_thread_is_refused_while_another_fits(name):
    acts = {**REFUSED, "train_on_batch": lambda model: model.train_on_batch(*DATA)}[name]
    inside, leave = threading.Event(), threading.Event()

    def wait(model):
        inside.set()
        leave.wait(20)

    model = small_model()
    thread = threading.Thread(target=fitted, args=(Does(wait),), kwargs={"model": model})
    thread.start()
    try:
        assert inside.wait(20)
        assert model.predict(DATA[0]).shape == (40, 3)
        with pytest.raises(ConfigurationError, match=r"while fit .*is running"):
            acts(model)
    finally:
        leave.set()
        thread.join()
    assert_same_bits(model, fitted())


def test_fit_that_failed_is_over():
    def fail(model):
        raise RuntimeError("on purpose")

    model = small_model()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            fitted(Does(fail), model=model)
    model.compile("sgd")
