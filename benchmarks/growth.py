"""How the time of a training step grows with the batch, the image's side and the channels, beside PyTorch: a picture.

    python -m benchmarks.growth                 a few minutes; writes results/growth.json and results/growth.png

The network is three 3×3 convolutions with batch norm and ReLU. It is measured as `cpu.py` measures, on all cores; the
line of PyTorch is the better of its tuned memory formats.
"""

import argparse
import json
from pathlib import Path

from benchmarks import cpu

SERIES = {  # what grows: its label, the values, and the network and batch for each
    "batch": ("images per batch (32×32, 32 channels)", [8, 16, 32, 64, 128, 256, 512], lambda v: ("plain-32-32", v)),
    "side": (
        "side of the image, pixels (32 images, 32 channels)",
        [8, 16, 32, 64, 128],
        lambda v: (f"plain-{v}-32", 32),
    ),
    "channels": ("channels (128 images of 16×16)", [4, 8, 16, 32, 64, 128], lambda v: (f"plain-16-{v}", 128)),
}
PEERS = ("gpucnn", "torch_tuned", "torch_channels_last_tuned")


def measure(threads, rounds, calls):
    """Return {what grows: [(value, gpucnn ms, PyTorch ms), …]}."""
    cpu.PEERS = {name: cpu.PEERS[name] for name in PEERS}
    figures = {}
    for what, (_, values, subject) in SERIES.items():
        figures[what] = []
        for value in values:
            net, batch = subject(value)
            rows = cpu.measure(net, batch, threads, rounds, calls)
            ours = rows["gpucnn"]["train_median_ms"]
            figures[what].append((value, ours, ours / cpu.ratio(rows, "train")))
            print(what, *(f"{number:.4g}" for number in figures[what][-1]), flush=True)
    return figures


def draw(figures, machine, threads):
    """Return a figure with a panel for each thing that grows; both axes are logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels = figure.subplots(1, len(figures))
    for panel, (what, rows) in zip(panels, figures.items(), strict=True):
        values, ours, torch = zip(*rows, strict=True)
        panel.plot(values, torch, "s--", color="#E69F00", label="PyTorch, tuned")
        panel.plot(values, ours, "o-", color="#0072B2", label="gpucnn")
        panel.set(xscale="log", yscale="log", xlabel=SERIES[what][0], ylabel="training step, ms")
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle(f"Three 3×3 convolutions with batch norm: {machine['cpu']}, {threads} threads, {machine['date']}")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--output", type=Path, default=cpu.RESULTS / "growth.json")
    options = parser.parse_args()
    figures = measure(options.threads, options.rounds, options.calls)
    machine = cpu.machine()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": machine, "threads": options.threads, "figures": figures}
    options.output.write_text(json.dumps(written, indent=1) + "\n")
    draw(figures, machine, options.threads).savefig(options.output.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
