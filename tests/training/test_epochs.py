"""Epochs that are not a whole number: the last one is cut, and schedules, history, bar and recipes know."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import gpucnn
from gpucnn import callbacks, networks, optimizers, schedules
from gpucnn.cli import app
from gpucnn.core.console import PlainConsole
from gpucnn.data.batches import check_epochs, num_steps
from gpucnn.networks import Recipe
from gpucnn.training import progress
from tests.helpers import assert_same_bits, simulated_backend, small_model, stripes


class Steps(callbacks.Callback):
    """Counts the steps of each epoch, and keeps the rates by hand."""

    def __init__(self):
        self.counts = []

    def on_epoch_begin(self, model, epoch):
        self.counts.append(0)

    def on_step_end(self, model, step):
        self.counts[-1] += 1


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [
        (3, 10, [10, 10, 10]),
        (2.5, 10, [10, 10, 5]),
        (9.9, 10, [10] * 9 + [9]),  # 9.9 − 9 is a little more than 0.9
        (1.1, 10, [10, 1]),
        (1.11, 10, [10, 2]),  # rounded up
        (0.3, 10, [3]),
        (1e-9, 10, [1]),
        (2.999, 10, [10, 10, 10]),
        (1.7, 391, [391, 274]),
    ],
)
def test_fractional_epochs_count_their_steps(epochs, steps, expected):
    assert [num_steps(epoch, epochs, steps) for epoch in range(len(expected))] == expected


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (2.0000001, 2),
        (0.1 * 30, 3),
        (0.9999999, 1),
        (1e-9, 1e-9),
        (np.float32(2), 2),
        (np.int64(4), 4),
        (2.25, 2.25),
        (0, 0),
    ],
)
def test_fractional_epochs_within_rounding_are_whole(epochs, expected):
    assert check_epochs(epochs) == expected


def test_fractional_epochs_shorten_the_last_epoch_alone(backend):
    """The steps that are made are the first ones of a whole epoch: same order, same dropout, same weights."""
    x, y = stripes(100)

    class Stop(callbacks.Callback):
        def on_step_end(self, model, step):
            model.stop_training = model.optimizer.steps == 8

    cut, stopped, watch = small_model(backend=backend), small_model(backend=backend), Steps()
    history = cut.fit(x, y, epochs=1.6, batch_size=20, callbacks=[watch], verbose=0)
    stopped.fit(x, y, epochs=2, batch_size=20, callbacks=[Stop()], verbose=0)
    assert watch.counts == [5, 3]
    assert cut.optimizer.steps == 8
    assert history.epochs == cut.epochs_trained == 2
    assert_same_bits(cut, stopped)


def test_schedules_span_fractional_epochs():
    """One cycle over 1.5 epochs of 4 steps is one over 6 steps."""
    rates = []

    class Watched(optimizers.SGD):
        def learning_rates_at(self, epoch=None, epochs=1.0):
            rates.append(super().learning_rates_at(epoch, epochs)[0])
            return [rates[-1]]

    try:
        x, y = stripes(40)
        small_model(optimizer=Watched(schedules.OneCycle(0.3, warmup_fraction=1 / 3, start_factor=0.0))).fit(
            x, y, epochs=1.5, batch_size=10, verbose=0
        )
    finally:
        optimizers.Optimizer.registry.pop("Watched")
    assert rates == pytest.approx([0.0, 0.15, 0.3, 0.225, 0.15, 0.075])


def test_progress_mean_is_over_samples():
    x, y = stripes(100)
    history = small_model().fit(x, y, epochs=2.25, batch_size=25, validation_data=(x, y), verbose=0)
    loss = history["loss"]
    assert history["cumulative_loss"] == pytest.approx(
        [loss[0], (loss[0] + loss[1]) / 2, (100 * (loss[0] + loss[1]) + 25 * loss[2]) / 225]
    )
    assert len(history["val_loss"]) == 3
    assert history["seconds_per_step"][2] == pytest.approx(history["seconds"][2])


def test_fractional_epochs_are_shown(capsys, monkeypatch):
    begun = []
    monkeypatch.setattr(progress.Lines, "step", lambda self, totals: begun.append(self.head))
    x, y = stripes(40)
    small_model().fit(x, y, epochs=1.5, batch_size=10, verbose=1)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 1/1.5", "epoch 1.5/1.5"]
    assert begun == ["epoch 1/1.5"] * 4 + ["epoch 1.5/1.5"] * 2
    with progress.Bar(PlainConsole()) as bar:
        bar.begin_epoch(9, 9.9, 45)
        task = bar.progress.tasks[-1]
        assert (task.fields["epoch"], task.total) == ("9.9/9.9", 45)


def test_fractional_epochs_of_whole_number_are_integers():
    assert repr([check_epochs(value) for value in (3, 3.0, 0, 2.5, np.float64(2.0))]) == "[3, 3, 0, 2.5, 2]"
    x, y = stripes(10)
    before = small_model().state_dict()
    model = small_model()
    model.fit(x, y, epochs=0, verbose=0)
    assert all(np.array_equal(model.state_dict()[path], value) for path, value in before.items())


def test_fractional_epochs_are_the_same_with_captured_steps():
    """The cut comes before the last, smaller batch, which an epoch of 70 has."""
    x, y = stripes(70)
    models = []
    for jit in (True, False):
        model = small_model(backend=simulated_backend())
        model.compile(model.optimizer, model.loss, jit=jit)
        model.fit(x, y, epochs=2.5, batch_size=16, verbose=0)
        assert model.optimizer.steps == 13
        models.append(model)
    assert_same_bits(*models)


def test_recipe_takes_fractional_epochs(tmp_path):
    x, y = np.zeros((20, 28, 28, 1), np.uint8), np.arange(20) % 10
    model = networks.lenet(backend="numpy")
    model.recipe = Recipe("mnist", 1.5, 5)
    watch = Steps()
    model.fit(x, y, callbacks=[watch], verbose=0)
    assert watch.counts == [4, 2]
    model.save(tmp_path / "m.safetensors")
    assert gpucnn.load(tmp_path / "m.safetensors", backend="numpy").recipe == model.recipe


def test_train_command_takes_fractional_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app, ["train", "--data", "synthetic", "--epochs", "0.1", "--backend", "numpy", "--run-dir", str(tmp_path / "r")]
    )
    assert result.exit_code == 0, result.output
    (config,) = (tmp_path / "r").rglob("config.json")
    assert json.loads(config.read_text())["epochs"] == 0.1
    (history,) = (tmp_path / "r").rglob("history.json")
    assert len(json.loads(history.read_text())["loss"]) == 1
