"""Threads and processes: what outlives the main thread, what a forked child begins with, and a container's share."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn import layers
from gpucnn.backends.numpy import blas, cores, memory, threads
from gpucnn.callbacks import Callback
from gpucnn.core import forks
from gpucnn.engine import captured_pass
from gpucnn.errors import ConfigurationError, ThreadWarning

ROOT = Path(__file__).parents[2]

HEAD = """
import os, sys, threading, time
import numpy as np
import gpucnn
from gpucnn import layers
from gpucnn.backends.numpy import threads
from tests.engine.test_processes import images, network

gpucnn.set_num_threads(2)
threads.MIN_SHARD_FLOPS = 1.0
x, y = images()
"""


def images():
    rng = np.random.default_rng(0)
    return rng.random((64, 8, 8, 3), dtype=np.float32), rng.integers(0, 3, 64)


def network():
    built = [layers.Conv2D(4, 3, padding="same"), layers.BatchNorm(), layers.ReLU(), layers.Flatten(), layers.Dense(3)]
    return gpucnn.Model([*built, layers.Softmax()], (8, 8, 3), seed=1, backend="numpy").compile()


def in_a_process(code):
    """Run code in a separate process; return its output, of which errors are a part, and its status."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout, done.returncode


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "MIN_SHARD_FLOPS", 1.0)
    gpucnn.set_num_threads(2)
    yield
    gpucnn.set_num_threads(None)


# --- the main thread's end ------------------------------------------------------------------------


def test_fit_in_a_thread_outlives_the_main_thread():
    output, status = in_a_process("""
def train():
    threading.main_thread().join()
    print(network().fit(x, y, epochs=3, verbose=0).epochs, "epochs")

threading.Thread(target=train).start()
""")
    assert (output, status) == ("3 epochs\n", 0)


def test_predict_works_while_the_process_ends():
    output, status = in_a_process("""
import atexit

model = network()
model.train_on_batch(x, y)
atexit.register(lambda: print(model.predict(x).shape))
""")
    assert (output, status) == ("(64, 3)\n", 0)


# --- threads that cannot be started ---------------------------------------------------------------


@pytest.fixture
def no_more_threads(monkeypatch):
    """The system starts one more thread of the engine's, and then no other."""
    threads._pool.shrink(0)
    started, start = [], threading.Thread.start

    def limited(self):
        if self.name.startswith("gpucnn"):
            if started:
                raise RuntimeError("can't start new thread")
            started.append(self)
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        yield
    gpucnn.set_num_threads(None)


def test_threads_that_cannot_start_leave_the_batch_to_the_others(two_threads, no_more_threads):
    x, y = images()
    expected = network()
    expected.fit(x, y, epochs=2, verbose=0)
    gpucnn.set_num_threads(4)
    model = network()
    with pytest.warns(
        ThreadWarning, match="the system starts no more than 2 of 4 threads, so the CPU engine uses 2 from"
    ) as w:
        model.fit(x, y, epochs=2, verbose=0)
    assert len(w) == 1
    assert threads.num_threads() == 2
    for path, array in model.state_dict().items():
        assert np.array_equal(array, expected.state_dict()[path]), path


def test_threads_that_cannot_start_at_all_raise(two_threads, no_more_threads):
    cut = [slice(0, 16), slice(16, 32), slice(32, 48)]
    with pytest.raises(ConfigurationError, match=r"split for 3 threads, but the system starts no more than 2; set"):
        threads.run_sharded([int] * 3, cut)
    assert threads.run_sharded([int] * 2, cut[:2]) == [0, 0]


def test_threads_are_no_more_than_the_largest_number_in_use(two_threads):
    x, y = images()
    threads._pool.shrink(0)
    before, model = threading.active_count(), network()
    for count in (1, 3, 2, 4, 2, 3):
        gpucnn.set_num_threads(count)
        model.train_on_batch(x, y)
        assert threading.active_count() - before <= 3
    assert len(threads._pool._threads) == 2
    gpucnn.set_num_threads(1)
    assert len(threads._pool._threads) == 0


# --- forks ----------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def in_a_child(function):
    """Return what a function returns in a forked child, as a status; -1 where it does not end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        status = 99
        try:
            status = int(function())
        finally:
            os._exit(status)
    ended = threading.Event()
    killer = threading.Thread(target=lambda: ended.wait(20) or os.kill(child, 9))
    killer.start()
    _, status = os.waitpid(child, 0)
    ended.set()
    killer.join()
    return os.waitstatus_to_exitcode(status)


@needs_fork
def test_fork_while_another_thread_trains_gives_working_children(two_threads):
    x, y = images()
    model, other = network(), network()
    expected, stop = other.predict(x).tobytes(), threading.Event()

    def train():
        while not stop.is_set():
            model.fit(x, y, batch_size=32, verbose=0)

    def child():
        same = other.predict(x).tobytes() == expected
        other.fit(x, y, verbose=0)
        model.fit(x, y, verbose=0)  # the very one that was being trained
        return 0 if same and np.isfinite(model.predict(x)).all() else 1

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        assert [in_a_child(child) for _ in range(5)] == [0] * 5
    finally:
        stop.set()
        trainer.join()


@needs_fork
def test_fork_releases_locks_that_other_threads_held(two_threads, monkeypatch):
    """Every lock of the package, BLAS, and the parameters of a model that was being captured."""
    x, y = images()
    model = network()
    held = [threads._team_lock, threads._pool._lock, blas._lock, memory.arena._lock, captured_pass._capture_lock]
    held += [model._sharded.captures.memory.lock]
    assert all(any(lock is other for other in forks.locks()) for lock in held)
    inside, leave = threading.Event(), threading.Event()
    threads_of_blas = [library.get() for library in blas._libraries()[0]]

    def hold():
        with blas.blas_threads(1):
            for lock in held:
                lock.acquire()
            tracer = model.backend.tracer()
            captured_pass._with_traced_state(model.network, tracer)
            inside.set()
            leave.wait()
            for lock in held:
                lock.release()
            captured_pass._restore()

    def child():
        free = not any(lock.locked() for lock in forks.locks())
        plain = all(type(parameter.value) is np.ndarray for parameter in model.parameters().values())
        given_back = threads_of_blas == [library.get() for library in blas._libraries()[0]]
        model.fit(x, y, verbose=0)
        return 8 * (not free) + 4 * (not plain) + 2 * (not given_back)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert inside.wait(20)
        assert in_a_child(child) == 0
    finally:
        leave.set()
        holder.join()


@needs_fork
def test_fork_in_a_callback_gives_an_independent_child(two_threads):
    """Its number of threads is what it sets, and its parent's training is not its own."""
    x, y = images()

    class Forks(Callback):
        def on_epoch_end(self, model, epoch, logs):
            def child():
                gpucnn.set_num_threads(1)
                model.fit(x, y, verbose=0)
                return threads.num_threads() != 1

            self.status = in_a_child(child)

    forking = Forks()
    network().fit(x, y, callbacks=[forking], verbose=0)
    assert forking.status == 0


# --- a container's share --------------------------------------------------------------------------


def process_of(folder, groups, mounts, **files):
    """Return a process in a folder that stands for /proc, and write control groups; `__` in a name is a slash."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    process = folder / "proc"
    process.mkdir()
    (process / "cgroup").write_text("".join(f"{line}\n" for line in groups))
    (process / "mountinfo").write_text(
        "".join(f"30 23 0:26 {root} {folder}/{place} rw - {kind}\n" for root, place, kind in mounts)
    )
    return process


V2 = "cgroup2 cgroup2 rw,nsdelegate"
V1 = "cgroup cgroup rw,cpu,cpuacct"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        (["0::/"], [("/", "v2", V2)], {"v2__cpu_max": "150000 100000\n"}, 1.5),
        (["0::/"], [("/", "v2", V2)], {"v2__cpu_max": "max 100000\n"}, None),
        (["0::/"], [("/", "v2", V2)], {}, None),
        (["0::/a/b"], [("/", "v2", V2)], {"v2__a__cpu_max": "50000 100000", "v2__a__b__cpu_max": "max 100000"}, 0.5),
        (["0::/a/b"], [("/", "v2", V2)], {"v2__a__cpu_max": "400000 100000", "v2__a__b__cpu_max": "3000 1000"}, 3.0),
        (["0::/a"], [("/", "v2\\040of\\040it", V2)], {"v2 of it__a__cpu_max": "200000 100000"}, 2.0),
        # what is mounted in a container is its own group
        (["0::/docker/1"], [("/docker/1", "v2", V2)], {"v2__cpu_max": "200000 100000"}, 2.0),
        (["0::/../2"], [("/", "v2", V2)], {"v2__cpu_max": "200000 100000"}, 2.0),
        (
            ["5:memory:/m", "3:cpu,cpuacct:/a"],
            [("/", "memory", "cgroup cgroup rw,memory"), ("/", "cpu", V1)],
            {"cpu__a__cpu_cfs_quota_us": "250000\n", "cpu__a__cpu_cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            ["3:cpu,cpuacct:/a", "0::/a"],
            [("/", "cpu", V1), ("/", "unified", V2)],
            {"cpu__a__cpu_cfs_quota_us": "-1\n", "cpu__a__cpu_cfs_period_us": "100000\n"},
            None,
        ),
    ],
)
def test_cgroup_quota_is_read(tmp_path, groups, mounts, files, quota):
    assert cores.quota(process_of(tmp_path, groups, mounts, **files)) == quota


def test_cgroup_quota_is_absent_without_control_groups(tmp_path):
    assert cores.quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "usable"), [(None, 6), (0.5, 1), (1.0, 1), (1.5, 2), (64.0, 6)])
def test_cgroup_quota_limits_the_cores(monkeypatch, quota, usable):
    monkeypatch.delenv("GPUCNN_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "_own_quota", lambda: quota)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 6, raising=False)
    assert cores.usable_cores() == threads.num_threads() == usable
