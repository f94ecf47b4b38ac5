"""gpucnn: convolutional networks with hand-written backward passes, in NumPy on a CPU or in CuPy on a GPU.

The examples in docstrings are for a session that has begun with `import numpy as np` and `from gpucnn import *`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gpucnn import callbacks, datasets, initializers, layers, losses, metrics, networks, optimizers, schedules
from gpucnn.backends import get_backend, use_backend
from gpucnn.backends.numpy.threads import set_num_threads
from gpucnn.core.hints import no_such_class
from gpucnn.errors import (
    BackendUnavailable,
    CaptureWarning,
    CheckpointError,
    CheckpointWarning,
    ConfigurationError,
    DataError,
    DataWarning,
    DTypeError,
    GpucnnError,
    LayerError,
    NumericError,
    OutOfMemoryError,
    ShapeError,
    ThreadWarning,
)
from gpucnn.model import Model, load
from gpucnn.training.checkpoints import Checkpoints
from gpucnn.version import __version__

if TYPE_CHECKING:
    from gpucnn import plots, report
    from gpucnn.testing.layer_check import check_layer
    from gpucnn.testing.parity import parity

__all__ = [
    "BackendUnavailable",
    "CaptureWarning",
    "CheckpointError",
    "CheckpointWarning",
    "Checkpoints",
    "ConfigurationError",
    "DTypeError",
    "DataError",
    "DataWarning",
    "GpucnnError",
    "LayerError",
    "Model",
    "NumericError",
    "OutOfMemoryError",
    "ShapeError",
    "ThreadWarning",
    "__version__",
    "callbacks",
    "check_layer",
    "datasets",
    "get_backend",
    "initializers",
    "layers",
    "load",
    "losses",
    "metrics",
    "networks",
    "optimizers",
    "parity",
    "plots",
    "report",
    "schedules",
    "set_num_threads",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """Import what brings matplotlib, Jinja2 or rich when it is first used."""
    if name in ("plots", "report"):
        return importlib.import_module(f"gpucnn.{name}")
    if name == "parity":
        return importlib.import_module("gpucnn.testing.parity").parity
    if name == "check_layer":
        return importlib.import_module("gpucnn.testing.layer_check").check_layer
    raise no_such_class("gpucnn", name, __all__)
