"""A first convolution from data: its responses are uncorrelated and of variance 1; the errors."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn.data.synthetic import synthetic_digits
from gpucnn.errors import ConfigurationError, DataError, ShapeError
from gpucnn.networks.whitening import EPSILON, whiten


def photographs(count=200, channels=3, size=10):
    """Neighbouring pixels and channels are alike, as in photographs: small random images, enlarged and mixed."""
    rng = np.random.default_rng(0)
    small = rng.normal(size=(count, size // 2, size // 2, channels)) @ rng.normal(size=(channels, channels))
    smooth = small.repeat(2, axis=1).repeat(2, axis=2) + 0.3 * rng.normal(size=(count, size, size, channels))
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low) * 255).astype("uint8")


def model_for(images, filters, kernel, backend="numpy", **options):
    network = [L.Normalization().adapt(images), L.Conv2D(filters, kernel, **options), L.ReLU(), L.Flatten(), L.Dense(2)]
    return gpucnn.Model(network, images.shape[1:], backend=backend, dtype="float64")


@pytest.mark.parametrize(("kernel", "channels", "dilation"), [(2, 3, 1), (3, 1, 1), ((1, 2), 3, 1), (2, 3, (1, 2))])
def test_whitening_gives_covariance_identity(backend, kernel, channels, dilation):
    """Up to the epsilon: a direction of eigenvalue v keeps the variance v / (v + epsilon), in closed form."""
    images = photographs(channels=channels)
    KH, KW = (kernel, kernel) if isinstance(kernel, int) else kernel
    half = KH * KW * channels
    model = model_for(images, 2 * half, kernel, backend, dilation=dilation)
    bias = model.parameters()["conv2d.bias"].value
    bias[...] = 0.25
    convolution = whiten(model, images)
    x = model.layers[0].forward(model.as_floats(model.backend.from_host(images)), train=False)[0]
    responses, _ = convolution.forward(x, train=False)
    responses = model.backend.to_host(responses).reshape(-1, 2 * half)
    covariance = np.cov(responses[:, :half], rowvar=False, bias=True)
    variances = np.diag(covariance)
    assert np.abs(covariance - np.diag(variances)).max() < 1e-9
    assert ((variances > 0.9) & (variances < 1)).all()
    DH, DW = convolution.window.dilation
    seen = all_windows(model.backend.to_host(x), *convolution.window.extent)
    windows = np.stack([window[::DH, ::DW].ravel() for window in seen])
    values = np.linalg.eigvalsh(np.cov(windows, rowvar=False, bias=True))[::-1]
    assert np.abs(variances - values / (values + EPSILON)).max() < 1e-9
    assert np.abs(responses[:, half:] - 0.25 + responses[:, :half] - 0.25).max() < 1e-9  # both signs, the bias kept


def all_windows(x, EH, EW):
    for image in x:
        for h in range(image.shape[0] - EH + 1):
            for w in range(image.shape[1] - EW + 1):
                yield image[h : h + EH, w : w + EW]


def test_whitening_is_the_same_on_every_backend(backend):
    images = photographs()
    filters = [
        whiten(m, images) and m.state_dict()["conv2d.weight"]
        for m in (model_for(images, 24, 2, backend), model_for(images, 24, 2, "reference"))
    ]
    assert np.abs(filters[0] - filters[1]).max() < 1e-7 * np.abs(filters[1]).max()


def test_whitening_depends_on_dilation_alone():
    """Dilation does, stride and padding do not; a separate convolution is given the images as they are."""
    images = photographs()
    plain, other = model_for(images, 24, 2), model_for(images, 24, 2, strides=2, padding="same")
    assert np.array_equal(whiten(plain, images).weight.value, whiten(other, images).weight.value)
    apart = whiten(model_for(images, 24, 2, dilation=2), images).weight.value
    assert np.abs(apart - plain.layers[1].weight.value).max() > 0.1
    x = plain.layers[0].forward(images / 255.0, train=False)[0]
    convolution = plain.layers[1]
    before = convolution.weight.value.copy()
    assert whiten(convolution, x) is convolution
    assert np.allclose(convolution.weight.value, before, rtol=0, atol=1e-8 * np.abs(before).max())
    shown_bytes = whiten(convolution, images).weight.value.copy()
    assert np.array_equal(whiten(convolution, images / 255.0).weight.value, shown_bytes)
    norms = np.linalg.norm(whiten(plain, images, epsilon=4.0).weight.value.reshape(-1, 24), axis=0)
    assert 0.3 < norms.min() <= norms.max() < 0.5  # 1/√(v + 4)


def test_whitening_keeps_the_trained_arrays():
    """The filters lie in the flat buffer that the optimizer updates, also inside a nested Sequential."""
    images, labels = synthetic_digits(200, 0)
    inner = L.Sequential([L.Normalization().adapt(images), L.Sequential([L.Conv2D(8, 2), L.ReLU()])])
    model = gpucnn.Model([inner, L.Flatten(), L.Dense(10), L.Softmax()], (28, 28, 1), backend="numpy").compile("sgd")
    convolution = whiten(model, images)
    filters = convolution.weight.value.copy()
    assert filters.dtype == "float32"
    model.fit(images, labels, batch_size=50, verbose=0)
    assert 0 < np.abs(convolution.weight.value - filters).max() < np.abs(filters).max()


def test_whitening_speeds_the_first_steps_up():
    """Classes that differ by faint stripes under a strong change of brightness, which says nothing."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 300)
    stripes = np.where(np.arange(8) % 2, 0.1, -0.1)
    horizontal, vertical = stripes[None, :, None, None], stripes[None, None, :, None]
    x = rng.normal(0, 1, (300, 1, 1, 1)) + rng.normal(0, 0.05, (300, 8, 8, 1))
    x = (x + np.where(y[:, None, None, None] == 1, horizontal, vertical)).astype("float32")
    scores = {True: [], False: []}
    for whitened in scores:
        for seed in range(3):
            network = [L.Conv2D(8, 2), L.ReLU(), L.GlobalAveragePool2D(), L.Dense(2), L.Softmax()]
            model = gpucnn.Model(network, (8, 8, 1), seed=seed, backend="numpy")
            model.compile(gpucnn.optimizers.SGD(0.1, momentum=0.9))
            if whitened:
                whiten(model, x[:200])
            model.fit(x[:200], y[:200], epochs=5, batch_size=20, verbose=0)
            scores[whitened].append(model.evaluate(x[200:], y[200:])["accuracy"])
    assert min(scores[True]) > max(scores[False]) + 0.1, scores


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda x: whiten(model_for(x, 23, 2), x),
            ConfigurationError,
            r"conv2d: has 23 filters.*2·2·3.*Conv2D\(24, …\)",
        ),
        (lambda x: whiten(model_for(x, 48, 2), x), ConfigurationError, "conv2d: has 48 filters"),
        (lambda x: whiten(model_for(x, 24, 2, groups=3), x), ConfigurationError, "conv2d: has groups=3"),
        (lambda x: whiten(L.Conv2D(24, 2), x), ConfigurationError, "conv2d is not built yet; put it into a Model"),
        (lambda x: whiten(L.Dense(2), x), ConfigurationError, "takes a Model or a Conv2D, not Dense"),
        (lambda x: whiten(without_convolution(), x), ConfigurationError, "model has no convolution.*flatten, dense"),
        (
            lambda x: whiten(model_for(x, 24, 2), x, epsilon=0),
            ConfigurationError,
            "epsilon must be a number that is above",
        ),
        (lambda x: whiten(model_for(x, 24, 2), x[:, :8]), ShapeError, "images has shape"),
        (
            lambda x: whiten(model_for(x, 24, 2), x * 0 + 9),
            DataError,
            "conv2d: 16,200 windows of 2x2 pixels without variation",
        ),
    ],
)
def test_whitening_errors(make, error, message):
    with pytest.raises(error, match=message):
        make(photographs())


def without_convolution():
    return gpucnn.Model([L.Flatten(), L.Dense(2)], (10, 10, 3), backend="numpy")
