"""What all tests share: the backends of this machine, and `--backend`, which makes a missing one a failure."""

import os
import tempfile

import numpy as np
import pytest

from gpucnn.backends import Backend, get_backend
from gpucnn.errors import BackendUnavailable
from gpucnn.testing.strict import StrictBackend
from tests import host_kernels, simulated_cupy

SIMULATED = "cupy (simulated)"  # the CuPy backend over NumPy, with its kernels compiled for the host
NAMES = ("reference", "numpy", "strict", SIMULATED, "cupy")


def make_backend(name):
    made = {"reference": Backend, "strict": StrictBackend, SIMULATED: lambda: simulated_cupy.load_backend()()}
    return made.get(name, lambda: get_backend(name))()


def why_missing(name):
    return {"cupy": why_no_gpu, SIMULATED: host_kernels.why_not}.get(name, lambda: "")()


def why_no_gpu():
    try:
        get_backend("cupy")
    except BackendUnavailable as error:
        return str(error)
    return ""


def pytest_addoption(parser):
    parser.addoption(
        "--backend", choices=NAMES, action="append", help="test only this backend, and fail where it cannot be had"
    )


def pytest_configure(config):
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="gpucnn-tests-")  # what commands remember of runs
    asked = config.getoption("--backend") or []
    for name in asked:
        if missing := why_missing(name):
            raise pytest.UsageError(f"--backend {name}: {missing}")
    config.backends = asked or [name for name in NAMES if not why_missing(name)]


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


@pytest.fixture
def backend(backend_name):
    return make_backend(backend_name)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    """Tests choose their backend themselves."""
    monkeypatch.delenv("GPUCNN_BACKEND", raising=False)
