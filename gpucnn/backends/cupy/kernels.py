"""The CUDA kernels of `kernels/*.cu`: compiled when first used, and launched over elements or over rows of channels.

NVRTC compiles a file when one of its kernels is asked for, once for each type of number and each width of access; CuPy
keeps what was compiled in a folder, so that this is done once a machine. Every launch returns at once: the GPU works on
its own.
"""

import re
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import cupy
import numpy as np

from gpucnn.backends.base import Array
from gpucnn.backends.window import Window
from gpucnn.errors import ConfigurationError

THREADS = 256  # of a block
ACCESS = 16  # bytes that a thread moves at once where it can
ROWS_EACH = 8  # rows of a matrix that a thread takes, so that it loads the channel's numbers once for them
ONE_PART = 32  # rows a thread, up to which a single block adds up a channel: that saves a launch
MOST_PARTS = 1024  # partial sums of a channel: enough blocks for any GPU, few enough to be added up in one go
MOST_ELEMENTS = 2**31  # of one launch: kernels count in 32 bits, which is what a GPU divides fast
NULL = np.uintp(0)


@cache
def sources() -> dict[str, str]:
    """Return, for each kernel by name, the text that it is compiled from: its file, behind what all files share."""
    folder = files("gpucnn.backends.cupy") / "kernels"
    shared = (folder / "common.cuh").read_text("utf-8")
    texts = [shared + file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".cu")]
    return {name: text for text in texts for name in re.findall(r"__global__ void (\w+)\(", text)}


def options(itemsize: int, width: int) -> tuple[str, ...]:
    """Return the compiler's options for elements of so many bytes, moved `width` at a time."""
    return f"-DBITS={8 * itemsize}", f"-DWIDTH={width}", "-std=c++17"


@cache
def _module(text: str, itemsize: int, width: int) -> Any:
    return cupy.RawModule(code=text, options=options(itemsize, width))


@cache
def _function(name: str, itemsize: int, width: int) -> Any:
    return _module(sources()[name], itemsize, width).get_function(name)


def working_dtype(dtype: Any) -> Any:
    """Return the type that kernels compute in, which is that of parameters and statistics: float32 for float16."""
    return np.promote_types(dtype, np.float32)


def widest(dtype: Any, *sizes: int) -> int:
    """Return how many elements a thread can move at once through runs of these sizes: 16 bytes' worth, or 1."""
    width = ACCESS // np.dtype(dtype).itemsize
    return width if all(size % width == 0 for size in sizes) else 1


def plain(array: Array, dtype: Any = None) -> Array:
    """Return an array as kernels want it, contiguous and aligned; a copy only where it is not."""
    if dtype is not None and array.dtype != dtype:
        array = array.astype(dtype)
    if array.flags.c_contiguous and array.data.ptr % ACCESS == 0:
        return array
    return cupy.array(array, order="C")


@lru_cache(maxsize=4096)
def geometry(window: Window, H: int, W: int, C: int) -> tuple[np.int32, ...]:
    """Return the arguments that a kernel declares as GEOMETRY."""
    (PT, _), (PL, _) = window.padding
    numbers = (H, W, C, *window.output_size((H, W)), *window.size, *window.strides, PT, PL, *window.dilation)
    return tuple(np.int32(number) for number in numbers)


def over_elements(name: str, dtype: Any, width: int, count: int, *arguments: Any) -> None:
    """Launch a kernel with a thread for each of `count` elements, or packs of them."""
    if count >= MOST_ELEMENTS:
        raise ConfigurationError(
            f"{name}: {count:,} elements are more than one launch on a GPU takes, {MOST_ELEMENTS:,}; "
            "choose a smaller batch"
        )
    if count:
        _function(name, np.dtype(dtype).itemsize, width)((-(-count // THREADS),), (THREADS,), arguments)


def over_rows(name: str, dtype: Any, width: int, rows: int, C: int, *arguments: Any) -> None:
    """Launch a kernel over the rows of a matrix (rows, C), each thread staying with its channels."""
    block, tiles = _tile(C // width)
    grid = -(-rows // (block[1] * ROWS_EACH)), tiles
    _function(name, np.dtype(dtype).itemsize, width)(grid, block, arguments)


def column_sums(
    name: str, dtype: Any, width: int, rows: int, C: int, *arguments: Any, sums: int = 1, layers: int = 1
) -> tuple[Array, int]:
    """Launch a kernel that writes partial sums over the rows of a matrix (rows, C).

    Returns them, (parts, sums·layers·C), and the number of parts. `layers` blocks stand above each other along the
    grid's third side. The kernel gets its first arguments, the partial sums, the number of rows and the rest.
    """
    block, tiles = _tile(C // width)
    each = ROWS_EACH if rows > ONE_PART * block[1] else ONE_PART
    parts = max(1, min(-(-rows // (block[1] * each)), MOST_PARTS // tiles))
    partial = cupy.empty((parts, sums * layers * C), working_dtype(dtype))
    first = [argument for argument in arguments if isinstance(argument, cupy.ndarray)]
    rest = arguments[len(first) :]
    grid = (parts, tiles, layers)
    _function(name, np.dtype(dtype).itemsize, width)(grid, block, (*first, partial, np.int64(rows), *rest))
    return partial, parts


def totals(partial: Array, parts: int, dtype: Any) -> Array:
    """Add up the lines of partial sums (parts, columns): (columns,)."""
    if parts == 1:
        return partial[0]
    columns = partial.shape[1]
    result = cupy.empty(columns, partial.dtype)
    over_columns("channel_totals", dtype, columns, partial, result, np.int32(parts), np.int32(columns))
    return result


def over_columns(name: str, dtype: Any, columns: int, *arguments: Any) -> None:
    """Launch a kernel that adds up columns of partial sums: 32 columns a block, 8 threads for each."""
    _function(name, np.dtype(dtype).itemsize, 1)((-(-columns // 32),), (32, THREADS // 32), arguments)


def over_matrix_rows(name: str, dtype: Any, N: int, K: int, *arguments: Any) -> None:
    """Launch a kernel over matrices (N, K) whose rows are shared by several threads: more of them for longer rows."""
    threads = 32 if K > 64 else 8
    rows = THREADS // threads
    _function(name, np.dtype(dtype).itemsize, 1)((-(-N // rows),), (rows, threads), arguments)


def squares(x: Array) -> tuple[Array, int]:
    """Add up the squares of x (P,) in parts, each by one block in a fixed order: (parts,) and their number."""
    parts = max(1, min(-(-x.size // (THREADS * ROWS_EACH)), MOST_PARTS))
    partial = cupy.empty(parts, np.float64)
    _function("squares", x.dtype.itemsize, 1)((parts,), (1, THREADS), (x, partial, np.uint32(x.size)))
    return partial, parts


def one_block(name: str, dtype: Any, *arguments: Any) -> None:
    """Launch a kernel of one block, whose threads stand along the second side."""
    _function(name, np.dtype(dtype).itemsize, 1)((1,), (1, THREADS), arguments)


def _tile(packs: int) -> tuple[tuple[int, int], int]:
    """Return a block (packs, rows), and how many blocks stand beside each other to hold all packs of a row."""
    across = min(packs, THREADS)
    return (across, THREADS // across), -(-packs // across)
