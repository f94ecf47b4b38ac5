"""Does the CPU engine train as well as the reference kernels? Test accuracy of the same networks, from several seeds.

    python -m benchmarks.accuracy                        lenet, network-2 and network-3, five seeds, three epochs each
    python -m benchmarks.accuracy --nets lenet --epochs 20

Both train by the network's own recipe, from the same first weights and in the same order of batches; what differs is
rounding. The real MNIST and CIFAR-10 are needed. Writes results/accuracy.json and a table.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

from benchmarks.cpu import machine
from gpucnn import datasets, networks
from gpucnn.backends import get_backend

RESULTS = Path(__file__).parent / "results"
BACKENDS = {"numpy": "engine", "reference": "reference"}


def train(net, backend, seed, epochs):
    """Return the test accuracy in per cent, and the seconds of the training."""
    network = networks.by_name(net)
    (x, y), test = datasets.cifar10() if network.recipe.data == "cifar10" else datasets.mnist()
    model = network(seed, backend=get_backend(backend))
    started = time.perf_counter()
    model.fit(x, y, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - started
    return 100 * model.evaluate(*test)["accuracy"], seconds


def table(rows, epochs):
    """Return the results as Markdown: means and standard deviations over seeds, and the difference of the means."""
    lines = [
        f"| net, {epochs} epochs | seeds | engine, % | reference, % | difference | its standard error |",
        "|---|---|---|---|---|---|",
    ]
    for net, row in rows.items():
        ours, theirs = row["engine"]["accuracies"], row["reference"]["accuracies"]
        spread = [statistics.stdev(accuracies) for accuracies in (ours, theirs)]
        error = math.hypot(*spread) / math.sqrt(len(ours))
        lines.append(
            f"| {net} | {len(ours)} | {statistics.mean(ours):.2f} ± {spread[0]:.2f} "
            f"| {statistics.mean(theirs):.2f} ± {spread[1]:.2f} "
            f"| {statistics.mean(ours) - statistics.mean(theirs):+.2f} | {error:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["lenet", "network-2", "network-3"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "accuracy.json")
    options = parser.parse_args()
    rows = {}
    for net in options.nets:
        rows[net] = {name: {"accuracies": [], "seconds": []} for name in BACKENDS.values()}
        for seed in range(options.seeds):
            for backend, name in BACKENDS.items():
                accuracy, seconds = train(net, backend, seed, options.epochs)
                rows[net][name]["accuracies"].append(round(accuracy, 3))
                rows[net][name]["seconds"].append(round(seconds, 1))
                print(f"{net}, seed {seed}, {name}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
    options.output.write_text(
        json.dumps({"machine": machine(), "epochs": options.epochs, "nets": rows}, indent=1) + "\n"
    )
    print(table(rows, options.epochs))


if __name__ == "__main__":
    main()
