"""Which backend computes: by argument, else `use_backend`, else `GPUCNN_BACKEND`, else the best this machine has."""

import contextlib
import logging
import os
import textwrap
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.util import find_spec

from gpucnn.backends.base import Array, Backend
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.backends.window import Window
from gpucnn.errors import BackendUnavailable, ConfigurationError

__all__ = ["Array", "Backend", "NumpyBackend", "Window", "auto_choice", "get_backend", "in_short", "use_backend"]

NAMES = (
    'there are "auto", "numpy", "cupy", "cupy:N" for the GPU of number N, and "portable" for the kernels\' plain text'
)

_chosen: ContextVar[str | None] = ContextVar("gpucnn_backend", default=None)
_made: dict[str, Backend] = {"numpy": NumpyBackend(), "portable": Backend()}
_auto: tuple[str, str] | None = None


def get_backend(name: "str | Backend | None" = None) -> Backend:
    """Return a backend, made once a process: `"auto"`, `"numpy"`, `"cupy"`, `"cupy:1"`, `"portable"`.

    Without a name, or with `"auto"`, the `use_backend` block decides, else the environment variable
    `GPUCNN_BACKEND`, else what the machine has: the GPU if CuPy computes on one, else NumPy. A backend that is
    passed in is returned.

    Raises:
        BackendUnavailable: `"cupy"` was asked for by name and cannot be had; says why and what mends it.
        ConfigurationError: a name that no backend has.
    """
    if isinstance(name, Backend):
        return name
    if name is None or name == "auto":
        name = _chosen.get() or os.environ.get("GPUCNN_BACKEND") or "auto"
    if name == "auto":
        name = auto_choice()[0]
    if name not in _made:
        _made[name] = _make_cupy(name)
    return _made[name]


@contextlib.contextmanager
def use_backend(name: "str | Backend") -> Iterator[Backend]:
    """Use a backend for every model that is made in the block without naming one."""
    backend = get_backend(name)
    _made.setdefault(backend.name, backend)
    token = _chosen.set(backend.name)
    try:
        yield backend
    finally:
        _chosen.reset(token)


def auto_choice() -> tuple[str, str]:
    """Return the backend that `"auto"` stands for and why; asked once a process, and said once in the log."""
    global _auto
    if _auto is None:
        log = logging.getLogger("gpucnn")
        if find_spec("cupy") is None:
            _auto = "numpy", "CuPy is not installed"
            log.info("gpucnn computes with NumPy: %s", _auto[1])
        else:
            try:
                _made["cupy"] = _make_cupy("cupy")
                _auto = "cupy", "CuPy computes on a GPU here"
            except BackendUnavailable as error:
                _auto = "numpy", str(error)
                log.warning("gpucnn computes with NumPy: %s", error)
    return _auto


def _make_cupy(name: str) -> Backend:
    """Make the CuPy backend for `"cupy"` or `"cupy:N"`, or say why it cannot be had."""
    device = _device_number(name)
    try:
        from gpucnn.backends.cupy import CupyBackend
    except ImportError as error:
        raise BackendUnavailable(
            f"backend {name!r}: CuPy cannot be imported ({error}); an NVIDIA GPU with a CUDA 13 driver needs "
            "`pip install 'cupy-cuda13x[ctk]'`, an older driver `pip install 'cupy-cuda12x[ctk]'`; "
            'without a GPU use backend="numpy"'
        ) from error
    try:
        return CupyBackend(device)
    except ConfigurationError:  # a setting that makes no sense is not a GPU that cannot be had
        raise
    except Exception as error:  # CuPy has many ways to say that a GPU does not work; all mean the same here
        raise BackendUnavailable(
            f"backend {name!r}: CuPy is installed, but no kernel runs on GPU {device} "
            f"({type(error).__name__}: {first_line(error)}); see that `nvidia-smi` lists the GPU and that the CuPy "
            'wheel fits its driver (`gpucnn doctor` says which one does), or use backend="numpy"'
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says: CuPy lists whole folders where a library is missing."""
    return textwrap.shorten(str(error).strip().partition("\n")[0], 300, placeholder=" …")


def _device_number(name: str) -> int:
    family, _, number = name.partition(":")
    if family != "cupy" or (":" in name and not number.isdecimal()):
        raise ConfigurationError(f"there is no backend named {name!r}; {NAMES}")
    return int(number or 0)
