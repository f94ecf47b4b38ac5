"""`gpucnn doctor`: what this machine has, and the one command that mends what is missing."""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata

from rich.text import Text

from gpucnn import datasets
from gpucnn.backends import get_backend
from gpucnn.backends.numpy.threads import usable_cores
from gpucnn.cli.common import console
from gpucnn.errors import BackendUnavailable

# the environment variables that change what gpucnn does, or how fast
SETTINGS = (
    "GPUCNN_BACKEND",
    "GPUCNN_DATA",
    "GPUCNN_CACHE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
)

Finding = tuple[str, str, str]  # what was looked at, what was found, what to do about it (or nothing)


def doctor() -> None:
    """Say what Python, NumPy, CuPy and the GPU are here, where data lies, and what would mend what is missing."""
    remedies = []
    for what, found, remedy in findings():
        console.print(Text.assemble((f"  {what:<10}", "bold"), found), soft_wrap=True)
        if remedy:
            remedies.append(remedy)
    for remedy in remedies:
        console.print(f"[yellow]→[/] {remedy}", soft_wrap=True)
    if not remedies:
        console.print("[green]Everything that can be had here is in place.[/]")


def findings() -> Iterator[Finding]:
    """Yield everything that is looked at."""
    import scipy

    yield "gpucnn", metadata.version("gpucnn"), ""
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""
    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}", ""
    numpy_version = metadata.version("numpy")
    yield "NumPy", f"{numpy_version}, SciPy {scipy.__version__}", ""
    yield from _blas()
    yield from _gpu()
    set_here = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    yield "settings", ", ".join(set_here) or "none: no variable that changes what gpucnn does is set", ""
    for name, title in (("mnist", "MNIST"), ("cifar10", "CIFAR-10")):
        place = datasets.available(name)
        found = place or "not here; downloaded at first use, or put it below the folder that GPUCNN_DATA names"
        yield title, found, ""


def _blas() -> Iterator[Finding]:
    """Yield the matrix library that NumPy multiplies with: its kind, its instruction set, its threads."""
    import threadpoolctl

    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas" and "numpy" in library["filepath"].lower():
            threads = library["num_threads"]
            architecture = library.get("architecture", "unknown instruction set")
            words = f"{library['internal_api']} {library['version']}, {architecture}, {threads} threads"
            too_many = threads > usable_cores()
            yield (
                "BLAS",
                words,
                f"BLAS runs {threads} threads on {usable_cores()} usable cores, which slows both: "
                f"set OPENBLAS_NUM_THREADS={usable_cores()}"
                if too_many
                else "",
            )
            return
    yield "BLAS", "not recognised (Apple's Accelerate, or a system library)", ""


def _gpu() -> Iterator[Finding]:
    """Yield the driver, CuPy and the result of the probe, as far as there is anything."""
    driver = cuda_driver_version()
    name = _gpu_name()
    yield "driver", f"CUDA {driver[0]}.{driver[1]}{f', {name}' if name else ''}" if driver else "no NVIDIA driver", ""
    version = _cupy_version()
    extra = "cuda13" if driver and driver >= (13, 0) else "cuda12"
    install = f"pip install 'gpucnn\\[{extra}]'"
    if version is None:
        remedy = f"an NVIDIA GPU is here, but CuPy is not: {install}" if driver else ""
        yield "CuPy", "not installed" + ("" if driver else ", and without an NVIDIA driver of no use here"), remedy
        yield "GPU", "not used: gpucnn computes with NumPy", ""
        return
    yield "CuPy", version, ""
    try:
        yield "GPU", f"works: {get_backend('cupy').describe()}", ""
    except BackendUnavailable as error:
        no_driver = "if this machine has an NVIDIA GPU, install NVIDIA's driver, until `nvidia-smi` lists the GPU"
        remedy = f"CuPy and the driver do not fit each other: {install}" if driver else no_driver
        yield "GPU", f"the probe failed: {error.__cause__ or error}", remedy


def cuda_driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA version that the installed driver can run, or None without a driver."""
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        version = ctypes.c_int()
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _gpu_name() -> str:
    """Return the GPUs as `nvidia-smi` names them, or nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        query = [program, "--query-gpu=name", "--format=csv,noheader"]
        return ", ".join(subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.split("\n")).strip(
            ", "
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _cupy_version() -> str | None:
    """Return the version of whichever CuPy wheel is installed."""
    for wheel in ("cupy-cuda13x", "cupy-cuda12x", "cupy"):
        try:
            return f"{metadata.version(wheel)} ({wheel})"
        except metadata.PackageNotFoundError:
            continue
    return None
