"""Data-dependent filters of a first convolution, whose outputs are uncorrelated with variance 1.

The filters are the eigenvectors of the covariance of image patches, each divided by the square root of its eigenvalue,
with both signs, so that a following ReLU loses nothing. Neighbouring pixels of photographs are highly correlated, which
concentrates gradients in few directions; whitening spreads them over all.

Source: Coates, Ng, "Learning feature representations with k-means" (2012); as a network's first layer Page, "How to
train your ResNet" (2019), and Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.core import checks
from gpucnn.data.batches import batches, check_inputs
from gpucnn.errors import ConfigurationError, DataError
from gpucnn.layers.base import Layer
from gpucnn.layers.containers import Sequential
from gpucnn.layers.conv import Conv2D
from gpucnn.model import Model

EPSILON = 5e-4  # added to the eigenvalues, so that directions of little variance are not amplified
BATCH = 512


def whiten(target: Model | Conv2D, images: Any, *, epsilon: float = EPSILON) -> Conv2D:
    """Set the filters of a model's first convolution, or of one convolution, from images; returns the convolution.

    Filter i belongs to the i-th largest eigenvalue, and filter i + KH·KW·C is its negative. Biases stay as they are.
    A few thousand training images are enough.

    Arguments:
        target: a model, built and on any backend; or a convolution that is built, which is shown the images as they
            are.
        images: (N, *input_shape), uint8 or floats. In a model they pass the layers before the convolution, such as a
            `Normalization`, as in inference.
        epsilon: added to each eigenvalue before its root is taken.

    Raises:
        ConfigurationError: there is no such convolution, it has groups, or it does not have 2·KH·KW·C filters.
        DataError: images without any variation.
        ShapeError, DTypeError: images that the target does not take.

    Example:
        >>> from gpucnn.networks.whitening import whiten
        >>> images = np.random.default_rng(0).random((200, 8, 8, 1), dtype=np.float32)
        >>> model = Model([layers.Conv2D(8, 2)], (8, 8, 1))  # 2·KH·KW·C filters
        >>> whiten(model, images).weight.shape
        (2, 2, 1, 8)
    """
    epsilon = checks.number(epsilon, "epsilon", above=0)
    convolution, before = _first_convolution(target)
    _check_filters(convolution)
    assert convolution.input_shape is not None
    shape = target.input_shape if isinstance(target, Model) else convolution.input_shape
    covariance = _covariance(_inputs_of_convolution(target, before, check_inputs(images, shape, "images")), convolution)
    filters = _filters(covariance, epsilon).reshape(convolution.weight.shape)
    dtype = convolution.weight.value.dtype
    with convolution.backend.on_device():
        convolution.weight.value = convolution.backend.from_host(filters.astype(dtype))
    return convolution


def _first_convolution(target: Any) -> tuple[Conv2D, list[Layer]]:
    """Return the convolution to set and the layers that images pass before it."""
    if isinstance(target, Conv2D):
        if target.output_shape is None:
            raise ConfigurationError(f"{target.display_name} is not built yet; put it into a Model, and pass that")
        return target, []
    if not isinstance(target, Model):
        raise ConfigurationError(f"whiten takes a Model or a Conv2D, not {target!r}")
    before: list[Layer] = []
    for _, layer in target.network.leaves(inside=Sequential):
        if isinstance(layer, Conv2D):
            return layer, before
        before.append(layer)
    there = ", ".join(layer.display_name for layer in before)
    raise ConfigurationError(
        f"{target.name} has no convolution on its main path, only {there}; put a Conv2D before them"
    )


def _check_filters(convolution: Conv2D) -> None:
    KH, KW, C, F = convolution.weight.shape
    if convolution.groups != 1:
        raise ConfigurationError(
            f"{convolution.display_name}: has groups={convolution.groups}, and only a convolution that sees all "
            "channels at once can be whitened; leave groups out"
        )
    if 2 * KH * KW * C != F:
        raise ConfigurationError(
            f"{convolution.display_name}: has {F} filters; whitening gives two for each of the {KH}·{KW}·{C} numbers "
            f"of a window, so make it Conv2D({2 * KH * KW * C}, …)"
        )


def _inputs_of_convolution(target: Model | Conv2D, before: list[Layer], images: Any) -> Iterator[Any]:
    """Yield what the convolution is given of the images, host arrays of float64 (N, H, W, C), batch by batch."""
    for part in batches(len(images), BATCH):
        pixels = images[part]
        if isinstance(target, Model):
            with target.execution_context(len(pixels)):
                x = target.as_floats(target.backend.from_host(pixels))
                for layer in before:
                    x, _ = layer.forward(x, train=False)
                yield target.backend.to_host(x).astype(np.float64)
        else:
            yield pixels / 255.0 if pixels.dtype == np.uint8 else pixels.astype(np.float64)


def _covariance(inputs: Iterator[Any], convolution: Conv2D) -> "np.ndarray[Any, Any]":
    """Return the covariance (D, D) of all windows inside the images, D = KH·KW·C in the order of a filter's weights."""
    KH, KW, C, _ = convolution.weight.shape
    EH, EW = convolution.window.extent
    (DH, DW), D = convolution.window.dilation, KH * KW * C
    count, total, products = 0, np.zeros(D), np.zeros((D, D))
    for x in inputs:
        windows = np.lib.stride_tricks.sliding_window_view(x, (EH, EW), axis=(1, 2))[..., ::DH, ::DW]
        rows = np.moveaxis(windows, 3, -1).reshape(-1, D)
        count += len(rows)
        total += rows.sum(axis=0)
        products += rows.T @ rows
    mean = total / max(count, 1)
    covariance: np.ndarray[Any, Any] = products / max(count, 1) - np.outer(mean, mean)
    if not np.trace(covariance) > 1e-12 * np.trace(products):  # rounding errors of constant windows
        raise DataError(
            f"{convolution.display_name}: {count:,} windows of {EH}x{EW} pixels without variation cannot be whitened; "
            "pass some training images"
        )
    return covariance


def _filters(covariance: "np.ndarray[Any, Any]", epsilon: float) -> "np.ndarray[Any, Any]":
    """Return filters (D, 2·D), a column each: eigenvectors by falling eigenvalue, and their negatives.

    An eigenvector's sign is arbitrary; here its largest weight is positive, whatever library found it.
    """
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(np.take_along_axis(vectors, largest[None], axis=0))
    scaled = vectors / np.sqrt(values + epsilon)
    return np.concatenate([scaled, -scaled], axis=1)
