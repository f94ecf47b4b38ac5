"""Deeper networks for CIFAR-10: plain and residual."""

from typing import Any

from gpucnn.callbacks import Callback, Lookahead
from gpucnn.data.augment import AlternatingFlip, Cutout, Flip, RandomCrop, Translate
from gpucnn.initializers import Dirac, FanInUniform
from gpucnn.layers import (
    GELU,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    GlobalAveragePool2D,
    Layer,
    MaxPool2D,
    Normalization,
    PadChannels,
    ReLU,
    Residual,
    Softmax,
)
from gpucnn.losses import CategoricalCrossEntropy
from gpucnn.model import Model
from gpucnn.networks.registry import CIFAR10_IMAGE, LayersAndOptimizer, Shape, normalization, register
from gpucnn.networks.whitening import whiten
from gpucnn.optimizers import SGD, Group
from gpucnn.schedules import OneCycle, PiecewiseLinear, Power
from gpucnn.training.recipe import Recipe

MOVED = (Flip(), Translate(4))


@register(
    "network-4", CIFAR10_IMAGE, Recipe("cifar10", 30, 128, augment=MOVED), CategoricalCrossEntropy(label_smoothing=0.1)
)
def network_4(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Document 003's fourth network: six 3×3 convolutions of 64, 128 and 224 filters with batch norm, 1M parameters.

    Its author planned it, but could not afford to train it. Pooling follows the first convolution of each pair, so
    that the second costs a quarter.
    """
    layers = [normalization(image)]
    for filters in (64, 128, 224):
        layers += [_conv(filters), MaxPool2D(2), BatchNorm(), ReLU(), _conv(filters), BatchNorm(), ReLU()]
    layers += [MaxPool2D(image[0] // 8), *_end(num_classes)]
    return layers, SGD(OneCycle(0.2, warmup_fraction=0.2), momentum=0.9, nesterov=True, weight_decay=5e-4)


def _vgg(image: Shape, num_classes: int, convolutions: tuple[int, ...]) -> LayersAndOptimizer:
    """Return stages of convolutions with batch norm, with a max pooling after each stage."""
    layers = [normalization(image)]
    for filters, count in zip((64, 128, 256, 512, 512), convolutions, strict=True):
        for _ in range(count):
            layers += [Conv2D(filters, 3, padding="same"), BatchNorm(), ReLU()]
        layers += [MaxPool2D(2)]
    layers += [Flatten(), Dense(num_classes), Softmax()]
    return layers, SGD(OneCycle(0.05), momentum=0.9, nesterov=True, weight_decay=5e-4)


VGG = Recipe("cifar10", 30, 128, augment=MOVED)


@register("vgg11", CIFAR10_IMAGE, VGG)
def vgg11(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """VGG's configuration A with batch norm, for 32×32 images: one dense layer of the 512 features after five poolings.

    Source: Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015).
    """
    return _vgg(image, num_classes, (1, 1, 2, 2, 2))


@register("vgg13", CIFAR10_IMAGE, VGG)
def vgg13(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """VGG's configuration B with batch norm, for 32×32 images."""
    return _vgg(image, num_classes, (2, 2, 2, 2, 2))


@register("vgg16", CIFAR10_IMAGE, VGG)
def vgg16(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """VGG's configuration D with batch norm, for 32×32 images."""
    return _vgg(image, num_classes, (2, 2, 3, 3, 3))


def _resnet(image: Shape, num_classes: int, blocks: int) -> LayersAndOptimizer:
    """Return three stages of residual blocks; shortcuts of blocks that halve the image keep every second pixel."""
    layers = [normalization(image), _conv(16), BatchNorm(), ReLU()]
    before = 16
    for filters in (16, 32, 64):
        for _ in range(blocks):
            strides, more = (1, 0) if filters == before else (2, (filters - before) // 2)
            main = [_conv(filters, strides), BatchNorm(), ReLU(), _conv(filters), BatchNorm()]
            shortcut = [MaxPool2D(1, strides=2), PadChannels(more, more)] if more else None
            layers += [Residual(main, shortcut), ReLU()]
            before = filters
    layers += [GlobalAveragePool2D(), Dense(num_classes), Softmax()]
    return layers, SGD(OneCycle(0.4), momentum=0.9, nesterov=True, weight_decay=5e-4)


RESNET = Recipe("cifar10", 30, 128, augment=(Flip(), RandomCrop(padding=4)))


@register("resnet20", CIFAR10_IMAGE, RESNET)
def resnet20(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Nine residual blocks of two 3×3 convolutions, with parameter-free shortcuts; one-cycle schedule chosen here.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), section 4.2, option A.
    """
    return _resnet(image, num_classes, 3)


@register("resnet32", CIFAR10_IMAGE, RESNET)
def resnet32(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Fifteen residual blocks of two 3×3 convolutions, as `resnet20`."""
    return _resnet(image, num_classes, 5)


@register("resnet56", CIFAR10_IMAGE, RESNET)
def resnet56(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Twenty-seven residual blocks of two 3×3 convolutions, as `resnet20`."""
    return _resnet(image, num_classes, 9)


@register(
    "resnet9",
    CIFAR10_IMAGE,
    Recipe("cifar10", 24, 512, augment=(Flip(), RandomCrop(padding=4, mode="reflect"), Cutout(8))),
)
def resnet9(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Eight convolutions with batch norm and two residual blocks; reaches 94 % in 24 epochs.

    Source: Page, "How to train your ResNet" (2018).
    """

    def block(filters: int) -> list[Layer]:
        return [_conv(filters), BatchNorm(), ReLU()]

    layers = [
        *(normalization(image), *block(64)),
        *(*block(128), MaxPool2D(2), Residual([*block(128), *block(128)])),
        *(*block(256), MaxPool2D(2)),
        *(*block(512), MaxPool2D(2), Residual([*block(512), *block(512)])),
        *(MaxPool2D(image[0] // 8), *_end(num_classes, divided_by=8.0)),
    ]
    rate = PiecewiseLinear([(0, 0.0), (5 / 24, 0.4), (1, 0.0)], unit="training")
    return layers, SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _whitened(model: Model, images: Any) -> None:
    """Whiten the first convolution with some images; freeze its weights and the scales of batch norms."""
    whiten(model, images[:5000])
    model.freeze("whitening.weight", "*.scale")


def _airbench_callbacks() -> list[Callback]:
    return [Lookahead(every=5, decay=Power(0.95**5, 3))]


# for a mean loss; a loss summed over 1024 images takes 11.5 / (1024·(1 + 1 / (1 − 0.85))), and 1024 times this decay
AIRBENCH_RATE = 11.5 / (1 + 1 / (1 - 0.85))
AIRBENCH_DECAY = 0.0153 / 11.5


@register(
    "airbench94",
    CIFAR10_IMAGE,
    Recipe(
        "cifar10",
        9.9,
        1024,
        augment=(AlternatingFlip(), Translate(2)),
        callbacks=_airbench_callbacks,
        prepare=_whitened,
    ),
    CategoricalCrossEntropy(label_smoothing=0.2),
)
def airbench94(image: Shape, num_classes: int) -> LayersAndOptimizer:
    """Seven convolutions that reach 94 % in 9.9 epochs: the first one whitens, the others are initialized as identity.

    The scales of batch norms stay 1, and their shifts have 64 times the learning rate. The biases of the first
    convolution are trained for three epochs.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024).
    """
    uniform, identity = FanInUniform(), Dirac(remaining=FanInUniform())

    def conv(filters: int) -> Layer:
        return Conv2D(filters, 3, padding="same", use_bias=False, weight_initializer=identity)

    def norm() -> Layer:
        return BatchNorm(momentum=0.6, epsilon=1e-12)

    layers = [normalization(image), Conv2D(8 * image[2], 2, weight_initializer=uniform, name="whitening"), GELU()]
    for filters in (64, 256, 256):
        layers += [conv(filters), MaxPool2D(2), norm(), GELU(), conv(filters), norm(), GELU()]
    layers += [MaxPool2D(3), Flatten(), Dense(num_classes, use_bias=False, weight_initializer=uniform)]
    layers += [Normalization(0.0, 9.0), Softmax()]
    groups = [
        Group("*.shift", lr_multiplier=64.0, weight_decay=AIRBENCH_DECAY / 64),
        Group("whitening.bias", train_epochs=3),
    ]
    rate = PiecewiseLinear(
        [(0, 0.2 * AIRBENCH_RATE), (0.23, AIRBENCH_RATE), (1, 0.07 * AIRBENCH_RATE)], unit="training"
    )
    return layers, SGD(rate, momentum=0.85, nesterov=True, weight_decay=AIRBENCH_DECAY, groups=groups)


def _conv(filters: int, strides: int = 1) -> Layer:
    """Return a 3×3 convolution without bias, which a following batch norm would remove."""
    return Conv2D(filters, 3, strides=strides, padding=1, use_bias=False)


def _end(num_classes: int, divided_by: float = 1.0) -> list[Layer]:
    """Return the dense layer without bias; its logits are scaled down for a gentle start."""
    scale = [] if divided_by == 1.0 else [Normalization(0.0, divided_by)]
    return [Flatten(), Dense(num_classes, use_bias=False), *scale, Softmax()]
