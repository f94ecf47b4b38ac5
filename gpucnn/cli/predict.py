"""`gpucnn predict`: say what is on images."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from gpucnn.cli.common import console, open_model
from gpucnn.data.images import is_dark_on_light, read_image
from gpucnn.errors import ConfigurationError

SHOWN = 3  # classes an image


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files: PNG, JPEG, BMP, GIF or WebP.")],
    model: Annotated[
        Path | None, typer.Option(help="A run folder or a .safetensors file. Without it: the newest run.")
    ] = None,
    invert: Annotated[
        bool | None,
        typer.Option(help="Whether to invert light and dark. Without it: dark digits on light paper are inverted."),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, cupy or cupy:N.")] = "auto",
) -> None:
    """Print the most probable classes of each image, with their probabilities.

    Images are brought to the size and the colours that the model was trained on. Models of grey images learn light
    strokes on a dark ground, as in MNIST.
    """
    network, path = open_model(model, backend)
    if len(network.input_shape) != 3 or network.input_shape[2] not in (1, 3):
        raise ConfigurationError(f"{path}: takes inputs of shape {network.input_shape}, not grey or colour images")
    H, W, C = network.input_shape
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    table.add_column("prediction")
    table.add_column("probability", justify="right")
    table.add_column("then")
    for file in images:
        pixels = read_image(file, (H, W), C)
        inverted = invert if invert is not None else C == 1 and is_dark_on_light(pixels)
        probabilities = network.predict((255 - pixels if inverted else pixels)[None])[0]
        order = probabilities.argsort()[::-1][:SHOWN]
        names = [network.class_names[i] if network.class_names else f"class {i}" for i in order]
        then = ", ".join(
            f"{name} {100 * probabilities[i]:.1f} %" for name, i in list(zip(names, order, strict=True))[1:]
        )
        label = Text(str(file))
        if inverted:
            label.append(" (inverted)", style="dim")
        table.add_row(label, Text(names[0], style="bold"), f"{100 * probabilities[order[0]]:.1f} %", Text(then))
    console.print(table)
    console.print(f"  by {path}", soft_wrap=True)
