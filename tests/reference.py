"""What every layer means, in plain loops over single numbers: slow and obviously right.

Nothing here uses the package. Images are (N, H, W, C), weights (KH, KW, C/groups, F); padding is written out.
"""

import math

import numpy as np


def conv2d(x, weight, bias=None, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    N, H, W, C = x.shape
    KH, KW, CG, F = weight.shape
    (top, bottom), (left, right) = padding
    OH = (H + top + bottom - (KH - 1) * dilation[0] - 1) // strides[0] + 1
    OW = (W + left + right - (KW - 1) * dilation[1] - 1) // strides[1] + 1
    assert C // groups == CG
    y = np.zeros((N, OH, OW, F))
    for n, oh, ow, f in np.ndindex(N, OH, OW, F):
        group = f // (F // groups)
        total = 0.0 if bias is None else bias[f]
        for i, j, c in np.ndindex(KH, KW, CG):
            h = oh * strides[0] - top + i * dilation[0]
            w = ow * strides[1] - left + j * dilation[1]
            if 0 <= h < H and 0 <= w < W:
                total += x[n, h, w, group * CG + c] * weight[i, j, c, f]
        y[n, oh, ow, f] = total
    return y


def pool2d(x, size, strides, padding, reduce):
    """Reduce the list of real elements that each window sees."""
    N, H, W, C = x.shape
    (top, bottom), (left, right) = padding
    OH = (H + top + bottom - size[0]) // strides[0] + 1
    OW = (W + left + right - size[1]) // strides[1] + 1
    y = np.zeros((N, OH, OW, C))
    for n, oh, ow, c in np.ndindex(N, OH, OW, C):
        seen = []
        for i, j in np.ndindex(*size):
            h, w = oh * strides[0] - top + i, ow * strides[1] - left + j
            if 0 <= h < H and 0 <= w < W:
                seen.append(x[n, h, w, c])
        y[n, oh, ow, c] = reduce(seen)
    return y


def mean(values):
    return math.fsum(values) / len(values)


def global_average(x):
    N, _, _, C = x.shape
    return np.array([[mean(x[n, :, :, c].ravel().tolist()) for c in range(C)] for n in range(N)])


def dense(x, weight, bias=None):
    y = np.zeros((len(x), weight.shape[1]))
    for n, k in np.ndindex(*y.shape):
        y[n, k] = sum(x[n, d] * weight[d, k] for d in range(x.shape[1])) + (0.0 if bias is None else bias[k])
    return y


def elementwise(function, x):
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        y[index] = function(float(x[index]))
    return y


def relu(value):
    return value if value > 0 else 0.0


def sigmoid(value):
    return 1.0 / (1.0 + math.exp(-value))


def gelu(value):
    return value * 0.5 * (1.0 + math.erf(value / math.sqrt(2.0)))


def flatten(x):
    return np.array([[x[n][index] for index in np.ndindex(*x.shape[1:])] for n in range(len(x))])


def pad_channels(x, before, after):
    y = np.zeros((*x.shape[:-1], before + x.shape[-1] + after))
    for index in np.ndindex(*x.shape):
        y[(*index[:-1], before + index[-1])] = x[index]
    return y


def softmax(x):
    y = np.zeros(x.shape)
    for n in range(len(x)):
        powers = [math.exp(value - max(x[n])) for value in x[n]]
        y[n] = [power / math.fsum(powers) for power in powers]
    return y


def channel_statistics(x):
    """Mean, biased variance and number of values of each channel."""
    channels = [x[..., c].ravel().tolist() for c in range(x.shape[-1])]
    means = [mean(values) for values in channels]
    variances = [mean([(v - m) ** 2 for v in values]) for values, m in zip(channels, means, strict=True)]
    return means, variances, len(channels[0])


def normalize(x, means, variances, scale, shift, epsilon):
    y = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        c = index[-1]
        y[index] = (x[index] - means[c]) / math.sqrt(variances[c] + epsilon) * scale[c] + shift[c]
    return y


def philox4x32(counter, key):
    """Philox4x32-10 (Salmon et al., 2011) on Python's own integers: four words from four counter words."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def random_words(key, counter, count):
    """The first words of the stream (key, counter)."""
    words = []
    for block in range(-(-count // 4)):
        low, high = block & 0xFFFFFFFF, block >> 32
        words += philox4x32((low, high, counter & 0xFFFFFFFF, counter >> 32), (key & 0xFFFFFFFF, key >> 32))
    return words[:count]


def dropout(x, rate, key, counter):
    words = random_words(key, counter, x.size)
    kept = [word < (1 - rate) * 2**32 for word in words]
    flat = [value / (1 - rate) if keep else 0.0 for value, keep in zip(x.ravel().tolist(), kept, strict=True)]
    return np.array(flat).reshape(x.shape)


def cross_entropy(probabilities, labels, smoothing=0.0):
    """The mean of −Σ t·log p for class numbers."""
    N, K = probabilities.shape
    total = 0.0
    for n, k in np.ndindex(N, K):
        target = (1.0 - smoothing) * (labels[n] == k) + smoothing / K
        total -= target * math.log(probabilities[n, k])
    return total / N
