"""A process that trains, and is interrupted by real signals at random moments: `python -m tests.interrupted`.

It says whether the weights are then, to the bit, those of as many steps without any interrupt, and whether
BLAS has its threads back.
"""

import random
import signal
import sys

import numpy as np

import gpucnn
from gpucnn import layers
from gpucnn.backends.numpy import blas, threads


def model(jit):
    """A network whose two slices meet, at a batch norm, forward and backward."""
    built = [layers.Conv2D(4, 3, padding="same"), layers.BatchNorm(), layers.ReLU(), layers.Flatten(), layers.Dense(3)]
    model = gpucnn.Model([*built, layers.Softmax()], (8, 8, 3), seed=1, backend="numpy")
    return model.compile(gpucnn.optimizers.SGD(0.01, momentum=0.9), jit=jit)


def main(count, seed, jit):
    gpucnn.set_num_threads(2)
    threads.MIN_SHARD_FLOPS = 1.0
    rng, numbers = random.Random(seed), np.random.default_rng(0)
    x, y = numbers.normal(size=(64, 8, 8, 3)).astype("float32"), numbers.integers(0, 3, 64)
    trained, whole = model(jit), model(jit)
    held = [library.get() for kind in blas._libraries() for library in kind]
    interrupts = []

    def interrupt(number, frame):
        interrupts.append(number)  # where Python ignores what a handler raises, in what a weak reference calls, say
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    for expected in range(count):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0003, 0.006))
            while len(interrupts) == expected:
                if rng.random() < 0.5:
                    trained.train_on_batch(x, y)
                else:
                    trained.fit(x, y, batch_size=64, shuffle=False, verbose=0)
        except KeyboardInterrupt:
            pass
    trained.train_on_batch(x, y)
    for _ in range(trained.optimizer.steps):
        whole.train_on_batch(x, y)
    same = all(np.array_equal(array, whole.state_dict()[path]) for path, array in trained.state_dict().items())
    given_back = held == [library.get() for kind in blas._libraries() for library in kind]
    print(f"{len(interrupts)} interrupts, the same bits {same}, BLAS given back {given_back}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "jit")
