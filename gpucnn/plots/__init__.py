"""Pictures of training, drawn with matplotlib: each function returns a Figure, and saves it where `path` is given."""

from gpucnn.plots.curves import history

__all__ = ["history"]
