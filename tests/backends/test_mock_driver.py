"""The real CuPy on a mock driver gives the results of the other backends; it is built first, from PyPI.

Below, the driver's modes: little memory, two GPUs, and that it ends a process that accesses memory which was freed or
is on another GPU, and fails where two threads use one cuBLAS handle.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import OF_CUPY

RUN = Path(__file__).parents[1] / "mock_driver/run.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64") or shutil.which("g++") is None,
        reason="the mock driver needs Linux on x86-64 and g++",
    ),
]


def run(*command, **settings):
    environment = {**os.environ, **settings}
    return subprocess.run([sys.executable, RUN, *command], capture_output=True, text=True, check=False, env=environment)


def said_by(program, **settings):
    """Return the output of a program, which must succeed without a message of the driver."""
    said = run("python", "-c", PREPARED + program, **settings)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "mock GPU:" not in said.stderr
    return said.stdout.splitlines()


PREPARED = """
import gc, threading, warnings
from concurrent.futures import ThreadPoolExecutor
import cupy, numpy as np
from gpucnn import Model, callbacks, layers as L, optimizers
from gpucnn.backends import get_backend

def data(count, side):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, side, side, 2)).astype(np.uint8), generator.integers(0, 4, count)

def network(backend, side, seed=0, jit=True):
    layers = [L.Conv2D(8, 3, padding="same"), L.BatchNorm(), L.ReLU(), L.Conv2D(8, 3, padding="same"), L.ReLU()]
    layers += [L.MaxPool2D(), L.Dropout(0.3), L.Flatten(), L.Dense(4), L.Softmax()]
    model = Model(layers, (side, side, 2), backend=backend, seed=seed)
    return model.compile(optimizers.SGD(0.05, momentum=0.9), jit=jit)

def fitted(model, side, **options):
    loss = model.fit(*data(64, side), epochs=2, batch_size=16, verbose=0, **options).history["loss"]
    return loss, b"".join(array.tobytes() for array in model.state_dict().values())
"""


def test_engine_through_the_real_cupy():
    said = run(
        "pytest",
        "-q",
        "--backend",
        "cupy",
        "-p",
        "no:cacheprovider",
        "tests/layers/test_losses.py",
        "tests/backends/test_random.py",
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert " passed" in said.stdout


@pytest.mark.parametrize(
    ("mistake", "answer"),
    [
        ("cupy.arange(3) + cupy.asnumpy(cupy.arange(3))", "Unsupported type"),
        ("cupy.cuda.Stream.null.begin_capture()", "cannot capture"),
        ("cupy.empty(2**34)", "Out of memory"),
    ],
)
def test_mock_driver_refuses_what_cupy_refuses(mistake, answer):
    said = run("python", "-c", f"import cupy; {mistake}")
    assert said.returncode == 1
    assert answer in said.stderr


def test_mock_driver_defers_work_until_a_wait():
    program = """
import cupy, cupyx, numpy as np
stream, host = cupy.cuda.Stream(non_blocking=True), cupyx.empty_pinned(4, np.float32)
host[:] = 1
with stream:
    there = cupy.empty(4, np.float32)
    there.set(host, stream=stream)
host[:] = 2  # too early
cupy.cuda.Device().synchronize()
print(cupy.asnumpy(there).tolist())
"""
    assert run("python", "-c", program).stdout.strip() == "[2.0, 2.0, 2.0, 2.0]"


def test_graph_touches_no_freed_memory():
    """From ample memory down to too little: columns are halved in the step before, and in the graph as well."""
    program = """
backend = get_backend("cupy")
ample = fitted(network(backend, 16), 16)[0]
for room in (2_600_000, *range(1_300_000, 700_000, -50_000)):
    model, (x, y) = network(backend, 16), data(64, 16)
    backend.release()
    taken = cupy.cuda.Memory(backend.memory_info()[0] - room)
    try:
        loss = fitted(model, 16)[0]
        print("as ample" if np.allclose(loss, ample, rtol=1e-4) else loss, model.why_not_captured or "captured")
    except MemoryError:
        print("out of memory")
    del taken
"""
    said = said_by(program, MOCK_MEMORY="60000000")
    assert said[0] == "as ample captured"
    assert said[-1] == "out of memory"
    assert set(said) <= {"as ample captured", "out of memory"}, said
    assert said.count("as ample captured") >= 5


def test_capture_without_memory_goes_on_eagerly():
    program = """
class Growing(L.Layer):
    capturable = True
    def forward(self, x, *, train):
        passes.append(1)
        cupy.empty(500_000 + 100_000_000 * (len(passes) == 2), np.uint8)
        return x, lambda dy: dy

states = []
for jit in (True, False):
    passes = [] if jit else [1, 1]
    model = Model([L.Flatten(), Growing(), L.Dense(4), L.Softmax()], (16, 16, 2), backend="cupy")
    model.compile(optimizers.Adam(0.01), jit=jit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        states.append(fitted(model, 16))
    print([str(warning.message)[:60] for warning in caught], model.why_not_captured[:60])
print(states[0] == states[1])
"""
    captured, eager, same = said_by(program, MOCK_MEMORY="90000000")
    assert captured.startswith("['training steps cannot be captured")
    assert "MemoryError: there is no room for" in captured
    assert (eager, same) == ("[] ", "True")


def test_gpus_in_one_process():
    program = """
backends = get_backend("cupy"), get_backend("cupy:1")
def here():
    return cupy.cuda.runtime.getDevice()
print(here(), [backend.from_host(np.zeros(4)).device.id for backend in backends])
results = []
for backend in (*backends, *backends):
    model = network(backend, 8)
    results.append((fitted(model, 8, validation_data=data(20, 8)), model.predict(data(20, 8)[0]).tobytes()))
    print(here(), {parameter.value.device.id for parameter in model.parameters().values()}, model.why_not_captured)
with ThreadPoolExecutor(2) as pool:
    others = list(pool.map(lambda backend: fitted(network(backend, 8), 8, validation_data=data(20, 8)), backends))
print(here(), results[0] == results[1] == results[2] == results[3], [other == results[0][0] for other in others])
moved = network(backends[0], 8).to(backends[1])
print(here(), fitted(moved, 8, validation_data=data(20, 8)) == results[0][0])
"""
    assert said_by(program, MOCK_DEVICES="2") == [
        "0 [0, 1]",
        *("0 {0} ", "0 {1} ", "0 {0} ", "0 {1} "),
        "0 True [True, True]",
        "0 True",
    ]


def test_training_runs_in_two_threads():
    """Their bits are those that each gives alone, and each is captured; in some rounds they go step by step."""
    program = """
backend = get_backend("cupy")
alone = [fitted(network(backend, 8, seed), 8) for seed in (1, 2)]

class Waits(callbacks.Callback):
    def on_step_end(self, model, step):
        if barrier is not None:
            barrier.wait(60)

for number in range(6):
    barrier = threading.Barrier(2) if number % 2 else None
    models = [network(backend, 8, seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda model: fitted(model, 8, callbacks=[Waits()]), models))
    print(found == alone, [model.why_not_captured for model in models])
"""
    assert said_by(program) == ["True ['', '']"] * 6


def test_garbage_is_not_collected_during_capture():
    program = """
seen = []
gc.callbacks.append(lambda phase, info: seen.append(cupy.cuda.get_current_stream().is_capturing()))
backend = get_backend("cupy")
gc.set_threshold(1)
model = network(backend, 8)
fitted(model, 8)
print(len(seen) > 100, any(seen), repr(model.why_not_captured))
"""
    assert said_by(program) == ["True False ''"]


@pytest.mark.parametrize(
    ("mistake", "answer"),
    [
        (
            """
pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
with cupy.cuda.using_allocator(pool.malloc), stream:
    cupy.zeros(1000) + 1
    stream.begin_capture()
    cupy.add(cupy.zeros(1000), 1)
    graph = stream.end_capture()
pool.free_all_blocks()
graph.launch()
""",
            "touches memory that was freed",
        ),
        ("with cupy.cuda.Device(1): there = cupy.zeros(4)\nthere + 1", "is different from the current device"),
        (
            """
with cupy.cuda.Device(1): there = cupy.zeros(4)
cupy.RawKernel('extern "C" __global__ void f(double* x) { x[0] = 1; }', "f")((1,), (1,), (there,))
""",
            "touches memory that lies on another device",
        ),
        (
            """
backend = get_backend("cupy")
a = cupy.ones((2, 2), np.float32)
backend._cublas._thread = type("Shared", (), {"loan": (backend._cublas.handle, backend._cublas._thread.loan)[1]})()
with ThreadPoolExecutor(1) as pool: pool.submit(backend.dense, a, a, None).result()
""",
            "by a thread that has not set its stream",
        ),
    ],
    ids=["freed memory", "another device", "a kernel on another device", "another thread"],
)
def test_mock_driver_finds_planted_mistakes(mistake, answer):
    ending = "\ncupy.cuda.Device().synchronize()"
    said = run("python", "-c", PREPARED + mistake + ending, MOCK_DEVICES="2")
    assert said.returncode != 0
    assert answer in said.stderr


def test_kernels_compile_with_the_tested_options():
    program = """
from cupy.cuda import compiler
compile_, seen = compiler._NVRTCProgram.compile, []
def tracing_compile(program, options=(), *more):
    seen.append(options)
    return compile_(program, options, *more)
compiler._NVRTCProgram.compile = tracing_compile
get_backend("cupy")
ours = [options for options in seen if any(option.startswith("-DBITS") for option in options)]
added = {option for options in ours for option in options}
print(*sorted(option for option in added if not option.startswith(("-D", "-I", "-std", "-arch"))))
"""
    (options,) = said_by(program, CUPY_CACHE_IN_MEMORY="1")
    assert options.split() == sorted(OF_CUPY)
