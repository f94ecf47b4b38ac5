"""`gpucnn report`: a run as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from gpucnn.cli.common import say, working
from gpucnn.cli.options import BackendName, Data, DataDir, Run
from gpucnn.errors import ConfigurationError


def report(
    run: Run = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An .html file. Default: report.html in the run folder.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Number of test images whose feature maps are shown. Default: 6."),
    ] = None,
    index: Annotated[
        list[int] | None, typer.Option(help="Instead: index of such an image in the test set; may be repeated.")
    ] = None,
    data: Data = None,
    data_dir: DataDir = None,
    backend: BackendName = "auto",
) -> None:
    """Write a self-contained HTML report of a run (works offline).

    It contains settings and scores, curves, the time per layer, the confusion matrix and the most confident mistakes,
    the filters by epoch, feature maps of some test images, and training defects.
    """
    from gpucnn.report.page import IMAGES, write  # imported late: it needs matplotlib and Jinja2

    if images is not None and index:
        raise ConfigurationError(f"--images {images} and --index {index[0]} both select images; pass one of them")
    with working("testing the model, timing its layers, drawing"):
        target = write(run, output, data=data, data_dir=data_dir, backend=backend, images=index or images or IMAGES)
    say(str(target))
