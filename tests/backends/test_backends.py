"""Choosing a backend, the messages where one is unavailable, and the host/device boundary."""

import logging
import sys
import types

import numpy as np
import pytest

import gpucnn
from gpucnn import backends, layers
from gpucnn.errors import BackendUnavailable, ConfigurationError
from gpucnn.testing.strict import HostDeviceMixError, StrictBackend


@pytest.fixture
def forgetful(monkeypatch):
    """A process that has not looked for a GPU yet."""
    monkeypatch.setattr(backends, "_auto", None)
    monkeypatch.setattr(backends, "_instances", {"numpy": backends._instances["numpy"]})


@pytest.fixture
def without_cupy(monkeypatch, forgetful):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes the import fail
    monkeypatch.delitem(sys.modules, "gpucnn.backends.cupy", raising=False)


@pytest.fixture
def with_cupy_but_no_gpu(monkeypatch, forgetful):
    """CuPy without a driver: it imports, and the first use of the device raises."""

    class CUDARuntimeError(RuntimeError):
        pass

    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

        def __exit__(self, *_):
            pass

    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(Device=Device)
    cupy.ndarray = np.ndarray
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", types.SimpleNamespace(empty_pinned=None))
    monkeypatch.delitem(sys.modules, "gpucnn.backends.cupy", raising=False)
    yield
    sys.modules.pop("gpucnn.backends.cupy", None)


def test_backend_is_created_once_per_process():
    assert backends.get_backend("numpy") is backends.get_backend("numpy")
    backend = StrictBackend()
    assert backends.get_backend(backend) is backend


def test_backend_name_in_old_files():
    assert backends.get_backend("reference") is backends.get_backend("reference")
    assert backends.get_backend("reference").name == "reference"


def test_backend_argument_precedes_block_and_environment(monkeypatch, without_cupy):
    strict = StrictBackend()
    assert backends.get_backend().name == "numpy"
    with gpucnn.use_backend(strict) as used:
        assert used is strict
        assert backends.get_backend() is strict
        assert backends.get_backend("auto") is strict
        assert gpucnn.Model([layers.Flatten()], (2, 2, 1)).backend is strict
        assert backends.get_backend("numpy").name == "numpy"
    monkeypatch.setenv("GPUCNN_BACKEND", "")
    assert backends.get_backend().name == "numpy"
    monkeypatch.setenv("GPUCNN_BACKEND", "cupy")
    with pytest.raises(BackendUnavailable):
        backends.get_backend()
    with gpucnn.use_backend("numpy"):
        assert backends.get_backend().name == "numpy"


def test_using_block_ends_after_an_error():
    with pytest.raises(ZeroDivisionError), gpucnn.use_backend(StrictBackend()):
        _ = 1 / 0
    assert backends.get_backend("auto").name != "strict"


@pytest.mark.parametrize("name", ["torch", "cupy:x", "cupy:", "cupy:-1", "numpy:1"])
def test_backend_with_an_unknown_name_is_refused(name, forgetful, without_cupy):
    with pytest.raises(ConfigurationError, match=f'there is no backend named \'{name}\'; there are "auto", "numpy"'):
        backends.get_backend(name)


def test_auto_is_numpy_without_cupy_and_cupy_says_what_to_install(without_cupy, caplog):
    with caplog.at_level(logging.INFO, logger="gpucnn"):
        assert backends.get_backend("auto").name == "numpy"
        assert backends.get_backend("auto").name == "numpy"
    assert [record.message for record in caplog.records] == ["gpucnn computes with NumPy: CuPy is not installed"]
    with pytest.raises(BackendUnavailable, match=r"CuPy cannot be imported .* `pip install 'cupy-cuda13x\[ctk\]'`"):
        backends.get_backend("cupy")


def test_auto_without_a_gpu_warns_once_and_cupy_raises(with_cupy_but_no_gpu, caplog):
    with caplog.at_level(logging.WARNING, logger="gpucnn"):
        assert backends.get_backend("auto").name == "numpy"
        assert backends.get_backend("auto").name == "numpy"
    assert len(caplog.records) == 1
    assert "no kernel runs on GPU 0 (CUDARuntimeError: cudaErrorInsufficientDriver" in caplog.records[0].message
    with pytest.raises(BackendUnavailable, match=r"no kernel runs on GPU 1 .* `nvidia-smi`"):
        backends.get_backend("cupy:1")


def test_cupy_errors_are_shortened(monkeypatch, forgetful, with_cupy_but_no_gpu):
    def refuses(device):
        raise ImportError("\nlibcublasLt.so.13: no such file" + ", no such file" * 100 + "\n  listdir('/usr'):\n")

    monkeypatch.setitem(sys.modules, "gpucnn.backends.cupy", types.SimpleNamespace(CupyBackend=refuses))
    with pytest.raises(BackendUnavailable) as caught:
        backends.get_backend("cupy")
    assert "no kernel runs on GPU 0 (ImportError: libcublasLt.so.13: no such file, no such" in str(caught.value)
    assert "…); see that `nvidia-smi` lists the GPU" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_strict_backend_refuses_host_arrays():
    """The mock device itself: mixing host and device arrays must raise."""
    backend = StrictBackend()
    host, device = np.ones((2, 2)), backend.from_host(np.ones((2, 2)))
    for mistake in (
        lambda: device + host,
        lambda: host + device,
        lambda: host @ device,
        lambda: backend.xp.maximum(host, 0),
        lambda: np.asarray(device),
        lambda: np.maximum(device, 0),
        lambda: device.__setitem__(0, host[0]),
        lambda: backend.to_host(host),
    ):
        with pytest.raises(TypeError):
            mistake()
    with pytest.raises(HostDeviceMixError, match="mixed with a device array"):
        device *= host
    kept = backend.to_host(device)
    kept[...] = 7
    assert backend.to_host(device).max() == 1


def test_strict_backend_catches_a_layer_that_mixes_in_host_arrays():
    class Forgetful(layers.Layer):
        def forward(self, x, *, train):
            return np.maximum(x, 0), lambda dy: dy

    try:
        model = gpucnn.Model([Forgetful()], (3,), backend=StrictBackend())
        with pytest.raises(TypeError):
            model.predict(np.ones((2, 3), "float32"))
        assert gpucnn.Model([Forgetful()], (3,), backend="numpy").predict(np.ones((2, 3), "float32")).sum() == 6
    finally:
        layers.Layer.registry.pop("Forgetful")


def test_backends_describe_themselves():
    assert backends.get_backend("numpy").describe() == f"numpy (NumPy {np.__version__})"
    assert repr(backends.get_backend("numpy")) == "<NumpyBackend 'numpy'>"


def test_backend_setting_out_of_range_is_not_a_missing_gpu(monkeypatch, with_cupy_but_no_gpu):
    def refuses(device):
        raise ConfigurationError("GPUCNN_WORKSPACE_MB must be a number")

    monkeypatch.setitem(sys.modules, "gpucnn.backends.cupy", types.SimpleNamespace(CupyBackend=refuses))
    for name in ("cupy", "auto"):
        with pytest.raises(ConfigurationError, match="GPUCNN_WORKSPACE_MB must be a number"):
            backends.get_backend(name)
