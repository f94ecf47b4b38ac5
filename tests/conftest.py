"""What all tests share: the backends of this machine, and `--backend`, which makes a missing one a failure."""

import os
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from gpucnn import __main__
from gpucnn.backends.numpy import blas
from tests.helpers import BACKENDS, GPUS, SIMULATED, make_backend, why_missing, why_no_gpu, write_digits


def pytest_addoption(parser):
    parser.addoption(
        "--backend", choices=BACKENDS, action="append", help="test only this backend, and fail where it is unavailable"
    )


def pytest_configure(config):
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="gpucnn-tests-")  # what commands remember of runs
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts jobs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):  # xdist's workers share the cores: threads of BLAS would spin, and wait
        for controller in ThreadpoolController().select(user_api="blas").lib_controllers:
            blas.Library(controller).set(1)
    asked = config.getoption("--backend") or []
    for name in asked:
        if missing := why_missing(name):
            raise pytest.UsageError(f"--backend {name}: {missing}")
    config.backends = asked or [name for name in BACKENDS if not why_missing(name)]


def pytest_report_header(config):
    lines = [f"backends: {', '.join(config.backends)}"]
    if "cupy" not in config.backends:
        lines.append(f"not tested on a GPU: {why_no_gpu() or 'not asked for'}")
    if why_missing(SIMULATED):
        lines.append(f"CUDA kernels not tested on the host: {why_missing(SIMULATED)}")
    return lines


def pytest_generate_tests(metafunc):
    if "backend_name" in metafunc.fixturenames:
        metafunc.parametrize("backend_name", metafunc.config.backends, scope="session")
    if "gpu_name" in metafunc.fixturenames:
        names = [name for name in GPUS if name in metafunc.config.backends]
        metafunc.parametrize("gpu_name", names or [pytest.param(SIMULATED, marks=pytest.mark.skip("not asked for"))])


@pytest.fixture
def backend(backend_name):
    return make_backend(backend_name)


@pytest.fixture
def gpu(gpu_name):
    return make_backend(gpu_name)


@pytest.fixture
def needs_simulation(request):
    """Skip what looks into the simulated CuPy where that is not tested."""
    if SIMULATED not in request.config.backends:
        pytest.skip(f"looks into the simulation, which is not tested here: {why_missing(SIMULATED) or 'not asked for'}")


@pytest.fixture
def simulated(needs_simulation):
    return make_backend(SIMULATED)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    """Tests choose their backend themselves."""
    monkeypatch.delenv("GPUCNN_BACKEND", raising=False)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with a small MNIST, made of synthetic digits."""
    return write_digits(tmp_path_factory.mktemp("data") / "mnist", 2000, 300)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; return its exit status, its output and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPUCNN_DATA", raising=False)
    monkeypatch.setenv("GPUCNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpucnn", *map(str, arguments)])
        status = 0
        try:
            __main__.main()
        except SystemExit as stop:
            status = stop.code
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """The folder of a run that has learned its digits."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    command = [sys.executable, "-m", "gpucnn", "train", "--data", "mnist", "--data-dir", digits, "--run-dir", folder]
    done = subprocess.run(
        [*command, "--epochs", "6", "--batch-size", "32"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("test accuracy ")
    return folder
