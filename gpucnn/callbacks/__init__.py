"""Callbacks: what else happens while a model is fitted."""

from gpucnn.callbacks.averaging import LookAhead, MovingAverage
from gpucnn.callbacks.base import Callback, EarlyStopping

__all__ = ["Callback", "EarlyStopping", "LookAhead", "MovingAverage"]
