"""Matrix products: a thin binding of cuBLAS, the library that CuPy has loaded anyway.

CuPy's own products refuse to be captured in a CUDA graph, cannot add to their output, and give a float16 product no
float32 output, which sums over a whole batch need. So handles of our own, each with a workspace that is allocated once.

A handle follows one stream at a time and its products share one workspace, so every thread has a handle to itself:
between the two calls that set a stream and multiply in it, another thread could set its own.
"""

import contextlib
import ctypes
import re
import sys
import threading
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from gpucnn.backends.base import Array

WORKSPACE = 32 * 2**20  # bytes; what NVIDIA recommends for Hopper
TYPES = {"f": 0, "d": 1, "e": 2}  # cudaDataType_t by NumPy's letter, since Python puts a dtype's name together anew
COMPUTE_FLOAT32, COMPUTE_FLOAT64, COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
DEFAULT_ALGORITHM = -1
ALLOCATION_FAILED = 3  # cublasStatus_t
NORMAL, TRANSPOSED = 0, 1  # cublasOperation_t


def open_library() -> Any:
    """Return the cuBLAS that CuPy computes with: of its major version, whatever else the process has loaded.

    Raises:
        OSError: there is none.
    """
    from cupy_backends.cuda.libs import cublas as _  # noqa: F401  loads the library

    version = cupy.cuda.runtime.runtimeGetVersion() // 1000
    names = [f"cublas64_{version}.dll" if sys.platform == "win32" else f"libcublas.so.{version}"]
    maps = Path("/proc/self/maps")
    if maps.exists():
        names = loaded(maps.read_text(), version) + names
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            cause = error
    raise OSError(f"cuBLAS cannot be loaded, tried {', '.join(names)}: {cause}")


def loaded(maps: str, version: int) -> list[str]:
    """Return the path of the cuBLAS of a major version in the text of /proc/self/maps, if it is there."""
    return re.findall(rf"^[^/\n]*(/.*/libcublas\.so\.{version}(?:\.\d+)*)$", maps, re.MULTILINE)[:1]


class Handle:
    """A handle of cuBLAS for the current GPU, its workspace, and the stream that it works in."""

    def __init__(self, library: Any) -> None:
        self.handle = ctypes.c_void_p()
        check("cublasCreate_v2", library.cublasCreate_v2(ctypes.byref(self.handle)))
        self.workspace = cupy.get_default_memory_pool().malloc(WORKSPACE)  # not of a pool for one captured step
        self.stream: int | None = None


class Loan:
    """A handle in the hands of a thread; where the thread ends, the next one gets it."""

    def __init__(self, library: Any, unused: list[Handle]) -> None:
        self._unused = unused
        try:
            self.of_thread = unused.pop()
            self.of_thread.stream = None
        except IndexError:
            self.of_thread = Handle(library)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # a handle that could not be made
            self._unused.append(self.of_thread)


class Cublas:
    """cuBLAS on the current GPU, with a handle and a workspace for each thread."""

    def __init__(self) -> None:
        self._library = open_library()
        self._unused: list[Handle] = []
        self._thread = threading.local()

    @property
    def handle(self) -> Handle:
        """The handle of this thread."""
        loan = getattr(self._thread, "loan", None)
        if loan is None:
            loan = self._thread.loan = Loan(self._library, self._unused)
        return loan.of_thread

    def multiply(self, a: Array, b: Array, out: Array, *, add: bool = False, tf32: bool = False) -> None:
        """Compute out ← a @ b, or out ← out + a @ b with `add`.

        a (M, K) and b (K, N) of one dtype, out (M, N) of that or, for float16, float32; sums are formed in float32, or
        float64. Any of them may be a block of a larger matrix, a and b also turned (`matrix.T`). `tf32` rounds the
        factors of a float32 product to 10 bits, which tensor cores multiply many times as fast.
        """
        (M, K), N = a.shape, b.shape[1]
        (a, turn_a, lead_a), (b, turn_b, lead_b) = _layout(a), _layout(b)
        assert out.strides[1] == out.itemsize or N == 1, "cuBLAS writes rows"
        lead_out = max(out.strides[0] // out.itemsize, N) if M > 1 else N
        in_double = out.dtype == np.float64
        number = ctypes.c_double if in_double else ctypes.c_float
        in_single = COMPUTE_TF32 if tf32 and a.dtype == np.float32 else COMPUTE_FLOAT32
        own = self.handle
        self._follow_stream(own)
        # cuBLAS counts columns first, so what it is told is outᵀ = bᵀ @ aᵀ
        status = self._library.cublasGemmEx(
            own.handle,
            turn_b,
            turn_a,
            N,
            M,
            K,
            ctypes.byref(number(1.0)),
            ctypes.c_void_p(b.data.ptr),
            TYPES[b.dtype.char],
            lead_b,
            ctypes.c_void_p(a.data.ptr),
            TYPES[a.dtype.char],
            lead_a,
            ctypes.byref(number(1.0 if add else 0.0)),
            ctypes.c_void_p(out.data.ptr),
            TYPES[out.dtype.char],
            lead_out,
            COMPUTE_FLOAT64 if in_double else in_single,
            DEFAULT_ALGORITHM,
        )
        check("cublasGemmEx", status)

    def _follow_stream(self, own: Handle) -> None:
        """Work in CuPy's current stream. Setting a stream takes the workspace away, so it is given again."""
        stream = cupy.cuda.get_current_stream().ptr
        if stream != own.stream:
            own.stream = None  # should the second call fail
            check("cublasSetStream_v2", self._library.cublasSetStream_v2(own.handle, ctypes.c_void_p(stream)))
            pointer, size = ctypes.c_void_p(own.workspace.ptr), ctypes.c_size_t(WORKSPACE)
            check("cublasSetWorkspace_v2", self._library.cublasSetWorkspace_v2(own.handle, pointer, size))
            own.stream = stream


def check(call: str, status: int) -> None:
    """Raise what a status of cuBLAS says, if it says that the call failed."""
    if status == ALLOCATION_FAILED:
        raise MemoryError(f"cuBLAS could not allocate memory ({call})")
    if status:
        raise RuntimeError(f"cuBLAS failed: {call} returned status {status}")


def _layout(matrix: Array) -> tuple[Array, int, int]:
    """Return a matrix, how cuBLAS is to read it, and the distance from one of its rows (or columns) to the next."""
    rows, columns = matrix.shape
    down, across = (stride // matrix.itemsize for stride in matrix.strides)
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return matrix, NORMAL, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return matrix, TRANSPOSED, across if columns > 1 else rows
    return cupy.ascontiguousarray(matrix), NORMAL, columns
