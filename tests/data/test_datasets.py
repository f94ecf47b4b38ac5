"""Data sets by name: where they are looked for, downloads from local servers, and splits of image folders."""

import contextlib
import copy
import gzip
import hashlib
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
from PIL import Image

from gpucnn import datasets
from gpucnn.data import download, synthetic
from gpucnn.data.download import REMOTES, Remote, cache_folder, fetch
from gpucnn.errors import ConfigurationError, DataError
from tests.helpers import idx_bytes

STEMS = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch, tmp_path):
    """Keep the machine's own data, cache and proxies out of every test."""
    monkeypatch.delenv("GPUCNN_DATA", raising=False)
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def tiny_mnist(height=28, last_label=9):
    """Return the four files of a tiny MNIST, 12 training and 10 test images, as bytes by stem."""
    files = {}
    for split, n in (("train", 12), ("t10k", 10)):
        images = np.arange(n * height * 28).reshape(n, height, 28) % 251
        labels = np.arange(n) % 10
        labels[-1] = last_label
        files[f"{split}-images-idx3-ubyte"] = idx_bytes(images.astype(np.uint8))
        files[f"{split}-labels-idx1-ubyte"] = idx_bytes(labels.astype(np.uint8))
    return files


def write_mnist(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, data in tiny_mnist(**options).items():
        (folder / stem).write_bytes(data)
    return folder


# Dataset


def test_dataset_unpacks_like_a_tuple_and_knows_its_names(tmp_path):
    data = datasets.mnist(write_mnist(tmp_path))
    (x_train, y_train), (x_test, y_test) = data
    assert isinstance(data, tuple)
    assert x_train.shape == (12, 28, 28, 1)
    assert x_test.shape == (10, 28, 28, 1)
    assert x_train.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    assert y_train.tolist() == [*range(10), 0, 9]
    assert x_train[0, :2, :3, 0].tolist() == [[0, 1, 2], [28, 29, 30]]
    assert data.name == "mnist"
    assert data.class_names == list("0123456789")
    assert data.source == f"IDX files in {tmp_path}"
    assert repr(data) == (
        f"<Dataset mnist: 12 training and 10 test images of 28x28x1, 10 classes; IDX files in {tmp_path}>"
    )


def test_dataset_survives_a_copy(tmp_path):
    data = datasets.mnist(write_mnist(tmp_path))
    clone = copy.deepcopy(data)
    assert (clone.name, clone.source, repr(clone)) == (data.name, data.source, repr(data))
    assert clone[0][0] is not data[0][0]
    np.testing.assert_array_equal(clone[0][0], data[0][0])


# Where data are looked for


def test_mnist_in_a_sub_folder_and_in_mixed_spellings(tmp_path):
    folder = write_mnist(tmp_path / "mnist")
    (folder / STEMS[0]).rename(folder / "train-images.idx3-ubyte")
    (folder / f"{STEMS[1]}.gz").write_bytes(gzip.compress((folder / STEMS[1]).read_bytes()))
    (folder / STEMS[1]).unlink()
    assert datasets.mnist(str(tmp_path)).source.endswith(str(folder))


def test_datasets_search_order_of_folders(tmp_path, monkeypatch):
    assert datasets.available("mnist") is None
    cached = write_mnist(tmp_path / "cache" / "mnist")
    assert datasets.available("mnist") == str(cached)
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))
    assert datasets.available("mnist") == str(cached)
    write_mnist(tmp_path)
    assert datasets.available("mnist") == str(tmp_path)
    named = write_mnist(tmp_path / "mnist")
    assert datasets.available("mnist") == str(named)
    assert datasets.mnist().source == f"IDX files in {named}"
    assert datasets.available("cifar10") is None


def test_datasets_available_refuses_unknown_names():
    with pytest.raises(ConfigurationError, match="'cifar100'; expected one of mnist, cifar10"):
        datasets.available("cifar100")


def test_download_never_replaces_a_given_path(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(DataError, match="absent: does not exist; expected a folder that holds mnist"):
        datasets.mnist(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file: is a file; expected a folder that holds cifar10"):
        datasets.cifar10(tmp_path / "file")
    with pytest.raises(DataError, match=rf"holds no {', '.join(STEMS)}; expected the four files"):
        datasets.mnist(tmp_path)
    with pytest.raises(DataError, match=r"holds no CIFAR-10; expected data_batch_1\.bin"):
        datasets.cifar10(tmp_path)
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / STEMS[2]).unlink()
    with pytest.raises(DataError, match=rf"mnist: holds no {STEMS[2]}; expected"):
        datasets.mnist(tmp_path)


def test_data_variable_that_names_no_folder_warns(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "misspelt"))
    with pytest.raises(DataError, match=r"GPUCNN_DATA names .*misspelt, which is not a folder"):
        datasets.mnist()
    assert datasets.available("mnist") is None


def test_mnist_of_other_content_is_refused(tmp_path):
    with pytest.raises(DataError, match=rf"{STEMS[0]}: holds images of 14x28 pixels; expected MNIST's 28x28"):
        datasets.mnist(write_mnist(tmp_path, height=14))
    with pytest.raises(DataError, match=rf"{STEMS[1]}: record 11 has the label 10, .* outside 0\.\.9"):
        datasets.mnist(write_mnist(tmp_path, last_label=10))


def test_cifar10_by_name(tmp_path):
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(bytes([i]) + bytes(3072))
    data = datasets.cifar10(tmp_path)
    assert data[0][1].tolist() == [0, 1, 2, 3, 4]
    assert data[1][1].tolist() == [5]
    assert data.class_names[0] == "airplane"
    assert data.class_names[9] == "truck"
    assert data.source == f"binary batches in {tmp_path / 'cifar10'}"


def test_datasets_by_name_read_real_data(monkeypatch, real_data):
    monkeypatch.setenv("GPUCNN_DATA", real_data)
    if datasets.available("mnist") is None:
        pytest.skip(f"no MNIST in {real_data}")
    (x_train, y_train), (x_test, y_test) = datasets.mnist()
    assert x_train.shape == (60_000, 28, 28, 1)
    assert x_test.shape == (10_000, 28, 28, 1)
    assert np.bincount(y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def real_data():
    """The folder of real data, read before any test takes the variable away."""
    if "GPUCNN_DATA" not in os.environ:
        pytest.skip("GPUCNN_DATA is not set")
    return os.environ["GPUCNN_DATA"]


# Downloads


class Server:
    """A web server on this machine that counts what it is asked for."""

    def __init__(self, folder, seconds=0.0):
        server = self
        self.asked = []

        class Handler(SimpleHTTPRequestHandler):
            def copyfile(self, source, outputfile):
                """Send a file in two halves, with a pause in between."""
                content = source.read()
                outputfile.write(content[: len(content) // 2])
                time.sleep(seconds)
                outputfile.write(content[len(content) // 2 :])

            def log_message(self, *_):
                server.asked.append(self.path)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(folder, seconds=0.0):
        servers.append(Server(folder, seconds))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def closed():
    """An address at which nothing listens: the port is held, so that nothing else can open it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/"


def publish(folder, monkeypatch, mirrors):
    """Lay a tiny MNIST into a folder and make it the one whose checksums are known."""
    folder.mkdir(exist_ok=True)
    hashes = {}
    for stem, data in tiny_mnist().items():
        packed = gzip.compress(data, mtime=0)
        (folder / f"{stem}.gz").write_bytes(packed)
        hashes[f"{stem}.gz"] = f"md5:{hashlib.md5(packed).hexdigest()}"
    monkeypatch.setitem(REMOTES, "mnist", Remote(hashes, tuple(mirrors)))


def test_download_into_the_cache_once(tmp_path, monkeypatch, serve):
    server = serve(tmp_path / "web")
    publish(tmp_path / "web", monkeypatch, [server.address])
    assert datasets.mnist().source == f"IDX files in {tmp_path / 'cache' / 'mnist'}"
    assert {path.name for path in (tmp_path / "cache" / "mnist").iterdir()} == set(REMOTES["mnist"].files)
    assert len(server.asked) == 4
    assert datasets.mnist()[0][0].shape == (12, 28, 28, 1)
    assert len(server.asked) == 4


FETCH = """
import json, sys
from gpucnn.data import download
download.REMOTES["mnist"] = download.Remote(json.loads(sys.argv[1]), (sys.argv[2],))
print("ready", flush=True)
sys.stdin.readline()
download.fetch("mnist", sys.argv[3])
"""


def test_download_by_two_processes_at_once(tmp_path, monkeypatch, serve):
    """Into one folder, from a server that takes its time: both succeed, and only whole files are left."""
    server = serve(tmp_path / "web", seconds=0.1)
    publish(tmp_path / "web", monkeypatch, [server.address])
    files, folder = REMOTES["mnist"].files, tmp_path / "cache" / "mnist"
    command = [sys.executable, "-c", FETCH, json.dumps(files), server.address, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert len(server.asked) > len(files), "they were at it at the same time"
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "web" / name).read_bytes()


def test_fetch_keeps_good_files_and_replaces_damaged_ones(tmp_path, monkeypatch, serve):
    server = serve(tmp_path / "web")
    publish(tmp_path / "web", monkeypatch, [server.address])
    paths = fetch("mnist", tmp_path / "mine")
    assert paths == [tmp_path / "mine" / name for name in REMOTES["mnist"].files]
    paths[1].write_bytes(b"damaged")
    server.asked.clear()
    fetch("mnist", tmp_path / "mine")
    assert server.asked == [f"/{paths[1].name}"]
    assert paths[1].read_bytes() == (tmp_path / "web" / paths[1].name).read_bytes()


def test_fetch_tries_the_next_mirror(tmp_path, monkeypatch, serve, closed):
    for name in ("lacking", "wrong"):
        (tmp_path / name).mkdir()
    lacking, wrong, good = serve(tmp_path / "lacking"), serve(tmp_path / "wrong"), serve(tmp_path / "web")
    publish(tmp_path / "web", monkeypatch, [closed, lacking.address, wrong.address, good.address])
    for name in REMOTES["mnist"].files:
        (tmp_path / "wrong" / name).write_bytes(b"<html>moved</html>")
    fetch("mnist", tmp_path / "mine")
    assert len(datasets.mnist(tmp_path / "mine")[0][0]) == 12
    assert len(lacking.asked) == 2  # a request and its error; from then on the mirror that works comes first
    assert len(wrong.asked) == 1
    assert len(good.asked) == 4


def test_fetch_without_a_working_mirror(tmp_path, monkeypatch, serve, closed):
    (tmp_path / "lacking").mkdir()
    (tmp_path / "wrong").mkdir()
    lacking, wrong = serve(tmp_path / "lacking"), serve(tmp_path / "wrong")
    publish(tmp_path / "web", monkeypatch, [closed, lacking.address, wrong.address])
    first = next(iter(REMOTES["mnist"].files))
    (tmp_path / "wrong" / first).write_bytes(b"other")
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        datasets.mnist()
    assert time.monotonic() - start < 5
    said = str(caught.value)
    assert f"mnist: {first} could not be downloaded; each of 3 mirrors was tried" in said
    assert f"{closed}{first}: [Errno" in said
    assert f"{lacking.address}{first}: HTTP 404 File not found" in said
    assert f"{wrong.address}{first}: its checksum is not md5:" in said
    assert f"put them into {tmp_path / 'cache' / 'mnist'}" in said
    assert "GPUCNN_DATA" in said
    assert not list((tmp_path / "cache" / "mnist").iterdir())
    assert set(lacking.asked + wrong.asked) == {f"/{first}"}


def test_fetch_times_out_on_a_silent_server(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(tmp_path / "web", monkeypatch, [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        monkeypatch.setattr(download, "_TIMEOUT", (0.2, 0.2))
        start = time.monotonic()
        with pytest.raises(DataError, match=r"timed out"):
            fetch("mnist", tmp_path / "mine")
        assert time.monotonic() - start < 5


def test_fetch_into_a_read_only_folder(tmp_path, monkeypatch, serve):
    server = serve(tmp_path / "web")
    publish(tmp_path / "web", monkeypatch, [server.address])
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written into .*file.* name another .* GPUCNN_CACHE"):
        fetch("mnist", tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.move", full)
    with pytest.raises(DataError, match=r"cannot be written into .*No space left on device"):
        fetch("mnist", tmp_path / "mine")


def test_fetch_shows_progress_on_a_terminal_alone(tmp_path, monkeypatch, serve, capfd):
    server = serve(tmp_path / "web")
    publish(tmp_path / "web", monkeypatch, [server.address])
    fetch("mnist", tmp_path / "quiet", progress=True)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    fetch("mnist", tmp_path / "loud", progress=True)
    size = (tmp_path / "web" / f"{STEMS[0]}.gz").stat().st_size
    assert f"{STEMS[0]}.gz" in screen.getvalue()
    assert f"{size}/{size} bytes" in screen.getvalue()


def test_fetch_refuses_unknown_names(tmp_path):
    with pytest.raises(ConfigurationError, match="'fashion' to download; expected one of mnist, cifar10"):
        fetch("fashion", tmp_path)


def test_remotes_have_mirrors_and_checksums():
    for remote in REMOTES.values():
        assert len(set(remote.mirrors)) >= 2
        assert all(mirror.endswith("/") for mirror in remote.mirrors)
        assert all(len(known.removeprefix("sha256:")) == 64 for known in remote.files.values())


def test_pooch_is_quiet_while_fetching_and_no_longer(tmp_path, monkeypatch, serve, closed):
    said = []
    logger = pooch.get_logger()
    monkeypatch.setattr(logger, "handle", said.append)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    publish(tmp_path / "web", monkeypatch, [serve(tmp_path / "web").address])
    fetch("mnist", tmp_path / "mine")
    publish(tmp_path / "web", monkeypatch, [closed])
    with pytest.raises(DataError):
        fetch("mnist", tmp_path / "other")
    assert not said
    assert logger.level == logging.DEBUG


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("GPUCNN_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    for unset in ("", None):
        monkeypatch.setenv("GPUCNN_CACHE", "") if unset == "" else monkeypatch.delenv("GPUCNN_CACHE")
        assert cache_folder() == Path(pooch.os_cache("gpucnn"))


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "home/.cache/gpucnn"),
        ("linux", {"XDG_CACHE_HOME": "{}/caches"}, "caches/gpucnn"),
        ("linux", {"XDG_CACHE_HOME": "caches"}, "home/.cache/gpucnn"),  # relative ones do not count
        ("linux", {"XDG_CACHE_HOME": " "}, "home/.cache/gpucnn"),
        ("darwin", {}, "home/Library/Caches/gpucnn"),
        ("win32", {"LOCALAPPDATA": "{}/local"}, "local/gpucnn/gpucnn/Cache"),
        ("win32", {}, "home/AppData/Local/gpucnn/gpucnn/Cache"),
    ],
)
def test_cache_folder_of_each_system(monkeypatch, tmp_path, platform, environment, expected):
    for name in ("GPUCNN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    if platform == sys.platform:
        assert cache_folder() == Path(pooch.os_cache("gpucnn"))
    monkeypatch.setattr("gpucnn.data.download.sys.platform", platform)
    assert cache_folder() == tmp_path / expected


@pytest.mark.parametrize("missing", ["pooch", "requests"])
def test_datasets_are_found_but_not_downloaded_without_pooch(monkeypatch, tmp_path, missing):
    monkeypatch.delenv("GPUCNN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "caches"))
    monkeypatch.setitem(sys.modules, missing, None)  # what Python does with None here: ModuleNotFoundError
    assert datasets.available("mnist") is None
    with pytest.raises(
        DataError, match=r"mnist: is not on this machine.*needs pooch.*pip install pooch, or get train-"
    ):
        datasets.mnist()
    assert not list(tmp_path.iterdir())
    write_mnist(cache_folder() / "mnist")
    assert len(datasets.mnist()[0][0]) == 12


# Image folders


def draw_folder(folder, classes=("ant", "bee"), n=10, shape=(3, 2)):
    """Write n images per class; the first pixel tells the class and the number."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.zeros(shape, np.uint8)
            pixels[0, 0] = 100 * label + i
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_split_drawn_by_seed_is_stratified(tmp_path):
    draw_folder(tmp_path / "insects")
    data = datasets.image_folder(tmp_path / "insects", test_fraction=0.3, seed=4)
    (x_train, y_train), (x_test, y_test) = data
    assert np.bincount(y_train).tolist() == [7, 7]
    assert np.bincount(y_test).tolist() == [3, 3]
    values = np.concatenate([x_train, x_test])[:, 0, 0, 0]
    assert sorted(values.tolist()) == [*range(10), *range(100, 110)]
    assert (x_test[:, 0, 0, 0] // 100 == y_test).all()
    assert data.name == "insects"
    assert data.class_names == ["ant", "bee"]
    assert "0.3 of each class drawn as test with seed 4" in data.source

    again = datasets.image_folder(tmp_path / "insects", test_fraction=0.3, seed=4)
    np.testing.assert_array_equal(again[1][0], x_test)
    others = [datasets.image_folder(tmp_path / "insects", test_fraction=0.3, seed=s)[1][0] for s in range(3)]
    assert any((other != x_test).any() for other in others)


@pytest.mark.parametrize(("fraction", "test"), [(0.001, 1), (0.5, 5), (0.999, 9)])
def test_splits_hold_every_class(tmp_path, fraction, test):
    draw_folder(tmp_path)
    (_, y_train), (_, y_test) = datasets.image_folder(tmp_path, test_fraction=fraction)
    assert np.bincount(y_test).tolist() == [test] * 2
    assert np.bincount(y_train).tolist() == [10 - test] * 2


def test_split_of_a_class_with_one_image_is_refused(tmp_path):
    draw_folder(tmp_path, n=1)
    with pytest.raises(DataError, match="the class 'ant' holds 1 image; expected at least 2"):
        datasets.image_folder(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("train", "test"), ("TRAINING", "Testing"), ("Digit_training", "Digit_testing"), ("train-1", "val 2")],
)
def test_splits_are_known_by_their_names(tmp_path, names):
    draw_folder(tmp_path / names[0], n=3)
    draw_folder(tmp_path / names[1], n=2)
    data = datasets.image_folder(tmp_path)
    assert np.bincount(data[0][1]).tolist() == [3, 3]
    assert np.bincount(data[1][1]).tolist() == [2, 2]
    assert data.source == f"image files in {tmp_path / names[0]} and {tmp_path / names[1]}"


def test_splits_prefer_test_to_validation(tmp_path):
    for n, name in enumerate(("train", "validation", "test"), start=1):
        draw_folder(tmp_path / name, n=n)
    data = datasets.image_folder(tmp_path)
    assert (len(data[0][1]), len(data[1][1])) == (2, 6)


def test_classes_named_like_splits_stay_classes(tmp_path):
    draw_folder(tmp_path, classes=("test tube", "train"))
    data = datasets.image_folder(tmp_path)
    assert data.class_names == ["test tube", "train"]


def test_splits_are_whole_names(tmp_path):
    draw_folder(tmp_path / "fast train line")
    draw_folder(tmp_path / "the test tube")
    with pytest.raises(DataError, match="fast train line: holds the folder 'ant'"):
        datasets.image_folder(tmp_path)


def test_splits_that_do_not_agree(tmp_path):
    draw_folder(tmp_path / "train", classes=("ant", "bee", "cow"), n=1)
    draw_folder(tmp_path / "test", classes=("ant", "bees", "cow"), n=1)
    with pytest.raises(DataError, match=r"only the first has \['bee'\], only the second has \['bees'\]"):
        datasets.image_folder(tmp_path)


def test_splits_of_other_sizes_and_colours(tmp_path):
    draw_folder(tmp_path / "train", n=1, shape=(3, 2))
    draw_folder(tmp_path / "test", n=1, shape=(4, 5, 3))
    with pytest.raises(DataError, match=r"train holds images of 3x2 pixels .*test of 4x5; .* size=\(3, 2\)"):
        datasets.image_folder(tmp_path)
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "test" / "ant" / "colour.png")
    (x_train, _), (x_test, _) = datasets.image_folder(tmp_path, size=(3, 2))
    assert x_train.shape == (2, 3, 2, 3)
    assert x_test.shape == (3, 3, 2, 3)


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1, float("nan"), "half"])
def test_split_fraction_out_of_range_is_refused(tmp_path, fraction):
    with pytest.raises(ConfigurationError, match="test_fraction must be a number"):
        datasets.image_folder(tmp_path, test_fraction=fraction)


@pytest.mark.parametrize("seed", [-1, 0.5, "one", None, True])
def test_split_seed_out_of_range_is_refused(tmp_path, seed):
    with pytest.raises(ConfigurationError, match="seed must be an integer of at least 0"):
        datasets.image_folder(tmp_path, seed=seed)
    with pytest.raises(ConfigurationError, match="seed must be an integer of at least 0"):
        datasets.synthetic_digits(10, seed=seed)


# Synthetic digits


def test_synthetic_splits_come_from_two_streams(monkeypatch):
    calls = []

    def draw(n, seed):
        calls.append((n, seed))
        return np.zeros((n, 28, 28, 1), np.uint8), np.zeros(n, np.int64)

    monkeypatch.setattr(synthetic, "synthetic_digits", draw)
    data = datasets.synthetic_digits(np.int64(50), seed=7)
    datasets.synthetic_digits(3, seed=8)
    assert [n for n, _ in calls] == [50, 10, 3, 1]
    assert [seed for _, seed in calls[::2]] == [7, 8]
    assert len({seed for _, seed in calls}) == 4
    assert data.name == "synthetic_digits"
    assert data.source == "generated with seed 7"
    with pytest.raises(ConfigurationError, match="n must be a positive integer, not 0"):
        datasets.synthetic_digits(0)


def test_synthetic_digits_are_drawn(tmp_path):
    (x_train, y_train), (x_test, y_test) = datasets.synthetic_digits(100, seed=1)
    assert x_train.shape == (100, 28, 28, 1)
    assert x_test.shape == (20, 28, 28, 1)
    assert x_train.dtype == x_test.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    assert not (x_test[:, None] == x_train[None]).all(axis=(2, 3, 4)).any()


def test_import_is_light():
    code = (
        "import sys, gpucnn.datasets\n"
        "print({'pooch', 'requests', 'PIL', 'scipy', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


class Drip(Server):
    """A web server that sends without end: quickly, or byte by byte."""

    def __init__(self, folder, pause):
        super().__init__(folder)
        server = self
        self.stopped = threading.Event()

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not server.stopped.wait(pause):
                        self.wfile.write(bytes(1 << 20) if pause == 0 else b"x")

            def log_message(self, *_):
                pass

        self.http.RequestHandlerClass = Handler

    def close(self):
        self.stopped.set()
        super().close()


@pytest.mark.parametrize(
    ("pause", "message"),
    [(0, "the response is longer than the 16,777,216 bytes of the file"), (0.02, "too slow:")],
    ids=["endless", "dripping"],
)
def test_fetch_leaves_a_mirror_that_sends_without_end(tmp_path, monkeypatch, serve, pause, message):
    monkeypatch.setattr(download, "_MIN_RATE", (60_000, 0.3))
    (tmp_path / "bad").mkdir()
    bad, good = Drip(tmp_path / "bad", pause), serve(tmp_path / "web")
    try:
        publish(tmp_path / "web", monkeypatch, [bad.address, good.address])
        fetch("mnist", tmp_path / "mine")
        assert len(datasets.mnist(tmp_path / "mine")[0][0]) == 12
        publish(tmp_path / "web", monkeypatch, [bad.address])
        with pytest.raises(DataError, match=message):
            fetch("mnist", tmp_path / "other")
        assert list((tmp_path / "other").iterdir()) == []
    finally:
        bad.close()


def test_download_removes_what_killed_ones_left(tmp_path, monkeypatch, serve):
    server = serve(tmp_path / "web")
    publish(tmp_path / "web", monkeypatch, [server.address])
    mine = tmp_path / "mine"
    mine.mkdir()
    for name, age in (("tmpabc_1234", 7200), ("tmpabc_5678", 60), ("tmp.notes.txt", 7200)):
        (mine / name).write_text("x")
        os.utime(mine / name, (time.time() - age,) * 2)
    fetch("mnist", mine)
    assert {path.name for path in mine.iterdir()} == {*REMOTES["mnist"].files, "tmpabc_5678", "tmp.notes.txt"}


NOT_PATHS = [
    (datasets.image_folder, None),
    (datasets.image_folder, b"x"),
    (datasets.mnist, b"x"),
    (datasets.cifar10, 3),
]


@pytest.mark.parametrize(("load", "path"), NOT_PATHS)
def test_folder_is_a_string_or_a_path(load, path):
    with pytest.raises(ConfigurationError, match=r"expected a path, as a string or a pathlib\.Path, not"):
        load(path)
