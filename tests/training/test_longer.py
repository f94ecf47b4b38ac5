"""More epochs for a training run that was interrupted or is over, and what was trained when there is no room for it."""

import errno
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from gpucnn import optimizers, schedules
from gpucnn.callbacks import Callback, EarlyStopping, Lookahead, MovingAverage
from gpucnn.callbacks.defects import TrainingMonitor
from gpucnn.callbacks.snapshots import Snapshots
from gpucnn.data.augment import Flip, Translate
from gpucnn.errors import CheckpointError, CheckpointWarning
from gpucnn.training import checkpoints
from gpucnn.training.checkpoints import Checkpoints
from tests.helpers import DATA, VALIDATION, Kill, Killed, always, assert_same_bits, fit, numbers, small_model


def options():
    return {"augment": [Flip(), Translate(1)], "validation_data": VALIDATION}


CALLBACKS = {
    "none": list,
    "average": lambda: [MovingAverage(0.9)],
    "look-ahead": lambda: [Lookahead(3)],
    "snapshots": lambda: [Snapshots(), TrainingMonitor(DATA, every=2, grace_steps=1000)],
    "early stopping": lambda: [EarlyStopping("val_loss", 10)],
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("interrupted", [False, True])
def test_resume_with_more_epochs_gives_the_bits_of_one_longer_run(tmp_path, name, interrupted):
    """With a rate that does not depend on the end; before or after the end of the shorter one."""
    expected, model = small_model(), small_model()
    history = fit(expected, None, *CALLBACKS[name](), epochs=5, **options())
    if interrupted:
        with pytest.raises(Killed):
            fit(small_model(), always(tmp_path), *CALLBACKS[name](), Kill(7), epochs=3, **options())
    else:
        fit(small_model(), tmp_path, *CALLBACKS[name](), epochs=3, **options())
    found = fit(model, tmp_path, *CALLBACKS[name](), epochs=5, resume=True, **options())
    assert numbers(found) == numbers(history)
    assert_same_bits(model, expected)


def test_resume_with_fewer_epochs_that_are_not_over_yet(tmp_path):
    expected, model = small_model(), small_model()
    history = fit(expected, epochs=2)
    with pytest.raises(Killed):
        fit(small_model(), always(tmp_path), Kill(6), epochs=5)
    assert numbers(fit(model, tmp_path, epochs=2, resume=True)) == numbers(history)
    assert_same_bits(model, expected)


def test_resume_with_fewer_epochs_than_are_over_is_refused(tmp_path):
    with pytest.raises(Killed):
        fit(small_model(), always(tmp_path), Kill(6), epochs=5)
    with pytest.raises(CheckpointError, match=r"is already after 1 epoch and 2 steps of 5, so epochs=1 is too few"):
        fit(small_model(), tmp_path, epochs=1, resume=True)


@pytest.mark.parametrize(
    "rate",
    [schedules.OneCycle(0.1), schedules.Cosine(0.1)],
    ids=repr,
)
def test_resume_warns_of_a_schedule_that_depends_on_the_end(tmp_path, rate):
    def model():
        return small_model(optimizer=optimizers.SGD(rate))

    fit(model(), tmp_path, epochs=2)
    with pytest.warns(CheckpointWarning, match="continues to 4 epochs instead of 2; its schedules, or"):
        history = fit(model(), tmp_path, epochs=4, resume=True)
    assert history.epochs == 4
    assert history["learning_rate"][2] > history["learning_rate"][1], "it has the rates that 4 epochs have there"


def test_resume_does_not_warn_of_a_schedule_that_has_not_begun_to_fall(tmp_path):
    """What counts is whether the steps that were made are the same."""
    rate = schedules.PiecewiseConstant([(0, 0.1), (3, 0.01)])
    model, expected = (small_model(optimizer=optimizers.SGD(rate)) for _ in range(2))
    fit(small_model(optimizer=optimizers.SGD(rate)), tmp_path, epochs=2)
    fit(model, tmp_path, epochs=4, resume=True)
    fit(expected, epochs=4)
    assert_same_bits(model, expected)


def test_resume_warns_of_a_shortened_epoch(tmp_path):
    fit(small_model(), tmp_path, epochs=1.5)
    with pytest.warns(CheckpointWarning, match="or its shortened last epoch"):
        fit(small_model(), tmp_path, epochs=3, resume=True)


def test_resume_warns_of_an_average_that_depends_on_the_end(tmp_path):
    fit(small_model(), tmp_path, MovingAverage(lambda share: 0.9 * share), epochs=2)
    with pytest.warns(CheckpointWarning, match="continues to 3 epochs"):
        fit(small_model(), tmp_path, MovingAverage(lambda share: 0.9 * share), epochs=3, resume=True)


def test_resume_of_an_early_stopped_run_stays_stopped(tmp_path):
    """As it would have with more epochs from the beginning."""

    class Stop(Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.stop_training = epoch == 1

    expected = fit(small_model(), None, Stop(), epochs=5)
    fit(small_model(), tmp_path, Stop(), epochs=3)
    assert numbers(fit(small_model(), tmp_path, Stop(), epochs=5, resume=True)) == numbers(expected)


def trained(run, digits, folder, epochs, *more):
    options = ("--network", "feedforward", "--data", "mnist", "--data-dir", digits, "--batch-size", 500)
    status, shown, errors = run("train", *options, "--run-dir", folder, "--epochs", epochs, *more)
    assert (status, errors) == (0, "")
    return shown


def test_resume_of_a_finished_run_with_more_epochs(run, digits, tmp_path):
    trained(run, digits, "whole", 3, "--validate")
    trained(run, digits, "parts", 1, "--validate")
    status, shown, errors = run("train", "--run-dir", "parts", "--resume", "--epochs", 3)
    assert status == 0
    assert "this run is finished" not in shown
    assert "epoch 3/3: loss" in shown
    assert "epoch 1/3" not in shown
    assert errors == "", "the recipe's rate does not depend on the end"
    for name in ("model.safetensors", "best.safetensors", "defects.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    settings = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("parts", "whole")]
    assert settings[0]["epochs"] == 3
    assert "test" in settings[0]
    status, shown, _ = run("train", "--run-dir", "parts", "--resume", "--epochs", 2)
    assert status == 0
    assert "this run is finished" in shown
    Checkpoints(tmp_path / "parts").clear()
    status, _, errors = run("train", "--run-dir", "parts", "--resume", "--epochs", 4)
    assert status == 1
    assert "its last checkpoint is missing" in errors


# --- no room for it ----------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch, tmp_path):
    """Let a folder be full, once it is said to be."""
    write, state = os.write, {"full": None}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    def written(handle, content):
        place = os.readlink(f"/proc/self/fd/{handle}")
        if state["full"] is not None and place.startswith(f"{state['full']}/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, content)

    monkeypatch.setattr("gpucnn.core.files.os.write", written)
    return state


@pytest.mark.parametrize("how", ["full", "deleted", "renamed"])
def test_results_survive_a_full_disk_or_a_moved_folder(run, digits, tmp_path, monkeypatch, full, how):
    folder = tmp_path / "here"
    made = checkpoints.Checkpoints.on_step

    def on_step(self, training, steps):
        if training.epoch == 1 and folder.exists() and full["full"] is None:
            full["full"] = folder if how == "full" else None
            if how == "deleted":
                shutil.rmtree(folder)
            elif how == "renamed":
                folder.rename(tmp_path / "moved")
        made(self, training, steps)

    monkeypatch.setattr(checkpoints.Checkpoints, "on_step", on_step)
    options = ("--data", "mnist", "--data-dir", digits, "--batch-size", 500, "--epochs", 3, "--checkpoint-every", 0)
    status, _, errors = run("train", *options, "--run-dir", folder)
    assert status == 1
    assert errors.count("could not be written") == 1, "one warning for one reason"
    assert "saved in its last checkpoint" not in errors
    place = Path(errors.partition("the finished run, with its model, is in ")[2].partition(" instead")[0])
    assert {"config.json", "defects.json", "history.json", "model.safetensors"} <= {p.name for p in place.iterdir()}
    assert len(json.loads((place / "history.json").read_text())["loss"]) == 3
    assert run("test", place)[0] == 0
    shutil.rmtree(place)


def test_results_error_names_the_last_checkpoint_only_if_it_is_there(run, digits, tmp_path, monkeypatch):
    def no_room(*_):
        raise CheckpointError("cannot write it (No space left on device)")

    monkeypatch.setattr(sys.modules["gpucnn.cli.train"], "_write_results", no_room)
    options = ("--data", "mnist", "--data-dir", digits, "--batch-size", 500, "--epochs", 1)
    errors = run("train", *options, "--run-dir", "here")[2]
    assert "saved in the last checkpoint: free disk space, and `gpucnn train --run-dir here --resume` writes" in errors


def test_disk_full_saves_an_interrupted_run_elsewhere(tmp_path, monkeypatch, full):
    class Interrupt(Callback):
        def on_step_end(self, model, step):
            if model.optimizer.steps == 7:
                full["full"] = tmp_path / "here"
                os.kill(os.getpid(), 2)

    expected, model, ckpt = small_model(), small_model(), Checkpoints(tmp_path / "here", every_seconds=None)
    history = fit(expected, epochs=3)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.warns(CheckpointWarning, match=r"could not be written to .*; it was saved to .* instead: continue with"),
        pytest.raises(KeyboardInterrupt),
    ):
        fit(small_model(), ckpt, Interrupt(), epochs=3)
    assert [checkpoints.position_of(file) for file in Checkpoints(ckpt.elsewhere).files()] == [
        "after 1 epoch and 3 steps"
    ]
    full["full"] = None
    assert numbers(fit(model, ckpt.elsewhere, epochs=3, resume=True)) == numbers(history)
    assert_same_bits(model, expected)


def test_commands_say_that_a_run_is_not_finished(run, digits, tmp_path):
    trained(run, digits, "here", 1, "--validate")
    settings = json.loads((tmp_path / "here" / "config.json").read_text())
    del settings["test"]
    (tmp_path / "here" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "here" / "model.safetensors").unlink()
    for command in (("test", "here"), ("report", "here"), ("show", "filters", "here"), ("show", "history", "here")):
        status, _, errors = run(*command)
        assert status == 1
        assert "here: this run is not finished; continue it with `gpucnn train --run-dir here --resume`" in errors
        assert "its best model so far is here/best.safetensors" in errors
    errors = run("train", "--run-dir", "here")[2]
    assert "--run-dir here: contains an unfinished run, saved after 1 epoch; continue it with --resume" in errors
