"""Optimizers: how a gradient moves the parameters, all at once over one flat buffer."""

from typing import Any

from gpucnn.core.hints import no_such_class
from gpucnn.optimizers.adam import Adam, AdamW
from gpucnn.optimizers.base import Optimizer
from gpucnn.optimizers.groups import Group
from gpucnn.optimizers.muon import Muon
from gpucnn.optimizers.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Group", "Muon", "Optimizer"]


def __getattr__(name: str) -> Any:
    """Say what a class of another library is called here."""
    raise no_such_class("gpucnn.optimizers", name, __all__)
