"""Guarantees that belong to no single part: the same bits again, side by side, in little memory, for a long time.

What is guaranteed, and which test shows it, stands in `docs/reliability.md`.
"""

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, optimizers, schedules
from gpucnn.backends import Backend
from gpucnn.backends.numpy import threads, workspace
from gpucnn.callbacks import Callback
from gpucnn.core.files import FolderLock
from gpucnn.data.augment import Cutout, Flip, Translate
from gpucnn.errors import ConfigurationError, OutOfMemoryError
from tests.helpers import workspace_bytes


def images(count=96, size=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), rng.integers(0, 4, count)


def network(seed=0, size=16, backend="numpy", dtype="float32"):
    """A network of every kind of state: statistics, random streams, momentum, augmentation."""
    inside = [layers.Conv2D(32, 3, padding=1, use_bias=False), layers.BatchNorm(), layers.ReLU(), layers.Dropout(0.2)]
    built = [
        *(layers.Conv2D(32, 3, padding=1), layers.ReLU(), layers.MaxPool2D(2), layers.Residual(inside)),
        *(layers.Conv2D(64, 3, strides=2), layers.GELU(), layers.Flatten(), layers.Dense(4), layers.Softmax()),
    ]
    model = gpucnn.Model(built, (size, size, 3), seed=seed, backend=backend, dtype=dtype)
    rate = schedules.OneCycle(0.05)
    return model.compile(optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-4, clip_norm=5.0))


AUGMENT = (Flip(), Translate(2), Cutout(4))


def trained(seed=0, epochs=2, **options):
    model = network(seed)
    model.fit(*images(), epochs=epochs, batch_size=64, augment=AUGMENT, verbose=0, **options)
    return model


def bits(model):
    return {path: array.tobytes() for path, array in model.state_dict().items()}


# --- determinism -------------------------------------------------------------------------------


def test_threads_share_these_networks():
    gpucnn.set_num_threads(2)
    assert len(threads.shards(64, 64 * network().network.total_flops())) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_fit_again_gives_the_same_bits(count):
    gpucnn.set_num_threads(count)
    assert bits(trained()) == bits(trained())


def test_fit_under_load_gives_the_same_bits():
    """Next to four threads that keep all cores busy, so that the team's workers come late in any order."""
    gpucnn.set_num_threads(2)
    expected, stop = bits(trained()), threading.Event()

    def burn():
        a = np.random.default_rng(0).normal(size=(300, 300))
        while not stop.is_set():
            a = np.tanh(a @ a.T / 300)

    burners = [threading.Thread(target=burn) for _ in range(4)]
    for burner in burners:
        burner.start()
    try:
        found = [bits(trained()) for _ in range(3)]
    finally:
        stop.set()
        for burner in burners:
            burner.join()
    assert found == [expected] * 3


def test_fit_in_another_process_gives_the_same_bits(tmp_path):
    """Another hash seed, another current folder, another order of imports."""
    gpucnn.set_num_threads(2)
    code = (
        "import json, hashlib, gpucnn.plots, gpucnn; from tests.training.test_reliability import trained, bits; "
        "gpucnn.set_num_threads(2); "
        "print(json.dumps({path: hashlib.sha256(b).hexdigest() for path, b in bits(trained()).items()}))"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "PYTHONHASHSEED": "7"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    import hashlib
    import json

    here = {path: hashlib.sha256(content).hexdigest() for path, content in bits(trained()).items()}
    assert json.loads(outputs[0]) == here


class SetThreads(Callback):
    """Set another number of threads in the middle of training."""

    def __init__(self, count):
        self.count = count
        self.seen = []

    def on_step_end(self, model, step):
        gpucnn.set_num_threads(self.count)
        self.seen.append(threads.num_threads())


def test_num_threads_stays_for_a_whole_fit():
    gpucnn.set_num_threads(2)
    expected = bits(trained())
    gpucnn.set_num_threads(2)
    change = SetThreads(1)
    assert bits(trained(callbacks=[change])) == expected
    assert set(change.seen) == {2}
    assert threads.num_threads() == 1, "what was set counts from the end of the training on"


def test_num_threads_may_change_on_request():
    gpucnn.set_num_threads(2)
    change = SetThreads(1)
    trained(callbacks=[change], deterministic=False)
    assert set(change.seen) == {1}


# --- side by side ------------------------------------------------------------------------------


def test_models_train_in_two_threads():
    """Each ends with the bits that it gets alone, and no error is lost in between."""
    gpucnn.set_num_threads(2)
    alone = [bits(trained(seed)) for seed in (1, 2)]
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda seed: bits(trained(seed)), (1, 2)))
        assert together == alone


@pytest.mark.parametrize("batch_size", [7, 96])
def test_model_predicts_in_eight_threads(batch_size):
    gpucnn.set_num_threads(2)
    model, (x, _) = trained(), images(200, seed=5)
    parts = [x[25 * k : 25 * k + 96] for k in range(8)]
    expected = [model.predict(part, batch_size=batch_size).tobytes() for part in parts]
    before = bits(model)
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda part: model.predict(part, batch_size=batch_size).tobytes(), parts))
        assert found == expected
    assert bits(model) == before


def test_model_trains_while_another_predicts():
    gpucnn.set_num_threads(2)
    model, (x, _) = trained(3), images(100, seed=5)
    expected, alone = model.predict(x).tobytes(), bits(trained(4))
    with ThreadPoolExecutor(2) as pool:
        training = pool.submit(lambda: bits(trained(4)))
        while not training.done():
            assert model.predict(x).tobytes() == expected
        assert training.result() == alone


HOLDER = """
import sys, pathlib
from gpucnn.core.files import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds a folder; a line on its standard input ends it."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


def test_run_folder_is_written_by_one_process(tmp_path, other_process):
    x, y = images(8)
    before = sorted(path.name for path in tmp_path.iterdir())
    message = rf"{tmp_path}: process {other_process.pid} on .* is writing to this folder; wait until it"
    with pytest.raises(ConfigurationError, match=message):
        network().fit(x, y, checkpoints=tmp_path, verbose=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_run_folder_is_free_after_a_killed_process(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    assert (tmp_path / FolderLock.NAME).exists()
    network().fit(*images(8), checkpoints=tmp_path, verbose=0)
    assert not (tmp_path / FolderLock.NAME).exists()


def test_run_folder_is_released_when_fit_fails(tmp_path):
    class Fail(Callback):
        def on_step_end(self, model, step):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        network().fit(*images(8), checkpoints=tmp_path, callbacks=[Fail()], verbose=0)
    network().fit(*images(8), checkpoints=tmp_path, resume=True, verbose=0)


def test_run_folder_is_written_once_at_a_time_in_a_process(tmp_path):
    class Another(Callback):
        def on_step_end(self, model, step):
            with pytest.raises(ConfigurationError, match=f"process {os.getpid()} on .* is writing to this folder"):
                network().fit(*images(8), checkpoints=tmp_path, resume=True, verbose=0)
            assert (tmp_path / FolderLock.NAME).exists(), "the first one still holds it"

    network().fit(*images(8), checkpoints=tmp_path, callbacks=[Another()], verbose=0)


def test_run_folder_is_untouched_by_a_refused_run(tmp_path):
    with pytest.raises(gpucnn.CheckpointError, match="there is no checkpoint to resume from"):
        network().fit(*images(8), checkpoints=tmp_path / "new", resume=tmp_path / "old", verbose=0)
    assert not (tmp_path / "new").exists()


# --- memory ------------------------------------------------------------------------------------


class Small(Backend):
    """A backend that has memory for a number of samples at once."""

    def __init__(self, room):
        self.room, self.tried, self.released = room, [], 0

    def conv2d(self, x, *arguments, **options):
        self.tried.append(len(x))
        if len(x) > self.room:
            raise MemoryError(f"no room for {len(x)}")
        return super().conv2d(x, *arguments, **options)

    def release(self):
        self.released += 1


@pytest.mark.parametrize("views", [None, "flip"])
def test_predict_takes_smaller_batches_where_memory_is_short(views):
    x, y = images(50)
    model = network(backend=Small(10_000))
    expected, scores = model.predict(x, tta=views), model.evaluate(x, y, tta=views)
    backend = Small(8)
    model.to(backend)
    assert model.predict(x, batch_size=50, tta=views) == pytest.approx(expected, abs=1e-6)
    assert backend.tried[:4] == [50, 25, 13, 7]
    assert max(backend.tried[4:]) == 7, "what was found to fit is kept"
    assert backend.released == 3
    backend = Small(8)
    model.to(backend)
    assert model.evaluate(x, y, batch_size=50, tta=views) == pytest.approx(scores, rel=1e-5)
    assert 50 in backend.tried


def test_predict_says_where_not_even_one_sample_fits():
    x, y = images(3)
    for use in (lambda model: model.predict(x), lambda model: model.evaluate(x, y)):
        with pytest.raises(
            OutOfMemoryError, match=r"conv2d: out of memory on reference at a batch of 1: no room for 1; not even one"
        ):
            use(network(backend=Small(0)))


@pytest.mark.parametrize("verb", ["fit", "train_on_batch"])
def test_fit_advises_a_batch_that_fits_and_changes_nothing(verb):
    """Halves are tried, also the smaller last batch; weights, statistics and random streams stay as they were."""
    backend, (x, y) = Small(20), images(64)
    model = network(backend=backend)
    before = model.state_dict()
    options = {"batch_size": 64, "verbose": 0} if verb == "fit" else {}
    message = r"out of memory on reference at a batch of 64: no room for 64; a batch_size of 16 fits, as was tried"
    with pytest.raises(OutOfMemoryError, match=message):
        getattr(model, verb)(x, y, **options)
    assert backend.tried[:2] == [64, 32]
    assert set(backend.tried[2:]) == {16}
    assert all(np.array_equal(array, model.state_dict()[path]) for path, array in before.items())
    assert model.fit(x, y, batch_size=16, verbose=0).epochs == 1


def test_fit_says_where_not_even_one_sample_fits():
    with pytest.raises(OutOfMemoryError, match=r"no room for 64; not even one sample fits"):
        network(backend=Small(0)).fit(*images(), batch_size=64, verbose=0)


PEAK = """
import resource, sys
import numpy as np
import gpucnn
from tests.training.test_reliability import network

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

gpucnn.set_num_threads(2)
model, count = network(size=32), int(sys.argv[1])
x = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
for _ in range(3):
    model.predict(x[:256])  # eager, captured, and a replay beside the eager pass that it is compared with
before = peak()
model.predict(x)
print(peak() - before)
"""


@pytest.mark.process
def test_predict_holds_no_more_than_a_chunk():
    """Sixty thousand images of 32 by 32: their activations in the first layer alone are 7.9 GB."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PEAK, "60000"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 48 << 20, "beyond what 256 images took"


@pytest.mark.parametrize("batch", [64, 512])
def test_scratch_is_bounded_for_any_batch(batch):
    gpucnn.set_num_threads(1)
    workspace.detach()
    x, y = images(batch, 32)
    network(size=32).fit(x, y, batch_size=batch, verbose=0)
    assert 0 < workspace_bytes() < 16 << 20


# --- for a long time ---------------------------------------------------------------------------


def resident():
    """Bytes of memory this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(rounds, folder):
    """Train, save, load, predict, checkpoint and resume again and again; return what memory and files grew by."""
    x, y = images(32)
    marks = []
    for number in range(rounds):
        model = network(seed=number % 3)
        place = folder / str(number % 2)
        model.fit(x, y, batch_size=16, augment=AUGMENT, validation_data=(x, y), checkpoints=place, verbose=0)
        network(seed=number % 3).fit(
            x, y, batch_size=16, augment=AUGMENT, validation_data=(x, y), checkpoints=place, resume=True, verbose=0
        )
        model.save(folder / "model.safetensors")
        assert gpucnn.load(folder / "model.safetensors", backend="numpy").predict(x).shape == (32, 4)
        for file in place.iterdir():
            file.unlink()
        if number in (rounds // 4, rounds - 1):
            gc.collect()
            marks.append((resident(), len(os.listdir("/proc/self/fd")), threading.active_count()))
    (memory, files, running), (later, files_later, running_later) = marks
    return later - memory, files_later - files, running_later - running


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_soak_short(tmp_path):
    memory, files, running = soak(24, tmp_path)
    assert memory < 16 << 20
    assert files == 0
    assert running == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_soak_of_200_fits_and_loads(tmp_path):
    memory, files, running = soak(200, tmp_path)
    print(f"grown by {memory:,} bytes, {files} open files, {running} threads over 150 rounds")
    assert memory < 16 << 20
    assert files == 0
    assert running == 0
