"""Optimizers: how a gradient moves the parameters, all at once over one flat buffer."""

from gpucnn.optimizers.adam import Adam, AdamW
from gpucnn.optimizers.base import Optimizer
from gpucnn.optimizers.groups import Group
from gpucnn.optimizers.muon import Muon
from gpucnn.optimizers.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Group", "Muon", "Optimizer"]
