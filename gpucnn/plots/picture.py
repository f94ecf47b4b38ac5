"""The figure that every function of `gpucnn.plots` returns."""

import io

from matplotlib.figure import Figure

DPI = 100  # of what a notebook shows


class Picture(Figure):
    """A figure that a notebook shows, without `%matplotlib` and without pyplot, which knows nothing of it."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
        return drawn.getvalue()
