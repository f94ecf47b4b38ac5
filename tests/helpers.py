"""What tests of several files share: backends, small models and data, formulas, runs that are killed, files."""

import json
import math
import struct

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import layers, losses, optimizers
from gpucnn.backends import Backend, get_backend
from gpucnn.backends.numpy import workspace
from gpucnn.callbacks import Callback
from gpucnn.data.synthetic import synthetic_digits
from gpucnn.errors import BackendUnavailable
from gpucnn.optimizers import Group
from gpucnn.testing.strict import StrictBackend
from gpucnn.training import checkpoints
from gpucnn.training.checkpoints import Checkpoints
from tests import host_kernels, simulated_cupy

# --- backends -------------------------------------------------------------------------------------


SIMULATED = "cupy (simulated)"  # the CuPy backend over NumPy, with its kernels compiled for the host
GPUS = (SIMULATED, "cupy")
BACKENDS = ("reference", "numpy", "strict", *GPUS)

OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")  # which CuPy adds to ours, before the architecture


def make_backend(name):
    made = {"reference": Backend, "strict": StrictBackend, SIMULATED: lambda: simulated_cupy.load_backend()()}
    return made.get(name, lambda: get_backend(name))()


def why_missing(name):
    return {"cupy": why_no_gpu, SIMULATED: host_kernels.why_not}.get(name, lambda: "")()


def why_no_gpu():
    try:
        get_backend("cupy")
    except BackendUnavailable as error:
        return str(error)
    return ""


def simulated_backend():
    if why := why_missing(SIMULATED):
        pytest.skip(why)
    return make_backend(SIMULATED)


# --- arrays and bits ------------------------------------------------------------------------------


# how far two backends may differ, relative to the largest number in the array
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
GRADIENT_TOLERANCE = 1e-6
STEP = 1e-6


def spread_out(shape, seed=0, low=-2.0, high=2.03):
    """Numbers of `shape` that are all different and well apart, none of them 0: no ties, no kinks."""
    count = int(np.prod(shape))
    values = low + (high - low) * (np.arange(count) + 0.5) / count
    assert np.abs(values).min() > 10 * STEP
    return np.random.default_rng(seed).permutation(values).reshape(shape)


def assert_close(actual, expected, tolerance, what):
    assert actual.shape == expected.shape, what
    scale = max(float(np.abs(expected).max()), 1e-30)
    worst = float(np.abs(actual - expected).max()) / scale
    assert worst <= tolerance, f"{what}: off by {worst:.2e} of the largest number, allowed {tolerance:.0e}"


def assert_same_bits(a, b):
    for path, value in a.state_dict().items():
        assert value.tobytes() == b.state_dict()[path].tobytes(), path


# --- models and data ------------------------------------------------------------------------------


def stripes(count, seed=0):
    """Images 8×8 of vertical, horizontal or diagonal stripes with noise, uint8, and which they are."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    rows, columns = np.mgrid[:8, :8]
    patterns = np.stack([columns % 2, rows % 2, (rows + columns) // 2 % 2])
    images = 60 + 120 * patterns[labels] + generator.integers(0, 60, (count, 8, 8))
    return images.astype(np.uint8)[..., None], labels


def small_model(seed=0, backend="numpy", dtype="float32", optimizer=None):
    model = gpucnn.Model(
        [
            layers.Normalization(0.5, 0.25),
            layers.Conv2D(4, 3, padding="same", use_bias=False),
            layers.BatchNorm(),
            layers.ReLU(),
            layers.MaxPool2D(2),
            layers.Conv2D(8, 3),
            layers.ReLU(),
            layers.AveragePool2D(2),
            layers.Flatten(),
            layers.Dropout(0.1),
            layers.Dense(3),
            layers.Softmax(),
        ],
        input_shape=(8, 8, 1),
        seed=seed,
        backend=backend,
        dtype=dtype,
    )
    return model.compile(optimizer or optimizers.SGD(0.1, momentum=0.9), losses.CategoricalCrossEntropy())


DATA, VALIDATION = stripes(40), stripes(30, seed=1)


# --- optimizers -----------------------------------------------------------------------------------


RATE = 0.1


def sgd(value, gradients, momentum=0.0, nesterov=False, weight_decay=0.0, rate=RATE):
    velocity = 0.0
    for gradient in gradients:
        gradient += weight_decay * value
        velocity = momentum * velocity + gradient
        value -= rate * (gradient + momentum * velocity if nesterov else velocity)
    return value


def adam(value, gradients, weight_decay=0.0, decoupled=False, beta1=0.9, beta2=0.999, epsilon=1e-8, rate=RATE):
    mean = square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        if decoupled:
            value -= rate * weight_decay * value
        else:
            gradient += weight_decay * value
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        value -= rate * (mean / (1 - beta1**step)) / (math.sqrt(square / (1 - beta2**step)) + epsilon)
    return value


DECAY = 0.02
GROUPS = (
    Group("batch_norm.s*", lr_multiplier=0.5, weight_decay=0.0),
    Group(["*.bias", "batch_norm.scale"], lr_multiplier=2.0),  # the scale belongs to the first group that matches
    Group("dense", lr_multiplier=0.25, weight_decay=0.3),  # its bias belongs to the one before
)
OPTIMIZERS = {
    "sgd": lambda groups: optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=DECAY, groups=groups),
    "plain sgd": lambda groups: optimizers.SGD(0.1, weight_decay=DECAY, groups=groups),
    "adam": lambda groups: optimizers.Adam(0.1, weight_decay=DECAY, groups=groups),
    "adamw": lambda groups: optimizers.AdamW(0.1, weight_decay=DECAY, groups=groups),
}


# --- training runs that are saved and killed ------------------------------------------------------


TIMES = ("seconds", "seconds_per_step", "val_seconds")


class Killed(Exception):
    """In place of a process that is gone."""


class Kill(Callback):
    """Ends training after a number of steps."""

    def __init__(self, after):
        self.after = after

    def on_step_end(self, model, step):
        if model.optimizer.steps > self.after:
            raise Killed


def always(folder, **options):
    """Save after every step, and keep everything."""
    return Checkpoints(folder, **{"every_seconds": None, "every_steps": 1, "keep": 1000} | options)


def fit(model, ckpt=None, *more, data=DATA, **options):
    options = {"epochs": 2, "batch_size": 10, "verbose": 0} | options
    return model.fit(*data, callbacks=list(more), checkpoints=ckpt, **options)


def killed(folder, after=6, model=None, **options):
    """Write the checkpoints of a training run that was killed at a given step."""
    with pytest.raises(Killed):
        fit(model or small_model(), always(folder), Kill(after), **options)
    return Checkpoints(folder).files()


def positions(folder):
    return [tuple(map(int, checkpoints.NAME.fullmatch(path.name).groups())) for path in Checkpoints(folder).files()]


def numbers(history):
    """Return a history but for times."""
    return {key: [repr(value) for value in values] for key, values in history.history.items() if key not in TIMES}


# --- files ----------------------------------------------------------------------------------------


def described(path):
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["gpucnn"])


def rewritten(path, change):
    """Write the file again with its description changed."""
    description = described(path)
    change(description)
    save_file(load_file(path), path, metadata={"gpucnn": json.dumps(description)})
    return path


def idx_bytes(array, claims=None):
    """Return an array of bytes as an IDX file holds it, with another shape in the header if one is given."""
    shape = claims or array.shape
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.astype(np.uint8).tobytes()


def write_idx(path, array, claims=None):
    path.write_bytes(idx_bytes(array, claims))
    return path


def write_digits(folder, train, test):
    """Write an MNIST of a number of synthetic digits."""
    folder.mkdir()
    for split, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = synthetic_digits(count, seed)
        write_idx(folder / f"{split}-images-idx3-ubyte", images[..., 0])
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return folder


def pictures(folder, sizes=((8, 8),), classes=("cats", "dogs")):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new("L", size).save(folder / name / f"{number}.png")
    return folder


# --- training runs in which something changes between two steps ---------------------------------------------------


def images_and_labels(count=48, side=6):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, side, side, 2)).astype("uint8"), rng.integers(0, 4, count)


class After(Callback):
    """Does something after some of all steps."""

    def __init__(self, function, *steps):
        self.function, self.steps, self.made = function, steps, 0

    def on_step_end(self, model, step):
        self.made += 1
        if self.made in self.steps:
            self.function(model)


def state_of(model):
    return {path: array.tobytes() for path, array in model.state_dict().items()}


def outcome(model, epochs=2, **options):
    """The result of a training run: losses and bits."""
    history = model.fit(*images_and_labels(), epochs=epochs, batch_size=6, verbose=0, **options)
    return history.history["loss"], state_of(model)


def model_with_settings(backend, optimizer=None, jit=True, loss=None, seed=0):
    network = [
        *(layers.Conv2D(4, 3, use_bias=False), layers.BatchNorm(), layers.LeakyReLU(0.1), layers.Dropout(0.3)),
        *(layers.Flatten(), layers.Dense(8), layers.Tanh(), layers.Dropout(0.2), layers.Dense(4), layers.Softmax()),
    ]
    model = gpucnn.Model(network, (6, 6, 2), backend=backend, seed=seed)
    optimizer = optimizer or optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-3)
    return model.compile(optimizer, loss or losses.CategoricalCrossEntropy(label_smoothing=0.1), jit=jit)


def workspace_bytes():
    """The bytes of this thread's buffers."""
    return sum(buffer.nbytes for buffer in workspace._thread_buffers.buffers.values())


def traced_bytes(tracer):
    """The bytes of the memory that a tracer's replays use."""
    return sum(block.size for blocks in tracer._arena.blocks.values() for block in blocks)
