"""A small network on CIFAR-10, written by hand: batch norm, a residual branch, dropout, and a custom callback.

python examples/cifar10_small.py            three epochs on real CIFAR-10
python examples/cifar10_small.py --smoke    a few seconds on coloured noise, to see that everything runs
"""

import argparse

import numpy as np

import gpucnn
from gpucnn import callbacks, datasets, layers, losses, optimizers, schedules

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="a few seconds on coloured noise")
parser.add_argument("--backend", default="auto", help="auto, numpy or cupy")
options = parser.parse_args()


def coloured_noise(count, seed):
    """Return uint8 images whose class is the brightest of their three channels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    images = generator.integers(0, 156, (count, 32, 32, 3))
    images[np.arange(count), :, :, labels] += 100
    return images.astype(np.uint8), labels


if options.smoke:
    (x_train, y_train), (x_test, y_test) = coloured_noise(512, seed=0), coloured_noise(128, seed=1)
else:
    (x_train, y_train), (x_test, y_test) = datasets.cifar10()


def block(filters):
    """Return a convolution with batch norm and ReLU; the shift of the batch norm serves as its bias."""
    return [layers.Conv2D(filters, 3, padding="same", use_bias=False), layers.BatchNorm(), layers.ReLU()]


class Stopwatch(callbacks.Callback):
    """Says after each epoch how many images passed a second."""

    def on_epoch_end(self, model, epoch, logs):
        print(f"  {len(x_train) / logs['seconds']:,.0f} images/s on {model.backend.name}")


model = gpucnn.Model(
    [
        layers.Normalization().adapt(x_train),
        *block(16),
        layers.MaxPool2D(2),
        *block(32),
        layers.Residual([*block(32)]),  # x + block(x): the branch has only to learn what is missing
        layers.MaxPool2D(2),
        *block(64),
        layers.GlobalAveragePool2D(),
        layers.Dropout(0.1),
        layers.Dense(10),
        layers.Softmax(),
    ],
    input_shape=(32, 32, 3),
    backend=options.backend,
)
epochs = 1 if options.smoke else 3
model.compile(
    optimizer=optimizers.AdamW(schedules.WarmUp(schedules.Cosine(0.003), epochs=0.3), weight_decay=0.01),
    loss=losses.CategoricalCrossEntropy(label_smoothing=0.1),
    metrics=["accuracy"],
)
model.summary()
model.fit(x_train, y_train, epochs=epochs, batch_size=64, validation_data=(x_test, y_test), callbacks=[Stopwatch()])
print(f"test accuracy {100 * model.evaluate(x_test, y_test)['accuracy']:.2f} %")
