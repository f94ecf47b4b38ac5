"""`gpucnn parity`: compare a network on two backends."""

from dataclasses import asdict
from typing import Annotated

import typer

from gpucnn.cli.common import console, network_or_model, write_json
from gpucnn.cli.options import Json, NamedNetwork, OtherModel
from gpucnn.rng import host_generator
from gpucnn.testing.parity import parity as compare


def parity(
    network: NamedNetwork = None,
    model: OtherModel = None,
    backend: Annotated[str, typer.Option(help="Which to test: auto, numpy, reference, cupy or cupy:N.")] = "auto",
    reference: Annotated[
        str | None, typer.Option(help="Against which. Without it: numpy for a GPU, the reference kernels for numpy.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of random inputs.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the inputs and of fresh weights.")] = 0,
    output: Json = None,
) -> None:
    """Compare every layer's forward and backward pass on two backends; fail if they differ by more than rounding."""
    chosen = network_or_model(network, model, backend, seed)
    rng = host_generator(seed, "parity inputs")
    x = rng.random((batch_size, *chosen.input_shape))
    y = None
    if chosen.loss is not None:
        expects_classes, shape = chosen.loss.expects_classes, chosen.output_shape
        y = rng.integers(0, shape[-1], batch_size) if expects_classes else rng.random((batch_size, *shape))
    result = compare(chosen, x.astype(chosen.dtype), y, reference=reference)
    console.print(result.table())
    if output is not None:
        differences = [asdict(d) | {"agrees": d.agrees} for d in result.differences]
        about = {"backend": result.backend, "reference": result.reference, "dtype": result.dtype}
        write_json(output, about | {"agrees": result.agrees, "differences": differences})
    if not result.agrees:
        raise typer.Exit(1)
