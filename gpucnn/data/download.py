"""Downloading data sets from their mirrors, verified by checksums."""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from gpucnn.core.files import user_path
from gpucnn.data.cifar import ARCHIVE_NAME
from gpucnn.errors import ConfigurationError, DataError

# Seconds to wait for a connection, and for the next bytes on an open one. The first is short because it applies to
# each of a host's up to eight addresses; it lets the system retransmit a lost packet twice.
_TIMEOUT = (3.05, 30)
_CHUNK = 1 << 16  # bytes that are read at a time
_MIN_RATE = 60_000, 60.0  # bytes that must arrive in a number of seconds, or the next mirror is used
_PARTIAL = re.compile(r"tmp[a-z0-9_]{8}")  # pooch's names of files that are being downloaded
_STALE = 3600.0  # seconds after which such a file is abandoned

Advance = Callable[[int, int | None], None]  # of a progress bar: adds a number of bytes, of a total if it is known


@dataclass(frozen=True)
class Remote:
    """The files of a data set with their checksums, and the mirrors that serve them, best first.

    No file has more than `max_bytes`; a longer response is not the file.
    """

    files: dict[str, str]
    mirrors: tuple[str, ...]
    max_bytes: int = 16 << 20


REMOTES = {
    "mnist": Remote(
        files={
            "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "cifar10": Remote(
        files={ARCHIVE_NAME: "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        mirrors=(
            "https://www.cs.toronto.edu/~kriz/",
            "https://cave.cs.toronto.edu/kriz/",
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
        ),
        max_bytes=192 << 20,
    ),
}


def cache_folder() -> Path:
    """Return the folder of downloads: GPUCNN_CACHE if set, else the system's cache folder.

    The latter is `pooch.os_cache("gpucnn")`, computed without importing pooch.
    """
    chosen = os.environ.get("GPUCNN_CACHE")
    if chosen:
        return user_path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local) / "gpucnn" / "gpucnn" / "Cache"
    caches = os.environ.get("XDG_CACHE_HOME", "").strip()
    if os.path.isabs(caches):  # relative ones are ignored, by the specification
        return Path(caches) / "gpucnn"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "gpucnn"


def fetch(name: str, folder: str | PathLike[str], progress: bool = False) -> list[Path]:
    """Download the files of a data set into a folder and return their paths.

    A file with the right checksum is kept; any other is replaced atomically by one with the right checksum.
    Mirrors are tried in order; the one that served a file is tried first for the next.

    Raises
        DataError           no mirror serves a file, the folder cannot be written, or pooch is not installed
        ConfigurationError  there is no data set of that name
    """
    if name not in REMOTES:
        raise ConfigurationError(f"there is no data set {name!r} to download; expected one of {', '.join(REMOTES)}")
    folder = user_path(folder)
    _require_pooch(name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder)
    except OSError as error:
        raise DataError(_explain_disk(name, folder, error)) from error
    mirrors = list(REMOTES[name].mirrors)
    paths = []
    with _quiet_pooch():
        for file, known_hash in REMOTES[name].files.items():
            path, mirror = _fetch_file(name, file, known_hash, mirrors, folder, progress)
            mirrors.remove(mirror)
            mirrors.insert(0, mirror)
            paths.append(path)
    return paths


def _fetch_file(
    name: str, file: str, known_hash: str, mirrors: list[str], folder: Path, progress: bool
) -> tuple[Path, str]:
    """Download one file and return its path and the mirror that served it."""
    import pooch
    from requests import RequestException

    failures = []
    for mirror in mirrors:
        with _progress_bar(file, progress) as advance:
            downloader = _Download(REMOTES[name].max_bytes, advance)
            try:
                path = pooch.retrieve(mirror + file, known_hash, file, folder, downloader=downloader)
                return Path(path), mirror
            except RequestException as error:
                failures.append(f"{mirror}{file}: {_explain_request(error)}")
            except _BadMirrorError as error:
                failures.append(f"{mirror}{file}: {error}")
            except OSError as error:  # of the disk: RequestException, an OSError too, is caught above
                raise DataError(_explain_disk(name, folder, error)) from error
            except ValueError:  # pooch raises it for a wrong checksum, and has removed the file
                failures.append(f"{mirror}{file}: its checksum is not {known_hash}")
    tried = "\n  ".join(failures)
    raise DataError(
        f"{name}: {file} could not be downloaded; each of {len(mirrors)} mirrors was tried:\n  {tried}\n"
        f"Get {_by_hand(name, folder)}"
    )


class _BadMirrorError(Exception):
    """A mirror's response is not the file, or too slow."""


class _Download:
    """The downloader that pooch calls: limits the size of the response, and its minimum rate."""

    def __init__(self, max_bytes: int, advance: Advance) -> None:
        self.max_bytes, self.advance = max_bytes, advance

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        import requests

        headers = {"Accept-Encoding": "identity"}
        with (
            requests.get(url, stream=True, timeout=_TIMEOUT, headers=headers) as response,
            open(output_file, "wb") as file,
        ):
            response.raise_for_status()
            length = int(response.headers.get("content-length", 0)) or None
            for chunk in self._arriving(response.raw):
                file.write(chunk)
                self.advance(len(chunk), length)

    def _arriving(self, raw: Any) -> Iterator[bytes]:
        """Yield the response as it arrives."""
        from urllib3.exceptions import HTTPError

        minimum, seconds = _MIN_RATE
        total, recent, start = 0, 0, time.monotonic()
        read = getattr(raw, "read1", raw.read)  # urllib3 before 2.3 waits until a chunk is full
        while True:
            try:
                chunk = read(_CHUNK, decode_content=False)
            except (HTTPError, OSError) as error:
                raise _BadMirrorError(str(error).rsplit(": ", 1)[-1] or type(error).__name__) from error
            if not chunk:
                return
            total, recent = total + len(chunk), recent + len(chunk)
            if total > self.max_bytes:
                raise _BadMirrorError(f"the response is longer than the {self.max_bytes:,} bytes of the file")
            if time.monotonic() - start > seconds:
                if recent < minimum:
                    raise _BadMirrorError(f"too slow: {recent:,} bytes in {seconds:g} seconds")
                recent, start = 0, time.monotonic()
            yield chunk


def _remove_partial(folder: Path) -> None:
    """Remove the partial files of killed downloads."""
    for path in folder.iterdir():
        if _PARTIAL.fullmatch(path.name) and path.is_file() and time.time() - path.stat().st_mtime > _STALE:
            with suppress(OSError):
                path.unlink()


def _require_pooch(name: str, folder: Path) -> None:
    """Raise DataError with the remedy if the download library is not installed."""
    try:
        import pooch  # noqa: F401
        import requests  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"{name}: is not on this machine, and downloading it needs pooch, which cannot be imported ({error}); "
            f"pip install pooch, or get {_by_hand(name, folder)}"
        ) from error


def _by_hand(name: str, folder: Path) -> str:
    """Return which files to download manually, and where to put them."""
    return (
        f"{', '.join(REMOTES[name].files)} on a machine with network and put them into {folder}, "
        f"or into a folder {name!r} in a folder that the environment variable GPUCNN_DATA names"
    )


def _explain_request(error: Exception) -> str:
    """Return why a request failed, in short; the library's own message repeats the URL twice."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code} {response.reason}"
    cause = getattr(error.args[0], "reason", error) if error.args else error
    return str(cause).rsplit(": ", 1)[-1] or type(error).__name__


def _explain_disk(name: str, folder: Path, error: OSError) -> str:
    return (
        f"{name}: cannot be written into {folder} ({error}); expected a writable folder for downloads: "
        "name another in the environment variable GPUCNN_CACHE"
    )


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Suppress pooch's log messages."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _progress_bar(file: str, shown: bool) -> Iterator[Advance]:
    """Yield a function that adds bytes, of a total if known, to a progress bar; it is drawn on a terminal only."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from gpucnn.core.console import PlainConsole

    console = PlainConsole(stderr=True)
    columns: list[Any] = [TextColumn(file, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    progress = Progress(*columns, console=console, disable=not (shown and console.redraws))
    task = progress.add_task(file, total=None)
    progress.start()
    try:
        yield lambda count, total: progress.update(task, advance=count, total=total)
    finally:
        if not progress.disable:  # older versions of rich print empty lines for a bar that was never shown
            progress.stop()
