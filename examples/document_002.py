"""The script of the project MNIST-CNN, a LeNet from scratch, with its own names: only the imports are gpucnn's.

python examples/document_002.py            three epochs at a constant rate of 0.5 on real MNIST, as in the project
python examples/document_002.py --smoke    a few seconds on drawn digits, to see that everything runs

The project took 2.1 hours for it, and its third epoch reached 84 % on average over nine runs. At so high a rate some
runs never learn.
"""

import argparse
import tempfile
from pathlib import Path

from gpucnn import datasets
from gpucnn.compat.mnist_cnn import (
    AccuracyCategorical,
    ActivationReLU,
    ActivationSoftmax,
    AveragePooling,
    ConvolutionLayer,
    DenseLayer,
    Flatten,
    LossCategoricalCrossEntropy,
    Model,
    OptimizerSGD,
    StatisticsTracker,
    formatData,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="a few seconds on synthetic digits")
parser.add_argument("--backend", default="auto", help="auto, numpy or cupy")
options = parser.parse_args()

# the project reads its four files with load_mnist_images and load_mnist_labels; here they are looked for, too
data = datasets.synthetic_digits(4000) if options.smoke else datasets.mnist()
train_images, train_labels = data[0][0][..., 0], data[0][1]
test_images, test_labels = data[1][0][..., 0], data[1][1]
X_train, X_test, train_labels, test_labels = formatData(train_images, test_images, train_labels, test_labels)

folder = Path(tempfile.mkdtemp(prefix="gpucnn-"))
stats = StatisticsTracker("FullNetwork", folder / "full_network_stats.json")
model = Model(stats, backend=options.backend)

model.add(ConvolutionLayer(depth=6, kernel_size=(5, 5), padding="same", input_size=(28, 28, 1)))
model.add(ActivationReLU())
model.add(AveragePooling())
model.add(ConvolutionLayer(depth=16, kernel_size=(5, 5), input_size=(14, 14, 6)))
model.add(ActivationReLU())
model.add(AveragePooling())

model.add(Flatten())

model.add(DenseLayer(400, 120))
model.add(ActivationReLU())
model.add(DenseLayer(120, 84))
model.add(ActivationReLU())
model.add(DenseLayer(84, 10))
model.add(ActivationSoftmax())

model.set(
    loss=LossCategoricalCrossEntropy(),
    optimizer=OptimizerSGD(learning_rate=0.1 if options.smoke else 0.5),  # with few digits 0.5 is too much
    accuracy=AccuracyCategorical(),
)
model.finalize()
model.train(
    X_train, train_labels, epochs=2 if options.smoke else 3, print_every=64, batch_size=32 if options.smoke else 128
)
model.validate(validation_data=(X_test, test_labels), batch_size=128, print_every=64)

# what it became is a model like any other
print(f"test accuracy {100 * model.network.evaluate(X_test, test_labels)['accuracy']:.2f} %")
print((folder / "full_network_stats.txt").read_text(encoding="utf-8"))
