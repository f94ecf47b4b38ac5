"""`gpucnn test`: score a saved model on a test set."""

from pathlib import Path
from typing import Annotated

import typer

from gpucnn.cli.common import DATA_NAMES, dataset_of, dataset_title, open_model, say
from gpucnn.core.text import printable
from gpucnn.data.tta import NAMES, check_tta


def test(
    model: Annotated[
        Path | None, typer.Argument(help="A run folder or a .safetensors file. Without it: the newest run.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA_NAMES}. Without it: what it was trained on.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="The folder that holds the data.")] = None,
    tta: Annotated[
        str | None,
        typer.Option(help=f"Average over several views of each image: {' or '.join(NAMES)}. Without it: one."),
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, numpy, cupy or cupy:N.")] = "auto",
) -> None:
    """Print loss and accuracy of a saved model on a test set, and the accuracy of each class."""
    network, path = open_model(model, backend)
    dataset = dataset_of(network, path, data, data_dir)
    _, (images, labels) = dataset
    scores = network.evaluate(images, labels, tta=tta)
    predictions = network.predict(images, tta=tta).argmax(axis=1)
    say(f"  model     {path}")
    say(f"  data      {dataset_title(dataset)}: {len(images):,} test images; {dataset.source}")
    if (seen := check_tta(tta, network.input_shape)) is not None:
        say(f"  views     the mean of {len(seen.offsets())} of each image ({tta})")
    for number, name in enumerate(dataset.class_names):
        of_class = labels == number
        if of_class.any():
            right = (predictions[of_class] == number).mean()
            say(f"  {printable(name):<12} {100 * right:6.2f} % of {of_class.sum():,}")
    say((f"test accuracy {100 * scores['accuracy']:.2f} %", "bold"), f" (loss {scores['loss']:.4f})")
