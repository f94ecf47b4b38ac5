"""Deeper networks trained on real CIFAR-10: test accuracy after each epoch, and seconds; airbench94 by PyTorch as well.

    python -m benchmarks.cifar10 airbench94                  one of gpucnn's recipes, such as network-4 or resnet20
    python -m benchmarks.cifar10 airbench94 --peer torch     the same recipe in PyTorch
    python -m benchmarks.cifar10 airbench94 --peer both      both, an epoch of one and an epoch of the other in turns
    python -m benchmarks.cifar10 resnet20 --epochs 15
    python -m benchmarks.cifar10 --draw                      draws what was trained: docs/pictures/cifar10.png

Each training writes results/cifar10_NAME_PEER.json. Run one after the other on a quiet machine: a run takes all cores.
A machine whose speed depends on what its host does besides is fair only to interleaved runs: each is a process of its
own, and waits while the other trains an epoch. Seconds are those of training alone; the test images are scored outside
of them. PyTorch computes in channels-last and float32, the better of its formats in `benchmarks.cpu`, with the malloc
settings of that, which are set for it here.

The airbench94 recipe is Jordan's, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), written from its
description; `gpucnn.networks.airbench94` states it.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.cpu import TUNED, machine
from gpucnn.callbacks import Callback

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "cifar10.png"
MILESTONES = (80, 90, 94)  # per cent, lines of the picture
BATCH, SMOOTHING, MOMENTUM = 1024, 0.2, 0.85
RATE = 11.5 / (1024 * (1 + 1 / (1 - MOMENTUM)))  # of the summed loss
DECAY = 0.0153 * BATCH / (1024 * (1 + 1 / (1 - MOMENTUM)))  # of the values, a step at the highest rate
SHIFT_SCALE, BIAS_EPOCHS, LOOK_AHEAD = 64.0, 3, 5


WAITING = "waiting for its turn"


class Turns(Callback):
    """Waits before each epoch until the process that began this one says that it is its turn."""

    def __init__(self, wanted):
        self.wanted = wanted

    def on_epoch_begin(self, model, epoch):
        """Say so, and wait."""
        if self.wanted:
            print(WAITING, flush=True)
            sys.stdin.readline()


def by_gpucnn(name, data, epochs, threads, seed, turns):
    """Return the history of test accuracies, and the last with and without several views."""
    import gpucnn
    from gpucnn import networks

    gpucnn.set_num_threads(threads)
    (x, y), test = data
    model = networks.by_name(name)(seed=seed, backend="numpy")
    history = model.fit(x, y, epochs=epochs, validation_data=test, callbacks=[turns], verbose=2)
    return {
        "seconds": np.cumsum(history["seconds"]).tolist(),
        "accuracy": history["val_accuracy"],
        "plain": model.evaluate(*test)["accuracy"],
        "views": model.evaluate(*test, tta="flip+shift")["accuracy"],
    }


def by_torch(data, epochs, threads, seed, turns):
    """Return the same of airbench94 in PyTorch."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    (x, y), (x_test, y_test) = data
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]))

    def prepared(images):
        floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return ((floats - mean) / deviation).contiguous(memory_format=torch.channels_last)

    x, x_test, y, y_test = prepared(x), prepared(x_test), torch.from_numpy(y).long(), torch.from_numpy(y_test).long()
    net = torch_network(x[:5000]).to(memory_format=torch.channels_last)
    steps_an_epoch = len(x) // BATCH + (len(x) % BATCH > 0)
    total = math.ceil(epochs * steps_an_epoch)
    shifts = [p for name, p in net.named_parameters() if name.endswith("shift")]
    others = [p for name, p in net.named_parameters() if not name.endswith("shift") and p.requires_grad]
    optimizer = torch.optim.SGD(
        [
            {"params": shifts, "lr": RATE * SHIFT_SCALE, "weight_decay": DECAY / (RATE * SHIFT_SCALE)},
            {"params": others, "lr": RATE, "weight_decay": DECAY / RATE},
        ],
        momentum=MOMENTUM,
        nesterov=True,
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    slow = {name: value.clone() for name, value in net.state_dict().items()}
    mirrored = torch.rand(len(x)) < 0.5
    found = {"seconds": [], "accuracy": []}
    step, spent = 0, 0.0
    while step < total:
        epoch = step // steps_an_epoch
        turns.on_epoch_begin(None, epoch)
        started = time.perf_counter()
        net.train()
        net[0].bias.requires_grad_(epoch < BIAS_EPOCHS)
        flipped = mirrored if epoch % 2 == 0 else ~mirrored
        for part in torch.randperm(len(x)).split(BATCH):
            if step == total:
                break
            images = augmented(x[part], flipped[part])
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * triangle(step / total)
            logits = net(images)
            loss = torch.nn.functional.cross_entropy(logits, y[part], label_smoothing=SMOOTHING, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if step % LOOK_AHEAD == 0:
                pull(slow, net, 0.95**LOOK_AHEAD * (step / total) ** 3)
        if step == total:
            pull(slow, net, 1.0)
        spent += time.perf_counter() - started
        found["seconds"].append(spent)
        found["accuracy"].append(share_right(net, x_test, y_test, views=False))
        print(epoch + 1, f"{spent:.0f} s", f"{found['accuracy'][-1]:.4f}", flush=True)
    return found | {"plain": found["accuracy"][-1], "views": share_right(net, x_test, y_test, views=True)}


def triangle(done):
    """Return the fraction of the peak rate at a fraction of the training."""
    return 0.2 + 0.8 * done / 0.23 if done < 0.23 else 1.0 + (0.07 - 1.0) * (done - 0.23) / (1 - 0.23)


def torch_network(images):
    """Return the network; its first convolution is whitened by images (N, 3, 32, 32)."""
    import torch
    from torch import nn

    class Norm(nn.Module):
        """Batch norm with a scale of 1 and a shift that is trained."""

        def __init__(self, channels):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(channels))
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("var", torch.ones(channels))

        def forward(self, x):
            return nn.functional.batch_norm(x, self.mean, self.var, None, self.shift, self.training, 0.4, 1e-12)

    def conv(before, filters):
        made = nn.Conv2d(before, filters, 3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.uniform_(made.weight, -1 / math.sqrt(9 * before), 1 / math.sqrt(9 * before))
            nn.init.dirac_(made.weight[:before])
        return made

    first = nn.Conv2d(3, 24, 2)
    with torch.no_grad():
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T.cov())
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2).float()
        first.weight[:] = torch.cat([filters, -filters])
    first.weight.requires_grad_(False)
    layers, before = [first, nn.GELU()], 24
    for width in (64, 256, 256):
        layers += [conv(before, width), nn.MaxPool2d(2), Norm(width), nn.GELU()]
        layers += [conv(width, width), Norm(width), nn.GELU()]
        before = width
    head = nn.Linear(256, 10, bias=False)

    class Divided(nn.Module):
        def forward(self, x):
            return x / 9

    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), head, Divided())


def augmented(images, flipped):
    """Return images mirrored where they are to be, and moved by up to two pixels, reflected at the edge."""
    import torch

    images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    padded = torch.nn.functional.pad(images, (2,) * 4, "reflect")
    moved = torch.empty_like(images)
    down, right = torch.randint(0, 5, (2, len(images)))
    for by_down in range(5):
        for by_right in range(5):
            chosen = (down == by_down) & (right == by_right)
            moved[chosen] = padded[chosen, :, by_down : by_down + 32, by_right : by_right + 32]
    return moved


def pull(slow, net, decay):
    """Move the slow weights towards the network's, which are set to them; statistics likewise."""
    import torch

    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                slow[name].lerp_(value, 1 - decay)
                value.copy_(slow[name])


def share_right(net, x, y, views):
    """Return the accuracy, with the mean of the logits of several views or without."""
    import torch

    net.eval()
    right = 0
    with torch.no_grad():
        for images, labels in zip(x.split(1000), y.split(1000), strict=True):
            logits = net(images)
            if views:
                padded = torch.nn.functional.pad(images, (1,) * 4, "reflect")
                logits = 0.5 * both(net, images)
                for corner in (0, 2):
                    logits += 0.25 * both(net, padded[:, :, corner : corner + 32, corner : corner + 32])
            right += int((logits.argmax(1) == labels).sum())
    return right / len(x)


def both(net, images):
    """Return the mean of the logits of images and their mirror images."""
    return 0.5 * (net(images) + net(images.flip(-1)))


def in_turns(arguments):
    """Train with both in turns, each in a separate process with some arguments."""
    running = {}
    for peer in ("gpucnn", "torch"):
        command = [sys.executable, "-m", "benchmarks.cifar10", *arguments, "--peer", peer, "--in-turns"]
        running[peer] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (TUNED if peer == "torch" else {}),
        )
        said(peer, running[peer])
    while running:
        for peer, process in list(running.items()):
            process.stdin.write("continue\n")
            process.stdin.flush()
            if not said(peer, process):
                del running[peer]


def said(peer, process):
    """Pass on what a process prints; return whether it waits for its turn then, or has ended."""
    for line in process.stdout:
        if line.strip() == WAITING:
            return True
        print(f"{peer:>6}  {line}", end="", flush=True)
    if process.wait():
        raise SystemExit(f"{peer} ended with {process.returncode}")
    return False


def draw():
    """Draw the test accuracy of everything that was trained, by the minutes that it took, and write the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    styles = {"gpucnn": "-", "torch": "--"}
    colours = {"airbench94": "#0072B2", "network-4": "#D55E00", "resnet20": "#009E73"}
    for path in sorted(RESULTS.glob("cifar10_*.json")):
        run = json.loads(path.read_text())
        minutes, right = [s / 60 for s in run["seconds"]], [100 * value for value in run["accuracy"]]
        peer = "PyTorch" if run["peer"] == "torch" else "gpucnn"
        label = f"{run['network']}, {peer}: {right[-1]:.1f} %, {100 * run['views']:.1f} % with several views"
        colour = colours.get(run["network"], "#888888")
        axes.plot(minutes, right, styles[run["peer"]], marker="o", markersize=3, color=colour, label=label)
    for level in MILESTONES:
        axes.axhline(level, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set(xlabel="minutes of training on 2 cores", ylabel="test accuracy (%)", ylim=(20, 97), xlim=(0, None))
    axes.legend(loc="lower right", fontsize="small")
    axes.set_title("CIFAR-10 on a CPU", fontsize="medium")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="airbench94")
    parser.add_argument("--peer", choices=["gpucnn", "torch", "both"], default="gpucnn")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=50_000, help="of the training set; fewer for a trial")
    parser.add_argument("--in-turns", action="store_true", help="wait for a line on standard input before each epoch")
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    if asked.draw:
        draw()
        return
    if asked.peer != "gpucnn" and asked.network != "airbench94":
        parser.error("PyTorch trains airbench94 alone")
    if asked.peer == "torch" and not os.environ.keys() >= TUNED.keys():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.cifar10", *sys.argv[1:]], os.environ | TUNED)
    if asked.peer == "both":
        at = sys.argv.index("--peer")
        in_turns(sys.argv[1:at] + sys.argv[at + 2 :])
        return
    from gpucnn import datasets, networks

    (x, y), test = datasets.cifar10()
    data = (x[: asked.images], y[: asked.images]), test
    epochs = asked.epochs or networks.by_name(asked.network).recipe.epochs
    if asked.peer == "torch":
        found = by_torch(data, epochs, asked.threads, asked.seed, Turns(asked.in_turns))
    else:
        found = by_gpucnn(asked.network, data, epochs, asked.threads, asked.seed, Turns(asked.in_turns))
    held = {"machine": machine(), "network": asked.network, "peer": asked.peer, "epochs": epochs}
    held |= {"threads": asked.threads, "seed": asked.seed}
    held |= {"in_turns": asked.in_turns, **found}
    if asked.images == 50_000:
        (RESULTS / f"cifar10_{asked.network}_{asked.peer}.json").write_text(json.dumps(held, indent=1) + "\n")
    print(json.dumps(held, indent=1))


if __name__ == "__main__":
    main()
