"""Averages of weights: the formulas in plain loops, when they are shown, captured steps, several fits, Ctrl-C."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, optimizers, schedules
from gpucnn.callbacks import Callback, EarlyStopping, Lookahead, MovingAverage
from gpucnn.callbacks.averaging import _Average
from gpucnn.errors import ConfigurationError
from gpucnn.testing.strict import StrictBackend
from tests.helpers import assert_same_bits, simulated_backend, small_model, stripes

AVERAGES = {
    "moving": lambda: MovingAverage(0.9),
    "moving, every 3": lambda: MovingAverage(schedules.OneCycle(0.9), every=3, warm_up=False),
    "look-ahead": lambda: Lookahead(2, 0.4),
    "look-ahead, growing": lambda: Lookahead(3, schedules.Power(0.95**5, 3)),
}


class Diary(Callback):
    """Keeps the weights after each step, what validation and the epoch's end see, and the history's numbers."""

    def __init__(self):
        self.steps, self.shown = [], []

    def on_step_end(self, model, step):
        self.steps.append(model.state_dict())

    def on_epoch_end(self, model, epoch, logs):
        self.shown.append(model.state_dict())


def averaged(state):
    """Return the arrays of a state that an average is taken of: not those of random streams."""
    return {path: value for path, value in state.items() if value.dtype.kind == "f"}


def fit(model, *callbacks, epochs=2, **options):
    return model.fit(*stripes(70), epochs=epochs, batch_size=16, callbacks=callbacks, verbose=0, **options)


def by_hand(states, start, decay, every=1, warm_up=False):
    """Return the moving average after each step."""
    average, updates, result = averaged(start), 0, []
    for step, state in enumerate(states, start=1):
        if step % every == 0:
            kept = decay(step) if callable(decay) else decay
            if warm_up:
                kept = min(kept, (1 + updates) / (10 + updates))
            average = {path: kept * value + (1 - kept) * state[path] for path, value in average.items()}
            updates += 1
        result.append(average)
    return result


def assert_close(state, expected, tolerance=1e-10):
    for path, value in expected.items():
        assert state[path] == pytest.approx(value, rel=tolerance, abs=tolerance), path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_averages_blend_kernel(backend, rng, share, dtype, tolerance):
    for size in (0, 3, 64, 1000):
        target, source = rng.normal(size=(2, size)).astype(dtype)
        moved = backend.from_host(target.copy())
        backend.lerp_(moved, backend.from_host(source), share)
        moved = backend.to_host(moved)
        assert moved.dtype == dtype
        assert moved == pytest.approx((1 - share) * target + share * source, rel=tolerance, abs=tolerance)
        if share in (0, 1):
            assert (moved == (source if share else target)).all()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: MovingAverage(0.8, warm_up=False), {"decay": 0.8}),
        (lambda: MovingAverage(0.8), {"decay": 0.8, "warm_up": True}),
        (lambda: MovingAverage(0.5, every=3, warm_up=False), {"decay": 0.5, "every": 3}),
        (lambda: MovingAverage(lambda share: share**2, warm_up=False), {"decay": lambda step: (step / 8) ** 2}),
    ],
)
def test_moving_average_follows_its_formula(backend, make, expected):
    """Of parameters and of running statistics; seen at the end of each epoch, and after the last."""
    model = small_model(backend=backend, dtype="float64")
    start, diary, without = model.state_dict(), Diary(), Diary()
    data, steps = stripes(64), 4
    model.fit(*data, epochs=2, batch_size=16, callbacks=[diary, make()], verbose=0)
    small_model(backend=backend, dtype="float64").fit(*data, epochs=2, batch_size=16, callbacks=[without], verbose=0)
    for step, state in enumerate(without.steps):  # the training itself is as without
        assert_close(diary.steps[step], averaged(state), 1e-14)
    averages = by_hand(diary.steps, start, **expected)
    assert_close(diary.shown[0], averages[steps - 1])
    assert_close(diary.shown[1], averages[2 * steps - 1])
    assert_close(model.state_dict(), averages[-1])


@pytest.mark.parametrize(
    ("every", "decay", "of_step"),
    [
        (2, 0.4, lambda step: 0.4),
        (3, schedules.Power(0.95**5, 3), lambda step: 0.95**5 * (step / 8) ** 3),
        (3, lambda share: 0.95**5 * share**3, lambda step: 0.95**5 * (step / 8) ** 3),
        (1, 1.0, lambda step: 1.0),
        (1, 0.0, lambda step: 0.0),
    ],
)
def test_look_ahead_follows_its_formula(backend, every, decay, of_step):
    """A second model, stepped by hand on the same batches, whose weights are moved in plain arrays."""
    x, y = stripes(64)
    model, hand = (small_model(backend=backend, dtype="float64") for _ in range(2))
    slow = averaged(hand.state_dict())
    for step in range(1, 9):
        start = (step - 1) % 4 * 16
        hand.train_on_batch(x[start : start + 16], y[start : start + 16])
        if step % every == 0:
            fast, kept = hand.state_dict(), of_step(step)
            slow = {path: kept * value + (1 - kept) * fast[path] for path, value in slow.items()}
            hand.load_state_dict(fast | slow)
    diary = Diary()
    look = Lookahead(every, decay)
    model.fit(x, y, epochs=2, batch_size=16, shuffle=False, callbacks=[look, diary], verbose=0)
    assert_close(diary.steps[-1], averaged(hand.state_dict()))
    assert_close(model.state_dict(), slow)  # the last full pull


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_are_shown_to_validation_and_kept_at_the_end(name):
    data = stripes(40, seed=1)
    model, diary = small_model(dtype="float64"), Diary()
    history = fit(model, diary, AVERAGES[name](), validation_data=data)
    for epoch, state in enumerate(diary.shown):
        judge = small_model(dtype="float64")
        judge.load_state_dict(state)
        assert judge.evaluate(*data)["loss"] == pytest.approx(history["val_loss"][epoch], rel=1e-12)
    assert model.evaluate(*data)["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-12)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_averages_are_the_same_with_captured_steps(name, dtype):
    models = []
    for jit in (True, False):
        model = small_model(backend=simulated_backend(), dtype=dtype)
        model.compile(model.optimizer, model.loss, jit=jit)
        fit(model, AVERAGES[name](), epochs=2.5)
        models.append(model)
    assert_same_bits(*models)


def test_averages_read_nothing_back_inside_an_epoch():
    backend, reads = StrictBackend(), {}
    x, y = stripes(320)
    for batch_size in (160, 8):
        before, callbacks = backend.reads, [MovingAverage(), Lookahead(3)]
        for callback in callbacks:
            small_model(backend=backend).fit(x, y, epochs=2, batch_size=batch_size, callbacks=[callback], verbose=0)
        reads[batch_size] = backend.reads - before
    assert reads[160] == reads[8] == 2 * 2 * 3  # callbacks, epochs; loss, accuracy and the first bad step


@pytest.mark.parametrize("name", ["moving", "look-ahead"])
def test_averages_over_two_fits_are_those_of_one(backend, name):
    once, twice, callback = small_model(backend=backend), small_model(backend=backend), AVERAGES[name]()
    fit(once, AVERAGES[name](), epochs=3)
    fit(twice, callback, epochs=1)
    fit(twice, callback, epochs=2)
    assert_same_bits(once, twice)


def loaded(model):
    model.load_state_dict(small_model(seed=5).state_dict())
    return model


CHANGES = {
    "weights": loaded,
    "moved": lambda model: model.to(StrictBackend()).to("numpy"),
    "frozen": lambda model: model.freeze("dense"),
    "compiled": lambda model: model.compile(optimizers.SGD(0.05)),
    "another model": lambda model: small_model(seed=9),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_averages_begin_anew_after_the_model_was_changed(change):
    """The callback of before does then what a new one does."""
    models = []
    for keeps in (True, False):
        callback, model = MovingAverage(0.9), small_model()
        fit(model, callback)
        models.append(change(model))
        fit(models[-1], callback if keeps else MovingAverage(0.9))
    assert_same_bits(*models)


def test_early_stopping_restores_the_best_averages():
    data, diary = stripes(60), Diary()
    model = small_model(optimizer=optimizers.SGD(3.0))
    stopping = EarlyStopping("val_loss", patience=2)
    callback = MovingAverage(0.5)
    history = model.fit(
        *data, epochs=30, batch_size=20, callbacks=[callback, diary, stopping], validation_data=data, verbose=0
    )
    assert history.epochs < 30
    assert_close(model.state_dict(), averaged(diary.shown[stopping.best_epoch]), 0)
    assert model.evaluate(*data)["loss"] == pytest.approx(min(history["val_loss"]))
    model.optimizer.learning_rate = 0.0
    fit(model, callback)  # and a further fit begins with the best ones
    for path in model.parameters():
        assert model.state_dict()[path] == pytest.approx(diary.shown[stopping.best_epoch][path], rel=1e-6), path


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_averages_stay_after_an_interruption(error):
    """And a further fit continues with the raw weights."""
    told = []

    class Interrupts(Diary):
        def on_step_end(self, model, step):
            super().on_step_end(model, step)
            if len(self.steps) == 7:
                raise error

        def on_fit_end(self, model):
            told.append("end")

        def on_exception(self, model):
            told.append("interrupted")

    model, callback, diary = small_model(dtype="float64"), MovingAverage(0.8, warm_up=False), Interrupts()
    start = model.state_dict()
    with pytest.raises(error):
        fit(model, callback, diary)
    assert told == ["interrupted"]
    assert_close(model.state_dict(), by_hand(diary.steps, start, 0.8)[-1])
    seen = Diary()
    model.optimizer.learning_rate = 0.0
    fit(model, callback, seen)
    for path in model.parameters():
        assert (seen.steps[-1][path] == diary.steps[-1][path]).all(), path


def test_averages_leave_frozen_parameters_alone(backend):
    model = small_model(backend=backend).freeze("conv2d*", "dense.bias")
    before = model.state_dict()
    for make in AVERAGES.values():
        fit(model, make())
        for path, parameter in model.parameters().items():
            assert (model.state_dict()[path] == before[path]).all() == parameter.frozen, path
    sizes = [sum(map(len, state.flat_state()[:-1])) for state in (model, small_model(backend=backend))]
    assert sizes == [2 * 16 + 32, 432], "nor is it copied: scale, shift and the last weight are left"


@pytest.mark.parametrize("make", [lambda: MovingAverage(0.8), lambda: Lookahead(2)], ids=["moving", "look-ahead"])
@pytest.mark.parametrize("act", ["on_step_end", "on_epoch_end"])
def test_averages_leave_alone_what_is_frozen_during_fit(make, act):
    """From a step on it stays as it is, averaged or not, and what is unfrozen is averaged from then on."""
    seen = {}

    class Freezes(Callback):
        def on_step_end(self, model, step):
            if act == "on_step_end" and model.epochs_trained == 1 and step == 1:
                self.change(model)

        def on_epoch_end(self, model, epoch, logs):
            if act == "on_epoch_end" and epoch == 1:
                self.change(model)

        def change(self, model):
            seen.update(model.freeze("conv2d_1", "batch_norm.scale").unfreeze("dense.bias").state_dict())

    model, callback = small_model(dtype="float64").freeze("dense.bias"), make()
    model.fit(*stripes(60), epochs=4, batch_size=20, callbacks=[callback, Freezes()], verbose=0)
    after = model.state_dict()
    frozen = {"conv2d_1.weight", "conv2d_1.bias", "batch_norm.scale"}
    for path in model.parameters():
        assert (after[path] == seen[path]).all() == (path in frozen), path
    assert len(callback.state(model)["averages"]) == 2


def test_averages_two_at_once_are_refused():
    with pytest.raises(ConfigurationError, match=r"Lookahead\(\) and MovingAverage\(\) both put averages in the place"):
        fit(small_model(), MovingAverage(), Lookahead())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovingAverage(1.5), "decay, or what a schedule .* at most 1, not 1.5"),
        (lambda: Lookahead(decay="fast"), "not 'fast'"),
        (lambda: Lookahead(decay=True), "not True"),
        (lambda: Lookahead(0), "every must be a positive integer, not 0"),
        (lambda: MovingAverage(every=2.5), "every must be a positive integer, not 2.5"),
        (lambda: fit(small_model(), Lookahead(decay=schedules.Constant(2.0))), "decay, .* at most 1, not 2.0"),
        (lambda: fit(small_model(), MovingAverage(lambda share: None)), "decay, .* at most 1, not None"),
        (lambda: schedules.Power(1.0, 0), "power must be a number that is above 0, not 0"),
    ],
)
def test_averages_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_averages_are_described_by_their_arguments():
    for average in (MovingAverage(0.9, 2, warm_up=False), Lookahead(3, schedules.Power(0.95**5, 3))):
        again = _Average.from_config(average.config())
        assert repr(again) == repr(average)
    assert repr(again) == f"Lookahead(every=3, decay=Power({0.95**5}, 3.0))"


def test_buffers_are_views_of_one_flat_array_and_can_be_assigned(backend):
    model = small_model(backend=backend)
    buffer = model.network.buffers()["batch_norm.running_mean"]
    before = buffer.value
    buffer.value = backend.from_host(np.full(4, 0.5, "float32"))
    assert buffer.value is before
    assert (backend.to_host(model.flat_state()[1]) == 0.5).sum() == 4 + 1  # and the normalisation's mean
    with pytest.raises(gpucnn.ShapeError, match=r"a buffer of shape \(4,\) cannot take values of shape \(3,\)"):
        buffer.value = backend.from_host(np.zeros(3, "float32"))


def test_averages_are_better_than_the_last_weights():
    """What it is for: at a rate that stays high weights wander about the best ones, and their mean is near these."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 8))
    y = x @ generator.normal(size=(8, 1)) + generator.normal(size=(600, 1))
    best = np.linalg.lstsq(np.hstack([x, np.ones((600, 1))]), y, rcond=None)[0][:8]
    distance = {}
    for name, callbacks in {"raw": [], "moving": [MovingAverage(0.99)], "slow": [Lookahead(5, 0.8)]}.items():
        model = gpucnn.Model([layers.Dense(1)], (8,), backend="numpy", dtype="float64")
        model.compile(optimizers.SGD(0.1), "mean_squared_error", metrics=[])
        model.fit(x, y, epochs=10, batch_size=8, callbacks=callbacks, verbose=0)
        distance[name] = np.linalg.norm(model.state_dict()["dense.weight"] - best)
    assert distance["moving"] < 0.4 * distance["raw"]
    assert distance["slow"] < 0.7 * distance["raw"]
