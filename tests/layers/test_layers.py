"""Every row of the case table: meaning, gradient, parity, and the conventions of layers."""

import importlib
import pkgutil

import numpy as np
import pytest

import gpucnn
from gpucnn import layers
from gpucnn.backends import Backend
from gpucnn.errors import ConfigurationError
from gpucnn.rng import host_generator
from tests.cases import CASES
from tests.helpers import GRADIENT_TOLERANCE, STEP, TOLERANCE, assert_close, spread_out

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def built(case, backend=None, dtype="float64"):
    """The case's layer with parameters and statistics that are not the round numbers they begin with."""
    layer = case.make()
    layer.ensure_built(case.input_shape, host_generator(3, "weights"))
    generator = np.random.default_rng(5)
    for holder in [*layer.parameters().values(), *layer.buffers().values()]:
        if holder.value.dtype.kind == "f" and not isinstance(layer, layers.Normalization):
            holder.value[...] += generator.uniform(0.1, 0.5, holder.value.shape)
    return layer.to(backend or Backend(), dtype)


def inputs(case, dtype="float64"):
    return spread_out((case.batch, *case.input_shape)).astype(dtype)


def run(case, layer, x, dy=None):
    """Host copies of y, dx and every parameter's gradient."""
    backend = layer.backend
    y, backward = layer.forward(backend.from_host(x), train=case.train)
    host_y = backend.to_host(y)
    weights = spread_out(host_y.shape, seed=1, low=0.5, high=1.5) if dy is None else dy
    dx = backward(backend.from_host(weights.astype(host_y.dtype)))
    return {"y": host_y, "dx": backend.to_host(dx)} | {
        path: backend.to_host(parameter.grad).copy() for path, parameter in layer.parameters().items()
    }


def test_layers_are_all_tested():
    tried = {type(case.make()) for case in CASES}
    shipped = {kind for kind in vars(layers).values() if isinstance(kind, type) and issubclass(kind, layers.Layer)}
    assert shipped - {layers.Layer} == tried


def test_layers_are_all_exported():
    modules = [importlib.import_module(f"gpucnn.layers.{info.name}") for info in pkgutil.iter_modules(layers.__path__)]
    found = {name: kind for module in modules for name, kind in vars(module).items() if isinstance(kind, type)}
    public = {name for name, kind in found.items() if issubclass(kind, layers.Layer) and not name.startswith("_")}
    missing = public - set(layers.__all__)
    assert not missing, f"import them in gpucnn/layers/__init__.py and add them to __all__: {sorted(missing)}"


def test_cases_have_unique_names():
    assert len({case.name for case in CASES}) == len(CASES)


@every_case
@pytest.mark.smoke
def test_meaning(case):
    layer, x = built(case), inputs(case)
    state = layer.state_dict()
    y, _ = layer.forward(x, train=case.train)
    assert y.shape[1:] == layer.output_shape
    assert_close(y, case.meaning(x, state), 1e-13, "y")


@every_case
@pytest.mark.smoke
def test_gradient(case):
    """Every element of dx and of every parameter's gradient against a central difference of Σ y·dy, in float64."""
    layer, x = built(case), inputs(case)
    state = layer.state_dict()
    gradients = run(case, layer, x)
    dy = spread_out(gradients["y"].shape, seed=1, low=0.5, high=1.5)

    def objective(changed_x, changed_state):
        layer.load_state_dict(changed_state)
        return float((layer.forward(changed_x, train=case.train)[0] * dy).sum())

    def differences(array, evaluate):
        slopes = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            changed = array.copy()
            changed[index] = array[index] + STEP
            above = evaluate(changed)
            changed[index] = array[index] - STEP
            slopes[index] = (above - evaluate(changed)) / (2 * STEP)
        return slopes

    numeric = differences(x, lambda changed: objective(changed, state))
    assert np.abs(gradients["dx"] - numeric).max() <= GRADIENT_TOLERANCE * max(1.0, np.abs(numeric).max()), "dx"
    for path in layer.parameters():
        numeric = differences(state[path], lambda changed, path=path: objective(x, state | {path: changed}))
        assert np.abs(gradients[path] - numeric).max() <= GRADIENT_TOLERANCE * max(1.0, np.abs(numeric).max()), path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_case
def test_parity(case, backend, dtype):
    """Value, dtype and owner on every backend against the reference kernels in float64."""
    expected = run(case, built(case), inputs(case))
    layer = built(case, backend, dtype)
    owner = type(backend.from_host(np.zeros(1)))
    y, _ = layer.forward(backend.from_host(inputs(case, dtype)), train=case.train)
    assert type(y) is owner
    layer = built(case, backend, dtype)
    for what, actual in run(case, layer, inputs(case, dtype)).items():
        assert actual.dtype == dtype, what
        assert_close(actual, expected[what], 10 * TOLERANCE[dtype], what)


@every_case
def test_non_contiguous_inputs(case):
    expected, x = run(case, built(case), inputs(case)), inputs(case)
    padded = np.zeros((*x.shape[:-1], 2 * x.shape[-1]))
    padded[..., ::2] = x
    strided, reversed_axes = padded[..., ::2], np.ascontiguousarray(x.T).T
    assert not strided.flags.c_contiguous
    for view in (strided, reversed_axes):
        for what, actual in run(case, built(case), view).items():
            assert_close(actual, expected[what], 1e-13, what)


@every_case
def test_inputs_are_unchanged(case):
    layer, x = built(case), inputs(case)
    y, backward = layer.forward(x, train=case.train)
    dy, before = spread_out(y.shape, seed=1), inputs(case)
    kept = dy.copy()
    backward(dy)
    assert np.array_equal(x, before)
    assert np.array_equal(dy, kept)


@every_case
def test_gradients_add_up_over_two_uses(case):
    layer, x = built(case), inputs(case)
    state = layer.state_dict()
    once = run(case, layer, x)
    layer.load_state_dict(state)
    twice = run(case, layer, x)
    for path in layer.parameters():
        assert_close(twice[path], 2 * once[path], 1e-13, path)


@every_case
def test_inference_changes_no_state(case):
    layer, x = built(case), inputs(case)
    before = layer.state_dict()
    layer.forward(x, train=False)
    after = layer.state_dict()
    assert before.keys() == after.keys()
    for path, array in before.items():
        assert np.array_equal(array, after[path]), path


@every_case
def test_repeated_passes_give_the_same_bits(case, backend):
    first, second = (run(case, built(case, backend, "float32"), inputs(case, "float32")) for _ in range(2))
    for what, array in first.items():
        assert array.tobytes() == second[what].tobytes(), what


@every_case
def test_layer_state_survives_moving_to_another_backend(case, backend):
    layer = built(case, dtype="float32")
    before = layer.state_dict()
    after = layer.to(backend).to("numpy").state_dict()
    for path, array in before.items():
        assert array.dtype == after[path].dtype
        assert array.tobytes() == after[path].tobytes(), path


@every_case
def test_layer_state_saved_on_one_backend_loads_on_another(case, backend, tmp_path):
    model = gpucnn.Model([built(case)], case.input_shape, backend=backend)
    model.save(tmp_path / "model.safetensors")
    loaded = gpucnn.load(tmp_path / "model.safetensors", backend="numpy")
    x = inputs(case, "float32")
    assert_close(loaded.predict(x), model.predict(x), TOLERANCE["float32"], "y")
    assert repr(loaded.layers[0]) == repr(model.layers[0])


@every_case
def test_repr_is_the_call_that_makes_it(case):
    layer = case.make()
    again = eval(repr(layer), vars(layers) | vars(gpucnn.initializers))
    assert repr(again) == repr(layer)
    assert layers.Layer.from_config(layer.config()).config() == layer.config()


@pytest.mark.parametrize("numbers", [(-1, 0), (0, 1.5), (True, 0)])
def test_channels_that_cannot_be_padded(numbers):
    with pytest.raises(ConfigurationError, match="must be an integer of at least 0"):
        layers.PadChannels(*numbers)


@pytest.mark.parametrize("batch", [2, 9])
def test_max_pool_of_equal_elements_takes_the_first(backend, batch):
    """Black margins and flat skies are full of them, and backends are to agree on them."""
    layer = layers.MaxPool2D(2)
    layer.ensure_built((4, 6, 3), None)
    layer.to(backend, "float32")
    x = np.repeat(np.arange(batch * 12, dtype="float32").reshape(batch, 2, 2, 3), 2, axis=1)
    x = np.repeat(x, 3, axis=2)  # windows of one number, and windows of two in pairs
    dy = spread_out((batch, 2, 3, 3), seed=1).astype("float32")
    _, backward = layer.forward(backend.from_host(x), train=True)
    dx = backend.to_host(backward(backend.from_host(dy)))
    expected = np.zeros_like(dx)
    for n, oh, ow, c in np.ndindex(*dy.shape):
        window = x[n, 2 * oh : 2 * oh + 2, 2 * ow : 2 * ow + 2, c]
        i, j = divmod(int(np.argmax(window)), 2)  # the first of the largest
        expected[n, 2 * oh + i, 2 * ow + j, c] = dy[n, oh, ow, c]
    assert np.array_equal(dx, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_huge_logits(backend, dtype):
    layer = layers.Softmax()
    layer.ensure_built((3,), None)
    layer.to(backend, dtype)
    logits = np.array([[1e4, -1e4, 0.0], [5e3, 5e3, -5e3], [-1e4, -1e4, -1e4]], dtype)
    y, _ = layer.forward(backend.from_host(logits), train=False)
    expected = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]
    assert backend.to_host(y) == pytest.approx(np.array(expected), abs=1e-6)
