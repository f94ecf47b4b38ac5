"""Matrix products: a thin binding of cuBLAS, the library that CuPy has loaded anyway.

CuPy's own products cannot be captured in a CUDA graph, cannot add to their output, and have no float32 output for
float16 factors, which sums over a whole batch need. So this module has its own handles, with preallocated workspaces.

A handle uses one stream at a time and its products share one workspace, so every thread has its own handle: between the
two calls that set a stream and multiply in it, another thread could set its own.
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

from gpucnn.backends.reference import Array

WORKSPACE = 32 * 2**20  # bytes; what NVIDIA recommends for Hopper
TYPES = {"f": 0, "d": 1, "e": 2}  # cudaDataType_t by NumPy's character code: a dtype's name is built on each access
COMPUTE_FLOAT32, COMPUTE_FLOAT64, COMPUTE_TF32 = 68, 70, 77  # cublasComputeType_t
DEFAULT_ALGORITHM = -1
ALLOCATION_FAILED = 3  # cublasStatus_t
NORMAL, TRANSPOSED = 0, 1  # cublasOperation_t


def open_library() -> Any:
    """Return the cuBLAS library of CuPy: of its major version, whatever else the process has loaded.

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
    """Return the path of a major version of cuBLAS in the text of /proc/self/maps, if it is loaded."""
    return re.findall(rf"^[^/\n]*(/.*/libcublas\.so\.{version}(?:\.\d+)*)$", maps, re.MULTILINE)[:1]


class Handle:
    """A cuBLAS handle for the current GPU, its workspace, and its stream."""

    def __init__(self, library: Any) -> None:
        self.handle = ctypes.c_void_p()
        check("cublasCreate_v2", library.cublasCreate_v2(ctypes.byref(self.handle)))
        self.workspace = cupy.get_default_memory_pool().malloc(WORKSPACE)  # not from the pool of a captured step
        self.stream: int | None = None


class _Lease:
    """A thread's hold on a handle; when the thread ends, the next one gets it."""

    def __init__(self, library: Any, unused: list[Handle]) -> None:
        self._unused = unused
        try:
            self.handle = unused.pop()
            self.handle.stream = None
        except IndexError:
            self.handle = Handle(library)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # a handle that could not be created
            self._unused.append(self.handle)


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
            loan = self._thread.loan = _Lease(self._library, self._unused)
        return loan.handle

    def multiply(self, a: Array, b: Array, out: Array, *, add: bool = False, tf32: bool = False) -> None:
        """Compute out ← a @ b, or out ← out + a @ b with `add`.

        a (M, K) and b (K, N) of one dtype, out (M, N) of that or, for float16, float32; sums are formed in float32, or
        float64. Any of them may be a block of a larger matrix, a and b also transposed (`matrix.T`). `tf32` rounds the
        factors of a float32 product to 10 bits, which tensor cores multiply many times faster.
        """
        (M, K), N = a.shape, b.shape[1]
        (a, op_a, ld_a), (b, op_b, ld_b) = _layout(a), _layout(b)
        assert out.strides[1] == out.itemsize or N == 1, "the output must be row-major"
        ld_out = max(out.strides[0] // out.itemsize, N) if M > 1 else N
        is_float64 = out.dtype == np.float64
        number = ctypes.c_double if is_float64 else ctypes.c_float
        compute = COMPUTE_TF32 if tf32 and a.dtype == np.float32 else COMPUTE_FLOAT32
        compute = COMPUTE_FLOAT64 if is_float64 else compute
        alpha, beta = ctypes.byref(number(1.0)), ctypes.byref(number(1.0 if add else 0.0))
        handle = self.handle
        self._use_current_stream(handle)
        # cuBLAS is column-major, so it computes outᵀ = bᵀ @ aᵀ
        first = ctypes.c_void_p(b.data.ptr), TYPES[b.dtype.char], ld_b
        second = ctypes.c_void_p(a.data.ptr), TYPES[a.dtype.char], ld_a
        result = ctypes.c_void_p(out.data.ptr), TYPES[out.dtype.char], ld_out
        status = self._library.cublasGemmEx(
            *(handle.handle, op_b, op_a, N, M, K, alpha), *first, *second, beta, *result, compute, DEFAULT_ALGORITHM
        )
        check("cublasGemmEx", status)

    def _use_current_stream(self, handle: Handle) -> None:
        """Use CuPy's current stream. Setting a stream resets the workspace, so it is set again."""
        stream = cupy.cuda.get_current_stream().ptr
        if stream != handle.stream:
            handle.stream = None  # should the second call fail
            check("cublasSetStream_v2", self._library.cublasSetStream_v2(handle.handle, ctypes.c_void_p(stream)))
            pointer, size = ctypes.c_void_p(handle.workspace.ptr), ctypes.c_size_t(WORKSPACE)
            check("cublasSetWorkspace_v2", self._library.cublasSetWorkspace_v2(handle.handle, pointer, size))
            handle.stream = stream


def check(call: str, status: int) -> None:
    """Raise an error if a cuBLAS status reports a failure."""
    if status == ALLOCATION_FAILED:
        raise MemoryError(f"cuBLAS could not allocate memory ({call})")
    if status:
        raise RuntimeError(f"cuBLAS failed: {call} returned status {status}")


def _layout(matrix: Array) -> tuple[Array, int, int]:
    """Return a matrix, its cublasOperation_t, and its leading dimension."""
    rows, columns = matrix.shape
    row_stride, column_stride = (stride // matrix.itemsize for stride in matrix.strides)
    if (column_stride == 1 or columns == 1) and (row_stride >= columns or rows == 1):
        return matrix, NORMAL, row_stride if rows > 1 else columns
    if (row_stride == 1 or rows == 1) and (column_stride >= rows or columns == 1):
        return matrix, TRANSPOSED, column_stride if columns > 1 else rows
    return cupy.ascontiguousarray(matrix), NORMAL, columns
