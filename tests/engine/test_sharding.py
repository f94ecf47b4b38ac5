"""The team of threads that shares a batch: what it computes is what one thread computes, and nothing is lost."""

import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn.backends import Backend, get_backend
from gpucnn.backends.numpy import blas, threads, workspace
from gpucnn.backends.window import Window
from gpucnn.engine import sharding
from gpucnn.errors import ConfigurationError, ShapeError
from tests.helpers import workspace_bytes

ENGINE = get_backend("numpy")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(threads, "MIN_SHARD_FLOPS", 1.0)
    monkeypatch.setattr(threads, "MIN_SHARD_IMAGES", 16)
    yield
    gpucnn.set_num_threads(None)


def network(kind):
    """Networks with what is hard to share: batch statistics, dropout, branches, a layer that stands twice."""
    shared = L.Conv2D(4, 3, padding="same", name="shared")
    return {
        "plain": [L.Conv2D(4, 3), L.ReLU(), L.MaxPool2D(2), L.Flatten(), L.Dense(10), L.Softmax()],
        "norm": [L.Conv2D(4, 3), L.BatchNorm(), L.ReLU(), L.Flatten(), L.Dense(8), L.BatchNorm(), L.Dense(10)],
        "dropout": [L.Dropout(0.3), L.Flatten(), L.Dense(16), L.ReLU(), L.Dropout(0.5), L.Dense(10), L.Softmax()],
        "residual": [
            L.Conv2D(4, 3, padding="same"),
            L.Residual([shared, L.BatchNorm(), L.ReLU(), shared, L.BatchNorm()]),
            *[L.ReLU(), L.GlobalAveragePool2D(), L.Dense(10), L.Softmax()],
        ],
    }[kind]


def trained(kind, count, backend="numpy", steps=3, batch=50):
    """Weights, losses and running statistics after some steps."""
    gpucnn.set_num_threads(count)
    sgd = gpucnn.optimizers.SGD(0.1, momentum=0.9)  # not Adam, which turns the rounding of a zero gradient into steps
    loss = gpucnn.losses.CategoricalCrossEntropy(from_logits=kind == "norm")
    model = gpucnn.Model(network(kind), (8, 9, 3), seed=1, backend=backend, dtype="float64").compile(sgd, loss)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(steps):
        x, y = rng.normal(size=(batch, 8, 9, 3)), rng.integers(0, 10, batch)
        losses.append(float(model.train_on_batch(x, y)))
    return model.state_dict() | {"losses": np.array(losses)}


KINDS = ["plain", "norm", "dropout", "residual"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.smoke
def test_sharding_trains_as_the_whole_batch(kind, count):
    expected = trained(kind, 1, Backend())
    for name, array in trained(kind, count).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_sharding_by_the_same_threads_gives_the_same_bits(kind, count):
    first, second = (trained(kind, count) for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_sharding_runs_in_parallel():
    """Both threads are at work at the same time, each with its part."""
    gpucnn.set_num_threads(2)
    barrier, seen = threading.Barrier(2, timeout=20), []

    class Meets(L.ReLU):
        batch_independent = True

        def forward(self, x, *, train):
            seen.append(
                (threading.get_ident(), len(x), self.backend.shard_offset(), self.backend.global_batch_size(len(x)))
            )
            barrier.wait()
            return super().forward(x, train=train)

    model = gpucnn.Model([L.Flatten(), L.Dense(4), Meets()], (8, 9, 3), backend="numpy")
    model.forward(np.zeros((50, 8, 9, 3), "float32"))
    assert len({thread for thread, *_ in seen}) == 2
    assert sorted(seen, key=lambda row: row[2])[0][1:] == (25, 0, 50)
    assert sorted(seen, key=lambda row: row[2])[1][1:] == (25, 25, 50)


def test_sharding_shows_the_whole_batch_to_layers_that_mix_samples():
    gpucnn.set_num_threads(2)

    class Centred(L.Layer):
        def forward(self, x, *, train):
            return x - x.mean(axis=0), lambda dy: dy - dy.mean(axis=0)

    class Bolder(L.Conv2D):  # an overridden forward inherits no declaration
        def forward(self, x, *, train):
            return super().forward(x, train=train)

    assert Bolder.batch_independent is Bolder.capturable is None
    assert not Bolder.supports_fused_relu
    assert not Bolder.supports_skip_dx
    for mixing in (Centred(), Bolder(3, 3)):
        model = gpucnn.Model([mixing, L.ReLU(), L.Flatten(), L.Dense(4)], (8, 9, 3), backend="numpy")
        assert not sharding.ShardedNetwork(model.network).can_shard
    x = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
    model = gpucnn.Model([Centred(), L.Dense(3)], (6,), backend="numpy")
    np.testing.assert_allclose(model.forward(x)[0].mean(axis=0), 0, atol=1e-6)


def test_sharding_joins_the_input_gradient():
    gpucnn.set_num_threads(3)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(50, 8, 9, 3)), rng.normal(size=(50, 10))
    gradients = []
    for backend in ("numpy", Backend()):
        model = gpucnn.Model(network("plain"), (8, 9, 3), backend=backend, dtype="float64")
        y, backward = model.forward(x, train=True)
        gradients.append([y, backward(dy), *(p.grad for p in model.parameters().values())])
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_replicas_share_parameter_values_alone():
    model = gpucnn.Model(network("residual"), (8, 9, 3), backend="numpy")
    clone = sharding.Replica(model.network).network
    assert list(clone.parameters()) == list(model.parameters())
    for path, parameter in clone.parameters().items():
        assert parameter is not model.parameters()[path]
        assert parameter.value is model.parameters()[path].value
        assert parameter.grad is None
    for path, buffer in clone.buffers().items():
        assert not np.shares_memory(buffer.value, model.network.buffers()[path].value)
    main = clone.layers[1].main.layers
    assert main[0] is main[3] is not model.layers[1].main.layers[0]
    planned = [layer for _, layer, *_ in clone.execution_order(need_dx=True)]
    assert all(any(layer is own for own in clone.layers) for layer in planned)


def test_replicas_follow_changed_attributes():
    """An attribute set between two steps counts for every slice."""
    gpucnn.set_num_threads(2)
    model = gpucnn.Model([L.Flatten(), L.Dropout(0.5), L.ReLU()], (8, 9, 3), backend="numpy")
    model._sharded._flops = 1000
    x = np.ones((50, 8, 9, 3), "float32")
    assert (model.forward(x, train=True)[0] == 0).mean() == pytest.approx(0.5, abs=0.05)
    kept = list(model._sharded._replicas)
    model.forward(x, train=True)
    assert model._sharded._replicas == kept != []  # nothing has changed
    model.layers[1].rate = 0.1
    y = model.forward(x, train=True)[0]
    assert (y[:25] == 0).mean() == pytest.approx(0.1, abs=0.03)
    assert (y[25:] == 0).mean() == pytest.approx(0.1, abs=0.03)
    model.to(Backend())
    model.to("numpy")
    model.forward(x, train=True)


def test_replicas_follow_exchanged_layers_and_layers_in_dictionaries():
    Pair = namedtuple("Pair", "first second")

    class Branches(L.Layer):
        """The sum of branches that are kept by name and in a tuple with names."""

        batch_independent = True

        def __init__(self):
            super().__init__()
            self.by_name, self.others = {"a": L.Dropout(0.5), "b": L.Dense(4)}, Pair(L.Dense(4), L.ReLU())

        def build(self, input_shape, rng):
            self.by_name["a"].ensure_built(input_shape, rng)
            self.others[0].ensure_built(input_shape, rng)
            return self.by_name["b"].ensure_built(input_shape, rng)

        def forward(self, x, *, train):
            dropped, back = self.by_name["a"].forward(x, train=train)
            y, b_back = self.by_name["b"].forward(dropped, train=train)
            z, c_back = self.others[0].forward(dropped, train=train)
            return y + z, lambda dy: back(b_back(dy) + c_back(dy))

    gpucnn.set_num_threads(2)
    model = gpucnn.Model([L.Flatten(), Branches(), L.ReLU()], (8, 9, 3), backend="numpy")
    assert list(model.parameters()) == [
        f"branches.{path}.{name}" for path in ("by_name.b", "dense") for name in ("weight", "bias")
    ]
    model._sharded._flops = 1000
    x = np.ones((50, 8, 9, 3), "float32")
    model.forward(x, train=True)
    (replica,) = model._sharded._replicas
    clone = replica.network.layers[1]
    assert type(clone.others) is Pair
    for ours, theirs in (
        (clone.by_name["b"], model.layers[1].by_name["b"]),
        (clone.others[0], model.layers[1].others[0]),
    ):
        assert ours is not theirs
        assert ours.weight is not theirs.weight
        assert ours.weight.value is theirs.weight.value
    assert replica.is_current()
    kept = model.layers[1].by_name["a"]
    model.layers[1].by_name["a"] = L.ReLU()
    assert not replica.is_current()
    model.layers[1].by_name["a"] = kept
    assert replica.is_current()
    list.__setitem__(model.network.layers, 2, L.ReLU())  # which users cannot do
    assert not replica.is_current()


def test_replicas_follow_loaded_state():
    """A random stream that is set back gives all slices the masks that it gave before."""
    gpucnn.set_num_threads(2)
    model = gpucnn.Model([L.Flatten(), L.Dropout(0.5), L.ReLU()], (8, 9, 3), backend="numpy")
    model._sharded._flops = 1000
    x = np.ones((50, 8, 9, 3), "float32")
    state = model.state_dict()
    first, second = (model.forward(x, train=True)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    model.load_state_dict(state)
    assert np.array_equal(model.forward(x, train=True)[0], first)


def test_sharding_interrupt_ends_the_step_for_all_threads():
    gpucnn.set_num_threads(2)

    class Interrupted(L.ReLU):
        batch_independent = True

        def forward(self, x, *, train):
            if not self.backend.shard_offset():
                raise KeyboardInterrupt
            return super().forward(x, train=train)

    model = gpucnn.Model([L.Flatten(), Interrupted(), L.BatchNorm(), L.Dense(4)], (8, 9, 3), backend="numpy")
    with pytest.raises(KeyboardInterrupt):
        model.forward(np.zeros((50, 8, 9, 3), "float32"), train=True)


def test_sharding_error_ends_the_step_for_all_threads():
    gpucnn.set_num_threads(2)

    class Fails(L.ReLU):
        batch_independent = True

        def forward(self, x, *, train):
            if self.backend.shard_offset():
                raise ShapeError("no more")
            return super().forward(x, train=train)

    model = gpucnn.Model([L.Flatten(), Fails(), L.BatchNorm(), L.Dense(4)], (8, 9, 3), backend="numpy")
    x = np.zeros((50, 8, 9, 3), "float32")
    for _ in range(3):  # and the threads are free for the next one
        with pytest.raises(ShapeError, match="no more"):
            model.forward(x, train=True)


def test_sharding_cuts_a_batch_evenly(monkeypatch):
    monkeypatch.undo()  # the limits as they are

    def sizes(batch, work_of_an_image, count):
        gpucnn.set_num_threads(count)
        cut = threads.shards(batch, work_of_an_image * batch)
        assert [part.start for part in cut] == [0, *(part.stop for part in cut[:-1])]
        assert cut[-1].stop == batch
        return [part.stop - part.start for part in cut]

    lenet, vgg = 8e5, 8e7
    assert sizes(128, lenet, 2) == [64, 64]
    assert sizes(128, lenet, 1) == [128]
    assert sizes(129, lenet, 2) == [64, 65]
    assert sizes(512, lenet, 4) == [128] * 4
    assert sizes(64, lenet, 2) == [32, 32]
    assert sizes(32, lenet, 2) == [32]  # too little work
    assert sizes(128, lenet, 8) == [25, 26, 25, 26, 26]  # not enough for eight
    assert sizes(32, vgg, 2) == [16, 16]
    assert sizes(31, vgg, 2) == [31]  # much work, but short products
    assert sizes(128, 0, 2) == [128]  # no products at all


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_set_num_threads_out_of_range_is_refused(value):
    with pytest.raises(ConfigurationError, match="the number of threads must be a positive integer, not"):
        gpucnn.set_num_threads(value)


def test_num_threads_is_set_and_read(monkeypatch):
    monkeypatch.delenv("GPUCNN_NUM_THREADS", raising=False)
    assert threads.num_threads() == threads.usable_cores()
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "3")
    assert threads.num_threads() == 3
    gpucnn.set_num_threads(2)
    assert threads.num_threads() == 2
    gpucnn.set_num_threads(None)
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "few")
    with pytest.raises(ConfigurationError, match="GPUCNN_NUM_THREADS must be a positive integer, not 'few'"):
        threads.num_threads()
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "9" * 5000)  # more digits than Python reads
    with pytest.raises(ConfigurationError, match="GPUCNN_NUM_THREADS must be a positive integer, not '999"):
        threads.num_threads()


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


class TestBlas:
    """BLAS itself is asked, by the functions of the library: what threadpoolctl says of it is another matter."""

    @staticmethod
    def now():
        shared, own = blas._libraries()
        return {library.get() for library in (*shared, *own)}

    @pytest.fixture(autouse=True)
    def set(self):
        """What sets BLAS' number of threads; it is given back after the test."""
        libraries = [library for kind in blas._libraries() for library in kind]
        before = [library.get() for library in libraries]

        def to(count):
            for library in libraries:
                library.set(count)

        to(3)
        yield to
        for library, count in zip(libraries, before, strict=True):
            library.set(count)

    def test_blas_is_limited_to_one_thread_during_a_step(self, set):
        gpucnn.set_num_threads(2)
        with ENGINE.execution_context(sharded=True):
            assert self.now() == {1}
            with ENGINE.execution_context(sharded=False):
                assert self.now() == {1}
            assert self.now() == {1}
        assert self.now() == {3}
        with ENGINE.execution_context(sharded=False):
            assert self.now() == {2}  # without a team they are BLAS' own
        set(1)
        with ENGINE.execution_context(sharded=False):
            assert self.now() == {1}  # what the user set is not raised

    def test_blas_is_limited_in_every_thread(self):
        """In whichever order threads reach it."""

        def within():
            with blas.blas_threads(1):
                return self.now()

        for _ in range(2):
            assert within() == {1}
            assert in_another_thread(within) == {1}
        assert self.now() == in_another_thread(self.now) == {3}

    def test_blas_is_released_after_overlapping_blocks_of_two_threads(self):
        inside, leave = threading.Event(), threading.Event()

        def other():
            with blas.blas_threads(1):
                inside.set()
                leave.wait(20)
                return self.now()

        with ThreadPoolExecutor(1) as pool:
            with blas.blas_threads(1):
                later = pool.submit(other)
                assert inside.wait(20)
            assert self.now() == {1}
            leave.set()
            assert later.result() == {1}
        assert self.now() == in_another_thread(self.now) == {3}

    def test_blas_of_openmp_is_limited_for_each_thread(self, monkeypatch):
        """There each thread has its own number, as OpenMP gives it."""

        class OpenMP(threading.local):
            internal_api, threading_layer, count = "openblas", "openmp", 4

            def get_num_threads(self):
                return self.count

            def set_num_threads(self, count):
                self.count = count

        library = blas.Library(OpenMP())
        assert library.per_thread
        monkeypatch.setattr(blas, "_libraries", lambda: ([], [library]))

        def within():
            with blas.blas_threads(1):
                return library.get(), in_another_thread(library.get)

        assert within() == in_another_thread(within) == (1, 4)
        with blas.blas_threads(1):
            assert in_another_thread(within) == (1, 4)
            assert library.get() == 1
            worker = threads.Worker(threads.Team([slice(0, 1)]), 0, slice(0, 1))
            assert in_another_thread(lambda: worker.run(library.get)) == 1
        assert library.get() == 4


@pytest.mark.parametrize("batch", [128, 512])
def test_scratch_of_vgg_stays_below_16_megabytes_per_thread(batch, monkeypatch):
    from benchmarks.nets import gpucnn_model

    gpucnn.set_num_threads(2)
    held, run = [], threads.Worker.run

    def run_and_look(self, task):
        try:
            return run(self, task)
        finally:
            held.append(workspace_bytes())

    monkeypatch.setattr(threads.Worker, "run", run_and_look)
    threads._pool.shrink(0)  # new threads, that hold nothing yet
    workspace.detach()
    model = gpucnn_model("vgg", ENGINE)
    rng = np.random.default_rng(0)
    model.train_step(rng.normal(size=(batch, 32, 32, 3)).astype("float32"), rng.integers(0, 10, batch), 0.01)
    assert len(held) == 4  # two workers, forward and backward
    assert 1 << 20 < max(held) < 16 << 20, held


@pytest.mark.parametrize(
    ("images", "window", "filters"),
    [
        ((32, 32, 32, 64), Window((1, 1), padding=((1, 1), (1, 1))), 64),
        ((1, 225, 225, 3), Window((7, 7), (2, 2), ((3, 3), (3, 3))), 64),
        ((16, 64, 64, 64), Window((3, 3), padding=((2, 2), (2, 2)), dilation=(2, 2)), 16),
        ((64, 28, 28, 16), Window((9, 9)), 16),
        ((32, 48, 96, 8), Window((3, 31), dilation=(1, 2)), 8),
        ((64, 8, 8, 256), Window((3, 3), padding=((1, 1), (1, 1))), 256),
        ((16, 112, 112, 16), Window((3, 3), padding=((1, 1), (1, 1))), 16),
        ((64, 32, 32, 32), Window((3, 3), (2, 2), ((1, 1), (1, 1))), 64),
    ],
    ids=str,
)
def test_scratch_stays_below_16_megabytes_for_any_geometry(images, window, filters):
    workspace.detach()
    rng = np.random.default_rng(0)
    x = rng.normal(size=images).astype("float32")
    weight = rng.normal(size=(*window.size, images[-1], filters)).astype("float32")
    y = ENGINE.conv2d(x, weight, np.zeros(filters, "float32"), window)
    ENGINE.conv2d_parameter_gradients(x, y, window)
    ENGINE.conv2d_input_gradient(y, weight, images[1:3], window)
    assert 1 << 20 < workspace_bytes() < 16 << 20
    workspace.detach()
