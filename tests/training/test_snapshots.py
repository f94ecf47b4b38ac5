"""Snapshots of the convolutions' weights: what is kept when, within which limit, and what a file gives back."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import gpucnn
from gpucnn import layers
from gpucnn.callbacks.snapshots import KEY, SNAPSHOTS, Snapshots, load_snapshots
from gpucnn.errors import CheckpointError, ConfigurationError
from tests.helpers import small_model, stripes

SNAPSHOT_BYTES = 4 * (9 * 4 + 9 * 4 * 8)  # both convolutions of the small model in float32


def fitted(epochs, model=None, **options):
    """Fit the small model epoch by epoch; return the snapshots and the first weight after each epoch."""
    model = model or small_model()
    seen = [model.state_dict()["conv2d.weight"]]

    class Observer(gpucnn.callbacks.Callback):
        def on_epoch_end(self, model, epoch, logs):
            seen.append(model.state_dict()["conv2d.weight"])

    snapshots = Snapshots(**options)
    x, y = stripes(40)
    model.fit(x, y, epochs=epochs, batch_size=20, verbose=0, callbacks=[snapshots, Observer()])
    return snapshots, seen


def test_snapshots_before_training_and_after_each_epoch(backend):
    snapshots, seen = fitted(3, small_model(backend=backend))
    assert list(snapshots.epochs) == [0, 1, 2, 3]
    for epoch, weight in enumerate(seen):
        assert list(snapshots.epochs[epoch]) == ["conv2d.weight", "conv2d_1.weight"]
        assert type(snapshots.epochs[epoch]["conv2d.weight"]) is np.ndarray
        np.testing.assert_array_equal(snapshots.epochs[epoch]["conv2d.weight"], weight)
    assert not np.array_equal(seen[0], seen[1])


def test_snapshots_are_saved_and_loaded(tmp_path):
    snapshots, _ = fitted(2, folder=tmp_path)
    for place in (tmp_path, tmp_path / SNAPSHOTS):
        read = load_snapshots(place)
        assert list(read) == [0, 1, 2]
        for epoch, kept in snapshots.epochs.items():
            assert list(read[epoch]) == list(kept)
            assert all(np.array_equal(read[epoch][path], kept[path]) for path in kept)


def test_snapshots_keep_the_order_of_layers(tmp_path):
    names = ["z", "b", "a"]
    model = gpucnn.Model([*(layers.Conv2D(2, 3, padding="same", name=name) for name in names)], (4, 4, 1))
    snapshots = Snapshots(tmp_path)
    snapshots.on_fit_begin(model)
    snapshots.on_fit_end(model)
    assert list(load_snapshots(tmp_path)[0]) == ["z.weight", "b.weight", "a.weight"]


def test_snapshots_of_convolutions_inside_blocks():
    block = layers.Residual([layers.Conv2D(1, 3, padding="same", name="inner")])
    snapshots = Snapshots()
    snapshots.on_fit_begin(gpucnn.Model([block, layers.Flatten(), layers.Dense(2)], (4, 4, 1)))
    assert list(snapshots.epochs[0]) == ["residual.main.inner.weight"]


def test_snapshots_count_on_over_several_fits():
    model = small_model()
    fitted(2, model)
    snapshots, seen = fitted(1, model)
    assert list(snapshots.epochs) == [2, 3]
    np.testing.assert_array_equal(snapshots.epochs[2]["conv2d.weight"], seen[0])


def test_snapshots_limit_drops_every_other_epoch():
    snapshots, seen = fitted(9, limit=4 * SNAPSHOT_BYTES)
    assert list(snapshots.epochs) == [0, 4, 8, 9]
    for epoch in snapshots.epochs:
        np.testing.assert_array_equal(snapshots.epochs[epoch]["conv2d.weight"], seen[epoch])
    for epochs in range(1, 9):
        kept = list(fitted(epochs, limit=2 * SNAPSHOT_BYTES)[0].epochs)
        assert kept == [0, epochs]


def test_snapshots_leave_out_weights_that_do_not_fit_twice(tmp_path):
    first = 4 * 9 * 4
    snapshots, _ = fitted(1, limit=2 * SNAPSHOT_BYTES - 1)
    assert snapshots.skipped == ["conv2d_1.weight"]
    assert list(snapshots.epochs[1]) == ["conv2d.weight"]
    snapshots, _ = fitted(1, limit=2 * first - 1, folder=tmp_path)
    assert snapshots.epochs == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_snapshots_limit_is_a_number_of_bytes(limit):
    with pytest.raises(ConfigurationError, match="limit, in bytes, must be a positive integer, not"):
        Snapshots(limit=limit)


def test_snapshots_refuse_other_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"snapshots.safetensors: there are no snapshots; `gpucnn train` writes"):
        load_snapshots(tmp_path)
    file = tmp_path / SNAPSHOTS
    small_model().save(file)
    with pytest.raises(CheckpointError, match="does not hold snapshots; was it written by another program"):
        load_snapshots(file)
    save_file({"a": np.zeros(3)}, file, metadata={KEY: '{"format": 2}'})
    with pytest.raises(CheckpointError, match="holds snapshots of format 2, and this gpucnn reads format 1"):
        load_snapshots(file)
    save_file({"a": np.zeros(3)}, file, metadata={KEY: '{"format": 1, "paths": ["b"]}'})
    with pytest.raises(CheckpointError, match="does not hold what it says"):
        load_snapshots(file)
    for content in (b"", b"\0" * 40, b"<html>404</html>"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
            load_snapshots(file)


def test_snapshots_in_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"cannot write .*snapshots.safetensors .*; the folder .*nowhere does not exist"
    ):
        fitted(1, folder=tmp_path / "nowhere")
