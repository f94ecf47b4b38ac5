"""Muon: its polynomial against an SVD, its steps in plain arrays, with groups, frozen, captured, moved and saved."""

import math

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, optimizers, schedules
from gpucnn.backends import Backend
from gpucnn.errors import ConfigurationError
from gpucnn.optimizers import SGD, AdamW, Group, Muon
from gpucnn.optimizers.muon import COEFFICIENTS, newton_schulz
from gpucnn.testing.strict import StrictBackend
from tests.helpers import adam, assert_same_bits, sgd, simulated_backend, small_model, stripes

SHAPES = [(6, 6), (4, 9), (30, 5), (1, 7), (8, 1), (64, 48)]


def polynomial(singular, iterations):
    """Return what the iterations make of singular values, one at a time in plain numbers."""
    a, b, c = COEFFICIENTS
    size = math.sqrt(sum(s * s for s in singular))
    result = [s / size for s in singular]
    for _ in range(iterations):
        result = [a * s + b * s**3 + c * s**5 for s in result]
    return result


def by_svd(matrix, iterations):
    """Return the orthogonalised matrix from singular vectors and the polynomial of singular values."""
    U, S, Vt = np.linalg.svd(matrix.astype("float64"), full_matrices=False)
    return U @ np.diag(polynomial(S, iterations)) @ Vt


@pytest.mark.parametrize("iterations", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon_maps_singular_values_and_keeps_vectors(backend, rng, shape, iterations):
    for dtype, tolerance in (("float64", 1e-10), ("float32", 2e-4)):
        matrix = rng.normal(size=shape).astype(dtype)
        nearest = backend.to_host(newton_schulz(backend, backend.from_host(matrix), iterations))
        assert nearest.dtype == dtype
        assert nearest == pytest.approx(by_svd(matrix, iterations), abs=tolerance)


def test_muon_pushes_singular_values_towards_1(rng):
    """From a spread of 1 : 100, whatever the scale; the result is near U·Vᵀ."""
    U, _, Vt = np.linalg.svd(rng.normal(size=(40, 20)), full_matrices=False)
    for scale in (1e-12, 1.0, 1e9):
        matrix = scale * U @ np.diag(np.geomspace(1.0, 0.01, 20)) @ Vt
        nearest = newton_schulz(Backend(), matrix, 5)
        singular = np.linalg.svd(nearest, compute_uv=False)
        assert 0.6 < singular.min() < singular.max() < 1.25
        assert np.linalg.norm(nearest - U @ Vt) < 0.3 * np.linalg.norm(U @ Vt)
    assert (newton_schulz(Backend(), np.zeros((3, 4)), 5) == 0).all()


OWN = {"conv2d.weight": (1.0, 0.1), "conv2d_1.weight": (0.5, 0.0)}  # the group's rate, weight decay
MAKE = {
    "plain": lambda **options: Muon(0.02, momentum=0.0, nesterov=False, fallback=SGD(0.1), iterations=3, **options),
    "momentum": lambda **options: Muon(0.02, momentum=0.9, nesterov=False, fallback=SGD(0.1, momentum=0.9), **options),
    "nesterov": lambda **options: Muon(
        0.02, momentum=0.6, fallback=AdamW(0.1, weight_decay=0.3), iterations=3, **options
    ),
    "fixed norm": lambda **options: Muon(
        schedules.OneCycle(0.24),
        momentum=0.6,
        fallback=SGD(schedules.OneCycle(0.1), momentum=0.85, nesterov=True),
        iterations=3,
        fixed_norm=True,
        **options,
    ),
}


def by_hand(value, gradients, optimizer, factor, decay):
    """Return a weight after steps along gradients, all in plain arrays."""
    shape, velocity = value.shape, 0.0
    value = value.reshape(-1, shape[-1])
    inputs, outputs = value.shape
    for gradient in gradients:
        gradient = gradient.reshape(value.shape)
        velocity = optimizer.momentum * velocity + gradient
        direction = gradient + optimizer.momentum * velocity if optimizer.nesterov else velocity
        if optimizer.fixed_norm:
            value = value * math.sqrt(outputs) / np.linalg.norm(value)
        rate = optimizer.learning_rate_at() * factor
        step = by_svd(direction, optimizer.iterations) * math.sqrt(max(1.0, outputs / inputs))
        value = value * (1 - rate * decay) - rate * step
    return value.reshape(shape)


@pytest.mark.parametrize("name", MAKE)
def test_muon_three_steps(backend, name):
    """Filters as matrices (KH·KW·C, F), of which one is in a group; everything else as the other optimizer has it."""
    groups = [Group("conv2d_1.weight", lr_multiplier=0.5, weight_decay=0.0)]
    optimizer = MAKE[name](weight_decay=0.1, groups=groups)
    model = small_model(backend=backend, dtype="float64", optimizer=optimizer)
    generator, start = np.random.default_rng(1), model.state_dict()
    steps = [{path: generator.normal(size=p.shape) for path, p in model.parameters().items()} for _ in range(3)]
    for gradients in steps:
        for path, parameter in model.parameters().items():
            parameter.grad[...] = backend.from_host(gradients[path])
        optimizer.update(backend, model._flat.values, model._flat.gradients, optimizer.learning_rates_at())
    after = model.state_dict()
    for path, parameter in model.parameters().items():
        gradients = [step[path] for step in steps]
        if path in OWN:
            expected = by_hand(start[path], gradients, optimizer, *OWN[path])
        else:
            other = optimizer.fallback
            formula, settings = (
                (adam, {"weight_decay": 0.3, "decoupled": True})
                if isinstance(other, AdamW)
                else (sgd, {"momentum": other.momentum, "nesterov": other.nesterov})
            )
            flat = zip(start[path].ravel(), *(g.ravel() for g in gradients), strict=True)
            expected = np.array([formula(value, list(g), **settings) for value, *g in flat]).reshape(parameter.shape)
        assert after[path] == pytest.approx(expected, rel=1e-9, abs=1e-10), path


def test_muon_parameters_by_default_and_by_choice():
    """All filters and matrices but the last; or what is asked for, which must be such."""

    def own(**options):
        model = small_model(optimizer=Muon(fallback=SGD(0.1), **options))
        ranges = model._flat.layout.ranges[: len(model.optimizer.groups) + 1]
        places = model._flat.layout.places.items()
        return [path for path, place in places if any(r.start <= place.slice.start < r.stop for r in ranges)]

    assert own() == ["conv2d.weight", "conv2d_1.weight"]
    assert own(match="*.weight") == ["conv2d.weight", "conv2d_1.weight", "dense.weight"]
    assert own(match=["dense.weight"]) == ["dense.weight"]
    with pytest.raises(
        ConfigurationError, match=r"it would get conv2d_1\.bias; say by match=… which of conv2d\.weight, "
    ):
        own(match="conv2d_1")
    with pytest.raises(ConfigurationError, match="no parameter matches 'conv'"):
        own(match="conv")
    with pytest.raises(
        ConfigurationError, match=r"no parameter matches 'dense'; there are conv2d\.weight, conv2d_1\.w"
    ):
        own(groups=[Group("dense")])
    single = gpucnn.Model([layers.Dense(3), layers.Softmax()], (4,), backend="numpy")
    with pytest.raises(ConfigurationError, match=r"it would get nothing else; say by match=… which of dense\.weight"):
        single.compile(Muon())
    assert single.compile(Muon(match="dense.weight")).optimizer.fallback is None


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", MAKE)
def test_muon_is_the_same_with_captured_steps(name, dtype):
    x, y = stripes(70)
    models = []
    for jit in (True, False):
        model = small_model(
            backend=simulated_backend(), dtype=dtype, optimizer=MAKE[name](weight_decay=0.1, clip_norm=1.0)
        )
        model.compile(model.optimizer, model.loss, jit=jit)
        model.fit(x, y, epochs=3, batch_size=16, verbose=0)
        models.append(model)
    assert_same_bits(*models)
    assert models[0].optimizer.steps == models[1].optimizer.steps == 15


@pytest.mark.parametrize("name", MAKE)
def test_muon_trains_the_same_on_all_backends(backend, name):
    x, y = stripes(64)
    states = []
    for where in (backend, Backend()):
        model = small_model(backend=where, dtype="float64", optimizer=MAKE[name]())
        model.fit(x, y, epochs=2, batch_size=16, verbose=0)
        states.append(model.state_dict())
    for path, value in states[1].items():
        assert states[0][path] == pytest.approx(value, rel=1e-6, abs=1e-8), path


def test_muon_keeps_both_states_when_moved_and_frozen():
    x, y = stripes(64)
    stay, move = (small_model(dtype="float64", optimizer=MAKE["nesterov"]()) for _ in range(2))
    for model in (stay, move):
        model.fit(x, y, batch_size=16, verbose=0)
    move.freeze("conv2d.weight", "dense").unfreeze().to(StrictBackend())
    for model in (stay, move):
        model.fit(x, y, batch_size=16, verbose=0)
    moved = move.to("numpy").state_dict()
    for path, array in stay.state_dict().items():
        assert moved[path] == pytest.approx(array, rel=1e-9, abs=1e-12), path
    before = move.freeze("conv2d.weight", "dense.bias").state_dict()
    move.fit(x, y, verbose=0)
    for path, parameter in move.parameters().items():
        assert (move.state_dict()[path] == before[path]).all() == parameter.frozen, path


def test_muon_whose_model_moved_to_another_optimizer_says_so():
    optimizer = Muon()
    first = small_model(optimizer=optimizer)
    small_model(optimizer=optimizer)
    with pytest.raises(ConfigurationError, match="this Muon is already bound to another model"):
        first.train_on_batch(*stripes(8))


def test_muon_rate_leaves_the_other_optimizer_its_own():
    optimizer = MAKE["fixed norm"](groups=[Group("conv2d_1", 0.5)], match=["conv2d*.weight"])
    assert optimizer.learning_rates_at() == pytest.approx([0.24, 0.12, 0.1])
    assert optimizer.learning_rates_at(0, 10) == pytest.approx([0.04 * 0.24, 0.04 * 0.12, 0.004])
    assert optimizer.broadcast_rates(0.5) == pytest.approx([0.5, 0.25, 0.1])


def test_muon_is_saved_with_the_model(tmp_path):
    model = small_model(optimizer=MAKE["fixed norm"](match=["conv2d*.weight"]))
    model.save(tmp_path / "m.safetensors")
    loaded = gpucnn.load(tmp_path / "m.safetensors", backend="numpy")
    assert loaded.optimizer.config() == model.optimizer.config()
    assert repr(loaded.optimizer.fallback) == "SGD(learning_rate=OneCycle(0.1), momentum=0.85, nesterov=True)"
    assert loaded._flat.layout == model._flat.layout
    loaded.fit(*stripes(20), verbose=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Muon(fallback="sgd"),
            r"fallback must be an optimizer such as SGD\(0\.1\) or AdamW\(0\.001\), not 'sgd'",
        ),
        (lambda: Muon(fallback=Muon()), r"not Muon\(\)"),
        (
            lambda: Muon(fallback=SGD(clip_norm=1.0)),
            r"has limits for gradients; pass clip_norm and clip_value to Muon",
        ),
        (lambda: Muon(iterations=0), "iterations, of which 3 to 5 are enough, must be a positive integer, not 0"),
        (lambda: Muon(match=3), "match must be a pattern"),
        (lambda: Muon(momentum=1.0), "momentum must be a number that is at least 0 and below 1, not 1.0"),
    ],
)
def test_muon_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_muon_learns_every_direction_at_one_speed():
    """What it is for: inputs of very different sizes, whose small ones gradient descent learns last at any rate."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(256, 6)) * np.geomspace(1.0, 0.01, 6)
    wanted = generator.normal(size=(6, 6))

    def distance(optimizer):
        model = gpucnn.Model([layers.Dense(6, use_bias=False)], (6,), backend="numpy", dtype="float64")
        model.compile(optimizer, "mean_squared_error", metrics=[])
        model.fit(x, x @ wanted, epochs=30, batch_size=64, verbose=0)
        return np.linalg.norm(model.state_dict()["dense.weight"] - wanted)

    muon = distance(Muon(schedules.PiecewiseLinear([(0, 0.3), (1, 0.0)], unit="training"), match="dense"))
    assert muon < 1.0
    descent = [distance(optimizers.SGD(rate, momentum=0.9)) for rate in (1, 3, 5, 8, 10)]  # with 12 it diverges
    assert min(descent) > 2.5 * muon
