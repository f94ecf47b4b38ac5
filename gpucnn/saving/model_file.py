"""Saving a model and loading it: safetensors, with the architecture as data.

A file names layers, losses and optimizers by what is registered in the package; it holds no import path and no pickle,
so a file from a stranger can describe a network and nothing else.
"""

import json
import os
from glob import escape
from pathlib import Path
from typing import Any

from safetensors.numpy import save as to_bytes

from gpucnn.backends import Backend
from gpucnn.core.files import explained, user_path, write_whole
from gpucnn.data.augment import Augmentation
from gpucnn.data.batches import check_batch_size, check_epochs
from gpucnn.errors import CheckpointError, ConfigurationError, GpucnnError
from gpucnn.initializers import element_budget
from gpucnn.layers import Sequential
from gpucnn.layers.base import Layer
from gpucnn.losses import Loss
from gpucnn.metrics import Metric
from gpucnn.model import Model
from gpucnn.networks import Recipe
from gpucnn.optimizers import Optimizer
from gpucnn.saving.tree import read_tensors

FORMAT = 1
KEY = "gpucnn"
SUFFIX = ".safetensors"
MOST_PLACES = 20_000  # of layers in a network that is read: a ResNet of a thousand layers has a quarter of them


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model's weights, architecture and training settings into a safetensors file.

    The file is written beside its place and then renamed, so a crash leaves the old one or the new one, never half. A
    name without an ending gets `.safetensors`.

    Raises:
        ConfigurationError: the name ends as those of other formats do.
        CheckpointError: the folder is missing or cannot be written.
    """
    target = user_path(path)
    if os.path.isfile(target) or not os.path.exists(target):  # a device or a pipe has the name that it has
        if target.suffix not in ("", SUFFIX):
            raise ConfigurationError(
                f"{target}: models are saved as safetensors, not as {target.suffix}; name it "
                f"{target.with_suffix(SUFFIX)}"
            )
        target = target.with_name(target.name + SUFFIX) if target.name and not target.suffix else target
    with explained(target):
        write_whole(target, content(model))


def content(model: Model) -> bytes:
    """Return what `save` writes."""
    described = json.dumps(_describe(model), separators=(",", ":"))
    return to_bytes(model.state_dict(), metadata={KEY: described})


def load(path: str | os.PathLike[str], backend: str | Backend = "auto", dtype: str | None = None) -> Model:
    """Read a model that `save` wrote, onto any backend; `dtype` is that of the file unless another is given.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or does not fit itself; says which.
    """
    path = user_path(path)
    if not path.suffix and not os.path.exists(path) and os.path.exists(f"{path}{SUFFIX}"):  # as `save` names it
        path = Path(f"{path}{SUFFIX}")
    described, state = _read(path)
    try:
        return _rebuild(described, state, backend, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (GpucnnError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise CheckpointError(f"{path}: does not describe a model that can be built: {error}") from error


def _describe(model: Model) -> dict[str, Any]:
    training = None
    if model.loss is not None:
        training = {
            "optimizer": model.optimizer.config(),
            "loss": model.loss.config(),
            "metrics": "auto" if model.chooses_metrics else [metric.config() for metric in model.metrics],
        }
    return {
        "format": FORMAT,
        "name": model.name,
        "input_shape": list(model.input_shape),
        "dtype": model.dtype,
        "seed": model.seed,
        "epochs_trained": model.epochs_trained,
        "class_names": model.class_names,
        "recipe": None if model.recipe is None else _describe_recipe(model.recipe),
        "network": model.network.config(),
        "frozen": [path for path, parameter in model.parameters().items() if parameter.frozen],
        "training": training,
    }


def _describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return what is plain data of a recipe; a model that comes back is trained on without the rest."""
    return {
        "data": recipe.data,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "augment": [augmentation.config() for augmentation in recipe.augment],
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the description and the arrays of a file, or say what is wrong with it."""
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: is a folder; name the model's file in it, such as {path / ('model' + SUFFIX)}")
    metadata, state = read_tensors(path)
    if KEY not in metadata:
        raise CheckpointError(f"{path}: holds arrays but no gpucnn model; was it saved by another program?")
    try:
        described = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error})") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else described
        raise CheckpointError(
            f"{path}: is of format {found!r}, and this gpucnn reads format {FORMAT}; load it with the version that "
            "wrote it"
        )
    return described, state


def _places(layer: Layer, known: dict[int, int]) -> int:
    """Return in how many places the layers of a network compute: one that stands twice counts twice."""
    if id(layer) not in known:
        known[id(layer)] = 1 + sum(_places(child, known) for _, child in layer.children())
    return known[id(layer)]


def _rebuild(described: dict[str, Any], state: dict[str, Any], backend: str | Backend, dtype: str | None) -> Model:
    network = Layer.from_config(described.get("network"))
    if not isinstance(network, Sequential):
        raise CheckpointError(f"describes a {type(network).__name__} where a Sequential was expected")
    if (places := _places(network, {})) > MOST_PLACES:
        raise CheckpointError(
            f"describes layers that are passed in {places:,} places, and this gpucnn reads at most {MOST_PLACES:,}; "
            "was the description edited?"
        )
    input_shape = described.get("input_shape")
    with element_budget(sum(array.size for array in state.values())):  # which is what the file holds
        model = Model(
            network,
            tuple(input_shape) if isinstance(input_shape, list) else (),
            seed=described.get("seed", 0),
            backend=backend,
            dtype=described.get("dtype", "float32") if dtype is None else dtype,
            name=str(described.get("name", "model")),
        )
    model.load_state_dict(state)
    training = described.get("training")
    if isinstance(training, dict):
        metrics = training.get("metrics", [])
        model.compile(
            Optimizer.from_config(training.get("optimizer")),
            Loss.from_config(training.get("loss")),
            "auto" if metrics == "auto" else [Metric.from_config(metric) for metric in metrics],
        )
    frozen = described.get("frozen", [])  # files of older versions say nothing
    if frozen:
        model.freeze(*(escape(str(path)) for path in frozen))
    model.epochs_trained = int(described.get("epochs_trained", described.get("epochs_seen", 0)))
    names, recipe = described.get("class_names"), described.get("recipe")
    model.class_names = [str(name) for name in names] if isinstance(names, list) else None
    if isinstance(recipe, dict):
        model.recipe = Recipe(
            str(recipe.get("data")),
            check_epochs(recipe.get("epochs", 1)),
            check_batch_size(recipe.get("batch_size", 128)),
            tuple(Augmentation.from_config(augmentation) for augmentation in recipe.get("augment", [])),
        )
    return model
