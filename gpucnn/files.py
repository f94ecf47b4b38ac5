"""Files that are there whole or not at all, whatever interrupts their writing."""

import contextlib
import os
import tempfile
from pathlib import Path

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
