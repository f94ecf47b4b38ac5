"""Reading CIFAR-10 in three layouts: the official binary batches, their archive, and WebP sprite sheets.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009), the binary version.
"""

import os
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np

from gpucnn.core.files import user_path
from gpucnn.data.idx import guess_format, require_file
from gpucnn.errors import DataError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
ARCHIVE_NAME = "cifar-10-binary.tar.gz"
BATCH_NAMES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

_ARCHIVE_FOLDER = "cifar-10-batches-bin"
_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, the green and the blue plane
_BATCH = 10_000  # images in an official batch
_SHEET_ROWS, _SHEET_COLUMNS = 50, 20  # images on a sheet
_SHEET = _SHEET_ROWS * _SHEET_COLUMNS
_BATCH_FILES = [f"{name}.bin" for name in BATCH_NAMES]
_SHEET_FILES = [f"{name}_{i}.webp" for name in BATCH_NAMES for i in range(_BATCH // _SHEET)] + ["labels.bin"]

# Sixty sheets on a two-core machine: one thread 2.3 to 2.7 s, two 1.1 to 1.7 s, four 1.0 to 1.2 s, and eight
# no less.
_DECODING_THREADS = 4

Split = tuple[np.ndarray, np.ndarray]


def read_cifar10(folder: str | PathLike[str]) -> tuple[Split, Split]:
    """Read training and test images from a folder that holds CIFAR-10 in any of three layouts.

    - the official binary batches `data_batch_1.bin` ... `data_batch_5.bin` and `test_batch.bin`, directly in
      the folder or in its sub-folder `cifar-10-batches-bin`;
    - the compact layout: the same images as lossless WebP sprite sheets, half the size. `data_batch_1_0.webp` ...
      `test_batch_9.webp` hold 1,000 images each, 20 per row in 50 rows; `labels.bin` holds the 60,000 labels,
      one byte each, the five training batches first;
    - the official archive `cifar-10-binary.tar.gz`, read in memory.

    Shapes
        x_train  (50000, 32, 32, 3) uint8      y_train  (50000,) int64
        x_test   (10000, 32, 32, 3) uint8      y_test   (10000,) int64

    Raises
        DataError  files are missing or damaged, or a label lies outside 0..9
    """
    folder = user_path(folder)
    found = find_cifar10(folder)
    if found is None:
        raise DataError(explain_absence(folder))
    layout, place = found
    readers: dict[str, Callable[[Path], tuple[Split, Split]]] = {
        "batches": _read_batches,
        "sheets": _read_sheets,
        "archive": _read_archive,
    }
    return readers[layout](place)


def read_cifar10_batch(path: str | PathLike[str]) -> Split:
    """Read one official binary batch of any number of records.

    Shapes
        images  (N, 32, 32, 3) uint8
        labels  (N,) int64
    """
    path = require_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        if size % _RECORD:
            raise DataError(_explain_size(str(path), size, file.read(64)))
        return _parse_records(file.read(), str(path))


def find_cifar10(folder: str | PathLike[str]) -> tuple[str, Path] | None:
    """Return the first complete layout a folder holds ("batches", "sheets", "archive") and where it lies."""
    folder = user_path(folder)
    for place in (folder, folder / _ARCHIVE_FOLDER):
        if not _missing(place, _BATCH_FILES):
            return "batches", place
    if not _missing(folder, _SHEET_FILES):
        return "sheets", folder
    archive = folder / ARCHIVE_NAME
    return ("archive", archive) if archive.is_file() else None


def check_class_range(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raise DataError, naming the first offender, unless every label lies in 0 … num_classes − 1.

    Shapes
        labels  (N,) any integer dtype
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"{where}: record {wrong[0]:,} has the label {labels[wrong[0]]}, and {wrong.size:,} of "
            f"{labels.size:,} labels lie outside 0..{num_classes - 1}, which was expected; the file is damaged "
            "or holds other data: download it again"
        )


def _parse_records(data: bytes, name: str) -> Split:
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    check_class_range(labels, len(CIFAR10_CLASSES), name)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _split_batches(batches: list[Split]) -> tuple[Split, Split]:
    """Return five batches as the training split, and the sixth as the test split."""
    images, labels = zip(*batches[:-1], strict=True)
    return (np.concatenate(images), np.concatenate(labels)), batches[-1]


def _read_batches(folder: Path) -> tuple[Split, Split]:
    return _split_batches([read_cifar10_batch(folder / name) for name in _BATCH_FILES])


def _read_archive(path: Path) -> tuple[Split, Split]:
    """Read the six batches from the official archive in memory; other members are ignored."""
    require_file(path)
    wanted = {f"{_ARCHIVE_FOLDER}/{name}": name for name in _BATCH_FILES}
    batches: dict[str, Split] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in wanted:
                    batches[wanted[member.name]] = _read_member(archive, member, path)
                if len(batches) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        with path.open("rb") as file:
            format_name = guess_format(file.read(64))
        raise DataError(
            f"{path}: cannot be read as a tar.gz archive ({error}); it holds {path.stat().st_size:,} bytes "
            f"and looks like {format_name}. Expected the complete {ARCHIVE_NAME}: download it again"
        ) from error
    absent = [member for member, name in wanted.items() if name not in batches]
    if absent:
        raise DataError(f"{path}: holds no {_listing(absent)}; expected the CIFAR-10 binary version: download it again")
    return _split_batches([batches[name] for name in _BATCH_FILES])


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Split:
    """Read one batch of the archive after checking its declared size."""
    name = f"{path}: {member.name}"
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise DataError(f"{name}: is a link or a folder; expected a file: download the archive again")
    if member.size > _BATCH * _RECORD or member.size % _RECORD or member.size == 0:
        raise DataError(_explain_size(name, member.size, file.read(64)))
    return _parse_records(file.read(), name)


def _read_sheets(folder: Path) -> tuple[Split, Split]:
    """Read the compact layout: the same images as lossless WebP sprite sheets, half the size."""
    path = require_file(folder / "labels.bin")
    size, expected = path.stat().st_size, _BATCH * len(BATCH_NAMES)
    if size != expected:
        raise DataError(
            f"{path}: holds {size:,} bytes where {expected:,} labels of one byte each were expected; "
            "the file is damaged: copy it again"
        )
    labels = np.fromfile(path, np.uint8).astype(np.int64)
    check_class_range(labels, len(CIFAR10_CLASSES), str(path))
    paths = [folder / name for name in _SHEET_FILES[:-1]]
    train = np.empty((expected - _BATCH, 32, 32, 3), np.uint8)
    test = np.empty((_BATCH, 32, 32, 3), np.uint8)
    places = [*train.reshape(-1, _SHEET, 32, 32, 3), *test.reshape(-1, _SHEET, 32, 32, 3)]
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:  # Pillow releases the GIL while it decodes
        list(pool.map(_read_sheet, paths, places))
    return (train, labels[: len(train)]), (test, labels[len(train) :])


def _read_sheet(path: Path, images: np.ndarray) -> None:
    """Cut one sheet into the images (1000, 32, 32, 3)."""
    from PIL import Image

    expected = (_SHEET_COLUMNS * 32, _SHEET_ROWS * 32)
    try:
        with Image.open(path, formats=["WEBP"]) as sheet:
            size = sheet.size
            pixels = np.asarray(sheet.convert("RGB")) if size == expected else None
    except Exception as error:  # a decoder fed with foreign bytes may fail in any way
        raise DataError(
            f"{path}: cannot be read as a WebP image ({error}); expected a lossless sheet of {_SHEET:,} "
            "images: copy it again"
        ) from error
    if pixels is None:
        raise DataError(
            f"{path}: is {size[0]}x{size[1]} pixels where a sheet of {_SHEET_COLUMNS} by {_SHEET_ROWS} "
            f"images has {expected[0]}x{expected[1]}; copy it again"
        )
    tiles = pixels.reshape(_SHEET_ROWS, 32, _SHEET_COLUMNS, 32, 3).transpose(0, 2, 1, 3, 4)
    images.reshape(tiles.shape)[:] = tiles


def _missing(folder: Path, names: list[str]) -> list[str]:
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    return [name for name in names if name not in present]


def _explain_size(name: str, size: int, head: bytes) -> str:
    return (
        f"{name}: holds {size:,} bytes, {size // _RECORD:,} records and {size % _RECORD:,} bytes over; "
        f"it looks like {guess_format(head)}. Expected whole records of {_RECORD:,} bytes, {_BATCH:,} in an "
        "official batch: download it again"
    )


def explain_absence(folder: Path) -> str:
    """Return what a folder lacks to be CIFAR-10, by the most similar layout."""
    if not folder.is_dir():
        return f"{folder}: no such folder; expected one that holds CIFAR-10: check the spelling"
    for place, names in (
        (folder, _BATCH_FILES),
        (folder / _ARCHIVE_FOLDER, _BATCH_FILES),
        (folder, _SHEET_FILES),
    ):
        missing = _missing(place, names)
        if len(missing) < len(names):
            return f"{place}: CIFAR-10 is incomplete, {_listing(missing)} missing: download or copy it again"
    expected = f"expected {_listing(_BATCH_FILES)}, or {ARCHIVE_NAME}"
    python_version = ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    if len(_missing(folder, python_version)) < len(python_version) or not _missing(folder, [*BATCH_NAMES]):
        return (
            f"{folder}: holds the Python version of CIFAR-10, pickle files, which can run any code and are "
            f"not read here; {expected}: download the binary version"
        )
    return f"{folder}: holds no CIFAR-10; {expected}: download it into this folder, or pass another"


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown
