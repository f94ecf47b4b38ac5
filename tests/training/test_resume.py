"""A training run that was interrupted and resumed ends with the bits of one that was not."""

import math
import shutil

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, losses, optimizers, schedules
from gpucnn.callbacks import Callback, EarlyStopping, Lookahead, MovingAverage
from gpucnn.callbacks.defects import TrainingMonitor
from gpucnn.callbacks.snapshots import Snapshots
from gpucnn.data.augment import AlternatingFlip, Cutout, Flip, RandomCrop, Rotate, Translate
from gpucnn.optimizers import Group
from gpucnn.training.checkpoints import Checkpoints
from tests.helpers import VALIDATION, Killed, assert_same_bits, numbers, simulated_backend, small_model, stripes

BATCH, COUNT = 16, 56  # three whole batches and a smaller one


class Events(Callback):
    """Counts what happens in a training run, and ends it at a given event."""

    def __init__(self, at=math.inf):
        self.at, self.seen = at, 0

    def _happens(self):
        self.seen += 1
        if self.seen > self.at:
            raise Killed

    def on_fit_begin(self, model):
        self._happens()

    def on_epoch_begin(self, model, epoch):
        self._happens()

    def on_step_end(self, model, step):
        self._happens()

    def on_train_epoch_end(self, model, epoch):
        self._happens()

    def on_epoch_end(self, model, epoch, logs):
        self._happens()

    def on_fit_end(self, model):
        self._happens()


class Diary(Callback):
    """A user's own callback: sums up what it sees in arrays and plain data, and looks at gradients at the end."""

    def on_fit_begin(self, model):
        self.losses, self.sum, self.epochs = [], np.zeros(3, "float32"), {}

    def on_epoch_begin(self, model, epoch):
        self.epochs[str(epoch)] = 0

    def on_step_end(self, model, step):
        self.epochs[max(self.epochs)] += 1
        self.sum = self.sum * np.float32(0.9) + model.backend.to_host(model.parameters()["dense.bias"].value)

    def on_epoch_end(self, model, epoch, logs):
        self.losses.append((epoch, logs["loss"]))

    def on_fit_end(self, model):
        self.gradients = {path: model.backend.to_host(p.grad).copy() for path, p in model.parameters().items()}

    def state(self, model):
        return {"losses": self.losses, "sum": self.sum, "epochs": self.epochs}

    def load_state(self, model, state):
        self.losses, self.sum, self.epochs = [tuple(pair) for pair in state["losses"]], state["sum"], state["epochs"]


class Stops(Callback):
    """Ends the training after its sixth step, by what it finds in the model alone."""

    def on_step_end(self, model, step):
        model.stop_training = model.optimizer.steps == 6


class Case:
    """How a training run is set up: a fresh model, fresh callbacks, and the arguments of `fit`."""

    def __init__(self, optimizer=None, callbacks=list, model=small_model, after=lambda model: None, **options):
        self.optimizer = optimizer or (lambda: optimizers.SGD(schedules.OneCycle(0.1), momentum=0.9))
        self.callbacks, self.make, self.after = callbacks, model, after
        self.options = {"epochs": 3, "batch_size": BATCH, "verbose": 0} | options

    def model(self, **options):
        model = self.make(optimizer=self.optimizer(), **options)
        self.after(model)
        return model

    def fit(self, model, *more, **options):
        callbacks = self.callbacks()
        history = model.fit(*stripes(COUNT), callbacks=[*callbacks, *more], **self.options | options)
        return callbacks, history


def shared_layers(seed=0, backend="numpy", dtype="float32", optimizer=None):
    """A residual network with a layer that is used twice, and two streams of dropout."""
    again = layers.Conv2D(4, 3, padding="same")
    model = gpucnn.Model(
        [
            layers.Conv2D(4, 3, padding="same"),
            layers.Residual([again, layers.BatchNorm(), layers.ReLU(), layers.Dropout(0.3), again]),
            layers.MaxPool2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3),
        ],
        (8, 8, 1),
        seed=seed,
        backend=backend,
        dtype=dtype,
    )
    return model.compile(optimizer, losses.CategoricalCrossEntropy(from_logits=True, label_smoothing=0.1))


def watch():
    return TrainingMonitor((stripes(60, seed=2)[0], stripes(60, seed=2)[1]), every=2, grace_steps=4)


def trained_before(model):
    model.fit(*stripes(40), epochs=2, batch_size=10, verbose=0)


GROUPS = [
    Group("*.bias", lr_multiplier=schedules.PiecewiseConstant([(0, 2.0), (1.5, 0.5)])),
    Group("dense", weight_decay=0.1),
]
CASES = {
    "sgd": Case(),
    "plain sgd, float64": Case(
        lambda: optimizers.SGD(0.1), model=lambda **options: small_model(dtype="float64", **options)
    ),
    "nesterov, groups, clipping": Case(
        lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True, groups=GROUPS, clip_norm=0.5)
    ),
    "adam": Case(lambda: optimizers.Adam(0.01)),
    "adamw, groups": Case(lambda: optimizers.AdamW(schedules.WarmUp(0.01, 2), groups=GROUPS)),
    "muon": Case(lambda: optimizers.Muon(0.02, fallback=optimizers.Adam(0.01))),
    "frozen": Case(lambda: optimizers.Adam(0.01), after=lambda model: model.freeze("conv2d", "batch_norm.shift")),
    "shared layers": Case(model=shared_layers),
    "no shuffle": Case(shuffle=False),
    "trained before": Case(after=trained_before, augment=[AlternatingFlip(), Cutout(3)]),
    "augmentation": Case(augment=[AlternatingFlip(), Translate(2), Cutout(3)]),
    "other augmentation": Case(augment=[Flip(), RandomCrop(padding=1), Rotate(10)]),
    "fractional epochs": Case(epochs=2.6),
    "less than an epoch": Case(epochs=0.5),
    "moving average": Case(callbacks=lambda: [MovingAverage(0.9)], validation_data=VALIDATION),
    "moving average, every 3": Case(callbacks=lambda: [MovingAverage(lambda share: share, every=3, warm_up=False)]),
    "look-ahead": Case(callbacks=lambda: [Lookahead(3, schedules.Power(0.8, 2))], validation_data=VALIDATION),
    "validation": Case(validation_data=VALIDATION),
    "early stopping": Case(
        lambda: optimizers.SGD(3.0),
        callbacks=lambda: [MovingAverage(0.5), EarlyStopping("val_loss", patience=2)],
        validation_data=VALIDATION,
        epochs=12,
    ),
    "watched": Case(lambda: optimizers.Adam(0.01), callbacks=lambda: [watch(), Snapshots(limit=400), Diary()]),
    "stopped within an epoch": Case(callbacks=lambda: [Stops(), Diary(), watch()]),
}

VARIED = ("sgd", "adamw, groups", "muon", "frozen", "augmentation", "moving average", "stopped within an epoch")


def attributes(callbacks):
    """Return everything that callbacks hold, as text and bytes."""

    def plain(value):
        if hasattr(value, "tobytes"):
            return value.dtype.name, value.shape, value.tobytes()
        if isinstance(value, dict):
            return [(key, plain(item)) for key, item in value.items()]
        return [plain(item) for item in value] if isinstance(value, list | tuple) else repr(value)

    hidden = ("_model", "probe", "folder", "decay", "_arrays")
    return [{name: plain(value) for name, value in vars(c).items() if name not in hidden} for c in callbacks]


def assert_same(ours, theirs):
    """Compare (model, callbacks, history): weights, buffers, slots, counts, numbers, and what callbacks hold."""
    (model, callbacks, history), (other, others, expected) = ours, theirs
    assert_same_bits(model, other)
    assert numbers(history) == numbers(expected)
    assert (model.epochs_trained, model.optimizer.steps) == (other.epochs_trained, other.optimizer.steps)
    assert model.stop_training == other.stop_training
    assert model.training is other.training is None
    slots, expected_slots = (each.optimizer.state_dict(each.backend) for each in (model, other))
    assert list(slots) == list(expected_slots)
    assert all(slots[name].tobytes() == expected_slots[name].tobytes() for name in slots)
    assert attributes(callbacks) == attributes(others)


def uninterrupted(case, **options):
    model = case.model(**options)
    return model, *case.fit(model)


def resumed(case, folder, events, every_steps=1, **options):
    """Train in one process after another, each of which is killed at an event, until one reaches the end."""
    for at in (*events, math.inf):
        model = case.model(**options)
        checkpoints = Checkpoints(folder, every_seconds=None, every_steps=every_steps)
        try:
            callbacks, history = case.fit(model, Events(at), checkpoints=checkpoints, resume=True)
        except Killed:
            continue
        return model, callbacks, history
    raise AssertionError


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("gpucnn.core.files.os.fsync", lambda handle: None)


@pytest.mark.parametrize("name", CASES)
def test_resume_from_every_checkpoint(name, tmp_path):
    """From each checkpoint that a training run can write: the first, every step, every epoch, the last."""
    case, all_of_them = CASES[name], Checkpoints(tmp_path / "all", every_seconds=None, every_steps=1, keep=1000)
    model = case.model()
    expected = model, *case.fit(model, checkpoints=all_of_them)
    assert_same(expected, uninterrupted(case))  # saving changes nothing
    epochs, steps = expected[2].epochs, model.optimizer.steps - case.model().optimizer.steps
    assert len(all_of_them.files()) == 1 + steps + epochs
    for file in all_of_them.files():
        folder = tmp_path / file.stem
        folder.mkdir()
        shutil.copy(file, folder)
        model = case.model()
        seldom = Checkpoints(folder, every_seconds=None)
        assert_same((model, *case.fit(model, checkpoints=seldom, resume=True)), expected)


@pytest.mark.parametrize(
    "name", [name if name in VARIED else pytest.param(name, marks=pytest.mark.full) for name in CASES]
)
def test_resume_after_being_killed_repeatedly(name, tmp_path):
    """Some steps after each beginning, with checkpoints at other places than the kills."""
    case = CASES[name]
    expected = uninterrupted(case)
    assert_same(resumed(case, tmp_path / "short", [3] * 60), expected)
    assert_same(resumed(case, tmp_path / "long", [7, 1, 0, 6, 2, 8, 9] * 4, every_steps=2), expected)


@pytest.mark.parametrize("name", ["sgd", "adamw, groups", "muon", "augmentation", "look-ahead", "fractional epochs"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_resume_with_captured_steps(name, dtype, tmp_path):
    """On a backend that captures and replays steps: a resumed run captures again."""
    case, options = CASES[name], {"backend": simulated_backend(), "dtype": dtype}
    expected = uninterrupted(case, **options)
    for at in (4, 7, 9) if name == "sgd" else (7,):
        assert_same(resumed(case, tmp_path / str(at), [at, 3], **options), expected)


@pytest.mark.parametrize("name", ["sgd", "moving average", "watched", "augmentation"])
def test_resume_on_every_backend(name, backend, tmp_path):
    case = CASES[name]
    assert_same(resumed(case, tmp_path, [6, 5, 4], backend=backend), uninterrupted(case, backend=backend))


def test_resume_cases_stop_early_and_find_defects(tmp_path):
    """What the table of cases relies on."""
    _, (_, stopping), history = uninterrupted(CASES["early stopping"])
    assert isinstance(stopping, EarlyStopping)
    assert stopping.best_epoch < history.epochs - 1 < 11
    _, (watch, snapshots, diary), _ = uninterrupted(CASES["watched"])
    assert isinstance(watch, TrainingMonitor)
    assert any(sum(map(bool, held["counts"])) > 1 for key, held in watch.histograms.items() if "gradient" in key)
    assert len(snapshots.epochs) < 4
    assert any(np.any(gradient) for gradient in diary.gradients.values())
    assert Callback().state(small_model()) == {}
