"""`gpucnn profile`: the time of a training step, by layer."""

from typing import Annotated

import typer

from gpucnn.cli.common import console, network_or_model, write_json
from gpucnn.cli.options import Json, NamedNetwork, OtherModel
from gpucnn.engine.profiling import random_batch


def profile(
    network: NamedNetwork = None,
    model: OtherModel = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, reference, cupy or cupy:N.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Number of random inputs per pass.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Number of timed passes, after two warm-up passes.")] = 10,
    output: Json = None,
) -> None:
    """Time the forward and backward pass of every layer, with FLOPs, memory and throughput."""
    chosen = network_or_model(network, model, backend)
    result = chosen.profile(*random_batch(chosen, batch_size), repeats=repeats)
    console.print(result.table())
    if output is not None:
        write_json(output, result.as_data())
