"""The CPU engine's kernels against the reference ones: every path, odd sizes, slices and blocks, forced one by one.

The team of threads is the subject of `test_sharding.py`.
"""

import gc
import math

import numpy as np
import pytest
import scipy.special

import gpucnn
from gpucnn import layers as L
from gpucnn.backends import Backend, Window, get_backend
from gpucnn.backends.numpy import (
    arena,
    convolution,
    depthwise,
    elementwise,
    im2col,
    kernel_row_gemm,
    lowered_rows,
    memory,
    memory_layout,
    norm,
    winograd,
    winograd_1d,
    workspace,
)
from tests.helpers import workspace_bytes

ENGINE, REFERENCE = get_backend("numpy"), Backend()
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}  # L2, relative; float32 is compared with float64

SAME3, SAME5 = ((1, 1), (1, 1)), ((2, 2), (2, 2))

# N, (H, W), C, F, window, groups
CONVOLUTIONS = {
    "lenet_first": (40, (28, 28), 1, 6, Window((5, 5), padding=SAME5), 1),
    "lenet_second": (70, (14, 14), 6, 16, Window((5, 5)), 1),
    "odd_batch": (131, (7, 6), 3, 4, Window((3, 3), padding=SAME3), 1),
    "even_kernel": (16, (9, 8), 2, 3, Window((2, 4), padding=((0, 1), (1, 2))), 1),
    "one_sided_padding": (17, (5, 5), 2, 2, Window((3, 3), padding=((2, 0), (0, 2))), 1),
    "padding_over_kernel": (20, (4, 5), 2, 3, Window((3, 2), padding=((3, 3), (2, 4))), 1),
    "whole_image": (33, (4, 4), 3, 5, Window((4, 4)), 1),
    "one_by_one": (24, (5, 6), 7, 3, Window((1, 1)), 1),
    "one_by_one_wide": (20, (5, 6), 40, 48, Window((1, 1)), 1),
    "one_by_one_stride": (20, (6, 7), 40, 8, Window((1, 1), (2, 2)), 1),
    "thirty_two": (16, (6, 6), 32, 32, Window((3, 3), padding=SAME3), 1),
    "wide": (6, (9, 8), 40, 50, Window((3, 3), padding=SAME3), 1),
    "single_image": (1, (11, 10), 3, 8, Window((3, 3), padding=SAME3), 1),
    "stride": (18, (9, 10), 3, 4, Window((3, 3), (2, 3), SAME3), 1),
    "dilation": (18, (9, 10), 3, 4, Window((3, 2), dilation=(2, 3), padding=SAME3), 1),
    "stride_and_dilation": (5, (12, 11), 3, 4, Window((3, 3), (2, 2), SAME3, (2, 2)), 1),
    "groups": (18, (6, 7), 6, 9, Window((3, 3), padding=SAME3), 3),
    "groups_wide": (18, (6, 7), 32, 32, Window((3, 3), padding=SAME3), 2),
    "winograd_odd": (19, (11, 13), 24, 36, Window((3, 3), padding=SAME3), 1),
    "winograd_valid": (16, (7, 6), 24, 24, Window((3, 3)), 1),
    "winograd_one_pixel": (16, (3, 3), 24, 24, Window((3, 3)), 1),
    "winograd_one_sided": (16, (5, 4), 24, 24, Window((3, 3), padding=((2, 0), (1, 4))), 1),
    "winograd_wide_padding": (16, (5, 6), 8, 9, Window((3, 3), padding=((4, 1), (7, 9))), 1),
    "winograd_many_channels": (17, (6, 7), 40, 36, Window((3, 3), padding=SAME3), 1),
    "many_weights": (9, (3, 4), 260, 300, Window((3, 3), padding=SAME3), 1),
    "many_weights_backward": (16, (3, 4), 180, 200, Window((3, 3), padding=SAME3), 1),
    "many_weights_stride": (8, (5, 4), 100, 100, Window((3, 3), (2, 2), SAME3), 1),
    "winograd_large_batch": (131, (5, 5), 24, 24, Window((3, 3), padding=SAME3), 1),
    "shrinking": (17, (7, 8), 3, 4, Window((5, 4), padding=((1, 0), (0, 0))), 1),
    "many_filters": (17, (7, 9), 6, 34, Window((5, 5), padding=SAME5), 1),
    "many_filters_stride": (18, (9, 10), 5, 40, Window((3, 3), (2, 2), SAME3), 1),
    "many_filters_wide_stride": (16, (10, 11), 9, 33, Window((2, 5), (3, 3), ((0, 1), (2, 1))), 1),
    "many_filters_stride_and_dilation": (16, (11, 12), 3, 32, Window((3, 3), (2, 3), SAME5, (2, 2)), 1),
    "winograd_many_filters": (17, (6, 7), 24, 64, Window((3, 3), padding=SAME3), 1),
    "depthwise": (18, (6, 7), 8, 8, Window((3, 3), padding=SAME3), 8),
    "depthwise_multiplied": (18, (6, 7), 3, 6, Window((3, 2), (2, 1), SAME3, (1, 2)), 3),
    "depthwise_stride": (18, (6, 7), 8, 8, Window((3, 3), (2, 2), SAME3), 8),
    "depthwise_of_few": (7, (6, 7), 24, 24, Window((3, 3), padding=SAME3), 24),
    "depthwise_of_few_multiplied": (3, (6, 7), 4, 12, Window((3, 2), (2, 1), SAME3, (1, 2)), 4),
    "depthwise_of_one": (1, (9, 8), 150, 150, Window((3, 3), (2, 2), SAME3), 150),
}

every_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def assert_l2_close(actual, expected, tolerance, what):
    assert actual.shape == expected.shape, what
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"{what}: off by {error:.1e}, allowed {tolerance:.0e}"


def convolution_arrays(name, dtype="float64"):
    N, (H, W), C, F, window, groups = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(N, H, W, C)), rng.normal(size=(*window.size, C // groups, F))
    bias, dy = rng.normal(size=F), rng.normal(size=(N, *window.output_size((H, W)), F))
    return [array.astype(dtype) for array in (x, weight, bias, dy)]


def all_three(backend, name, dtype="float64"):
    """y, dweight, dbias and dx, and those of them that are computed at once."""
    (H, W), window, groups = CONVOLUTIONS[name][1], *CONVOLUTIONS[name][4:]
    x, weight, bias, dy = convolution_arrays(name, dtype)
    dweight, dbias = backend.conv2d_parameter_gradients(x, dy, window, groups)
    assert backend.conv2d_parameter_gradients(x, dy, window, groups, bias=False)[1] is None
    assert backend.conv2d_gradients(x, dy, weight, window, groups, bias=False)[1] is None
    joint = backend.conv2d_gradients(x, dy, weight, window, groups)
    return {
        "y": backend.conv2d(x, weight, bias, window, groups),
        "dweight": dweight,
        "dbias": dbias,
        "dx": backend.conv2d_input_gradient(dy, weight, (H, W), window, groups),
        **dict(zip(("dweight at once", "dbias at once", "dx at once"), joint, strict=True)),
    }


@every_dtype
@every_convolution
def test_convolution(name, dtype):
    expected = all_three(REFERENCE, name)
    for what, actual in all_three(ENGINE, name, dtype).items():
        assert actual.dtype == dtype
        assert_l2_close(actual, expected[what], TOLERANCE[dtype], what)


@every_convolution
def test_im2col_serves_every_geometry(name):
    x, weight, bias, dy = convolution_arrays(name)
    image_size, window, groups = CONVOLUTIONS[name][1], *CONVOLUTIONS[name][4:]
    expected = all_three(REFERENCE, name)
    actual = {
        "y": im2col.convolve(x, weight, bias, window, groups, relu=False),
        "dweight": im2col.weight_gradient(x, dy, window, groups),
        "dx": im2col.input_gradient(dy, weight, image_size, window, groups),
    }
    for what, array in actual.items():
        assert_l2_close(array, expected[what], TOLERANCE["float64"], what)


def force(monkeypatch, name):
    monkeypatch.setattr(convolution, "choose_algorithm", lambda *geometry: name)


@pytest.mark.parametrize("batch", [1, 2, 131])
@every_convolution
def test_lowered_rows_serve_every_geometry(name, batch, monkeypatch):
    """Whatever the number of images: also the few that the engine would not give them."""
    monkeypatch.setitem(CONVOLUTIONS, name, (batch, *CONVOLUTIONS[name][1:]))
    force(monkeypatch, "lowered-rows")
    expected = all_three(REFERENCE, name)
    for what, actual in all_three(ENGINE, name).items():
        assert_l2_close(actual, expected[what], TOLERANCE["float64"], what)


KERNEL_ROWS_SERVE = [
    name for name, (*_, window, groups) in CONVOLUTIONS.items() if groups == 1 and kernel_row_gemm.supports(window)
]


@pytest.mark.parametrize("batch", [1, 17, 131])
@pytest.mark.parametrize("name", KERNEL_ROWS_SERVE)
def test_kernel_row_gemm_serves_every_geometry(name, batch, monkeypatch):
    """Every geometry that a product for each row of the kernel can serve, in large blocks and the smallest."""
    monkeypatch.setitem(CONVOLUTIONS, name, (batch, *CONVOLUTIONS[name][1:]))
    expected = all_three(REFERENCE, name)
    force(monkeypatch, "kernel-row-gemm")
    monkeypatch.setattr(convolution, "_dx_is_convolution", lambda *geometry: False)  # dx would be of other geometry
    for block in (kernel_row_gemm.BLOCK, 1):
        monkeypatch.setattr(kernel_row_gemm, "BLOCK", block)
        for dtype in ("float32", "float64"):
            for what, actual in all_three(ENGINE, name, dtype).items():
                assert_l2_close(actual, expected[what], TOLERANCE[dtype], f"{what} in blocks of {block} bytes")


def test_kernel_row_gemm_of_random_small_shapes():
    """Rows of the kernel that see padding alone, images smaller than the kernel, in small random shapes."""
    rng, tried = np.random.default_rng(1), 0
    for _ in range(400):
        size, strides = (tuple(map(int, rng.integers(1, most, 2))) for most in (6, 5))
        down, across = ((int(a), int(b)) for a, b in (rng.integers(0, 7, 2), rng.integers(0, size[1], 2)))
        window = Window(size, strides, (down, across), (int(rng.integers(1, 3)), 1))
        image_size = tuple(map(int, rng.integers(1, 11, 2)))
        if min(window.output_size(image_size)) < 1:
            continue
        C, F = map(int, rng.integers(1, 4, 2))
        x, weight, bias = rng.normal(size=(2, *image_size, C)), rng.normal(size=(*size, C, F)), rng.normal(size=F)
        y = np.full((*window.output_size(image_size), F, 2), np.nan)
        for _ in kernel_row_gemm.convolve(memory_layout.to_hwcn(x), weight, bias, window, y):
            pass
        expected = REFERENCE.conv2d(x, weight, bias, window)
        assert np.abs(memory_layout.to_nhwc(y) - expected).max() < 1e-11, (window, image_size)
        tried += 1
    assert tried > 250


@pytest.mark.parametrize(
    "pays", [kernel_row_gemm.is_profitable, lambda window, *sizes: kernel_row_gemm.supports(window), lambda *a: False]
)
@pytest.mark.parametrize("name", [name for name, (*_, w, _groups) in CONVOLUTIONS.items() if w.dilation == (1, 1)])
def test_strided_input_gradient_by_phase(name, pays, monkeypatch):
    """Whatever the number of channels: also the few for which windows are added back; whatever path it takes."""
    monkeypatch.setattr(kernel_row_gemm, "is_profitable", pays)
    N, image_size, C, F, window, _ = CONVOLUTIONS[name]
    rng = np.random.default_rng(1)
    weight, dy = rng.normal(size=(*window.size, C, F)), rng.normal(size=(N, *window.output_size(image_size), F))
    found = lowered_rows.input_gradient_by_phase(memory_layout.to_hwcn(dy), weight, image_size, window)
    expected = REFERENCE.conv2d_input_gradient(dy, weight, image_size, window)
    assert_l2_close(memory_layout.to_nhwc(found), expected, TOLERANCE["float64"], "dx")


def test_strided_input_gradient_of_random_small_shapes():
    """Wider than the kernel, pixels that no window sees, and padding wider than the kernel, in small random shapes."""
    rng, tried = np.random.default_rng(0), 0
    for _ in range(300):
        size, strides = (tuple(map(int, rng.integers(1, most, 2))) for most in (6, 5))
        window = Window(size, strides, tuple((int(a), int(b)) for a, b in rng.integers(0, 4, (2, 2))))
        image_size = tuple(map(int, rng.integers(1, 11, 2)))
        if min(window.output_size(image_size)) < 1:
            continue
        C, F = map(int, rng.integers(1, 4, 2))
        weight, dy = rng.normal(size=(*size, C, F)), rng.normal(size=(2, *window.output_size(image_size), F))
        found = lowered_rows.input_gradient_by_phase(memory_layout.to_hwcn(dy), weight, image_size, window)
        expected = REFERENCE.conv2d_input_gradient(dy, weight, image_size, window)
        assert np.abs(memory_layout.to_nhwc(found) - expected).max() < 1e-11, (window, image_size)
        tried += 1
    assert tried > 200


WINOGRAD_SERVES = [
    name
    for name, (*_, window, _groups) in CONVOLUTIONS.items()
    if window.size == (3, 3) and window.strides == window.dilation == (1, 1)
]


@pytest.mark.parametrize("batch", [1, 17, 100])
@pytest.mark.parametrize("name", WINOGRAD_SERVES)
@pytest.mark.parametrize("method", ["winograd", "winograd-1d"])
def test_winograd(method, name, batch, monkeypatch):
    """Every 3×3 convolution of stride 1, in large blocks and the smallest, with any number of channels and images."""
    monkeypatch.setitem(CONVOLUTIONS, name, (batch, *CONVOLUTIONS[name][1:]))
    monkeypatch.setattr(convolution, "MIN_WINOGRAD_GRADIENT_CHANNELS", 1)
    monkeypatch.setattr(convolution, "MIN_WINOGRAD_GRADIENT_PRODUCT", 1)
    force(monkeypatch, method)
    expected = all_three(REFERENCE, name)
    split_images = 0 if batch == 17 else winograd.MAX_TILE_BYTES  # of the images
    for block, whole in ((winograd.BLOCK, winograd.MAX_TILE_BYTES), (1, split_images)):
        monkeypatch.setattr(winograd, "BLOCK", block)
        monkeypatch.setattr(winograd, "MAX_TILE_BYTES", whole)
        monkeypatch.setattr(winograd_1d, "BLOCK", block)
        for what, actual in all_three(ENGINE, name, "float32").items():
            assert_l2_close(actual, expected[what], 1e-5, f"{what} in blocks of {block} bytes")


def test_winograd_cuts_many_filters_into_small_products():
    assert winograd._split_filters(128, 128 * 64) == 2
    assert winograd._split_filters(64, 64 * 64) == 1
    assert winograd._split_filters(130, 128 * 64) == 2
    assert winograd._split_filters(33, 1 << 30) == 1  # what cannot be halved stays whole
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(64, 4, 4, 128)), rng.normal(size=(3, 3, 128, 130))
    window = Window((3, 3), padding=SAME3)
    y = ENGINE.conv2d(x.astype("float32"), weight.astype("float32"), None, window)
    assert_l2_close(y, REFERENCE.conv2d(x, weight, None, window), 1e-5, "y")


@every_convolution
def test_convolution_in_small_buffers_is_the_same(name, monkeypatch):
    """Work cut as finely as it can be: row by row, image by image, pixel by pixel."""
    expected = all_three(REFERENCE, name)
    for module in (im2col, lowered_rows, kernel_row_gemm, winograd, winograd_1d, depthwise):
        monkeypatch.setattr(module, "BLOCK", 1 << 8)
    monkeypatch.setattr(lowered_rows, "GRADIENT_BLOCK", 1 << 8)
    monkeypatch.setattr(lowered_rows, "PRODUCT_BLOCK", 1 << 8)
    monkeypatch.setattr(lowered_rows, "UNPACKED_GEMM_MAX", 4e3)
    monkeypatch.setattr(lowered_rows, "MIN_PIXELS", 1)
    monkeypatch.setattr(memory_layout, "TRANSPOSE_BLOCK", 3)
    monkeypatch.setattr(convolution, "_max_images", lambda *geometry: 16)
    for dtype in ("float32", "float64"):
        for what, actual in all_three(ENGINE, name, dtype).items():
            assert_l2_close(actual, expected[what], TOLERANCE[dtype], what)


@every_dtype
@every_convolution
def test_relu_is_fused_into_the_convolution(name, dtype):
    x, weight, bias, _ = convolution_arrays(name, dtype)
    window, groups = CONVOLUTIONS[name][4:]
    plain = ENGINE.conv2d(x, weight, bias, window, groups)
    assert np.array_equal(ENGINE.conv2d(x, weight, bias, window, groups, relu=True), np.maximum(plain, 0))


def test_convolution_method_by_shape(monkeypatch):
    monkeypatch.delenv("GPUCNN_WINOGRAD", raising=False)

    def path(window, batch, channels, filters, groups=1, dtype="float32"):
        return convolution.choose_algorithm(window, batch, channels, filters, groups, np.dtype(dtype))

    plain = Window((3, 3))
    assert path(plain, 16, 64, 64) == path(plain, 8, 16, 96) == path(plain, 8, 96, 16) == "winograd"
    assert path(plain, 16, 64, 64, dtype="float64") == path(plain, 16, 16, 16, dtype="float64") == "kernel-row-gemm"
    assert path(plain, 7, 64, 64) == path(plain, 7, 16, 16) == "im2col"
    assert path(plain, 128, 15, 200) == path(plain, 128, 8, 8) == path(plain, 128, 64, 64, groups=2) == "winograd-1d"
    assert path(plain, 128, 7, 200) == path(plain, 128, 64, 64, groups=16) == "lowered-rows"
    assert path(plain, 128, 200, 7) == "kernel-row-gemm"
    assert path(plain, 16, 256, 512) == path(plain, 16, 512, 4096, groups=4) == "winograd"
    assert (
        path(plain, 16, 256, 513)
        == path(plain, 15, 256, 512)
        == path(plain, 8, 32, 2049)
        == path(plain, 8, 15, 1500)
        == "im2col"
    )
    assert path(Window((4, 4)), 16, 64, 128) == "lowered-rows"
    assert path(Window((4, 4)), 16, 64, 129) == path(Window((4, 4)), 15, 64, 128) == "im2col"
    assert path(Window((4, 4)), 8, 128, 128) == "kernel-row-gemm"
    assert path(Window((4, 4)), 8, 128, 129) == "im2col"
    assert path(plain, 128, 64, 64, groups=64) == path(plain, 1, 64, 64, groups=64) == "depthwise"
    assert path(plain, 128, 1, 64) == "lowered-rows"
    strided, wide = Window((3, 3), (2, 2)), Window((5, 5))
    assert path(strided, 128, 64, 64) == path(strided, 128, 8, 24) == "kernel-row-gemm"
    assert (
        path(strided, 128, 7, 7) == path(strided, 128, 8, 25) == path(strided, 128, 64, 64, groups=2) == "lowered-rows"
    )
    assert path(wide, 128, 64, 64) == path(wide, 128, 64, 80) == path(wide, 128, 5, 5) == "kernel-row-gemm"
    assert path(wide, 128, 64, 81) == path(wide, 128, 4, 4) == "lowered-rows"
    assert path(Window((3, 3), dilation=(2, 1)), 128, 64, 64) == "kernel-row-gemm"
    assert path(Window((3, 3), dilation=(1, 2)), 128, 64, 64) == "lowered-rows"
    assert path(Window((3, 3), (2, 2), ((0, 0), (3, 0))), 128, 64, 64) == "lowered-rows"
    monkeypatch.setenv("GPUCNN_WINOGRAD", "0")
    assert path(plain, 16, 64, 64) == path(plain, 16, 32, 32) == "kernel-row-gemm"


@pytest.mark.parametrize("name", ["depthwise_of_few", "depthwise_of_few_multiplied", "depthwise_of_one"])
def test_depthwise_copies_nothing_but_padding_for_few_images(name, monkeypatch):
    """One by one, and no image is copied but for its padding."""
    x, weight, bias, dy = convolution_arrays(name)
    image_size, window, groups = CONVOLUTIONS[name][1], *CONVOLUTIONS[name][4:]
    monkeypatch.delattr(im2col, "convolve")
    padded = []
    monkeypatch.setattr(
        convolution, "pad", lambda x, window, axis, pad=convolution.pad: padded.append(x) or pad(x, window, axis)
    )
    results = [
        ENGINE.conv2d(x, weight, bias, window, groups),
        ENGINE.conv2d_input_gradient(dy, weight, image_size, window, groups),
    ]
    assert all(result.flags.c_contiguous for result in results)
    assert len(padded) == len(x)
    assert all(image.shape[-1] == 1 and np.shares_memory(image, x) for image in padded)


def test_layout_stays_hwcn_through_the_network():
    """From the first layer to the last, forward and backward, nothing is transposed."""
    x, weight, bias, _ = convolution_arrays("lenet_second", "float32")
    window, pool = CONVOLUTIONS["lenet_second"][4], Window((2, 2), (2, 2))
    y = ENGINE.conv2d(x, weight, bias, window)
    pooled, kept = ENGINE.max_pool2d(ENGINE.relu(y), pool)
    dx = ENGINE.max_pool2d_gradient(np.ones(pooled.shape, "float32"), kept, (10, 10), pool)
    normed = ENGINE.batch_norm(y, np.ones(16, "float32"), np.zeros(16, "float32"), 1e-5)[0]
    scaled = ENGINE.scale_and_shift(y, np.ones(16, "float32"), np.zeros(16, "float32"))
    averaged, masked, added = ENGINE.average_pool2d(y, pool), ENGINE.relu_gradient(y, y), ENGINE.add(y, y)
    for array in (y, pooled, dx, averaged, normed, scaled, masked, added):
        assert array.transpose(1, 2, 3, 0).flags.c_contiguous
        assert np.shares_memory(memory_layout.to_hwcn(array), array)
    few = ENGINE.conv2d(*convolution_arrays("wide", "float32")[:3], CONVOLUTIONS["wide"][4])
    assert few.flags.c_contiguous
    assert ENGINE.average_pool2d(few, pool).flags.c_contiguous
    assert ENGINE.relu(few).flags.c_contiguous


POOLS = {
    "plain": Window((2, 2), (2, 2)),
    "rest": Window((3, 2), (3, 2)),
    "overlap": Window((3, 3), (2, 2)),
    "gap": Window((2, 1), (3, 3)),
    "padded": Window((3, 3), (2, 2), SAME3),
    "one": Window((1, 1), (1, 1)),
}


@every_dtype
@pytest.mark.parametrize("shape", [(20, 7, 8, 5), (3, 7, 8, 5), (20, 7, 8, 40)], ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_pooling(name, shape, dtype):
    window, rng = POOLS[name], np.random.default_rng(0)
    x = rng.integers(-4, 5, shape).astype(dtype)  # many ties: the first of equals must win
    dy = rng.normal(size=(shape[0], *window.output_size(shape[1:3]), shape[3])).astype(dtype)
    outputs = []
    for backend in (ENGINE, REFERENCE):
        y, kept = backend.max_pool2d(x, window)
        dx = backend.max_pool2d_gradient(dy, kept, shape[1:3], window)
        average = backend.average_pool2d(x, window)
        shared = backend.average_pool2d_gradient(dy, shape[1:3], window)
        relu_y, kept = backend.max_pool2d(x, window, relu=True)
        relu_dx = backend.max_pool2d_gradient(dy, kept, shape[1:3], window)
        assert np.array_equal(relu_y, np.maximum(y, 0))
        pools = {"y": y, "dx": dx, "average": average, "shared": shared, "relu_dx": relu_dx}
        outputs.append(pools)
    for what, expected in outputs[1].items():
        assert outputs[0][what].dtype == dtype
        assert_l2_close(outputs[0][what], expected, 1e-6 if dtype == "float32" else 1e-14, what)


def test_max_pool_passes_nan_on():
    x = np.zeros((20, 4, 4, 2), "float32")
    x[3, 1, 0, 1] = np.nan
    y, _ = ENGINE.max_pool2d(x, POOLS["plain"])
    assert np.argwhere(np.isnan(y)).tolist() == [[3, 0, 0, 1]]


@every_dtype
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(20, 7, 8, 5), (3, 7, 8, 5), (20, 7, 8, 40), (50, 6), (4, 3)], ids=str)
@pytest.mark.parametrize("wide", [1, 300])
def test_batch_norm(shape, relu, wide, dtype, monkeypatch):
    monkeypatch.setattr(norm, "BLOCK", 1 << 8 if wide == 1 else 1 << 12)
    monkeypatch.setattr(norm, "MIN_ROW", wide)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(10.0, 2.0, shape), rng.normal(size=shape)  # a mean far from 0 must not cost digits
    scale, shift = rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    expected = REFERENCE.batch_norm(x, scale, shift, 1e-3, relu)
    gradients = REFERENCE.batch_norm_gradient(dy, expected[3], expected[2], scale, 1e-3)
    x, dy, scale, shift = (array.astype(dtype) for array in (x, dy, scale, shift))
    y, mean, variance, kept = ENGINE.batch_norm(x, scale, shift, 1e-3, relu)
    actual = ENGINE.batch_norm_gradient(dy, kept, variance, scale, 1e-3)
    names = ("y", "mean", "variance", "dx", "dscale", "dshift")
    tolerance = {"float32": 2e-5, "float64": 1e-12}[dtype]
    size = np.linalg.norm(scale / np.sqrt(expected[2]) * dy)  # of what the batch's statistics take away from: dx
    for what, ours, theirs in zip(names, (y, mean, variance, *actual), (*expected[:3], *gradients), strict=True):
        assert ours.dtype == dtype, what
        if what == "dx":
            assert np.linalg.norm(ours - theirs) <= tolerance * size
        else:
            assert_l2_close(ours, theirs, tolerance, what)


def test_batch_norm_rows_hold_several_pixels():
    """Several pixels make a row where they divide the image; a prime number of them is not made one row."""
    for shape, pixels in (((16, 8, 8, 64), 16), ((16, 8, 8, 8), 1), ((64, 16, 16, 16), 16), ((64, 16, 16, 512), 1)):
        assert norm.RowView.of(np.empty(shape, "float32")).tile == pixels, shape
    assert norm.RowView.of(np.empty((16, 1, 4001, 16), "float32")).tile == 1


def test_batch_norm_scale_gradient_is_exact_far_from_zero():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1000.0, 1.0, (64, 16, 8, 3)).astype("float32"), rng.normal(size=(64, 16, 8, 3)).astype("float32")
    ones, zeros = np.ones(3), np.zeros(3)
    expected = REFERENCE.batch_norm(x.astype(float), ones, zeros, 1e-3)
    _, dscale, _ = REFERENCE.batch_norm_gradient(dy.astype(float), expected[3], expected[2], ones, 1e-3)
    _, _, variance, kept = ENGINE.batch_norm(x, ones.astype("float32"), zeros.astype("float32"), 1e-3)
    actual = ENGINE.batch_norm_gradient(dy, kept, variance, ones.astype("float32"), 1e-3)[1]
    assert_l2_close(actual, dscale, 1e-4, "dscale")


@every_dtype
@pytest.mark.parametrize("count", [1, elementwise.ZERO_ROW - 1, elementwise.ZERO_ROW, 2 * elementwise.ZERO_ROW + 3])
def test_relu_in_place_and_on_strided_arrays(count, dtype):
    x = np.random.default_rng(0).normal(size=count).astype(dtype)
    x[-1] = np.nan
    expected, kept, y = np.maximum(x, 0), x.copy(), np.empty_like(x)
    elementwise.clamp_at_zero(x, y)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(x, kept)
    elementwise.clamp_at_zero(x, x)
    np.testing.assert_array_equal(x, expected)
    part = np.stack([kept, kept], axis=1)  # a part of an array, which is not contiguous
    elementwise.clamp_at_zero(part[:, 0], part[:, 0])
    np.testing.assert_array_equal(part, np.stack([expected, kept], axis=1))


@every_dtype
@pytest.mark.parametrize("shape", [(20, 7, 8, 5), (3, 7, 8, 5), (50, 6)], ids=str)
def test_elementwise(shape, dtype, monkeypatch):
    monkeypatch.setattr(elementwise, "BLOCK", 100)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    scale, shift = (rng.normal(size=shape[-1]).astype(dtype) for _ in range(2))
    kernels = {
        "relu": lambda backend: backend.relu(a),
        "relu_gradient": lambda backend: backend.relu_gradient(a, b),
        "add": lambda backend: backend.add(a, b),
        "add_relu": lambda backend: backend.add(a, b, relu=True),
        "scale_and_shift": lambda backend: backend.scale_and_shift(a, scale, shift),
        "scale_shift_relu": lambda backend: backend.scale_and_shift(a, scale, shift, relu=True),
        "channel_sums": lambda backend: backend.channel_sums(a),
    }
    for name, kernel in kernels.items():
        ours, theirs = kernel(ENGINE), kernel(REFERENCE)
        assert ours.dtype == dtype, name
        assert_l2_close(ours, theirs, 1e-6 if dtype == "float32" else 1e-14, name)
    in_other_order = np.asfortranarray(a)
    assert np.array_equal(ENGINE.add(in_other_order, b), a + b)


def test_workspace_is_reused_and_bounded():
    first = workspace.get("test", (10, 20), np.float32)
    again = workspace.get("test", (5, 5), np.float32)
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, workspace.get("another", (5, 5), np.float32))
    assert not np.shares_memory(first, workspace.get("test", (5, 5), np.float64))
    workspace.detach()
    for name in CONVOLUTIONS:
        all_three(ENGINE, name, "float32")
    assert 1 << 20 < workspace_bytes() <= 16 << 20


@pytest.mark.parametrize(("batch", "side", "channels"), [(8, 64, 38), (16, 32, 32), (512, 16, 64)])
def test_winograd_gradients_together_keep_to_the_scratch(batch, side, channels):
    """Few images leave room for many tiles, each of which has its own products."""
    x, dy = (np.ones((batch, side, side, channels), "float32") for _ in range(2))
    window = Window((3, 3), padding=SAME3)
    workspace.detach()
    ENGINE.conv2d_gradients(x, dy, np.ones((3, 3, channels, channels), "float32"), window)
    assert 0 < workspace_bytes() <= 16 << 20


@pytest.mark.parametrize(("size", "once"), [((16, 16), True), ((14, 14), False), ((13, 13), False)])
@pytest.mark.parametrize("channels", [16, 48])
def test_winograd_gradients_share_a_transform_only_where_dx_has_no_more_tiles(size, once, channels):
    """Without padding dx is larger than dy, and so is what a shared weight gradient goes over."""
    window = Window((3, 3), padding=SAME3 if once else ((0, 0), (0, 0)))
    x, weight = np.ones((16, *size, channels), "float32"), np.ones((3, 3, channels, channels), "float32")
    dy = np.ones((16, *window.output_size(size), channels), "float32")
    assert (convolution.joint_gradients(x, dy, weight, window, 1, True) is not None) == once


class Subarray(np.ndarray):
    """An array of a custom type."""


@pytest.mark.parametrize(
    "held_by",
    [
        lambda array: array[1:, ::2].T,
        lambda array: array.reshape(-1)[5:].view(np.int32),
        lambda array: array.view(Subarray)[1:],
        lambda array: np.asarray(array.view(Subarray)),
        memoryview,
        lambda array: np.asarray(memoryview(array)),
        lambda array: np.lib.stride_tricks.as_strided(array, (2,), (4,)),
        lambda array: np.ndarray((5,), np.float32, array, 64),
    ],
)
def test_arena_reuses_only_unreferenced_memory(held_by):
    shape = (3, 1 << 15)
    array = memory.empty(shape, np.float32)
    address, view = array.ctypes.data, held_by(array)
    del array
    gc.collect()
    assert memory.empty(shape, np.float32).ctypes.data != address  # a view of it lives
    del view
    gc.collect()
    addresses = {memory.empty(shape, np.float32).ctypes.data for _ in range(3)}
    assert len(addresses) == 1  # each went before the next came
    held = [memory.empty(shape, np.float32) for _ in range(4)]
    assert len({array.ctypes.data for array in held}) == 4


def test_kernel_row_gemm_of_long_rows_keeps_to_the_scratch():
    """A row of the output of all images would be 8 MB; some of the images are taken at a time."""
    window, x = Window((3, 3), (2, 2), SAME3), np.ones((512, 4, 64, 64), "float32")
    assert convolution.choose_algorithm(window, 512, 64, 128, 1, x.dtype) == "kernel-row-gemm"
    workspace.detach()
    y = ENGINE.conv2d(x, np.ones((3, 3, 64, 128), "float32"), None, window)
    assert 0 < workspace_bytes() <= 4 << 20
    assert np.all(y[:, 1, 1:] == 9 * 64)
    assert np.all(y[:, 0, 0] == 4 * 64)


def test_arena_memory_begins_on_a_cache_line():
    for count in (1 << 16, 70_001, 1 << 20):
        assert memory.empty((count,), np.float32).ctypes.data % 64 == 0
        assert memory.zeros((count,), np.float64).ctypes.data % 64 == 0
        assert workspace.get(f"line {count}", (count,), np.float32).ctypes.data % 64 == 0


def test_fit_gives_its_memory_back(monkeypatch):
    monkeypatch.setattr(memory, "arena", arena.Arena())
    model = gpucnn.Model([L.Conv2D(8, 3), L.ReLU(), L.Flatten(), L.Dense(10), L.Softmax()], (16, 16, 3), backend=ENGINE)
    model.compile()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 16, 16, 3)).astype("float32"), rng.integers(0, 10, 64)
    model.train_on_batch(x, y)
    assert sum(map(len, memory.arena.blocks.values())) > 0
    kept = memory.empty((1 << 20,), np.float32)
    model.fit(x, y, verbose=0)
    assert sum(map(len, memory.arena.blocks.values())) == 1
    kept[...] = 1


def test_arena_returns_memory_that_is_not_used(monkeypatch):
    monkeypatch.setattr(memory, "arena", arena.Arena(evict_after=10))
    memory.empty((1 << 20,), np.uint8)
    kept = memory.empty((1 << 21,), np.uint8)
    for size in range(20):
        memory.empty(((1 << 22) + (size << 19),), np.uint8)
    assert (1 << 20) not in {block.size for blocks in memory.arena.blocks.values() for block in blocks}
    kept[...] = 7
    assert kept.sum() == 7 * kept.size


# --- GELU -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(140_000,), (16, 9, 5, 3), (3, 4, 5, 2), (0, 4)])
def test_gelu_and_its_slope_are_exact_to_float32(shape):
    """By a polynomial in place of erf: within 5e-7 of both, far out on both sides and at 0; blocks of any length."""
    count = math.prod(shape)
    x = np.random.default_rng(0).normal(0, 3, count).astype(np.float32)
    x[: min(count, 6)] = [0.0, -0.0, 40.0, -40.0, 1e-30, -1e15][:count]
    x = x.reshape(shape)
    exact, engine = x.astype("float64"), get_backend("numpy")
    below = 0.5 * scipy.special.erfc(-exact * math.sqrt(0.5))
    slope = below + exact * np.exp(-0.5 * exact**2) / math.sqrt(2 * math.pi)
    y, kept = engine.gelu(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact * below, rtol=2e-7, atol=5e-7)
    dx = engine.gelu_gradient(np.full_like(x, 2.0), kept)
    np.testing.assert_allclose(dx, 2 * slope, rtol=2e-7, atol=1e-6)


def test_gelu_passes_a_nan_on():
    y, kept = get_backend("numpy").gelu(np.array([np.nan, 1.0], np.float32))
    assert np.isnan(y).tolist() == np.isnan(kept).tolist() == [True, False]
