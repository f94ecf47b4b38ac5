"""`gpucnn train --resume`: processes really killed and interrupted, and what the command says."""

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import gpucnn
from gpucnn.backends import get_backend
from gpucnn.core import files
from gpucnn.training import checkpoints
from gpucnn.training.checkpoints import Checkpoints, position_of
from tests.helpers import TIMES

OPTIONS = ("--epochs", "4", "--batch-size", "50", "--validate", "--checkpoint-every", "0")
LEFT = [
    "best.safetensors",
    "config.json",
    "defects.json",
    "history.json",
    "model.safetensors",
    "snapshots.safetensors",
]


def command(digits, folder, *options):
    """Return the arguments that begin a run, or resume it where it was begun."""
    begun = (folder / "config.json").exists()
    rest = ["--resume"] if begun else ["--data", "mnist", "--data-dir", digits, *OPTIONS, *options]
    return [sys.executable, "-m", "gpucnn", "train", "--run-dir", folder, *rest]


def start(digits, folder, *options):
    return subprocess.Popen(
        command(digits, folder, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(digits, folder, *options):
    done = subprocess.run(command(digits, folder, *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="session")
def uninterrupted(digits, tmp_path_factory):
    """The folder of a run that nothing happened to, and the seconds that it took."""
    folder, started = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    finish(digits, folder)
    return folder, time.monotonic() - started


def held(folder):
    """Return everything that a run left, but for times."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    history = json.loads(contents.pop("history.json"))
    contents["history.json"] = {key: values for key, values in history.items() if key not in TIMES}
    return contents


def names(folder):
    """Return what lies in a run's folder beside its last checkpoint."""
    found = sorted(path.name for path in folder.iterdir())
    assert sum(name.startswith("checkpoint-") for name in found) == 1
    return [name for name in found if not name.startswith("checkpoint-")]


def assert_same_run(folder, whole):
    assert names(folder) == LEFT
    ours, theirs = held(folder), held(whole)
    for name in LEFT:
        assert ours[name] == theirs[name], name


def killed_at_random(digits, whole, seconds, folder, kills, seed):
    """Kill a run at a number of random moments, resuming it each time, and let it end."""
    moments = random.Random(seed)
    for _ in range(kills):
        process = start(digits, folder)
        try:
            process.wait(timeout=moments.uniform(0.0, 0.7 * seconds))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
    finish(digits, folder)
    assert_same_run(folder, whole)


@pytest.mark.process
@pytest.mark.parametrize("seed", [0])
def test_resume_after_kills_at_random_moments(digits, uninterrupted, tmp_path, seed):
    killed_at_random(digits, *uninterrupted, tmp_path / "run", 3, seed)


@pytest.mark.process
def test_resume_after_kills_at_twenty_random_moments(digits, uninterrupted, tmp_path):
    whole, seconds = uninterrupted
    for seed in range(4):
        killed_at_random(digits, whole, seconds, tmp_path / str(seed), 5, seed + 100)


def wait_for(condition, process, seconds=60):
    ends = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends, "nothing was saved"
        time.sleep(0.002)


@pytest.mark.process
@pytest.mark.parametrize("file", ["model.safetensors", "defects.json"])
def test_resume_after_a_kill_while_results_are_written(digits, uninterrupted, tmp_path, file):
    """Training is over by then: what is left is written again from its last checkpoint."""
    folder = tmp_path / "run"
    process = start(digits, folder)
    wait_for((folder / file).exists, process)
    process.kill()
    process.communicate()
    finish(digits, folder)
    assert_same_run(folder, uninterrupted[0])


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_step_and_saves_it(digits, uninterrupted, tmp_path, number):
    """With checkpoints a minute apart, so that the one that counts is that of the interruption."""
    folder = tmp_path / "run"
    process = start(digits, folder, "--checkpoint-every", "60")
    wait_for(lambda: Checkpoints(folder).files(), process)
    time.sleep(0.2)  # some steps
    process.send_signal(number)
    shown = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, shown
    newest = Checkpoints(folder).files()[-1]
    assert newest.name > "checkpoint-00000-000000"
    place = position_of(newest)
    assert "Traceback" not in shown
    last = shown.splitlines()[-1]
    assert last == f"interrupted, saved {place}; continue with: gpucnn train --run-dir {folder} --resume"
    shown = finish(digits, folder)
    assert f"  resumed   {place}" in shown
    expected, settings = (json.loads((each / "config.json").read_text()) for each in (uninterrupted[0], folder))
    assert settings == expected | {"checkpoint_every": 60.0}
    (folder / "config.json").write_bytes((uninterrupted[0] / "config.json").read_bytes())
    assert_same_run(folder, uninterrupted[0])


class Stop(BaseException):
    """In place of a process that is gone."""


@pytest.fixture
def interrupted(run, digits, tmp_path, monkeypatch, capsys):
    """A run that was ended at the beginning of its third epoch, in the folder `here`."""

    def begin(model, epoch):
        if epoch == 2:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "MAX_OVERHEAD", math.inf)  # each end of an epoch is saved, however short it was
        patched.setattr("gpucnn.callbacks.defects.TrainingMonitor.on_epoch_begin", lambda self, *rest: begin(*rest))
        with pytest.raises(Stop):
            run(
                "train",
                "--data",
                "mnist",
                "--data-dir",
                digits,
                "--epochs",
                3,
                "--batch-size",
                100,
                "--run-dir",
                "here",
            )
    capsys.readouterr()
    return tmp_path / "here"


def test_train_in_the_folder_of_an_unfinished_run_is_refused(run, interrupted):
    before = held_names(interrupted)
    status, _, errors = run("train", "--run-dir", "here")
    assert status == 1
    assert (
        "--run-dir here: contains an unfinished run, saved after 2 epochs; continue it with --resume, or choose a new "
        "folder" in errors
    )
    assert held_names(interrupted) == before


def held_names(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_resume_takes_the_settings_of_the_run(run, interrupted):
    status, shown, errors = run("train", "--run-dir", "here", "--resume")
    assert (status, errors) == (0, "")
    assert "  resumed   after 2 epochs" in shown
    assert "epoch 3/3: loss" in shown
    assert "epoch 2/3" not in shown
    settings = json.loads((interrupted / "config.json").read_text())
    assert (settings["epochs"], settings["batch_size"]) == (3, 100)
    assert len(json.loads((interrupted / "history.json").read_text())["loss"]) == 3
    assert [position_of(file) for file in Checkpoints(interrupted).files()] == ["after 3 epochs"]
    before = held_names(interrupted)
    status, shown, errors = run("train", "--run-dir", "here", "--resume")
    assert (status, errors) == (0, "")
    accuracy = 100 * settings["test"]["accuracy"]
    finished = f"here: this run is finished (test accuracy {accuracy:.2f} %); there is nothing to resume"
    assert shown == f"{finished}; pass --epochs above 3 to train it further\n"
    assert held_names(interrupted) == before
    assert "already exists and is not empty" in run("train", "--run-dir", "here")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume",), "--resume needs --run-dir, the folder of the interrupted run"),
        (("--resume", "--run-dir", "nowhere"), "--run-dir nowhere: contains no run to resume (no config.json"),
        (
            ("--resume", "--run-dir", "here", "--seed", 5, "--batch-size", 100),
            "--resume takes the settings from here/config.json; omit --seed, --batch-size, or start a new run",
        ),
    ],
)
def test_resume_refuses_wrong_options(run, interrupted, options, message):
    before = held_names(interrupted)
    status, _, errors = run("train", *options)
    assert status == 1
    assert message in errors
    assert held_names(interrupted) == before


def test_resume_with_other_data_is_refused(run, interrupted, digits, tmp_path):
    settings = (interrupted / "config.json").read_bytes()
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in digits.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= "train-images" in path.name
        (changed / path.name).write_bytes(content)
    status, _, errors = run("train", "--run-dir", "here", "--resume", "--data-dir", changed)
    assert status == 1
    assert "is from a different run: data.inputs.hash was " in errors
    assert (interrupted / "config.json").read_bytes() == settings
    assert run("train", "--run-dir", "here", "--resume")[0] == 0


def test_resume_that_refuses_more_epochs_leaves_the_run_finished(run, digits, tmp_path):
    options = ("--data", "mnist", "--data-dir", digits, "--batch-size", 100)
    assert run("train", *options, "--epochs", 0.2, "--run-dir", "here")[0] == 0
    settings = (tmp_path / "here" / "config.json").read_bytes()
    status, _, errors = run("train", "--run-dir", "here", "--resume", "--epochs", 0.5)
    assert status == 1
    assert "is already after 1 epoch of 0.2" in errors
    assert (tmp_path / "here" / "config.json").read_bytes() == settings
    assert "this run is finished" in run("train", "--run-dir", "here", "--resume")[1]


def test_resume_on_another_backend_warns(run, interrupted):
    status, _, errors = run("train", "--run-dir", "here", "--resume", "--backend", "reference")
    assert status == 0
    before = get_backend().name
    assert f'in a different environment: backend was "{before}" and is "reference"' in errors
    assert "results may differ in the last bits" in errors
    assert "CheckpointWarning" not in errors


def test_disk_full_in_mid_training_warns_and_loses_nothing(run, digits, tmp_path, monkeypatch):
    write, count = files.write_into, []

    def write_until_full(folder, name, content):
        count.append(name)
        if len(count) in (3, 4) and name.startswith("checkpoint-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, name, content)

    options = ("--data", "mnist", "--data-dir", digits, "--epochs", 4, "--batch-size", 500)
    monkeypatch.setattr(checkpoints, "MAX_OVERHEAD", math.inf)
    monkeypatch.setattr(checkpoints, "write_into", write_until_full)
    status, _, errors = run("train", *options, "--run-dir", "full")
    assert status == 0
    assert errors.count("(No space left on device)") == 1, "one warning for one reason"
    assert "is intact, and training continues" in errors
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run("train", *options, "--run-dir", "empty")[0] == 0
    for name in ("model.safetensors", "snapshots.safetensors"):
        assert (tmp_path / "full" / name).read_bytes() == (tmp_path / "empty" / name).read_bytes()


def test_disk_full_at_the_end_leaves_a_run_to_resume(run, digits, tmp_path, monkeypatch):
    def full(folder, name, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    options = ("--data", "mnist", "--data-dir", digits, "--epochs", 1, "--batch-size", 500)
    with monkeypatch.context() as patched:
        patched.setattr("gpucnn.callbacks.defects.write_into", full)
        status, _, errors = run("train", *options, "--run-dir", "here")
    assert status == 1
    assert "No space left on device" in errors
    assert "saved in the last checkpoint: free disk space, and `gpucnn train --run-dir here --resume` writes" in errors
    status, shown, errors = run("train", "--run-dir", "here", "--resume")
    assert (status, errors) == (0, "")
    assert "epoch 1/1" not in shown, "nothing is trained again"
    assert names(tmp_path / "here") == [name for name in LEFT if "best" not in name]


def test_resume_with_early_stopping_and_validation(run, digits, tmp_path):
    options = ("--data", "mnist", "--data-dir", digits, "--epochs", 30, "--batch-size", 50, "--run-dir", "here")
    status, shown, errors = run(
        "train", *options, "--early-stopping", 2, "--validation-split", 0.2, "--learning-rate", 0.5
    )
    assert (status, errors) == (0, "")
    settings = json.loads((tmp_path / "here" / "config.json").read_text())
    history = json.loads((tmp_path / "here" / "history.json").read_text())
    accuracy = history["val_accuracy"]
    assert 3 <= len(accuracy) < 30
    assert settings["best"] == {
        "monitor": "val_accuracy",
        "value": max(accuracy),
        "epoch": accuracy.index(max(accuracy)),
    }
    assert accuracy.index(max(accuracy)) == len(accuracy) - 3
    assert all(round(400 * value, 6) == int(round(400 * value, 6)) for value in accuracy), "a fifth of 2000 images"
    assert f"best      epoch {len(accuracy) - 2}, validation accuracy {100 * max(accuracy):.2f} %" in shown
    model, best = (gpucnn.load(tmp_path / "here" / name, backend="numpy") for name in LEFT[4::-4])
    for path, value in model.state_dict().items():
        assert (value == best.state_dict()[path]).all(), path
