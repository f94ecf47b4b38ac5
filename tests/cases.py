"""The case table: one row per layer and way to use it. Every guarantee is checked for every row on every backend.

A row gives the layer, the shape of a sample, and what the layer means: a function of the input and the layer's state
(host arrays by path) that uses nothing of the package. Padding is written out by hand in the meaning.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpucnn import layers as L
from tests import reference as R


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], L.Layer]
    input_shape: tuple[int, ...]
    meaning: Callable[[Any, dict[str, Any]], Any]
    batch: int = 2
    train: bool = True  # the mode in which the layer is looked at

    def __str__(self):
        return self.name


NONE = ((0, 0), (0, 0))


def conv(name, layer, input_shape, path="", **meaning):
    def expected(x, state):
        return R.conv2d(x, state[f"{path}weight"], state.get(f"{path}bias"), **meaning)

    return Case(name, layer, input_shape, expected)


def pool(name, layer, input_shape, reduce, size, strides, padding=NONE):
    return Case(name, layer, input_shape, lambda x, state: R.pool2d(x, size, strides, padding, reduce))


def element(name, layer, function):
    return Case(name, layer, (3, 4), lambda x, state: R.elementwise(function, x), batch=3)


def batch_norm(x, state):
    means, variances, _ = R.channel_statistics(x)
    return R.normalize(x, means, variances, state["scale"], state["shift"], 1e-5)


def batch_norm_running(x, state):
    running = state["running_mean"], state["running_var"]
    return R.normalize(x, *running, state["scale"], state["shift"], 1e-5)


def dropout(rate, x, state):
    key, counter = (int(word) for word in state["stream"])
    return R.dropout(x, rate, key, counter)


def small_network(x, state):
    x = R.conv2d(x, state["conv2d.weight"], state["conv2d.bias"])
    x = R.flatten(R.elementwise(R.relu, x))
    return R.dense(x, state["dense.weight"], state["dense.bias"])


def residual(x, state):
    same = ((1, 1), (1, 1))
    return R.elementwise(math.tanh, R.conv2d(x, state["main.conv2d.weight"], None, padding=same)) + x


def residual_with_shortcut(x, state):
    main = R.conv2d(x, state["main.weight"], state["main.bias"], strides=(2, 2), padding=((0, 1), (0, 1)))
    return main + R.conv2d(x, state["shortcut.weight"], state["shortcut.bias"], strides=(2, 2))


def shared(x, state):
    for _ in range(2):
        x = R.elementwise(math.tanh, R.dense(x, state["dense.weight"], state["dense.bias"]))
    return x


def shared_layers():
    dense, tanh = L.Dense(5), L.Tanh()
    return L.Sequential([dense, tanh, dense, tanh])


CASES = [
    conv("conv2d", lambda: L.Conv2D(3, 3), (5, 6, 2)),
    conv("conv2d_no_bias", lambda: L.Conv2D(3, 2, use_bias=False), (4, 4, 2)),
    conv("conv2d_grey_5x5", lambda: L.Conv2D(4, 5, padding="same"), (7, 6, 1), padding=((2, 2), (2, 2))),
    conv("conv2d_whole_image", lambda: L.Conv2D(3, (4, 5)), (4, 5, 2)),
    conv("conv2d_1x1", lambda: L.Conv2D(4, 1), (4, 3, 3)),
    conv("conv2d_1x1_stride", lambda: L.Conv2D(4, 1, strides=2), (5, 4, 3), strides=(2, 2)),
    conv("conv2d_row_kernel", lambda: L.Conv2D(2, (1, 3)), (3, 5, 2)),
    conv("conv2d_same", lambda: L.Conv2D(3, 3, padding="same"), (5, 4, 2), padding=((1, 1), (1, 1))),
    conv("conv2d_same_even", lambda: L.Conv2D(3, (2, 4), padding="same"), (5, 4, 2), padding=((0, 1), (1, 2))),
    conv(
        "conv2d_same_stride",
        lambda: L.Conv2D(3, 3, strides=2, padding="same"),
        (6, 5, 2),
        strides=(2, 2),
        padding=((0, 1), (1, 1)),
    ),
    conv("conv2d_stride", lambda: L.Conv2D(3, 3, strides=(2, 3)), (7, 8, 2), strides=(2, 3)),
    conv("conv2d_stride_over_kernel", lambda: L.Conv2D(3, 2, strides=3), (8, 7, 2), strides=(3, 3)),
    conv("conv2d_padding_number", lambda: L.Conv2D(2, 3, padding=2), (4, 3, 2), padding=((2, 2), (2, 2))),
    conv("conv2d_padding_pair", lambda: L.Conv2D(2, 3, padding=(0, 1)), (4, 4, 2), padding=((0, 0), (1, 1))),
    conv(
        "conv2d_padding_sides",
        lambda: L.Conv2D(2, 3, padding=((1, 0), (0, 2))),
        (4, 4, 2),
        padding=((1, 0), (0, 2)),
    ),
    conv("conv2d_dilation", lambda: L.Conv2D(2, 3, dilation=(2, 1)), (6, 5, 2), dilation=(2, 1)),
    conv(
        "conv2d_dilation_same",
        lambda: L.Conv2D(2, 3, dilation=2, padding="same"),
        (5, 6, 2),
        dilation=(2, 2),
        padding=((2, 2), (2, 2)),
    ),
    conv("conv2d_groups", lambda: L.Conv2D(6, 3, groups=2), (4, 5, 4), groups=2),
    conv(
        "conv2d_depthwise",
        lambda: L.Conv2D(6, 3, groups=3, padding="same", strides=2),
        (5, 5, 3),
        groups=3,
        strides=(2, 2),
        padding=((1, 1), (1, 1)),
    ),
    pool("max_pool2d", L.MaxPool2D, (4, 6, 3), max, (2, 2), (2, 2)),
    pool("max_pool2d_rest", L.MaxPool2D, (5, 7, 2), max, (2, 2), (2, 2)),
    pool("max_pool2d_overlap", lambda: L.MaxPool2D(3, 2), (7, 5, 2), max, (3, 3), (2, 2)),
    pool("max_pool2d_gap", lambda: L.MaxPool2D(2, 3), (6, 8, 2), max, (2, 2), (3, 3)),
    pool("max_pool2d_same", lambda: L.MaxPool2D(3, 2, "same"), (5, 6, 2), max, (3, 3), (2, 2), ((1, 1), (0, 1))),
    pool(
        "max_pool2d_padding", lambda: L.MaxPool2D((2, 3), 1, (1, 1)), (4, 3, 2), max, (2, 3), (1, 1), ((1, 1), (1, 1))
    ),
    pool("average_pool2d", L.AveragePool2D, (4, 6, 3), R.mean, (2, 2), (2, 2)),
    pool("average_pool2d_overlap", lambda: L.AveragePool2D(3, 2), (7, 5, 2), R.mean, (3, 3), (2, 2)),
    pool("average_pool2d_gap", lambda: L.AveragePool2D(2, 3), (6, 8, 2), R.mean, (2, 2), (3, 3)),
    pool(
        "average_pool2d_same",
        lambda: L.AveragePool2D(3, 2, "same"),
        (5, 6, 2),
        R.mean,
        (3, 3),
        (2, 2),
        ((1, 1), (0, 1)),
    ),
    pool(
        "average_pool2d_sides",
        lambda: L.AveragePool2D(3, 1, ((2, 0), (1, 1))),
        (4, 3, 2),
        R.mean,
        (3, 3),
        (1, 1),
        ((2, 0), (1, 1)),
    ),
    Case("global_average_pool2d", L.GlobalAveragePool2D, (3, 4, 5), lambda x, state: R.global_average(x)),
    Case("dense", lambda: L.Dense(4), (5,), lambda x, s: R.dense(x, s["weight"], s["bias"]), batch=3),
    Case("dense_no_bias", lambda: L.Dense(3, use_bias=False), (4,), lambda x, s: R.dense(x, s["weight"])),
    Case("flatten", L.Flatten, (2, 3, 4), lambda x, state: R.flatten(x)),
    Case("pad_channels", lambda: L.PadChannels(1, 2), (2, 3, 4), lambda x, state: R.pad_channels(x, 1, 2)),
    element("relu", L.ReLU, R.relu),
    element("leaky_relu", lambda: L.LeakyReLU(0.1), lambda v: v if v > 0 else 0.1 * v),
    element("sigmoid", L.Sigmoid, R.sigmoid),
    element("tanh", L.Tanh, math.tanh),
    element("gelu", L.GELU, R.gelu),
    Case("softmax", L.Softmax, (5,), lambda x, state: R.softmax(x), batch=3),
    Case("dropout", lambda: L.Dropout(0.4), (6, 5), partial(dropout, 0.4)),
    Case("dropout_inference", lambda: L.Dropout(0.4), (6, 5), lambda x, state: x, train=False),
    Case("batch_norm_images", L.BatchNorm, (3, 2, 3), batch_norm, batch=3),
    Case("batch_norm_features", L.BatchNorm, (4,), batch_norm, batch=5),
    Case("batch_norm_inference", L.BatchNorm, (3, 2, 3), batch_norm_running, train=False),
    Case("normalization", lambda: L.Normalization(0.5, 2.0), (3, 2), lambda x, state: (x - 0.5) / 2.0),
    Case(
        "normalization_channels",
        lambda: L.Normalization([0.5, -1.0], [2.0, 4.0]),
        (2, 3, 2),
        lambda x, state: np.stack([(x[..., 0] - 0.5) / 2.0, (x[..., 1] + 1.0) / 4.0], axis=-1),
    ),
    Case(
        "sequential",
        lambda: L.Sequential([L.Conv2D(2, 2), L.ReLU(), L.Flatten(), L.Dense(3)]),
        (3, 4, 1),
        small_network,
    ),
    Case("sequential_shared", shared_layers, (5,), shared),
    Case(
        "residual",
        lambda: L.Residual([L.Conv2D(2, 3, padding="same", use_bias=False), L.Tanh()]),
        (3, 4, 2),
        residual,
    ),
    Case(
        "residual_shortcut",
        lambda: L.Residual(L.Conv2D(3, 3, strides=2, padding="same"), L.Conv2D(3, 1, strides=2)),
        (4, 4, 2),
        residual_with_shortcut,
    ),
]
