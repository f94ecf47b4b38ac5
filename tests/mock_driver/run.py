#!/usr/bin/env python3
"""The real CuPy on a mock GPU: its Python and Cython layers, the engine and its kernels, without NVIDIA's driver.

    python tests/mock_driver/run.py pytest --backend cupy tests/layers/test_layers.py
    python tests/mock_driver/run.py python -m benchmarks.gpu --quick

The first call takes about a minute: an environment with CuPy's wheel in a folder of the user's cache, whose module for
the CUDA runtime is built again from CuPy's source, so that its runtime can be replaced by `driver.cpp`. All its other
modules are the wheel's. Needs Linux on x86-64, g++ and PyPI.

`tests/simulated_cupy.py` tests the engine itself, and is part of the suite; this tests that CuPy accepts all calls of
the engine, and that no synchronization is missing. It does not measure speed.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
from pathlib import Path

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
VERSION = "14.2.0"
SOURCE = (
    "https://files.pythonhosted.org/packages/dc/10/"
    "059a92d40b161ea24607c9e41a75098812ca7021f2b565524f87beba15c9/cupy-14.2.0.tar.gz",
    "cfed725e612178cfbdbf62f4a3a598b60edecbbca718c0d4580c21a16ae4a62c",
)
HEADERS = [f"nvidia-cuda-{part}==13.0.*" for part in ("runtime", "crt", "cccl", "profiler-api")]
NAMES = ("libcudart.so.13", "libcuda.so.1", "libnvrtc.so.13", "libcublas.so.13", "libcublasLt.so.13")
MODULE = "cupy_backends/cuda/api/runtime"
CYTHONIZE = """
import sys, Cython, Cython.Build
from setuptools import Extension
constants = {"CUPY_CUDA_VERSION": 13000, "CUPY_HIP_VERSION": 0, "CUPY_USE_CUDA_PYTHON": False,
             "CUPY_CUFFT_STATIC": False, "CUPY_CYTHON_VERSION": Cython.__version__}
extension = Extension(sys.argv[1].replace("/", "."), [sys.argv[1] + ".pyx"], language="c++")
Cython.Build.cythonize([extension], language_level=3, compile_time_env=constants, quiet=True)
"""


def main(command):
    """Build what is missing, then exec the command."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("the mock driver needs Linux on x86-64")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "gpucnn" / f"mock-driver-{VERSION}-py{sys.version_info.major}{sys.version_info.minor}"
    python = folder / "venv/bin/python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _make_environment(folder, python)
        _rebuild_runtime(folder, python)
        (folder / "ready").touch()
    libraries = _make_driver(folder)
    (folder / "kernels").mkdir(exist_ok=True)
    compiler = f"env -u LD_LIBRARY_PATH PYTHONPATH={ROOT} {python} -m tests.mock_driver.compile"
    settings = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(libraries),
        "CUDA_PATH": str(_site(folder) / "nvidia/cu13"),
        "CUPY_CACHE_DIR": str(folder / "cupy-cache"),
        "CUPY_ACCELERATORS": "",  # CUB, whose module asks NVIDIA's runtime
        "MOCK_DRIVER": str(folder),
        "MOCK_DRIVER_COMPILER": compiler,
    }
    os.chdir(ROOT)
    os.execvpe(command[0], command, {**os.environ, **settings})


def _site(folder):
    return folder / f"venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def _make_environment(folder, python):
    print(f"making {folder}", file=sys.stderr)
    venv.create(folder / "venv", with_pip=True)
    needed = [f"cupy-cuda13x=={VERSION}", *HEADERS, "Cython>=3.2,<3.3", "setuptools", "-e", f"{ROOT}[test]"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *needed], check=True)


def _rebuild_runtime(folder, python):
    """Build CuPy's module of the CUDA runtime with the runtime left open, in place of the wheel's."""
    address, expected = SOURCE
    archive = folder / "cupy.tar.gz"
    with urllib.request.urlopen(address) as answer:
        archive.write_bytes(answer.read())
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != expected:
        sys.exit(f"{address} has the SHA-256 {found}, not {expected}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    tree = folder / f"cupy-{VERSION}"
    subprocess.run([python, "-c", CYTHONIZE, MODULE], cwd=tree, check=True, stderr=subprocess.DEVNULL)  # warnings
    ask = "import numpy; print(numpy.get_include())"
    numpy = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    includes = [sysconfig.get_paths()["include"], numpy, str(_site(folder) / "nvidia/cu13/include")]
    macros = ['-DCYTHON_EXTERN_C=extern "C"', "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION"]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    module = _site(folder) / f"{MODULE}{suffix}"
    flags = ["-std=c++17", "-O1", "-fPIC", "-w", "-shared", *macros, *(f"-I{include}" for include in includes)]
    runtime = _site(folder) / "nvidia/cu13/lib" / NAMES[0]  # ours has the same name, and is found first
    subprocess.run(["g++", *flags, tree / f"{MODULE}.cpp", runtime, "-o", module], check=True)
    shutil.rmtree(tree)


def _make_driver(folder):
    """Compile driver.cpp with a function that fails for each that it lacks; return the folder of its libraries."""
    text = (HERE / "driver.cpp").read_text("utf-8")
    known = hashlib.sha256((text + Path(__file__).read_text("utf-8")).encode()).hexdigest()[:16]
    libraries = folder / f"libraries-{known}"
    if libraries.exists():
        return libraries
    modules = [next(_site(folder).glob(f"{MODULE}.*.so")), *_site(folder).glob("cupy_backends/cuda/libs/cublas.*.so")]
    wanted = set()
    for module in modules:
        symbols = subprocess.run(["nm", "-D", "--undefined-only", module], check=True, capture_output=True, text=True)
        wanted |= set(re.findall(r" U (cu(?:da|blas)\w+)", symbols.stdout))
    missing = sorted(wanted - set(re.findall(r"\b(cu\w+)\(", text)))
    rest = "".join(f'MISSING(missing_{i}, "{name}")\n' for i, name in enumerate(missing))
    part = folder / f"part-{os.getpid()}"
    part.mkdir()
    command = ["g++", "-std=c++17", "-O2", "-fPIC", "-shared", "-w", "-fno-strict-aliasing", "-x", "c++", "-"]
    command += [f"-Wl,-soname,{NAMES[0]}", f"-I{_site(folder) / 'nvidia/cu13/include'}", "-o", str(part / NAMES[0])]
    subprocess.run(command, input=text + rest, text=True, check=True)
    for name in NAMES[1:]:
        (part / name).symlink_to(NAMES[0])
    part.rename(libraries)
    return libraries


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
