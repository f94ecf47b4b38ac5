"""Checkpoints: what is written when, what is kept, what is refused, damage, full disks, the best model, Ctrl-C."""

import errno
import json
import math
import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import Checkpoints, layers, losses, optimizers
from gpucnn.backends import Backend
from gpucnn.callbacks import Callback, EarlyStopping, Lookahead, MovingAverage
from gpucnn.core.console import PlainConsole
from gpucnn.data.augment import AlternatingFlip, Flip, Translate
from gpucnn.data.fingerprint import fingerprint
from gpucnn.errors import CheckpointError, CheckpointWarning, ConfigurationError
from gpucnn.saving import tree as trees
from gpucnn.testing.strict import StrictBackend
from gpucnn.training import checkpoints, progress, state
from gpucnn.training.interrupt import DeferredInterrupt
from gpucnn.training.state import diff
from tests.helpers import (
    DATA,
    VALIDATION,
    Kill,
    Killed,
    always,
    assert_same_bits,
    fit,
    killed,
    numbers,
    positions,
    small_model,
    stripes,
)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("gpucnn.core.files.os.fsync", lambda handle: None)


# --- trees ----------------------------------------------------------------------------------------

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ARRAYS = st.sampled_from(
    [
        np.zeros(()),
        np.float32(0.1),
        np.arange(6, dtype=np.uint64).reshape(2, 3),
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.zeros((0, 3), np.int32),
        np.array([True, False]),
        np.array([np.nan, -0.0, np.inf], np.float16),
    ]
)
TREES = st.recursive(
    PLAIN | ARRAYS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def same(a, b):
    if hasattr(a, "dtype"):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(TREES)
def test_tree_is_saved_and_loaded(tmp_path_factory, tree):
    file = tmp_path_factory.mktemp("tree") / "tree.safetensors"
    file.write_bytes(trees.to_bytes({"tree": tree}, "test"))
    assert same({"tree": tree}, trees.from_file(file, "test"))


def test_tree_keeps_colliding_paths_apart(tmp_path):
    tree = {"a/b": np.zeros(1), "a": {"b": np.ones(2)}, "c": [np.zeros(3)], "c/0": np.ones(4)}
    (tmp_path / "tree").write_bytes(trees.to_bytes(tree, "test"))
    assert same(tree, trees.from_file(tmp_path / "tree", "test"))
    assert {"a/b", "a/b'"} < set(load_file(tmp_path / "tree"))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {2}]}, r"a/1 is \{2\}"),
        ({"a": {1: 2}}, r"a is \{1: 2\}"),
        ({"a": np.array(["x"])}, r"a is array\(\['x'\]"),
        ({"a": np.array([None])}, "a is array"),
        ({trees.ARRAY: 1}, "the tree is"),
    ],
)
def test_tree_with_values_no_file_can_hold_is_refused(value, path):
    with pytest.raises(CheckpointError, match=rf"{path}.*which a file cannot hold; expected host arrays, numbers"):
        trees.to_bytes(value, "test")


# --- what data are known by -----------------------------------------------------------------------


def test_fingerprint_depends_on_shape_dtype_and_every_byte():
    x, y = stripes(50)
    known = fingerprint(x, y)
    assert known["inputs"]["shape"] == [50, 8, 8, 1]
    assert fingerprint(np.asfortranarray(x), y[::-1][::-1]) == known
    for place in (0, x.size // 2, x.size - 1):
        other = x.copy()
        other.reshape(-1)[place] ^= 1
        assert fingerprint(other, y)["inputs"]["hash"] != known["inputs"]["hash"]
    assert fingerprint(x.view("int8"), y)["inputs"] != known["inputs"]
    assert fingerprint(x.reshape(50, 64), y)["inputs"] != known["inputs"]
    other = y.copy()
    other[[0, np.flatnonzero(y != y[0])[0]]] = other[[np.flatnonzero(y != y[0])[0], 0]]
    assert fingerprint(x, other)["labels"]["hash"] != known["labels"]["hash"]


def test_fingerprint_of_pieces_is_that_of_the_whole(monkeypatch):
    x, y = stripes(50)
    known = fingerprint(x, y)
    monkeypatch.setattr("gpucnn.data.fingerprint.HASH_BLOCK", 100)
    assert fingerprint(x, y) == known


# --- when, and which are kept ---------------------------------------------------------------------


def test_checkpoints_every_so_many_steps_and_at_epoch_ends(tmp_path):
    fit(small_model(), always(tmp_path, every_steps=3))
    assert positions(tmp_path) == [(0, 0), (0, 3), (1, 0), (1, 3), (2, 0)]


def test_checkpoints_every_so_many_seconds_and_where_it_costs_little(tmp_path, monkeypatch):
    """A step takes a second, writing two; an epoch's end is saved if that is a twentieth of the time since the last."""
    now = [0.0]

    def clock():
        return now[0]

    class Seconds(Callback):
        def on_step_end(self, model, step):
            now[0] += 1.0

    def slow(folder, name, content):
        now[0] += 2.0
        write(folder, name, content)

    write = checkpoints.write_into
    monkeypatch.setattr(checkpoints, "write_into", slow)
    monkeypatch.setattr(checkpoints.time, "monotonic", clock)
    x, y = stripes(300)
    fit(small_model(), Checkpoints(tmp_path / "a", every_seconds=25, keep=99), Seconds(), data=(x, y), epochs=3)
    assert positions(tmp_path / "a") == [(0, 0), (0, 25), (1, 20), (2, 15), (3, 0)]
    now[0] = 0.0
    fit(small_model(), Checkpoints(tmp_path / "b", every_seconds=None, keep=99), Seconds(), data=(x, y), epochs=5)
    assert positions(tmp_path / "b") == [(0, 0), (2, 0), (4, 0), (5, 0)]
    fit(small_model(), Checkpoints(tmp_path / "c", every_seconds=0, keep=99), data=DATA, epochs=1)
    assert positions(tmp_path / "c") == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


def test_checkpoints_keep_the_newest(tmp_path):
    for keep in (1, 2, 3):
        fit(small_model(), always(tmp_path / str(keep), keep=keep))
        assert positions(tmp_path / str(keep)) == [(1, 3), (1, 4), (2, 0)][-keep:]


def test_checkpoints_remove_files_of_killed_writers_alone(tmp_path):
    killed(tmp_path, 2)
    others = ["notes.txt", "model.safetensors", "download.part", "checkpoint-old.safetensors"]
    for name in [*others, "checkpoint-00000-000002.safetensorsabc.part", "best.safetensorsxyz.part"]:
        (tmp_path / name).write_text("x")
    ckpt = always(tmp_path, keep=2)
    fit(small_model(), ckpt, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {*others, *(path.name for path in ckpt.files())}
    ckpt.clear()
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_checkpoints_read_nothing_in_other_steps(tmp_path):
    """Of the device: with checkpoints as without, but for those that are due."""
    reads = {}
    for name in ("without", "with"):
        backend = StrictBackend()
        model = small_model(backend=backend)
        before, seen = backend.reads, []

        class FiniteCheck(Callback):
            def on_step_end(self, model, step, backend=backend, seen=seen):
                seen.append(backend.reads)

        fit(model, None if name == "without" else Checkpoints(tmp_path), FiniteCheck(), data=stripes(200), epochs=1)
        reads[name] = seen[-1] - seen[0]
        assert before <= seen[0]
    assert reads == {"without": 0, "with": 0}


# --- resume ---------------------------------------------------------------------------------------


def test_checkpoints_are_not_overwritten_without_resume(tmp_path):
    files = killed(tmp_path)
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(
        ConfigurationError,
        match=r"already contains a run, saved after 1 epoch and 2 steps; pass resume=True to continue",
    ):
        fit(small_model(), tmp_path)
    assert {path: path.read_bytes() for path in Checkpoints(tmp_path).files()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / checkpoints.BEST).write_text("precious")
    with pytest.raises(ConfigurationError, match=r"best.safetensors already exists; choose another folder"):
        fit(small_model(), tmp_path / "other")


def test_checkpoints_may_be_a_folder(tmp_path):
    expected = small_model()
    fit(expected)
    killed(tmp_path / "a")
    model = small_model()
    fit(model, resume=str(tmp_path / "a"))
    assert_same_bits(model, expected)
    assert positions(tmp_path / "a")[-1] == (2, 0), "and the training is saved there further"


def test_resume_from_one_folder_into_another(tmp_path):
    expected = small_model()
    fit(expected)
    files = killed(tmp_path / "a")
    model = small_model()
    fit(model, Checkpoints(tmp_path / "b"), resume=tmp_path / "a")
    assert_same_bits(model, expected)
    assert Checkpoints(tmp_path / "a").files() == files
    assert positions(tmp_path / "b") == [(2, 0)]
    with pytest.raises(ConfigurationError, match="b already contains a run"):
        fit(small_model(), Checkpoints(tmp_path / "b"), resume=tmp_path / "a")


def test_resume_of_an_empty_folder_begins(tmp_path):
    model, expected = small_model(), small_model()
    fit(model, Checkpoints(tmp_path / "new"), resume=True)
    fit(expected)
    assert_same_bits(model, expected)
    with pytest.raises(CheckpointError, match="nothing: there is no checkpoint to resume from; was it written to ano"):
        fit(small_model(), resume=tmp_path / "nothing")


@pytest.mark.smoke
def test_resume_needs_only_a_fresh_model(tmp_path):
    """Whatever the model of before had been through: its epochs, its random streams, its slots."""
    model = small_model()
    model.fit(*stripes(40), epochs=3, batch_size=10, verbose=0)
    ckpt, options = always(tmp_path), {"augment": [AlternatingFlip(), Translate(1)]}
    fit(model, ckpt, **options)
    for file in ckpt.files()[5:]:
        file.unlink()
    again = small_model()
    fit(again, tmp_path, resume=True, **options)
    assert_same_bits(again, model)
    assert again.epochs_trained == model.epochs_trained == 5


def test_resume_of_a_finished_run_returns_at_once(tmp_path):
    model = small_model()
    history = fit(model, tmp_path, validation_data=VALIDATION)
    again, steps = small_model(), []

    class Steps(Callback):
        def on_step_end(self, model, step):
            steps.append(step)

    assert fit(again, tmp_path, Steps(), resume=True, validation_data=VALIDATION).history == history.history
    assert_same_bits(model, again)
    assert steps == []


def model_of(filters=4, seed=0, dtype="float32", more=(), compiled=None):
    model = gpucnn.Model(
        [layers.Conv2D(filters, 3), layers.ReLU(), *more, layers.Flatten(), layers.Dense(3), layers.Softmax()],
        (8, 8, 1),
        seed=seed,
        dtype=dtype,
        backend="numpy",
    )
    return model.compile(**{"optimizer": optimizers.SGD(0.1, momentum=0.9)} | (compiled or {}))


def other_images():
    x, y = DATA
    x = x.copy()
    x[7, 3, 3, 0] ^= 1
    return x, y


REFUSED = {
    "filters": (lambda: model_of(5), {}, r"network.layers.0.filters was 4 and is 5"),
    "layers": (lambda: model_of(more=[layers.Tanh()]), {}, "network.layers was "),
    "seed": (lambda: model_of(seed=1), {}, "seed was 0 and is 1"),
    "dtype": (lambda: model_of(dtype="float64"), {}, 'dtype was "float32" and is "float64"'),
    "frozen": (lambda: model_of().freeze("conv2d"), {}, r'frozen was \[\] and is \["conv2d.weight"'),
    "rate": (
        lambda: model_of(compiled={"optimizer": optimizers.SGD(0.2, momentum=0.9)}),
        {},
        "optimizer.learning_rate was 0.1 and is 0.2",
    ),
    "optimizer": (lambda: model_of(compiled={"optimizer": "adam"}), {}, 'optimizer.Optimizer was "SGD" and is "Adam"'),
    "loss": (
        lambda: model_of(compiled={"loss": losses.CategoricalCrossEntropy(label_smoothing=0.1)}),
        {},
        "loss.label_smoothing was null and is 0.1",
    ),
    "metrics": (lambda: model_of(compiled={"metrics": []}), {}, "metrics was "),
    "batch size": (model_of, {"batch_size": 20}, "batch_size was 10 and is 20"),
    "order": (model_of, {"shuffle": False}, "shuffle was true and is false"),
    "augmentation": (model_of, {"augment": [Flip()]}, r"augment.0.Augmentation was \"Translate\" and is \"Flip\""),
    "how far": (model_of, {"augment": [Translate(2)]}, "augment.0.pixels was 1 and is 2"),
    "images": (model_of, {"data": other_images()}, r'data.inputs.hash was "[0-9a-f]{19}… and is "[0-9a-f]{19}…'),
    "fewer": (model_of, {"data": (DATA[0][:30], DATA[1][:30])}, "data.inputs.shape.0 was 40 and is 30"),
    "labels": (model_of, {"data": (DATA[0], DATA[1][::-1])}, "data.labels.hash was"),
    "validation": (model_of, {"validation_data": None}, r"validation_data was .* and is null"),
    "other validation": (model_of, {"validation_data": DATA}, "validation_data.inputs.shape.0 was 30 and is 40"),
    "average": (model_of, {"callbacks": [MovingAverage(0.8)]}, "callbacks.0.decay was 0.9 and is 0.8"),
    "no average": (model_of, {"callbacks": []}, "callbacks was "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_resume_of_a_different_run_is_refused(tmp_path, name):
    make, options, message = REFUSED[name]
    usual = {"validation_data": VALIDATION, "augment": [Translate(1)], "epochs": 2, "batch_size": 10, "verbose": 0}
    first = {"callbacks": [MovingAverage(0.9), Kill(6)]}
    with pytest.raises(Killed):
        model_of().fit(*DATA, **usual, **first, checkpoints=always(tmp_path))
    options = {"callbacks": [MovingAverage(0.9)], "data": DATA} | usual | options
    data, model = options.pop("data"), make()
    before = model.state_dict()
    with pytest.raises(
        CheckpointError, match=rf"is from a different run: (.*; )?{message}.*; pass the original settings"
    ):
        model.fit(*data, checkpoints=tmp_path, resume=True, **options)
    for path, value in model.state_dict().items():
        assert (value == before[path]).all(), "a model that is refused is left alone"


@pytest.mark.parametrize("mode", ["auto", "max"])
def test_resume_of_an_old_checkpoint_takes_defaults_for_new_arguments(tmp_path, mode):
    options = {"validation_data": VALIDATION}
    with pytest.raises(Killed):
        fit(small_model(), always(tmp_path), EarlyStopping("val_loss"), Kill(6), **options)
    for path in Checkpoints(tmp_path).files():
        tree = trees.from_file(path, checkpoints.KEY)
        del tree["settings"]["callbacks"][0]["mode"]
        path.write_bytes(trees.to_bytes(tree, checkpoints.KEY))
    stopping = EarlyStopping("val_loss", mode=mode)
    if mode == "max":
        with pytest.raises(CheckpointError, match=r'callbacks.0.mode was "auto" and is "max"'):
            fit(small_model(), tmp_path, stopping, resume=True, **options)
        return
    resumed, whole = small_model(), small_model()
    fit(resumed, tmp_path, stopping, resume=True, **options)
    fit(whole, None, EarlyStopping("val_loss"), **options)
    assert_same_bits(resumed, whole)


def test_resume_names_only_some_of_many_differences():
    assert list(diff({"a": [1, 2], "b": 1}, {"a": [1, 3], "c": None})) == [
        "a.1 was 2 and is 3",
        "b was 1 and is null",
    ]
    assert checkpoints.state.format_diff([str(n) for n in range(8)]) == "0; 1; 2; 3; 4; 5; and 2 more"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("threads", "threads was 1 and is 2"),
        ("version", r'gpucnn was "0.1.0" and is "0.2.0"'),
        ("winograd", "Winograd was true and is false"),
        ("backend", 'backend was "numpy" and is "strict"'),
    ],
)
def test_resume_warns_of_other_circumstances(tmp_path, monkeypatch, change, message):
    gpucnn.set_num_threads(1)
    try:
        killed(tmp_path)
        backend = "numpy"
        if change == "threads":
            gpucnn.set_num_threads(2)
        elif change == "version":
            monkeypatch.setattr(state, "__version__", "0.2.0")
        elif change == "winograd":
            monkeypatch.setenv("GPUCNN_WINOGRAD", "0")
        else:
            backend = StrictBackend()
        with pytest.warns(CheckpointWarning, match=rf"in a different environment: {message}.*may differ in the last"):
            fit(small_model(backend=backend), tmp_path, resume=True)
    finally:
        gpucnn.set_num_threads(None)


def test_backend_name_in_old_checkpoint(tmp_path, monkeypatch):
    """Files written before hold "portable" for the reference backend."""
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "name", "portable")
        killed(tmp_path, model=small_model(backend=Backend()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        fit(small_model(backend="reference"), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Checkpoints(3), "expected a path, as a string or a pathlib.Path, not 3"),
        (lambda: Checkpoints("a", every_seconds=-1), "every_seconds must be a number that is at least 0, not -1"),
        (lambda: Checkpoints("a", every_seconds=True), "every_seconds must be .*, not True"),
        (lambda: Checkpoints("a", every_steps=0), "every_steps must be a positive integer, not 0"),
        (lambda: Checkpoints("a", keep=0), "keep must be a positive integer, not 0"),
        (lambda: Checkpoints("a", keep=None), "keep must be a positive integer, not None"),
        (lambda: Checkpoints("a", keep=1.5), "keep must be a positive integer, not 1.5"),
        (lambda: Checkpoints("a", monitor=3), 'monitor must be a key of the history such as "val_loss", not 3'),
        (lambda: fit(small_model(), 3), r"checkpoints must be a folder or a Checkpoints\(folder, …\), not 3"),
        (lambda: fit(small_model(), resume=True), "resume=True needs checkpoints=…, their folder"),
        (lambda: fit(small_model(), resume=3), "resume must be True, False or a folder of checkpoints, not 3"),
        (lambda: fit(small_model(), resume=__file__), "is a file; pass the folder of the checkpoints"),
        (
            lambda: fit(small_model(), Checkpoints("a", monitor="val_loss")),
            "but an epoch reports only loss, accuracy, cumulative_loss, cumulative_accuracy; pass",
        ),
    ],
)
def test_checkpoints_arguments_out_of_range_are_refused(make, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        make()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_refuse_states_they_cannot_save_before_training(tmp_path):
    class Odd(Callback):
        def state(self, model):
            return {"seen": {1, 2}}

    model = small_model()
    with pytest.raises(CheckpointError, match=r"callbacks/0/seen is \{1, 2\}, which a file cannot hold"):
        fit(model, tmp_path, Odd())
    assert model.optimizer.steps == 0


# --- damage ---------------------------------------------------------------------------------------


def damaged(path, how):
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    lengths = {
        "empty": 0,
        "within the length": 5,
        "after the length": 8,
        "within the header": 8 + header // 2,
        "after the header": 8 + header,
        "within the arrays": (8 + header + len(content)) // 2,
        "one byte short": len(content) - 1,
    }
    if how in lengths:
        path.write_bytes(content[: lengths[how]])
    elif how == "zeros":
        path.write_bytes(bytes(len(content)))
    elif how == "one byte too long":
        path.write_bytes(content + b"\0")
    elif how == "another file":
        small_model().save(path)
    else:  # one bit
        place = {
            "a bit of an array": len(content) - 3,
            "a bit of the description": content.index(b"epochs_trained") + 17,
        }[how]
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


DAMAGES = [
    "empty",
    "within the length",
    "after the length",
    "within the header",
    "after the header",
    "within the arrays",
    "one byte short",
    "one byte too long",
    "zeros",
    "another file",
    "a bit of an array",
    "a bit of the description",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_resume_skips_a_damaged_checkpoint(tmp_path, how):
    expected = small_model()
    history = fit(expected)
    files = killed(tmp_path)
    damaged(files[-1], how)
    model = small_model()
    with pytest.warns(CheckpointWarning, match=rf"{files[-1].name}: .*Trying the previous"):
        again = fit(model, Checkpoints(tmp_path), resume=True)
    assert_same_bits(model, expected)
    assert numbers(again) == numbers(history)
    assert positions(tmp_path) == [(1, 1), (2, 0)], "the damaged one is gone"


def test_resume_with_all_checkpoints_damaged_is_refused(tmp_path):
    files = killed(tmp_path, 1)
    for path in files:
        damaged(path, "one byte short")
    with (
        pytest.warns(CheckpointWarning),
        pytest.raises(
            CheckpointError, match=rf"none of its {len(files)} checkpoints can be read, so the run cannot be"
        ),
    ):
        fit(small_model(), tmp_path, resume=True)
    assert Checkpoints(tmp_path).files() == files


def test_resume_adds_up_the_times_of_an_interrupted_epoch(tmp_path):
    class Sleeps(Callback):
        def on_step_end(self, model, step):
            time.sleep(0.05)

    with pytest.raises(Killed):
        fit(small_model(), always(tmp_path), Kill(2), Sleeps())
    history = fit(small_model(), tmp_path, resume=True)
    assert history["seconds"][0] >= 0.1
    assert history["seconds_per_step"][0] == history["seconds"][0] / 4


def test_resume_of_a_newer_format_is_refused(tmp_path):
    files = killed(tmp_path)
    tree = trees.from_file(files[-1], checkpoints.KEY)
    files[-1].write_bytes(trees.to_bytes(tree | {"format": 2}, checkpoints.KEY))
    with pytest.raises(CheckpointError, match="has format 2, expected 1; resume it with the version"):
        fit(small_model(), tmp_path, resume=True)


@pytest.mark.smoke
def test_checkpoints_are_plain_safetensors(tmp_path):
    (*_, path) = killed(tmp_path)
    arrays = load_file(path)
    assert {"model/arrays/conv2d.weight", "optimizer/slots/velocity/dense.bias", "totals/sums/loss"} < set(arrays)
    with safe_open(path, framework="numpy") as file:
        described = json.loads(file.metadata()[checkpoints.KEY])
    assert described["position"] | {"seconds": 0} == {"epoch": 1, "step": 2, "seconds": 0, "learning_rate": 0.1}
    assert described["settings"]["data"]["inputs"]["shape"] == [40, 8, 8, 1]
    assert "gpucnn." not in json.dumps(described), "no import path"
    save_file(arrays, path, metadata={})
    with pytest.raises(CheckpointError, match="does not hold gpucnn_training; was it written by another program"):
        trees.from_file(path, checkpoints.KEY)


# --- disks ----------------------------------------------------------------------------------------


def failing(monkeypatch, when, number=errno.ENOSPC):
    """Let writing fail, at some calls of fsync, as a full disk does."""
    calls = []

    def fsync(handle):
        calls.append(handle)
        if when(len(calls)):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gpucnn.core.files.os.fsync", fsync)


def test_full_disk_during_training_warns(tmp_path, monkeypatch):
    expected, model = small_model(), small_model()
    fit(expected)
    failing(monkeypatch, lambda call: 5 <= call <= 8)  # the fifth is that of the third file: each has its folder's
    with pytest.warns(CheckpointWarning) as told:
        fit(model, always(tmp_path))
    assert_same_bits(model, expected)
    assert [str(warning.message) for warning in told] == [
        f"the checkpoint after 0 epochs and 2 steps could not be written to {tmp_path} (No space left on device); "
        "the previous one, checkpoint-00000-000001.safetensors, is intact, and training continues; free disk space or "
        "make the folder writable, and the next one will be written"
    ], "one warning for one reason"
    assert positions(tmp_path) == [(0, 0), (0, 1), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0)]
    assert not list(tmp_path.glob("*.part"))


def test_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    expected = small_model()
    history = fit(expected)
    failing(monkeypatch, lambda call: call > 6)
    with pytest.warns(CheckpointWarning), pytest.raises(Killed):
        fit(small_model(), always(tmp_path), Kill(6))
    assert positions(tmp_path) == [(0, 0), (0, 1), (0, 2)]
    monkeypatch.setattr("gpucnn.core.files.os.fsync", lambda handle: None)
    model = small_model()
    assert numbers(fit(model, tmp_path, resume=True)) == numbers(history)
    assert_same_bits(model, expected)


def test_checkpoints_in_a_read_only_place_are_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoints to .*file \(File exists\); choose a writable"):
        fit(small_model(), tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoints to .*inside \(Not a directory\)"):
        fit(small_model(), tmp_path / "file" / "inside")
    failing(monkeypatch, lambda call: True, errno.EACCES)
    model = small_model()
    with pytest.raises(CheckpointError, match=r"cannot write checkpoints to .*new \(Permission denied\)"):
        fit(model, tmp_path / "new")
    assert model.optimizer.steps == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_checkpoints_in_a_folder_without_write_permission_are_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            fit(small_model(), tmp_path)
    finally:
        tmp_path.chmod(0o700)


# --- the best model -------------------------------------------------------------------------------


class Epochs(Callback):
    """Keeps the model's state at the end of each epoch."""

    def __init__(self):
        self.states = []

    def on_epoch_end(self, model, epoch, logs):
        self.states.append(model.state_dict())


@pytest.mark.parametrize(
    ("monitor", "chosen"),
    [(None, "val_accuracy"), ("val_loss", "val_loss"), ("loss", "loss"), ("val_accuracy", "val_accuracy")],
)
def test_best_model_is_an_ordinary_model_file(tmp_path, monkeypatch, monitor, chosen):
    """With the averages that validation has seen; written only when there is a better one."""
    write, written = checkpoints.write_into, []
    monkeypatch.setattr(checkpoints, "write_into", lambda *file: (written.append(file[1]), write(*file)))
    epochs, ckpt = Epochs(), Checkpoints(tmp_path, monitor=monitor)
    model = small_model(optimizer=optimizers.SGD(2.0))
    history = fit(model, ckpt, MovingAverage(0.7), epochs, epochs=8, validation_data=VALIDATION)
    values = history[chosen]
    best = max(values) if "accuracy" in chosen else min(values)
    best_losses = np.minimum.accumulate([-value if "accuracy" in chosen else value for value in values])
    assert written.count(checkpoints.BEST) == len(set(best_losses))
    assert ckpt.best == {"monitor": chosen, "value": best, "epoch": values.index(best)}
    loaded = gpucnn.load(tmp_path / checkpoints.BEST, backend="numpy")
    for path, value in loaded.state_dict().items():
        assert (value == epochs.states[values.index(best)][path]).all(), path
    if chosen.startswith("val_"):
        assert loaded.evaluate(*VALIDATION)[chosen[4:]] == best
    assert loaded.epochs_trained == values.index(best) + 1


def test_best_model_needs_validation(tmp_path):
    ckpt = Checkpoints(tmp_path)
    fit(small_model(), ckpt)
    assert ckpt.best is None
    assert not (tmp_path / checkpoints.BEST).exists()
    regression = gpucnn.Model([layers.Flatten(), layers.Dense(1)], (8, 8, 1), backend="numpy")
    regression.compile("sgd", "mean_squared_error", metrics=[])
    y = DATA[1][:, None].astype("float32")
    regression.fit(
        DATA[0], y, validation_data=(DATA[0], y), checkpoints=(ckpt := Checkpoints(tmp_path / "b")), verbose=0
    )
    assert ckpt.best["monitor"] == "val_loss"


def test_best_model_of_before_is_remembered(tmp_path):
    """Resumed after its best epoch, a training run does not take a worse one for the best."""
    whole, parts = Checkpoints(tmp_path / "whole"), always(tmp_path / "parts")
    options = {"epochs": 6, "validation_data": VALIDATION, "model": small_model(optimizer=optimizers.SGD(2.0))}
    fit(options.pop("model"), whole, **options)
    for after in range(4, 24, 4):
        with pytest.raises(Killed):
            fit(small_model(optimizer=optimizers.SGD(2.0)), parts, Kill(after), **options, resume=True)
        if parts.best is not None:
            assert parts.best["epoch"] <= after // 4
    fit(small_model(optimizer=optimizers.SGD(2.0)), parts, **options, resume=True)
    assert whole.best == parts.best
    assert whole.best["epoch"] < 5, "or nothing is tested here"
    assert (tmp_path / "whole" / checkpoints.BEST).read_bytes() == (tmp_path / "parts" / checkpoints.BEST).read_bytes()


def test_best_model_ignores_nan(tmp_path):
    ckpt = Checkpoints(tmp_path, monitor="val_loss")
    values = iter([math.nan, 3.0, math.nan, 2.0, math.inf, 2.0])

    compare = ckpt._update_best
    ckpt._update_best = lambda training, value: compare(training, next(values))
    fit(small_model(), ckpt, epochs=6, validation_data=VALIDATION)
    assert (ckpt.best["value"], ckpt.best["epoch"]) == (2.0, 3)


def test_best_model_that_cannot_be_written_waits(tmp_path, monkeypatch):
    write, refused = checkpoints.write_into, []

    def full(folder, name, content):
        if name == checkpoints.BEST and len(refused) < 1:
            refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, name, content)

    monkeypatch.setattr(checkpoints, "write_into", full)
    ckpt = always(tmp_path)
    with pytest.warns(
        CheckpointWarning, match=r"the best model so far could not be written to .*best.safetensors \(No sp"
    ):
        history = fit(small_model(), ckpt, epochs=1, validation_data=VALIDATION)
    assert ckpt.best["value"] == history["val_accuracy"][0]
    assert (
        gpucnn.load(tmp_path / checkpoints.BEST, backend="numpy").evaluate(*VALIDATION)["accuracy"]
        == ckpt.best["value"]
    )


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.fixture
def keyboard():
    """Python's own handler of Ctrl-C, which a shell's background jobs do without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_finishes_the_step_and_saves(tmp_path, keyboard):
    expected, steps = small_model(), []
    history = fit(expected)

    class Presses(Callback):
        def on_step_end(self, model, step):
            steps.append(step)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(100):  # the step is not over yet
                    time.sleep(0.0001)

        def on_exception(self, model):
            steps.append("told")

    with pytest.raises(KeyboardInterrupt):
        fit(small_model(), Checkpoints(tmp_path), Presses())
    assert steps == [0, 1, 2, "told"]
    assert positions(tmp_path) == [(0, 0), (0, 3)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model = small_model()
    assert numbers(fit(model, tmp_path, resume=True)) == numbers(history)
    assert_same_bits(model, expected)


@pytest.mark.parametrize("where", ["on_train_epoch_end", "on_epoch_end"])
def test_interrupt_at_the_end_of_an_epoch(tmp_path, where, keyboard):
    presses = Callback()
    setattr(presses, where, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(small_model(), Checkpoints(tmp_path), presses)
    assert positions(tmp_path)[-1] == (1, 0)


def test_interrupt_twice_does_not_wait(keyboard):
    with DeferredInterrupt() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_leaves_the_programs_own_handler():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGINT, own)
    try:
        with DeferredInterrupt():
            assert signal.getsignal(signal.SIGINT) is own
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupt_is_left_alone_outside_the_main_thread(tmp_path):
    expected, model = small_model(), small_model()
    fit(expected)
    thread = threading.Thread(target=fit, args=(model, Checkpoints(tmp_path)))
    thread.start()
    thread.join()
    assert_same_bits(model, expected)


# --- callbacks ------------------------------------------------------------------------------------


def test_resume_calls_callbacks_without_state_in_mid_epoch(tmp_path):
    killed(tmp_path)
    told = []

    class Timer(Callback):
        def on_fit_begin(self, model):
            told.append("fit")

        def on_epoch_begin(self, model, epoch):
            told.append(epoch)

        def on_step_end(self, model, step):
            told.append(f"step {step}")

    fit(small_model(), tmp_path, Timer(), resume=True)
    assert told == ["fit", 1, "step 2", "step 3"]


def test_recipe_is_prepared_and_restored_on_resume(tmp_path):
    """Preparing freezes a layer, as airbench94's whitening does, which no checkpoint could do for it."""

    def prepare(model, images):
        model.parameters()["conv2d.weight"].value = 0 * model.parameters()["conv2d.weight"].value + images.mean()
        model.freeze("conv2d.weight")

    def train(*more, **options):
        model = small_model()
        model.recipe = gpucnn.networks.Recipe("stripes", 2, 10, (AlternatingFlip(),), lambda: [Lookahead(3)], prepare)
        model.fit(*DATA, callbacks=more, verbose=0, **options)
        return model

    expected = train()
    with pytest.raises(Killed):
        train(Kill(6), checkpoints=always(tmp_path))
    assert_same_bits(train(checkpoints=tmp_path, resume=True), expected)


# --- what the bar says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "pace", "step", "steps", "epoch", "epochs", "expected"),
    [
        ([], 1.0, 10, 40, 0, 1, (30, 30)),
        ([], 1.0, 10, 40, 0, 3, (30, 30 + 2 * 40)),
        ([], 1.0, 10, 40, 0, 2.5, (30, 30 + 1.5 * 40)),
        ([50.0], 1.0, 10, 40, 1, 3, (30, 40 + 50)),  # of which 10 are validation
        ([50.0, 70.0], 1.0, 10, 40, 2, 5, (30, 50 + 2 * 60)),
        ([50.0], 2.0, 10, 40, 1, 2, (60, 60)),  # slower than before: at least its steps
        ([50.0, 50.0], 1.0, 5, 20, 2, 2.5, (15, 20)),  # a last epoch that is cut
        ([], 1.0, 5, 20, 0, 0.5, (15, 15)),
    ],
)
def test_progress_estimates_the_time_left(earlier, pace, step, steps, epoch, epochs, expected):
    assert progress.time_left(earlier, pace, step, steps, epoch, epochs) == pytest.approx(expected)


@pytest.mark.parametrize("width", [80, 120])
def test_progress_bar_fits_a_terminal(monkeypatch, width):
    """No number is cut off, whatever the width: what does not fit stands below."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setenv("COLUMNS", str(width))
    bar = progress.Bar(PlainConsole())
    bar.begin_epoch(1, 10, 469, 69, [50.0])
    totals = type("RunningMeans", (), {"read": lambda self: {"loss": 0.1234, "accuracy": 0.9812}})()
    for _ in range(100):
        now[0] += 0.1
        bar.step(totals)
    console = bar.progress.console
    with console.capture() as capture:
        console.print(bar.progress.get_renderable())
    (line,) = capture.get().rstrip().splitlines()
    assert line.startswith("epoch  2/10 ")
    assert line.endswith("169/469 ETA 0:30 / total 7:13 loss 0.1234, accuracy 98.12 %")
    with console.capture() as capture:
        bar.end_epoch(
            {"loss": 0.1, "accuracy": 0.97, "val_loss": 0.2, "val_accuracy": 0.96, "seconds": 46.9, "val_seconds": 3}
        )
    shown = capture.get()
    assert "49.9 s" in shown
    assert all(len(line) <= width for line in shown.splitlines())
    words = " ".join(shown.split())
    assert words.endswith("%")
    for part in ("0.1000", "97.00", "0.2000", "96.00", "validation"):
        assert part in words
