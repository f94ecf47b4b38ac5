"""CIFAR-10 in its three layouts, and every way in which one can be wrong."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from gpucnn.data import cifar
from gpucnn.data.cifar import CIFAR10_CLASSES, check_class_range, find_cifar10, read_cifar10, read_cifar10_batch
from gpucnn.errors import DataError

BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def draw(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 10, n)


def encode(images, labels):
    """Write records one value at a time, as the format's description has it."""
    out = bytearray()
    for image, label in zip(images, labels, strict=True):
        out.append(label)
        for channel in range(3):
            for row in range(32):
                out += bytes(image[row, :, channel])
    return bytes(out)


def write_batches(folder):
    """Write six tiny batches of 3 + i records and return what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    held = [draw(3 + i, seed=i) for i in range(6)]
    for name, (images, labels) in zip(BATCHES, held, strict=True):
        (folder / name).write_bytes(encode(images, labels))
    return held


def check(loaded, held):
    (x_train, y_train), (x_test, y_test) = loaded
    assert x_train.dtype == x_test.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    np.testing.assert_array_equal(x_train, np.concatenate([images for images, _ in held[:5]]))
    np.testing.assert_array_equal(y_train, np.concatenate([labels for _, labels in held[:5]]))
    np.testing.assert_array_equal(x_test, held[5][0])
    np.testing.assert_array_equal(y_test, held[5][1])


def test_cifar_batch(tmp_path):
    images, labels = draw(4)
    (tmp_path / "b.bin").write_bytes(encode(images, labels))
    read_images, read_labels = read_cifar10_batch(tmp_path / "b.bin")
    assert read_images.flags.c_contiguous
    assert read_labels.dtype == np.int64
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)


def test_cifar_batch_errors(tmp_path):
    path = tmp_path / "b.bin"
    images, labels = draw(3)
    path.write_bytes(encode(images, labels)[:-1])
    with pytest.raises(DataError, match=r"b\.bin: holds 9,218 bytes, 2 records and 3,072 bytes over"):
        read_cifar10_batch(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="looks like an HTML page"):
        read_cifar10_batch(path)
    path.write_bytes(encode(images, [0, 10, 200]))
    with pytest.raises(DataError, match=r"b\.bin: record 1 has the label 10, and 2 of 3 labels lie outside"):
        read_cifar10_batch(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.bin: is empty"):
        read_cifar10_batch(path)
    with pytest.raises(DataError, match=r"absent\.bin: no such file"):
        read_cifar10_batch(tmp_path / "absent.bin")


def test_cifar_labels_below_zero_are_refused():
    check_class_range(np.array([0, 1, 2]), 3, "here")
    with pytest.raises(DataError, match="here: record 2 has the label -1"):
        check_class_range(np.array([0, 1, -1]), 3, "here")


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar_official_batches(tmp_path, inner):
    held = write_batches(tmp_path / inner)
    assert find_cifar10(tmp_path) == ("batches", tmp_path / inner)
    check(read_cifar10(tmp_path), held)


def test_cifar_names_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"no CIFAR-10; expected data_batch_1\.bin.*test_batch\.bin, or"):
        read_cifar10(tmp_path)
    write_batches(tmp_path)
    (tmp_path / BATCHES[2]).unlink()
    (tmp_path / BATCHES[5]).unlink()
    assert find_cifar10(tmp_path) is None
    with pytest.raises(DataError, match=r"incomplete, data_batch_3\.bin, test_batch\.bin missing"):
        read_cifar10(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_cifar10(tmp_path / "absent")


def test_cifar_python_version_is_refused_with_its_reason(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="pickle files, which can run any code"):
        read_cifar10(tmp_path)


def write_archive(path, members):
    """Write a tar.gz; a member is (name, bytes), or (name, None) for a link to elsewhere."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data) if data else None)


@pytest.fixture
def members():
    """The members of a tiny archive, in the official archive's shuffled order, among foreign ones."""
    held = [draw(3 + i, seed=i) for i in range(6)]
    names = [f"cifar-10-batches-bin/{name}" for name in BATCHES]
    batches = {name: encode(*batch) for name, batch in zip(names, held, strict=True)}
    order = [3, 0, 5, 2, 1, 4]
    foreign = [("../../outside.bin", b"evil"), ("cifar-10-batches-bin/readme.html", b"<html>")]
    return held, dict(foreign + [(names[i], batches[names[i]]) for i in order])


def test_cifar_archive(tmp_path, members):
    held, content = members
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    write_archive(inner / cifar.ARCHIVE_NAME, content.items())
    assert find_cifar10(inner) == ("archive", inner / cifar.ARCHIVE_NAME)
    check(read_cifar10(inner), held)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [cifar.ARCHIVE_NAME]


def test_cifar_archive_errors(tmp_path, members):
    _, content = members
    path = tmp_path / cifar.ARCHIVE_NAME
    third = "cifar-10-batches-bin/data_batch_3.bin"

    write_archive(path, [item for item in content.items() if item[0] != third])
    with pytest.raises(DataError, match=f"holds no {third}"):
        read_cifar10(tmp_path)
    for data in (b"", bytes(100), bytes(10_001 * 3073)):
        write_archive(path, (content | {third: data}).items())
        with pytest.raises(DataError, match=rf"{third}: holds {len(data):,} bytes, .* Expected whole"):
            read_cifar10(tmp_path)
    write_archive(path, (content | {third: None}).items())
    with pytest.raises(DataError, match=rf"{third}: is a link or a folder"):
        read_cifar10(tmp_path)
    write_archive(path, (content | {third: b"\x0b" + bytes(3072)}).items())
    with pytest.raises(DataError, match=rf"{third}: record 0 has the label 11"):
        read_cifar10(tmp_path)


def test_cifar_damaged_archive(tmp_path, members):
    path = tmp_path / cifar.ARCHIVE_NAME
    write_archive(path, members[1].items())
    whole = path.read_bytes()
    for data, seems in ((whole[: len(whole) // 2], "a gzip file"), (b"<html></html>", "an HTML page")):
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"read as a tar.gz archive \(.+\); .* looks like {seems}"):
            read_cifar10(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        read_cifar10(tmp_path)


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """A folder in the compact layout: sixty sheets of which two kinds are told apart, and what they hold."""
    folder = tmp_path_factory.mktemp("sheets")
    column, row = np.meshgrid(np.arange(640), np.arange(1600))
    for k in (0, 1):
        sheet = np.stack([column // 32 * 10 + k, row // 32 * 4 + k, column % 32 + row % 32], -1)
        Image.fromarray(sheet.astype(np.uint8)).save(folder / f"kind_{k}", "WEBP", lossless=True, method=0)
    for batch in cifar.BATCH_NAMES:
        for i in range(10):
            shutil.copy(folder / f"kind_{int((batch, i) in MARKED)}", folder / f"{batch}_{i}.webp")
    labels = np.random.default_rng(0).integers(0, 10, 60_000, np.uint8)
    labels.tofile(folder / "labels.bin")
    return folder, labels


MARKED = {("data_batch_2", 3), ("test_batch", 9)}


def test_cifar_compact_layout(sheets):
    folder, labels = sheets
    assert find_cifar10(folder) == ("sheets", folder)
    (x_train, y_train), (x_test, y_test) = read_cifar10(folder)
    assert x_train.shape == (50_000, 32, 32, 3)
    assert x_test.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.concatenate([y_train, y_test]), labels)
    images = np.concatenate([x_train, x_test]).reshape(60, 50, 20, 32, 32, 3)
    marked = np.flatnonzero(images[:, 0, 0, 0, 0, 0])
    assert marked.tolist() == [13, 59]  # the fourth sheet of the second batch, and the last of all
    assert (images[0, ..., 0] == 10 * np.arange(20)[None, :, None, None]).all()  # 20 a row
    assert (images[0, ..., 1] == 4 * np.arange(50)[:, None, None, None]).all()  # 50 rows
    assert (images[0, ..., 2] == np.add.outer(np.arange(32), np.arange(32))).all()


def test_cifar_compact_layout_errors(sheets, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(sheets[0], folder)
    sheet = folder / "data_batch_4_7.webp"

    Image.new("RGB", (640, 32)).save(sheet, "WEBP", lossless=True)
    with pytest.raises(DataError, match=r"data_batch_4_7\.webp: is 640x32 pixels where .* has 640x1600"):
        read_cifar10(folder)
    whole = (sheets[0] / sheet.name).read_bytes()
    for data in (b"junk", whole[: len(whole) // 2]):
        sheet.write_bytes(data)
        with pytest.raises(DataError, match=r"data_batch_4_7\.webp: cannot be read as a WebP image"):
            read_cifar10(folder)
    sheet.unlink()
    with pytest.raises(DataError, match=r"incomplete, data_batch_4_7\.webp missing"):
        read_cifar10(folder)

    sheet.write_bytes(whole)
    labels = sheets[1].copy()
    labels[31_415] = 77
    labels.tofile(folder / "labels.bin")
    with pytest.raises(DataError, match=r"labels\.bin: record 31,415 has the label 77"):
        read_cifar10(folder)
    labels[1:].tofile(folder / "labels.bin")
    with pytest.raises(DataError, match=r"labels\.bin: holds 59,999 bytes where 60,000 labels"):
        read_cifar10(folder)


def test_real_cifar10():
    folder = os.path.join(os.environ.get("GPUCNN_DATA", "unset"), "cifar10")
    if find_cifar10(folder) is None:
        pytest.skip("no CIFAR-10 in $GPUCNN_DATA/cifar10")
    (x_train, y_train), (x_test, y_test) = read_cifar10(folder)
    assert len(CIFAR10_CLASSES) == 10
    assert np.bincount(y_train).tolist() == [5000] * 10
    assert np.bincount(y_test).tolist() == [1000] * 10
    assert x_test.shape == (10_000, 32, 32, 3)
    counts = np.stack([np.bincount(x_train[..., c].ravel(), minlength=256) for c in range(3)])
    counts = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    mean = counts @ values
    deviation = np.sqrt(counts @ values**2 - mean**2)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(deviation, [0.2470, 0.2435, 0.2616], atol=5e-5)
    assert [CIFAR10_CLASSES[i] for i in y_train[:5]] == ["frog", "truck", "truck", "deer", "automobile"]


def test_cifar_python_version_folder_is_recognised(tmp_path):
    for name in cifar.BATCH_NAMES:
        (tmp_path / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match="holds the Python version of CIFAR-10, pickle files"):
        read_cifar10(tmp_path)
