"""`gpucnn test`: score a saved model on a test set."""

from typing import Annotated

import typer

from gpucnn.cli.common import say
from gpucnn.cli.options import BackendName, Data, DataDir, Run
from gpucnn.core.text import printable
from gpucnn.data.tta import NAMES, check_tta
from gpucnn.runs.folder import dataset_of, dataset_title, open_model


def test(
    model: Run = None,
    data: Data = None,
    data_dir: DataDir = None,
    tta: Annotated[
        str | None,
        typer.Option(help=f"Test-time augmentation: {' or '.join(NAMES)}. Default: none."),
    ] = None,
    backend: BackendName = "auto",
) -> None:
    """Print the loss and accuracy of a saved model on a test set, and the accuracy per class."""
    network, path = open_model(model, backend)
    dataset = dataset_of(network, path, data, data_dir)
    _, (images, labels) = dataset
    scores = network.evaluate(images, labels, tta=tta)
    predictions = network.predict(images, tta=tta).argmax(axis=1)
    say(f"  model     {path}")
    say(f"  data      {dataset_title(dataset)}: {len(images):,} test images; {dataset.source}")
    if (views := check_tta(tta, network.input_shape)) is not None:
        say(f"  tta       mean of {len(views.offsets())} views per image ({tta})")
    for number, name in enumerate(dataset.class_names):
        of_class = labels == number
        if of_class.any():
            right = (predictions[of_class] == number).mean()
            say(f"  {printable(name):<12} {100 * right:6.2f} % of {of_class.sum():,}")
    say((f"test accuracy {100 * scores['accuracy']:.2f} %", "bold"), f" (loss {scores['loss']:.4f})")
