"""Named networks: called, each returns a `Model`, compiled with the recipe that trains it.

Every recipe names its data, epochs and batch size, which `fit` and `gpucnn train` take as defaults. Several are those
of projects that wrote a network from scratch; `gpucnn.reproduction` holds what these published.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from gpucnn.backends import Backend
from gpucnn.errors import ConfigurationError
from gpucnn.initializers import Uniform
from gpucnn.layers import (
    AveragePool2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPool2D,
    Normalization,
    ReLU,
    Sigmoid,
    Softmax,
)
from gpucnn.losses import CategoricalCrossEntropy, Loss, MeanSquaredError
from gpucnn.model import Model
from gpucnn.optimizers import SGD, Optimizer
from gpucnn.schedules import OneCycle

Shape = tuple[int, int, int]
Design = tuple[list[Layer], Optimizer]

MNIST_IMAGE, CIFAR10_IMAGE = (28, 28, 1), (32, 32, 3)

# mean and standard deviation of the training images, a channel, of pixel / 255
MNIST_STATISTICS = 0.1307, 0.3081
CIFAR10_STATISTICS = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


@dataclass(frozen=True)
class Recipe:
    """What a named network is trained on, how often, and in what batches."""

    data: str
    epochs: float
    batch_size: int


class Network:
    """A named network; calling it makes a model of it, compiled with its recipe."""

    def __init__(
        self, design: Callable[[Shape, int], Design], name: str, image: Shape, recipe: Recipe, loss: Loss
    ) -> None:
        functools.update_wrapper(self, design)
        self.name, self.image, self.recipe = name, image, recipe
        self._design, self._loss = design, loss

    def __call__(
        self,
        seed: int = 0,
        backend: str | Backend = "auto",
        *,
        input_shape: Shape | None = None,
        classes: int = 10,
        dtype: str = "float32",
        allow_tf32: bool | None = None,
    ) -> Model:
        """Return a compiled model; the arguments are those of `Model`."""
        shape = self.image if input_shape is None else input_shape
        layers, optimizer = self._design(shape, classes)
        model = Model(layers, shape, seed=seed, backend=backend, dtype=dtype, allow_tf32=allow_tf32, name=self.name)
        model.compile(optimizer=optimizer, loss=self._loss, metrics=["accuracy"])
        model.recipe = self.recipe
        return model


NETWORKS: dict[str, Network] = {}


def _network(
    name: str, image: Shape, recipe: Recipe, loss: Loss | None = None
) -> Callable[[Callable[[Shape, int], Design]], Network]:
    """Make a named network of a function that returns its layers and optimizer for an image's shape and classes."""

    def register(design: Callable[[Shape, int], Design]) -> Network:
        NETWORKS[name] = Network(design, name, image, recipe, loss or CategoricalCrossEntropy())
        return NETWORKS[name]

    return register


@_network("lenet", MNIST_IMAGE, Recipe("mnist", 3, 128))
def lenet(image: Shape, classes: int) -> Design:
    """LeNet-5 with ReLU and average pooling, and the one-cycle recipe that brings it to 99 % in 3 epochs.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998).
    """
    return [_normalization(image), *_lenet_layers(classes)], SGD(OneCycle(0.1), momentum=0.9)


@_network("sigmoid-3x3", MNIST_IMAGE, Recipe("mnist", 3, 16), MeanSquaredError())
def sigmoid_3x3(image: Shape, classes: int) -> Design:
    """Three 3×3 filters and two dense layers, all with sigmoids, weights uniform in ±0.5.

    Its 2187 features are 3·27·27, so one row and one column of padding. Its "normalization" is not described; here the
    sigmoids' outputs, 0 … 1, are brought to ±1. Loss, rate and batch size are ours.
    """
    wide = Uniform(-0.5, 0.5)
    layers = [
        *(Conv2D(3, 3, padding=((0, 1), (0, 1)), weight_initializer=wide), Sigmoid()),
        *(Flatten(), Normalization(0.5, 0.5)),
        *(Dense(20, weight_initializer=wide), Sigmoid()),
        *(Dense(classes, weight_initializer=wide), Sigmoid()),
    ]
    return layers, SGD(4.0)


@_network("feedforward", MNIST_IMAGE, Recipe("mnist", 3, 128))
def feedforward(image: Shape, classes: int) -> Design:
    """Dense layers alone, with ReLU; of the three only that they end as LeNet's do is ours."""
    return [Flatten(), *_lenet_end(classes)], SGD(0.5)


@_network("single-conv", MNIST_IMAGE, Recipe("mnist", 3, 128))
def single_conv(image: Shape, classes: int) -> Design:
    """LeNet's first convolution without its pooling, then its dense layers. LeCun's weights are ours."""
    weights = "lecun_normal"
    return [
        *(Conv2D(6, 5, padding="same", weight_initializer=weights), ReLU(), Flatten()),
        *_lenet_end(classes, weights),
    ], SGD(0.5)


@_network("double-conv", MNIST_IMAGE, Recipe("mnist", 3, 128))
def double_conv(image: Shape, classes: int) -> Design:
    """Both of LeNet's convolutions without pooling, then its dense layers. LeCun's weights are ours.

    At a constant rate of 0.5 none of nine runs of three epochs learned, with six ways to begin the weights; presumably
    9,216 features make the first dense layer's steps too long. So the rate rises to 0.5 over half of the training, and
    falls again.
    """
    weights = "lecun_normal"
    return [
        *(Conv2D(6, 5, padding="same", weight_initializer=weights), ReLU()),
        *(Conv2D(16, 5, weight_initializer=weights), ReLU(), Flatten()),
        *_lenet_end(classes, weights),
    ], SGD(OneCycle(0.5, rise=0.5))


@_network("single-conv-pool", MNIST_IMAGE, Recipe("mnist", 3, 128))
def single_conv_pool(image: Shape, classes: int) -> Design:
    """LeNet's first convolution with its pooling, then its dense layers."""
    return [Conv2D(6, 5, padding="same"), ReLU(), AveragePool2D(2), Flatten(), *_lenet_end(classes)], SGD(0.5)


@_network("lenet-002", MNIST_IMAGE, Recipe("mnist", 3, 128))
def lenet_002(image: Shape, classes: int) -> Design:
    """LeNet with ReLU and a constant rate of 0.5, as its author trained it: some runs never learn."""
    return _lenet_layers(classes), SGD(0.5)


@_network("network-1", MNIST_IMAGE, Recipe("mnist", 25, 128))
def network_1(image: Shape, classes: int) -> Design:
    """One 3×3 convolution of 4 filters with ReLU and max pooling, then a dense layer of 64."""
    layers = [
        _normalization(image),
        *(Conv2D(4, 3), ReLU(), MaxPool2D(2)),
        *_small_end(classes),
    ]
    return layers, SGD(OneCycle(0.1), momentum=0.9)


@_network("network-2", MNIST_IMAGE, Recipe("mnist", 30, 128))
def network_2(image: Shape, classes: int) -> Design:
    """Two 3×3 convolutions of 16 filters, each with ReLU and max pooling, then a dense layer of 64."""
    layers = [
        _normalization(image),
        *(Conv2D(16, 3), ReLU(), MaxPool2D(2)),
        *(Conv2D(16, 3), ReLU(), MaxPool2D(2)),
        *_small_end(classes),
    ]
    return layers, SGD(OneCycle(0.1), momentum=0.9)


@_network("network-3", CIFAR10_IMAGE, Recipe("cifar10", 25, 128))
def network_3(image: Shape, classes: int) -> Design:
    """Three 3×3 convolutions of 8, 16 and 32 filters with two max poolings, then a dense layer of 64."""
    layers = [
        _normalization(image),
        *(Conv2D(8, 3, padding="same"), ReLU(), MaxPool2D(2)),
        *(Conv2D(16, 3, padding="same"), ReLU()),
        *(Conv2D(32, 3, padding="same"), ReLU(), MaxPool2D(2)),
        *_small_end(classes),
    ]
    return layers, SGD(OneCycle(0.05), momentum=0.9, weight_decay=5e-4)


@_network("convnet-1000s", MNIST_IMAGE, Recipe("mnist", 10, 32))
def convnet_1000s(image: Shape, classes: int) -> Design:
    """Two 5×5 convolutions of 10 and 20 filters with max pooling, dropout before both dense layers.

    Weights are normal with a deviation of 1 / √fan-in. Activations, rate and dropout rates are ours.
    """
    weights = "lecun_normal"
    layers = [
        _normalization(image),
        *(Conv2D(10, 5, weight_initializer=weights), ReLU(), MaxPool2D(2)),
        *(Conv2D(20, 5, weight_initializer=weights), ReLU(), MaxPool2D(2)),
        *(Flatten(), Dropout(0.3), Dense(100, weight_initializer=weights), ReLU()),
        *(Dropout(0.3), Dense(classes, weight_initializer=weights), Softmax()),
    ]
    return layers, SGD(0.01, momentum=0.9)


def by_name(name: str) -> Network:
    """Return a named network.

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


def _lenet_layers(classes: int) -> list[Layer]:
    return [
        *(Conv2D(6, 5, padding="same"), ReLU(), AveragePool2D(2)),
        *(Conv2D(16, 5), ReLU(), AveragePool2D(2)),
        Flatten(),
        *_lenet_end(classes),
    ]


def _lenet_end(classes: int, weights: str = "he_normal") -> list[Layer]:
    """Return LeNet's three dense layers."""
    hidden = (layer for units in (120, 84) for layer in (Dense(units, weight_initializer=weights), ReLU()))
    return [*hidden, Dense(classes, weight_initializer=weights), Softmax()]


def _small_end(classes: int) -> list[Layer]:
    return [Flatten(), Dense(64), ReLU(), Dense(classes), Softmax()]
