"""Named networks: functions that return a `Model`, compiled with the recipe that trains it well.

Every recipe names its data, epochs and batch size, which `fit` and `gpucnn train` take as defaults.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gpucnn.backends import Backend
from gpucnn.errors import ConfigurationError
from gpucnn.layers import AveragePool2D, Conv2D, Dense, Flatten, Layer, MaxPool2D, Normalization, ReLU, Softmax
from gpucnn.losses import CategoricalCrossEntropy
from gpucnn.model import Model
from gpucnn.optimizers import SGD, Optimizer
from gpucnn.schedules import OneCycle

Shape = tuple[int, int, int]

# mean and standard deviation of the training images, a channel, of pixel / 255
MNIST_STATISTICS = 0.1307, 0.3081
CIFAR10_STATISTICS = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


@dataclass(frozen=True)
class Recipe:
    """What a named network is trained on, how often, and in what batches."""

    data: str
    epochs: int
    batch_size: int


def lenet(
    seed: int = 0,
    backend: str | Backend = "auto",
    *,
    input_shape: Shape = (28, 28, 1),
    classes: int = 10,
    dtype: str = "float32",
) -> Model:
    """Return LeNet-5 with ReLU and average pooling, and the one-cycle recipe that brings it to 99 % in 3 epochs.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998).
    """
    layers = [
        _normalization(input_shape),
        *(Conv2D(6, 5, padding="same"), ReLU(), AveragePool2D(2)),
        *(Conv2D(16, 5), ReLU(), AveragePool2D(2)),
        Flatten(),
        *(Dense(120), ReLU(), Dense(84), ReLU()),
        *(Dense(classes), Softmax()),
    ]
    model = Model(layers, input_shape, seed=seed, backend=backend, dtype=dtype, name="lenet")
    return _with_recipe(model, Recipe("mnist", 3, 128), SGD(OneCycle(0.1), momentum=0.9))


def network_2(
    seed: int = 0,
    backend: str | Backend = "auto",
    *,
    input_shape: Shape = (28, 28, 1),
    classes: int = 10,
    dtype: str = "float32",
) -> Model:
    """Return two 3×3 convolutions of 16 filters, each with ReLU and max pooling, then a dense layer of 64."""
    layers = [
        _normalization(input_shape),
        *(Conv2D(16, 3), ReLU(), MaxPool2D(2)),
        *(Conv2D(16, 3), ReLU(), MaxPool2D(2)),
        Flatten(),
        *(Dense(64), ReLU()),
        *(Dense(classes), Softmax()),
    ]
    model = Model(layers, input_shape, seed=seed, backend=backend, dtype=dtype, name="network-2")
    return _with_recipe(model, Recipe("mnist", 30, 128), SGD(OneCycle(0.1), momentum=0.9))


def network_3(
    seed: int = 0,
    backend: str | Backend = "auto",
    *,
    input_shape: Shape = (32, 32, 3),
    classes: int = 10,
    dtype: str = "float32",
) -> Model:
    """Return three 3×3 convolutions of 8, 16 and 32 filters with two max poolings, then a dense layer of 64."""
    layers = [
        _normalization(input_shape),
        *(Conv2D(8, 3, padding="same"), ReLU(), MaxPool2D(2)),
        *(Conv2D(16, 3, padding="same"), ReLU()),
        *(Conv2D(32, 3, padding="same"), ReLU(), MaxPool2D(2)),
        Flatten(),
        *(Dense(64), ReLU()),
        *(Dense(classes), Softmax()),
    ]
    model = Model(layers, input_shape, seed=seed, backend=backend, dtype=dtype, name="network-3")
    return _with_recipe(model, Recipe("cifar10", 25, 128), SGD(OneCycle(0.05), momentum=0.9, weight_decay=5e-4))


NETWORKS: dict[str, Callable[..., Model]] = {"lenet": lenet, "network-2": network_2, "network-3": network_3}


def by_name(name: str) -> Callable[..., Model]:
    """Return the function that makes a named network.

    Raises:
        ConfigurationError: there is no such network.
    """
    plain = name.lower().replace("_", "-")
    if plain not in NETWORKS:
        raise ConfigurationError(f"there is no network named {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[plain]


def _normalization(input_shape: Shape) -> Layer:
    """Return the statistics of MNIST for grey images and of CIFAR-10 for coloured ones; `adapt` takes others."""
    return Normalization(*(CIFAR10_STATISTICS if input_shape[-1] == 3 else MNIST_STATISTICS))


def _with_recipe(model: Model, recipe: Recipe, optimizer: Optimizer) -> Model:
    model.compile(optimizer=optimizer, loss=CategoricalCrossEntropy(), metrics=["accuracy"])
    model.recipe = recipe
    return model
