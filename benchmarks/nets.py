"""The networks that are timed, each as a list of plain words from which gpucnn, PyTorch and the naive peer are built.

("conv", filters, kernel, padding)   with bias        ("conv_bn", filters, stride)   3×3 same, no bias, BN, ReLU
("relu",) ("max",) ("average",)      2×2 pooling      ("block", filters, stride)     two conv_bn with a shortcut
("flatten",) ("global_average",)                      ("dense", units)

Besides those with a name, `plain-SIDE-CHANNELS` is a network of three such convolutions on images of that side, for
looking at how times grow.
"""

IMAGE = {"lenet": (28, 28, 1), "net2": (28, 28, 1), "net3": (32, 32, 3), "vgg": (32, 32, 3), "resnet20": (32, 32, 3)}

RELU, MAX, AVERAGE, FLATTEN = ("relu",), ("max",), ("average",), ("flatten",)

NETS = {
    "lenet": [
        *[("conv", 6, 5, 2), RELU, AVERAGE, ("conv", 16, 5, 0), RELU, AVERAGE, FLATTEN],
        *[("dense", 120), RELU, ("dense", 84), RELU, ("dense", 10)],
    ],
    "net2": [
        *[("conv", 16, 3, 0), RELU, MAX, ("conv", 16, 3, 0), RELU, MAX, FLATTEN],
        *[("dense", 64), RELU, ("dense", 10)],
    ],
    "net3": [
        *[("conv", 8, 3, 1), RELU, MAX, ("conv", 16, 3, 1), RELU, ("conv", 32, 3, 1), RELU, MAX, FLATTEN],
        *[("dense", 64), RELU, ("dense", 10)],
    ],
    "vgg": [
        *[("conv_bn", 32, 1), ("conv_bn", 32, 1), MAX, ("conv_bn", 64, 1), ("conv_bn", 64, 1), MAX],
        *[("conv_bn", 128, 1), ("conv_bn", 128, 1), MAX, FLATTEN, ("dense", 128), RELU, ("dense", 10)],
    ],
    "resnet20": [
        ("conv_bn", 16, 1),
        *[("block", 16, 1)] * 3,
        *[("block", 32, 2), ("block", 32, 1), ("block", 32, 1)],
        *[("block", 64, 2), ("block", 64, 1), ("block", 64, 1)],
        *[("global_average",), ("dense", 10)],
    ],
}


def words_of(name):
    """Return a network as a list of words."""
    if name in NETS:
        return NETS[name]
    _, _, channels = name.split("-")
    return [*[("conv_bn", int(channels), 1)] * 3, ("global_average",), ("dense", 10)]


def image_of(name):
    """Return the shape of a network's images."""
    if name in IMAGE:
        return IMAGE[name]
    _, side, channels = name.split("-")
    return int(side), int(side), int(channels)


def gpucnn_model(name, backend):
    """Return the network as a compiled gpucnn model."""
    import gpucnn
    from gpucnn import layers as L

    def conv_bn(filters, stride, relu=True):
        made = [L.Conv2D(filters, 3, strides=stride, padding=1, use_bias=False), L.BatchNorm()]
        return [*made, L.ReLU()] if relu else made

    def block(channels, filters, stride):
        same = channels == filters and stride == 1
        shortcut = None if same else [L.Conv2D(filters, 1, strides=stride, use_bias=False), L.BatchNorm()]
        main = [*conv_bn(filters, stride), *conv_bn(filters, 1, relu=False)]
        return [L.Residual(main, shortcut), L.ReLU()]

    made, channels = [], image_of(name)[-1]
    for word, *numbers in words_of(name):
        if word == "conv":
            made.append(L.Conv2D(numbers[0], numbers[1], padding=numbers[2]))
        elif word == "conv_bn":
            made += conv_bn(*numbers)
        elif word == "block":
            made += block(channels, *numbers)
        elif word == "dense":
            made.append(L.Dense(numbers[0]))
        else:
            kinds = {"relu": L.ReLU, "max": L.MaxPool2D, "average": L.AveragePool2D, "flatten": L.Flatten}
            made.append({**kinds, "global_average": L.GlobalAveragePool2D}[word]())
        channels = numbers[0] if numbers else channels
    model = gpucnn.Model([*made, L.Softmax()], image_of(name), backend=backend)
    return model.compile(gpucnn.optimizers.SGD(0.01, momentum=0.9), "categorical_crossentropy")


def torch_model(name):
    """Return the network as a PyTorch module."""
    from torch import nn

    def conv_bn(channels, filters, stride, relu=True):
        made = [nn.Conv2d(channels, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters)]
        return [*made, nn.ReLU()] if relu else made

    class Block(nn.Module):
        def __init__(self, channels, filters, stride):
            super().__init__()
            self.main = nn.Sequential(*conv_bn(channels, filters, stride), *conv_bn(filters, filters, 1, relu=False))
            same = channels == filters and stride == 1
            project = [nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)]
            self.shortcut = nn.Identity() if same else nn.Sequential(*project)

        def forward(self, x):
            return nn.functional.relu(self.main(x) + self.shortcut(x))

    made = []
    H, _, channels = image_of(name)
    for word, *numbers in words_of(name):
        if word == "conv":
            filters, size, padding = numbers
            made.append(nn.Conv2d(channels, filters, size, padding=padding))
            H, channels = H + 2 * padding - size + 1, filters
        elif word == "conv_bn":
            made += conv_bn(channels, *numbers)
            channels = numbers[0]
        elif word == "block":
            made.append(Block(channels, *numbers))
            H, channels = H // numbers[1], numbers[0]
        elif word == "dense":
            made.append(nn.Linear(channels, numbers[0]))
            channels = numbers[0]
        elif word == "flatten":
            made.append(nn.Flatten())
            channels *= H * H
        elif word == "global_average":
            made += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        elif word == "relu":
            made.append(nn.ReLU())
        else:
            made.append(nn.MaxPool2d(2) if word == "max" else nn.AvgPool2d(2))
            H //= 2
    return nn.Sequential(*made)
