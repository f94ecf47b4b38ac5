"""`gpucnn bench`: how fast this machine trains the named networks, in a minute."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpucnn.backends import get_backend
from gpucnn.cli.common import console, say, working
from gpucnn.runs.benchmark import Timing, time_network

TIMED = ("lenet", "network-2", "network-3")


def bench(
    networks: Annotated[
        list[str] | None, typer.Argument(help="Their names. Without any: " + ", ".join(TIMED) + ".")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, cupy or cupy:N.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long it may take in all, about.")] = 60.0,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Time training steps and inference, beside the reference kernels that every backend is checked against."""
    chosen = get_backend(backend)
    names = networks or list(TIMED)
    say((chosen.describe(), "bold"), f", batches of {batch_size} random images")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("network")
    for heading in ("train images/s", "ms a step", "GFLOP/s", "inference images/s", "× reference"):
        table.add_column(heading, justify="right")
    timings = []
    for name in names:
        with working(f"timing {name}"):
            timing = time_network(name, chosen, batch_size, seconds / len(names))
        timings.append(timing)
        table.add_row(*_cells(timing))
    console.print(table)
    remark = "medians; GFLOP/s counts forward and backward products; × reference is training speed over the "
    console.print(remark + "plain text of the kernels in NumPy, as in a textbook", style="dim")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        report = {"backend": chosen.describe(), "batch_size": batch_size, "timings": [vars(t) for t in timings]}
        output.write_text(json.dumps(report, indent=1) + "\n")
        say(f"figures in {output}")


def _cells(timing: Timing) -> list[str]:
    return [
        timing.network,
        f"{timing.batch_size / timing.train_seconds:,.0f}",
        f"{timing.train_seconds * 1e3:,.2f}",
        f"{timing.train_flops / timing.train_seconds / 1e9:,.1f}",
        f"{timing.batch_size / timing.inference_seconds:,.0f}",
        f"{timing.reference_train_seconds / timing.train_seconds:,.1f}",
    ]
