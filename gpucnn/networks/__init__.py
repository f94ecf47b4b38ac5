"""Named networks: called, each returns a `Model`, compiled with the recipe that trains it.

Every recipe names its data, epochs, batch size and augmentation, which `fit` and `gpucnn train` take as defaults.
"""

from gpucnn.networks.classic import (
    convnet_1000s,
    double_conv,
    feedforward,
    lenet,
    lenet_002,
    network_1,
    network_2,
    network_3,
    sigmoid_3x3,
    single_conv,
    single_conv_pool,
)
from gpucnn.networks.deep import airbench94, network_4, resnet9, resnet20, resnet32, resnet56, vgg11, vgg13, vgg16
from gpucnn.networks.registry import NETWORKS, NamedNetwork, by_name
from gpucnn.training.recipe import Recipe

__all__ = [
    "NETWORKS",
    "NamedNetwork",
    "Recipe",
    "airbench94",
    "by_name",
    "convnet_1000s",
    "double_conv",
    "feedforward",
    "lenet",
    "lenet_002",
    "network_1",
    "network_2",
    "network_3",
    "network_4",
    "resnet9",
    "resnet20",
    "resnet32",
    "resnet56",
    "sigmoid_3x3",
    "single_conv",
    "single_conv_pool",
    "vgg11",
    "vgg13",
    "vgg16",
]
