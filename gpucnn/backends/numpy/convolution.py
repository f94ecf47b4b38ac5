"""Convolution and its gradients: which path they take, and what all paths share.

| path          | for                                                        | how                                |
|---------------|------------------------------------------------------------|------------------------------------|
| `depthwise`   | a group for each channel                                   | elementwise, no products           |
| `chunks`      | fewer than 8 images, or too few for so many weights        | im2col, a megabyte at a time       |
| `winograd`    | 3×3, stride 1, no dilation, float32, in times out 1536     | a quarter of the multiplications   |
| `winograd-1d` | the same with fewer, from 8 channels on                    | half of the multiplications        |
| `kernel-rows` | strides or large kernels, with enough channels             | a product a kernel row, no copies  |
| `rows`        | every other geometry                                       | one product over overlapping views |

The first rule that fits counts; channels are those of a group, the fewer of in and out, which `winograd` wants 16 of.
All but `chunks` keep the batch innermost, and get so many images at once that what they rearrange fits the scratch;
they yield their output block by block, so that a ReLU is applied while a block is in the cache. Every path adds the
bias itself. Groups of channels are taken one after another, by `depthwise` all at once. It takes fewer than 8 images
one by one, as they lie.

For stride 1 the input gradient is itself a convolution, of dy with the weight turned by half a turn, on the path of
that one. Where it is not, or where `_turns` says that this would cost more, windows are added back: by `chunks` and
`depthwise` themselves, by `rows` for all others; `depthwise` always does so. With strides, without dilation and from 8
channels on, `rows` convolves dy for each residue of the pixels instead. The weight gradient of `kernel-rows` is that of
`rows`; that of `winograd-1d` is that of `winograd`, or with fewer than 16 channels, or 16 both in and out, that of
`rows`; and with very many weights it is that of `chunks`. Who wants both gradients of a convolution by one of
Winograd's methods gets them at once (`shared_gradients`), from one transform of dy.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
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
    to_hwcn,
    to_nhwc,
    uses_hwcn,
)
from gpucnn.backends.window import Window
from gpucnn.core.checks import environment_flag

Array = Any

# channels of a group, the fewer of in and out, and the product of both, from which on a form of Winograd's method saves
# more than it costs
WINOGRAD_1D_FEWEST, WINOGRAD_FEWEST, WINOGRAD_PRODUCT = 8, 16, 1536
WINOGRAD_WEIGHT_FEWEST, WINOGRAD_WEIGHT_PRODUCT = 16, 512  # for its weight gradient, and the product of in and out
RESIDUE_FEWEST = 8  # channels from which on strides are better undone by several convolutions of dy
# weights in one product for each image that they meet; with more, reading them takes longer than using them
MOST_WEIGHTS, MOST_WEIGHT_GRADIENTS = 8192, 2048

# those that share one signature
PATHS: dict[str, Any] = {
    "winograd": winograd,
    "winograd-1d": winograd_1d,
    "kernel-row-gemm": kernel_row_gemm,
    "lowered-rows": lowered_rows,
}


def path(window: Window, batch: int, channels: int, filters: int, groups: int, dtype: Any) -> str:
    """Return the name of the path that a convolution takes, and its gradients as a rule."""
    if groups == channels > 1:
        return "depthwise"
    if not uses_hwcn(batch):
        return "im2col"
    C, F = channels // groups, filters // groups
    plain = window.size == (3, 3) and window.strides == (1, 1) and window.dilation == (1, 1)
    if plain and min(C, F) >= WINOGRAD_1D_FEWEST and dtype == np.float32 and winograd_allowed():
        both_ways = min(C, F) >= WINOGRAD_FEWEST and C * F >= WINOGRAD_PRODUCT
        name, weights = ("winograd", C * F) if both_ways else ("winograd-1d", 3 * C * F)
    elif groups == 1 and kernel_row_gemm.pays(window, C, F):
        name, weights = "kernel-row-gemm", window.size[1] * C * F
    else:
        name, weights = "lowered-rows", window.area * C * F
    return name if weights <= MOST_WEIGHTS * batch else "im2col"


def _path_of_weight_gradient(name: str, batch: int, channels: int, filters: int) -> str:
    """Return the path of a weight gradient, given that of the convolution and the channels and filters of a group."""
    product = channels * filters
    if name == "winograd-1d":
        enough = min(channels, filters) >= WINOGRAD_WEIGHT_FEWEST and product >= WINOGRAD_WEIGHT_PRODUCT
        name = "winograd" if enough else "lowered-rows"
    if name == "kernel-row-gemm":
        name = "lowered-rows"
    return "im2col" if name == "winograd" and product > MOST_WEIGHT_GRADIENTS * batch else name


def winograd_allowed() -> bool:
    """Tell whether the environment leaves Winograd convolutions on."""
    return environment_flag("GPUCNN_WINOGRAD", default=True)


def forward(x: Array, weight: Array, bias: Array | None, window: Window, groups: int, relu: bool) -> Array:
    """Return y (N, OH, OW, F) of x (N, H, W, C), weight (KH, KW, C/groups, F) and bias (F,)."""
    (N, _, _, C), F = x.shape, weight.shape[-1]
    name = path(window, N, C, F, groups, x.dtype)
    if name == "im2col":
        return im2col.convolve(x, weight, bias, window, groups, relu)

    def convolved(x: Array) -> Array:
        y = memory.empty((*window.output_size(x.shape[:2]), F, x.shape[-1]), x.dtype)
        for part in _finished_blocks(name, x, weight, bias, window, groups, y):
            if relu:
                elementwise.cut_off(part, part)
        return y

    return _by_slices(_slices(name, N, _images_at_once(name, x, F, window)), convolved, _pixels_first(x))


def parameter_gradients(x: Array, dy: Array, window: Window, groups: int, bias: bool) -> tuple[Array, Array | None]:
    """Return dweight (KH, KW, C/groups, F) and, with `bias`, dbias (F,) from x (N, H, W, C) and dy (N, OH, OW, F)."""
    (N, _, _, C), F = x.shape, dy.shape[-1]
    name = _path_of_weight_gradient(path(window, N, C, F, groups, x.dtype), N, C // groups, F // groups)
    if name == "im2col":
        return im2col.weight_gradient(x, dy, window, groups), norm.channel_sums(dy) if bias else None

    def gradients_of_slice(x: Array, dy: Array) -> tuple[Array, Array | None]:
        if name == "depthwise":
            dweight = depthwise.weight_gradient(_padded(x, window), dy, window)
            return dweight, norm.channel_sums(to_nhwc(dy)) if bias else None
        of_path = winograd.parameter_gradients if name == "winograd" else lowered_rows.parameter_gradients
        of_groups = [of_path(x[:, :, c], dy[:, :, f], window, bias) for c, f in _groups(C, F, groups)]
        if groups == 1:
            return of_groups[0]
        dweights, dbiases = zip(*of_groups, strict=True)
        return np.concatenate(dweights, axis=-1), np.concatenate(dbiases) if bias else None

    slices = _slices(name, N, _images_at_once(name, x, F, window))
    x, dy = _pixels_first(x), _pixels_first(dy)
    parts = [gradients_of_slice(batch_slice(x, images), batch_slice(dy, images)) for images in slices]
    dweights, dbiases = zip(*parts, strict=True)
    return sum(dweights[1:], dweights[0]), sum(dbiases[1:], dbiases[0]) if bias else None


def input_gradient(dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int) -> Array:
    """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F)."""
    F, C = weight.shape[-1], weight.shape[2] * groups
    name = path(window, len(dy), C, F, groups, dy.dtype)
    turned = window.flipped()
    if name != "depthwise" and _turns(window, image_size, dy.shape[1:3]):
        # for stride 1 dx is dy convolved with the weight turned by half a turn, channels and filters exchanged
        exchanged = [weight[::-1, ::-1, :, f].swapaxes(2, 3) for _, f in _groups(C, F, groups)]
        turned_weight = exchanged[0] if groups == 1 else np.concatenate(exchanged, axis=-1)
        return forward(dy, turned_weight, None, turned, groups, relu=False)
    if name == "im2col":
        return im2col.input_gradient(dy, weight, image_size, window, groups)

    def gradient(dy: Array) -> Array:
        if name == "depthwise":
            shape = (*window.padded_size(image_size), C, dy.shape[-1])
            _, inner_rows, inner_columns = window.interior(image_size)
            return contiguous(depthwise.input_gradient(dy, weight, shape, window)[inner_rows, inner_columns])
        of_path = lowered_rows.input_gradient
        if window.dilation == window.strides == (1, 1):
            of_path = lowered_rows.input_gradient_by_rows
        elif window.dilation == (1, 1) and C // groups >= RESIDUE_FEWEST:
            of_path = lowered_rows.input_gradient_by_residue
        dx = [of_path(dy[:, :, f], weight[..., f], image_size, window) for _, f in _groups(C, F, groups)]
        return dx[0] if groups == 1 else np.concatenate(dx, axis=2)

    a_row_of_windows = dy.shape[2] * window.area * C * dy.itemsize
    return _by_slices(_slices(name, len(dy), lowered_rows.BLOCK // a_row_of_windows), gradient, _pixels_first(dy))


def shared_gradients(
    x: Array, dy: Array, weight: Array, window: Window, groups: int, bias: bool
) -> tuple[Array, Array | None, Array] | None:
    """Return dweight, dbias with `bias`, and dx, if their path computes them at once; else None.

    Where dx is a convolution of dy by one of Winograd's methods, dy is transformed for it. The gradient of the weight
    of that convolution, which is the turned weight, is what x means for it, and sees the same of dy. It takes as many
    tiles as dx, where the path of the weight gradient takes those of dy: without padding these can be much fewer.
    """
    (N, H, W, C), F = x.shape, dy.shape[-1]
    turned = window.flipped()
    name = path(turned, N, F, C, groups, dy.dtype)
    of_path = {"winograd": winograd, "winograd-1d": winograd_1d}.get(name)
    turns = groups == 1 and _turns(window, (H, W), dy.shape[1:3])
    if of_path is None or not turns or _path_of_weight_gradient(name, N, F, C) == "im2col":
        return None
    if of_path.tiles_of((H, W)) > of_path.tiles_of(dy.shape[1:3]):
        return None
    turned_weight, of_turned = weight[::-1, ::-1].swapaxes(2, 3), memory.zeros((*window.size, F, C), dy.dtype)
    dbias = norm.channel_sums(dy) if bias else None
    slices = batch_slices(N, _images_at_once(name, dy, C, turned))
    x, dy = to_hwcn(x), to_hwcn(dy)
    dx = memory.empty(x.shape, dy.dtype)
    for images in slices:
        out = dx if len(slices) == 1 else memory.empty((H, W, C, images.stop - images.start), dy.dtype)
        of_turned += of_path.convolve_with_gradient(
            batch_slice(dy, images), turned_weight, batch_slice(x, images), turned, out
        )
        if out is not dx:
            dx[..., images] = out
    return of_turned[::-1, ::-1].swapaxes(2, 3), dbias, to_nhwc(dx)


def _slices(name: str, batch: int, most: int) -> Sequence[slice]:
    """Cut a batch into slices of at most so many images; a few are taken one by one where they lie, by `depthwise`."""
    one_by_one = name == "depthwise" and not uses_hwcn(batch)
    return even_slices(batch, batch) if one_by_one else batch_slices(batch, most)


def _pixels_first(x: Array) -> Array:
    """Return x (N, H, W, C) as (H, W, C, N): contiguous with the batch innermost, or with few images a view."""
    return to_hwcn(x) if uses_hwcn(len(x)) else contiguous(x).transpose(1, 2, 3, 0)


def _by_slices(slices: Sequence[slice], function: Callable[[Array], Array], array: Array) -> Array:
    """Return what a function makes of contiguous slices of images of an array (…, N), joined, as (N, …)."""
    if len(slices) == 1:
        return to_nhwc(function(array))
    joined = None
    for images in slices:
        part = function(batch_slice(array, images))
        if joined is None:
            joined = _empty(part.shape[:-1], array.shape[-1], part.dtype)
        joined[..., images] = part
    return to_nhwc(joined)


def _empty(image: tuple[int, ...], batch: int, dtype: Any) -> Array:
    """Return uninitialised images (H, W, C, N) that lie as the engine keeps so many."""
    if uses_hwcn(batch):
        return memory.empty((*image, batch), dtype)
    return memory.empty((batch, *image), dtype).transpose(1, 2, 3, 0)


def _images_at_once(name: str, x: Array, filters: int, window: Window) -> int:
    """Return for how many images the least that a path can rearrange at once fits the scratch."""
    N, H, W, C = x.shape
    numbers = max(C, filters) * x.itemsize  # bytes of a pixel
    if name == "winograd":
        return N  # it takes slices of them itself
    if name == "winograd-1d":
        return int(winograd_1d.BLOCK // winograd_1d.tile_bytes(numbers))
    if name == "kernel-row-gemm":
        return int(kernel_row_gemm.ROW // (window.output_size((H, W))[1] * filters * x.itemsize))
    a_lowered_row = window.padded_size((H, W))[1] * max(window.size[0] * C, filters) * x.itemsize
    return int(lowered_rows.BLOCK // a_lowered_row)


def _turns(window: Window, image_size: tuple[int, int], output_size: tuple[int, int]) -> bool:
    """Tell whether dx is best computed as a convolution of dy.

    It can be for stride 1, unless the padding is as wide as the kernel. It has a window for each pixel of dx, where
    adding back has one for each of dy: half as many, say, where a large kernel without padding shrinks a small image.
    """
    possible = window.strides == (1, 1) and min(map(min, window.flipped().padding)) >= 0
    (H, W), (OH, OW) = image_size, output_size
    return possible and (H * W < 1.5 * OH * OW)


def _finished_blocks(
    name: str, x: Array, weight: Array, bias: Array | None, window: Window, groups: int, y: Array
) -> Iterator[Array]:
    """Fill y by the path of that name; yield each part of it when it is done."""
    if name == "depthwise":
        yield from depthwise.convolve(_padded(x, window), weight, bias, window, y)
        return
    of_path = PATHS[name].convolve
    for c, f in _groups(x.shape[2], weight.shape[-1], groups):
        yield from of_path(x[:, :, c], weight[..., f], None if bias is None else bias[f], window, y[:, :, f])


def _padded(x: Array, window: Window) -> Array:
    """Return x (H, W, C, n) with its padding."""
    (H, W, C, n), (_, rows, columns) = x.shape, window.interior(x.shape[:2])
    if window.padding == ((0, 0), (0, 0)):
        return x
    padded = memory.zeros((*window.padded_size((H, W)), C, n), x.dtype)
    padded[rows, columns] = x
    return padded


@lru_cache(maxsize=1024)
def _groups(channels: int, filters: int, groups: int) -> tuple[tuple[slice, slice], ...]:
    """Return the channels and the filters of each group."""
    return tuple(zip(even_slices(channels, groups), even_slices(filters, groups), strict=True))
