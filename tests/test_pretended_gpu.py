"""The real CuPy computes on a pretended GPU what the other backends compute; builds it first, from PyPI."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "pretended_gpu/run.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64") or shutil.which("g++") is None,
        reason="a pretended GPU needs Linux on x86-64 and g++",
    ),
]


def run(*command, **options):
    return subprocess.run([sys.executable, RUN, *command], capture_output=True, text=True, check=False, **options)


def test_the_engine_through_the_real_cupy():
    said = run(
        "pytest", "-q", "--backend", "cupy", "-p", "no:cacheprovider", "tests/test_losses.py", "tests/test_random.py"
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
def test_what_cupy_refuses_on_a_gpu_is_refused(mistake, answer):
    said = run("python", "-c", f"import cupy; {mistake}")
    assert said.returncode == 1
    assert answer in said.stderr


def test_work_is_put_off_until_somebody_waits():
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
