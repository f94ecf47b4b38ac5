"""Convolution and its gradients: the choice of an algorithm, and what all algorithms share.

| algorithm         | for                                                        | how                                |
|-------------------|------------------------------------------------------------|------------------------------------|
| `depthwise`       | one group per channel                                      | elementwise, no products           |
| `im2col`          | fewer than 8 images, or too few for the number of weights  | im2col, a megabyte at a time       |
| `winograd`        | 3×3, stride 1, no dilation, float32, C·F at least 1536     | a quarter of the multiplications   |
| `winograd-1d`     | the same with fewer, from 8 channels on                    | half of the multiplications        |
| `kernel-row-gemm` | strides or large kernels, with enough channels             | one product per row, no copies     |
| `lowered-rows`    | every other geometry                                       | one product over overlapping views |

The first rule that fits counts; channels are those of a group, the smaller number of in and out, which must be 16 for
`winograd`. All but `im2col` compute in HWCN, on as many images at a time as fit the workspace; they yield their output
block by block, so that a ReLU is applied while a block is in the cache. Every algorithm adds the bias itself. Groups of
channels are computed one after another, by `depthwise` all at once. It takes fewer than 8 images one by one, as they
lie.

For stride 1 the input gradient is itself a convolution, of dy with the weight rotated by 180°, by the algorithm of that
convolution. For others, or where `_dx_is_convolution` says that this would cost more, windows are added back: by
`im2col` and `depthwise` themselves, by `lowered-rows` for the rest; `depthwise` always does so. With strides, without
dilation and from 8 channels on, `lowered-rows` convolves dy for each phase of the pixels instead. The weight gradient
of `kernel-row-gemm` is that of `lowered-rows`; that of `winograd-1d` is that of `winograd`, or with fewer than 16
channels, or 16 both in and out, that of `lowered-rows`; and with very many weights it is that of `im2col`. Both
gradients of a convolution by a Winograd method are computed jointly (`joint_gradients`), from one transform of dy.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from gpucnn.backends.numpy import (
    depthwise,
    elementwise,
    im2col,
    kernel_row_gemm,
    lowered_rows,
    memory,
    norm,
    winograd,
    winograd_1d,
)
from gpucnn.backends.numpy.memory_layout import (
    batch_slice,
    batch_slices,
    contiguous,
    even_slices,
    pad,
    to_hwcn,
    to_nhwc,
    uses_hwcn,
)
from gpucnn.backends.reference import Array
from gpucnn.backends.window import Window
from gpucnn.core.checks import environment_flag

# channels of a group, the smaller number of in and out, and the product of both, from which on a form of Winograd's
# method saves more than it costs
MIN_WINOGRAD_1D_CHANNELS, MIN_WINOGRAD_CHANNELS, MIN_WINOGRAD_PRODUCT = 8, 16, 1536
MIN_WINOGRAD_GRADIENT_CHANNELS, MIN_WINOGRAD_GRADIENT_PRODUCT = 16, 512  # the same for the weight gradient
MIN_PHASE_CHANNELS = 8  # from which on the input gradient for strides is faster as several convolutions of dy
# weights in one product, per image; with more, reading them takes longer than using them
MAX_WEIGHTS_PER_IMAGE, MAX_WEIGHT_GRADIENTS_PER_IMAGE = 8192, 2048

# those with a `convolve` of one signature
ALGORITHMS: dict[str, Any] = {
    "winograd": winograd,
    "winograd-1d": winograd_1d,
    "kernel-row-gemm": kernel_row_gemm,
    "lowered-rows": lowered_rows,
}


def choose_algorithm(window: Window, batch: int, channels: int, filters: int, groups: int, dtype: Any) -> str:
    """Return the name of the algorithm for a convolution, and as a rule for its gradients."""
    if groups == channels > 1:
        return "depthwise"
    if not uses_hwcn(batch):
        return "im2col"
    C, F = channels // groups, filters // groups
    plain_3x3 = window.size == (3, 3) and window.strides == (1, 1) and window.dilation == (1, 1)
    if plain_3x3 and min(C, F) >= MIN_WINOGRAD_1D_CHANNELS and dtype == np.float32 and winograd_allowed():
        two_dimensional = min(C, F) >= MIN_WINOGRAD_CHANNELS and C * F >= MIN_WINOGRAD_PRODUCT
        algorithm, weights = ("winograd", C * F) if two_dimensional else ("winograd-1d", 3 * C * F)
    elif groups == 1 and kernel_row_gemm.is_profitable(window, C, F):
        algorithm, weights = "kernel-row-gemm", window.size[1] * C * F
    else:
        algorithm, weights = "lowered-rows", window.area * C * F
    return algorithm if weights <= MAX_WEIGHTS_PER_IMAGE * batch else "im2col"


def _weight_gradient_algorithm(algorithm: str, batch: int, channels: int, filters: int) -> str:
    """Return the algorithm for a weight gradient, given the convolution's and the channels and filters of a group."""
    product = channels * filters
    if algorithm == "winograd-1d":
        enough = min(channels, filters) >= MIN_WINOGRAD_GRADIENT_CHANNELS and product >= MIN_WINOGRAD_GRADIENT_PRODUCT
        algorithm = "winograd" if enough else "lowered-rows"
    if algorithm == "kernel-row-gemm":
        algorithm = "lowered-rows"
    too_many = algorithm == "winograd" and product > MAX_WEIGHT_GRADIENTS_PER_IMAGE * batch
    return "im2col" if too_many else algorithm


def winograd_allowed() -> bool:
    """Return whether the environment leaves Winograd convolutions on."""
    return environment_flag("GPUCNN_WINOGRAD", default=True)


def conv2d(x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1, relu: bool = False) -> Array:
    """Return y (N, OH, OW, F) of x (N, H, W, C), weight (KH, KW, C/groups, F) and bias (F,)."""
    (N, _, _, C), F = x.shape, weight.shape[-1]
    algorithm = choose_algorithm(window, N, C, F, groups, x.dtype)
    if algorithm == "im2col":
        return im2col.convolve(x, weight, bias, window, groups, relu)

    def convolve(x: Array) -> Array:
        y = memory.empty((*window.output_size(x.shape[:2]), F, x.shape[-1]), x.dtype)
        if algorithm == "depthwise":
            blocks = depthwise.convolve(pad(x, window, axis=0), weight, bias, window, y)
        else:
            function = ALGORITHMS[algorithm].convolve
            blocks = chain.from_iterable(
                function(x[:, :, c], weight[..., f], None if bias is None else bias[f], window, y[:, :, f])
                for c, f in _groups(C, F, groups)
            )
        for block in blocks:
            if relu:
                elementwise.clamp_at_zero(block, block)
        return y

    return _map_batch(_split(algorithm, N, _max_images(algorithm, x, F, window)), convolve, _batch_last(x))


def parameter_gradients(
    x: Array, dy: Array, window: Window, groups: int = 1, bias: bool = True
) -> tuple[Array, Array | None]:
    """Return dweight (KH, KW, C/groups, F) and, with `bias`, dbias (F,) from x (N, H, W, C) and dy (N, OH, OW, F)."""
    (N, _, _, C), F = x.shape, dy.shape[-1]
    algorithm = choose_algorithm(window, N, C, F, groups, x.dtype)
    algorithm = _weight_gradient_algorithm(algorithm, N, C // groups, F // groups)
    if algorithm == "im2col":
        return im2col.weight_gradient(x, dy, window, groups), norm.channel_sums(dy) if bias else None

    def gradients(x: Array, dy: Array) -> tuple[Array, Array | None]:
        if algorithm == "depthwise":
            dweight = depthwise.weight_gradient(pad(x, window, axis=0), dy, window)
            return dweight, norm.channel_sums(to_nhwc(dy)) if bias else None
        function = (winograd if algorithm == "winograd" else lowered_rows).parameter_gradients
        per_group = [function(x[:, :, c], dy[:, :, f], window, bias) for c, f in _groups(C, F, groups)]
        if groups == 1:
            return per_group[0]
        dweights, dbiases = zip(*per_group, strict=True)
        return np.concatenate(dweights, axis=-1), np.concatenate(dbiases) if bias else None

    slices = _split(algorithm, N, _max_images(algorithm, x, F, window))
    x, dy = _batch_last(x), _batch_last(dy)
    parts = [gradients(batch_slice(x, images), batch_slice(dy, images)) for images in slices]
    dweights, dbiases = zip(*parts, strict=True)
    return sum(dweights[1:], dweights[0]), sum(dbiases[1:], dbiases[0]) if bias else None


def input_gradient(dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int = 1) -> Array:
    """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F)."""
    F, C = weight.shape[-1], weight.shape[2] * groups
    algorithm = choose_algorithm(window, len(dy), C, F, groups, dy.dtype)
    if algorithm != "depthwise" and _dx_is_convolution(window, image_size, dy.shape[1:3]):
        # the weight rotated by 180°, channels and filters exchanged
        exchanged = [weight[::-1, ::-1, :, f].swapaxes(2, 3) for _, f in _groups(C, F, groups)]
        flipped_weight = exchanged[0] if groups == 1 else np.concatenate(exchanged, axis=-1)
        return conv2d(dy, flipped_weight, None, window.flipped(), groups)
    if algorithm == "im2col":
        return im2col.input_gradient(dy, weight, image_size, window, groups)

    def gradient(dy: Array) -> Array:
        if algorithm == "depthwise":
            shape = (*window.padded_size(image_size), C, dy.shape[-1])
            _, inner_rows, inner_columns = window.interior(image_size)
            return contiguous(depthwise.input_gradient(dy, weight, shape, window)[inner_rows, inner_columns])
        implementation = lowered_rows.input_gradient
        if window.dilation == window.strides == (1, 1):
            implementation = lowered_rows.input_gradient_by_rows
        elif window.dilation == (1, 1) and C // groups >= MIN_PHASE_CHANNELS:
            implementation = lowered_rows.input_gradient_by_phase
        dx = [implementation(dy[:, :, f], weight[..., f], image_size, window) for _, f in _groups(C, F, groups)]
        return dx[0] if groups == 1 else np.concatenate(dx, axis=2)

    window_row = dy.shape[2] * window.area * C * dy.itemsize  # bytes
    return _map_batch(_split(algorithm, len(dy), lowered_rows.BLOCK // window_row), gradient, _batch_last(dy))


def joint_gradients(
    x: Array, dy: Array, weight: Array, window: Window, groups: int, bias: bool
) -> tuple[Array, Array | None, Array] | None:
    """Return dweight, dbias with `bias`, and dx, if their algorithm computes them jointly; else None.

    Where dx is a convolution of dy by a Winograd method, dy is transformed for it. The weight gradient of that
    convolution, that is of the flipped weight, needs the same transform of dy, with x as its output gradient. It has as
    many tiles as dx, where the usual weight gradient has those of dy: without padding these can be much fewer.
    """
    (N, H, W, C), F = x.shape, dy.shape[-1]
    flipped = window.flipped()
    algorithm = choose_algorithm(flipped, N, F, C, groups, dy.dtype)
    implementation = {"winograd": winograd, "winograd-1d": winograd_1d}.get(algorithm)
    if implementation is None or groups > 1 or not _dx_is_convolution(window, (H, W), dy.shape[1:3]):
        return None
    if _weight_gradient_algorithm(algorithm, N, F, C) == "im2col":
        return None
    if implementation.count_tiles((H, W)) > implementation.count_tiles(dy.shape[1:3]):
        return None
    flipped_weight, dflipped = weight[::-1, ::-1].swapaxes(2, 3), memory.zeros((*window.size, F, C), dy.dtype)
    dbias = norm.channel_sums(dy) if bias else None
    slices = batch_slices(N, _max_images(algorithm, dy, C, flipped))
    x, dy = to_hwcn(x), to_hwcn(dy)
    dx = memory.empty(x.shape, dy.dtype)
    for images in slices:
        out = dx if len(slices) == 1 else memory.empty((H, W, C, images.stop - images.start), dy.dtype)
        dflipped += implementation.convolve_and_weight_gradient(
            batch_slice(dy, images), flipped_weight, batch_slice(x, images), flipped, out
        )
        if out is not dx:
            dx[..., images] = out
    return dflipped[::-1, ::-1].swapaxes(2, 3), dbias, to_nhwc(dx)


def _split(algorithm: str, batch: int, max_images: int) -> Sequence[slice]:
    """Split a batch into slices of at most `max_images`; `depthwise` takes few images one by one, as they lie."""
    one_by_one = algorithm == "depthwise" and not uses_hwcn(batch)
    return even_slices(batch, batch) if one_by_one else batch_slices(batch, max_images)


def _batch_last(x: Array) -> Array:
    """Return x (N, H, W, C) as (H, W, C, N): contiguous in HWCN, or with few images a view."""
    return to_hwcn(x) if uses_hwcn(len(x)) else contiguous(x).transpose(1, 2, 3, 0)


def _map_batch(slices: Sequence[slice], function: Callable[[Array], Array], array: Array) -> Array:
    """Return the results of a function on contiguous slices of an array (…, N), concatenated, as (N, …)."""
    if len(slices) == 1:
        return to_nhwc(function(array))
    result, batch = None, array.shape[-1]
    for images in slices:
        part = function(batch_slice(array, images))
        if result is None:  # in the engine's layout
            image, hwcn = part.shape[:-1], uses_hwcn(batch)
            result = memory.empty((*image, batch) if hwcn else (batch, *image), part.dtype)
            result = result if hwcn else result.transpose(1, 2, 3, 0)
        result[..., images] = part
    return to_nhwc(result)


def _max_images(algorithm: str, x: Array, filters: int, window: Window) -> int:
    """Return for how many images an algorithm's smallest unit of work fits the workspace."""
    N, H, W, C = x.shape
    pixel = max(C, filters) * x.itemsize  # bytes
    if algorithm == "winograd":
        return N  # it splits them itself
    if algorithm == "winograd-1d":
        return int(winograd_1d.BLOCK // winograd_1d.tile_bytes(pixel))
    if algorithm == "kernel-row-gemm":
        return int(kernel_row_gemm.MAX_ROW_BYTES // (window.output_size((H, W))[1] * filters * x.itemsize))
    lowered_row = window.padded_size((H, W))[1] * max(window.size[0] * C, filters) * x.itemsize
    return int(lowered_rows.BLOCK // lowered_row)


def _dx_is_convolution(window: Window, image_size: tuple[int, int], output_size: tuple[int, int]) -> bool:
    """Return whether dx is best computed as a convolution of dy.

    It can be for stride 1, unless the padding is as wide as the kernel. It has a window for each pixel of dx, where
    adding back has one for each of dy: half as many, say, where a large kernel without padding shrinks a small image.
    """
    possible = window.strides == (1, 1) and min(map(min, window.flipped().padding)) >= 0
    (H, W), (OH, OW) = image_size, output_size
    return possible and (H * W < 1.5 * OH * OW)


@lru_cache(maxsize=1024)
def _groups(channels: int, filters: int, groups: int) -> tuple[tuple[slice, slice], ...]:
    """Return the channels and the filters of each group."""
    return tuple(zip(even_slices(channels, groups), even_slices(filters, groups), strict=True))
