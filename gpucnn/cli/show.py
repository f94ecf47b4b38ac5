"""`gpucnn show`: pictures of a run or of what it is shown, each a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpucnn.callbacks.defects import DEFECTS, load_report
from gpucnn.callbacks.snapshots import load_snapshots
from gpucnn.cli.common import (
    DATA_NAMES,
    MODEL,
    dataset_of,
    dataset_title,
    find_model,
    load_data_or_digits,
    open_model,
    run_config,
    say,
)
from gpucnn.errors import ConfigurationError
from gpucnn.runs.folder import STATISTICS, beside, check_takes_images, predict_test_set, read_history
from gpucnn.runs.statistics import Runs

if TYPE_CHECKING:
    from gpucnn.model import Model

show = typer.Typer(
    help="Draw filters, feature maps, curves and mistakes of a run, or augmented images.", no_args_is_help=True
)

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
    _print_path(target)


@show.command()
def filters_by_epoch(
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
    target = _target(path, output, "filters-by-epoch", layer, f"channel-{channel}" if channel else None, also=("gif",))
    snapshots = load_snapshots(path.parent)
    if target.suffix.lower() == ".gif":
        plots.animate_filters(snapshots, target, layer, channel=channel)
    else:
        plots.filters_by_epoch(snapshots, layer, channel=channel, path=target)
    _print_path(target)


@show.command()
def feature_maps(
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
        target = _target(path, output, "feature-maps", image.stem)
    else:
        index = 0 if index is None else index
        target = _target(path, output, "feature-maps", str(index))
        check_takes_images(network, path)
        dataset = dataset_of(network, path, data, data_dir)
        _, (images, labels) = dataset
        if not 0 <= index < len(images):
            raise ConfigurationError(
                f"--index {index}: the test set has {len(images):,} images, 0 to {len(images) - 1}"
            )
        pixels = images[index]
        title = f"test image {index} ({dataset.class_names[labels[index]]}) in {network.name}"
    plots.feature_maps(network, pixels, max_maps=count, title=title, path=target)
    _print_path(target)


@show.command()
def history(run: Run = None, output: Output = None) -> None:
    """Draw loss and accuracy of every epoch, and on the test set after the last."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "history")
    test = run_config(path).get("test")
    plots.history(read_history(path), target, test=test if _is_numbers(test) else None)
    _print_path(target)


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
    _print_path(target)


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
    _print_path(target)


@show.command()
def histograms(
    run: Run = None,
    output: Output = None,
    compare: Annotated[Path | None, typer.Option(help="Another run, drawn over this one.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Which of many runs. Default: the first one with a defect.")
    ] = None,
) -> None:
    """Draw how weights, biases and gradients are distributed: of a run that went wrong, beside a good one."""
    from gpucnn import plots

    path = find_model(run)
    target = _target(path, output, "histograms", None if seed is None else f"seed-{seed}")
    drawn = [_distributions(path, seed)] if compare is None else []
    if compare is not None:
        drawn = [_distributions(path, seed), _distributions(find_model(compare), None)]
    elif (path.parent / STATISTICS).is_file():
        drawn += _a_good_run(path.parent, drawn[0][0])
    names, values = zip(*drawn, strict=True)
    plots.histograms(*values, names=names, path=target)
    _print_path(target)


def _distributions(path: Path, seed: int | None) -> tuple[str, dict[str, Any]]:
    """Return what a run is called, and its histograms: those that were kept, or else those of the model's weights."""
    from gpucnn.plots import parameter_values

    folder = path.parent
    if (folder / STATISTICS).is_file():
        records = {record["seed"]: record for record in Runs.read(folder / STATISTICS).records}
        if seed is None:
            seed = next((s for s, record in records.items() if record.get("defect")), min(records, default=0))
        if seed not in records:
            raise ConfigurationError(
                f"--seed {seed}: {folder} holds runs with the seeds {', '.join(map(str, records))}"
            )
        return _run_name(f"seed {seed}", records[seed].get("defect")), records[seed]["histograms"]
    if seed is not None:
        raise ConfigurationError(f"--seed {seed}: {folder} holds a single run; leave --seed away")
    if (folder / DEFECTS).is_file():
        report = load_report(folder)
        return _run_name(folder.name, report["defect"]), report["histograms"]
    return folder.name, parameter_values(open_model(path, "numpy")[0], gradients=False)


def _a_good_run(folder: Path, beside: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the first run without a defect, unless it is the one it would be drawn beside."""
    for record in Runs.read(folder / STATISTICS).successful():
        name = _run_name(f"seed {record['seed']}", None)
        return [] if name == beside else [(name, record["histograms"])]
    return []


def _run_name(name: str, defect: dict[str, Any] | None) -> str:
    return f"{name}: {defect['kind']} at step {defect['step']}" if defect else f"{name}, a good run"


@show.command()
def augment(
    network: Annotated[
        str | None, typer.Option(help="Take the data and the augmentations of this network's recipe.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA_NAMES}. Without it: mnist.")] = None,
    data_dir: DataDir = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror by chance.")] = False,
    alternating_flip: Annotated[
        bool, typer.Option("--alternating-flip", help="Mirror each image in every other epoch.")
    ] = False,
    translate: Annotated[int | None, typer.Option(help="Move by up to so many pixels, and reflect.")] = None,
    crop: Annotated[int | None, typer.Option(help="Pad by so many pixels of black, and crop.")] = None,
    cutout: Annotated[int | None, typer.Option(help="Paint over a square of so many pixels a side.")] = None,
    rotate: Annotated[float | None, typer.Option(help="Turn by up to so many degrees to either side.")] = None,
    scale: Annotated[float | None, typer.Option(help="Enlarge or shrink by up to this share, such as 0.1.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="How often each is drawn.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, SVG or PDF, by its ending.")] = Path(
        "augment.png"
    ),
) -> None:
    """Draw training images as augmentations change them, epoch after epoch; needs no run.

    Without any augmentation: some that suit the images, by their colours.
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
                f"--network {network} names augmentations, and {', '.join(map(repr, chosen))} others; give one or the "
                "other"
            )
        if not recipe.augment:
            raise ConfigurationError(
                f"the recipe of {network} changes no images; name augmentations instead, such as --flip --translate 4"
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
    _print_path(output)


def _of_each_class(labels: list[int], count: int) -> list[int]:
    """Return the places of so many samples: the first of each class, then the second of each, and so on."""
    seen: dict[int, int] = {}
    places = []
    for place, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        places.append((seen[label], label, place))
    return [place for _, _, place in sorted(places)[:count]]


def _target(path: Path, output: Path | None, *words: str | None, also: tuple[str, ...] = ()) -> Path:
    """Return where a picture goes: where it was asked for, or beside the model, under the words as its name."""
    from gpucnn.plots.canvas import check_name

    if output is not None:
        check_name(output, also)
        return output
    prefix = [] if path.name == MODEL else [path.stem]
    return beside(path, f"{'-'.join([*prefix, *filter(None, words)])}.png")


def _print_path(target: Path) -> None:
    say(str(target))


def _read(network: "Model", image: Path) -> Any:
    """Return an image file in the form in which `gpucnn predict` shows it to the model."""
    from gpucnn.cli.predict import predict_file

    return predict_file(network, image, None, False).pixels


def _is_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, int | float) for value in values.values())
