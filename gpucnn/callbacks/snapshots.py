"""Snapshots: the weights of the convolutions before training and after each epoch, on the host and in a file."""

import json
from pathlib import Path
from typing import Any, ClassVar

from safetensors.numpy import save as to_bytes

from gpucnn.callbacks import Callback
from gpucnn.core import checks
from gpucnn.core.files import explained, user_path, write_into
from gpucnn.errors import CheckpointError
from gpucnn.layers.base import Parameter
from gpucnn.layers.conv import Conv2D
from gpucnn.saving.tree import misfit, read_described

SNAPSHOTS = "snapshots.safetensors"
KEY, FORMAT = "gpucnn_snapshots", 1
MAX_BYTES = 16_000_000  # bytes: 1,600 epochs of LeNet

Epochs = dict[int, dict[str, Any]]  # by epoch and path: weights (KH, KW, C/groups, F)


def convolution_weights(model: Any) -> dict[str, Parameter]:
    """Return the weight of every convolution by its path, such as `conv2d_1.weight`, in the order of the network."""
    of_convolutions = {id(layer.weight) for layer in model.network.all_layers() if isinstance(layer, Conv2D)}
    return {path: weight for path, weight in model.parameters().items() if id(weight) in of_convolutions}


class Snapshots(Callback):
    """Save host copies of the weights of all convolutions: before training, and after each epoch.

    Arguments
        folder  where `snapshots.safetensors` is written when the run ends; None: it is not written
        limit   bytes that all copies may take. Weights of which not even the first and the last copy fit are left out
                (`skipped` names them); as the run continues, every other epoch is dropped, and then again

    `epochs[3]["conv2d.weight"]` is what a convolution had after 3 epochs, `epochs[0]` what it began with. Epochs are
    counted as the model counts them, so those of a resumed run continue.

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.callbacks.snapshots import Snapshots
        >>> snapshots = Snapshots()
        >>> history = networks.lenet().fit(x, y, epochs=2, callbacks=[snapshots], verbose=0)
        >>> sorted(snapshots.epochs)  # 0 is before training
        [0, 1, 2]
    """

    renamed: ClassVar = {"left_out": "skipped"}

    def __init__(self, folder: str | Path | None = None, *, limit: int = MAX_BYTES) -> None:
        self.folder = checks.optional(user_path, folder)
        self.limit = checks.integer(limit, "limit, in bytes,", minimum=1)
        self.epochs: Epochs = {}
        self.skipped: list[str] = []

    def on_fit_begin(self, model: Any) -> None:
        """Forget earlier runs, choose what fits, and keep the weights that training begins with."""
        self.epochs, self.skipped, self._paths = {}, [], []
        self._first, self._every, self._size = model.epochs_trained, 1, 0
        for path, weight in convolution_weights(model).items():
            size = weight.size * weight.value.itemsize
            if 2 * (self._size + size) <= self.limit:
                self._paths.append(path)
                self._size += size
            else:
                self.skipped.append(path)
        self._take(model)

    def state(self, model: Any) -> dict[str, Any]:
        """Return all copies, and which epochs are kept."""
        counts = {"first": self._first, "every": self._every, "size": self._size}
        epochs = {str(epoch): kept for epoch, kept in self.epochs.items()}
        return {"epochs": epochs, "paths": self._paths, "skipped": self.skipped, **counts}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Continue with the copies of before.

        Raises:
            CheckpointError: they are not copies of this model's weights.
        """
        own = {path: model.backend.to_host(weight.value) for path, weight in convolution_weights(model).items()}
        if not all(path in own for path in state["paths"]):
            raise CheckpointError("Snapshots: paths names what is not a convolution of this model")
        kept = {path: own[path] for path in state["paths"]}
        if wrong := misfit(state["epochs"], dict.fromkeys(state["epochs"], kept), "epochs"):
            raise CheckpointError(f"Snapshots: {wrong}")
        if state["every"] < 1 or state["size"] < 0:
            raise CheckpointError(f"Snapshots: every is {state['every']} and size {state['size']}")
        self.epochs = {int(epoch): kept for epoch, kept in state["epochs"].items()}
        self._paths, self.skipped = state["paths"], state["skipped"]
        self._first, self._every, self._size = state["first"], state["every"], state["size"]

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        """Keep the weights after the epoch."""
        self._take(model)

    def on_fit_end(self, model: Any) -> None:
        """Write the file, where a folder was given."""
        if self.folder is not None:
            self.save(self.folder)

    def save(self, folder: str | Path) -> None:
        """Write `snapshots.safetensors` into a folder; nothing where there is no convolution.

        Raises:
            CheckpointError: the folder is missing or cannot be written.
        """
        arrays = {_name(epoch, path): value for epoch, kept in self.epochs.items() for path, value in kept.items()}
        if not arrays:
            return
        described = json.dumps({"format": FORMAT, "paths": self._paths})  # the file itself sorts them by name
        folder = user_path(folder)
        with explained(folder / SNAPSHOTS):
            write_into(folder, SNAPSHOTS, to_bytes(arrays, metadata={KEY: described}))

    def _take(self, model: Any) -> None:
        """Keep the weights of now, the newest, and drop what the limit asks for."""
        if not self._paths:
            return
        newest, weights = model.epochs_trained, convolution_weights(model)
        held = self.epochs | {newest: {path: model.backend.to_host(weights[path].value).copy() for path in self._paths}}
        while True:
            self.epochs = {e: kept for e, kept in held.items() if (e - self._first) % self._every == 0 or e == newest}
            if len(self.epochs) * self._size <= self.limit:
                return
            self._every *= 2


def load_snapshots(path: str | Path) -> Epochs:
    """Read what `Snapshots` wrote, from a run folder or the file itself: weights by epoch and by path.

    Raises:
        CheckpointError: there is none, or it is damaged or foreign; says which.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.callbacks.snapshots import Snapshots, load_snapshots
        >>> snapshots = Snapshots()
        >>> history = networks.lenet().fit(x, y, epochs=1, callbacks=[snapshots], verbose=0)
        >>> snapshots.save(".")
        >>> sorted(load_snapshots("."))
        [0, 1]
    """
    file = user_path(path)
    file = file / SNAPSHOTS if file.is_dir() else file
    if not file.is_file():
        raise CheckpointError(
            f"{file}: there are no snapshots; `gpucnn train` writes them into its run folder, and so does "
            "fit(…, callbacks=[Snapshots(folder)])"
        )
    described, arrays = read_described(file, KEY, "snapshots", format_number=FORMAT)
    try:
        numbers = sorted({int(name[len("epoch_") :].partition("/")[0]) for name in arrays})
        return {epoch: {path: arrays[_name(epoch, path)] for path in described["paths"]} for epoch in numbers}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: does not hold what it says ({error}); was it cut or put together?") from error


def _name(epoch: int, path: str) -> str:
    """Return what a weight is called in the file."""
    return f"epoch_{epoch:04d}/{path}"
