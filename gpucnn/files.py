"""Files that are there whole or not at all, whatever interrupts their writing."""

import contextlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from gpucnn.errors import CheckpointError

PART = ".part"  # ends the name of a file that is being written


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, also after a power cut.

    It is written beside its place, brought to the disk, and renamed; then the folder is brought to the disk, which is
    where the new name stands. A process that is killed in between leaves a file whose name ends with `.part`.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full; what was there before is untouched.
    """
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_parts(folder: Path, names: tuple[str, ...] = ("",)) -> None:
    """Remove what killed writers left in a folder of files whose names begin so; nobody may be writing them now."""
    for path in folder.glob(f"*{PART}"):
        if path.name.startswith(names):
            with contextlib.suppress(OSError):  # it takes room, and nothing else
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system lets a folder be opened for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); was it cut short, or edited?") from error


class FolderLock:
    """A folder that one process at a time writes into: held until `release`, or until the process ends in any way.

    The system keeps the lock on a file, `writing.lock`, and takes it away from a process that is killed. On systems
    without such locks nothing is held.
    """

    NAME = "writing.lock"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.NAME
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process, or another holder in this one, has it.

        Raises:
            OSError: the folder cannot be written.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows
            return True
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                here = self.path.exists() and os.fstat(handle).st_ino == self.path.stat().st_ino
            except BlockingIOError:
                os.close(handle)
                return False
            except BaseException:
                os.close(handle)
                raise
            if here:  # else whoever held it has removed the file meanwhile
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
                self._handle = handle
                return True
            os.close(handle)

    def holder(self) -> str:
        """Return who holds the lock, in words."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        """Give it back, if it is held here."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._handle)
            self._handle = None
