"""`gpucnn report`: a run as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from gpucnn.cli.common import DATA_NAMES, say, working
from gpucnn.errors import ConfigurationError


def report(
    run: Annotated[
        Path | None, typer.Argument(help="A run folder or a .safetensors file. Without it: the newest run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An .html file. Default: report.html in the run folder.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="How many test images to show on their way through the layers. Default: 6."),
    ] = None,
    index: Annotated[
        list[int] | None, typer.Option(help="Or which images of the test set; may be given several times.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA_NAMES}. Without it: what the model was trained on.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="The folder that holds the data.")] = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, cupy or cupy:N.")] = "auto",
) -> None:
    """Write what is known of a run into one HTML page that needs no network and no other file.

    It holds settings and scores, curves, the time of every layer, the confusion matrix and the surest mistakes, the
    filters epoch by epoch, feature maps of some test images, and defects of the training.
    """
    from gpucnn.report.page import IMAGES, write  # imported late: it brings matplotlib and Jinja2

    if images is not None and index:
        raise ConfigurationError(f"--images {images} and --index {index[0]} both say which images; give one of them")
    with working("testing the model, timing its layers, drawing"):
        target = write(run, output, data=data, data_dir=data_dir, backend=backend, images=index or images or IMAGES)
    say(str(target))
