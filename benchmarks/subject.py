"""One subject of a benchmark in a separate process: builds a network, then times what it is told on standard input.

    python -m benchmarks.subject SUBJECT NET BATCH THREADS

Each line it reads is `train K` or `infer K`; it answers with one line of JSON: K times in seconds, and the peak memory
of the process so far in MB. Subjects: gpucnn, reference, torch, torch_channels_last, naive.
"""

import json
import resource
import sys
import time

import numpy as np

from benchmarks.nets import gpucnn_model, image_of, torch_model


def data(net, batch):
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, *image_of(net))).astype(np.float32), rng.integers(0, 10, batch)


def gpucnn_subject(kind, net, batch, threads):
    """Return a train step and an inference of gpucnn, on the NumPy backend or on the reference kernels."""
    from gpucnn.backends import Backend, get_backend

    backend = get_backend("numpy") if kind == "gpucnn" else Backend()
    model = gpucnn_model(net, backend)
    x, y = data(net, batch)
    return lambda: model.train_step(x, y, 0.01), lambda: model.forward(x)[0]


def torch_subject(kind, net, batch, threads):
    """Return a train step and an inference of PyTorch, channels first or last."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torch_model(net)
    images, labels = data(net, batch)
    x, y = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    if kind == "torch_channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def train():
        model.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def infer():
        model.eval()
        with torch.no_grad():
            model(x)

    return train, infer


def naive_subject(kind, net, batch, threads):
    """Return a train step and an inference of the naive peer, which knows LeNet alone."""
    from benchmarks.naive import NaiveLeNet

    assert net == "lenet"
    model = NaiveLeNet()
    x, y = data(net, batch)
    return lambda: model.step(x, y, 0.01), lambda: [model.forward(image) for image in x]


SUBJECTS = {
    "gpucnn": gpucnn_subject,
    "reference": gpucnn_subject,
    "torch": torch_subject,
    "torch_channels_last": torch_subject,
    "naive": naive_subject,
}


def main():
    kind, net, batch, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    train, infer = SUBJECTS[kind](kind, net, batch, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        what, count = line.split()
        call = train if what == "train" else infer
        seconds = []
        for _ in range(int(count)):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "megabytes": megabytes}), flush=True)


if __name__ == "__main__":
    main()
