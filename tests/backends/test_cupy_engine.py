"""The CuPy engine: algorithms, products, captured steps, half precision and running out of memory.

Everything here runs on the simulated CuPy, whose kernels are compiled for the host and whose cuBLAS sees addresses;
with `--backend cupy` the same tests run on a GPU, but for those that look into the simulation.
"""

import math

import numpy as np
import pytest

import gpucnn
from gpucnn import callbacks, losses, optimizers
from gpucnn import layers as L
from gpucnn.backends import Backend
from gpucnn.backends.window import Window
from gpucnn.data.augment import AlternatingFlip, Cutout, Flip, RandomCrop, Rotate, Translate
from gpucnn.errors import ConfigurationError, OutOfMemoryError
from tests.helpers import SIMULATED, make_backend

REFERENCE = Backend()
TOLERANCE = {"float16": 4e-3, "float32": 3e-6, "float64": 1e-13}  # of the largest number


def numbers(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def assert_close(actual, expected, dtype, what=""):
    assert actual.shape == expected.shape, what
    scale = max(float(np.abs(expected).max()), 1e-30)
    worst = float(np.abs(actual.astype("float64") - expected).max()) / scale
    assert worst <= TOLERANCE[dtype], f"{what}: off by {worst:.1e}"


# --- convolutions -------------------------------------------------------------------------------

WINDOWS = {
    "same 3x3": (Window((3, 3), padding=((1, 1), (1, 1))), 1, "im2col"),
    "valid 5x3": (Window((5, 3)), 1, "im2col"),
    "stride": (Window((3, 3), (2, 2), ((0, 1), (1, 0))), 1, "im2col"),
    "dilation": (Window((3, 2), padding=((2, 2), (1, 1)), dilation=(2, 3)), 1, "im2col"),
    "wide padding": (Window((2, 2), padding=((3, 3), (0, 2))), 1, "im2col"),
    "1x1": (Window((1, 1)), 1, "product"),
    "1x1 stride": (Window((1, 1), (2, 3)), 1, "im2col"),
    "1x1 padding": (Window((1, 1), padding=((1, 0), (0, 1))), 1, "im2col"),
    "groups": (Window((3, 3), padding=((1, 1), (1, 1))), 2, "im2col"),
    "groups 1x1": (Window((1, 1)), 4, "product"),
    "groups stride": (Window((3, 3), (2, 1)), 4, "im2col"),
    "depthwise": (Window((3, 3), padding=((1, 1), (1, 1))), 8, "depthwise"),
    "depthwise stride": (Window((3, 5), (2, 2), ((1, 1), (2, 2)), (1, 2)), 8, "depthwise"),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize(("C", "F"), [(8, 16), (8, 24), (16, 16)])
def test_convolutions(gpu, rng, name, dtype, C, F):
    """All three passes against the reference implementation in float64, of numbers that the dtype can hold."""
    window, groups, algorithm = WINDOWS[name]
    if groups == 8:
        C = 8
    N, H, W = 5, 9, 10
    OH, OW = window.output_size((H, W))
    parameters = "float64" if dtype == "float64" else "float32"
    x, dy = numbers(rng, (N, H, W, C), dtype), numbers(rng, (N, OH, OW, F), dtype)
    weight = numbers(rng, (*window.size, C // groups, F), dtype).astype(parameters)
    bias = numbers(rng, F, parameters)
    assert gpu.conv2d_algorithm(window, N, C, F, groups, dtype) == algorithm

    exact = [array.astype("float64") for array in (x, weight, bias, dy)]
    expected = {
        "y": REFERENCE.conv2d(*exact[:3], window, groups),
        "relu": REFERENCE.conv2d(*exact[:2], None, window, groups, True),
        "dx": REFERENCE.conv2d_input_gradient(exact[3], exact[1], (H, W), window, groups),
        "dweight": REFERENCE.conv2d_parameter_gradients(exact[0], exact[3], window, groups)[0],
        "dbias": REFERENCE.conv2d_parameter_gradients(exact[0], exact[3], window, groups)[1],
    }
    there = [gpu.from_host(array) for array in (x, weight, bias, dy)]
    dweight, dbias = gpu.conv2d_parameter_gradients(there[0], there[3], window, groups)
    actual = {
        "y": gpu.conv2d(*there[:3], window, groups),
        "relu": gpu.conv2d(*there[:2], None, window, groups, True),
        "dx": gpu.conv2d_input_gradient(there[3], there[1], (H, W), window, groups),
        "dweight": dweight,
        "dbias": dbias,
    }
    for what, array in actual.items():
        assert_close(gpu.to_host(array), expected[what], dtype, what)
        assert array.dtype == (parameters if what.startswith("d") and what != "dx" else dtype), what


@pytest.mark.parametrize("images", [1, 3, 7, 1000])
def test_convolution_takes_a_large_batch_in_parts(simulated, rng, images):
    simulated._workspace = images * 8 * 8 * 9 * 4 * 4  # bytes of the columns of `images` images
    window = Window((3, 3), padding=((1, 1), (1, 1)))
    x, dy = numbers(rng, (7, 8, 8, 4), "float32"), numbers(rng, (7, 8, 8, 8), "float32")
    weight = numbers(rng, (3, 3, 4, 8), "float32")
    there = [simulated.from_host(array) for array in (x, weight, dy)]
    launches = simulated.simulation.launches
    launches.clear()
    y = simulated.conv2d(there[0], there[1], None, window)
    assert launches["im2col"] == math.ceil(7 / images)
    dweight, _ = simulated.conv2d_parameter_gradients(there[0], there[2], window)
    assert launches["im2col"] == 2 * math.ceil(7 / images)
    assert_close(simulated.to_host(y), REFERENCE.conv2d(x, weight, None, window), "float32")
    expected, _ = REFERENCE.conv2d_parameter_gradients(x, dy, window)
    assert_close(simulated.to_host(dweight), expected, "float32")


@pytest.mark.parametrize("asked", ["much", "0", "-5", "inf"])
def test_workspace_that_is_not_a_size_is_refused(request, monkeypatch, asked):
    """By name, and not as an unavailable GPU: `auto` would continue without one."""
    if SIMULATED not in request.config.backends:
        pytest.skip("needs the simulation, which is not tested here")
    monkeypatch.setenv("GPUCNN_WORKSPACE_MB", asked)
    with pytest.raises(ConfigurationError, match=f"GPUCNN_WORKSPACE_MB must be a number of megabytes.*not '{asked}'"):
        make_backend(SIMULATED)
    monkeypatch.setenv("GPUCNN_WORKSPACE_MB", "1.5")
    assert make_backend(SIMULATED)._workspace == 1_500_000


def test_pooling_windows_too_large_for_a_byte(gpu, rng):
    window = Window((16, 17), (2, 1))
    x = numbers(rng, (2, 20, 20, 3), "float32")
    y, switches = gpu.max_pool2d(gpu.from_host(x), window)
    expected, expected_switches = REFERENCE.max_pool2d(x, window)
    assert np.array_equal(gpu.to_host(y), expected)
    assert expected_switches.max() > 255
    dx = gpu.max_pool2d_gradient(y, switches, (20, 20), window)
    assert np.array_equal(gpu.to_host(dx), REFERENCE.max_pool2d_gradient(expected, expected_switches, (20, 20), window))


def test_kernels_take_unaligned_and_transposed_arrays(gpu, rng):
    """Slices that do not start at a multiple of 16 bytes, and transposed arrays, are computed like any other."""
    x = numbers(rng, (5, 3), "float32")
    there = gpu.from_host(x)
    assert np.array_equal(gpu.to_host(gpu.relu(there[1:])), np.maximum(x[1:], 0))
    assert np.array_equal(gpu.to_host(gpu.relu(there.T[:, 1:])), np.maximum(x.T[:, 1:], 0))
    assert np.array_equal(gpu.to_host(gpu.add(there[1:], there[:4])), x[1:] + x[:4])
    assert np.allclose(gpu.to_host(gpu.channel_sums(there[1:])), x[1:].sum(axis=0), atol=1e-6)


def test_nan_is_passed_on(gpu):
    x = np.zeros((1, 2, 6, 1), "float32")
    x[0, 0, 0, 0] = x[0, 1, 3, 0] = np.nan  # the first of its window, and the last
    y, _ = gpu.max_pool2d(gpu.from_host(x), Window((2, 2), (2, 2)))
    assert np.isnan(gpu.to_host(y)[0, 0, :, 0]).tolist() == [True, True, False]
    y, _ = gpu.max_pool2d(gpu.from_host(x), Window((2, 2), (2, 2)), relu=True)
    assert np.isnan(gpu.to_host(y)[0, 0, :, 0]).tolist() == [True, True, False]


# --- channel by channel -------------------------------------------------------------------------

SHAPES = [(5, 3, 4, 8), (40, 12, 12, 3), (700, 3, 3, 16), (3000, 1), (9, 520), (2, 2, 2, 300), (64, 16, 16, 4)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_channel_sums(gpu, rng, shape, dtype):
    x = (numbers(rng, shape, "float64") + 1).astype(dtype)
    sums = gpu.to_host(gpu.channel_sums(gpu.from_host(x)))
    assert_close(sums, x.astype("float64").sum(axis=tuple(range(len(shape) - 1))), max(dtype, "float32"))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(gpu, rng, shape, dtype, relu):
    """Both passes against the reference implementation in float64, of channels that lie anywhere from −8 to 8."""
    C = shape[-1]
    x = (numbers(rng, shape, "float64") + np.linspace(-8, 8, C)).astype(dtype)
    dy = numbers(rng, shape, dtype)
    scale, shift = rng.uniform(0.5, 2, C), rng.uniform(-1, 1, C)
    parameters = "float64" if dtype == "float64" else "float32"
    there = [gpu.from_host(scale.astype(parameters)), gpu.from_host(shift.astype(parameters))]
    y, mean, variance, kept = gpu.batch_norm(gpu.from_host(x), *there, 1e-5, relu)
    gradients = gpu.batch_norm_gradient(gpu.from_host(dy), kept, variance, there[0], 1e-5)

    exact = x.astype("float64"), there[0].astype("float64"), there[1].astype("float64")
    exact = [exact[0], *(gpu.to_host(array) for array in exact[1:])]
    expected_y, expected_mean, expected_variance, expected_kept = REFERENCE.batch_norm(*exact, 1e-5, relu)
    expected = REFERENCE.batch_norm_gradient(dy.astype("float64"), expected_kept, expected_variance, exact[1], 1e-5)
    assert_close(gpu.to_host(y), expected_y, dtype, "y")
    assert_close(gpu.to_host(mean), expected_mean, parameters, "mean")
    assert_close(gpu.to_host(variance), expected_variance, parameters, "variance")
    for what, actual, wanted in zip(("dx", "dscale", "dshift"), gradients, expected, strict=True):
        rounding = 10 if what != "dx" and parameters == "float32" else 1  # sums of thousands of numbers that cancel
        scale_of = np.abs(wanted).max() + 1e-3 * x.size / C
        worst = np.abs(gpu.to_host(actual).astype("float64") - wanted).max() / scale_of
        assert worst <= rounding * TOLERANCE[dtype if what == "dx" else parameters], what
    assert gradients[0].dtype == dtype
    assert gradients[1].dtype == gradients[2].dtype == parameters


def test_batch_norm_statistics_far_from_zero_keep_their_digits(gpu, rng):
    """A deviation of 1 about 10,000: a sum of squares in float32 would leave nothing of it."""
    x = (rng.standard_normal((4000, 5)) + 1e4).astype("float32")
    ones = gpu.from_host(np.ones(5, "float32"))
    _, mean, variance, _ = gpu.batch_norm(gpu.from_host(x), ones, ones, 1e-5)
    assert np.abs(gpu.to_host(mean) - x.mean(axis=0, dtype="float64")).max() < 2e-3
    assert np.abs(gpu.to_host(variance) / x.var(axis=0, dtype="float64") - 1).max() < 1e-4


@pytest.mark.parametrize("relu", [False, True])
def test_scale_and_shift(gpu, rng, relu):
    x, scale, shift = numbers(rng, (700, 20), "float32"), numbers(rng, 20, "float32"), numbers(rng, 20, "float32")
    y = gpu.to_host(gpu.scale_and_shift(*(gpu.from_host(array) for array in (x, scale, shift)), relu))
    assert_close(y, REFERENCE.scale_and_shift(x, scale, shift, relu), "float32")


@pytest.mark.parametrize("K", [1, 10, 64, 65, 1000])
def test_softmax_and_cross_entropy_for_any_number_of_classes(gpu, rng, K):
    logits, targets = numbers(rng, (37, K), "float64") * 20, rng.uniform(0, 1, (37, K))
    logits[0, 0], logits[1, -1] = 1e4, -1e4
    there = gpu.from_host(logits), gpu.from_host(targets)
    assert_close(gpu.to_host(gpu.softmax(there[0])), REFERENCE.softmax(logits), "float64")
    loss, dlogits = gpu.softmax_cross_entropy(*there)
    expected, expected_dlogits = REFERENCE.softmax_cross_entropy(logits, targets)
    assert float(gpu.to_host(loss)) == pytest.approx(float(expected), rel=1e-13)
    assert_close(gpu.to_host(dlogits), expected_dlogits, "float64")


# --- products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("sizes", [(5, 7, 3), (1, 4, 6), (6, 4, 1), (6, 1, 5), (1, 1, 1), (64, 48, 80)])
@pytest.mark.parametrize("turns", [(False, False), (True, False), (False, True), (True, True)])
def test_matmul(gpu, rng, dtype, sizes, turns):
    (M, K, N), (turn_a, turn_b) = sizes, turns
    a, b = numbers(rng, (K, M) if turn_a else (M, K), dtype), numbers(rng, (N, K) if turn_b else (K, N), dtype)
    there_a, there_b = gpu.from_host(a), gpu.from_host(b)
    out = gpu.xp.zeros((M, N), dtype=dtype)
    factors = there_a.T if turn_a else there_a, there_b.T if turn_b else there_b
    gpu._cublas.multiply(*factors, out)
    expected = (a.T if turn_a else a).astype("float64") @ (b.T if turn_b else b).astype("float64")
    assert_close(gpu.to_host(out), expected, dtype)
    gpu._cublas.multiply(*factors, out, add=True)
    assert_close(gpu.to_host(out), 2 * expected, dtype)


def test_matmul_of_blocks(gpu, rng):
    """Blocks of larger matrices are multiplied where they lie, and written to one."""
    a, b = numbers(rng, (10, 12), "float32"), numbers(rng, (9, 11), "float32")
    out = gpu.xp.zeros((8, 9), dtype="float32")
    there_a, there_b = gpu.from_host(a), gpu.from_host(b)
    gpu._cublas.multiply(there_a[2:8, 3:10], there_b[1:8, 4:9], out[1:7, 2:7])
    expected = np.zeros((8, 9))
    expected[1:7, 2:7] = a[2:8, 3:10].astype("float64") @ b[1:8, 4:9]
    assert_close(gpu.to_host(out), expected, "float32")


def test_fp16_matmul_sums_in_fp32(gpu):
    """4096 times 1 + 2⁻¹⁰, whose sum float16 cannot hold to the last digit, into a float32 output."""
    a = gpu.xp.full((1, 4096), 1 + 2**-10, dtype="float16")
    out = gpu.xp.empty((1, 1), dtype="float32")
    gpu._cublas.multiply(a, gpu.xp.ones((4096, 1), dtype="float16"), out)
    assert float(gpu.to_host(out)[0, 0]) == 4096 * (1 + 2**-10)


def test_tf32_holds_for_its_model_alone(simulated, monkeypatch):
    compute_types = []
    library = simulated._cublas._library
    product = library.cublasGemmEx

    def watched(*arguments):
        compute_types.append(int(arguments[-2]))
        return product(*arguments)

    monkeypatch.setattr(library, "cublasGemmEx", watched)
    x = np.ones((4, 6, 6, 2), "float32")

    def compute_types_of(**options):
        model = gpucnn.Model([L.Conv2D(4, 3), L.Flatten(), L.Dense(2)], (6, 6, 2), backend=simulated, **options)
        compute_types.clear()
        _, backward = model.forward(x, train=True)
        backward(simulated.from_host(np.ones((4, 2), "float32")))
        return set(compute_types)

    monkeypatch.delenv("GPUCNN_TF32", raising=False)
    assert compute_types_of() == {68}
    assert compute_types_of(allow_tf32=True) == {77}
    assert compute_types_of(dtype="float64", allow_tf32=True) == {70}
    assert compute_types_of(dtype="float16", allow_tf32=True) == {68}
    monkeypatch.setenv("GPUCNN_TF32", "1")
    assert compute_types_of() == {77}
    assert compute_types_of(allow_tf32=False) == {68}


def test_matmul_that_fails_raises(simulated, monkeypatch):
    library = simulated._cublas._library
    a = simulated.from_host(np.ones((2, 2), "float32"))
    monkeypatch.setattr(library, "cublasGemmEx", lambda *arguments: 13)
    with pytest.raises(RuntimeError, match="cublasGemmEx returned status 13"):
        simulated._cublas.multiply(a, a, a)
    monkeypatch.setattr(library, "cublasGemmEx", lambda *arguments: 3)
    with pytest.raises(MemoryError, match="cuBLAS could not allocate"):
        simulated._cublas.multiply(a, a, a)


# --- captured steps -----------------------------------------------------------------------------


def images_and_labels(rng, count=70):
    return rng.integers(0, 256, (count, 12, 12, 2)).astype("uint8"), rng.integers(0, 4, count)


def network(backend, dtype="float32"):
    return gpucnn.Model(
        [
            *[L.Normalization(0.4, 0.3), L.Conv2D(8, 3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU()],
            *[
                L.MaxPool2D(2),
                L.Dropout(0.3),
                L.Residual([L.Conv2D(8, 3, padding="same"), L.GELU()]),
                L.ReLU(),
                L.AveragePool2D(2),
            ],
            *[L.Conv2D(8, 3, groups=8), L.Sigmoid(), L.Flatten(), L.Dropout(0.2), L.Dense(4), L.Softmax()],
        ],
        (12, 12, 2),
        backend=backend,
        dtype=dtype,
    )


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(gpucnn.schedules.OneCycle(0.05), momentum=0.9, nesterov=True, weight_decay=1e-3),
    "plain sgd": lambda: optimizers.SGD(0.05),
    "adam": lambda: optimizers.Adam(1e-3, weight_decay=1e-3),
    "adamw": lambda: optimizers.AdamW(gpucnn.schedules.OneCycle(1e-3)),
}


def fitted(backend, data, optimizer, dtype="float32", jit=True, **options):
    model = network(backend, dtype)
    loss = losses.CategoricalCrossEntropy(label_smoothing=0.1)
    model.compile(OPTIMIZERS[optimizer](), loss, metrics=["accuracy"], jit=jit)
    history = model.fit(*data, epochs=3, batch_size=16, verbose=0, **options)
    return model, history.history


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_steps_give_the_bits_of_eager_steps(gpu, rng, optimizer, dtype):
    """Dropout, schedules, Adam's count and a last, smaller batch are those of eager steps."""
    data = images_and_labels(rng)
    captured, history = fitted(gpu, data, optimizer, dtype)
    eager, eager_history = fitted(gpu, data, optimizer, dtype, jit=False)
    for path, value in captured.state_dict().items():
        assert np.array_equal(value, eager.state_dict()[path]), path
    for what in ("loss", "accuracy", "learning_rate"):
        assert history[what] == eager_history[what], what
    assert captured.optimizer.steps == eager.optimizer.steps == 15


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_steps_agree_with_reference_kernels(gpu, rng, optimizer):
    data = images_and_labels(rng)
    captured, history = fitted(gpu, data, optimizer, "float64", validation_data=data)
    reference, expected = fitted(Backend(), data, optimizer, "float64", validation_data=data)
    for what in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert history[what] == pytest.approx(expected[what], rel=1e-9), what
    for path, value in reference.state_dict().items():
        assert_close(captured.state_dict()[path], value, "float32", path)


def test_fit_launches_graphs(simulated, rng):
    """Of 4 full batches per epoch, the first runs eagerly, the second is captured and the others are replayed."""
    simulation = simulated.simulation
    fitted(simulated, images_and_labels(rng), "sgd")
    assert simulation.graph_launches == 3 * 4 - 1
    simulation.graph_launches = 0
    fitted(simulated, images_and_labels(rng), "sgd", jit=False)
    assert simulation.graph_launches == 0
    fitted(simulated, images_and_labels(rng, 20), "sgd")  # one full batch only: nothing to replay
    assert simulation.graph_launches == 0


def test_captured_steps_without_shuffling(gpu, rng):
    data = images_and_labels(rng)
    captured, _ = fitted(gpu, data, "sgd", shuffle=False)
    eager, _ = fitted(gpu, data, "sgd", shuffle=False, jit=False)
    for path, value in captured.state_dict().items():
        assert np.array_equal(value, eager.state_dict()[path]), path


def test_epoch_reads_nothing_back(simulated, rng):
    model = network(simulated)
    model.compile(OPTIMIZERS["sgd"](), jit=True)
    data = images_and_labels(rng)
    reads = []

    class Reads(gpucnn.callbacks.Callback):
        def on_epoch_begin(self, model, epoch):
            self.before = simulated.simulation.reads

        def on_step_end(self, model, step):
            reads.append(simulated.simulation.reads - self.before)

    model.fit(*data, epochs=2, batch_size=16, verbose=0, callbacks=[Reads()])
    assert reads == [0] * 10


@pytest.mark.parametrize(
    "augment", [[Flip(), Translate(2), Cutout(4)], [AlternatingFlip(), RandomCrop(), Rotate(30, 0.2)]], ids=str
)
def test_augmented_steps_are_captured(gpu, rng, augment):
    """Each replay draws the transforms of the eager step; also in a second fit."""
    data = images_and_labels(rng)
    captured, history = fitted(gpu, data, "sgd", augment=augment)
    eager, eager_history = fitted(gpu, data, "sgd", augment=augment, jit=False)
    plain, _ = fitted(gpu, data, "sgd")
    for model in (captured, eager):
        model.fit(*data, epochs=2, batch_size=16, verbose=0, augment=augment)
    assert history["loss"] == eager_history["loss"]
    for path, value in captured.state_dict().items():
        assert np.array_equal(value, eager.state_dict()[path]), path
    assert not np.array_equal(plain.state_dict()["dense.weight"], eager.state_dict()["dense.weight"])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("jit", [True, False])
def test_dataset_larger_than_memory_is_streamed(gpu, rng, monkeypatch, jit, shuffle):
    data = images_and_labels(rng)
    options = {"jit": jit, "shuffle": shuffle, "validation_data": data, "augment": [AlternatingFlip(), Translate(1)]}
    held, history = fitted(gpu, data, "adam", **options)
    kept = gpu.xp.get_default_memory_pool().free_bytes  # counts as free, too
    monkeypatch.setattr(gpu.xp.cuda.runtime, "memGetInfo", lambda: (1.9 * data[0].nbytes - kept(), 2**30))
    assert [hasattr(brought, "ndim") for brought in gpu.upload(*data)] == [False, True]
    fed, fed_history = fitted(gpu, data, "adam", **options)
    for what in ("loss", "val_loss", "val_accuracy"):
        assert fed_history[what] == history[what], what
    for path, value in fed.state_dict().items():
        assert np.array_equal(value, held.state_dict()[path]), path


def test_kernels_never_sum_booleans(simulated, rng):
    """For such a sum CuPy compiles seconds long with the headers of CUB; a sum of numbers it brings along."""
    data, average = images_and_labels(rng), callbacks.MovingAverage(0.9)
    before = simulated.simulation.sums_of_booleans
    model, _ = fitted(simulated, data, "sgd", validation_data=data, callbacks=[average])
    model.fit(*data, epochs=1, batch_size=16, verbose=0, callbacks=[average])
    model.evaluate(*data)
    model.predict(data[0])
    assert simulated.simulation.sums_of_booleans == before


def test_callback_may_change_what_a_captured_step_reads(gpu, rng):
    """A weight that is changed in mid-training is the one that the next step starts from."""
    data = images_and_labels(rng, 64)

    class Halves(gpucnn.callbacks.Callback):
        def on_step_end(self, model, step):
            if step == 2:
                for parameter in model.parameters().values():
                    parameter.value = parameter.value * 0.5

    captured, history = fitted(gpu, data, "adam", callbacks=[Halves()])
    eager, eager_history = fitted(gpu, data, "adam", jit=False, callbacks=[Halves()])
    untouched, _ = fitted(gpu, data, "adam")
    assert history["loss"] == eager_history["loss"]
    for path, value in captured.state_dict().items():
        assert np.array_equal(value, eager.state_dict()[path]), path
    assert not np.array_equal(untouched.state_dict()["dense.weight"], eager.state_dict()["dense.weight"])


LOOKS = {
    "reads": lambda backend, x: float(x.sum()),
    "waits": lambda backend, x: backend.synchronize(),
    "multiplies": lambda backend, x: backend.xp.matmul(x, x.T),
}


def with_custom_layer(backend, look, declares, jit=True):
    """A compiled network with a layer that cannot be captured."""

    class Own(L.Layer):
        capturable = declares

        def forward(self, x, *, train):
            look(self.backend, x)
            return x, lambda dy: dy

    try:
        layers = [L.Flatten(), L.Dense(8), L.Dropout(0.3), Own(name="own"), L.Dense(4), L.Softmax()]
        return gpucnn.Model(layers, (12, 12, 2), backend=backend).compile(OPTIMIZERS["adam"](), jit=jit)
    finally:
        L.Layer.registry.pop("Own")


@pytest.mark.parametrize("look", LOOKS)
def test_step_that_cannot_be_captured_runs_eagerly(gpu, rng, look):
    """It is noticed before anything was done, so random streams and counts are those of eager steps."""
    data = images_and_labels(rng)
    model, eager = (with_custom_layer(gpu, LOOKS[look], True, jit) for jit in (True, False))
    with pytest.warns(gpucnn.CaptureWarning, match=r"cannot be captured .* backend\.dense .* jit=False") as caught:
        history = model.fit(*data, epochs=2, batch_size=16, verbose=0)
    assert len(caught) == 1
    assert model.why_not_captured
    expected = eager.fit(*data, epochs=2, batch_size=16, verbose=0)
    model.fit(*data, batch_size=16, verbose=0)  # and does not try again
    eager.fit(*data, batch_size=16, verbose=0)
    assert history.history["loss"] == expected.history["loss"]
    assert history.history["accuracy"] == expected.history["accuracy"]
    assert model.optimizer.steps == eager.optimizer.steps == 15
    for path, value in model.state_dict().items():
        assert np.array_equal(value, eager.state_dict()[path]), path
    assert not model.to("numpy").why_not_captured


def test_capture_passes_gpucnn_errors_on(gpu, rng):
    calls = []

    def look(backend, x):
        calls.append(x)
        if len(calls) == 2:
            raise gpucnn.DataError("of our own")

    with pytest.raises(gpucnn.DataError, match="of our own"):
        with_custom_layer(gpu, look, True).fit(*images_and_labels(rng), batch_size=16, verbose=0)
    assert len(calls) == 2


def test_layer_that_does_not_declare_capture_is_not_captured(gpu, rng):
    """Otherwise each replay would do what Python decided in the captured step."""
    calls = []
    model = with_custom_layer(gpu, lambda backend, x: calls.append(x.shape), False)
    model.fit(*images_and_labels(rng, 64), batch_size=16, verbose=0)
    assert len(calls) == 4
    assert model.why_not_captured == "layers that do not declare capturable = True: own"


# --- half precision -----------------------------------------------------------------------------


def test_fp16_keeps_its_state_in_fp32(gpu, rng):
    model = network(gpu, "float16")
    seen = []
    conv = model.layers[1]
    conv_forward = conv.forward

    def watched(x, **options):
        seen.append(x.dtype)
        return conv_forward(x, **options)

    vars(conv)["forward"] = watched
    x, y = images_and_labels(rng)
    model.compile(OPTIMIZERS["sgd"]())
    loss = model.train_on_batch(x, y)
    assert loss.dtype == "float32"
    assert seen == ["float16"]
    assert {str(p.value.dtype) for p in model.parameters().values()} == {"float32"}
    assert {str(p.grad.dtype) for p in model.parameters().values()} == {"float32"}
    assert model.predict(x).dtype == np.float32
    assert all(value.dtype in (np.float32, np.uint64) for value in model.state_dict().values())


def test_fp16_learns(gpu):
    """The task of the synthetic digits' kind: which quarter of the image is bright."""
    generator = np.random.default_rng(1)
    y = generator.integers(0, 4, 192)
    x = generator.integers(0, 60, (192, 12, 12, 2)).astype("uint8")
    for image, label in zip(x, y, strict=True):
        image[6 * (label // 2) :][:6, 6 * (label % 2) :][:, :6] += 120
    model = network(gpu, "float16")
    model.compile(optimizers.SGD(0.1, momentum=0.9))
    before = model.state_dict()
    history = model.fit(x, y, epochs=6, batch_size=32, verbose=0).history
    assert history["accuracy"][-1] > 0.9
    assert model.evaluate(x, y)["accuracy"] > 0.9
    for path in model.parameters():
        assert not np.array_equal(before[path], model.state_dict()[path]), path


def test_fp16_keeps_small_gradients(gpu, rng):
    """A mean over 4096 samples, and weights of a hundredth: gradients of which float16 would keep a digit or two."""
    x, y = numbers(rng, (4096, 4), "float32"), rng.integers(0, 3, 4096)
    gradients = []
    for dtype in ("float16", "float32"):
        layers = [L.Dense(6, use_bias=False), L.Dense(3, use_bias=False), L.Softmax()]
        model = gpucnn.Model(layers, (4,), backend=gpu, dtype=dtype).compile(optimizers.SGD(0.1))
        first, second = model.parameters().values()
        second.value = second.value * 0.01
        model.loss_and_gradients(model.as_floats(gpu.from_host(x)), gpu.from_host(y))
        gradients.append(gpu.to_host(first.grad).copy())
    assert_close(gradients[0], gradients[1], "float16")


def test_fp16_is_for_gpus(gpu, tmp_path):
    with pytest.raises(ConfigurationError, match=r'"float16" is for GPUs.*pass dtype="float32"'):
        gpucnn.Model([L.Dense(2)], (3,), backend="numpy", dtype="float16")
    model = gpucnn.Model([L.Dense(2)], (3,), backend=gpu, dtype="float16")
    with pytest.raises(ConfigurationError, match="numpy"):
        model.to("numpy")
    assert model.backend is gpu
    assert model.to("numpy", "float32").dtype == "float32"
    model.to(gpu, "float16").save(tmp_path / "half.safetensors")
    with pytest.raises(gpucnn.CheckpointError, match='dtype="float32"'):
        gpucnn.load(tmp_path / "half.safetensors", backend="numpy")
    loaded = gpucnn.load(tmp_path / "half.safetensors", backend="numpy", dtype="float32")
    assert np.array_equal(loaded.predict(np.eye(3, dtype="float32")), model.to("numpy", "float32").predict(np.eye(3)))


def test_fp16_parity(gpu, rng):
    x, y = images_and_labels(rng, 32)
    model = network(gpu, "float16")
    model.compile()
    result = gpucnn.parity(model, x, y)
    assert result.agrees, str(result)
    assert result.dtype == "float16"
    assert model.dtype == "float16"


# --- memory -------------------------------------------------------------------------------------


def memory_hungry(backend):
    """A network whose columns take 9 times its activations: 294,912 bytes for 32 images of 8 channels."""
    layers = [L.Conv2D(8, 3, padding="same", name="first"), L.Residual([L.Conv2D(8, 3, padding="same")]), L.Flatten()]
    model = gpucnn.Model([*layers, L.Dense(2), L.Softmax()], (16, 16, 4), backend=backend)
    return model.compile(optimizers.SGD(0.1))


def test_im2col_halves_its_columns_where_memory_is_short(simulated, rng):
    simulation = simulated.simulation
    x, y = rng.integers(0, 256, (32, 16, 16, 4)).astype("uint8"), rng.integers(0, 2, 32)
    ample, short = memory_hungry(simulated), memory_hungry(simulated)
    expected = ample.train_on_batch(x, y)
    simulation.limit, simulation.frees = 600_000, 0
    loss = short.train_on_batch(x, y)
    assert simulation.frees >= 2  # 2.4 MB of columns were halved twice, and more
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for path, parameter in short.parameters().items():
        expected = simulated.to_host(ample.parameters()[path].value)
        assert_close(simulated.to_host(parameter.value), expected, "float32", path)


@pytest.mark.parametrize(
    ("limit", "layer"),
    [
        (250_000, "first"),  # its output does not fit
        (200_000, "first"),
    ],
)
def test_out_of_memory_names_the_layer_and_a_batch(simulated, rng, limit, layer):
    simulation = simulated.simulation
    x, y = rng.integers(0, 256, (32, 16, 16, 4)).astype("float32"), rng.integers(0, 2, 32)
    model = memory_hungry(simulated)
    simulation.limit = limit
    message = rf"{layer}: out of memory on cupy \(simulated\) at a batch of 32: .*allocating 262,144 bytes.*MB are free"
    with pytest.raises(OutOfMemoryError, match=message + ".*a batch_size of 16 fits, as was tried") as caught:
        model.train_on_batch(x, y)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.layer == layer
    simulation.limit = None
    assert np.isfinite(float(model.train_on_batch(x, y)))  # the model is as good as before


def test_advised_batch_fits_a_small_gpu(simulated, rng):
    """64 samples ask for an output of 262,144 bytes and 8 for 65,536."""
    x, y = rng.integers(0, 256, (64, 16, 16, 4)).astype("uint8"), rng.integers(0, 2, 64)
    model = memory_hungry(simulated)
    simulated.simulation.limit = 100_000
    with pytest.raises(OutOfMemoryError, match=r"MB are free; a batch_size of 8 fits, as was tried"):
        model.train_on_batch(x, y)
    assert np.isfinite(float(model.train_on_batch(x[:8], y[:8])))


def test_out_of_memory_in_backward(simulated, rng):
    x = rng.standard_normal((32, 16, 16, 4)).astype("float32")
    model = memory_hungry(simulated)
    _, backward = model.forward(x, train=True)
    dy = simulated.from_host(rng.standard_normal((32, 2)).astype("float32"))
    simulated.simulation.limit = 200_000
    with pytest.raises(OutOfMemoryError, match=r"^dense: out of memory .* at a batch of 32"):
        backward(dy)


def test_out_of_memory_in_a_nested_layer(simulated, rng):
    simulation = simulated.simulation
    x = rng.standard_normal((8, 4, 4, 2)).astype("float32")
    inside = L.Sequential([L.Conv2D(64, 1, name="wide")], name="inner")
    model = gpucnn.Model([L.ReLU(), inside, L.GlobalAveragePool2D()], (4, 4, 2), backend=simulated)
    simulation.limit = 20_000
    with pytest.raises(OutOfMemoryError, match=r"^inner\.wide: out of memory"):
        model.forward(x)


# --- looking at time ----------------------------------------------------------------------------


def test_profile_times_with_events_and_names_ranges(simulated, rng):
    x, y = images_and_labels(rng, 16)
    model = network(simulated)
    model.compile()
    simulated.simulation.ranges.clear()
    profile = model.profile(x, y, repeats=2)
    labels = [row.path for row in profile.layers]
    assert set(labels) <= set(simulated.simulation.ranges)
    assert {row.path: row.algorithm for row in profile.layers if row.algorithm} == {
        "conv2d": "im2col",
        "residual": "im2col",
        "conv2d_1": "depthwise",
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lenet_steps_agree_with_reference_kernels(gpu, rng, dtype):
    """Three steps of LeNet on images of real size: loss, outputs and every parameter."""
    x, y = rng.integers(0, 256, (3, 24, 28, 28, 1)).astype("uint8"), rng.integers(0, 10, (3, 24))
    ours, reference = (gpucnn.networks.lenet(seed=4, backend=backend, dtype=dtype) for backend in (gpu, Backend()))
    for images, labels in zip(x, y, strict=True):
        loss = float(gpu.to_host(ours.train_on_batch(images, labels)))
        assert loss == pytest.approx(float(reference.train_on_batch(images, labels)), rel=10 * TOLERANCE[dtype])
    for path, value in reference.state_dict().items():
        scale = np.abs(value).max() + 1e-3
        assert np.abs(ours.state_dict()[path] - value).max() <= 30 * TOLERANCE[dtype] * scale, path
    assert_close(ours.predict(x[0]), reference.predict(x[0]), "float32")


def test_tta_averages_in_fp32(gpu):
    x = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3)).astype("uint8")
    half, single = (
        gpucnn.Model([L.Conv2D(4, 3), L.Flatten(), L.Dense(3), L.Softmax()], (8, 8, 3), backend=gpu, dtype=dtype)
        for dtype in ("float16", "float32")
    )
    outputs = half.predict(x, tta="flip+shift")
    assert outputs.dtype == "float32"
    assert np.abs(outputs - single.predict(x, tta="flip+shift")).max() < 5e-3
