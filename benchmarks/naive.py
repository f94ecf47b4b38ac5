"""A convolutional network as a first from-scratch project writes it: loops over images, filters and positions.

The peer that shows the distance. It trains LeNet correctly (its gradients are checked in
tests/tools/test_benchmarks.py), one image at a time, with NumPy only inside the innermost window.
"""

import numpy as np


class Convolution:
    def __init__(self, filters, size, padding, channels, rng):
        self.padding = padding
        self.weight = rng.normal(0, np.sqrt(2 / (size * size * channels)), (filters, size, size, channels))
        self.bias = np.zeros(filters)

    def forward(self, image):
        p = self.padding
        self.image = np.pad(image, ((p, p), (p, p), (0, 0)))
        F, size = self.weight.shape[:2]
        OH, OW = self.image.shape[0] - size + 1, self.image.shape[1] - size + 1
        out = np.zeros((OH, OW, F))
        for f in range(F):
            for i in range(OH):
                for j in range(OW):
                    out[i, j, f] = np.sum(self.image[i : i + size, j : j + size] * self.weight[f]) + self.bias[f]
        return out

    def backward(self, dout):
        size, p = self.weight.shape[1], self.padding
        self.dweight, self.dbias = np.zeros_like(self.weight), dout.sum(axis=(0, 1))
        dimage = np.zeros_like(self.image)
        for f in range(len(self.weight)):
            for i in range(dout.shape[0]):
                for j in range(dout.shape[1]):
                    self.dweight[f] += dout[i, j, f] * self.image[i : i + size, j : j + size]
                    dimage[i : i + size, j : j + size] += dout[i, j, f] * self.weight[f]
        return dimage[p : dimage.shape[0] - p, p : dimage.shape[1] - p]


class AveragePooling:
    def forward(self, image):
        H, W, C = image.shape
        out = np.zeros((H // 2, W // 2, C))
        for i in range(H // 2):
            for j in range(W // 2):
                out[i, j] = image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(0, 1))
        return out

    def backward(self, dout):
        return np.repeat(np.repeat(dout, 2, axis=0), 2, axis=1) / 4


class Activation:
    def forward(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, dout):
        return dout * self.positive


class Flattening:
    def forward(self, x):
        self.shape = x.shape
        return x.reshape(-1)

    def backward(self, dout):
        return dout.reshape(self.shape)


class FullyConnected:
    def __init__(self, inputs, units, rng):
        self.weight = rng.normal(0, np.sqrt(2 / inputs), (inputs, units))
        self.bias = np.zeros(units)

    def forward(self, x):
        self.x = x
        return x @ self.weight + self.bias

    def backward(self, dout):
        self.dweight, self.dbias = np.outer(self.x, dout), dout
        return self.weight @ dout


class NaiveLeNet:
    """LeNet, trained by plain gradient descent with the mean gradient of a batch."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.layers = [
            *[Convolution(6, 5, 2, 1, rng), Activation(), AveragePooling()],
            *[Convolution(16, 5, 0, 6, rng), Activation(), AveragePooling(), Flattening()],
            *[FullyConnected(400, 120, rng), Activation(), FullyConnected(120, 84, rng), Activation()],
            FullyConnected(84, 10, rng),
        ]

    def forward(self, image):
        for layer in self.layers:
            image = layer.forward(image)
        powers = np.exp(image - image.max())
        return powers / powers.sum()

    def step(self, images, labels, rate):
        trained = [layer for layer in self.layers if hasattr(layer, "weight")]
        sums = [[np.zeros_like(layer.weight), np.zeros_like(layer.bias)] for layer in trained]
        loss = 0.0
        for image, label in zip(images, labels, strict=True):
            probabilities = self.forward(image)
            loss -= np.log(probabilities[label])
            dout = probabilities.copy()
            dout[label] -= 1
            for layer in reversed(self.layers):
                dout = layer.backward(dout)
            for layer, (dweight, dbias) in zip(trained, sums, strict=True):
                dweight += layer.dweight
                dbias += layer.dbias
        for layer, (dweight, dbias) in zip(trained, sums, strict=True):
            layer.weight -= rate * dweight / len(images)
            layer.bias -= rate * dbias / len(images)
        return loss / len(images)
