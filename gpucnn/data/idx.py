"""Reading IDX files, the format of MNIST: a magic number, the shape, then the values, big-endian.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998), section "file formats".
"""

import gzip
import math
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from gpucnn.core.files import user_path
from gpucnn.errors import DataError

# Third byte of the magic number -> how the values are stored.
_STORED = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_GZIP = b"\x1f\x8b"
_STEP = 1 << 20  # bytes read at a time, so that a wrong header never makes a large allocation
_MAXIMUM_BYTES = 8 << 30  # more than this is a damaged header, not a data set for one machine's memory
_MAXIMUM_RANK = 64  # NumPy's own limit

# The first bytes of other file formats.
_SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PK\x03\x04", "a zip archive"),
    (_GZIP, "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)


def read_idx(path: str | PathLike[str]) -> np.ndarray:
    """Read one IDX file, plain or gzip (recognised by its content, not by its name).

    Shapes
        returned  the shape in the file's header; dtype native uint8, int8, int16, int32, float32 or float64

    Memory grows with what is read, at most one byte more than the header declares.

    Raises
        DataError  the file is missing, empty, foreign, damaged, or longer or shorter than its header says
    """
    path = require_file(path)
    with path.open("rb") as raw:
        compressed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        if not compressed:
            return _read_array(raw, path, path.stat().st_size)
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            return _read_array(cast(BinaryIO, unpacked), path, None)


def read_idx_pair(images_path: str | PathLike[str], labels_path: str | PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a file of grey images and the file of their labels.

    Shapes
        images  (N, H, W, 1) uint8
        labels  (N,) int64
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    swapped = "; the two paths look swapped" if (images.ndim, labels.ndim) == (1, 3) else ""
    for path, array, rank, what in ((images_path, images, 3, "images"), (labels_path, labels, 1, "labels")):
        check_content(array, path, rank, what, f"{swapped}: pass the {what} file here")
    if len(images) != len(labels) or images.size == 0:
        raise DataError(
            f"{images_path} holds {len(images):,} images of {images.shape[1]}x{images.shape[2]} pixels and "
            f"{labels_path} holds {len(labels):,} labels; expected at least one image and a label for each: "
            "pass two files of the same split"
        )
    return images[..., np.newaxis], labels.astype(np.int64)


def check_content(array: np.ndarray, path: str | PathLike[str], rank: int, what: str, remedy: str) -> None:
    """Raise DataError, with a remedy, unless the array of a file holds bytes of this rank, as images and labels do."""
    if array.ndim != rank or array.dtype != np.uint8:
        raise DataError(
            f"{path}: holds {array.dtype} values of shape {array.shape} where a file of {what} holds uint8 values of "
            f"rank {rank}{remedy}"
        )


def find_idx(folder: str | PathLike[str], stem: str) -> Path | None:
    """Return the file `stem` or `stem`.gz of a folder, also in the spelling `train-images.idx3-ubyte`."""
    for name in (stem, stem.replace("-idx", ".idx")):
        for candidate in (Path(folder) / name, Path(folder) / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None


def require_file(path: str | PathLike[str]) -> Path:
    """Return `path` as a Path if it is a file that can be opened and is not empty."""
    path = user_path(path)
    if not path.exists():
        raise DataError(
            f"{path.name}: no such file in the folder {path.parent.absolute()}; "
            "expected a data file there: check the spelling, or download it"
        )
    if not path.is_file():
        raise DataError(f"{path}: is not a file; expected a single data file: pass the file's own path")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a file open to reading") from error
    if empty:
        raise DataError(f"{path}: is empty (0 bytes); expected a data file: download it again")
    return path


def guess_format(head: bytes) -> str:
    """Return the likely format of a file that starts with `head`, as text."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head")):
        return "an HTML page, perhaps a server's error message saved under this name"
    if text and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in text):
        return "a text file"
    return "an unknown format"


def _read_array(stream: BinaryIO, path: Path, size: int | None) -> np.ndarray:
    """Read the array of one IDX stream; `size` is its length in bytes if that is known."""
    shape, stored = _read_header(stream, path, packed=size is None)
    declared = math.prod(shape) * stored.itemsize
    described = f"{declared:,} ({_describe(shape, stored)})"
    if math.prod(length or 1 for length in shape) * stored.itemsize > _MAXIMUM_BYTES:
        raise DataError(
            f"{path}: its header declares {described}, more than the {_MAXIMUM_BYTES:,} bytes read here; "
            "the header is damaged: download the file again"
        )
    if size is None:  # gzip: the length is only known after unpacking
        data = _take(stream, declared, path)
        held, surplus = len(data), len(_take(stream, 1, path))
    else:
        held = size - stream.tell()
        surplus = held - declared
        data = _take(stream, declared, path) if surplus == 0 else bytearray()
    if held < declared:
        raise DataError(
            f"{path}: holds {held:,} bytes of data where its header declares {described}; "
            "the file is cut short: download it again"
        )
    if surplus > 0 or len(data) != declared:
        raise DataError(
            f"{path}: continues after the {described} bytes of data that its header declares; "
            "header and data do not match: download it again"
        )
    values = np.frombuffer(data, stored).reshape(shape)
    return values.astype(stored.newbyteorder("="), copy=False)


def _read_header(stream: BinaryIO, path: Path, packed: bool) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the magic number and the shape that follows it."""
    head = bytes(_take(stream, 4, path))
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _STORED:
        if packed and head.startswith(_GZIP):
            raise DataError(
                f"{path}: is a gzip file within a gzip file, packed twice; expected an IDX file in it: unpack it once "
                "with gzip -d, or download it again"
            )
        start = head + bytes(_take(stream, 60, path))
        swapped = len(head) == 4 and head[2:] == b"\0\0" and head[1] in _STORED
        format_name = "an IDX header in little-endian order" if swapped else guess_format(start)
        raise DataError(
            f"{path}: starts with the bytes {head.hex(' ')}, which looks like {format_name}; expected an IDX file: "
            "00 00, a type of 08 09 0b 0c 0d or 0e, and the number of dimensions. Download it again"
        )
    rank = head[3]
    lengths = bytes(_take(stream, 4 * rank, path))
    if len(lengths) < 4 * rank:
        raise DataError(
            f"{path}: ends inside its header, {4 + len(lengths)} bytes in, where {rank} dimensions need "
            f"{4 + 4 * rank}; the file is cut short: download it again"
        )
    if rank > _MAXIMUM_RANK:
        raise DataError(
            f"{path}: its header declares {rank} dimensions, expected at most {_MAXIMUM_RANK}; "
            "the header is damaged: download it again"
        )
    return struct.unpack(f">{rank}I", lengths), np.dtype(_STORED[head[2]])


def _take(stream: BinaryIO, count: int, path: Path) -> bytearray:
    """Read up to `count` bytes."""
    taken = bytearray()
    try:
        while len(taken) < count and (step := stream.read(min(_STEP, count - len(taken)))):
            taken += step
    except EOFError as error:
        raise DataError(
            f"{path}: its gzip data of {path.stat().st_size:,} bytes end too early; "
            "the file is cut short: download it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: its gzip data are damaged ({error}): download it again") from error
    return taken


def _describe(shape: tuple[int, ...], stored: np.dtype[Any]) -> str:
    kind = stored.newbyteorder("=").name
    if not shape:
        return f"a single {kind}"
    items = f"{shape[0]:,} items"
    return f"{items} of {'x'.join(map(str, shape[1:]))} {kind}" if shape[1:] else f"{items}, {kind}"
