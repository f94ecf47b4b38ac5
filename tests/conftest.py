"""What all tests share: the backends of this machine, and `--backend`, which makes a missing one a failure."""

import numpy as np
import pytest

from gpucnn.backends import Backend, get_backend
from gpucnn.errors import BackendUnavailable
from tests.strict_backend import StrictBackend

NAMES = ("portable", "numpy", "strict", "cupy")


def make_backend(name):
    return {"portable": Backend, "strict": StrictBackend}.get(name, lambda: get_backend(name))()


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
    asked = config.getoption("--backend") or []
    missing = why_no_gpu()
    if "cupy" in asked and missing:
        raise pytest.UsageError(f"--backend cupy: {missing}")
    config.backends = asked or [name for name in NAMES if name != "cupy" or not missing]


def pytest_report_header(config):
    lines = [f"backends: {', '.join(config.backends)}"]
    if "cupy" not in config.backends:
        lines.append(f"not tested on a GPU: {why_no_gpu() or 'not asked for'}")
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
