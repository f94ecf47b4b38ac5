"""What layers do for their neighbours in a `Sequential`: nothing that changes a number beyond its rounding."""

import gc
import weakref

import numpy as np
import pytest

import gpucnn
from gpucnn import layers as L
from gpucnn.backends import Backend, get_backend
from gpucnn.errors import ConfigurationError
from gpucnn.rng import host_generator

NETWORKS = {
    "conv_relu": lambda: [L.Conv2D(5, 3, padding=1), L.ReLU()],
    "conv_relu_pool": lambda: [L.Conv2D(5, 3, padding=1), L.ReLU(), L.MaxPool2D(2)],
    "norm_relu": lambda: [L.Conv2D(5, 3), L.BatchNorm(), L.ReLU()],
    "norm_relu_pool": lambda: [L.Conv2D(5, 3), L.BatchNorm(), L.ReLU(), L.MaxPool2D(3, strides=2, padding=1)],
    "relu_first": lambda: [L.ReLU(), L.MaxPool2D(2)],
    "relu_twice": lambda: [L.Conv2D(5, 3), L.ReLU(), L.ReLU(), L.MaxPool2D(2)],
    "pool_relu_average": lambda: [L.MaxPool2D(2), L.ReLU(), L.AveragePool2D(2)],
    "relu_average": lambda: [L.Conv2D(5, 3), L.ReLU(), L.AveragePool2D(2)],
    "residual": lambda: [L.Conv2D(4, 1), L.Residual([L.Conv2D(4, 3, padding=1), L.BatchNorm()]), L.ReLU()],
    "dense_relu": lambda: [L.Flatten(), L.Dense(6), L.ReLU()],
}


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_fusion_computes_what_the_layers_say(name, train, backend):
    """Forward, input gradient and parameter gradients of a `Sequential` are those of its layers one after another."""
    backend = Backend() if backend == "reference" else get_backend(backend)
    network = L.Sequential(NETWORKS[name]())
    network.ensure_built((7, 8, 3), host_generator(0, "weights"))
    network.to(backend, "float64")
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (18, 7, 8, 3)).astype(float)  # whole numbers: many are equal, and many windows negative
    results = []
    for fused in (True, False):
        for parameter in network.parameters().values():
            parameter.grad = None
        if fused:
            y, backward = network.forward(x, train=train)
            dy = rng.normal(size=y.shape)
            dx = backward(dy)
        else:
            y, backwards = x, []
            for layer in network.layers:
                y, backward = layer.forward(y, train=train)
                backwards.append(backward)
            dx = dy
            for backward in reversed(backwards):
                dx = backward(dx)
        results.append([y, dx, *(parameter.grad for parameter in network.parameters().values())])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_fusion_of_neighbours():
    def plan(*parts):
        network = L.Sequential(list(parts))
        network.ensure_built((8, 8, 3), host_generator(0, "weights"))
        return network._train_plan

    with_relu, alone = {"fused_relu": True}, {}
    assert plan(L.Conv2D(4, 3), L.ReLU()) == [(0, with_relu)]
    assert plan(L.Conv2D(4, 3), L.BatchNorm(), L.ReLU(), L.Conv2D(4, 3)) == [(0, alone), (1, with_relu), (3, alone)]
    assert plan(L.Conv2D(4, 3), L.ReLU(), L.MaxPool2D(2)) == [(0, alone), (2, with_relu)]
    assert plan(L.ReLU(), L.MaxPool2D(2), L.ReLU()) == [(1, with_relu), (2, alone)]
    assert plan(L.Conv2D(4, 3), L.Tanh(), L.ReLU()) == [(0, alone), (1, alone), (2, alone)]
    assert plan(L.Conv2D(4, 3), L.ReLU(), L.ReLU()) == [(0, with_relu), (2, alone)]

    class Mine(L.Conv2D):
        def forward(self, x, *, train):
            return super().forward(x, train=train)

    class MyReLU(L.ReLU):
        def forward(self, x, *, train):
            return super().forward(x * 2, train=train)

    assert plan(Mine(4, 3), L.ReLU()) == [(0, alone), (1, alone)]
    assert plan(L.Conv2D(4, 3), MyReLU(), L.MaxPool2D(2)) == [(0, alone), (1, alone), (2, alone)]


def test_fusion_folds_batch_norm_into_the_convolution_at_inference():
    def plan(*parts):
        network = L.Sequential(list(parts))
        network.ensure_built((8, 8, 3), host_generator(0, "weights"))
        return network._inference_plan

    conv = L.Conv2D(4, 3)
    assert plan(conv, L.BatchNorm(), L.ReLU(), L.Conv2D(4, 3)) == [(0, {"folded_norm": 1, "fused_relu": True}), (3, {})]
    assert plan(L.Conv2D(4, 3), L.BatchNorm(), L.ReLU(), L.MaxPool2D(2)) == [
        (0, {"folded_norm": 1}),
        (3, {"fused_relu": True}),
    ]
    assert plan(L.Conv2D(4, 3), L.ReLU(), L.BatchNorm()) == [(0, {"fused_relu": True}), (2, {})]
    assert plan(L.Conv2D(4, 3), L.BatchNorm(), L.BatchNorm()) == [(0, {"folded_norm": 1}), (2, {})]
    assert plan(L.BatchNorm(), L.ReLU()) == [(0, {"fused_relu": True})]

    class Mine(L.BatchNorm):
        pass

    assert plan(L.Conv2D(4, 3), Mine()) == [(0, {}), (1, {})]


@pytest.mark.parametrize("use_bias", [True, False])
def test_fusion_sees_what_was_changed_since(use_bias):
    """Weights, statistics and freezing of both layers count at each call, and neither layer is changed by it."""
    model = gpucnn.Model([L.Conv2D(6, 3, use_bias=use_bias), L.BatchNorm(), L.ReLU()], (8, 8, 3), backend="numpy")
    conv, norm, relu = model.layers
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 8, 8, 3)).astype("float32")

    def unfused_plan():
        y = x
        for layer in (conv, norm, relu):
            y = layer.forward(y, train=False)[0]
        return y

    for change in ("nothing", "scale", "shift", "running_mean", "running_var", "weight", *["bias"] * use_bias):
        if change != "nothing":
            holder = getattr(conv if change in ("weight", "bias") else norm, change)
            holder.value[...] = rng.uniform(0.5, 2.0, holder.value.shape)
        before = model.state_dict()
        np.testing.assert_allclose(model.predict(x), unfused_plan(), rtol=1e-4, atol=1e-5, err_msg=change)
        assert all(np.array_equal(value, before[path]) for path, value in model.state_dict().items())


def test_training_step_releases_what_backward_has_passed():
    network = L.Sequential([L.Dense(8), L.Tanh(), L.Dense(8)])
    network.ensure_built((8,), host_generator(0, "weights"))
    network.to("numpy", "float32")
    alive = []

    class Watches(L.Layer):
        def forward(self, x, *, train):
            kept = x.copy()
            alive.append(weakref.ref(kept))

            def backward(dy):
                alive.append([ref() is not None for ref in alive if isinstance(ref, weakref.ref)])
                return dy * (kept == kept)

            return x, backward

    watched = L.Sequential([L.Dense(8), Watches(), Watches(), L.Dense(8)])
    watched.ensure_built((8,), host_generator(0, "weights"))
    watched.to("numpy", "float32")
    y, walk = watched.forward(np.ones((4, 8), "float32"), train=True, need_dx=False)
    walk(y)
    gc.collect()
    assert alive[2:] == [
        [True, True],
        [True, False],
    ]  # the later layer's array is gone when the earlier one's turn comes
    with pytest.raises(ConfigurationError, match="already called"):
        walk(y)
    y, backward = network.forward(np.ones((4, 8), "float32"), train=True)
    assert np.array_equal(backward(y), backward(y))  # and with the input's gradient it can be walked often


def test_profile_times_every_layer_and_names_its_method():
    model = gpucnn.Model(
        [L.Conv2D(16, 3, padding=1), L.ReLU(), L.Conv2D(32, 3, padding=1), L.ReLU(), L.MaxPool2D(2), L.Flatten()],
        (8, 8, 3),
        backend="numpy",
    )
    profile = model.profile(np.zeros((32, 8, 8, 3), "float32"), np.zeros((32, 512), "float32"), repeats=2)
    assert [row.algorithm for row in profile.layers] == ["lowered-rows", "", "winograd-1d", "", "", ""]
    assert "winograd-1d" in str(profile)
    assert all(row.forward_seconds > 0 for row in profile.layers)
    branch = [L.Conv2D(8, 3, padding=1), L.Conv2D(8, 3, padding=1), L.Conv2D(8, 1)]
    nested = gpucnn.Model([L.Residual(branch, L.Conv2D(8, 1))], (8, 8, 8), backend="numpy")
    assert nested.layers[0].algorithm(32) == "winograd-1d, lowered-rows"
    assert nested.layers[0].algorithm(4) == "im2col"
    reference = gpucnn.Model([L.Conv2D(4, 3)], (8, 8, 3), backend=Backend())
    assert reference.layers[0].algorithm(32) == "im2col"
