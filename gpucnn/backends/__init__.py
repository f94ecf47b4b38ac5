"""Which backend computes: by argument, else `use_backend`, else `GPUCNN_BACKEND`, else the best this machine has."""

import contextlib
import logging
import os
import textwrap
from collections.abc import Iterator
from contextvars import ContextVar
from importlib.util import find_spec

from gpucnn.backends.base import Backend
from gpucnn.backends.numpy import NumpyBackend
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window
from gpucnn.errors import BackendUnavailable, ConfigurationError

__all__ = ["Array", "Backend", "NumpyBackend", "Window", "auto_choice", "first_line", "get_backend", "use_backend"]

KNOWN = 'there are "auto", "numpy", "cupy", "cupy:N" for GPU number N, and "reference" for the reference implementation'

_selected: ContextVar[str | None] = ContextVar("gpucnn_backend", default=None)
_instances: dict[str, Backend] = {"numpy": NumpyBackend(), "reference": Backend()}
_auto: tuple[str, str] | None = None


def get_backend(name: "str | Backend | None" = None) -> Backend:
    """Return the backend of a name, one instance per process: `"auto"`, `"numpy"`, `"cupy"`, `"cupy:1"`, `"reference"`.

    Without a name, or with `"auto"`, the `use_backend` block decides, else the environment variable
    `GPUCNN_BACKEND`, else what the machine has: the GPU if CuPy computes on one, else NumPy. A backend that is
    passed in is returned.

    Raises:
        BackendUnavailable: `"cupy"` was requested by name and is unavailable; says why and how to fix it.
        ConfigurationError: an unknown name.

    Example:
        >>> get_backend("numpy").name
        'numpy'
    """
    if isinstance(name, Backend):
        return name
    if name is None or name == "auto":
        name = _selected.get() or os.environ.get("GPUCNN_BACKEND") or "auto"
    if name == "auto":
        name = auto_choice()[0]
    if name == "portable":  # the name of the reference backend in files written before
        name = "reference"
    if name not in _instances:
        _instances[name] = _make_cupy(name)
    return _instances[name]


Backend.by_name = staticmethod(get_backend)


@contextlib.contextmanager
def use_backend(name: "str | Backend") -> Iterator[Backend]:
    """Use a backend for every model that is created in the block without naming one.

    Example:
        >>> with use_backend("numpy"):
        ...     print(networks.lenet().backend.name)
        numpy
    """
    backend = get_backend(name)
    _instances.setdefault(backend.name, backend)
    token = _selected.set(backend.name)
    try:
        yield backend
    finally:
        _selected.reset(token)


def auto_choice() -> tuple[str, str]:
    """Return the backend that `"auto"` stands for and why; decided, and logged, once per process."""
    global _auto
    if _auto is None:
        log = logging.getLogger("gpucnn")
        if find_spec("cupy") is None:
            _auto = "numpy", "CuPy is not installed"
            log.info("gpucnn computes with NumPy: %s", _auto[1])
        else:
            try:
                _instances["cupy"] = _make_cupy("cupy")
                _auto = "cupy", "CuPy computes on a GPU here"
            except BackendUnavailable as error:
                _auto = "numpy", str(error)
                log.warning("gpucnn computes with NumPy: %s", error)
    return _auto


def _make_cupy(name: str) -> Backend:
    """Return a CuPy backend for `"cupy"` or `"cupy:N"`, or say why it is unavailable."""
    family, colon, number = name.partition(":")
    if family != "cupy" or (colon and not number.isdecimal()):
        raise ConfigurationError(f"there is no backend named {name!r}; {KNOWN}")
    device = int(number or 0)
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
    except ConfigurationError:  # an invalid setting does not make a GPU unavailable
        raise
    except Exception as error:  # CuPy reports a GPU that does not work in many ways; all mean the same here
        raise BackendUnavailable(
            f"backend {name!r}: CuPy is installed, but no kernel runs on GPU {device} "
            f"({type(error).__name__}: {first_line(error)}); see that `nvidia-smi` lists the GPU and that the CuPy "
            'wheel fits its driver (`gpucnn doctor` says which one does), or use backend="numpy"'
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error message: CuPy lists whole folders where a library is missing."""
    return textwrap.shorten(str(error).strip().partition("\n")[0], 300, placeholder=" …")
