"""The CUDA kernels of `kernels/*.cu`: compiled when first used, and launched over elements or over rows of channels.

NVRTC compiles a file when one of its kernels is first used, once for each dtype and vector width; CuPy caches the
result in a folder, so that this is done once per machine. Every launch returns at once: the GPU runs asynchronously.
"""

import re
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import cupy
import numpy as np

from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window
from gpucnn.errors import ConfigurationError

THREADS = 256  # per block
VECTOR_BYTES = 16  # per access of a thread, where the arrays allow it
ROWS_PER_THREAD = 8  # of a matrix, so that a thread loads a channel's numbers once for all of them
ROWS_PER_THREAD_MAX = 32  # up to which a single block sums a channel: that saves a launch
MAX_PARTS = 1024  # partial sums per channel: enough blocks for any GPU, few enough to be summed by one
MAX_ELEMENTS = 2**31  # per launch: kernels index with 32 bits, which a GPU divides fast
NULL = np.uintp(0)


@cache
def sources() -> dict[str, str]:
    """Return the source of each kernel by name: its file, after what all files share."""
    folder = files("gpucnn.backends.cupy") / "kernels"
    shared = (folder / "common.cuh").read_text("utf-8")
    texts = [shared + file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".cu")]
    return {name: text for text in texts for name in re.findall(r"__global__ void (\w+)\(", text)}


def options(itemsize: int, width: int) -> tuple[str, ...]:
    """Return the compiler's options for elements of `itemsize` bytes and a vector width."""
    return f"-DBITS={8 * itemsize}", f"-DWIDTH={width}", "-std=c++17"


@cache
def _module(text: str, itemsize: int, width: int) -> Any:
    return cupy.RawModule(code=text, options=options(itemsize, width))


@cache
def _function(name: str, itemsize: int, width: int) -> Any:
    return _module(sources()[name], itemsize, width).get_function(name)


def compute_dtype(dtype: Any) -> Any:
    """Return the dtype of computation, parameters and statistics: float32 for float16."""
    return np.promote_types(dtype, np.float32)


def vector_width(dtype: Any, *sizes: int) -> int:
    """Return the elements per vector access in runs of these sizes: 16 bytes' worth, or 1."""
    width = VECTOR_BYTES // np.dtype(dtype).itemsize
    return width if all(size % width == 0 for size in sizes) else 1


def aligned(array: Array, dtype: Any = None) -> Array:
    """Return an array as kernels need it, contiguous and aligned; a copy only where it is not."""
    if dtype is not None and array.dtype != dtype:
        array = array.astype(dtype)
    if array.flags.c_contiguous and array.data.ptr % VECTOR_BYTES == 0:
        return array
    return cupy.array(array, order="C")


@lru_cache(maxsize=4096)
def geometry(window: Window, H: int, W: int, C: int) -> tuple[np.int32, ...]:
    """Return the arguments of a kernel's GEOMETRY."""
    (PT, _), (PL, _) = window.padding
    numbers = (H, W, C, *window.output_size((H, W)), *window.size, *window.strides, PT, PL, *window.dilation)
    return tuple(np.int32(number) for number in numbers)


def launch_elements(name: str, dtype: Any, width: int, count: int, *arguments: Any) -> None:
    """Launch a kernel with one thread per element, or pack of elements."""
    if count >= MAX_ELEMENTS:
        raise ConfigurationError(
            f"{name}: {count:,} elements are more than one launch on a GPU takes, {MAX_ELEMENTS:,}; "
            "choose a smaller batch"
        )
    if count:
        _function(name, np.dtype(dtype).itemsize, width)((-(-count // THREADS),), (THREADS,), arguments)


def launch_rows(name: str, dtype: Any, width: int, rows: int, C: int, *arguments: Any) -> None:
    """Launch a kernel over the rows of a matrix (rows, C), each thread in fixed channels."""
    block, tiles = _tile(C // width)
    grid = -(-rows // (block[1] * ROWS_PER_THREAD)), tiles
    _function(name, np.dtype(dtype).itemsize, width)(grid, block, arguments)


def column_sums(
    name: str, dtype: Any, width: int, rows: int, C: int, *arguments: Any, sums: int = 1, layers: int = 1
) -> tuple[Array, int]:
    """Launch a kernel that writes partial sums over the rows of a matrix (rows, C).

    Returns them, (parts, sums·layers·C), and the number of parts. `layers` is the grid's third dimension. The kernel
    gets the arrays, the partial sums, the number of rows and the other arguments.
    """
    block, tiles = _tile(C // width)
    each = ROWS_PER_THREAD if rows > ROWS_PER_THREAD_MAX * block[1] else ROWS_PER_THREAD_MAX
    parts = max(1, min(-(-rows // (block[1] * each)), MAX_PARTS // tiles))
    partial = cupy.empty((parts, sums * layers * C), compute_dtype(dtype))
    first = [argument for argument in arguments if isinstance(argument, cupy.ndarray)]
    rest = arguments[len(first) :]
    grid = (parts, tiles, layers)
    _function(name, np.dtype(dtype).itemsize, width)(grid, block, (*first, partial, np.int64(rows), *rest))
    return partial, parts


def totals(partial: Array, parts: int, dtype: Any) -> Array:
    """Return the sums (columns,) of partial sums (parts, columns)."""
    if parts == 1:
        return partial[0]
    columns = partial.shape[1]
    result = cupy.empty(columns, partial.dtype)
    launch_columns("channel_totals", dtype, columns, partial, result, np.int32(parts), np.int32(columns))
    return result


def launch_columns(name: str, dtype: Any, columns: int, *arguments: Any) -> None:
    """Launch a kernel that sums columns of partial sums: 32 columns per block, 8 threads per column."""
    _function(name, np.dtype(dtype).itemsize, 1)((-(-columns // 32),), (32, THREADS // 32), arguments)


def launch_matrix_rows(name: str, dtype: Any, N: int, K: int, *arguments: Any) -> None:
    """Launch a kernel over matrices (N, K) with several threads per row: more for longer rows."""
    threads = 32 if K > 64 else 8
    rows = THREADS // threads
    _function(name, np.dtype(dtype).itemsize, 1)((-(-N // rows),), (rows, threads), arguments)


def squares(x: Array) -> tuple[Array, int]:
    """Return partial sums of the squares of x (P,), (parts,), each by one block in a fixed order, and their number."""
    parts = max(1, min(-(-x.size // (THREADS * ROWS_PER_THREAD)), MAX_PARTS))
    partial = cupy.empty(parts, np.float64)
    _function("squares", x.dtype.itemsize, 1)((parts,), (1, THREADS), (x, partial, np.uint32(x.size)))
    return partial, parts


def launch_one_block(name: str, dtype: Any, *arguments: Any) -> None:
    """Launch a kernel of one block, with its threads along the second axis."""
    _function(name, np.dtype(dtype).itemsize, 1)((1,), (1, THREADS), arguments)


def _tile(packs: int) -> tuple[tuple[int, int], int]:
    """Return a block (packs, rows), and the number of blocks that cover all packs of a row."""
    width = min(packs, THREADS)
    return (width, THREADS // width), -(-packs // width)
