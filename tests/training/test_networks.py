"""The named networks: their sizes as published, that they train, and what their recipes do in `fit`."""

from dataclasses import replace

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, networks
from gpucnn.data.augment import Flip
from gpucnn.engine import profiling

DEEP = {  # parameters and millions of multiply-adds an image
    "network-4": (973_312, 63.3),  # ours
    "vgg11": (9_231_114, 152.8),
    "vgg13": (9_416_010, 228.3),
    "vgg16": (14_728_266, 313.2),
    "resnet20": (269_722, 40.6),  # the paper says 0.27 M, 0.46 M, 0.85 M
    "resnet32": (464_154, 68.9),
    "resnet56": (853_018, 125.5),
    "resnet9": (6_573_120, 379.3),
    "airbench94": (1_972_792, 118.1),  # the paper says 1.97 M, 0.236 GFLOP
}
SMALL = [name for name in networks.NETWORKS if name not in DEEP]


def test_networks_have_names():
    small = {"lenet", "sigmoid-3x3", "feedforward", "single-conv", "double-conv", "single-conv-pool", "lenet-002"}
    small |= {"network-1", "network-2", "network-3", "convnet-1000s"}
    assert set(networks.NETWORKS) == small | set(DEEP)
    for name, network in networks.NETWORKS.items():
        assert networks.by_name(name.replace("-", "_")) is network
        assert getattr(networks, name.replace("-", "_")) is network


@pytest.mark.parametrize(
    ("name", "parameters", "shapes"),
    [
        ("lenet", 61_706, [(28, 28, 6), (14, 14, 6), (10, 10, 16), (5, 5, 16), (400,), (120,), (84,), (10,)]),
        (
            "network-2",
            (9 + 1) * 16 + (144 + 1) * 16 + 401 * 64 + 650,
            [(26, 26, 16), (13, 13, 16), (11, 11, 16), (5, 5, 16), (400,), (64,), (10,)],
        ),
        (
            "network-3",
            (27 + 1) * 8 + (72 + 1) * 16 + (144 + 1) * 32 + 2049 * 64 + 650,
            [(32, 32, 8), (16, 16, 8), (16, 16, 16), (16, 16, 32), (8, 8, 32), (2048,), (64,), (10,)],
        ),
    ],
)
def test_networks_are_as_described(name, parameters, shapes):
    model = networks.by_name(name)(seed=0, backend="numpy")
    assert profiling.parameter_count(model.network) == parameters
    changes = [layer.output_shape for layer in model.layers if layer.output_shape != layer.input_shape]
    assert changes == shapes
    assert model.loss is not None
    assert model.recipe is not None
    assert model.name == name


@pytest.mark.parametrize("name", DEEP)
def test_networks_have_their_published_sizes(name):
    model = networks.by_name(name)(seed=0, backend="numpy")
    parameters, millions = DEEP[name]
    assert profiling.parameter_count(model.network) == parameters
    assert model.network.total_flops() / 2e6 == pytest.approx(millions, abs=0.05)
    assert model.output_shape == (10,)
    assert model.name == name


@pytest.mark.parametrize("name", SMALL)
def test_networks_train_on_every_backend(name, backend):
    model = networks.by_name(name)(seed=0, backend=backend)
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (8, *model.input_shape)).astype(np.uint8)
    y = generator.integers(0, 10, 8)
    before = model.state_dict()
    seen = [float(backend.to_host(model.train_on_batch(x, y))) for _ in range(8)]
    assert seen[-1] < seen[0]
    moved = [path for path in model.parameters() if not np.array_equal(before[path], model.state_dict()[path])]
    assert moved == list(model.parameters())


@pytest.mark.parametrize("name", DEEP)
def test_networks_that_are_deep_train(name):
    model = networks.by_name(name)(seed=0, backend="numpy")
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (4, *model.input_shape)).astype(np.uint8)
    y = generator.integers(0, 10, 4)
    before = model.state_dict()
    model.optimizer.learning_rate = 0.01
    seen = [float(model.train_on_batch(x, y)) for _ in range(4)]
    assert seen[-1] < seen[0]
    moved = [path for path in model.parameters() if not np.array_equal(before[path], model.state_dict()[path])]
    assert moved == list(model.parameters())


def test_resnet_shortcut_keeps_every_second_pixel(backend):
    """He's option A: where a block halves the image, its shortcut picks pixels and adds channels of zeros."""
    model = networks.resnet20(seed=0, backend=backend)
    block = next(layer for layer in model.layers if isinstance(layer, layers.Residual) and layer.shortcut is not None)
    x = backend.from_host(np.random.default_rng(0).normal(size=(2, 32, 32, 16)).astype("float32"))
    y, _ = block.shortcut.forward(x, train=False)
    expected = np.zeros((2, 16, 16, 32), "float32")
    expected[..., 8:24] = backend.to_host(x)[:, ::2, ::2]
    np.testing.assert_array_equal(backend.to_host(y), expected)


# --- recipes ----------------------------------------------------------------------------------


def small_net(recipe):
    model = gpucnn.Model([layers.Flatten(), layers.Dense(2), layers.Softmax()], (4, 4, 1), backend="numpy")
    model.compile(gpucnn.optimizers.SGD(0.5))
    model.recipe = recipe
    return model


def stripes():
    x = np.zeros((40, 4, 4, 1), np.uint8)
    y = np.arange(40) % 2
    x[y == 0, :, 0] = x[y == 1, :, 3] = 255
    return x, y


def test_recipe_fills_in_the_arguments_of_fit():
    """Epochs, batch size, augmentation; new callbacks for each training run; the preparation before the first."""
    told, made = [], []

    class Counts(gpucnn.callbacks.Callback):
        def __init__(self):
            made.append(self)
            self.steps = 0

        def on_step_end(self, model, step):
            self.steps += 1

    def prepare(model, images):
        told.append((model.epochs_trained, images.shape))

    recipe = networks.Recipe("mnist", 2, 10, (Flip(1.0),), lambda: [Counts()], prepare)
    mirrored, plain = small_net(recipe), small_net(replace(recipe, augment=()))
    x, y = stripes()
    for model in (mirrored, plain):
        model.fit(x, y, verbose=0)
        model.fit(x, y, epochs=1, verbose=0)
    assert told == [(0, (40, 4, 4, 1))] * 2
    assert [counts.steps for counts in made] == [8, 4, 8, 4]
    assert plain.evaluate(x, y)["accuracy"] == 1
    assert mirrored.evaluate(x, y)["accuracy"] == 0  # it has seen left as right throughout
    assert mirrored.evaluate(x[:, :, ::-1], y)["accuracy"] == 1
    unlike = small_net(recipe)
    unlike.fit(x, y, augment=(), verbose=0)
    np.testing.assert_array_equal(unlike.predict(x), small_net_after(plain, x, y))


def small_net_after(plain, x, y):
    """Return what the plain recipe's network predicts after as many epochs."""
    fresh = small_net(plain.recipe)
    fresh.fit(x, y, verbose=0)
    return fresh.predict(x)


def test_recipe_augmentation_is_saved_with_the_model(tmp_path):
    networks.network_3(backend="numpy").save(tmp_path / "n.safetensors")
    recipe = gpucnn.load(tmp_path / "n.safetensors").recipe
    assert [augmentation.config() for augmentation in recipe.augment] == [
        {"Augmentation": "Flip"},
        {"Augmentation": "Translate", "pixels": 2},
    ]
    assert (recipe.data, recipe.epochs, recipe.batch_size) == ("cifar10", 25, 128)


def test_airbench94_is_prepared_as_its_paper_says():
    """The first convolution whitens and keeps its filters, scales stay 1, shifts learn 64 times as fast."""
    model = networks.airbench94(seed=0, backend="numpy")
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (96, 32, 32, 3)).astype(np.uint8)
    y = generator.integers(0, 10, 96)
    model.fit(x, y, epochs=1, verbose=0)
    frozen = [path for path, parameter in model.parameters().items() if parameter.frozen]
    assert frozen == ["whitening.weight", *(path for path in model.parameters() if path.endswith(".scale"))]
    assert len(frozen) == 7
    state = model.state_dict()
    assert all((state[path] == 1).all() for path in frozen[1:])
    weight = state["whitening.weight"]
    np.testing.assert_allclose(weight[..., :12], -weight[..., 12:], atol=1e-7)
    rates = dict(zip(["others", "shift", "whitening.bias"], model.optimizer.learning_rates_at(0.0, 9.9), strict=True))
    assert rates["others"] == pytest.approx(0.2 * 1.5)
    assert rates["shift"] == pytest.approx(64 * 0.2 * 1.5)
    assert [model.optimizer.learning_rates_at(epoch, 9.9)[2] > 0 for epoch in (2.9, 3.1)] == [True, False]
    assert model.optimizer.learning_rates_at(0.23 * 9.9, 9.9)[0] == pytest.approx(1.5)
    assert model.optimizer.learning_rates_at(9.9, 9.9)[0] == pytest.approx(0.07 * 1.5)
