"""IDX files: every dtype and rank, plain and gzip, and every way in which one can be wrong."""

import gzip
import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn.data import idx
from gpucnn.data.idx import find_idx, guess_format, read_idx, read_idx_pair
from gpucnn.errors import DataError, GpucnnError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


def encode(array, *, code=None, shape=None):
    """Write an array as IDX bytes, with another type or shape in the header if one is given."""
    shape = array.shape if shape is None else shape
    code = CODES[array.dtype.str[1:]] if code is None else code
    header = bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path, data, *, compress=False):
    path.write_bytes(gzip.compress(data, 1) if compress else data)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("shape", [(), (7,), (3, 2), (5, 4, 3), (2, 1, 2, 2, 1), (0, 4, 3)])
@pytest.mark.parametrize("kind", CODES)
def test_idx_of_every_dtype_and_rank_is_read_native(tmp_path, kind, shape, compress):
    values = np.arange(-3, -3 + int(np.prod(shape)))
    expected = values % 251 if kind == "u1" else values * 100 % 127 if kind == "i1" else values * 1.25
    expected = np.asarray(expected).reshape(shape).astype(kind)
    loaded = read_idx(write(tmp_path / "any name", encode(expected), compress=compress))
    assert loaded.dtype == expected.dtype
    assert loaded.dtype.isnative
    assert loaded.shape == expected.shape
    np.testing.assert_array_equal(loaded, expected)


def test_idx_bytes_are_read_as_the_format_says(tmp_path):
    path = write(tmp_path / "a", bytes.fromhex("00000B02 00000002 00000003 0001 0102 FFFF 8000 7FFF 0000"))
    np.testing.assert_array_equal(read_idx(path), [[1, 258, -1], [-32768, 32767, 0]])


def test_idx_arrays_are_writable(tmp_path):
    array = read_idx(write(tmp_path / "a", encode(IMAGES)))
    array[0] = 9
    assert (array[0] == 9).all()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(IMAGES)[:-1], r"holds 59 bytes of data where its header declares 60 \(5 items of 4x3 u"),
        (encode(IMAGES) + b"!", r"continues after the 60 \(5 items of 4x3 uint8\) bytes"),
        (encode(IMAGES)[:9], "ends inside its header, 9 bytes in, where 3 dimensions need 16"),
        (b"\0\0\x08", "starts with the bytes 00 00 08,"),
        (encode(IMAGES, code=0x0A), "starts with the bytes 00 00 0a 03"),
        (encode(IMAGES, code=0x0E), "holds 60 bytes of data where its header declares 480"),
        (encode(IMAGES, shape=(2**32 - 1, 4, 3)), "more than the 8,589,934,592 bytes read here"),
        (encode(IMAGES, shape=(0, 2**32 - 1, 2**32 - 1, 2**32 - 1)), "more than the 8,589,934,592 bytes"),
        (encode(IMAGES, shape=(1,) * 65), "declares 65 dimensions, expected at most 64"),
        (b"<!DOCTYPE html><title>404</title>", "looks like an HTML page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "looks like a PNG image"),
        (b"PK\x03\x04" + bytes(9), "looks like a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "looks like a Git LFS pointer"),
        (b"\x03\x08\0\0\x05\0\0\0", "an IDX header in little-endian order"),
    ],
)
def test_idx_damage_is_named_with_file_and_remedy(tmp_path, data, message, compress):
    path = write(tmp_path / "images", data, compress=compress)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "ownload" in str(caught.value)


@pytest.mark.parametrize("kept", [5, 15, 40, -1])
def test_idx_truncated_gzip(tmp_path, kept):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(encode(IMAGES))[:kept])
    with pytest.raises(DataError, match=r"images.gz: its gzip data of \d+ bytes end too early.* cut short"):
        read_idx(path)


@pytest.mark.parametrize("place", [-8, -1, 10])
def test_idx_damaged_gzip(tmp_path, place):
    data = bytearray(gzip.compress(encode(IMAGES)))
    data[place] ^= 0xFF
    path = tmp_path / "images.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"images\.gz: its gzip data are damaged \(.+\): download it again"):
        read_idx(path)


def test_idx_gzip_that_unpacks_to_far_more_than_declared_is_refused(tmp_path, monkeypatch):
    read = []

    def count(stream, wanted, path, take=idx._take):
        taken = take(stream, wanted, path)
        read.append(len(taken))
        return taken

    monkeypatch.setattr(idx, "_take", count)
    path = write(tmp_path / "bomb.gz", encode(IMAGES) + bytes(50_000_000), compress=True)
    with pytest.raises(DataError, match="continues after"):
        read_idx(path)
    assert sum(read) == 16 + 60 + 1


def test_idx_header_of_a_huge_size_allocates_nothing(tmp_path):
    data = encode(IMAGES, shape=(2_000_000, 32, 32, 3))
    for compress in (False, True):
        path = write(tmp_path / "liar", data, compress=compress)
        tracemalloc.start()
        with pytest.raises(DataError, match="holds 60 bytes of data where its header declares 6,144,000,000"):
            read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000


def test_idx_missing_empty_and_folder(tmp_path):
    with pytest.raises(DataError, match=f"absent: no such file in the folder {tmp_path}"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DataError, match=r"empty: is empty \(0 bytes\)"):
        read_idx(write(tmp_path / "empty", b""))
    with pytest.raises(DataError, match="is not a file"):
        read_idx(tmp_path)


def test_idx_file_that_does_not_open(tmp_path, monkeypatch):
    path = write(tmp_path / "images", encode(IMAGES))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"images: cannot be read \(.*Permission denied\)"):
        read_idx(path)


def test_looks_like_knows_webp_text_and_nothing():
    assert guess_format(b"RIFF\x10\0\0\0WEBPVP8L") == "a WebP image"
    assert guess_format(b"hello\n") == "a text file"
    assert guess_format(b"\x01\x02") == "an unknown format"


@pytest.mark.smoke
def test_idx_pair(tmp_path):
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    images_path = write(tmp_path / "images", encode(IMAGES))
    labels_path = write(tmp_path / "labels", encode(labels), compress=True)
    images, read_labels = read_idx_pair(images_path, labels_path)
    assert images.shape == (5, 4, 3, 1)
    assert images.dtype == np.uint8
    assert read_labels.dtype == np.int64
    np.testing.assert_array_equal(images[..., 0], IMAGES)
    np.testing.assert_array_equal(read_labels, labels)
    with pytest.raises(DataError, match="the two paths look swapped"):
        read_idx_pair(labels_path, images_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, np.zeros(4, np.uint8), "holds 5 images of 4x3 pixels and .* holds 4 labels"),
        (IMAGES[:0], np.zeros(0, np.uint8), "holds 0 images"),
        (IMAGES.astype(np.int16), np.zeros(5, np.uint8), r"images: holds int16 values of shape \(5, 4, 3\)"),
        (IMAGES[0], np.zeros(5, np.uint8), r"images: holds uint8 values of shape \(4, 3\)"),
        (IMAGES, np.zeros(5, np.int32), r"labels: holds int32 values of shape \(5,\)"),
    ],
)
def test_idx_pair_that_does_not_fit(tmp_path, images, labels, message):
    paths = write(tmp_path / "images", encode(images)), write(tmp_path / "labels", encode(labels))
    with pytest.raises(DataError, match=message):
        read_idx_pair(*paths)


@pytest.mark.parametrize(
    "name",
    [f"train-images{mark}idx3-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")],
)
def test_find_idx(tmp_path, name):
    assert find_idx(tmp_path, "train-images-idx3-ubyte") is None
    (tmp_path / name).mkdir()
    assert find_idx(tmp_path, "train-images-idx3-ubyte") is None
    (tmp_path / name).rmdir()
    write(tmp_path / name, b"x")
    assert find_idx(str(tmp_path), "train-images-idx3-ubyte") == tmp_path / name


@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4),
    kept=st.integers(0, 120),
    compress=st.sampled_from(["no", "before", "after"]),
)
def test_idx_mutated_bytes_load_or_raise_a_gpucnn_error(tmp_path_factory, changes, kept, compress):
    data = bytearray(encode(IMAGES))
    if compress == "before":
        data = bytearray(gzip.compress(data, mtime=0))
    for place, byte in changes:
        data[place % len(data)] = byte
    data = data[:kept] if kept < len(data) else data
    path = tmp_path_factory.getbasetemp() / "mutated"
    write(path, bytes(data), compress=compress == "after")
    message = None
    try:
        loaded = read_idx(path)
    except GpucnnError as error:
        message = str(error)
    assert loaded.nbytes < len(data) + 60 if message is None else message.startswith(f"{path}: ")


SUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@pytest.mark.parametrize("stem", SUMS)
def test_mnist_is_the_official_one(stem):
    folder = Path(os.environ.get("GPUCNN_DATA", "unset"), "mnist")
    path = find_idx(folder, stem)
    if path is None:
        pytest.skip(f"no {stem} in $GPUCNN_DATA/mnist")
    assert hashlib.sha256(encode(read_idx(path))).hexdigest() == SUMS[stem]


def test_idx_file_that_was_packed_twice_is_named(tmp_path):
    packed = gzip.compress(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7])))
    (tmp_path / "labels.gz").write_bytes(packed)
    with pytest.raises(DataError, match="is a gzip file within a gzip file, packed twice"):
        read_idx(tmp_path / "labels.gz")
