"""`gpucnn profile`: where the time of a training step goes, layer by layer."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gpucnn.cli.common import console, open_model, say
from gpucnn.engine.profiling import random_batch
from gpucnn.errors import ConfigurationError
from gpucnn.networks import by_name


def profile(
    network: Annotated[str | None, typer.Option(help="A named network, with fresh weights.")] = None,
    model: Annotated[Path | None, typer.Option(help="Or a run folder or a .safetensors file.")] = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, reference, cupy or cupy:N.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Random inputs a pass.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Passes to average over, after two to warm up.")] = 10,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Time every layer of a network forward and backward, with its work, memory and speed."""
    if network is not None and model is not None:
        raise ConfigurationError("--network and --model both name what to time; pass one of them")
    chosen = by_name(network or "lenet")(backend=backend) if model is None else open_model(model, backend)[0]
    result = chosen.profile(*random_batch(chosen, batch_size), repeats=repeats)
    console.print(result.table())
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result.as_data(), indent=1) + "\n")
        say(f"figures in {output}")
