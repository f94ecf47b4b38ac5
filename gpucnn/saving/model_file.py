"""The file of a model: safetensors, with the architecture as plain data in its metadata.

A file names layers, losses and optimizers by what is registered in the package; it holds no import path and no pickle,
so a file from a stranger can describe a network and nothing else.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.numpy import save as serialize

from gpucnn.core.files import explained, user_path, write_atomic
from gpucnn.engine.executor import Executor
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.layers import Sequential
from gpucnn.layers.base import Layer
from gpucnn.saving.tree import read_described

FORMAT = 1
KEY = "gpucnn"
SUFFIX = ".safetensors"
MAX_PLACES = 20_000  # of layers in a network that is read: a ResNet of a thousand layers has a quarter of them


def save(model: Executor, path: str | os.PathLike[str]) -> None:
    """Write a model's weights, architecture and training settings into a safetensors file.

    It is written atomically: a crash leaves the old file or the new one, never half of one. A name without an extension
    gets `.safetensors`.

    Raises:
        ConfigurationError: the name has the extension of another format.
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
        write_atomic(target, to_bytes(model))


def to_bytes(model: Executor) -> bytes:
    """Return what `save` writes."""
    described = json.dumps({"format": FORMAT, **model.config()}, separators=(",", ":"))
    return serialize(model.state_dict(), metadata={KEY: described})


def find(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that `save` wrote under this name, to which it may have added the extension."""
    found = user_path(path)
    if not found.suffix and not os.path.exists(found) and os.path.exists(f"{found}{SUFFIX}"):
        return Path(f"{found}{SUFFIX}")
    return found


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `Model.config` described, and the arrays by path.

    Raises:
        CheckpointError: the file is missing, damaged or foreign; says which.
    """
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: is a folder; name the model's file in it, such as {path / ('model' + SUFFIX)}")
    return read_described(path, KEY, "a gpucnn model", format_number=FORMAT)


def read_network(described: Any) -> Sequential:
    """Return the network that a file describes.

    Raises:
        CheckpointError: it is not a `Sequential`, or of too many layers.
        ConfigurationError: it is not valid.
    """
    network = Layer.from_config(described)
    if not isinstance(network, Sequential):
        raise CheckpointError(f"describes a {type(network).__name__} where a Sequential was expected")
    if (places := _places(network, {})) > MAX_PLACES:
        raise CheckpointError(
            f"describes layers that are passed in {places:,} places, and this gpucnn reads at most {MAX_PLACES:,}; "
            "was the description edited?"
        )
    return network


def _places(layer: Layer, known: dict[int, int]) -> int:
    """Return in how many places the layers of a network compute: one that stands twice counts twice."""
    if id(layer) not in known:
        known[id(layer)] = 1 + sum(_places(child, known) for _, child in layer.children())
    return known[id(layer)]
