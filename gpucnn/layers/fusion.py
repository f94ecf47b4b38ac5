"""Which neighbours in a `Sequential` compute together: its plans, and a convolution with a folded batch norm."""

from itertools import pairwise
from typing import Any

from gpucnn.backends import Array
from gpucnn.layers.activation import ReLU
from gpucnn.layers.base import Backward, Layer
from gpucnn.layers.conv import Conv2D
from gpucnn.layers.norm import BatchNorm
from gpucnn.layers.pool import MaxPool2D

Plan = list[tuple[int, dict[str, Any]]]  # places of layers in the order in which they compute, and options


def fuse(layers: list[Layer], inference: bool = False) -> Plan:
    """Return the places of the layers in the order in which they compute, with options for their forward passes.

    A ReLU before a max pooling changes places with it: the largest element is the same either way, so are all
    gradients, and fewer elements are left to clamp. A layer that supports it applies the ReLU behind it. And for
    inference a convolution folds the batch norm behind it, whose place is then one of its options.
    """
    order = list(range(len(layers)))
    for first, second in pairwise(range(len(layers))):
        if type(layers[first]) is ReLU and type(layers[second]) is MaxPool2D:
            order[first], order[second] = second, first
    plan: Plan = []
    for place in order:
        layer, (before, options) = layers[place], plan[-1] if plan else (None, {})
        if before is None:
            plan.append((place, {}))
        elif type(layer) is ReLU and layers[before].supports_fused_relu and "fused_relu" not in options:
            plan[-1] = before, options | {"fused_relu": True}
        elif inference and (type(layers[before]), type(layer), options) == (Conv2D, BatchNorm, {}):
            plan[-1] = before, {"folded_norm": place}
        else:
            plan.append((place, {}))
    return plan


class FoldedConv2D:
    """A convolution and the batch norm behind it, in inference, as one convolution.

    The norm multiplies each channel by a factor and adds an offset. Multiplying the weight instead saves a pass over
    the images. The backward pass, which is rare here, runs both layers again, unfolded.
    """

    def __init__(self, convolution: Conv2D, norm: BatchNorm) -> None:
        self.convolution, self.norm = convolution, norm

    def forward(
        self, x: Array, *, train: bool, need_dx: bool = True, fused_relu: bool = False
    ) -> tuple[Array, Backward]:
        """Return the norm's y and the backward function of both layers."""
        convolution, norm = self.convolution, self.norm
        factor, offset = norm.scale_and_offset()
        if convolution.bias:
            offset = offset + factor * convolution.bias.value
        weight = convolution.weight.value * factor
        y = convolution.backend.conv2d(x, weight, offset, convolution.window, convolution.groups, fused_relu)

        def backward(dy: Array) -> Array:
            unfolded, convolution_backward = convolution.forward(x, train=False, need_dx=need_dx)
            _, norm_backward = norm.forward(unfolded, train=False, fused_relu=fused_relu)
            return convolution_backward(norm_backward(dy))

        return y, backward
