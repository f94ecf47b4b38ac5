"""The layers: each one class, forward and backward side by side.

Shape letters, in docstrings and code alike: `N` batch, `C` channels, `F` filters, `H W` image, `KH KW` kernel,
`SH SW` stride, `PT PB PL PR` padding (top, bottom, left, right), `OH OW` output, `D` features, `K` classes.
Images are (N, H, W, C). A gradient is `d` + its array: `dy`, `dx`, `dweight`.
"""

from typing import Any

from gpucnn.core.hints import no_such_class
from gpucnn.layers.activation import GELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from gpucnn.layers.base import Buffer, Layer, Parameter
from gpucnn.layers.containers import Residual, Sequential
from gpucnn.layers.conv import Conv2D
from gpucnn.layers.dense import Dense
from gpucnn.layers.dropout import Dropout
from gpucnn.layers.norm import BatchNorm, Normalization
from gpucnn.layers.pool import AveragePool2D, GlobalAveragePool2D, MaxPool2D
from gpucnn.layers.shape import Flatten, PadChannels

__all__ = [
    "GELU",
    "AveragePool2D",
    "BatchNorm",
    "Buffer",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePool2D",
    "Layer",
    "LeakyReLU",
    "MaxPool2D",
    "Normalization",
    "PadChannels",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
]


def __getattr__(name: str) -> Any:
    """Say what a class of another library is called here."""
    raise no_such_class("gpucnn.layers", name, __all__)
