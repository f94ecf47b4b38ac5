"""Callbacks: what else happens while a model is fitted."""

from gpucnn.callbacks.averaging import Lookahead, MovingAverage
from gpucnn.callbacks.base import Callback, EarlyStopping, check_callbacks

__all__ = ["Callback", "EarlyStopping", "Lookahead", "MovingAverage", "check_callbacks"]
