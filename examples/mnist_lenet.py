"""LeNet on MNIST: define a network, train it, look at it, save it, and load it on another backend.

python examples/mnist_lenet.py            three epochs on real MNIST, about 99 % on the test images
python examples/mnist_lenet.py --smoke    a few seconds on drawn digits, to see that everything runs
"""

import argparse
import tempfile
from pathlib import Path

import gpucnn
from gpucnn import datasets, layers, losses, optimizers, plots, schedules

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--smoke", action="store_true", help="a few seconds on synthetic digits")
parser.add_argument("--backend", default="auto", help="auto, numpy or cupy")
options = parser.parse_args()

# uint8 images (N, 28, 28, 1) and class numbers (N,), as they are: the model scales pixels to 0 … 1 itself
data = datasets.synthetic_digits(2000) if options.smoke else datasets.mnist()
(x_train, y_train), (x_test, y_test) = data

# the network; `gpucnn.networks.lenet()` is the same one, ready to train
model = gpucnn.Model(
    [
        layers.Normalization().adapt(x_train),
        layers.Conv2D(6, 5, padding="same"),
        layers.ReLU(),
        layers.AveragePool2D(2),
        layers.Conv2D(16, 5),
        layers.ReLU(),
        layers.AveragePool2D(2),
        layers.Flatten(),
        layers.Dense(120),
        layers.ReLU(),
        layers.Dense(84),
        layers.ReLU(),
        layers.Dense(10),
        layers.Softmax(),
    ],
    input_shape=(28, 28, 1),
    seed=0,
    backend=options.backend,
)
model.compile(
    optimizer=optimizers.SGD(schedules.OneCycle(0.1), momentum=0.9),
    loss=losses.CategoricalCrossEntropy(),
    metrics=["accuracy"],
)
model.summary()

history = model.fit(
    x_train, y_train, epochs=1 if options.smoke else 3, batch_size=128, validation_data=(x_test, y_test)
)
print(f"test accuracy {100 * model.evaluate(x_test, y_test)['accuracy']:.2f} %")
print(model.profile(x_train[:128], y_train[:128], repeats=3))

folder = Path(tempfile.mkdtemp(prefix="gpucnn-"))
plots.history(history, folder / "history.png")
model.save(folder / "lenet.safetensors")
loaded = gpucnn.load(folder / "lenet.safetensors", backend="numpy")
digits = loaded.predict(x_test[:10]).argmax(axis=1)
print(f"the first ten test images are {y_test[:10].tolist()}, the loaded model says {digits.tolist()}")
print(f"picture and weights are in {folder}")
