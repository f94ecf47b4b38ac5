"""`gpucnn show`: pictures of a run, each a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpucnn.cli.common import DATA_NAMES, MODEL, console, data_of, find_model, open_model, run_config
from gpucnn.errors import ConfigurationError
from gpucnn.run_folder import check_takes_images, predict_test_set, read_history
from gpucnn.training.snapshots import load_snapshots

if TYPE_CHECKING:
    from gpucnn.model import Model

show = typer.Typer(help="Draw filters, feature maps, curves and mistakes of a run.", no_args_is_help=True)

Run = Annotated[Path | None, typer.Argument(help="A run folder or a .safetensors file. Without it: the newest run.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="PNG, SVG or PDF, by its ending. Default: beside the model.")
]
Layer = Annotated[str | None, typer.Option(help="A convolution, such as conv2d_1. Default: the first.")]
Data = Annotated[str | None, typer.Option(help=f"{DATA_NAMES}. Without it: what the model was trained on.")]
DataDir = Annotated[Path | None, typer.Option(help="The folder that holds the data.")]
BackendName = Annotated[str, typer.Option("--backend", help="auto, numpy, cupy or cupy:N.")]


@show.command()
def filters(
    run: Run = None,
    output: Output = None,
    layer: Layer = None,
    epoch: Annotated[
        int | None, typer.Option(help="As they were after this epoch, 0 before training. Default: those of the model.")
    ] = None,
) -> None:
    """Draw the filters of a convolution."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "filters", layer, None if epoch is None else f"epoch-{epoch}")
    if epoch is None:
        plots.filters(open_model(run, "numpy")[0], layer, path=target)
    else:
        snapshots = load_snapshots(path.parent)
        if epoch not in snapshots:
            raise ConfigurationError(
                f"{path.parent} holds no snapshot of epoch {epoch}; there are {', '.join(map(str, snapshots))}"
            )
        weights = snapshots[epoch]
        name = layer or next(iter(weights)).removesuffix(".weight")
        plots.filters(weights, layer, title=f"{name}, epoch {epoch}", path=target)
    _say(target)


@show.command()
def kernels(
    run: Run = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG, SVG, PDF, or GIF for an animation. Default: beside the model."),
    ] = None,
    layer: Layer = None,
    channel: Annotated[int, typer.Option(min=0, help="The input channel that is drawn, where there are many.")] = 0,
) -> None:
    """Draw the filters of a convolution at every epoch, side by side or as an animation."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "kernels", layer, f"channel-{channel}" if channel else None, also=("gif",))
    snapshots = load_snapshots(path.parent)
    if target.suffix.lower() == ".gif":
        plots.animate_filters(snapshots, target, layer, channel=channel)
    else:
        plots.filters_by_epoch(snapshots, layer, channel=channel, path=target)
    _say(target)


@show.command()
def maps(
    run: Run = None,
    output: Output = None,
    image: Annotated[Path | None, typer.Option(help="An image file. Without it: one of the test set.")] = None,
    index: Annotated[int | None, typer.Option(help="Which image of the test set. Default: the first.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Maps a layer, at most.")] = 16,
    data: Data = None,
    data_dir: DataDir = None,
    backend: BackendName = "auto",
) -> None:
    """Draw an image on its way through the layers: the feature maps of each, and the probabilities."""
    from gpucnn import plots

    if image is not None and index is not None:
        raise ConfigurationError(f"--image {image} and --index {index} name two images; give one of them")
    network, path = open_model(run, backend)
    if image is not None:
        check_takes_images(network, path)
        pixels, title = _read(network, image), f"{image.name} in {network.name}"
        target = _target(path, output, "maps", image.stem)
    else:
        index = 0 if index is None else index
        target = _target(path, output, "maps", str(index))
        check_takes_images(network, path)
        dataset = data_of(network, path, data, data_dir)
        _, (images, labels) = dataset
        if not 0 <= index < len(images):
            raise ConfigurationError(
                f"--index {index}: the test set has {len(images):,} images, 0 to {len(images) - 1}"
            )
        pixels = images[index]
        title = f"test image {index} ({dataset.class_names[labels[index]]}) in {network.name}"
    plots.feature_maps(network, pixels, most=count, title=title, path=target)
    _say(target)


@show.command()
def history(run: Run = None, output: Output = None) -> None:
    """Draw loss and accuracy of every epoch, and on the test set after the last."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "history")
    test = run_config(path).get("test")
    plots.history(read_history(path), target, test=test if _is_numbers(test) else None)
    _say(target)


@show.command()
def confusion(
    run: Run = None, output: Output = None, data: Data = None, data_dir: DataDir = None, backend: BackendName = "auto"
) -> None:
    """Draw which classes of the test set are taken for which."""
    from gpucnn import plots

    network, path = open_model(run, backend)
    target = _target(path, output, "confusion")
    test = predict_test_set(network, path, data, data_dir)
    plots.confusion(plots.confusion_matrix(test.labels, test.probabilities), test.names, path=target)
    _say(target)


@show.command()
def mistakes(
    run: Run = None,
    output: Output = None,
    count: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 25,
    data: Data = None,
    data_dir: DataDir = None,
    backend: BackendName = "auto",
) -> None:
    """Draw the images of the test set that the model is surest of and yet gets wrong."""
    from gpucnn import plots

    network, path = open_model(run, backend)
    target = _target(path, output, "mistakes")
    test = predict_test_set(network, path, data, data_dir)
    plots.mistakes(test.images, test.labels, test.probabilities, test.names, count, path=target)
    _say(target)


def _target(path: Path, output: Path | None, *words: str | None, also: tuple[str, ...] = ()) -> Path:
    """Return where a picture goes: where it was asked for, or beside the model, under the words as its name."""
    from gpucnn.plots.canvas import check_name

    if output is not None:
        check_name(output, also)
        return output
    prefix = [] if path.name == MODEL else [path.stem]
    return path.parent / f"{'-'.join([*prefix, *filter(None, words)])}.png"


def _say(target: Path) -> None:
    console.print(str(target), soft_wrap=True, markup=False)


def _read(network: "Model", image: Path) -> Any:
    """Return an image file in the form in which `gpucnn predict` shows it to the model."""
    from gpucnn.cli.predict import predict_file

    return predict_file(network, image, None, False).pixels


def _is_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())
