"""`Group(train_epochs=n)`: parameters that are trained for some epochs, then frozen: nothing is computed for them."""

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, layers, optimizers, schedules
from gpucnn.backends import Backend
from gpucnn.errors import ConfigurationError
from gpucnn.optimizers import Group
from tests.helpers import assert_same_bits, simulated_backend


def data(count=48):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, 6, 6, 1), dtype=np.uint8), rng.integers(0, 3, count)


def first_rests(group, backend="numpy", jit=True, dtype="float32"):
    """Return a compiled model of which the group matches the first convolution."""
    network = [layers.Conv2D(4, 3, name="first"), layers.ReLU(), layers.Conv2D(4, 3), layers.ReLU()]
    network += [layers.Flatten(), layers.Dense(3), layers.Softmax()]
    model = gpucnn.Model(network, input_shape=(6, 6, 1), seed=1, backend=backend, dtype=dtype)
    return model.compile(optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3, groups=[group]), jit=jit)


class Observer(callbacks.Callback):
    """Keeps the weights and the gradients of each epoch's end, and counts the input gradients of each."""

    def __init__(self, monkeypatch=None):
        self.weights, self.gradients, self.input_gradients = [], [], []
        self._count = 0
        if monkeypatch is not None:
            original = Backend.conv2d_input_gradient

            def counting(backend, *arguments):
                self._count += 1
                return original(backend, *arguments)

            monkeypatch.setattr(Backend, "conv2d_input_gradient", counting)

    def on_epoch_end(self, model, epoch, logs):
        self.weights.append(model.state_dict())
        self.gradients.append(model.backend.to_host(model.parameters()["first.weight"].grad).copy())
        self.input_gradients.append(self._count)
        self._count = 0


def test_group_epochs_learn_and_then_freeze():
    observer, (x, y) = Observer(), data()
    model = first_rests(Group("first", train_epochs=2))
    model.fit(x, y, epochs=4, batch_size=16, callbacks=[observer], verbose=0)
    first = [weights["first.weight"] for weights in observer.weights]
    assert (first[0] != first[1]).any()
    assert (first[1] == first[2]).all()
    assert (first[1] == first[3]).all()
    assert (observer.weights[2]["dense.weight"] != observer.weights[3]["dense.weight"]).any()
    assert observer.gradients[1].any()
    assert not observer.gradients[2].any()


def test_group_epochs_skip_gradients_nobody_needs(monkeypatch):
    """The second convolution is the first that is trained then, so the gradient of its input is not needed."""
    observer, (x, y) = Observer(monkeypatch), data()
    first_rests(Group("first", train_epochs=2), Backend()).fit(
        x, y, epochs=3, batch_size=16, callbacks=[observer], verbose=0
    )
    assert observer.input_gradients == [3, 3, 0]


@pytest.mark.parametrize("backend", [Backend, lambda: "numpy", simulated_backend], ids=["base", "numpy", "simulated"])
def test_group_epochs_leave_the_others_as_with_a_zero_rate(backend):
    x, y = data()
    models = [
        first_rests(Group("first", train_epochs=1), backend()),
        first_rests(Group("first", schedules.PiecewiseConstant([(0, 1.0), (1, 0.0)])), backend()),
    ]
    for model in models:
        model.fit(x, y, epochs=3, batch_size=16, verbose=0)
    assert_same_bits(*models)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_group_epochs_capture_steps_again(dtype):
    """With a step that was captured while the group was trained, its gradients would still be computed."""
    x, y = data(64)  # no last, smaller batch, which is never captured
    observers, models = [Observer(), Observer()], []
    for jit, observer in zip((True, False), observers, strict=True):
        models.append(first_rests(Group("first", train_epochs=1), simulated_backend(), jit, dtype))
        models[-1].fit(x, y, epochs=3, batch_size=16, callbacks=[observer], verbose=0)
    assert_same_bits(*models)
    for observer in observers:
        assert observer.gradients[0].any()
        assert not observer.gradients[1].any()


@pytest.mark.parametrize("which", ["first", "second"])
def test_group_epochs_with_muon(which):
    """Its own groups and the other optimizer's; with `fixed_norm` even a rate of 0 would move the weights."""
    observer, (x, y) = Observer(), data()
    groups = {"first": [Group("first", train_epochs=1)], "second": []}
    other = optimizers.SGD(0.1, groups=[Group("*.bias", train_epochs=1)])
    muon = optimizers.Muon(0.1, groups=groups[which], fallback=other, fixed_norm=True)
    model = first_rests(Group("first"))
    model.compile(muon).fit(x, y, epochs=3, batch_size=16, callbacks=[observer], verbose=0)
    once, twice = observer.weights[0], observer.weights[2]
    frozen = ["first.bias", "conv2d.bias", "dense.bias", *(["first.weight"] if which == "first" else [])]
    for path, array in once.items():
        assert (array == twice[path]).all() == (path in frozen), path


def test_group_epochs_on_two_threads():
    x, y = data(128)
    gpucnn.set_num_threads(2)
    observer = Observer()
    model = first_rests(Group("first", train_epochs=1))
    model._sharded._flops = 1e9  # enough work for a slice a thread
    model.fit(x, y, epochs=2, batch_size=128, callbacks=[observer], verbose=0)
    assert (observer.weights[0]["first.weight"] == observer.weights[1]["first.weight"]).all()
    assert not observer.gradients[1].any()


def test_group_epochs_begin_anew_in_the_next_fit():
    x, y = data()
    model = first_rests(Group("first", train_epochs=1))
    model.fit(x, y, epochs=2, batch_size=16, verbose=0)
    before = model.state_dict()["first.weight"]
    assert all(parameter.trainable for parameter in model.parameters().values())
    model.train_on_batch(x[:16], y[:16])
    assert (model.state_dict()["first.weight"] != before).any()


def test_group_epochs_end_where_fit_is_interrupted():
    class Stop(callbacks.Callback):
        def on_epoch_begin(self, model, epoch):
            if epoch == 2:
                raise KeyboardInterrupt

    x, y = data()
    model = first_rests(Group("first", train_epochs=1))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=3, batch_size=16, callbacks=[Stop()], verbose=0)
    assert all(parameter.trainable for parameter in model.parameters().values())


def test_group_epochs_leave_what_users_freeze_and_save(tmp_path):
    """The loop unfreezes what it has frozen and nothing else, and a file does not list that as frozen."""

    class Acts(callbacks.Callback):
        def on_epoch_end(self, model, epoch, logs):
            if epoch == 1:
                assert [p for p, parameter in model.parameters().items() if parameter.frozen] == [
                    "first.weight",
                    "first.bias",
                ]
                assert model.config()["frozen"] == []
                model.save(tmp_path / "during.safetensors")
                model.freeze("first.bias", "dense.bias")

    x, y = data()
    model = first_rests(Group("first", train_epochs=1))
    model.fit(x, y, epochs=3, batch_size=16, callbacks=[Acts()], verbose=0)
    assert model.config()["frozen"] == ["first.bias", "dense.bias"]
    assert [p for p, parameter in model.parameters().items() if parameter.frozen] == ["first.bias", "dense.bias"]
    loaded = gpucnn.load(tmp_path / "during.safetensors", backend="numpy")
    assert all(parameter.trainable for parameter in loaded.parameters().values())


def test_group_epochs_keep_averages_following():
    """What a group no longer trains is still averaged: the average comes nearer to where it stays."""
    x, y = data()
    model, observer = first_rests(Group("first", train_epochs=1)), Observer()
    average = callbacks.MovingAverage(0.5, warm_up=False)
    model.fit(x, y, epochs=3, batch_size=16, callbacks=[average, observer], verbose=0)
    shown = [weights["first.weight"] for weights in observer.weights]
    assert (shown[0] != shown[1]).any()
    assert abs(shown[2] - shown[1]).max() < abs(shown[1] - shown[0]).max()


def test_group_epochs_are_kept_on_resume(tmp_path):
    """Stopped in the middle of an epoch in which they rest."""

    class Stop(callbacks.Callback):
        def on_step_end(self, model, step):
            if model.epochs_trained == 2 and step == 1:
                raise KeyboardInterrupt

    x, y = data()
    whole, cut, resumed = (first_rests(Group("first", train_epochs=1)) for _ in range(3))
    whole.fit(x, y, epochs=4, batch_size=16, verbose=0)
    keep = gpucnn.Checkpoints(tmp_path, every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(x, y, epochs=4, batch_size=16, checkpoints=keep, callbacks=[Stop()], verbose=0)
    observer = Observer()
    resumed.fit(x, y, epochs=4, batch_size=16, checkpoints=keep, resume=True, callbacks=[observer], verbose=0)
    assert_same_bits(whole, resumed)
    assert not observer.gradients[0].any()


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True, "3"])
def test_group_epochs_out_of_range_are_refused(epochs):
    with pytest.raises(ConfigurationError, match=r"a group's train_epochs must be a positive integer, not"):
        Group("*", train_epochs=epochs)


def test_group_epochs_are_saved_with_the_model(tmp_path):
    first_rests(Group("first", train_epochs=2)).save(tmp_path / "m.safetensors")
    assert repr(gpucnn.load(tmp_path / "m.safetensors").optimizer.groups[0]) == "Group('first', train_epochs=2)"
