"""`gpucnn show`: figures of a run or of augmented images, one command each."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gpucnn.callbacks.defects import DEFECTS, load_report
from gpucnn.callbacks.snapshots import load_snapshots
from gpucnn.cli.common import load_data_or_digits, say
from gpucnn.cli.options import BackendName, Data, DataDir, Output, Run
from gpucnn.errors import ConfigurationError
from gpucnn.runs.folder import (
    DATA_NAMES,
    MODEL,
    STATISTICS,
    beside,
    check_takes_images,
    dataset_of,
    dataset_title,
    find_model,
    open_model,
    predict_test_set,
    read_history,
    run_config,
)
from gpucnn.runs.statistics import Runs

show = typer.Typer(
    help="Plot filters, feature maps, curves and mistakes of a run, or augmented images.", no_args_is_help=True
)

Layer = Annotated[str | None, typer.Option(help="A convolution, such as conv2d_1. Default: the first.")]


@show.command()
def filters(
    run: Run = None,
    output: Output = None,
    layer: Layer = None,
    epoch: Annotated[
        int | None, typer.Option(help="The epoch to plot; 0 is before training. Default: the final model.")
    ] = None,
) -> None:
    """Plot the filters of a convolution."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "filters", layer, None if epoch is None else f"epoch-{epoch}")
    if epoch is None:
        plots.filters(open_model(run, "numpy")[0], layer, path=target)
    else:
        snapshots = load_snapshots(path.parent)
        if epoch not in snapshots:
            raise ConfigurationError(
                f"{path.parent} has no snapshot of epoch {epoch}; there are {', '.join(map(str, snapshots))}"
            )
        weights = snapshots[epoch]
        name = layer or next(iter(weights)).removesuffix(".weight")
        plots.filters(weights, layer, title=f"{name}, epoch {epoch}", path=target)
    say(str(target))


@show.command()
def filters_by_epoch(
    run: Run = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG, SVG, PDF, or GIF for an animation. Default: next to the model."),
    ] = None,
    layer: Layer = None,
    channel: Annotated[int, typer.Option(min=0, help="The input channel to plot.")] = 0,
) -> None:
    """Plot the filters of a convolution at every epoch, side by side or as an animation."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "filters-by-epoch", layer, f"channel-{channel}" if channel else None, also=("gif",))
    snapshots = load_snapshots(path.parent)
    if target.suffix.lower() == ".gif":
        plots.animate_filters(snapshots, target, layer, channel=channel)
    else:
        plots.filters_by_epoch(snapshots, layer, channel=channel, path=target)
    say(str(target))


@show.command()
def feature_maps(
    run: Run = None,
    output: Output = None,
    image: Annotated[Path | None, typer.Option(help="An image file. Default: one of the test set.")] = None,
    index: Annotated[int | None, typer.Option(help="Index of the image in the test set. Default: 0.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Maximum number of maps per layer.")] = 16,
    data: Data = None,
    data_dir: DataDir = None,
    backend: BackendName = "auto",
) -> None:
    """Plot the feature maps of an image in each layer, and its class probabilities."""
    from gpucnn import plots
    from gpucnn.cli.predict import predict_file

    if image is not None and index is not None:
        raise ConfigurationError(f"--image {image} and --index {index} name two images; pass one of them")
    network, path = open_model(run, backend)
    index = index or 0
    target = _target(path, output, "feature-maps", image.stem if image is not None else str(index))
    check_takes_images(network, path)
    if image is not None:
        pixels, title = predict_file(network, image, None, False).pixels, f"{image.name} in {network.name}"
    else:
        dataset = dataset_of(network, path, data, data_dir)
        _, (images, labels) = dataset
        if not 0 <= index < len(images):
            raise ConfigurationError(
                f"--index {index}: the test set has {len(images):,} images, 0 to {len(images) - 1}"
            )
        pixels = images[index]
        title = f"test image {index} ({dataset.class_names[labels[index]]}) in {network.name}"
    plots.feature_maps(network, pixels, max_maps=count, title=title, path=target)
    say(str(target))


@show.command()
def history(run: Run = None, output: Output = None) -> None:
    """Plot the loss and accuracy of every epoch, and those of the final test."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "history")
    test = run_config(path).get("test")
    plots.history(read_history(path), target, test=test if _is_numbers(test) else None)
    say(str(target))


@show.command()
def confusion(
    run: Run = None, output: Output = None, data: Data = None, data_dir: DataDir = None, backend: BackendName = "auto"
) -> None:
    """Plot the confusion matrix of the test set."""
    from gpucnn import plots

    network, path = open_model(run, backend)
    target = _target(path, output, "confusion")
    test = predict_test_set(network, path, data, data_dir)
    plots.confusion(plots.confusion_matrix(test.labels, test.probabilities), test.names, path=target)
    say(str(target))


@show.command()
def mistakes(
    run: Run = None,
    output: Output = None,
    count: Annotated[int, typer.Option(min=1, help="Maximum number of images.")] = 25,
    data: Data = None,
    data_dir: DataDir = None,
    backend: BackendName = "auto",
) -> None:
    """Plot the most confident mistakes on the test set."""
    from gpucnn import plots

    network, path = open_model(run, backend)
    target = _target(path, output, "mistakes")
    test = predict_test_set(network, path, data, data_dir)
    plots.mistakes(test.images, test.labels, test.probabilities, test.names, count, path=target)
    say(str(target))


@show.command()
def histograms(
    run: Run = None,
    output: Output = None,
    compare: Annotated[Path | None, typer.Option(help="Another run, to plot over this one.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of one of many runs. Default: the first with a defect.")
    ] = None,
) -> None:
    """Plot histograms of weights, biases and gradients: of a failed run next to a successful one."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "histograms", None if seed is None else f"seed-{seed}")
    drawn = [_distributions(path, seed)]
    if compare is not None:
        drawn.append(_distributions(find_model(compare), None))
    elif (path.parent / STATISTICS).is_file():
        drawn += _successful_run(path.parent, drawn[0][0])
    names, values = zip(*drawn, strict=True)
    plots.histograms(*values, names=names, path=target)
    say(str(target))


def _distributions(path: Path, seed: int | None) -> tuple[str, dict[str, Any]]:
    """Return a run's label and its histograms: those that were saved, or those of the model's weights."""
    from gpucnn.plots import parameter_values

    folder = path.parent
    if (folder / STATISTICS).is_file():
        records = {record["seed"]: record for record in Runs.read(folder / STATISTICS).records}
        if seed is None:
            seed = next((s for s, record in records.items() if record.get("defect")), min(records, default=0))
        if seed not in records:
            raise ConfigurationError(f"--seed {seed}: {folder} has runs with the seeds {', '.join(map(str, records))}")
        return _run_name(f"seed {seed}", records[seed].get("defect")), records[seed]["histograms"]
    if seed is not None:
        raise ConfigurationError(f"--seed {seed}: {folder} is a single run; omit --seed")
    if (folder / DEFECTS).is_file():
        report = load_report(folder)
        return _run_name(folder.name, report["defect"]), report["histograms"]
    return folder.name, parameter_values(open_model(path, "numpy")[0], gradients=False)


def _successful_run(folder: Path, compared: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the first successful run, unless it is the one to compare with."""
    for record in Runs.read(folder / STATISTICS).successful():
        name = _run_name(f"seed {record['seed']}", None)
        return [] if name == compared else [(name, record["histograms"])]
    return []


def _run_name(name: str, defect: dict[str, Any] | None) -> str:
    return f"{name}: {defect['kind']} at step {defect['step']}" if defect else f"{name}, successful"


@show.command()
def augment(
    network: Annotated[
        str | None, typer.Option(help="Use the data and augmentations of this network's recipe.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA_NAMES}. Default: mnist.")] = None,
    data_dir: DataDir = None,
    flip: Annotated[bool, typer.Option("--flip", help="Flip horizontally with probability 0.5.")] = False,
    alternating_flip: Annotated[
        bool, typer.Option("--alternating-flip", help="Flip each image in every other epoch.")
    ] = False,
    translate: Annotated[int | None, typer.Option(help="Shift by up to this many pixels, with reflection.")] = None,
    crop: Annotated[int | None, typer.Option(help="Pad with this many black pixels, and crop at random.")] = None,
    cutout: Annotated[int | None, typer.Option(help="Mask a random square of this size in pixels.")] = None,
    rotate: Annotated[float | None, typer.Option(help="Rotate by up to this many degrees in either direction.")] = None,
    scale: Annotated[float | None, typer.Option(help="Scale by up to this fraction, such as 0.1.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs, each with new augmentations.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, SVG or PDF, by file extension.")] = Path(
        "augment.png"
    ),
) -> None:
    """Plot augmented training images over several epochs; needs no run.

    Without any augmentation: a selection that suits greyscale or colour images.
    """
    from gpucnn import networks, plots
    from gpucnn.data.augment import AlternatingFlip, Augmentation, Cutout, Flip, RandomCrop, Rotate, Translate
    from gpucnn.plots.canvas import check_name

    check_name(output)
    recipe = None if network is None else networks.by_name(network).recipe
    chosen: list[Augmentation] = [*([Flip()] if flip else []), *([AlternatingFlip()] if alternating_flip else [])]
    for kind, number in ((Translate, translate), (Cutout, cutout)):
        chosen += [] if number is None else [kind(number)]
    chosen += [] if crop is None else [RandomCrop(padding=crop)]
    chosen += [] if rotate is None and scale is None else [Rotate(rotate or 0, scale or 0)]
    if recipe is not None:
        if chosen:
            raise ConfigurationError(
                f"--network {network} and {', '.join(map(repr, chosen))} both set augmentations; pass only one"
            )
        if not recipe.augment:
            raise ConfigurationError(
                f"the recipe of {network} has no augmentation; choose some instead, such as --flip --translate 4"
            )
        chosen = list(recipe.augment)
    dataset = load_data_or_digits(data or (recipe.data if recipe else "mnist"), data_dir)
    (images, labels), _ = dataset
    if not chosen:
        grey = images.shape[3] == 1
        chosen = [Rotate(15, 0.1), RandomCrop(padding=2)] if grey else [AlternatingFlip(), Translate(4), Cutout(8)]
    picked = images[_of_each_class(labels.tolist(), count)]
    title = f"{dataset_title(dataset)}{f', {network}' if network else ''}: {', '.join(map(repr, chosen))}"
    plots.augmented(picked, chosen, epochs, seed=seed, title=title, path=output)
    say(str(output))


def _of_each_class(labels: list[int], count: int) -> list[int]:
    """Return the indices of `count` samples: the first of each class, then the second of each, and so on."""
    counts: dict[int, int] = {}
    places = []
    for place, label in enumerate(labels):
        counts[label] = counts.get(label, 0) + 1
        places.append((counts[label], label, place))
    return [place for _, _, place in sorted(places)[:count]]


def _target(path: Path, output: Path | None, *parts: str | None, also: tuple[str, ...] = ()) -> Path:
    """Return the path of a figure: the given one, or a name joined from parts, next to the model."""
    from gpucnn.plots.canvas import check_name

    if output is not None:
        check_name(output, also)
        return output
    prefix = [] if path.name == MODEL else [path.stem]
    return beside(path, f"{'-'.join([*prefix, *filter(None, parts)])}.png")


def _is_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())
