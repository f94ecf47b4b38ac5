"""What all pictures share: colours, figures, images as tiles, and saving."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.core.files import explained, user_path, write_atomic
from gpucnn.core.text import printable
from gpucnn.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers, and a grey
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
GREY = "#888888"

DPI = 150  # of PNG files
GAP = 0.12  # between tiles, relative to a tile's width
TILE_FONT_SIZE = 7.0  # points, of the labels of tiles and small axes
SCALE_WIDTH = 0.15  # inches, of a colour bar
MAX_COLUMNS = 16  # tiles in a row


def new_figure(width: float, height: float, *, compressed: bool = False) -> "Figure":
    """Return an empty figure, in inches, without overlapping labels; `compressed` for axes of fixed aspect."""
    import_matplotlib()
    from gpucnn.plots.picture import Picture

    return Picture(figsize=(width, height), layout="compressed" if compressed else "constrained")


def import_matplotlib() -> None:
    """Import matplotlib: late, since that takes longer than importing the rest of the package, and without MPLBACKEND.

    The variable may name a backend that is not installed here, as in a command started from a notebook of another
    environment. matplotlib could not be imported then, though writing a file needs no such backend.
    """
    if "matplotlib" in sys.modules:
        return
    requested = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if requested is not None:
        os.environ["MPLBACKEND"] = requested
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = requested


def check_name(path: str | Path, also: Sequence[str] = ()) -> None:
    """Reject a file name whose extension is not a picture format.

    Raises:
        ConfigurationError: lists the extensions that are supported.
    """
    known = {*new_figure(1, 1).canvas.get_supported_filetypes(), *also}
    if (extension := Path(path).suffix.lower().removeprefix(".")) not in known:
        shown = ", ".join(f".{name}" for name in ("png", "svg", "pdf", *also))
        raise ConfigurationError(
            f"{path}: pictures cannot be written as {f'.{extension}' if extension else 'a file without extension'}; "
            f"expected one of the extensions {shown}"
        )


def save(figure: "Figure", path: str | Path | None) -> "Figure":
    """Write the figure if a path is given, in the format of its extension; return the figure.

    Raises:
        ConfigurationError: the extension is not a format, or the file cannot be written.
    """
    if path is not None:
        path = user_path(path)
        check_name(path)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=DPI, bbox_inches="tight")
        write(path, drawn)
    return figure


def write(path: Path, drawn: io.BytesIO) -> None:
    """Write a picture that was drawn into memory, atomically.

    Raises:
        ConfigurationError: it cannot be written; says why.
    """
    with explained(path, ConfigurationError):
        write_atomic(path, drawn.getvalue())


def escape_mathtext(text: str) -> str:
    """Return a text to be drawn literally: matplotlib would typeset what stands between dollar signs as a formula."""
    return printable(text, lines=True).replace("$", r"\$")


def whole_numbers(axis: Any) -> None:
    """Put the ticks of an axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def tile_size(tiles: Sequence[Any], labels: bool = False) -> tuple[float, float]:
    """Return the width and height of a tile with its gap and label, relative to the tile's width."""
    height, width = tiles[0].shape[:2]
    return 1 + GAP, height / width + (0.35 if labels else GAP)


def draw_tiles(
    axes: Any, tiles: Sequence[Any], columns: int, labels: Sequence[str] | None = None, **options: Any
) -> None:
    """Draw small images (H, W) or (H, W, 3) of one size as a grid, row by row, each with a label above.

    Tile i is `axes.images[i]`; `options` are those of `imshow`.
    """
    from matplotlib.patches import Rectangle

    across, down = tile_size(tiles, labels is not None)
    height = tiles[0].shape[0] / tiles[0].shape[1]
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        left, top = column * across, row * down
        axes.imshow(tile, extent=(left, left + 1, top + height, top), interpolation="nearest", **options)
        axes.add_patch(Rectangle((left, top), 1, height, fill=False, edgecolor=GREY, linewidth=0.4))
        if labels is not None:
            axes.text(left + 0.5, top - 0.03, labels[place], ha="center", va="bottom", fontsize=TILE_FONT_SIZE)
    rows = -(-len(tiles) // columns)
    axes.set_xlim(-0.02, columns * across - GAP + 0.02)
    axes.set_ylim(rows * down - (down - height) + 0.02, -0.02 - (0.25 if labels is not None else 0))
    axes.set_aspect("equal")
    axes.tick_params(length=0, labelsize=TILE_FONT_SIZE)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def add_scale(figure: "Figure", axes: Any, what: str, height: float) -> None:
    """Add a colour bar next to tiles that are `height` inches high."""
    shrink = min(1.0, 3.0 / height)
    figure.colorbar(axes.images[0], ax=axes, label=what, shrink=shrink, aspect=shrink * height / SCALE_WIDTH)


def label_columns(axes: Any, tiles: Sequence[Any], labels: Sequence[Any], what: str) -> None:
    """Label each column of tiles below, and the axis."""
    across, _ = tile_size(tiles)
    axes.set_xticks([column * across + 0.5 for column in range(len(labels))], [str(label) for label in labels])
    axes.set_xlabel(what)


def label_rows(axes: Any, tiles: Sequence[Any], labels: Sequence[Any], what: str) -> None:
    """Label each row of tiles on the left, and the axis."""
    _, down = tile_size(tiles)
    middle = tiles[0].shape[0] / tiles[0].shape[1] / 2
    axes.set_yticks([row * down + middle for row in range(len(labels))], [str(label) for label in labels])
    axes.set_ylabel(what)


def evenly_spaced(count: int, maximum: int) -> list[int]:
    """Return up to a maximum of evenly spaced indices below `count`, the first and the last among them."""
    if count <= maximum:
        return list(range(count))
    if maximum < 2:
        return [count - 1]
    return [round(place * (count - 1) / (maximum - 1)) for place in range(maximum)]


def displayable(pixels: Any) -> Any:
    """Return pixels (H, W, C), uint8 or floats, as values 0 … 1 that imshow takes: grey ones as (H, W)."""
    values = np.clip(pixels / (255.0 if pixels.dtype == np.uint8 else 1.0), 0.0, 1.0)
    return values[..., 0] if pixels.shape[-1] == 1 else values
