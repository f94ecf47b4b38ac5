"""`gpucnn predict`: classify image files."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from gpucnn.cli.common import console, say, say_error
from gpucnn.cli.options import BackendName, Json, SavedModel
from gpucnn.core.console import styled
from gpucnn.core.files import write_atomic
from gpucnn.core.text import printable
from gpucnn.data.images import centre_digit, is_dark_on_light, read_image
from gpucnn.errors import ConfigurationError, DataError, NumericError
from gpucnn.layers import Normalization
from gpucnn.model import Model
from gpucnn.runs.folder import check_takes_images, open_model

DIGITS = list("0123456789")
BAR = 20  # characters, the length of certainty
MIN_BAR_WIDTH = 80  # characters, a terminal with room for bars


@dataclass
class Prediction:
    """An image file: the original, the preprocessed pixels, the steps that led there, and the probabilities."""

    file: Path
    original: Any
    pixels: Any
    inverted: bool
    centred: bool
    probabilities: Any

    @property
    def notes(self) -> str:
        """The preprocessing steps, as text."""
        if self.pixels.min() == self.pixels.max():
            return "blank"
        return ", ".join(word for word, done in (("inverted", self.inverted), ("centred", self.centred)) if done)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files: PNG, JPEG, BMP, GIF or WebP.")],
    model: SavedModel = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes printed per image.")] = 3,
    invert: Annotated[
        bool | None,
        typer.Option(
            help="Whether to invert brightness. Default: as the model expects, such as for dark digits on paper."
        ),
    ] = None,
    no_centre: Annotated[
        bool, typer.Option("--no-centre", help="Resize digits without centring them as in MNIST.")
    ] = False,
    show: Annotated[
        Path | None,
        typer.Option(
            help="Plot the image and its probabilities to this file, and its feature maps to another next to it."
        ),
    ] = None,
    json_file: Json = None,
    backend: BackendName = "auto",
) -> None:
    """Print the most probable classes of each image, with their probabilities.

    Images are converted to the size and colours that the model was trained on. For greyscale models, images with
    inverted brightness are inverted. For digit models, the digit in an image of another size is located, scaled and
    centred as in MNIST. The steps that were applied are printed below the image's name.
    """
    if show is not None:
        from gpucnn.plots.canvas import check_name

        check_name(show)
    network, path = open_model(model, backend)
    check_takes_images(network, path)
    predictions: list[Prediction] = []
    failed: dict[Path, str] = {}
    for file in images:
        try:
            predictions.append(predict_file(network, file, invert, no_centre))
        except DataError as error:
            failed[file] = str(error)
    names = network.class_names or [f"class {k}" for k in range(network.output_shape[0])]
    if predictions:
        console.print(_table(predictions, names, top))
        say(f"  model     {path}")
    for reason in failed.values():
        say_error(reason, "DataError")
    if json_file is not None:
        _write(json_file, path, [_as_data(prediction, names, top) for prediction in predictions], failed)
    if show is not None:
        _draw(network, predictions, names, show)
    if failed:
        raise typer.Exit(1)


def predict_file(network: Model, file: Path, invert: bool | None, no_centre: bool) -> Prediction:
    """Read an image, preprocess it for the network, and predict its class."""
    if file.is_dir():
        raise DataError(f"{file}: is a folder; expected an image: name the files in it, such as {file / '*.png'}")
    H, W, C = network.input_shape
    original = pixels = read_image(file, None, C)
    dark_ground = _expects_dark_background(network)
    inverted = (C == 1 and is_dark_on_light(pixels) == dark_ground) if invert is None else invert
    if inverted:
        pixels = 255 - pixels
    centred = pixels.shape[:2] != (H, W) and _is_digit_model(network) and not no_centre
    if centred:  # which expects a light digit
        pixels = centre_digit(pixels, (H, W)) if dark_ground else 255 - centre_digit(255 - pixels, (H, W))
    elif pixels.shape[:2] != (H, W):
        pixels = read_image(file, (H, W), C)
        pixels = 255 - pixels if inverted else pixels
    probabilities = network.predict(pixels[None])[0]
    if not math.isfinite(float(probabilities.sum())):
        raise NumericError(
            f"{network.name} outputs NaN or infinity for {file}: its weights are not finite, as after training that "
            "diverged; pass another --model"
        )
    return Prediction(file, original, pixels, inverted, centred, probabilities)


def _is_digit_model(network: Model) -> bool:
    return network.input_shape[2] == 1 and network.class_names == DIGITS


def _expects_dark_background(network: Model) -> bool:
    """Return whether the training images were mostly dark, as MNIST's are, by the model's `Normalization`."""
    first = network.layers[0]
    if not isinstance(first, Normalization):
        return True
    mean = first.mean if isinstance(first.mean, list | tuple) else [first.mean]
    return sum(mean) / len(mean) <= 0.5


def _table(predictions: list[Prediction], names: list[str], top: int) -> Table:
    """Return a table with a row per image: its name and its most probable classes."""
    table = Table(box=SIMPLE_HEAD, show_lines=False, padding=(0, 1, 0 if len(predictions) == 1 or top == 1 else 1, 1))
    table.add_column("image", overflow="fold")
    table.add_column("prediction", overflow="fold", min_width=len("prediction"))
    table.add_column("probability", justify="right", no_wrap=True)
    length = BAR if console.width >= MIN_BAR_WIDTH else 0
    if length:
        table.add_column(no_wrap=True)
    for prediction in predictions:
        label = styled(str(prediction.file))
        if prediction.notes:
            label.append(f"\n{prediction.notes}", style="dim")
        classes, numbers, bars = Text(), Text(), Text(style="cyan")
        for rank, k in enumerate(prediction.probabilities.argsort()[::-1][:top]):
            probability, style, end = float(prediction.probabilities[k]), "" if rank else "bold", "\n" if rank else ""
            classes.append(f"{end}{printable(names[k])}", style=style)
            numbers.append(f"{end}{100 * probability:.1f} %", style=style)
            bars.append(end + "█" * round(length * probability))
        table.add_row(label, classes, numbers, *([bars] if length else []))
    return table


def _as_data(prediction: Prediction, names: list[str], top: int) -> dict[str, Any]:
    """Return a prediction as it goes into a JSON file."""
    order = prediction.probabilities.argsort()[::-1][:top]
    classes = [{"class": names[k], "probability": float(prediction.probabilities[k])} for k in order]
    return {
        "image": str(prediction.file),
        "inverted": prediction.inverted,
        "centred": prediction.centred,
        "classes": classes,
    }


def _write(path: Path, model: Path, results: list[dict[str, Any]], failed: dict[Path, str]) -> None:
    results += [{"image": str(file), "error": reason} for file, reason in failed.items()]
    content = json.dumps({"model": str(model), "images": results}, indent=1, ensure_ascii=False) + "\n"
    try:
        # in JSON's own escapes, which lead back to the same name
        write_atomic(path, content.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ConfigurationError(
            f"--json {path}: cannot be written ({error.strerror or error}); choose a file in an existing folder"
        ) from error


def _draw(network: Model, predictions: list[Prediction], names: list[str], path: Path) -> None:
    """Plot each image with its prediction and its feature maps; numbered files for several images."""
    from gpucnn.plots import feature_maps
    from gpucnn.plots.prediction import prediction as draw

    for number, prediction in enumerate(predictions, start=1):
        file = path if len(predictions) == 1 else path.with_stem(f"{path.stem}-{number}")
        maps = file.with_stem(f"{file.stem}-feature-maps")
        draw(prediction.pixels, prediction.probabilities, names, file, original=prediction.original)
        feature_maps(network, prediction.pixels, names, title=f"{prediction.file.name} in {network.name}", path=maps)
        say(f"  plotted   {file} and {maps}")
