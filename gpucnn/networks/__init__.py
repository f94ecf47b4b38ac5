"""Named networks: called, each returns a `Model`, compiled with the recipe that trains it.

Every recipe names its data, epochs, batch size and augmentation, which `fit` and `gpucnn train` take as defaults.
"""

from gpucnn.networks.registry import NETWORKS, Network, Recipe, by_name
from gpucnn.networks.small import (
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

__all__ = [
    "NETWORKS",
    "Network",
    "Recipe",
    "by_name",
    "convnet_1000s",
    "double_conv",
    "feedforward",
    "lenet",
    "lenet_002",
    "network_1",
    "network_2",
    "network_3",
    "sigmoid_3x3",
    "single_conv",
    "single_conv_pool",
]
