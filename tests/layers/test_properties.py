"""Windows of any size, stride, padding, dilation and groups, against plain loops, and forward against backward.

Forward means what the loops say. Backward is tested by ⟨y(x + s), dy⟩ = ⟨y(x), dy⟩ + ⟨s, dx⟩, which holds exactly
for what is linear in x; poolings are tried as linear maps of the elements that were chosen.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gpucnn.backends import Backend, get_backend
from gpucnn.backends.window import Window
from gpucnn.errors import GpucnnError
from gpucnn.layers import AveragePool2D, Conv2D, MaxPool2D
from tests import reference

BACKENDS = {"reference": Backend, "numpy": lambda: get_backend("numpy")}
ENDLESS = [HealthCheck.too_slow, HealthCheck.filter_too_much]
MAX_MULTIPLICATIONS = 40_000  # multiplications in Python that one example may cost

sides = st.tuples(st.integers(1, 7), st.integers(1, 7))
small = st.tuples(st.integers(1, 3), st.integers(1, 3))
edges = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def windows(draw, size, dilated=True):
    """A window that fits images of a size."""
    window = Window(draw(small), draw(small), (draw(edges), draw(edges)), draw(small) if dilated else (1, 1))
    assume(min(window.output_size(size)) >= 1)
    return window


@st.composite
def convolutions(draw):
    """Images, weights, bias, window and groups."""
    size, groups = draw(sides), draw(st.integers(1, 3))
    N, C, F = draw(st.sampled_from([1, 2, 9])), groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    if draw(st.booleans()):
        window = draw(windows(size))
    else:  # where Winograd's methods are at home
        padding = draw(edges), draw(edges)
        window, groups, C, F = Window((3, 3), padding=padding), 1, draw(st.integers(1, 9)), draw(st.integers(1, 9))
        assume(min(window.output_size(size)) >= 1)
    OH, OW = window.output_size(size)
    assume(N * OH * OW * F * window.area * C // groups <= MAX_MULTIPLICATIONS)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x, weight = rng.normal(size=(N, *size, C)), rng.normal(size=(*window.size, C // groups, F))
    return x, weight, rng.normal(size=F), rng.normal(size=(N, OH, OW, F)), window, groups


def close(actual, expected, dtype, what, terms=None):
    """Compare with what is expected; the error of a sum that cancels is measured by its terms."""
    size = np.linalg.norm(expected if terms is None else terms) or 1.0
    error = float(np.linalg.norm(np.asarray(actual, "float64") - expected)) / size
    assert error <= {"float64": 1e-12, "float32": 1e-5}[dtype], what


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None, suppress_health_check=ENDLESS, derandomize=True)
@given(case=convolutions())
def test_convolution(backend, dtype, case):
    backend = BACKENDS[backend]()
    x, weight, bias, dy, window, groups = case
    expected = reference.conv2d(x, weight, bias, window.strides, window.padding, window.dilation, groups)
    given_x, given_weight, given_bias, given_dy = (array.astype(dtype) for array in (x, weight, bias, dy))
    y = backend.conv2d(given_x, given_weight, given_bias, window, groups)
    close(y, expected, dtype, "y")
    # linear in x and in the weight: one equation for each of the two gradients, and one for the bias
    dx = backend.conv2d_input_gradient(given_dy, given_weight, x.shape[1:3], window, groups)
    dweight, dbias = backend.conv2d_parameter_gradients(given_x, given_dy, window, groups)
    linear = float(((expected - bias) * dy).sum())
    scale = np.linalg.norm(expected - bias) * np.linalg.norm(dy) + 1.0
    tolerance = scale * {"float64": 1e-12, "float32": 2e-6}[dtype]
    assert float((x * dx).sum()) == pytest.approx(linear, abs=tolerance)
    assert float((weight * dweight).sum()) == pytest.approx(linear, abs=tolerance)
    close(dbias, dy.sum(axis=(0, 1, 2)), dtype, "dbias", terms=np.abs(dy).sum(axis=(0, 1, 2)))
    assert dx.shape == x.shape
    assert dweight.shape == weight.shape


@st.composite
def poolings(draw):
    """Images and a window that always sees at least one of their pixels."""
    size = draw(sides)
    window = draw(windows(size, dilated=False))
    for side, (before, after), reach, stride in zip(size, window.padding, window.extent, window.strides, strict=True):
        outputs = (side + before + after - reach) // stride + 1
        assume(all(max(k * stride - before, 0) < min(k * stride - before + reach, side) for k in range(outputs)))
    N, C = draw(st.sampled_from([1, 9])), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.permutation(N * size[0] * size[1] * C).reshape(N, *size, C) - 0.5 * size[0] * size[1]
    return x, rng.normal(size=(N, *window.output_size(size), C)), window


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None, suppress_health_check=ENDLESS, derandomize=True)
@given(case=poolings())
def test_pooling(backend, kind, case):
    x, dy, window = case
    (PH, PW), (SH, SW) = window.padding, window.strides
    layer = (MaxPool2D if kind == "max" else AveragePool2D)(window.size, (SH, SW), (PH, PW))
    try:
        layer.ensure_built(x.shape[1:], None)
    except GpucnnError:  # padding as large as the window
        assume(False)
    layer.to(BACKENDS[backend]())
    reduce = max if kind == "max" else reference.mean
    expected = reference.pool2d(x, window.size, window.strides, window.padding, reduce)
    y, backward = layer.forward(x, train=True)
    close(y, expected, "float64", "y")
    # an average is linear; a maximum is where it is the same elements that are chosen, as for any multiple of x
    assert float((x * backward(dy)).sum()) == pytest.approx(
        float((expected * dy).sum()), abs=1e-9 * (np.abs(expected).max() * dy.size + 1)
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    size=sides,
    channels=st.integers(1, 4),
    filters=st.integers(-1, 4),
    kernel=st.tuples(st.integers(0, 9), st.integers(1, 9)),
    strides=st.integers(0, 4),
    padding=st.one_of(st.sampled_from(["same", "valid", "odd"]), st.integers(-1, 3), edges),
    dilation=st.integers(0, 3),
    groups=st.integers(0, 4),
)
def test_geometry_is_built_or_refused(size, channels, filters, kernel, strides, padding, dilation, groups):
    """Whatever is asked for: a layer that computes what its shape declares, or an error that says why not."""
    try:
        layer = Conv2D(filters, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups)
        shape = layer.ensure_built((*size, channels), np.random.default_rng(0))
    except GpucnnError:
        return
    layer.to("numpy", "float32")
    x = np.ones((2, *size, channels), "float32")
    y, backward = layer.forward(x, train=True)
    assert y.shape == (2, *shape)
    assert backward(np.ones_like(y)).shape == x.shape
