"""One process at a time writes a folder, and whoever is refused has changed nothing."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import gpucnn
from gpucnn import layers
from gpucnn.core import files
from gpucnn.core.files import FolderLock
from gpucnn.errors import CheckpointError, CheckpointWarning, ConfigurationError

X, Y = np.random.default_rng(0).integers(0, 256, (64, 6, 6, 1), dtype=np.uint8), np.arange(64) % 3


def network(seed=0):
    model = gpucnn.Model([layers.Flatten(), layers.Dense(3), layers.Softmax()], (6, 6, 1), seed=seed, backend="numpy")
    return model.compile("sgd")


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(files, "_said", set())


def held(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what bears the lock's name ----------------------------------------------------------------

LAID = {
    "link": (lambda lock, mine: lock.symlink_to(mine), "is a symbolic link"),
    "dangling link": (lambda lock, mine: lock.symlink_to(mine.parent / "nothing"), "is a symbolic link"),
    "hard link": (lambda lock, mine: os.link(mine, lock), "is not a regular file of one name"),
    "pipe": (lambda lock, mine: os.mkfifo(lock), "is not a regular file of one name"),
    "folder": (lambda lock, mine: lock.mkdir(), "is not a regular file of one name"),
    "text": (lambda lock, mine: lock.write_text("my notes\n"), "holds something else"),
    "more": (lambda lock, mine: lock.write_text("process 1 on vm\nand my notes\n"), "holds something else"),
}


@pytest.mark.parametrize("kind", LAID)
def test_lock_file_of_a_stranger_is_not_followed_or_emptied(tmp_path, kind):
    lay, message = LAID[kind]
    mine, folder = tmp_path / "mine", tmp_path / "run"
    mine.write_text("precious content, 30 years of work")
    folder.mkdir()
    lay(folder / FolderLock.NAME, mine)
    with pytest.raises(CheckpointError, match=rf"{FolderLock.NAME}: {message}, where gpucnn keeps a lock"):
        network().fit(X, Y, checkpoints=folder, verbose=0)
    assert mine.read_text() == "precious content, 30 years of work"
    assert not (tmp_path / "nothing").exists()
    assert [path.name for path in folder.iterdir()] == [FolderLock.NAME]
    if kind in ("text", "more"):
        assert (folder / FolderLock.NAME).read_text().endswith("my notes\n")


def test_lock_of_a_killed_process_is_taken(tmp_path):
    (tmp_path / FolderLock.NAME).write_text("process 4242 on another\n")
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / FolderLock.NAME).read_text()
    assert list(tmp_path.iterdir()) == []


def test_lock_is_released_as_often_as_taken(tmp_path):
    lock = FolderLock(tmp_path)
    with lock:
        with lock:
            pass
        assert not FolderLock(tmp_path).acquire()
    assert FolderLock(tmp_path).acquire()


def test_lock_of_another_process_is_not_removed(tmp_path):
    """Whoever removes a lock by hand lets another process in, whose lock then stays."""
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.acquire()
    (tmp_path / FolderLock.NAME).unlink()
    assert second.acquire()
    first.release()
    assert (tmp_path / FolderLock.NAME).exists()
    second.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_lock_that_the_file_system_lacks_does_not_stop_training(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(CheckpointWarning, match=f"the file system of {tmp_path} has no locks"):
        network().fit(X, Y, checkpoints=tmp_path, verbose=0)
    network().fit(X, Y, checkpoints=tmp_path, resume=True, verbose=0)  # a second warning would be an error here
    assert not (tmp_path / FolderLock.NAME).exists()


# --- commands ----------------------------------------------------------------------------------


def command(*words):
    return [sys.executable, "-m", "gpucnn", *map(str, words)]


def begin(*words):
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def new(digits, folder, seed):
    options = ("--data", "mnist", "--data-dir", digits, "--epochs", 1, "--seed", seed, "--run-dir", folder)
    return begin("train", *options)


def test_lock_refuses_a_second_run_in_one_new_folder(digits, tmp_path):
    """One trains as if it were alone, the other is refused by name and leaves nothing."""
    folder = tmp_path / "run"
    processes = {seed: new(digits, folder, seed) for seed in (1, 2)}
    seen = {}
    while any(process.poll() is None for process in processes.values()):
        if list(folder.glob("checkpoint-*")) and "middle" not in seen:
            seen["middle"] = json.loads((folder / "config.json").read_text())["seed"]
        time.sleep(0.005)
    shown = {seed: process.communicate()[0] for seed, process in processes.items()}
    trained = [seed for seed, process in processes.items() if process.returncode == 0]
    assert len(trained) == 1, shown
    assert set(seen.values()) | {json.loads((folder / "config.json").read_text())["seed"]} == set(trained)
    (refused,) = set(processes) - set(trained)
    assert re.search(r"is writing to this folder|contains an unfinished run|not empty", shown[refused])


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    process = new(digits, folder, 0)
    assert process.communicate()[0]
    assert process.returncode == 0
    return folder


def test_resume_that_is_refused_changes_nothing(finished):
    settings = json.loads((finished / "config.json").read_text())
    unfinished = {name: value for name, value in settings.items() if name != "test"}
    (finished / "config.json").write_text(json.dumps(unfinished))
    (finished / "checkpoint-00000-000001.safetensorsabc.part").write_text("being written")
    try:
        with FolderLock(finished):
            before = held(finished)
            process = begin("train", "--run-dir", finished, "--resume")
            shown = process.communicate()[0]
            assert process.returncode == 1
            assert "is writing to this folder; wait until it ends" in shown
            assert held(finished) == before
    finally:
        (finished / "config.json").write_text(json.dumps(settings))
        (finished / "checkpoint-00000-000001.safetensorsabc.part").unlink()


def test_resume_of_a_run_that_just_ended_is_not_trained_again(finished, monkeypatch, capsys):
    """The settings are read again once the folder is held."""
    from gpucnn.cli import app
    from gpucnn.training.checkpoints import Checkpoints

    whole = (finished / "config.json").read_text()
    settings = json.loads(whole)
    del settings["test"]
    (finished / "config.json").write_text(json.dumps(settings))
    take = Checkpoints._lock_folder

    def ends_meanwhile(self):
        take(self)
        (finished / "config.json").write_text(whole)

    monkeypatch.setattr(Checkpoints, "_lock_folder", ends_meanwhile)
    before = held(finished) | {"config.json": whole.encode()}
    app(["train", "--run-dir", str(finished), "--resume"], standalone_mode=False)
    assert "this run is finished" in capsys.readouterr().out
    assert held(finished) == before


@pytest.mark.parametrize("words", [("runs", "sigmoid-3x3", "--runs", 1), ("reproduce", "sigmoid-3x3")])
def test_runs_and_reproduce_hold_their_folder(tmp_path, monkeypatch, words):
    from gpucnn.cli import app

    with (
        FolderLock(tmp_path),
        pytest.raises(ConfigurationError, match=f"{tmp_path}: process {os.getpid()} on .* is writing to this folder"),
    ):
        app([*map(str, words), "-o", str(tmp_path)], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
