"""Convolutions by im2col and matrix products, for part of the batch at a time.

The columns of a batch are KH·KW times its images, so they are computed in a workspace of bounded size, and recomputed
in the backward pass. A depthwise convolution is not a matrix product and has its own kernels.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from gpucnn.backends.base import Backend
from gpucnn.backends.cupy import kernels
from gpucnn.backends.cupy.cublas import Cublas
from gpucnn.backends.cupy.graph import ThreadState
from gpucnn.backends.cupy.kernels import NULL, aligned, compute_dtype, geometry, vector_width
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window
from gpucnn.errors import ConfigurationError

WORKSPACE = "GPUCNN_WORKSPACE_MB"  # of the columns, at most; 512 by default


def choose_algorithm(window: Window, channels: int, groups: int) -> str:
    """Return the name of the algorithm for a convolution."""
    if groups == channels and groups > 1:
        return "depthwise"
    return "product" if _is_product(window) else "im2col"


def _is_product(window: Window) -> bool:
    """Return whether each window is one pixel, so that the image itself is the matrix of columns."""
    return window == Window((1, 1), dilation=window.dilation)


class ConvolutionBackend(Backend):
    """The part of the GPU backend that convolves, with the products of cuBLAS."""

    def __init__(self) -> None:
        self._cublas, self._thread, self._workspace = Cublas(), ThreadState(), _workspace()

    def conv2d_algorithm(self, window: Window, batch: int, channels: int, filters: int, groups: int, dtype: Any) -> str:
        """Return the name of the algorithm that `conv2d` uses for a convolution."""
        return choose_algorithm(window, channels, groups)

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1, relu: bool = False
    ) -> Array:
        """Convolve images: x (N, H, W, C), weight (KH, KW, C/groups, F), bias (F,) → (N, OH, OW, F)."""
        x, weight = aligned(x), aligned(weight, x.dtype)
        N, H, W, C = x.shape
        F = weight.shape[-1]
        y = cupy.empty((N, *window.output_size((H, W)), F), x.dtype)
        bias = None if bias is None else aligned(bias, compute_dtype(x.dtype))
        if choose_algorithm(window, C, groups) == "depthwise":
            self._depthwise(x, weight, bias, y, window, relu)
            return y
        kernel, rows = weight.reshape(-1, F), y.reshape(-1, F)
        for part, columns in self._columns(x, window, groups):
            for group in range(groups):
                filters = _part(group, groups, F)
                self._multiply(columns[:, group], kernel[:, filters], rows[part, filters])
        if bias is not None or relu:
            add_bias(y, bias, relu)
        return y

    def conv2d_parameter_gradients(
        self, x: Array, dy: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Return dweight (KH, KW, C/groups, F) and, with `bias`, dbias (F,), from x and dy; float32 for float16."""
        return self._weight_gradient(x, dy, window, groups), self.channel_sums(dy) if bias else None

    def _weight_gradient(self, x: Array, dy: Array, window: Window, groups: int) -> Array:
        x = aligned(x)
        dy = aligned(dy, x.dtype)
        C, F = x.shape[3], dy.shape[3]
        if choose_algorithm(window, C, groups) == "depthwise":
            return self._depthwise_weight_gradient(x, dy, window)
        dweight = cupy.empty((*window.size, C // groups, F), compute_dtype(x.dtype))
        rows, matrix = dy.reshape(-1, F), dweight.reshape(-1, F)
        for part, columns in self._columns(x, window, groups):
            for group in range(groups):
                filters = _part(group, groups, F)
                self._multiply(columns[:, group].T, rows[part, filters], matrix[:, filters], add=part.start > 0)
        return dweight

    def conv2d_input_gradient(
        self, dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int = 1
    ) -> Array:
        """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F).

        For stride 1 it is a convolution of dy with the weight rotated by 180°, which needs no col2im.
        """
        dy = aligned(dy)
        N, F = dy.shape[0], dy.shape[3]
        C = weight.shape[2] * groups
        if choose_algorithm(window, C, groups) == "depthwise":
            return self._depthwise_input_gradient(dy, aligned(weight, dy.dtype), (*image_size, C), window)
        flipped = window.flipped()
        if window.strides == (1, 1) and min(map(min, flipped.padding)) >= 0:
            return self.conv2d(dy, _flipped(weight, groups), None, flipped, groups)
        weight = aligned(weight, dy.dtype)
        kernel, rows = weight.reshape(-1, F), dy.reshape(-1, F)
        dx = cupy.empty((N, *image_size, C), dy.dtype)
        width = vector_width(dy.dtype, C // groups)
        for images, part, columns in self._parts(N, dy.shape[1:3], window, C, groups, dy.dtype):
            for group in range(groups):
                filters = _part(group, groups, F)
                self._multiply(rows[part, filters], kernel[:, filters].T, columns[:, group])
            pixels = (images.stop - images.start) * image_size[0] * image_size[1]
            arguments = np.uint32(pixels), np.int32(groups), *geometry(window, *image_size, C)
            kernels.launch_elements("col2im", dy.dtype, width, pixels * C // width, columns, dx[images], *arguments)
        return dx

    def _multiply(self, a: Array, b: Array, out: Array, add: bool = False) -> None:
        self._cublas.multiply(a, b, out, add=add, tf32=self._thread.tf32)

    # --- windows as rows ----------------------------------------------------------------------

    def _columns(self, x: Array, window: Window, groups: int) -> Iterator[tuple[slice, Array]]:
        """Yield the columns of some images, (rows, groups, KH·KW·C/groups), and which rows of all they are."""
        N, H, W, C = x.shape
        if _is_product(window):
            yield slice(0, N * H * W), x.reshape(N * H * W, groups, C // groups)
            return
        width = vector_width(x.dtype, C // groups)
        for images, part, columns in self._parts(N, window.output_size((H, W)), window, C, groups, x.dtype):
            rows = part.stop - part.start
            arguments = np.uint32(rows), np.int32(groups), *geometry(window, H, W, C)
            kernels.launch_elements("im2col", x.dtype, width, rows * C // width, x[images], columns, *arguments)
            yield part, columns

    def _parts(
        self, N: int, output_size: tuple[int, int], window: Window, C: int, groups: int, dtype: Any
    ) -> Iterator[tuple[slice, slice, Array]]:
        """Yield images, their output rows, and a buffer for their columns, for one part of the batch after another.

        As many images at a time as fit the workspace, fewer where memory is short.
        """
        OH, OW = output_size
        row_size = window.area * C
        image_elements = OH * OW * row_size
        max_images = max(1, min(N, self._workspace // (image_elements * np.dtype(dtype).itemsize)))
        memory = self._thread.memory
        fitting = {} if memory is None else memory.fitting
        buffer = allocate(max_images, (OH * OW, groups, row_size // groups), dtype, fitting)
        for start in range(0, N, len(buffer)):
            stop = min(start + len(buffer), N)
            columns = buffer[: stop - start].reshape(-1, groups, row_size // groups)
            yield slice(start, stop), slice(start * OH * OW, stop * OH * OW), columns

    # --- depthwise ---------------------------------------------------------------------------

    @staticmethod
    def _depthwise(x: Array, weight: Array, bias: Array | None, y: Array, window: Window, relu: bool) -> None:
        F, rows = y.shape[3], y.size // y.shape[3]
        pointers = x, weight, NULL if bias is None else bias, y
        numbers = np.uint32(rows), np.int32(F), np.int32(relu), *geometry(window, *x.shape[1:])
        kernels.launch_elements("depthwise", x.dtype, 1, y.size, *pointers, *numbers)

    @staticmethod
    def _depthwise_weight_gradient(x: Array, dy: Array, window: Window) -> Array:
        F, rows = dy.shape[3], dy.size // dy.shape[3]
        numbers = np.int32(F), *geometry(window, *x.shape[1:])
        arguments = x.dtype, 1, rows, F, x, dy, *numbers
        partial, parts = kernels.column_sums("depthwise_weight_gradient", *arguments, layers=window.area)
        return kernels.totals(partial, parts, x.dtype).reshape(*window.size, 1, F)

    @staticmethod
    def _depthwise_input_gradient(dy: Array, weight: Array, image: tuple[int, int, int], window: Window) -> Array:
        dx = cupy.empty((dy.shape[0], *image), dy.dtype)
        numbers = np.uint32(dx.size // image[2]), np.int32(dy.shape[3]), *geometry(window, *image)
        kernels.launch_elements("depthwise_input_gradient", dy.dtype, 1, dx.size, dy, weight, dx, *numbers)
        return dx


def _workspace() -> int:
    """Return the size of the workspace in bytes.

    Raises:
        ConfigurationError: the environment variable is not a positive number of megabytes.
    """
    requested = os.environ.get(WORKSPACE) or "512"
    try:
        megabytes = float(requested)
    except ValueError:
        megabytes = math.nan
    if not 0 < megabytes < math.inf:
        raise ConfigurationError(f"{WORKSPACE} must be a number of megabytes above 0, such as 512, not {requested!r}")
    return int(megabytes * 1e6)


def allocate(images: int, shape: tuple[int, ...], dtype: Any, fitting: dict[Any, int]) -> Array:
    """Return an empty array (images, *shape), for half as many images where memory does not suffice, and so on.

    `fitting` remembers the number of images that fitted, and the next equal request does not try more: a captured step
    must take what the step before it took.
    """
    requested = images, shape, dtype
    images = fitting.get(requested, images)
    while True:
        try:
            array = cupy.empty((images, *shape), dtype)
        except MemoryError:
            if images == 1:
                raise
            cupy.get_default_memory_pool().free_all_blocks()
            images //= 2
        else:
            fitting[requested] = images
            return array


def add_bias(y: Array, bias: Array | None, relu: bool) -> None:
    """Add a bias (C,) to y (…, C) in place; clamp at 0 with `relu`."""
    C, rows = y.shape[-1], y.size // y.shape[-1]
    numbers = np.int64(rows), np.int32(C), np.int32(relu)
    width, pointer = vector_width(y.dtype, C), NULL if bias is None else bias
    kernels.launch_rows("add_bias", y.dtype, width, rows, C, y, pointer, *numbers)


def _part(group: int, groups: int, filters: int) -> slice:
    """Return the filters of a group."""
    width = filters // groups
    return slice(group * width, (group + 1) * width)


def _flipped(weight: Array, groups: int) -> Array:
    """Return the weight of the input gradient: (KH, KW, C/groups, F) → (KH, KW, F/groups, C), rotated by 180°."""
    KH, KW, width, F = weight.shape
    cut = weight[::-1, ::-1].reshape(KH, KW, width, groups, F // groups)
    return cut.transpose(0, 1, 4, 3, 2).reshape(KH, KW, F // groups, groups * width)
