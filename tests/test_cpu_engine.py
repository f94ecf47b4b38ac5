"""The CPU engine against the portable kernels: every path, odd sizes, slices, blocks and threads, forced one by one."""

import numpy as np
import pytest

import gpucnn
from gpucnn.backends import Backend, Window, get_backend
from gpucnn.backends.numpy import chunks, norm, order, rows, scratch, threads
from gpucnn.errors import ConfigurationError

ENGINE, PORTABLE = get_backend("numpy"), Backend()
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
    "depthwise_stride": (18, (6, 7), 8, 8, Window((3, 3), (2, 2), SAME3), 8),
}

every_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def threads_as_they_were():
    yield
    threads.set_num_threads(None)


def assert_l2_close(actual, expected, tolerance, what):
    assert actual.shape == expected.shape, what
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f"{what}: off by {error:.1e}, allowed {tolerance:.0e}"


def convolution(name, dtype="float64"):
    N, (H, W), C, F, window, groups = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(N, H, W, C)), rng.normal(size=(*window.size, C // groups, F))
    bias, dy = rng.normal(size=F), rng.normal(size=(N, *window.output_size((H, W)), F))
    return [array.astype(dtype) for array in (x, weight, bias, dy)]


def all_three(backend, name, dtype="float64"):
    """y, dweight and dx."""
    (H, W), window, groups = CONVOLUTIONS[name][1], *CONVOLUTIONS[name][4:]
    x, weight, bias, dy = convolution(name, dtype)
    return {
        "y": backend.conv2d(x, weight, bias, window, groups),
        "dweight": backend.conv2d_weight_gradient(x, dy, window, groups),
        "dx": backend.conv2d_input_gradient(dy, weight, (H, W), window, groups),
    }


@every_dtype
@every_convolution
def test_convolution(name, dtype):
    expected = all_three(PORTABLE, name)
    for what, actual in all_three(ENGINE, name, dtype).items():
        assert actual.dtype == dtype
        assert_l2_close(actual, expected[what], TOLERANCE[dtype], what)


@every_convolution
def test_the_general_path_serves_every_geometry(name):
    x, weight, bias, dy = convolution(name)
    image_size, window, groups = CONVOLUTIONS[name][1], *CONVOLUTIONS[name][4:]
    expected = all_three(PORTABLE, name)
    actual = {
        "y": chunks.convolve(x, weight, bias, window, groups),
        "dweight": chunks.weight_gradient(x, dy, window, groups),
        "dx": chunks.input_gradient(dy, weight, image_size, window, groups),
    }
    for what, array in actual.items():
        assert_l2_close(array, expected[what], TOLERANCE["float64"], what)


@every_convolution
def test_small_buffers_and_many_threads_change_nothing(name, monkeypatch):
    """Work cut as finely as it can be: row by row, image by image, three threads for the smallest kernel."""
    expected = all_three(PORTABLE, name)
    monkeypatch.setattr(scratch, "LIMIT", 1 << 10)
    monkeypatch.setattr(chunks, "CHUNK", 1 << 8)
    monkeypatch.setattr(rows, "SLICE", 16)
    monkeypatch.setattr(threads, "WORTH_SHARING", 1.0)
    threads.set_num_threads(3)
    for what, actual in all_three(ENGINE, name).items():
        assert_l2_close(actual, expected[what], TOLERANCE["float64"], what)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_threads_give_the_same_bits(count, monkeypatch):
    monkeypatch.setattr(threads, "WORTH_SHARING", 1.0)
    monkeypatch.setattr(norm, "WORTH_SHARING", 1)
    threads.set_num_threads(count)
    for name in ("lenet_second", "wide"):
        first, second = (all_three(ENGINE, name, "float32") for _ in range(2))
        assert all(first[what].tobytes() == second[what].tobytes() for what in first)


def test_which_path_a_convolution_takes():
    plain = Window((3, 3))
    assert rows.serves(plain, 16, 32, 32, 1)
    assert not rows.serves(plain, 15, 3, 8, 1)
    assert not rows.serves(plain, 128, 32, 33, 1)
    assert not rows.serves(Window((3, 3), (2, 2)), 128, 3, 8, 1)
    assert not rows.serves(Window((3, 3), dilation=(2, 2)), 128, 3, 8, 1)
    assert not rows.serves(plain, 128, 4, 8, 2)


def test_few_channels_stay_with_the_batch_innermost():
    """From the first convolution to the last, forward and backward, nothing is laid out anew."""
    x, weight, bias, _ = convolution("lenet_second", "float32")
    window = CONVOLUTIONS["lenet_second"][4]
    y = ENGINE.conv2d(x, weight, bias, window)
    pooled, kept = ENGINE.max_pool2d(np.maximum(y, 0), Window((2, 2), (2, 2)))
    dx = ENGINE.max_pool2d_gradient(np.ones(pooled.shape, "float32"), kept, (10, 10), Window((2, 2), (2, 2)))
    averaged = ENGINE.average_pool2d(y, Window((2, 2), (2, 2)))
    normed = ENGINE.batch_norm(y, np.ones(16, "float32"), np.zeros(16, "float32"), 1e-5)[0]
    for array in (y, pooled, dx, averaged, normed):
        assert order.batch_last(array).base is not None
        assert array.transpose(1, 2, 3, 0).flags.c_contiguous
    wide = ENGINE.conv2d(*convolution("wide", "float32")[:3], CONVOLUTIONS["wide"][4])
    assert wide.flags.c_contiguous
    assert ENGINE.average_pool2d(wide, Window((2, 2), (2, 2))).flags.c_contiguous


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
    for backend in (ENGINE, PORTABLE):
        y, kept = backend.max_pool2d(x, window)
        dx = backend.max_pool2d_gradient(dy, kept, shape[1:3], window)
        average = backend.average_pool2d(x, window)
        shared = backend.average_pool2d_gradient(dy, shape[1:3], window)
        outputs.append({"y": y, "dx": dx, "average": average, "shared": shared})
    for what, expected in outputs[1].items():
        assert outputs[0][what].dtype == dtype
        assert_l2_close(outputs[0][what], expected, 1e-6 if dtype == "float32" else 1e-14, what)


def test_a_nan_passes_through_the_pool():
    x = np.zeros((20, 4, 4, 2), "float32")
    x[3, 1, 0, 1] = np.nan
    y, _ = ENGINE.max_pool2d(x, POOLS["plain"])
    assert np.argwhere(np.isnan(y)).tolist() == [[3, 0, 0, 1]]


@every_dtype
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [(20, 7, 8, 5), (3, 7, 8, 5), (20, 7, 8, 40), (50, 6), (2, 3)], ids=str)
def test_batch_norm(shape, count, dtype, monkeypatch):
    monkeypatch.setattr(norm, "CHUNK", 1 << 8)
    monkeypatch.setattr(norm, "WORTH_SHARING", 1)
    threads.set_num_threads(count)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(30.0, 2.0, shape), rng.normal(size=shape)  # a mean far from 0 must not cost digits
    scale, shift = rng.normal(size=shape[-1]), rng.normal(size=shape[-1])
    expected = PORTABLE.batch_norm(x, scale, shift, 1e-3)
    gradients = PORTABLE.batch_norm_gradient(dy, expected[3], expected[2], scale, 1e-3)
    x, dy, scale, shift = (array.astype(dtype) for array in (x, dy, scale, shift))
    y, mean, variance, kept = ENGINE.batch_norm(x, scale, shift, 1e-3)
    actual = ENGINE.batch_norm_gradient(dy, kept, variance, scale, 1e-3)
    names = ("y", "mean", "variance", "dx", "dscale", "dshift")
    for what, ours, theirs in zip(names, (y, mean, variance, *actual), (*expected[:3], *gradients), strict=True):
        assert ours.dtype == dtype, what
        assert_l2_close(ours, theirs, {"float32": 2e-5, "float64": 1e-12}[dtype], what)


def test_scratch_is_used_again_and_bounded():
    first = scratch.take("test", (10, 20), np.float32)
    again = scratch.take("test", (5, 5), np.float32)
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, scratch.take("another", (5, 5), np.float32))
    assert not np.shares_memory(first, scratch.take("test", (5, 5), np.float64))
    for name in CONVOLUTIONS:
        all_three(ENGINE, name, "float32")
    held = {key: buffer.nbytes for key, buffer in vars(scratch._held).items()}
    assert {key.split()[0] for key in held} >= {"lowered", "products", "columns", "padded"}
    assert max(held.values()) <= scratch.LIMIT


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
def test_a_number_of_threads_that_makes_no_sense_is_refused(value):
    with pytest.raises(ConfigurationError, match="expected a positive number of threads, not"):
        gpucnn.set_num_threads(value)


def test_the_number_of_threads(monkeypatch):
    monkeypatch.delenv("GPUCNN_NUM_THREADS", raising=False)
    assert threads.num_threads() == threads.usable_cores()
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "3")
    assert threads.num_threads() == 3
    gpucnn.set_num_threads(2)
    assert threads.num_threads() == 2
    gpucnn.set_num_threads(None)
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "few")
    with pytest.raises(ConfigurationError, match="the environment variable GPUCNN_NUM_THREADS: expected"):
        threads.num_threads()


def test_blas_is_held_to_one_thread_in_a_step_and_given_back():
    def blas_threads():
        return [library["num_threads"] for library in threads._blas().info()]

    with threads._blas().limit(limits=2):
        first, second = threads.one_blas_thread(), ENGINE.working()
        first.__enter__()
        with second:
            assert set(blas_threads()) == {1}
            first.__exit__(None, None, None)  # the two overlap: the last to end gives BLAS its threads back
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {2}


def test_a_failing_task_is_not_lost():
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.run([lambda: 1, fail])
    assert threads.run([lambda: 1, lambda: 2]) == [1, 2]
