"""Files that are there whole or not at all, on any file system, where their path leads and with the right mode."""

import errno
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, plots
from gpucnn.core import files
from gpucnn.core.files import make_folder, read_json, remove_partial, user_path, write_atomic, write_into
from gpucnn.errors import CheckpointError, CheckpointWarning, ConfigurationError, GpucnnError
from gpucnn.training.history import History

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def small():
    return gpucnn.Model([layers.Dense(2), layers.Softmax()], (4,), backend="numpy").compile()


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(files, "_said", set())


@pytest.fixture
def mask():
    """Set the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def fails(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


# --- whole or not at all -----------------------------------------------------------------------


def test_atomic_write_syncs_the_file_and_then_its_folder(tmp_path, monkeypatch):
    """In this order: the content, the new name, the folder that holds the name."""
    done, fsync, replace = [], os.fsync, os.replace

    def watched(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def renamed(*paths):
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomic(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    if os.path.isdir("/proc/self/fd"):
        assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("fails_at", ["fsync", "replace", "write"])
def test_atomic_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch, fails_at):
    write_atomic(tmp_path / "a", b"before")
    monkeypatch.setattr(os, fails_at, fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folders_that_are_new_are_synced_with_their_parents(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(synced) == 3, "nothing was new"


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127])
def test_file_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    write_atomic(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_figure_on_a_full_disk_is_not_left_truncated(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
    history = History({"loss": [1.0, 0.5], "accuracy": [0.5, 0.9]})
    for name in ("a.png", "a.svg", "a.pdf"):
        with pytest.raises(
            ConfigurationError, match=rf"cannot write .*{name} \(No space left on device\); free disk space"
        ):
            plots.history(history, tmp_path / name)
    epochs = {k: {"conv2d.weight": np.random.default_rng(k).normal(size=(3, 3, 1, 2))} for k in range(2)}
    with pytest.raises(ConfigurationError, match=r"cannot write .*a.gif"):
        plots.animate_filters(epochs, tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


# --- modes, links, devices ---------------------------------------------------------------------


@pytest.mark.parametrize("masked", [0o077, 0o002, 0o022])
def test_file_mode_of_a_new_file_follows_the_umask(tmp_path, mask, masked):
    mask(masked)
    small().save(tmp_path / "m.safetensors")
    write_into(tmp_path, "b", b"x")
    assert mode(tmp_path / "m.safetensors") == mode(tmp_path / "b") == 0o666 & ~masked


def test_file_mode_of_an_old_file_stays(tmp_path, mask):
    mask(0o022)
    for wanted in (0o600, 0o664, 0o640):
        (tmp_path / "a").write_text("before")
        (tmp_path / "a").chmod(wanted)
        write_atomic(tmp_path / "a", b"after")
        assert mode(tmp_path / "a") == wanted


def test_link_is_written_through(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "latest.safetensors").symlink_to("data/m.safetensors")
    for _ in range(2):  # first to where nothing is yet
        small().save(tmp_path / "latest.safetensors")
        assert (tmp_path / "latest.safetensors").is_symlink()
        assert gpucnn.load(tmp_path / "data" / "m.safetensors", backend="numpy").name == "model"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["m.safetensors"]


def test_link_in_a_run_folder_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").symlink_to("../mine")
    write_into(tmp_path / "run", "config.json", b"{}")
    assert (tmp_path / "mine").read_text() == "precious"
    assert not (tmp_path / "run" / "config.json").is_symlink()


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomic(tmp_path / "pipe", b"through the pipe")
    reader.join()
    assert found == [b"through the pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "null").symlink_to(os.devnull)
    small().save(tmp_path / "null")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert os.readlink(tmp_path / "null") == os.devnull


@pytest.mark.parametrize("into", ["file", "pipe"])
def test_standard_output_is_written_to_in_place(tmp_path, into):
    code = (
        "from pathlib import Path; from gpucnn.core.files import write_atomic; import sys\n"
        "print('before'); write_atomic(Path(sys.argv[1]), b'content\\n'); print('after')"
    )
    (tmp_path / "stdout").symlink_to("/dev/stdout")
    command = [sys.executable, "-c", code, str(tmp_path / "stdout")]
    if into == "pipe":
        shown = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    else:
        with (tmp_path / "out.txt").open("wb") as out:
            subprocess.run(command, stdout=out, check=True)
        shown = (tmp_path / "out.txt").read_bytes()
    assert shown.split() == [b"before", b"content", b"after"]
    assert (tmp_path / "stdout").is_symlink()


# --- file systems that cannot do everything ----------------------------------------------------


def without_folder_sync(monkeypatch, number):
    fsync = os.fsync

    def of_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", of_files)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_folders_that_cannot_be_synced_warn_once(tmp_path, monkeypatch, number):
    without_folder_sync(monkeypatch, number)
    with pytest.warns(CheckpointWarning, match=f"names of files in {tmp_path} cannot be brought to the disk"):
        small().save(tmp_path / "a.safetensors")
    for name in ("a", "b"):  # a second warning would be an error here
        small().save(tmp_path / f"{name}.safetensors")
    small().fit(np.zeros((8, 4), "float32"), np.arange(8) % 2, checkpoints=tmp_path, verbose=0)
    assert gpucnn.load(tmp_path / "b.safetensors", backend="numpy").name == "model"


def test_disk_that_fails_raises(tmp_path, monkeypatch):
    without_folder_sync(monkeypatch, errno.EIO)
    with pytest.raises(CheckpointError, match="Input/output error"):
        small().save(tmp_path / "m.safetensors")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_file_modes_that_cannot_be_set_are_ignored(tmp_path, monkeypatch, number):
    small().save(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").chmod(0o666)
    monkeypatch.setattr(os, "chmod", fails(number))
    with pytest.warns(CheckpointWarning, match="the mode of files in .* cannot be set"):
        small().save(tmp_path / "m.safetensors")
    small().save(tmp_path / "m.safetensors")
    small().save(tmp_path / "new.safetensors")


# --- names -------------------------------------------------------------------------------------


def test_paths_with_a_tilde_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    x, y = np.zeros((8, 4), "float32"), np.arange(8) % 2
    model = small()
    model.save("~/m.safetensors")
    history = model.fit(x, y, checkpoints="~/run", verbose=0)
    small().fit(x, y, checkpoints=gpucnn.Checkpoints("~/run"), resume="~/run", verbose=0)
    history.save("~/history.json")
    plots.history(history, "~/history.png")
    assert gpucnn.load("~/m.safetensors", backend="numpy").name == "model"
    assert {"m.safetensors", "run", "history.json", "history.png"} == {path.name for path in tmp_path.iterdir()}
    assert user_path("~nobody-of-this-name/x").name == "x"


@pytest.mark.parametrize("path", [3, None, b"\0", "a\0b"])
def test_paths_of_other_types_are_refused(path):
    with pytest.raises(ConfigurationError, match=r"expected a path|cannot hold the character NUL"):
        user_path(path)


def test_model_file_name_ends_with_safetensors(tmp_path):
    model = small()
    for name in ("m.h5", "m.keras", "m.pt", "m.onnx", "lenet-0.99"):
        with pytest.raises(
            ConfigurationError, match=r"models are saved as safetensors, not as \.\w+; name it .*\.safe"
        ):
            model.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert gpucnn.load(tmp_path / "m", backend="numpy").name == "model"


def test_model_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"the folder .*nodir does not exist: create it"):
        small().save(tmp_path / "nodir" / "m.safetensors")
    (tmp_path / "f.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"f.safetensors \(Is a directory\); it is a folder: pass a file name"):
        small().save(tmp_path / "f.safetensors")
    with pytest.raises(CheckpointError, match=r"is a folder; name the model's file in it, such as .*model.safetensors"):
        gpucnn.load(tmp_path, backend="numpy")
    with pytest.raises(GpucnnError, match="File name too long"):
        small().save(tmp_path / f"{'n' * 300}.safetensors")


# --- reading -----------------------------------------------------------------------------------


def test_files_that_are_not_regular_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "zero.json"):
        with pytest.raises(CheckpointError, match="is not a regular file but a folder, device or pipe"):
            read_json(tmp_path / name)
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"is larger than the 67,108,864 bytes that are read"):
        read_json(tmp_path / "sparse.json")


def test_temporary_files_of_killed_writers_are_removed(tmp_path):
    for name in ("config.jsonabc.part", "other.part", "a"):
        (tmp_path / name).write_text("")
    remove_partial(tmp_path, ("config.json",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other.part"]
    remove_partial(tmp_path / "nowhere")
