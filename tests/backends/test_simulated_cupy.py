"""The simulated GPU itself: its results, errors where a GPU would give garbage, and captures."""

import ctypes
import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gpucnn.backends
from gpucnn.testing.strict import HostDeviceMixError
from tests.host_kernels import compile_for_host, why_not
from tests.simulated_cupy import CUDARuntimeError, IllegalAddress, Importer, OutOfMemoryError, Simulation, load_backend

needs_compiler = pytest.mark.skipif(bool(why_not()), reason=why_not() or "kernels can be compiled")
KERNELS = Path(gpucnn.__file__).parent / "backends" / "cupy" / "kernels"

SOURCE = r"""
#if BITS == 16
typedef _Float16 scalar_t;
typedef float accum_t;
#elif BITS == 32
typedef float scalar_t;
typedef float accum_t;
#else
typedef double scalar_t;
typedef double accum_t;
#endif
typedef unsigned long long word64;
#define SIZE \
    int rows, \
    int columns

__device__ inline void meet() { __syncthreads(); }
__device__ inline void meet_there() { meet(); }

extern "C" __global__ void totals(const scalar_t* x, accum_t* y, unsigned n) {
    __shared__ accum_t shared[1024];
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    accum_t sum = 0;
    for (unsigned i = blockIdx.x * threads + thread; i < n; i += gridDim.x * threads) sum += (accum_t)x[i];
    shared[thread] = sum;
    __syncthreads();
    for (unsigned half = threads / 2; half; half /= 2) {
        if (thread < half) shared[thread] += shared[thread + half];
        __syncthreads();
    }
    if (thread == 0) y[blockIdx.x] = shared[0];
}

extern "C" __global__ void neighbours(int* y) {
    __shared__ int shared[1024];
    shared[threadIdx.x] = 10 * blockIdx.x + threadIdx.x;
    meet_there();
    y[blockIdx.x * blockDim.x + threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

extern "C" __global__ void leftovers(float* y) {
    __shared__ float shared[4];
    y[blockIdx.x] = shared[threadIdx.x];
    __syncthreads();
    shared[threadIdx.x] = 1;
}

extern "C" __global__ void some_return(unsigned waiting) {
    if (threadIdx.x < waiting) __syncthreads();
}

extern "C" __global__ void two_barriers() {
    if (threadIdx.x % 2)
        __syncthreads();
    else
        meet();
}

extern "C" __global__ void numbered(unsigned* y) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned place = block * blockDim.x * blockDim.y * blockDim.z + thread;
    y[place] = place;
}

extern "C" __global__ void widths(int* y, float x) {
    y[0] = sizeof(exp(x)), y[1] = sizeof(sqrt(x)), y[2] = sizeof(erf(x)), y[3] = sizeof(pow(x, x));
}

extern "C" __global__ void scale(scalar_t* y, const float* rate, unsigned n, double factor) {
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) y[i] = (scalar_t)((accum_t)y[i] * (accum_t)factor * *rate);
}

extern "C" __global__ void
numbers(double* y, SIZE, long long a, word64 b, float c, double d, bool e, const void *none) {
    y[0] = rows, y[1] = columns, y[2] = a, y[3] = b, y[4] = c, y[5] = d, y[6] = e, y[7] = none == nullptr;
}
"""


@pytest.fixture
def simulation():
    return Simulation()


@pytest.fixture
def cupy(simulation):
    return simulation.cupy


def kernel(simulation, name, bits=32, width=1):
    options = (f"-DBITS={bits}", f"-DWIDTH={width}", "-std=c++17", "--ftz=false")
    return simulation.cupy.RawModule(code=SOURCE, options=options).get_function(name)


# --- kernels --------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(("bits", "dtype", "work"), [(16, "f2", "f4"), (32, "f4", "f4"), (64, "f8", "f8")])
@pytest.mark.parametrize("block", [(1,), (64,), (8, 32), (4, 4, 64)])
def test_reduction_with_barriers(simulation, rng, bits, dtype, work, block):
    x, blocks = rng.normal(size=5000).astype(dtype), 3
    y = simulation.cupy.empty(blocks, work)
    kernel(simulation, "totals", bits)((blocks,), block, (simulation.cupy.asarray(x), y, np.uint32(x.size)))
    owner = np.arange(x.size) // np.prod(block) % blocks
    expected = [x[owner == number].astype("f8").sum() for number in range(blocks)]
    np.testing.assert_allclose(simulation.cupy.asnumpy(y), expected, rtol=1e-4, atol=1e-3)


@needs_compiler
def test_barrier_in_a_nested_function(simulation):
    y = simulation.cupy.empty(3 * 64, np.int32)
    kernel(simulation, "neighbours")((3,), (64,), (y,))
    block, thread = np.divmod(np.arange(3 * 64), 64)
    np.testing.assert_array_equal(y.get(), 10 * block + (thread + 1) % 64)


@needs_compiler
def test_shared_memory_begins_as_garbage(simulation):
    y = simulation.cupy.zeros(3, np.float32)
    kernel(simulation, "leftovers")((3,), (1,), (y,))
    assert np.isnan(y.get()).all()


@needs_compiler
def test_barrier_that_threads_miss_is_reported(simulation):
    some_return = kernel(simulation, "some_return")
    some_return((2,), (32,), (np.uint32(0),))
    some_return((2,), (32,), (np.uint32(32),))
    with pytest.raises(RuntimeError, match=r"some_return.*5 threads wait.*27 have returned"):
        some_return((2,), (32,), (np.uint32(5),))
    some_return((2,), (64,), (np.uint32(64),))  # and the next launch starts from scratch
    with pytest.raises(RuntimeError, match="different barriers"):
        kernel(simulation, "two_barriers")((1,), (4,), ())


@needs_compiler
@pytest.mark.parametrize(("grid", "block"), [((5,), (7,)), ((2, 3), (4, 5)), ((2, 3, 4), (5, 2, 3))])
def test_grids_and_blocks_in_three_dimensions(simulation, grid, block):
    y = simulation.cupy.empty(int(np.prod(grid) * np.prod(block)), np.uint32)
    kernel(simulation, "numbered")(grid, block, (y,))
    np.testing.assert_array_equal(y.get(), np.arange(y.size))


@needs_compiler
def test_float_functions_stay_float(simulation):
    y = simulation.cupy.empty(4, np.int32)
    kernel(simulation, "widths")((1,), (1,), (y, np.float32(2)))
    assert y.get().tolist() == [4, 4, 4, 4]


NUMBERS = (np.int32(-3), np.int32(4), np.int64(-(2**40)), np.uint64(2**63), np.float32(0.5), 0.1, True, np.uintp(0))


@needs_compiler
def test_kernel_arguments_arrive_unchanged(simulation):
    y = simulation.cupy.empty(8)
    kernel(simulation, "numbers")((1,), (1,), (y, *NUMBERS))
    assert y.get().tolist() == [-3, 4, -(2**40), 2**63, 0.5, 0.1, 1, 1]


@needs_compiler
@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, 3),
        (0, np.int64(3)),
        (0, np.uint32(3)),
        (2, np.int32(3)),
        (3, np.int64(3)),
        (3, 3),
        (4, 0.5),
        (4, np.float64(0.5)),
        (5, np.float32(0.5)),
        (5, 1),
        (6, 1),
        (7, None),
        (7, 0),
        (7, np.uintp(8)),
        (7, np.int32(0)),
    ],
)
def test_kernel_argument_of_another_type_is_refused(simulation, place, wrong):
    y, numbers = simulation.cupy.zeros(8), list(NUMBERS)
    numbers[place] = wrong
    with pytest.raises(TypeError, match=r"numbers: parameter `.*` got"):
        kernel(simulation, "numbers")((1,), (1,), (y, *numbers))
    assert not y.get().any()


@needs_compiler
def test_kernel_refuses_arrays_it_cannot_take(simulation):
    cupy, totals = simulation.cupy, kernel(simulation, "totals")
    x, y, n = cupy.zeros((4, 6), np.float32), cupy.zeros(1, np.float32), np.uint32(6)
    with pytest.raises(TypeError, match=r"`const scalar_t\* x` got a ndarray, not an array on the device"):
        totals((1,), (1,), (np.zeros(6, np.float32), y, n))
    with pytest.raises(TypeError, match="of float64, not of float32"):
        totals((1,), (1,), (cupy.zeros(6), y, n))
    with pytest.raises(TypeError, match="not contiguous"):
        totals((1,), (1,), (x[:, 0], y, n))
    with pytest.raises(TypeError, match="takes 3 arguments"):
        totals((1,), (1,), (x, y))
    with pytest.raises(ValueError, match="no kernel named 'total'"):
        kernel(simulation, "total")


@needs_compiler
@pytest.mark.parametrize(("bits", "dtype", "width"), [(16, "f2", 8), (32, "f4", 4), (64, "f8", 2)])
def test_kernel_refuses_misaligned_addresses(simulation, bits, dtype, width):
    y, rate = simulation.cupy.ones(20, dtype), simulation.cupy.ones(3, "f4")
    arguments = rate[1:], np.uint32(width), 2.0  # only pointers to `scalar_t` are read in packs
    with pytest.raises(ValueError, match=r"scale: .*misaligned"):
        kernel(simulation, "scale", bits, width)((1,), (1,), (y[1:], *arguments))
    kernel(simulation, "scale", bits, 1)((1,), (1,), (y[1:], *arguments))
    kernel(simulation, "scale", bits, width)((1,), (1,), (y[width:], *arguments))
    np.testing.assert_array_equal(y.get(), [1] + [2] * (width - 1) + [4] + [2] * (width - 1) + [1] * (20 - 2 * width))


@needs_compiler
@pytest.mark.parametrize(
    ("grid", "block", "error"),
    [
        ((0,), (1,), ValueError),
        ((1,), (1, 0), ValueError),
        ((1,), (1025,), ValueError),
        ((1,), (32, 8, 5), ValueError),
        ((1, 65536), (1,), ValueError),
        ((1, 1, 65536), (1,), ValueError),
        ((1.0,), (1,), TypeError),
        (1, (1,), TypeError),
        ((1,), (1, 1, 1, 1), TypeError),
    ],
)
def test_kernel_launch_out_of_bounds_is_refused(simulation, grid, block, error):
    with pytest.raises(error, match=r"some_return: the (grid|block)"):
        kernel(simulation, "some_return")(grid, block, (np.uint32(0),))


@needs_compiler
@pytest.mark.parametrize("offset", [0, 4])
def test_kernel_that_writes_out_of_bounds_is_found(simulation, offset):
    y, rate = simulation.cupy.ones(8, "f4"), simulation.cupy.ones((), "f4")
    arguments = y[offset:], rate, np.uint32(8 - offset), 2.0
    kernel(simulation, "scale")((1,), (1,), arguments)
    with pytest.raises(IllegalAddress, match="scale wrote outside an array"):
        kernel(simulation, "scale")((1,), (1,), (y[offset:], rate, np.uint32(9 - offset), 2.0))


@needs_compiler
def test_kernel_may_not_write_const_arrays(simulation):
    arguments = simulation.cupy.ones(8, "f4"), simulation.cupy.ones((), "f4"), np.uint32(1), 2.0
    scale = compile_for_host(SOURCE, ("-DBITS=32",)).get_function("scale")
    assert [array is arguments[0] for array in scale.written(arguments)] == [True]


@needs_compiler
def test_kernel_source_that_does_not_compile_says_why():
    with pytest.raises(RuntimeError, match="unknown_thing"):
        compile_for_host('extern "C" __global__ void f(int* y) { *y = unknown_thing; }')


def test_compiler_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert why_not.__wrapped__() == "there is no g++"


@needs_compiler
@pytest.mark.parametrize(("bits", "width"), [(16, 8), (16, 1), (32, 4), (32, 1), (64, 2), (64, 1)])
def test_kernels_compile_for_the_host(bits, width):
    shared, found = (KERNELS / "common.cuh").read_text("utf-8"), 0
    for file in KERNELS.glob("*.cu"):
        code = shared + file.read_text("utf-8")
        module = compile_for_host(code, (f"-DBITS={bits}", f"-DWIDTH={width}", "-std=c++17"))
        assert len(module.kernels) == code.count('extern "C" __global__')
        assert all(module.get_function(name).parameters for name in module.kernels)
        found += len(module.kernels)
    assert found >= 35


# --- arrays ---------------------------------------------------------------------------------------


def test_host_and_device_arrays_do_not_mix(cupy):
    array, host = cupy.ones(3), np.ones(3)
    for meet in (
        lambda: array + host,
        lambda: host + array,
        lambda: cupy.add(array, host),
        lambda: np.asarray(array),
        lambda: array.__setitem__(0, host[:1]),
        lambda: array.__iadd__(host),
        lambda: cupy.asnumpy(host),
        lambda: Simulation().cupy.exp(array),  # not even those of two GPUs
    ):
        with pytest.raises((HostDeviceMixError, TypeError)):
            meet()
    assert (array + np.float64(1) + 1).get().tolist() == [3, 3, 3]


def test_memory_is_aligned_and_begins_as_garbage(cupy):
    floats, numbers = cupy.empty((3, 5), np.float16), cupy.empty_like(cupy.zeros(4, np.int32))
    assert np.isnan(floats.get()).all()
    assert (numbers.get() == np.array([0xA5A5A5A5], np.uint32).view(np.int32)).all()
    for array in (floats, numbers, floats + 1, cupy.arange(3), cupy.concatenate([numbers, numbers])):
        assert array.data.ptr % 512 == 0


def test_reads_to_the_host_are_counted(simulation, cupy):
    array = cupy.full((), 2.5)
    values = [float(array), int(array), bool(array), array.item(), array.tolist(), array.get(), cupy.asnumpy(array)]
    assert values == [2.5, 2, True, 2.5, 2.5, 2.5, 2.5]
    assert simulation.reads == 7
    assert (array.shape, array.dtype, (array + 1).ndim) == ((), np.float64, 0)
    assert simulation.reads == 7


def test_upload_copies_host_arrays_only(cupy):
    host = np.arange(3.0)
    array = cupy.asarray(host)
    host[0] = 7
    assert array.get()[0] == 0
    assert cupy.asarray(array) is array
    assert isinstance(array, cupy.ndarray)
    assert not isinstance(host, cupy.ndarray)


def test_views_share_memory_and_results_do_not(cupy):
    array = cupy.asarray(np.arange(12.0).reshape(3, 4))
    for view in (array[1], array[1, 2], array.T[2], array.reshape(-1)[4:], cupy.broadcast_to(array, (2, 3, 4))):
        assert view.data.mem is array.data.mem
    for fresh in (array + 0, array[[0, 1]], array.T.reshape(-1), array.sum(), array.copy()):
        assert fresh.data.mem is not array.data.mem
    element = array[1, 2]
    element += 10
    array[0] = array[1]
    assert array.get()[:2].tolist() == [[4, 5, 16, 7], [4, 5, 16, 7]]
    assert array.T.copy(order="K").strides == array.T.strides
    assert cupy.empty_like(array.T).strides == array.T.strides


def test_host_warnings_are_silent(cupy):
    assert np.isnan(float(cupy.log(cupy.zeros(1) - 1)[0]))
    assert np.isinf(float(cupy.full(1, 1e6, np.float32).astype(np.float16)[0]))


# --- memory ---------------------------------------------------------------------------------------


def test_allocation_over_the_limit_is_out_of_memory(simulation, cupy):
    prototype = cupy.zeros(100)
    simulation.limit = 800
    make = (cupy.empty, cupy.zeros, cupy.ones, lambda n: cupy.full(n, 1.0))
    make_like = (cupy.empty_like, cupy.zeros_like, cupy.ones_like, lambda p, shape: cupy.full_like(p, 1.0, shape=shape))
    for function in make:
        assert function(100).size == 100
        with pytest.raises(OutOfMemoryError, match="Out of memory allocating 808 bytes"):
            function(101)
    for function in make_like:
        assert function(prototype, shape=(10, 10)).size == 100
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            function(prototype, shape=(10, 11))
    assert issubclass(OutOfMemoryError, MemoryError)
    simulation.limit = None
    assert cupy.empty(101).size == 101


def test_pools_count_their_memory(simulation, cupy):
    default, own = cupy.get_default_memory_pool(), cupy.cuda.MemoryPool()
    outside = cupy.empty(100, np.uint8)
    with cupy.cuda.using_allocator(own.malloc):
        inside, gone = cupy.empty(1000, np.uint8), cupy.empty(500, np.uint8)
    assert (default.used_bytes(), own.used_bytes()) == (outside.nbytes, inside.nbytes + gone.nbytes)
    del gone
    assert (own.used_bytes(), own.free_bytes(), own.total_bytes()) == (1000, 500, 1500)
    own.free_all_blocks()
    assert (own.total_bytes(), simulation.frees) == (1000, 1)
    pointer = own.malloc(64)
    assert cupy.ndarray((4, 4), np.float32, pointer).data.ptr == pointer.ptr
    assert own.used_bytes() == 1064


# --- captures -------------------------------------------------------------------------------------


class Capturing:
    """What is done in the block is captured; `graph` launches it."""

    def __init__(self, cupy, pool=None):
        self.cupy, self.pool = cupy, pool or cupy.cuda.MemoryPool()

    def __enter__(self):
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.allocator = self.cupy.cuda.using_allocator(self.pool.malloc)
        self.stream.__enter__()
        self.allocator.__enter__()
        self.stream.begin_capture()
        return self

    def __exit__(self, *error):
        self.graph = self.stream.end_capture()
        self.allocator.__exit__(*error)
        self.stream.__exit__(*error)


def test_graph_replays_with_frozen_scalars_and_live_memory(cupy):
    values, gradients = cupy.asarray([1.0, 2.0]), cupy.asarray([1.0, 1.0])
    device_rate, rate = cupy.full((), 0.5), 0.25
    with Capturing(cupy) as capturing:
        step = gradients * rate
        values -= step
        values -= device_rate * gradients
        total = values.sum()
    assert values.get().tolist() == [1, 2]  # nothing was done
    assert np.isnan(float(total))
    rate = 100.0
    capturing.graph.launch()
    assert values.get().tolist() == [0.25, 1.25]
    assert float(total) == 1.5
    device_rate[...] = 0
    gradients[1] = 4
    capturing.graph.launch()
    assert values.get().tolist() == [0, 0.25]
    assert step.get().tolist() == [0.25, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda cupy, a: a.__iadd__(1),
        lambda cupy, a: a.__setitem__(slice(None), a + 1),
        lambda cupy, a: a[1:].__imul__(2),
        lambda cupy, a: cupy.add(a, 1, out=a),
        lambda cupy, a: cupy.add(a, 1, a),
        lambda cupy, a: cupy.copyto(a, a * 3),
        lambda cupy, a: a.fill(7),
        lambda cupy, a: a.reshape(2, 2).T[0].fill(7),
        lambda cupy, a: a[::-1].sort(),
        lambda cupy, a: a[2].__iadd__(5),
        lambda cupy, a: a.cumsum(out=a),
    ],
)
def test_capture_notes_and_undoes_all_writes(cupy, change):
    start = np.arange(4.0)
    array, by_hand = cupy.asarray(start), cupy.asarray(start)
    with Capturing(cupy) as capturing:
        change(cupy, array)
    np.testing.assert_array_equal(array.get(), start)
    for _ in range(2):
        change(cupy, by_hand)
        capturing.graph.launch()
        np.testing.assert_array_equal(array.get(), by_hand.get())
    assert not np.array_equal(array.get(), start)


def test_graph_launches_recompute_every_result(cupy):
    x = cupy.zeros((2, 3))
    with Capturing(cupy) as capturing:
        results = [
            cupy.exp(x),
            cupy.zeros_like(x) + x.mean(),
            x.reshape(3, 2) * 2,
            x[:, [2, 0]],
            x.T.reshape(-1),
            cupy.concatenate([x, x], axis=1),
            cupy.where(x > 0, x, -x),
            cupy.full((2,), 3.0),
            cupy.split(x * 2, 2)[1],
            cupy.modf(x * 1.5)[1],
        ]
        view = x[0]
    for _ in range(2):
        x += cupy.arange(6.0).reshape(2, 3)
        capturing.graph.launch()
        h = x.get()
        expected = [
            np.exp(h),
            np.zeros_like(h) + h.mean(),
            h.reshape(3, 2) * 2,
            h[:, [2, 0]],
            h.T.reshape(-1),
            np.concatenate([h, h], axis=1),
            np.where(h > 0, h, -h),
            np.full((2,), 3.0),
            h[1:] * 2,
            np.modf(h * 1.5)[1],
        ]
        for result, numbers in zip(results, expected, strict=True):
            np.testing.assert_allclose(result.get(), numbers)
        np.testing.assert_array_equal(view.get(), h[0])


@needs_compiler
def test_graph_of_kernels_and_matmul(simulation, cupy):
    y, rate, scale = cupy.ones(4, np.float32), cupy.full((), 2, np.float32), kernel(simulation, "scale")
    handle, c = Handle(simulation), cupy.zeros((2, 2), np.float32)
    with Capturing(cupy) as capturing:
        handle.follow()
        scale((1,), (2,), (y, rate, np.uint32(4), 3.0))
        square = y.reshape(2, 2)
        assert handle.multiply(square, square, c, beta=1) == 0
    assert (y.get().tolist(), c.get().any()) == ([1] * 4, False)
    capturing.graph.launch()
    assert (y.get().tolist(), c.get().tolist()) == ([6] * 4, [[72, 72], [72, 72]])
    rate.fill(1)
    capturing.graph.launch()
    assert (y.get().tolist(), c.get()[0, 0]) == ([18] * 4, 72 + 2 * 18 * 18)
    assert (simulation.launches, simulation.graph_launches) == ({"scale": 1}, 2)


def test_capture_refuses_to_wait_for_the_gpu(cupy):
    array, square = cupy.ones(3), cupy.ones((3, 3))
    host = np.ones(3)
    refused = [
        lambda: float(array[0]),
        lambda: bool(array[0]),
        lambda: int(array[0]),
        lambda: array.get(),
        lambda: array[0].item(),
        lambda: cupy.asnumpy(array),
        lambda: cupy.asarray(host),
        lambda: array.set(host),
        lambda: array[array > 0],
        lambda: cupy.nonzero(array),
        lambda: square @ square,
        lambda: cupy.matmul(square, square),
        lambda: square.dot(square),
        lambda: cupy.tensordot(square, square),
        lambda: cupy.einsum("ij,jk", square, square),
        lambda: cupy.cuda.get_current_stream().synchronize(),
        lambda: cupy.cuda.Event().synchronize(),
        lambda: cupy.cuda.Device().synchronize(),
    ]
    with Capturing(cupy):
        for wait in refused:
            with pytest.raises(RuntimeError):
                wait()
    for wait in refused:
        wait()


def test_capture_needs_a_stream_of_its_own(cupy):
    for stream in (cupy.cuda.Stream.null, cupy.cuda.get_current_stream(), cupy.cuda.Stream()):
        with pytest.raises(RuntimeError, match="non_blocking"):
            stream.begin_capture()
    stream = cupy.cuda.Stream(non_blocking=True)
    with pytest.raises(RuntimeError, match="does not capture"):
        stream.end_capture()
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="already"):
        stream.begin_capture()
    array = cupy.zeros(2)  # in the stream that is current, which captures nothing
    array += 1
    stream.end_capture().launch()
    assert array.get().tolist() == [1, 1]


def test_capture_lets_other_threads_work(cupy):
    array = cupy.zeros(2)
    with Capturing(cupy):
        thread = threading.Thread(target=lambda: array.fill(3))
        thread.start()
        thread.join()
    assert array.get().tolist() == [3, 3]


def test_streams_nest(cupy):
    outer, inner = cupy.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)
    assert cupy.cuda.get_current_stream().ptr == 0
    with outer:
        with inner, inner:
            assert cupy.cuda.get_current_stream() is inner
        assert cupy.cuda.get_current_stream() is outer
    assert len({outer.ptr, inner.ptr, cupy.cuda.get_current_stream().ptr}) == 3


def test_graph_over_freed_memory_is_refused(cupy):
    x, y = cupy.ones(3), cupy.zeros(3)
    pools = cupy.cuda.MemoryPool(), cupy.get_default_memory_pool()
    graphs = []
    for pool in pools:
        with Capturing(cupy, pool) as capturing:
            y += x * 2  # the product lives in the pool alone, once this line is done
        graphs.append(capturing.graph)
    own, default = graphs
    own.launch()
    assert y.get().tolist() == [2, 2, 2]
    with pytest.raises(IllegalAddress, match="24 bytes that went back"):
        default.launch()
    pools[0].free_all_blocks()
    with pytest.raises(IllegalAddress):
        own.launch()
    with Capturing(cupy) as capturing:
        y += x
    del x
    with pytest.raises(IllegalAddress):
        capturing.graph.launch()


# --- products -------------------------------------------------------------------------------------

DTYPES = {"float32": 0, "float64": 1, "float16": 2}


class Handle:
    """A handle of the simulated cuBLAS, which multiplies as a program in C would."""

    def __init__(self, simulation):
        self.simulation, self.library, self.handle = simulation, simulation.cublas, ctypes.c_void_p()
        assert self.library.cublasCreate_v2(ctypes.byref(self.handle)) == 0

    def follow(self):
        pointer = ctypes.c_void_p(self.simulation.stream.ptr)
        assert self.library.cublasSetStream_v2(self.handle, pointer) == 0

    def gemm(self, transposed, sizes, a, lda, b, ldb, c, ldc, alpha=1.0, beta=0.0, compute=None, places=None):
        """Call cublasGemmEx with the arrays' addresses, or other `places`."""
        double = c.dtype == np.float64
        compute = compute or (70 if double else 68)
        number = ctypes.c_double if compute == 70 else ctypes.c_float
        places = places or (a.data.ptr, b.data.ptr, c.data.ptr)
        kinds = [DTYPES[array.dtype.name] for array in (a, b, c)]
        factor, share = ctypes.byref(number(alpha)), ctypes.byref(number(beta))
        left, right = (places[0], kinds[0], lda), (ctypes.c_void_p(places[1]), kinds[1], ctypes.c_int(ldb))
        return self.library.cublasGemmEx(
            self.handle, *transposed, *sizes, factor, *left, *right, share, places[2], kinds[2], ldc, compute, -1
        )

    def multiply(self, a, b, c, **options):
        """c ← a @ b of contiguous matrices: cuBLAS, which goes by columns, forms cᵀ = bᵀ @ aᵀ."""
        (M, K), N = a.shape, b.shape[1]
        return self.gemm((0, 0), (N, M, K), b, N, a, K, c, N, **options)


def columns_first(cupy, numbers, lead):
    """A buffer that holds a matrix column by column, `lead` elements apart."""
    buffer = np.full((numbers.shape[1], lead), 99, numbers.dtype)
    buffer[:, : numbers.shape[0]] = numbers.T
    return cupy.asarray(buffer)


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(("dtype", "out"), [("f4", "f4"), ("f8", "f8"), ("f2", "f2"), ("f2", "f4")])
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
def test_matmul(simulation, cupy, rng, transposed, extra, dtype, out, beta):
    (M, N, K), handle = (4, 5, 6), Handle(simulation)
    a, b, c = (rng.normal(size=shape).astype(kind) for shape, kind in (((M, K), dtype), ((K, N), dtype), ((M, N), out)))
    stored_a, stored_b = a.T if transposed[0] else a, b.T if transposed[1] else b
    if beta == 0:
        c[...] = np.nan  # it is not read
    A, B, C = (columns_first(cupy, stored, len(stored) + extra) for stored in (stored_a, stored_b, c))
    leads = [array.shape[1] for array in (A, B, C)]
    status = handle.gemm(transposed, (M, N, K), A, leads[0], B, leads[1], C, leads[2], alpha=1.5, beta=beta)
    assert status == 0
    expected = 1.5 * a.astype("f8") @ b.astype("f8") + (beta * c.astype("f8") if beta else 0)
    tolerance = {"f2": 1e-2, "f4": 1e-5, "f8": 1e-12}[out]
    np.testing.assert_allclose(C.get()[:, :M].T, expected, rtol=tolerance, atol=tolerance)
    assert (C.get()[:, M:] == 99).all()


def test_matmul_that_cublas_refuses(simulation, cupy):
    handle, a = Handle(simulation), cupy.ones((4, 4), np.float32)
    assert handle.gemm((0, 0), (4, 4, 4), a, 4, a, 4, a, 4, compute=77) == 0
    for leads in ((3, 4, 4), (4, 3, 4), (4, 4, 3), (0, 4, 4)):
        assert handle.gemm((0, 0), (4, 4, 4), a, leads[0], a, leads[1], a, leads[2]) == 7
    assert handle.gemm((1, 0), (4, 4, 2), a, 1, a, 4, a, 4) == 7
    assert handle.gemm((0, 0), (-1, 4, 4), a, 4, a, 4, a, 4) == 7
    assert handle.gemm((0, 0), (4, 4, 4), a, 4, a.astype("f2"), 4, a, 4) == 15
    assert handle.gemm((0, 0), (4, 4, 4), a, 4, a, 4, a.astype("f2"), 4) == 15
    assert handle.gemm((0, 0), (4, 4, 4), a, 4, a, 4, a, 4, compute=70) == 15
    double, one = a.astype("f8"), ctypes.byref(ctypes.c_float(1))
    matrix = double.data.ptr, 1, 4
    with pytest.raises(TypeError, match="c_double where a c_float"):
        handle.library.cublasGemmEx(handle.handle, 0, 0, 4, 4, 4, one, *matrix, *matrix, one, *matrix, 70, -1)
    handle.handle.value += 1
    assert handle.gemm((0, 0), (4, 4, 4), a, 4, a, 4, a, 4) == 1


def test_matmul_in_another_stream_fails(simulation, cupy):
    handle, a = Handle(simulation), cupy.ones((4, 4), np.float32)
    with cupy.cuda.Stream():
        assert handle.multiply(a, a, a) == 13
        handle.follow()
        assert handle.multiply(a, a, a) == 0
    assert handle.multiply(a, a, a) == 13


def test_matmul_out_of_bounds_is_found(simulation, cupy):
    handle, a = Handle(simulation), cupy.ones((4, 4), np.float32)
    sizes, here = (4, 4, 4), a.data.ptr
    for places in ((here + 4, here, here), (here, here - 4, here), (here, here, here + 64), (0, here, here)):
        with pytest.raises(IllegalAddress):
            handle.gemm((0, 0), sizes, a, 4, a, 4, a, 4, places=places)
    with pytest.raises(IllegalAddress):
        handle.gemm((0, 0), sizes, a, 5, a, 4, a, 4)
    assert a.get().tolist() == np.ones((4, 4)).tolist()
    workspace = cupy.empty(1024, np.uint8)
    assert handle.library.cublasSetWorkspace_v2(handle.handle, workspace.data.ptr + 4, 512) == 7
    assert handle.library.cublasSetWorkspace_v2(handle.handle, workspace.data.ptr, ctypes.c_size_t(1024)) == 0
    assert handle.multiply(a, a, a) == 0
    del workspace
    gc.collect()
    with pytest.raises(IllegalAddress):
        handle.multiply(a, a, a)
    handle.follow()  # which takes the workspace away
    assert handle.multiply(a, a, a) == 0


def test_library_functions_keep_their_declared_types(simulation):
    handle = Handle(simulation)
    function = handle.library.cublasSetMathMode
    function.argtypes = [ctypes.c_void_p, ctypes.c_int]
    assert handle.library.cublasSetMathMode(handle.handle, 1) == 0
    for wrong in ((handle.handle,), (handle.handle, 1.5)):
        with pytest.raises((TypeError, ctypes.ArgumentError)):
            handle.library.cublasSetMathMode(*wrong)
    with pytest.raises(AttributeError):
        _ = handle.library.cublasThereIsNone


# --- the rest of the module, and the backend over it --------------------------------------------


def test_device_properties_and_ranges(simulation, cupy):
    assert cupy.cuda.Device(0).compute_capability == "90"
    with pytest.raises(CUDARuntimeError):
        cupy.cuda.Device(1)
    free, total = cupy.cuda.runtime.memGetInfo()
    held = cupy.empty(1000, np.uint8)
    assert cupy.cuda.runtime.memGetInfo() == (free - held.nbytes, total)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    end.record()
    assert cupy.cuda.get_elapsed_time(start, end) >= 0
    cupy.cuda.nvtx.RangePush("step")
    cupy.cuda.nvtx.RangePop()
    assert simulation.ranges == ["step"]
    with pytest.raises(RuntimeError, match="no NVTX range"):
        cupy.cuda.nvtx.RangePop()


def modules():
    found = {name: module for name, module in sys.modules.items() if "cupy" in name}
    return found, vars(gpucnn.backends).get("cupy")


def test_simulation_leaves_the_real_backend_alone():
    before = modules()
    first, second = load_backend()(), load_backend()()
    assert first.name == "cupy (simulated)"
    assert "simulated" in first.describe()
    assert first.simulation is not second.simulation
    assert first.xp is first.simulation.cupy
    x = first.from_host(np.float32([0, 1]))
    np.testing.assert_allclose(first.to_host(first.erf(x)), [0, 0.8427008], rtol=1e-6)  # imports in the function
    assert modules() == before
    reads = first.reads
    first.to_host(x)
    assert first.reads == reads + 1


def test_simulation_provides_cupy_and_cublas(simulation, tmp_path, monkeypatch):
    package = tmp_path / "imitation"
    package.mkdir()
    (package / "__init__.py").write_text("import cupy\n")
    (package / "cublas.py").write_text("def open_library():\n    raise OSError\n")
    (package / "user.py").write_text(
        "from imitation.cublas import open_library\n"
        "from importlib.resources import files\n"
        "def later():\n"
        "    import cupy, cupyx.scipy.special, imitation.cublas\n"
        "    return cupy, imitation.cublas.open_library(), open_library()\n"
        "def folder():\n"
        "    return files('imitation')\n"
        "def missing():\n"
        "    import cupy.no_such_thing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tests.simulated_cupy.PACKAGE", "imitation")
    importer = Importer(simulation)
    user = importer.load("imitation.user")
    assert user.later() == (simulation.cupy, simulation.cublas, simulation.cublas)
    assert user.folder() == package
    with pytest.raises(ModuleNotFoundError):
        user.missing()
    assert importer.load("imitation").cupy is simulation.cupy
    assert "imitation" not in sys.modules
