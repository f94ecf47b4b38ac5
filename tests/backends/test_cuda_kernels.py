"""Every CUDA kernel compiles for every GPU that we support, by NVIDIA's compiler, on a machine without one.

The compiler comes as a wheel, `nvidia-cuda-nvrtc`, and needs neither a GPU nor the CUDA toolkit.
"""

import ctypes
import importlib.util
import os
import re
from pathlib import Path

import pytest

from tests.helpers import OF_CUPY

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
WIDE, NARROW = [(2, 8), (4, 4), (8, 2)], [(2, 1), (4, 1), (8, 1)]  # bytes of an element, elements moved at once
BUILDS = [("sm_75", *form) for form in WIDE + NARROW]
BUILDS += [pytest.param(arch, *form, marks=pytest.mark.full) for arch in ARCHITECTURES[1:] for form in WIDE]
KERNELS = Path(__file__).parents[2] / "gpucnn/backends/cupy/kernels"


def find_nvrtc():
    if "MOCK_DRIVER" in os.environ:  # whose NVRTC is another one: the two do not go together in one process
        return None
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    found = [file for root in roots for file in Path(root).rglob("*nvrtc*") if is_library(file.name)]
    return ctypes.CDLL(str(sorted(found)[-1])) if found else None


def is_library(name):
    return (
        "builtins" not in name and ".alt." not in name and bool(re.fullmatch(r"(lib)?nvrtc.*(\.so\.\d+|\.dll)", name))
    )


NVRTC = find_nvrtc()


def sources():
    """The texts that the backend compiles, one for each file, put together without importing CuPy."""
    shared = (KERNELS / "common.cuh").read_text("utf-8")
    return {file.name: shared + file.read_text("utf-8") for file in sorted(KERNELS.glob("*.cu"))}


def compile_for(architecture, text, itemsize, width):
    """Return the machine code, or the compiler's complaints."""
    program, length = ctypes.c_void_p(), ctypes.c_size_t()
    assert NVRTC.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None) == 0
    options = [f"-DBITS={8 * itemsize}", f"-DWIDTH={width}", "-std=c++17", *OF_CUPY, f"-arch={architecture}"]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = NVRTC.nvrtcCompileProgram(program, len(options), given)
    NVRTC.nvrtcGetProgramLogSize(program, ctypes.byref(length))
    log = ctypes.create_string_buffer(length.value)
    NVRTC.nvrtcGetProgramLog(program, log)
    code = b""
    if status == 0:
        NVRTC.nvrtcGetCUBINSize(program, ctypes.byref(length))
        cubin = ctypes.create_string_buffer(length.value)
        assert NVRTC.nvrtcGetCUBIN(program, cubin) == 0
        code = cubin.raw
    NVRTC.nvrtcDestroyProgram(ctypes.byref(program))
    return code, log.value.decode()


@pytest.mark.skipif(NVRTC is None, reason="the wheel nvidia-cuda-nvrtc is not installed")
@pytest.mark.parametrize(("architecture", "itemsize", "width"), BUILDS)
def test_kernels_compile_for_every_architecture(architecture, itemsize, width):
    found = 0
    for file, text in sources().items():
        code, log = compile_for(architecture, text, itemsize, width)
        assert log.strip() in ("", "\x00"), f"{file}: {log}"  # no errors, and no warnings either
        names = re.findall(r'extern "C" __global__ void (\w+)\(', text)
        missing = [name for name in names if f".text.{name}".encode() not in code]
        assert not missing
        found += len(names)
    assert found >= 35


@pytest.mark.skipif(NVRTC is None, reason="the wheel nvidia-cuda-nvrtc is not installed")
def test_kernel_with_a_mistake_does_not_compile():
    text = sources()["random.cu"] + '\nextern "C" __global__ void wrong() { nothing(); }'
    code, log = compile_for("sm_90", text, 4, 4)
    assert code == b""
    assert "nothing" in log


def test_kernels_use_no_atomics():
    """Sums in an order that changes from run to run would change their last bits."""
    without_comments = re.sub(r"//.*", "", "".join(sources().values()))
    assert "atomic" not in without_comments
    assert "curand" not in without_comments
