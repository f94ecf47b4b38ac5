"""`gpucnn profile`: the time of a training step, by layer."""

import json
from typing import Annotated

import typer

from gpucnn.cli.common import console, open_model, say
from gpucnn.cli.options import Json, NamedNetwork, OtherModel
from gpucnn.engine.profiling import random_batch
from gpucnn.errors import ConfigurationError
from gpucnn.networks import by_name


def profile(
    network: NamedNetwork = None,
    model: OtherModel = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, reference, cupy or cupy:N.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Number of random inputs per pass.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Number of timed passes, after two warm-up passes.")] = 10,
    output: Json = None,
) -> None:
    """Time the forward and backward pass of every layer, with FLOPs, memory and throughput."""
    if network is not None and model is not None:
        raise ConfigurationError("--network and --model both select a network; pass one of them")
    chosen = by_name(network or "lenet")(backend=backend) if model is None else open_model(model, backend)[0]
    result = chosen.profile(*random_batch(chosen, batch_size), repeats=repeats)
    console.print(result.table())
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result.as_data(), indent=1) + "\n")
        say(f"results are in {output}")
