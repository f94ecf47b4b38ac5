"""Files from strangers that are well-formed and made to harm: layers without end, wrong values, odd tensors."""

import json
import os
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

import gpucnn
from gpucnn import report
from gpucnn.callbacks import EarlyStopping, MovingAverage
from gpucnn.callbacks.defects import TrainingMonitor, load_report
from gpucnn.callbacks.snapshots import Snapshots, load_snapshots
from gpucnn.data.augment import Translate
from gpucnn.errors import CheckpointError, ConfigurationError, GpucnnError
from gpucnn.layers import ReLU, Residual, Sequential
from gpucnn.runs.folder import read_history, remember_data, run_config
from gpucnn.runs.statistics import Runs
from gpucnn.saving import tree as trees
from gpucnn.training.checkpoints import KEY
from tests.helpers import DATA, VALIDATION, Kill, Killed, always, fit, killed, pictures, small_model


def model_file(path, layers, shape=(4,), tensors=None, **more):
    described = {"format": 1, "name": "a", "input_shape": shape, "dtype": "float32", "seed": 0}
    described |= {"network": {"Layer": "Sequential", "layers": layers}} | more
    path.write_bytes(save(tensors or {}, metadata={"gpucnn": json.dumps(described)}))
    return path


# --- layers without end ------------------------------------------------------------------------


def doubled(depth, kind):
    """Describe a layer that stands twice in one that stands twice in one …: 2 to the depth places."""
    if depth == 0:
        return {"Layer": "ReLU"}, 1
    inner, number = doubled(depth - 1, kind)
    same = {"Layer": "same", "as": number - 1}
    made = {"layers": [inner, same]} if kind == "Sequential" else {"main": inner, "shortcut": same}
    return {"Layer": kind, **made}, number + 1


@pytest.mark.parametrize("kind", ["Sequential", "Residual"])
@pytest.mark.parametrize("depth", [19, 24, 30])
def test_layers_that_stand_in_too_many_places_are_refused_at_once(tmp_path, kind, depth):
    path = model_file(tmp_path / "m.safetensors", [doubled(depth, kind)[0]])
    assert path.stat().st_size < 4000
    with pytest.raises(CheckpointError, match=r"passed in [\d,]+ places, and this gpucnn reads at most 20,000"):
        gpucnn.load(path, backend="numpy")


@pytest.mark.parametrize("kind", ["Sequential", "Residual"])
def test_shared_layers_are_visited_once(kind):
    """Thirty doublings, a thousand million places: each layer is visited once."""
    layer = ReLU()
    for _ in range(30):
        layer = Sequential([layer, layer]) if kind == "Sequential" else Residual(layer, layer)
    found = list(layer.all_layers())
    assert len(found) == len({id(one) for one in found}) == 31
    assert layer.parameters() == {}


def test_layers_by_the_thousand_take_linear_time(tmp_path):
    """Counted in calls, not in seconds: naming a layer must not look at all before it."""
    from gpucnn.core.config import snake_case
    from gpucnn.layers import containers

    calls = []
    original = containers.snake_case
    try:
        containers.snake_case = lambda word: calls.append(word) or snake_case(word)
        model = gpucnn.load(model_file(tmp_path / "m.safetensors", [{"Layer": "ReLU"}] * 3000), backend="numpy")
    finally:
        containers.snake_case = original
    assert len(calls) <= 3001
    assert [layer.display_name for layer in model.layers[-2:]] == ["relu_2998", "relu_2999"]


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        ({"Layer": "PadChannels", "before": 0, "after": 10**30}, [4], "no array holds more than"),
        ({"Layer": "PadChannels", "before": 0, "after": 10**18}, [4], "no array holds more than"),
        ({"Layer": "Flatten"}, [2**31, 2**31, 2**31], "no array holds more than"),
        ({"Layer": "MaxPool2D", "pool_size": 2, "strides": 10**30}, [8, 8, 1], "must be below 2,147,483,648"),
        ({"Layer": "MaxPool2D", "pool_size": 2, "padding": 10**30}, [8, 8, 1], "must be below 2,147,483,648"),
    ],
    ids=str,
)
def test_sizes_that_no_array_has_are_refused(tmp_path, layer, shape, message):
    with pytest.raises(CheckpointError, match=message):
        gpucnn.load(model_file(tmp_path / "m.safetensors", [layer], shape), backend="numpy")


# --- tensors -----------------------------------------------------------------------------------

DENSE = {"network": {"Layer": "Sequential", "layers": [{"Layer": "Dense", "units": 2}]}}


def odd_tensor(path, kind, size, key, text):
    head = {
        "__metadata__": {key: text},
        "dense.weight": {"dtype": kind, "shape": [4, 2], "data_offsets": [0, 8 * size]},
        "dense.bias": {"dtype": "F32", "shape": [2], "data_offsets": [8 * size, 8 * size + 8]},
    }
    words = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(words)) + words + b"\1" * (8 * size + 8))


@pytest.mark.parametrize(("kind", "size"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8)])
def test_tensors_of_types_that_are_not_read_are_named(tmp_path, kind, size):
    path = tmp_path / "m.safetensors"
    described = {"format": 1, "name": "a", "input_shape": [4], "dtype": "float32", "seed": 0, **DENSE}
    reads = {
        "gpucnn": lambda: gpucnn.load(path, backend="numpy"),
        KEY: lambda: trees.from_file(path, KEY),
        "gpucnn_snapshots": lambda: load_snapshots(path),
    }
    for key, read in reads.items():
        odd_tensor(path, kind, size, key, json.dumps(described))
        unknown = "|is not a whole safetensors file" if kind == "C64" else ""  # as older readers of the format say
        with pytest.raises(CheckpointError, match=rf"its tensor 'dense.weight' holds numbers of type {kind}{unknown}"):
            read()


# --- whole checkpoints with wrong values -------------------------------------------------------

NASTY = [None, True, -1, 0, 3, 10**6, 10**40, 0.5, -0.5, float("nan"), float("inf"), "", "x", [], [1], {}, {"a": 1}]
NASTY += [np.zeros(0, "float32"), np.zeros((2, 3)), np.full((), np.nan), np.arange(2, dtype="uint64"), np.ones(3, bool)]


def places(tree, path=()):
    """Return the paths to all values of a tree, but those within descriptions of the training."""
    if isinstance(tree, dict | list) and path[:1] not in (("settings",), ("environment",)):
        for key in tree if isinstance(tree, dict) else range(min(len(tree), 3)):
            yield (*path, key)
            yield from places(tree[key], (*path, key))


def changed(tree, path, value, how):
    """Return a tree with one place changed."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if rest or how == "value":
        copy[head] = changed(tree[head], rest, value, how)
    elif how == "drop":
        del copy[head]
    elif isinstance(copy, dict):
        copy[f"{head}!"] = copy.pop(head)
    else:
        copy.insert(head, value)
    return copy


def callbacks():
    monitored = DATA[0][:20], DATA[1][:20]
    return [
        EarlyStopping("val_loss", 5),
        MovingAverage(0.9),
        Snapshots(),
        TrainingMonitor(monitored, every=2, grace_steps=1000),
    ]


def resumed(folder):
    model = small_model()
    before = {path: value.copy() for path, value in model.state_dict().items()}
    options = {"epochs": 2, "batch_size": 10, "validation_data": VALIDATION, "augment": [Translate(1)], "verbose": 0}
    try:
        model.fit(*DATA, callbacks=callbacks(), checkpoints=folder, resume=True, **options)
    except CheckpointError:
        for path, value in model.state_dict().items():
            assert (value == before[path]).all(), "a model that is refused is left alone"
        return False
    except GpucnnError:  # such as NaN that came with the weights
        return True
    return True


@pytest.fixture(scope="module")
def checkpoints_of(tmp_path_factory):
    """A checkpoint within an epoch, and one at the end of one."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gpucnn.core.files.os.fsync", lambda handle: None)
        options = {"validation_data": VALIDATION, "augment": [Translate(1)]}

        with pytest.raises(Killed):
            fit(small_model(), always(folder), *callbacks(), Kill(6), **options)
    return [(file.name, trees.from_file(file, KEY)) for file in sorted(folder.glob("checkpoint-*"))[-3:]]


def mutate(checkpoints_of, tmp_path, count, seed):
    chance, found = random.Random(seed), {True: 0, False: 0}
    for number in range(count):
        name, tree = chance.choice(checkpoints_of)
        for _ in range(chance.choice([1, 1, 2])):
            path = chance.choice(list(places(tree)))
            how = chance.choice(["value", "value", "value", "drop", "key"])
            tree = changed(tree, path, chance.choice(NASTY), how)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            (folder / name).write_bytes(trees.to_bytes(tree, KEY))
        except CheckpointError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[resumed(folder)] += 1
    return found


def test_checkpoints_with_wrong_values_resume_or_say_why(checkpoints_of, tmp_path, monkeypatch):
    monkeypatch.setattr("gpucnn.core.files.os.fsync", lambda handle: None)
    found = mutate(checkpoints_of, tmp_path, 150, seed=0)
    assert found[True] > 5
    assert found[False] > 50


def test_checkpoint_whose_format_is_an_array_is_refused(checkpoints_of, tmp_path):
    name, tree = checkpoints_of[-1]
    (tmp_path / name).write_bytes(trees.to_bytes(tree | {"format": np.ones(3)}, KEY))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not resumed(tmp_path)


def test_checkpoint_that_lacks_a_part_is_refused(checkpoints_of, tmp_path):
    name, tree = checkpoints_of[-1]
    for part in tree:
        folder = tmp_path / part
        folder.mkdir()
        (folder / name).write_bytes(trees.to_bytes({key: tree[key] for key in tree if key != part}, KEY))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert resumed(folder) == (part == "python"), part  # that one is for people


@pytest.mark.fuzz
def test_checkpoints_with_many_wrong_values_resume_or_say_why(checkpoints_of, tmp_path, monkeypatch):
    monkeypatch.setattr("gpucnn.core.files.os.fsync", lambda handle: None)
    print(mutate(checkpoints_of, tmp_path, 2000, seed=1))


def test_checkpoint_of_contradictions_is_refused_by_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr("gpucnn.core.files.os.fsync", lambda handle: None)
    (file,) = killed(tmp_path)[-1:]
    for other in tmp_path.glob("checkpoint-*"):
        if other != file:
            other.unlink()
    tree = trees.from_file(file, KEY)
    for path, value, message in (
        (
            ("model", "arrays", "conv2d.weight"),
            np.zeros(3),
            r"model.arrays.conv2d.weight is an array of float64 of shape",
        ),
        (("model", "epochs_trained"), "many", r"model.epochs_trained is 'many' where 0 was expected"),
        (("history", "loss"), [], "history is not lists of 1 numbers"),
        (("samples",), [0], "samples is not a list of 1 positive numbers"),
        (("position", "step"), 77, "its position, epoch 1 and step 77, is outside the run"),
        (("position", "epoch"), -1, "can be read, but is not a checkpoint of a run"),
        (("optimizer", "slots"), {}, "optimizer.slots is a dictionary of nothing"),
    ):
        file.write_bytes(trees.to_bytes(changed(tree, path, value, "value"), KEY))
        with pytest.raises(CheckpointError, match=message):
            small_model().fit(*DATA, epochs=2, batch_size=10, verbose=0, checkpoints=tmp_path, resume=True)


# --- run folders -------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    model = small_model()
    model.save(folder / "model.safetensors")
    return folder


READS = {
    "config.json": lambda folder: run_config(folder / "model.safetensors"),
    "history.json": lambda folder: read_history(folder / "model.safetensors"),
    "defects.json": load_report,
    "runs.json": lambda folder: Runs.read(folder / "runs.json"),
    "snapshots.safetensors": load_snapshots,
    "model.safetensors": lambda folder: gpucnn.load(folder / "model.safetensors", backend="numpy"),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("kind", ["pipe", "zero", "sparse", "folder"])
def test_run_folder_of_a_stranger_neither_hangs_nor_fills_the_memory(run_folder, name, kind):
    file = run_folder / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "zero":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        with file.open("wb") as sparse:
            sparse.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=name):
        READS[name](run_folder)


def test_data_folder_named_by_a_stranger_is_not_read(run_folder, tmp_path):
    mine = pictures(tmp_path / "mine", sizes=[(8, 8)] * 3, classes=("a", "b", "c"))
    settings = {"data": "images", "data_dir": str(mine), "network": "lenet", "test": {}}
    (run_folder / "config.json").write_text(json.dumps(settings))
    page = report.render(run_folder, backend="numpy")
    assert "which this account has not trained on, so they are not read by default" in page
    assert "pass --data-dir" in page
    with pytest.raises(ConfigurationError, match=rf"run: its settings name the data in {mine}, which this account"):
        gpucnn.runs.folder.predict_test_set(gpucnn.load(run_folder / "model.safetensors"), run_folder / "m", None, None)
    remember_data(mine)
    page = report.render(run_folder, backend="numpy")
    assert "not read unasked" not in page


def test_link_laid_by_a_stranger_is_not_written_through(run_folder, tmp_path):
    (tmp_path / "mine").write_text("precious")
    (run_folder / "report.html").symlink_to("../mine")
    with pytest.raises(ConfigurationError, match=r"report.html: is a symbolic link to ../mine; choose a file"):
        report.write(run_folder, backend="numpy")
    assert (tmp_path / "mine").read_text() == "precious"


# --- what the JSON files of a run say ----------------------------------------------------------

KEPT = {"network": "lenet", "data": "mnist", "epochs": 1, "batch_size": 32, "seed": 0, "test": {"accuracy": 0.5}}
ODD = [None, True, -1, 0, 10**200, 0.5, float("nan"), float("inf"), "", "x", "[/b]", "\x1b[31m", [], [1], {}, {"a": 1}]
ODD += [[float("nan")] * 3, [10**200] * 3, [0] * 1000, "a" * 10000, "<script>alert(1)</script>", "\ud800", "\x00"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "data must be a text, not None"),
        ({"data": [1]}, "data must be a text, not [1]"),
        ({"epochs": "1"}, "epochs must be a number that is above 0, not '1'"),
        ({"epochs": float("nan")}, "epochs must be a number that is above 0, not nan"),
        ({"test": "x"}, "test must hold an accuracy, not 'x'"),
        ({"test": {"accuracy": "x"}}, "test must hold an accuracy"),
        ({"seed": -1e308}, "seed must be an integer of at least 0, not -1e+308"),
        ({"backend": [1]}, "backend must be a text, not [1]"),
        ({"data_dir": {"": 0}}, "data_dir must be a text, not {'': 0}"),
        ({"batch_size": True}, "batch_size must be a positive integer, not True"),
        ({"validation_split": 2}, "validation_split must be a number that is above 0 and below 1, not 2"),
        ({"validate": "no"}, "validate must be True or False, not 'no'"),
    ],
)
def test_run_settings_that_no_option_takes_are_refused_by_name(run, tmp_path, settings, message):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text(json.dumps(KEPT | settings))
    status, _, errors = run("train", "--run-dir", tmp_path / "r", "--resume")
    assert status == 1
    shown = " ".join(errors.split())
    assert shown.startswith("CheckpointError: ")
    assert f"config.json: {message}" in shown
    assert shown.endswith("; was it edited?")


@pytest.mark.parametrize("count", [10, pytest.param(40, marks=pytest.mark.fuzz)])
def test_report_of_odd_numbers_and_names_is_made_or_refused(tmp_path, monkeypatch, count):
    """What is drawn of the model itself, and what it predicts, does not depend on these files."""
    for name in ("layers", "_predicted", "filters"):
        monkeypatch.setattr(f"gpucnn.report.page.{name}", lambda *_: "left out here")
    folder = tmp_path / "run"
    folder.mkdir()
    model, watch = small_model(), TrainingMonitor((DATA[0][:20], DATA[1][:20]), every=2)
    history = model.fit(*DATA, epochs=2, batch_size=10, validation_data=VALIDATION, callbacks=[watch], verbose=0)
    model.save(folder / "model.safetensors")
    history.save(folder / "history.json")
    watch.save(folder)
    settings = {"optimizer": model.optimizer.config(), "images": {"training": 3}, "versions": {"gpucnn": "0"}}
    (folder / "config.json").write_text(json.dumps(KEPT | settings))
    runs = Runs(folder / "runs.json", {"recipe": "lenet"})
    for seed in range(3):
        numbers = {"test accuracy": 0.5 + seed / 10, "test loss": 0.3, "training accuracy": [0.5, 0.6]}
        runs.add({"seed": seed, "numbers": numbers, "defect": None, "observations": [], "histograms": {}})
    files = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    assert len(files) == 4
    chance, found = random.Random(5), {"made": 0, "refused": 0}
    for _ in range(count):
        file, how = chance.choice(list(files)), chance.choice(["value", "value", "value", "drop", "key"])
        tree = changed(files[file], chance.choice(list(places(files[file]))), chance.choice(ODD), how)
        file.write_text(json.dumps(tree))
        try:
            page = report.render(folder, backend="numpy")
        except GpucnnError:
            found["refused"] += 1
        else:
            page.encode()
            assert "<script>alert" not in page
            found["made"] += 1
        file.write_text(json.dumps(files[file]))
    assert min(found.values()) >= count // 10


def test_weights_that_are_nan_predict_nothing(run, tmp_path):
    model = small_model()
    model.layers[-2].weight.value[...] = np.nan
    model.save(tmp_path / "nan.safetensors")
    Image.new("L", model.input_shape[1::-1], 7).save(tmp_path / "a.png")
    status, output, errors = run("predict", tmp_path / "a.png", "--model", tmp_path / "nan.safetensors")
    assert status == 1
    assert output == ""
    shown = " ".join(errors.split())
    assert shown.startswith("NumericError: ")
    assert "outputs NaN or infinity for" in shown
    assert "its weights are not finite, as after training that diverged; pass another --model" in shown
