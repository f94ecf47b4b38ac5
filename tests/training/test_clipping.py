"""Gradient clipping: the formulas in plain loops, on every backend, captured, in half precision."""

import math

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, optimizers
from gpucnn.errors import ConfigurationError
from gpucnn.testing.strict import StrictBackend
from tests.helpers import GROUPS, assert_same_bits, simulated_backend, small_model, stripes

KINDS = {
    "sgd": lambda **options: optimizers.SGD(0.1, momentum=0.9, **options),
    "adam": lambda **options: optimizers.Adam(0.01, **options),
    "adamw": lambda **options: optimizers.AdamW(0.01, **options),
}
CLIPS = {"norm": {"clip_norm": 0.05}, "value": {"clip_value": 0.01}, "both": {"clip_norm": 0.05, "clip_value": 0.01}}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("size", [1, 3, 48, 5000])
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_kernels(backend, rng, dtype, tolerance, size, limit):
    gradients = rng.normal(size=size).astype(dtype)
    norm = math.sqrt(math.fsum(float(g) ** 2 for g in gradients))
    expected = {
        "clip_norm": [float(g) * (limit / norm if norm > limit else 1.0) for g in gradients],
        "clip_value": [max(-limit, min(limit, float(g))) for g in gradients],
    }
    for name, numbers in expected.items():
        clipped = backend.from_host(gradients.copy())
        getattr(backend, name)(clipped, limit)
        clipped = backend.to_host(clipped)
        assert clipped.dtype == dtype
        assert clipped == pytest.approx(np.array(numbers), rel=tolerance, abs=tolerance * limit), name
        if limit > 100:
            assert (clipped == gradients).all(), "what is small enough stays as it is"


def test_clipping_norm_of_very_many_gradients(backend):
    """More than the GPU's blocks can add up at once."""
    gradients = backend.from_host(np.full(600_000, 0.5, "float32"))
    backend.clip_norm(gradients, 1.0)
    np.testing.assert_allclose(backend.to_host(gradients), 600_000**-0.5, rtol=1e-6)


def test_clipping_of_zero_huge_and_non_finite_gradients(backend):
    """Gradients of 0 stay 0; squares beyond float32 have a norm nevertheless; what is not finite stays visible."""
    for gradients, expected in (
        ([0.0, 0.0], [0.0, 0.0]),
        ([3e30, 4e30], [0.6, 0.8]),
        ([3e-30, 4e-30], [3e-30, 4e-30]),
        ([math.nan, 1.0], [math.nan, math.nan]),
    ):
        clipped = backend.from_host(np.array(gradients, "float32"))
        backend.clip_norm(clipped, 1.0)
        assert backend.to_host(clipped) == pytest.approx(np.array(expected), rel=1e-6, nan_ok=True)


def reference(gradients, clip_norm=None, clip_value=None):
    """Return clipped gradients by path, in plain loops."""
    result = {path: array.astype("float64") for path, array in gradients.items()}
    if clip_value is not None:
        result = {path: np.clip(array, -clip_value, clip_value) for path, array in result.items()}
    norm = math.sqrt(math.fsum(float(g) ** 2 for array in result.values() for g in array.ravel()))
    if clip_norm is not None and norm > clip_norm:
        result = {path: array * (clip_norm / norm) for path, array in result.items()}
    return result


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [(), GROUPS])
def test_optimizer_steps_by_clipped_gradients(backend, kind, clip, groups):
    """A step is that of an optimizer without limits on gradients that were clipped by hand, over all groups at once."""
    x, y = stripes(40)
    clipping = small_model(backend=backend, dtype="float64", optimizer=KINDS[kind](groups=groups, **CLIPS[clip]))
    plain = small_model(backend=backend, dtype="float64", optimizer=KINDS[kind](groups=groups))
    for _ in range(2):
        labels = backend.from_host(y)
        plain.loss_and_gradients(plain.as_floats(backend.from_host(x)), labels)
        gradients = {path: backend.to_host(p.grad).copy() for path, p in plain.parameters().items()}
        clipped = reference(gradients, **CLIPS[clip])
        assert any((clipped[path] != gradients[path]).any() for path in clipped)
        for path, parameter in plain.parameters().items():
            parameter.grad[...] = backend.from_host(clipped[path])
        plain.optimizer.update(backend, plain._flat.values, plain._flat.gradients, plain.optimizer.learning_rates_at())
        clipping.train_on_batch(x, y)
    for path in plain.parameters():
        assert clipping.state_dict()[path] == pytest.approx(plain.state_dict()[path], rel=1e-9, abs=1e-12), path


def test_clipping_ignores_frozen_gradients():
    """The norm is that of what is trained; what was frozen after a pass has left its gradients behind."""
    x, y = stripes(40)
    model = small_model(dtype="float64", optimizer=optimizers.SGD(0.1, clip_norm=0.05))
    model.train_on_batch(x, y)
    model.freeze("conv2d*", "batch_norm").train_on_batch(x, y)
    grads = [p.grad for path, p in model.parameters().items() if path.startswith("dense")]
    assert math.sqrt(sum(float((grad**2).sum()) for grad in grads)) == pytest.approx(0.05)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_is_the_same_with_captured_steps(clip, dtype):
    x, y = stripes(70)
    models = []
    for jit in (True, False):
        model = small_model(backend=simulated_backend(), dtype=dtype, optimizer=KINDS["sgd"](**CLIPS[clip]))
        model.compile(model.optimizer, model.loss, jit=jit)
        model.fit(x, y, epochs=3, batch_size=16, verbose=0)
        models.append(model)
    assert_same_bits(*models)


@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_in_fp16_ignores_the_loss_scale(clip):
    """The loss is scaled by the batch in the backward pass there; the limit is meant for unscaled gradients."""
    x, y = stripes(64)
    moves = []
    for dtype in ("float16", "float32"):
        model = small_model(backend=simulated_backend(), dtype=dtype, optimizer=optimizers.SGD(1.0, **CLIPS[clip]))
        before = model.state_dict()
        model.train_on_batch(x, y)
        after = model.state_dict()
        moves.append(np.concatenate([(after[path] - before[path]).ravel() for path in model.parameters()]))
    if clip != "value":
        assert np.linalg.norm(moves[0]) == pytest.approx(0.05, rel=1e-3)
    assert abs(moves[0]).max() <= 0.01001 or clip == "norm"
    assert np.linalg.norm(moves[0] - moves[1]) < 0.15 * np.linalg.norm(moves[1])


def test_clipping_reads_nothing_back():
    backend = StrictBackend()
    x, y = stripes(32)
    model = small_model(backend=backend, optimizer=KINDS["sgd"](**CLIPS["both"]))
    before = backend.reads
    model.train_on_batch(x, y)
    assert backend.reads == before


def test_clipping_limits_are_saved_with_the_model(tmp_path):
    model = small_model(optimizer=KINDS["adamw"](**CLIPS["both"]))
    model.save(tmp_path / "m.safetensors")
    loaded = gpucnn.load(tmp_path / "m.safetensors", backend="numpy")
    assert repr(loaded.optimizer) == "AdamW(learning_rate=0.01, clip_norm=0.05, clip_value=0.01)"


@pytest.mark.parametrize("what", ["clip_norm", "clip_value"])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1", True])
@pytest.mark.parametrize("kind", KINDS)
def test_clipping_limits_out_of_range_are_refused(kind, what, value):
    message = f"{what} must be a number that is above 0, not {value!r}"
    with pytest.raises(ConfigurationError, match=message):
        KINDS[kind](**{what: value})


def test_clipping_survives_a_huge_gradient():
    """What it is for: one batch whose gradient is huge throws weights far away, and does not where it is clipped."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 4))
    y = x @ np.array([[1.0], [-2.0], [0.5], [3.0]])
    y[100] = 1e4  # an outlier, met once an epoch
    error = {}
    for clip in (None, 1.0):
        model = gpucnn.Model([layers.Dense(1)], (4,), backend="numpy", dtype="float64")
        model.compile(optimizers.SGD(0.05, clip_norm=clip), "mean_squared_error", metrics=[])
        model.fit(x, y, epochs=10, batch_size=5, verbose=0)
        error[clip] = abs(model.state_dict()["dense.weight"].ravel() - [1.0, -2.0, 0.5, 3.0]).max()
    assert error[1.0] < 0.1
    assert error[None] > 1
