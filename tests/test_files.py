"""Files that are there whole or not at all."""

import os

import pytest

from gpucnn.files import write_whole


def test_the_file_and_then_its_folder_are_brought_to_the_disk(tmp_path, monkeypatch):
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
    write_whole(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    if os.path.isdir("/proc/self/fd"):
        assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("fails", ["fsync", "replace", "chmod"])
def test_what_was_there_survives_a_failure(tmp_path, monkeypatch, fails):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a", b"before")
    monkeypatch.setattr(os, fails, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
