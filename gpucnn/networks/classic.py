"""Small networks for MNIST and CIFAR-10: those of from-scratch projects (documents 000 to 004), and a tuned LeNet.

`gpucnn.runs.reproduction` holds the published results.
"""

from gpucnn.data.augment import Flip, Translate
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
from gpucnn.losses import MeanSquaredError
from gpucnn.networks.registry import CIFAR10_IMAGE, MNIST_IMAGE, LayersAndOptimizer, Shape, normalization, register
from gpucnn.optimizers import SGD
from gpucnn.schedules import OneCycle
from gpucnn.training.recipe import Recipe


@register("lenet", MNIST_IMAGE, Recipe("mnist", 3, 128))
def lenet(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """LeNet-5 with ReLU and average pooling; its one-cycle recipe reaches 99 % on MNIST in 3 epochs.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998).
    """
    return [normalization(image), *_lenet_layers(num_classes)], SGD(OneCycle(0.1), momentum=0.9)


@register("sigmoid-3x3", MNIST_IMAGE, Recipe("mnist", 3, 16), MeanSquaredError())
def sigmoid_3x3(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Documents 000 and 001: three 3×3 filters and two dense layers, all with sigmoids, weights uniform in ±0.5.

    The 2187 features are 3·27·27, which takes one row and one column of padding. The "normalization" is not described;
    here it scales the sigmoids' outputs, 0 … 1, to ±1. Loss, learning rate and batch size are not given; chosen here.
    """
    wide = Uniform(-0.5, 0.5)
    layers = [
        *(Conv2D(3, 3, padding=((0, 1), (0, 1)), weight_initializer=wide), Sigmoid()),
        *(Flatten(), Normalization(0.5, 0.5)),
        *(Dense(20, weight_initializer=wide), Sigmoid()),
        *(Dense(num_classes, weight_initializer=wide), Sigmoid()),
    ]
    return layers, SGD(4.0)


@register("feedforward", MNIST_IMAGE, Recipe("mnist", 3, 128))
def feedforward(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 002's baseline: three dense layers with ReLU; their sizes are not given, and LeNet's are used."""
    return [Flatten(), *_lenet_end(num_classes)], SGD(0.5)


@register("single-conv", MNIST_IMAGE, Recipe("mnist", 3, 128))
def single_conv(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 002: LeNet's first convolution without pooling, then dense layers; LeCun initialization chosen here."""
    weights = "lecun_normal"
    convolution = Conv2D(6, 5, padding="same", weight_initializer=weights)
    return [convolution, ReLU(), Flatten(), *_lenet_end(num_classes, weights)], SGD(0.5)


@register("double-conv", MNIST_IMAGE, Recipe("mnist", 3, 128))
def double_conv(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 002: both of LeNet's convolutions without pooling, then its dense layers.

    The initialization is not given; LeCun's is used. At a constant learning rate of 0.5 none of nine runs of three
    epochs learned, with six initializations; presumably 9,216 features make the first dense layer's steps too long. So
    the rate warms up to 0.5 over half of the run, and decays again.
    """
    weights = "lecun_normal"
    return [
        *(Conv2D(6, 5, padding="same", weight_initializer=weights), ReLU()),
        *(Conv2D(16, 5, weight_initializer=weights), ReLU(), Flatten()),
        *_lenet_end(num_classes, weights),
    ], SGD(OneCycle(0.5, warmup_fraction=0.5))


@register("single-conv-pool", MNIST_IMAGE, Recipe("mnist", 3, 128))
def single_conv_pool(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 002: LeNet's first convolution with pooling, then its dense layers."""
    return [Conv2D(6, 5, padding="same"), ReLU(), AveragePool2D(2), Flatten(), *_lenet_end(num_classes)], SGD(0.5)


@register("lenet-002", MNIST_IMAGE, Recipe("mnist", 3, 128))
def lenet_002(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """LeNet as document 002 trained it, with ReLU and a constant learning rate of 0.5: some runs never learn."""
    return _lenet_layers(num_classes), SGD(0.5)


@register("network-1", MNIST_IMAGE, Recipe("mnist", 25, 128))
def network_1(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 003's first network: a 3×3 convolution of 4 filters, max pooling, and a dense layer of 64."""
    layers = [normalization(image), *(Conv2D(4, 3), ReLU(), MaxPool2D(2)), *_small_end(num_classes)]
    return layers, SGD(OneCycle(0.1), momentum=0.9)


@register("network-2", MNIST_IMAGE, Recipe("mnist", 30, 128))
def network_2(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 003's second network: two 3×3 convolutions of 16 filters with max pooling, a dense layer of 64."""
    layers = [
        *(normalization(image), Conv2D(16, 3), ReLU(), MaxPool2D(2)),
        *(Conv2D(16, 3), ReLU(), MaxPool2D(2), *_small_end(num_classes)),
    ]
    return layers, SGD(OneCycle(0.1), momentum=0.9)


@register("network-3", CIFAR10_IMAGE, Recipe("cifar10", 25, 128, augment=(Flip(), Translate(2))))
def network_3(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 003's third network: 3×3 convolutions of 8, 16 and 32 filters, two max poolings, a dense layer of 64.

    Random flips and translations are an addition.
    """
    layers = [
        normalization(image),
        *(Conv2D(8, 3, padding="same"), ReLU(), MaxPool2D(2)),
        *(Conv2D(16, 3, padding="same"), ReLU()),
        *(Conv2D(32, 3, padding="same"), ReLU(), MaxPool2D(2)),
        *_small_end(num_classes),
    ]
    return layers, SGD(OneCycle(0.05), momentum=0.9, weight_decay=5e-4)


@register("convnet-1000s", MNIST_IMAGE, Recipe("mnist", 10, 32))
def convnet_1000s(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 004, trained on chunks of 1,000 images: two 5×5 convolutions of 10 and 20 filters with max pooling.

    Dropout precedes both dense layers. Weights are normal with a standard deviation of 1 / √fan-in. Activations,
    learning rate and dropout rates are not given; chosen here.
    """
    weights = "lecun_normal"
    layers = [
        normalization(image),
        *(Conv2D(10, 5, weight_initializer=weights), ReLU(), MaxPool2D(2)),
        *(Conv2D(20, 5, weight_initializer=weights), ReLU(), MaxPool2D(2)),
        *(Flatten(), Dropout(0.3), Dense(100, weight_initializer=weights), ReLU()),
        *(Dropout(0.3), Dense(num_classes, weight_initializer=weights), Softmax()),
    ]
    return layers, SGD(0.01, momentum=0.9)


def _lenet_layers(num_classes: int) -> list[Layer]:
    return [
        *(Conv2D(6, 5, padding="same"), ReLU(), AveragePool2D(2)),
        *(Conv2D(16, 5), ReLU(), AveragePool2D(2)),
        *(Flatten(), *_lenet_end(num_classes)),
    ]


def _lenet_end(num_classes: int, weights: str = "he_normal") -> list[Layer]:
    """Return LeNet's three dense layers."""
    hidden = (layer for units in (120, 84) for layer in (Dense(units, weight_initializer=weights), ReLU()))
    return [*hidden, Dense(num_classes, weight_initializer=weights), Softmax()]


def _small_end(num_classes: int) -> list[Layer]:
    return [Flatten(), Dense(64), ReLU(), Dense(num_classes), Softmax()]
