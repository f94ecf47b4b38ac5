"""`gpucnn doctor`: report the environment and suggest fixes."""

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gpucnn import datasets
from gpucnn.backends import first_line, get_backend
from gpucnn.backends.numpy.cores import usable_cores
from gpucnn.backends.numpy.threads import num_threads
from gpucnn.cli.common import say
from gpucnn.errors import BackendUnavailable, ConfigurationError
from gpucnn.version import __version__

# environment variables that affect results or speed
SETTINGS = (
    "GPUCNN_BACKEND",
    "GPUCNN_DATA",
    "GPUCNN_CACHE",
    "GPUCNN_NUM_THREADS",
    "GPUCNN_WINOGRAD",
    "GPUCNN_TF32",
    "GPUCNN_WORKSPACE_MB",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
)

# OpenBLAS' names of kernels by instruction set; all others use less than AVX2
AVX512_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
AVX2_KERNELS = ("Haswell", "Zen", "Excavator", *AVX512_KERNELS)
AVX512_FLAGS = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

Finding = tuple[str, str, str]  # the subject, the finding, and a remedy or ""


def doctor() -> None:
    """Report Python, NumPy, CuPy, GPU and data sets, and suggest fixes for what is missing."""
    remedies = []
    for what, found, remedy in findings():
        say((f"  {what:<10}", "bold"), found)
        if remedy:
            remedies.append(remedy)
    for remedy in remedies:
        say(("→ ", "yellow"), remedy)
    if not remedies:
        say(("No problems found.", "green"))


def findings() -> Iterator[Finding]:
    """Yield all findings."""
    import scipy

    yield "gpucnn", _own_version(), ""
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""
    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}", ""
    numpy_version = metadata.version("numpy")
    yield "NumPy", f"{numpy_version}, SciPy {scipy.__version__}", ""
    yield from _blas()
    yield _engine()
    yield from _gpu()
    set_here = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    yield "settings", ", ".join(set_here) or "no environment variables that affect gpucnn", ""
    for name, title in (("mnist", "MNIST"), ("cifar10", "CIFAR-10")):
        place = datasets.available(name)
        found = place or "not found; downloaded on first use, or put it in a subfolder of the folder in GPUCNN_DATA"
        yield title, found, ""


def _own_version() -> str:
    """Return gpucnn's version, and its folder if it is not installed."""
    try:
        return metadata.version("gpucnn")
    except metadata.PackageNotFoundError:
        return f"{__version__}, not installed, run from {Path(__file__).parents[2]}"


def _blas() -> Iterator[Finding]:
    """Yield NumPy's BLAS library: its name, instruction set and threads."""
    import threadpoolctl

    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas" and "numpy" in library["filepath"].lower():
            threads = library["num_threads"]
            architecture = library.get("architecture", "unknown instruction set")
            text = f"{library['internal_api']} {library['version']}, {architecture}, {threads} threads"
            yield "BLAS", text, _too_many(threads, "BLAS", "OPENBLAS_NUM_THREADS") or _too_old(architecture)
            return
    yield "BLAS", "not recognised (Apple's Accelerate, or a system library)", ""


def _too_many(threads: int, who: str, variable: str) -> str:
    """Return a remedy for more threads than cores, or ""."""
    cores = usable_cores()
    if threads <= cores:
        return ""
    return f"{who} is set to {threads} threads on {cores} usable cores, which is slower: set {variable}={cores}"


def _too_old(kernels: str) -> str:
    """Return a remedy if BLAS uses older instructions than this processor has, or ""."""
    flags = cpu_flags()
    newer = "AVX-512" if flags >= AVX512_FLAGS and kernels not in AVX512_KERNELS else ""
    newer = newer or ("AVX2" if "avx2" in flags and kernels not in AVX2_KERNELS else "")
    if not newer or kernels == "unknown instruction set":
        return ""
    held = os.environ.get("OPENBLAS_CORETYPE")
    cause = f"OPENBLAS_CORETYPE={held} limits BLAS to" if held else "BLAS uses"
    remedy = "unset OPENBLAS_CORETYPE" if held else "upgrade NumPy, whose wheels contain a newer OpenBLAS"
    return f"{cause} its {kernels} kernels, but this processor has {newer}; products take up to twice as long: {remedy}"


def cpu_flags() -> set[str]:
    """Return the instruction sets of this processor as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
    except OSError:
        return set()


def _engine() -> Finding:
    """Return the number of threads of gpucnn's CPU engine."""
    try:
        threads = num_threads()
    except ConfigurationError as error:
        return "threads", "invalid setting", str(error)
    remedy = _too_many(threads, "gpucnn", "GPUCNN_NUM_THREADS")
    return "threads", f"gpucnn splits a batch among {threads}", remedy


def _gpu() -> Iterator[Finding]:
    """Yield the driver, CuPy and the result of the GPU probe."""
    driver = cuda_driver_version()
    name = _gpu_name()
    yield "driver", f"CUDA {driver[0]}.{driver[1]}{f', {name}' if name else ''}" if driver else "no NVIDIA driver", ""
    version = _cupy_version()
    cuda = "cuda13" if driver and driver >= (13, 0) else "cuda12"
    install = f"pip install 'cupy-{cuda}x[ctk]'"
    if version is None:
        remedy = f"an NVIDIA GPU was found, but CuPy is not installed: {install}" if driver else ""
        yield "CuPy", "not installed" + ("" if driver else " (of no use without an NVIDIA driver)"), remedy
        yield "GPU", "not used: gpucnn uses NumPy", ""
        return
    yield "CuPy", version, ""
    try:
        yield "GPU", f"works: {get_backend('cupy').describe()}", ""
    except BackendUnavailable as error:
        no_driver = "if this machine has an NVIDIA GPU, install NVIDIA's driver; `nvidia-smi` must list the GPU"
        remedy = f"CuPy and the driver are incompatible: {install}" if driver else no_driver
        yield "GPU", f"the probe failed: {first_line(error.__cause__ or error)}", remedy


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
        found = subprocess.run(query, capture_output=True, text=True, timeout=10)
        return ", ".join(found.stdout.split("\n")).strip(", ")
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
