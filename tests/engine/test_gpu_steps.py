"""Training steps on a GPU: what they read from Python, the memory they take, the threads and devices they run on.

Most of it looks into the simulated CuPy, whose GPUs have as little memory, or are as many, as a test wants; with
`--backend cupy` what a callback changes between two steps is tested on a GPU as well.
"""

import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, optimizers
from gpucnn import layers as L
from gpucnn.data.augment import AlternatingFlip, Translate
from gpucnn.engine import capture
from gpucnn.errors import CaptureWarning, OutOfMemoryError
from gpucnn.networks.whitening import whiten
from gpucnn.optimizers import Group
from tests.helpers import After, images_and_labels, outcome, state_of
from tests.helpers import model_with_settings as small
from tests.simulated_cupy import Importer, Simulation, load_backend


@pytest.fixture
def simulated(needs_simulation):
    """A class of backends, of which each device gets one, over a simulation of two GPUs."""
    return load_backend(Simulation(devices=2))


# --- settings that change between two steps: test_settings_between_steps.py tests that they are obeyed --------------


def test_settings_at_rest_are_captured_again(simulated):
    """1 eager step and 14 launches without a change; with one after the 5th two more eager steps come before 9."""
    backend = simulated(0)
    for steps, launches in (((), 15), ((5,), 13), ((1,), 13), ((5, 9), 9)):
        backend.simulation.graph_launches = 0
        changes = iter((0.4, 0.5))
        change = After(lambda model, changes=changes: setattr(model.layers[3], "rate", next(changes)), *steps)
        outcome(small(backend), callbacks=[change])
        assert backend.simulation.graph_launches == launches, steps


def test_settings_assigned_the_same_value_are_not_a_change(simulated):
    backend = simulated(0)
    again = After(lambda model: setattr(model.optimizer, "weight_decay", float("1e-3")), *range(1, 16))
    outcome(small(backend), callbacks=[again])
    assert backend.simulation.graph_launches == 15


def test_settings_that_change_each_step_reserve_memory_ever_more_rarely(simulated, monkeypatch):
    """For the steps 1, 3, 7, 15 and 31: the eager steps before a capture double."""
    backend, pools = simulated(0), []
    make = backend.tracer
    monkeypatch.setattr(backend, "tracer", lambda: pools.append(1) or make())
    results = []
    for jit in (True, False):
        rates = iter(np.linspace(0.1, 0.6, 40).tolist())
        change = After(lambda model, rates=rates: setattr(model.layers[3], "rate", next(rates)), *range(1, 33))
        results.append(outcome(small(backend, jit=jit), epochs=4, callbacks=[change]))
    assert results[0] == results[1]
    assert len(pools) == 5


def test_settings_changes_delay_capture_by_a_bounded_number_of_steps(simulated, monkeypatch):
    """With a bound of 2: captured and replayed 3 steps of the first 4, and 2 of each 4 that follow a change."""
    monkeypatch.setattr(capture, "MAX_WARMUP", 2)
    backend, rates = simulated(0), iter((0.4, 0.5, 0.6))
    change = After(lambda model: setattr(model.layers[3], "rate", next(rates)), 4, 8, 12)
    outcome(small(backend), callbacks=[change])
    assert backend.simulation.graph_launches == 3 + 3 * 2


def test_layer_that_changes_itself_each_step_is_not_captured(gpu):
    """A replay would leave out what its Python does."""

    class Counting(L.Layer):
        capturable = True
        calls = 0

        def forward(self, x, *, train):
            self.calls += 1
            return x * self.calls, lambda dy, calls=self.calls: dy * calls

    try:
        models = []
        for jit in (True, False):
            layers = [L.Flatten(), Counting(), L.Dense(4), L.Softmax()]
            models.append(gpucnn.Model(layers, (6, 6, 2), backend=gpu).compile(optimizers.SGD(1e-4), jit=jit))
        with pytest.warns(CaptureWarning, match="changes attributes of layers, loss, optimizer or metrics"):
            captured = outcome(models[0])
        assert captured == outcome(models[1])
        assert "changes attributes" in models[0].why_not_captured
    finally:
        L.Layer.registry.pop("Counting")


def test_layer_that_caches_its_first_step_is_captured(simulated):
    class Keeping(L.Layer):
        capturable = True

        def forward(self, x, *, train):
            if not hasattr(self, "factor"):
                self.factor = self.backend.xp.full((), 0.5, dtype=x.dtype)
            return x * self.factor, lambda dy: dy * self.factor

    try:
        backend = simulated(0)
        layers = [L.Flatten(), Keeping(), L.Dense(4), L.Softmax()]
        model = gpucnn.Model(layers, (6, 6, 2), backend=backend).compile(optimizers.SGD(0.1))
        outcome(model)
        assert not model.why_not_captured
        assert backend.simulation.graph_launches == 16 - 3
    finally:
        L.Layer.registry.pop("Keeping")


# --- memory -----------------------------------------------------------------------------------------


def wide(backend, jit=True):
    """A network whose columns take 9 times its activations."""
    layers = [L.Conv2D(8, 3, padding="same"), L.ReLU(), L.Residual([L.Conv2D(8, 3, padding="same")]), L.Flatten()]
    model = gpucnn.Model([*layers, L.Dense(4), L.Softmax()], (16, 16, 2), backend=backend)
    return model.compile(optimizers.SGD(0.05, momentum=0.9), jit=jit)


def test_capture_frees_nothing_that_its_graph_uses(simulated):
    """Down from ample memory: columns are halved in the first step already, and the capture takes the same blocks."""
    data = images_and_labels(64, 16)
    ample = wide(simulated(0)).fit(*data, epochs=2, batch_size=16, verbose=0).history["loss"]
    columns = simulated.simulation.launches["im2col"]
    halved = ended = 0
    for megabytes in np.arange(35.25, 33.9, -0.125):  # of which 33.6 are cuBLAS'
        backend = load_backend()(0)
        backend.simulation.capacity = int(megabytes * 1e6)
        model = wide(backend)
        try:
            found = model.fit(*data, epochs=2, batch_size=16, verbose=0).history["loss"]
        except OutOfMemoryError:
            ended += 1
            continue
        assert found == pytest.approx(ample, rel=1e-5), megabytes
        assert not model.why_not_captured
        assert backend.simulation.graph_launches == 7
        halved += backend.simulation.launches["im2col"] > columns
    assert halved >= 3
    assert ended >= 2


def test_capture_that_runs_out_of_memory_goes_on_eagerly(simulated):
    """The step before it has fitted; one that was not captured does so again."""

    class Growing(L.Layer):
        capturable = True

        def forward(self, x, *, train):
            self.backend.xp.empty(calls.append(1) or 10 ** (6 + (len(calls) == 2)), dtype="uint8")
            return x, lambda dy: dy

    calls = []
    try:
        results = []
        for jit in (True, False):
            backend = load_backend()(0)
            layers = [L.Flatten(), Growing(), L.Dense(4), L.Softmax()]
            model = gpucnn.Model(layers, (6, 6, 2), backend=backend).compile(optimizers.Adam(0.01), jit=jit)
            if jit:
                backend.simulation.capacity = 40_000_000
                with pytest.warns(CaptureWarning, match=r"no room for .* bytes more than the step took before"):
                    results.append(outcome(model))
                assert "no room" in model.why_not_captured
                assert backend.simulation.graph_launches == 0
            else:
                results.append(outcome(model))
        assert results[0] == results[1]
    finally:
        L.Layer.registry.pop("Growing")


def test_capture_may_grow_but_not_free(simulated):
    backend = simulated(0)
    xp = backend.xp
    kept = xp.zeros(100_000, dtype="float32")

    def step(count):
        for number in range(count):
            xp.add(kept[: 1000 * (number + 1)], 1.0, out=kept[: 1000 * (number + 1)])
            xp.ones(1000 * (number + 1), dtype="float32")

    pool = backend.tracer()
    with pool.warm_up():
        step(2)
    pool.capture(lambda: step(5))
    assert float(kept[0]) == 7

    pool = backend.tracer()
    with pool.warm_up():
        step(3)
    with pytest.raises(RuntimeError, match=r"12,000 bytes that the captured step may use were freed"):
        pool.capture(lambda: (step(3), pool.pool.free_all_blocks()))


def test_graph_whose_first_launch_fails_is_run_eagerly(simulated, monkeypatch):
    backend = simulated(0)
    make = backend.tracer

    def fails(*arguments, **options):
        raise RuntimeError("cudaErrorMemoryAllocation")

    def tracer():
        created = make()
        monkeypatch.setattr(type(created).capture.__globals__["CapturedGraph"], "__call__", fails)
        return created

    monkeypatch.setattr(backend, "tracer", tracer)
    with pytest.warns(CaptureWarning, match="cudaErrorMemoryAllocation"):
        captured = outcome(small(backend))
    assert captured == outcome(small(backend, jit=False))


def test_garbage_is_not_collected_during_capture(simulated):
    """It could destroy other graphs, and free memory, in the middle."""
    backend, found = simulated(0), []

    def look(phase, info):
        found.append(backend.simulation.capturing() is not None)

    thresholds = gc.get_threshold()
    gc.callbacks.append(look)
    try:
        gc.set_threshold(1)
        outcome(small(backend), epochs=1)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(look)
    assert found
    assert not any(found)
    assert gc.isenabled()
    gc.disable()
    try:
        outcome(small(backend), epochs=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_step_that_is_never_captured_leaves_no_memory_behind(simulated):
    """A training run ends between the warm-up and the capture."""

    def stop(model):
        model.stop_training = True

    backend = simulated(0)
    model = wide(backend)
    data = images_and_labels(64, 16)
    model.train_on_batch(data[0][:16], data[1][:16])
    model.free_memory()
    before = backend.simulation.reserved[0]
    for after in (1, 2, 3):
        model.fit(*data, batch_size=16, verbose=0, callbacks=[After(stop, after)])
        gc.collect()
        assert backend.simulation.reserved[0] <= before + 1000

    def interrupt(model):
        raise KeyboardInterrupt

    for after in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt) as held:  # with all frames of the training
            model.fit(*data, batch_size=16, verbose=0, callbacks=[After(interrupt, after)])
        backend.release()
        assert backend.simulation.reserved[0] <= before + 200_000, held  # the data are in those frames


def test_memory_of_the_default_pool_serves_the_first_step(simulated):
    """A separate pool cannot have what lies there unused."""
    backend = simulated(0)
    xp, data = backend.xp, images_and_labels(64, 16)
    model = wide(backend)
    backend.release()
    backend.simulation.capacity = 60_000_000
    xp.empty(backend.simulation.capacity - backend.simulation.reserved[0] - 100_000, dtype="uint8")  # unused at once
    model.fit(*data, batch_size=16, verbose=0)
    assert not model.why_not_captured


def test_datasets_of_training_and_validation_share_one_decision(simulated, monkeypatch):
    """Together they take half of what is free, and leave room for a step; training data go first."""
    backend = simulated(0)
    monkeypatch.setattr(backend.xp.cuda.runtime, "memGetInfo", lambda: (10_000_000, 10_000_000))
    backend.release()

    def stays(*megabytes, step=0):
        data = [np.zeros(int(1e6 * size), "uint8") for size in megabytes]
        return [hasattr(brought, "ndim") for brought in backend.upload(*data, step=step)]

    assert stays(3, 1.9) == [True, True]
    backend.release()
    assert stays(3, 2.1) == [True, False]  # each alone would fit
    backend.release()
    assert stays(6, 2) == [False, True]
    backend.release()
    assert stays(3, 1, step=8_000_000) == [False, True]
    assert stays(3, step=20_000_000) == [False]
    there = backend.from_host(np.zeros(9_000_000, "uint8"))
    assert backend.upload(there)[0] is there


def test_fit_decides_where_both_datasets_lie(simulated, monkeypatch):
    backend, seen = simulated(0), []
    upload = backend.upload
    monkeypatch.setattr(backend, "upload", lambda *data, **step: seen.append((data, step)) or upload(*data, **step))
    x, y = images_and_labels()
    model = small(backend)
    model.fit(x, y, batch_size=6, validation_data=(x[:9], y[:9]), verbose=0)
    (((training, validation), step),) = seen
    assert (len(training), len(validation)) == (48, 9)
    assert step == {"step": 6 * model.bytes_per_sample()}


# --- threads ----------------------------------------------------------------------------------------


def test_training_runs_in_two_threads_give_the_bits_they_give_alone(simulated):
    """They go step by step with each other, so both are warmed up before either captures."""
    backend = simulated(0)
    alone = [outcome(small(backend, seed=seed)) for seed in (1, 2)]
    for _ in range(2):
        barrier = threading.Barrier(2)
        together = After(lambda model, barrier=barrier: barrier.wait(20), *range(1, 17))
        with ThreadPoolExecutor(2) as pool, warnings.catch_warnings():
            warnings.simplefilter("error")
            models = [small(backend, seed=seed) for seed in (1, 2)]
            waiting = [After(together.function, *together.steps) for _ in models]
            tasks = [pool.submit(outcome, model, callbacks=[wait]) for model, wait in zip(models, waiting, strict=True)]
            assert [task.result() for task in tasks] == alone
        assert not any(model.why_not_captured for model in models)


def test_tf32_rounds_in_the_thread_that_asked_for_it(simulated, monkeypatch):
    backend, compute_types = simulated(0), {}
    library = backend._cublas._library
    product = library.cublasGemmEx

    def watched(*arguments):
        compute_types.setdefault(threading.current_thread().name, set()).add(int(arguments[-2]))
        return product(*arguments)

    monkeypatch.setattr(library, "cublasGemmEx", watched)
    x, barrier = np.ones((3, 4), "float32"), threading.Barrier(2)

    def multiply(tf32):
        threading.current_thread().name = f"tf32 {tf32}"
        a = backend.from_host(x)
        with backend.execution_context(sharded=False, allow_tf32=tf32):
            barrier.wait(20)
            backend.dense(a, a.T, None)
            barrier.wait(20)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(multiply, (True, False)))
    assert compute_types == {"tf32 True": {77}, "tf32 False": {68}}


def test_cublas_handles_are_per_thread_and_reused(simulated):
    backend, handles, barrier = simulated(0), [], threading.Barrier(3)

    def multiply():
        a = backend.from_host(np.ones((3, 4), "float32"))
        barrier.wait(20)
        for _ in range(20):
            assert backend.to_host(backend.dense(a, a.T, None)).tolist() == [[4.0] * 3] * 3
        handles.append(backend._cublas.handle)
        barrier.wait(20)

    for _ in range(2):
        threads = [threading.Thread(target=multiply) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(handles) == 6
    assert len(set(map(id, handles))) == 3
    assert len({handle.workspace.ptr for handle in handles}) == 3


def test_cublas_of_cupys_version_is_loaded(simulated):
    loaded = Importer(simulated.simulation).load("gpucnn.backends.cupy.cublas").loaded
    maps = """
7f00-7f01 r-xp 00000000 08:01 1  /opt/torch/nvidia/cublas/lib/libcublas.so.12.4.5
7f01-7f02 r-xp 00000000 08:01 2  /opt/torch/nvidia/cublas/lib/libcublasLt.so.13
7f02-7f03 r-xp 00000000 08:01 3  /home/a user/nvidia/lib/libcublas.so.13.1.0
7f02-7f03 r--p 00000000 08:01 3  /home/a user/nvidia/lib/libcublas.so.13.1.0
7f03-7f04 r-xp 00000000 08:01 4  /gone/libcublas.so.11 (deleted)
7f04-7f05 rw-p 00000000 00:00 0
"""
    assert loaded(maps, 13) == ["/home/a user/nvidia/lib/libcublas.so.13.1.0"]
    assert loaded(maps, 12) == ["/opt/torch/nvidia/cublas/lib/libcublas.so.12.4.5"]
    assert loaded(maps, 1) == loaded(maps, 11) == []


# --- devices ----------------------------------------------------------------------------------------


def deep(backend):
    layers = [
        *(L.Normalization(0.4, 0.3), L.Conv2D(4, 3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU()),
        *(L.MaxPool2D(2), L.Dropout(0.3), L.Residual([L.Conv2D(4, 3, padding="same"), L.GELU()]), L.Flatten()),
        *(L.Dense(4), L.Softmax()),
    ]
    return gpucnn.Model(layers, (6, 6, 2), backend=backend)


def test_model_on_the_second_gpu_leaves_the_thread_on_the_first(simulated, tmp_path):
    """Whatever a user calls: arrays lie on the second, the results are those of the first, and the thread stays."""
    x, y = images_and_labels()
    results = []
    for backend in (simulated(0), simulated(1)):
        found = []

        def note(result, backend=backend, found=found):
            found.append(result)
            assert backend.simulation.device == 0, len(found)
            assert not backend.simulation.outer_devices

        model = deep(backend)
        note(model.compile(optimizers.Muon(0.02, clip_norm=1.0, groups=[Group("conv2d.*", 0.5, train_epochs=1)])).jit)
        options = {"validation_data": (x, y), "augment": [AlternatingFlip(), Translate(1)], "verbose": 0}
        average = callbacks.MovingAverage(0.9)
        history = model.fit(x, y, epochs=2, batch_size=8, callbacks=[average], **options).history
        note([history[what] for what in ("loss", "val_loss", "accuracy")])
        note(model.compile("adam").fit(x, y, batch_size=9, verbose=0, shuffle=False).history["loss"])
        note(model.why_not_captured)
        note(model.evaluate(x, y, tta="flip"))
        note(model.predict(x, tta="flip+shift").tobytes())
        note(float(model.train_on_batch(x, y)))
        outputs, backward = model.forward(x, train=True)
        backward(outputs)
        note(backend.to_host(outputs).tobytes())
        model.zero_grad()
        note(model.freeze("conv2d").unfreeze().parameters().keys())
        note(model.recalibrate_batch_norm(x).state_dict().keys())
        note(len(model.profile(x, y, repeats=1).layers))
        note(gpucnn.parity(model, x, y).agrees)
        model.load_state_dict(model.state_dict())
        folder = tmp_path / f"{backend.device}"
        model.fit(x, y, batch_size=16, verbose=0, checkpoints=folder)
        model.save(tmp_path / "model.safetensors")
        note(state_of(gpucnn.load(tmp_path / "model.safetensors", backend=backend)))
        with_whitening = [L.Conv2D(16, 2), L.Flatten(), L.Dense(4)]
        note(whiten(gpucnn.Model(with_whitening, (6, 6, 2), backend=backend), x).filters)
        assert {parameter.value.device.id for parameter in model.parameters().values()} == {backend.device}
        note(state_of(model.to("numpy").to(backend, "float16")))
        results.append(found)
    assert results[0] == results[1]


def test_models_on_two_gpus_in_one_process(simulated):
    backends = simulated(0), simulated(1)
    expected = [outcome(small(backend, seed=seed)) for seed, backend in enumerate(backends)]
    with ThreadPoolExecutor(2) as pool:  # where a thread begins on the first GPU
        tasks = [pool.submit(outcome, small(backend, seed=seed)) for seed, backend in enumerate(backends)]
        assert [task.result() for task in tasks] == expected
    moved = small(backends[0], seed=1).to(backends[1])
    assert outcome(moved) == expected[1]
    inner = []
    nested = After(lambda model: inner.append(outcome(small(backends[1], seed=1), epochs=2)), 4)
    assert outcome(small(backends[0]), callbacks=[nested]) == expected[0]
    assert inner == [expected[1]]


def test_memory_is_that_of_the_models_gpu(simulated):
    first, second = simulated(0), simulated(1)
    second.release()
    before = second.memory_info()[0]
    there = second.xp.zeros(4)
    with second.on_device():
        there = second.xp.zeros(1_000_000, dtype="uint8")
    assert first.memory_info()[0] > second.memory_info()[0]
    assert before - second.memory_info()[0] == there.nbytes
    del there
    second.release()
    assert second.memory_info()[0] == before
