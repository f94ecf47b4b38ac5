"""Files from strangers: whatever their bytes are, they load or raise an error of gpucnn's, soon and in little memory.

Each format begins with a whole file, which is then mutated: bytes changed, cut, inserted, removed and repeated, and
numbers of four and eight bytes made large. Descriptions in JSON are mutated as trees as well, so that what is read is
well-formed and wrong. `-m slow` tries 2,000 examples of each.
"""

import gzip
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save

import gpucnn
from gpucnn import datasets, layers, optimizers, schedules
from gpucnn.callbacks import Callback
from gpucnn.callbacks.defects import TrainingMonitor, load_report
from gpucnn.callbacks.snapshots import Snapshots, load_snapshots
from gpucnn.data import folders
from gpucnn.data.cifar import read_cifar10, read_cifar10_batch
from gpucnn.data.folders import read_image_folder
from gpucnn.data.idx import read_idx
from gpucnn.errors import GpucnnError
from gpucnn.runs.folder import read_history, run_config
from gpucnn.runs.statistics import Runs
from gpucnn.saving import tree as trees
from tests.helpers import described

SECONDS = 5  # that reading one file may take
MEMORY = 64 << 20  # bytes that it may take on top of twenty times the file's size
ORDINARY, MANY = 60, 2000


@dataclass(frozen=True)
class Format:
    """A kind of file: a whole one, its name, and what reads it from the folder that it lies in."""

    name: str
    whole: Callable[[Any], bytes]  # from an empty folder
    file: str
    read: Callable[[Any], Any]

    def __str__(self) -> str:
        return self.name


def idx(_):
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    return bytes([0, 0, 8, 3]) + struct.pack(">3I", *images.shape) + images.tobytes()


def cifar(_):
    records = np.random.default_rng(0).integers(0, 256, (3, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records.tobytes()


def archive(_):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            content = cifar(None)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def picture(kind, mode):
    def whole(_):
        pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(stream, kind)
        return stream.getvalue()

    return whole


def small_network():
    network = [
        layers.Conv2D(4, 3, padding="same", weight_initializer="glorot_uniform", name="first"),
        layers.BatchNorm(),
        layers.ReLU(),
        layers.Residual([layers.Conv2D(4, 3, padding=1), layers.Dropout(0.2)]),
        layers.AveragePool2D(2, padding=1),
        layers.Flatten(),
        layers.Dense(3),
        layers.Softmax(),
    ]
    groups = [optimizers.Group("*.bias", lr_multiplier=2.0, train_epochs=3)]
    optimizer = optimizers.SGD(schedules.OneCycle(0.1), momentum=0.9, groups=groups)
    return gpucnn.Model(network, (6, 6, 2), backend="numpy").compile(optimizer)


def trained(folder, callbacks: list[Callback], **options):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 6, 6, 2), dtype=np.uint8), rng.integers(0, 3, 12)
    model = small_network()
    history = model.fit(x, y, epochs=2, batch_size=6, callbacks=callbacks, verbose=0, **options)
    return model, history


def model_file(folder):
    model, _ = trained(folder, [])
    model.class_names = ["a", "b", "c"]
    model.save(folder / "m.safetensors")
    return (folder / "m.safetensors").read_bytes()


def snapshots_file(folder):
    trained(folder, [Snapshots(folder)])
    return (folder / "snapshots.safetensors").read_bytes()


def checkpoint_file(folder):
    keep = gpucnn.Checkpoints(folder)
    trained(folder, [], checkpoints=keep)
    return keep.files()[-1].read_bytes()


def history_file(folder):
    _, history = trained(folder, [])
    history.save(folder / "history.json")
    return (folder / "history.json").read_bytes()


def defects_file(folder):
    rng = np.random.default_rng(0)
    watch = TrainingMonitor((rng.integers(0, 256, (8, 6, 6, 2), dtype=np.uint8), rng.integers(0, 3, 8)), every=1)
    trained(folder, [watch])
    watch.save(folder)
    return (folder / "defects.json").read_bytes()


def settings_file(_):
    return json.dumps({"network": "lenet", "data": "mnist", "epochs": 2, "test": {"accuracy": 0.5}}).encode()


def runs_file(_):
    runs = [{"seed": k, "numbers": {"test accuracy": 0.9, "training loss": [1.0, 0.5]}, "defect": None} for k in (0, 1)]
    return json.dumps({"format": 1, "settings": {"network": "lenet"}, "runs": runs}).encode()


def load_model(folder):
    model = gpucnn.load(folder / "m.safetensors", backend="numpy")
    if np.prod(model.input_shape) < 10_000:  # what was loaded can be used, or says why it cannot
        model.predict(np.zeros((2, *model.input_shape), np.uint8))
    return model


FORMATS = [
    Format("idx", idx, "images", lambda folder: read_idx(folder / "images")),
    Format("idx-gzip", lambda f: gzip.compress(idx(f), mtime=0), "i.gz", lambda folder: read_idx(folder / "i.gz")),
    Format("cifar-batch", cifar, "b.bin", lambda folder: read_cifar10_batch(folder / "b.bin")),
    Format("cifar-archive", archive, "cifar-10-binary.tar.gz", read_cifar10),
    Format("png", picture("PNG", "RGB"), "class/1.png", read_image_folder),
    Format("png-palette", picture("PNG", "P"), "class/1.png", read_image_folder),
    Format("jpeg", picture("JPEG", "RGB"), "class/1.jpg", read_image_folder),
    Format("gif", picture("GIF", "P"), "class/1.gif", read_image_folder),
    Format("bmp", picture("BMP", "L"), "class/1.bmp", read_image_folder),
    Format("webp", picture("WEBP", "RGB"), "class/1.webp", read_image_folder),
    Format("model", model_file, "m.safetensors", load_model),
    Format("snapshots", snapshots_file, "snapshots.safetensors", load_snapshots),
    Format(
        "checkpoint",
        checkpoint_file,
        "c.safetensors",
        lambda f: trees.from_file(f / "c.safetensors", "gpucnn_training"),
    ),
    Format("history", history_file, "history.json", lambda folder: read_history(folder / "m")),
    Format("defects", defects_file, "defects.json", load_report),
    Format("settings", settings_file, "config.json", lambda folder: run_config(folder / "m")),
    Format("runs", runs_file, "runs.json", lambda folder: Runs.read(folder / "runs.json")),
]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    return {form.name: form.whole(tmp_path_factory.mktemp(form.name)) for form in FORMATS}


def place(data: bytes):
    """Anywhere in the file, and half of the time in its head."""
    return st.one_of(st.integers(0, min(len(data) - 1, 99)), st.integers(0, len(data) - 1))


NUMBERS = st.sampled_from([0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])


@st.composite
def mutated(draw, data: bytes):
    """The file with one to four changes."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(place(data or b"\0"))
        kind = draw(st.sampled_from(["byte", "bit", "cut", "insert", "remove", "repeat", "number"]))
        if kind == "byte":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "bit" and data:
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + draw(st.binary(max_size=20)) + data[at:]
        elif kind == "remove":
            data = data[:at] + data[at + draw(st.integers(1, 50)) :]
        elif kind == "repeat":
            data = data[:at] + data[max(0, at - 40) : at] * draw(st.integers(1, 20)) + data[at:]
        else:
            number, form = draw(NUMBERS), draw(st.sampled_from(["<I", ">I", "<Q", ">Q"]))
            packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
            data = data[:at] + packed + data[at + len(packed) :]
    return data


def loads_or_says_why(form: Format, data: bytes, folder) -> bool:
    """Read a file of such bytes; True if it loads, False if a GpucnnError says why not."""
    file = folder / form.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    tracemalloc.start()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            form.read(folder)
    except GpucnnError:
        return False
    else:
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        most = folders.MEMORY if form.read is read_image_folder else MEMORY + 20 * len(data)
        assert peak < most, f"{peak:,} bytes for a file of {len(data):,}"


def resident():
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(form: Format, wholes, folder, examples: int, change=mutated):
    found, before = {True: 0, False: 0}, resident()
    pictures = form.read is read_image_folder  # whose decoders Python does not see: the process's memory tells

    @settings(
        max_examples=examples,
        deadline=None if pictures else 1000 * SECONDS,
        database=None,
        derandomize=examples == ORDINARY,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=change(wholes[form.name]))
    def one(data):
        found[loads_or_says_why(form, data, folder)] += 1

    one()
    print(f"{form.name}: {found[True]} loaded, {found[False]} refused")
    assert found[False], "nothing was refused: were the files mutated?"
    if pictures:
        assert resident() - before < folders.MEMORY + MEMORY


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_fuzz_intact_files_load(form, wholes, tmp_path):
    if form.name == "png-palette":
        assert b"PLTE" in wholes[form.name]
    assert loads_or_says_why(form, wholes[form.name], tmp_path)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_fuzz_mutated_files_load_or_say_why(form, wholes, tmp_path):
    fuzz(form, wholes, tmp_path, ORDINARY)


@pytest.mark.fuzz
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_fuzz_many_mutated_files_load_or_say_why(form, wholes, tmp_path):
    fuzz(form, wholes, tmp_path, MANY)


# --- descriptions, mutated as trees ------------------------------------------------------------

WORDS = [
    "same",
    "valid",
    "Conv2D",
    "Dense",
    "Sequential",
    "Residual",
    "SGD",
    "OneCycle",
    "he_normal",
    "float16",
    "",
    "*",
]
ODD_NUMBERS = [0, -1, 1, 2, 3, 7, 64, 10**6, 10**9, 10**15, 2**63, -(2**63), 0.5, -0.0, 1e-300, 1e300]
PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(ODD_NUMBERS),
        st.floats(),
        st.sampled_from(WORDS),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from([*WORDS, "Layer"]), inner)),
    max_leaves=5,
)


def places(tree, path=()):
    """Every place in plain data, as the keys that lead to it."""
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


@st.composite
def changed_tree(draw, tree):
    """Plain data with one to three places changed, left out, or exchanged."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(tree) if path] or [()]))
        if not path:
            return draw(PLAIN)
        inside = tree
        for key in path[:-1]:
            inside = inside[key]
        kind = draw(st.sampled_from(["value", "value", "remove", "other"]))
        if kind == "value":
            inside[path[-1]] = draw(PLAIN)
        elif kind == "remove":
            del inside[path[-1]]
        else:  # what stands elsewhere in the same tree
            other = tree
            for key in draw(st.sampled_from(list(places(tree)))):
                other = other[key]
            inside[path[-1]] = json.loads(json.dumps(other))
    return tree


@pytest.fixture(scope="module")
def model_described(tmp_path_factory):
    """The description in a model's file, and its arrays."""
    path = tmp_path_factory.mktemp("described") / "m.safetensors"
    path.write_bytes(model_file(path.parent))
    return described(path), load_file(path)


def fuzz_descriptions(model_described, folder, examples):
    description, arrays = model_described
    form = next(form for form in FORMATS if form.name == "model")

    def files(_):
        return changed_tree(description).map(lambda tree: save(arrays, metadata={"gpucnn": json.dumps(tree)}))

    fuzz(form, {form.name: None}, folder, examples, files)


def test_fuzz_changed_descriptions_load_or_say_why(model_described, tmp_path):
    fuzz_descriptions(model_described, tmp_path, ORDINARY)


@pytest.mark.fuzz
def test_fuzz_many_changed_descriptions_load_or_say_why(model_described, tmp_path):
    fuzz_descriptions(model_described, tmp_path, MANY)


JSON_FILES = [form for form in FORMATS if form.file.endswith(".json")]


def fuzz_json(form, wholes, folder, examples):
    tree = json.loads(wholes[form.name])
    fuzz(form, wholes, folder, examples, lambda _: changed_tree(tree).map(lambda changed: json.dumps(changed).encode()))


@pytest.mark.parametrize("form", [form for form in JSON_FILES if form.name != "settings"], ids=str)
def test_fuzz_changed_json_loads_or_says_why(form, wholes, tmp_path):
    fuzz_json(form, wholes, tmp_path, ORDINARY)


@pytest.mark.fuzz
@pytest.mark.parametrize("form", [form for form in JSON_FILES if form.name != "settings"], ids=str)
def test_fuzz_much_changed_json_loads_or_says_why(form, wholes, tmp_path):
    fuzz_json(form, wholes, tmp_path, MANY)


# --- what mutation seldom finds ----------------------------------------------------------------


@pytest.mark.parametrize("form", [*JSON_FILES, *(f for f in FORMATS if f.name in ("model", "snapshots"))], ids=str)
def test_descriptions_nested_too_deep_are_refused(form, wholes, tmp_path):
    deep = "[" * 100_000
    data = deep.encode()
    if form.file.endswith(".safetensors"):
        key = {"model": "gpucnn", "snapshots": "gpucnn_snapshots"}[form.name]
        data = save({"a": np.zeros(1)}, metadata={key: deep})
    assert not loads_or_says_why(form, data, tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("network", "layers", 0, "filters"), 10**9),
        (("network", "layers", 0, "kernel_size"), 10**6),
        (("network", "layers", 6, "units"), 10**12),
        (("input_shape",), [10**6, 10**6, 2]),
        (("input_shape",), [6, 6, 10**12]),
        (("network", "layers", 4, "padding"), 10**9),
    ],
    ids=lambda value: str(value),
)
def test_description_of_more_than_the_file_holds_is_refused_at_once(model_described, tmp_path, path, value):
    description, arrays = json.loads(json.dumps(model_described[0])), model_described[1]
    inside = description
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    form = next(form for form in FORMATS if form.name == "model")
    assert not loads_or_says_why(form, save(arrays, metadata={"gpucnn": json.dumps(description)}), tmp_path)


def test_description_with_too_many_layers_is_refused(model_described, tmp_path):
    """Each allowed for itself, and together more than the file holds."""
    description, arrays = json.loads(json.dumps(model_described[0])), model_described[1]
    description["network"]["layers"][6:7] = [{"Layer": "Dense", "units": 30} for _ in range(3000)]
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(arrays, metadata={"gpucnn": json.dumps(description)}))
    with pytest.raises(
        gpucnn.CheckpointError,
        match=r"with it more than the [\d,]+ elements there are; was the description edited\?",
    ):
        gpucnn.load(path)


@pytest.mark.parametrize("kind", ["link", "folder", "absolute", "above"])
def test_archives_with_members_that_lead_elsewhere(tmp_path, kind):
    """Nothing of an archive is written, and what is not a plain file of the expected name is not read."""
    secret = tmp_path / "secret"
    secret.write_bytes(cifar(None))
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        names = {"absolute": str(secret), "above": "../secret"}
        member = tarfile.TarInfo(names.get(kind, "cifar-10-batches-bin/data_batch_1.bin"))
        member.type = {"link": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE}.get(kind, tarfile.REGTYPE)
        member.linkname = str(secret)
        tar.addfile(member)
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(folder))
    with pytest.raises(gpucnn.DataError, match=r"is a link or a folder|holds no cifar-10-batches-bin"):
        datasets.cifar10(folder)
    assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(folder))) == before


def test_gzip_bomb_is_refused_in_little_memory(tmp_path):
    """A header of small images, and 256 megabytes of zeros behind them."""
    path = tmp_path / "i.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 5, 4))
        for _ in range(16):
            file.write(bytes(1 << 24))
    form = next(form for form in FORMATS if form.name == "idx-gzip")
    assert not loads_or_says_why(form, path.read_bytes(), tmp_path)


def test_archive_bomb_is_refused_in_little_memory(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.size = 1 << 27
        tar.addfile(member, io.BytesIO(bytes(1 << 27)))
    form = next(form for form in FORMATS if form.name == "cifar-archive")
    assert not loads_or_says_why(form, (tmp_path / "cifar-10-binary.tar.gz").read_bytes(), tmp_path)


def test_image_bomb_is_refused(tmp_path):
    """65,000 by 65,000 pixels in a file of some kilobytes."""
    header = struct.pack(">IIBBBBB", 65_000, 65_000, 1, 0, 0, 0, 0)
    whole = picture("PNG", "1")(None)
    data = whole[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]
    form = next(form for form in FORMATS if form.name == "png")
    assert not loads_or_says_why(form, data, tmp_path)


PEAK = """
import resource, sys
import numpy, PIL.Image
from gpucnn.data.images import read_image
from gpucnn.errors import DataError

PIL.Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(sys.argv[1], None, 1)
except DataError as error:
    print(error, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak_of_reading(path):
    """Return what reading an image takes of a process's memory, and what it says."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    return int(done.stdout), done.stderr


def largest(path, name):
    """Write a picture of as many pixels as are read of its kind."""
    kind, mode = name.split("-")[:2]
    most = folders.MEMORY // (folders._BYTES_PER_PIXEL.get(kind, folders._DEFAULT_BYTES_PER_PIXEL))
    side = int(most**0.5)
    options = {"lossless": True} if kind == "WEBP" else {"transparency": 0} if name.endswith("transparent") else {}
    picture = Image.new(mode, (side, side), 7 if mode in ("P", "I;16") else (200, 10, 3, 90)[: len(mode)])
    if mode == "P":
        picture.putpalette([200, 10, 3] * 256)
    picture.save(path, kind, **options)
    return path


MAX_SIZES = [
    "WEBP-RGBA",
    "PNG-P-transparent",
    "PNG-I;16",
    "PNG-RGB",
    "PNG-RGBA",
    "JPEG-RGB",
    "GIF-P",
    "BMP-RGB",
    "WEBP-RGB",
]


@pytest.mark.parametrize(
    "name", [MAX_SIZES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MAX_SIZES[1:])]
)
def test_images_of_the_largest_size_are_read_within_the_stated_memory(tmp_path, name):
    """By the package's own limits, and by what the process holds."""
    path = largest(tmp_path / "largest", name)
    assert path.stat().st_size < 1 << 28
    peak, said = peak_of_reading(path)
    assert said == ""
    assert peak < folders.MEMORY + 2 * path.stat().st_size


@pytest.mark.parametrize("size", [(9000, 9000), (70_000, 1)])
def test_images_that_are_larger_are_refused_before_decoding(tmp_path, size):
    path = tmp_path / "a.png"
    Image.new("1", size).save(path)
    peak, said = peak_of_reading(path)
    assert f"has {size[0]:,} by {size[1]:,} pixels; expected at most" in said
    assert peak < MEMORY


def test_image_files_of_other_content_are_not_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture("PNG", "RGB")(None))
    os.truncate(path, 3 << 30)
    peak, said = peak_of_reading(path)
    assert "is larger than the" in said
    assert peak < MEMORY
