"""Atomic writes, which no interruption leaves half done; and locks of folders that one process writes to.

A file whose path a user gives is written where that path leads: through symbolic links, with the mode that it has or
the umask gives, and straight into what is not a regular file, such as `/dev/stdout` or a named pipe. A file that the
package names itself, within a folder that may come from a stranger, is never written through a link.
"""

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from gpucnn.errors import CheckpointError, CheckpointWarning, ConfigurationError, GpucnnError

PARTIAL = ".part"  # ends the name of a file that is being written
MAX_DIGITS = 300  # of an integer in it
MAX_JSON_BYTES = 64 << 20  # bytes of a JSON file that is read

# what a system says of a call that it, or the file system, does not have
MISSING = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY}
MAY_LOSE = "a power cut may cost the newest"
NO_MODES = MISSING | {errno.EPERM, errno.EACCES, errno.EROFS}
NO_LOCKS = MISSING | {errno.ENOLCK, errno.EBADF, errno.EPERM}

_said: set[str] = set()  # what was warned of in this process


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gives, with `~` for the home folder.

    Raises:
        ConfigurationError: it is neither a string nor a path, or holds a NUL.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"expected a path, as a string or a pathlib.Path, not {path!r:.60}")
    text = os.fsdecode(os.fspath(path))
    if "\0" in text:
        raise ConfigurationError(f"a path cannot hold the character NUL: {text!r:.60}")
    return Path(os.path.expanduser(text))


# --- writing -----------------------------------------------------------------------------------


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically, so that it is complete or unchanged even after a power cut.

    It is written next to its target, synced and renamed; then the folder, which holds the new name, is synced. A
    process that is killed in between leaves a file whose name ends with `.part`. Symbolic links stay, and their targets
    are replaced; a device, a pipe or the standard output is written to directly.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full; what was there before is untouched.
    """
    if (standard := _standard_stream(path)) is not None:
        with os.fdopen(os.dup(standard), "wb") as stream:
            stream.write(content)
    elif path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb", buffering=0) as device:
            _write_all(device.fileno(), content)
    else:
        _replace(Path(os.path.realpath(path)), content)


def write_into(folder: Path, name: str, content: bytes) -> None:
    """Write a file that the package names itself into a folder, as `write_atomic` does, but never through a link.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full; what was there before is untouched.
    """
    _replace(folder / name, content)


def _replace(path: Path, content: bytes) -> None:
    """Put a file in the place of what bears its name."""
    mode = _mode_of(path)
    beside = path.parent / f"{path.name[:60]}{secrets.token_hex(4)}{PARTIAL}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(beside, flags, 0o666 if mode is None else mode)  # less what the umask holds back
    try:
        try:
            _write_all(handle, content)
            with _if_supported("files", MISSING, "files cannot be synced to this disk", MAY_LOSE):
                os.fsync(handle)
            if mode is not None and stat.S_IMODE(os.fstat(handle).st_mode) != mode:
                message = f"the mode of files in {path.parent} cannot be set"
                with _if_supported("modes", NO_MODES, message, "the file system chooses it"):
                    os.chmod(beside, mode)
        finally:
            os.close(handle)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def _write_all(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view[: 1 << 30]) :]


def _standard_stream(path: Path) -> int | None:
    """Return 1 or 2 if a path such as `/dev/stdout` leads to this process's standard output or errors."""
    try:
        there = path.stat()
    except OSError:
        return None
    for handle, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(there, os.fstat(handle)) and not os.path.samestat(there, os.stat(os.devnull)):
                if stream is not None:
                    stream.flush()
                return handle
    return None


def _mode_of(path: Path) -> int | None:
    """Return the mode of a regular file that is there, which its successor keeps."""
    try:
        found = path.lstat().st_mode
    except OSError:
        return None
    return stat.S_IMODE(found) & 0o777 if stat.S_ISREG(found) else None


@contextlib.contextmanager
def _if_supported(what: str, missing: set[int], message: str, consequence: str) -> Iterator[None]:
    """Say once what a file system does not have, by these error numbers of the system, and continue without it."""
    try:
        yield
    except OSError as error:
        if error.errno not in missing:
            raise
        say_once(what, f"{message} ({error.strerror}); {consequence}")


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system and the file system can be asked for that.

    Raises:
        OSError: the disk fails.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        message = f"the names of files in {folder} cannot be brought to the disk at once"
        with _if_supported("folders", MISSING | {errno.EBADF}, message, MAY_LOSE):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and bring their names to the disk; one that is there stays as it is.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    new = [above for above in (folder, *folder.parents) if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in new:
        sync_folder(made.parent)


def remove_partial(folder: Path, names: tuple[str, ...] = ("",)) -> None:
    """Remove the partial files, by prefix, that killed processes left in a folder that no process writes to."""
    with contextlib.suppress(OSError):  # they only take space
        for path in folder.glob(f"*{PARTIAL}"):
            if path.name.startswith(names):
                with contextlib.suppress(OSError):
                    path.unlink()


def elsewhere(name: str) -> Path | None:
    """Create a new folder elsewhere, for files that cannot be written to their place; None if there is none."""
    for place in (Path.cwd(), Path(tempfile.gettempdir()), Path(os.path.expanduser("~")), Path("/dev/shm")):
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=f"{name[:60]}-saved-", dir=place))
    return None


def why_not_written(path: str | os.PathLike[str], error: OSError) -> str:
    """Return why a file could not be written, with a remedy that fits."""
    folder = Path(path).parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free disk space, or choose another disk"
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "choose a shorter name"
    elif not folder.is_dir():
        remedy = f"the folder {folder} does not exist: create it, or choose another"
    elif error.errno == errno.EISDIR or Path(path).is_dir():
        remedy = "it is a folder: pass a file name"
    else:
        remedy = "choose a file in a writable folder"
    return f"cannot write {path} ({error.strerror or error}); {remedy}"


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], kind: type[GpucnnError] = CheckpointError) -> Iterator[None]:
    """Raise an OSError within the block as an error of this package, which names the file and a remedy."""
    try:
        yield
    except OSError as error:
        raise kind(why_not_written(path, error)) from error


def say_once(what: str, message: str) -> None:
    """Warn of a missing feature of a file system, once per process."""
    if what not in _said:
        _said.add(what)
        warnings.warn(CheckpointWarning(message), stacklevel=3)


# --- reading -----------------------------------------------------------------------------------


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file: what is a device or a pipe, or too large, is not begun to be read.

    Raises:
        OSError: there is none, or it cannot be read.
        CheckpointError: it is not a regular file, or larger than `max_bytes` bytes.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CheckpointError(f"{path}: is not a regular file but a folder, device or pipe; it is not read")
        size = os.fstat(handle).st_size
        content = file.read(size + 1) if size <= max_bytes else b""  # for which Python makes room at once
        if max(size, len(content)) > max_bytes:
            raise CheckpointError(f"{path}: is larger than the {max_bytes:,} bytes that are read of such a file")
    return content


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_regular(path, MAX_JSON_BYTES).decode(), parse_int=_number)
    except (FileNotFoundError, CheckpointError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); was it cut short, or edited?") from error


def _number(digits: str) -> int:
    """Return an integer that a float can be made of.

    Raises:
        ValueError: it has too many digits.
    """
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


# --- one process at a time ---------------------------------------------------------------------


class FolderLock:
    """A folder that one process at a time writes into: held until `release`, or until the process ends in any way.

    The system keeps the lock on a file, `writing.lock`, and takes it away from a process that is killed. Where the
    system or the file system has no such locks nothing is held, which is said once. One holder may take its lock
    several times, and gives it back as often; `with lock:` does both.
    """

    NAME = "writing.lock"
    CONTENT = re.compile(rb"(process \d+ on .*\n?)?")

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / self.NAME
        self._handle: int | None = None
        self._depth = 0

    def __enter__(self) -> "FolderLock":
        """Take the lock.

        Raises:
            ConfigurationError: another process, or another holder in this one, has it; says which.
            CheckpointError: what bears the lock's name is not a lock.
            OSError: the folder cannot be written.
        """
        if not self.acquire():
            raise ConfigurationError(
                f"{self.folder}: {self.holder()} is writing to this folder; wait until it ends, or choose "
                "another folder"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> bool:
        """Take the lock; False where another process, or another holder in this one, has it.

        Raises:
            CheckpointError: what bears the lock's name is not a lock: a link, or a file that holds something else.
            OSError: the folder cannot be written.
        """
        if self._depth == 0 and not self._take():
            return False
        self._depth += 1
        return True

    def _take(self) -> bool:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return True
        while True:
            handle = self._open()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            except OSError as error:
                os.close(handle)
                if error.errno not in NO_LOCKS:
                    raise
                with contextlib.suppress(OSError):
                    self.path.unlink()
                say_once(
                    "locks",
                    f"the file system of {self.folder} has no locks ({error.strerror}); see yourself to it that one "
                    "process at a time writes into a folder",
                )
                return True
            if os.fstat(handle).st_nlink:  # else whoever held it has removed the file meanwhile
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
                self._handle = handle
                return True
            os.close(handle)

    def _open(self) -> int:
        """Open the lock's file, or make it; nothing is changed of what another program or person has put there."""
        with contextlib.suppress(FileNotFoundError):
            self._check(self.path.lstat())
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            self._check(os.fstat(handle))
            if not self.CONTENT.fullmatch(os.pread(handle, 4096, 0)):
                raise self._foreign("holds something else")
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _check(self, found: os.stat_result) -> None:
        if stat.S_ISLNK(found.st_mode):
            raise self._foreign("is a symbolic link")
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise self._foreign("is not a regular file of one name")

    def _foreign(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what}, where gpucnn keeps a lock; it is left as it is: look where it comes from, and "
            "remove it if you do not need it"
        )

    def holder(self) -> str:
        """Return who holds the lock, as text."""
        try:
            return read_regular(self.path, 4096).decode(errors="replace").strip() or "another process"
        except (OSError, CheckpointError):
            return "another process"

    def release(self) -> None:
        """Give it back once, if it is held here."""
        self._depth = max(self._depth - 1, 0)
        if self._depth == 0 and self._handle is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(self.path.lstat(), os.fstat(self._handle)):
                    self.path.unlink()
            os.close(self._handle)
            self._handle = None
