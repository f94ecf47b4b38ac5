"""The figure that every function of `gpucnn.plots` returns."""

import io

from matplotlib.figure import Figure

DPI = 100  # in a notebook


class Picture(Figure):
    """A figure that a notebook displays, without `%matplotlib` and without pyplot."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
        return drawn.getvalue()
