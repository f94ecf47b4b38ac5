"""`gpucnn bench`: training and inference speed of named networks on this machine."""

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpucnn.backends import get_backend
from gpucnn.cli.common import console, say, working, write_json
from gpucnn.cli.options import BackendName, Json
from gpucnn.runs.benchmark import Timing, time_network

TIMED = ("lenet", "network-2", "network-3")


def bench(
    networks: Annotated[list[str] | None, typer.Argument(help=f"Named networks. Default: {', '.join(TIMED)}.")] = None,
    backend: BackendName = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 128,
    seconds: Annotated[float, typer.Option(min=0.1, help="Approximate time budget in seconds.")] = 60.0,
    output: Json = None,
) -> None:
    """Time training steps and inference, and compare with the reference implementation in plain NumPy."""
    chosen = get_backend(backend)
    names = networks or list(TIMED)
    say((chosen.describe(), "bold"), f", batches of {batch_size} random images")
    table = Table(box=SIMPLE_HEAD)
    table.add_column("network")
    for heading in ("train images/s", "ms/step", "GFLOP/s", "inference images/s", "speed-up"):
        table.add_column(heading, justify="right")
    timings = []
    for name in names:
        with working(f"timing {name}"):
            timing = time_network(name, chosen, batch_size, seconds / len(names))
        timings.append(timing)
        table.add_row(*_cells(timing))
    console.print(table)
    remark = "medians; GFLOP/s counts the products of the forward and backward pass; speed-up is that of a training "
    console.print(remark + "step over the reference implementation in plain NumPy", style="dim")
    if output is not None:
        listed = [vars(timing) for timing in timings]
        write_json(output, {"backend": chosen.describe(), "batch_size": batch_size, "timings": listed})


def _cells(timing: Timing) -> list[str]:
    return [
        timing.network,
        f"{timing.batch_size / timing.train_seconds:,.0f}",
        f"{timing.train_seconds * 1e3:,.2f}",
        f"{timing.train_flops / timing.train_seconds / 1e9:,.1f}",
        f"{timing.batch_size / timing.inference_seconds:,.0f}",
        f"{timing.reference_train_seconds / timing.train_seconds:,.1f}",
    ]
