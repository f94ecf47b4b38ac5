"""What all pictures share: colours, a figure, tiles side by side, and saving."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucnn.core.files import explained, user_path, write_whole
from gpucnn.core.text import printable
from gpucnn.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart, and a grey
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
GREY = "#888888"

DPI = 150  # of PNG files
GAP = 0.12  # between tiles, of a tile's width
SMALL = 7.0  # the size of letters on and beside tiles, in points
SCALE_WIDTH = 0.15  # of a colour bar, in inches
ACROSS = 16  # tiles in a row, at most


def new_figure(width: float, height: float, *, compressed: bool = False) -> "Figure":
    """Return an empty figure of so many inches that keeps its labels apart; `compressed` for axes of fixed aspect."""
    import_matplotlib()
    from gpucnn.plots.picture import Picture

    return Picture(figsize=(width, height), layout="compressed" if compressed else "constrained")


def import_matplotlib() -> None:
    """Import matplotlib: late, since it takes longer than the rest of the package, and whatever MPLBACKEND says.

    It may name a backend that is not installed here, as in a command that a notebook of another environment starts.
    matplotlib cannot be imported then, though a picture that is written to a file needs none.
    """
    if "matplotlib" in sys.modules:
        return
    asked = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if asked is not None:
        os.environ["MPLBACKEND"] = asked
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = asked


def check_name(path: str | Path, also: Sequence[str] = ()) -> None:
    """Refuse a file name whose ending is no format for pictures.

    Raises:
        ConfigurationError: names the endings that can be had.
    """
    known = {*new_figure(1, 1).canvas.get_supported_filetypes(), *also}
    if (ending := Path(path).suffix.lower().removeprefix(".")) not in known:
        shown = ", ".join(f".{name}" for name in ("png", "svg", "pdf", *also))
        raise ConfigurationError(
            f"{path}: pictures cannot be written as {f'.{ending}' if ending else 'a name without ending'}; expected a "
            f"name that ends with {shown}"
        )


def save(figure: "Figure", path: str | Path | None) -> "Figure":
    """Write the figure where a path is given, in the format of its ending; return the figure.

    Raises:
        ConfigurationError: the ending is no format, or the file cannot be written.
    """
    if path is not None:
        path = user_path(path)
        check_name(path)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=DPI, bbox_inches="tight")
        write(path, drawn)
    return figure


def write(path: Path, drawn: io.BytesIO) -> None:
    """Write a picture that was drawn into memory, whole or not at all.

    Raises:
        ConfigurationError: it cannot be written; says why.
    """
    with explained(path, ConfigurationError):
        write_whole(path, drawn.getvalue())


def plain(words: str) -> str:
    """Return words as they are shown: matplotlib would take what stands between dollar signs for a formula."""
    return printable(words, lines=True).replace("$", r"\$")


def whole_numbers(axis: Any) -> None:
    """Mark an axis at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def tile_size(tiles: Sequence[Any], labels: bool = False) -> tuple[float, float]:
    """Return what a tile takes, in tile widths: across and down, gap and label included."""
    height, width = tiles[0].shape[:2]
    return 1 + GAP, height / width + (0.35 if labels else GAP)


def draw_tiles(
    axes: Any, tiles: Sequence[Any], columns: int, labels: Sequence[str] | None = None, **options: Any
) -> None:
    """Draw small images (H, W) or (H, W, 3) of one size as a grid, row by row, with a label above each.

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
            axes.text(left + 0.5, top - 0.03, labels[place], ha="center", va="bottom", fontsize=SMALL)
    rows = -(-len(tiles) // columns)
    axes.set_xlim(-0.02, columns * across - GAP + 0.02)
    axes.set_ylim(rows * down - (down - height) + 0.02, -0.02 - (0.25 if labels is not None else 0))
    axes.set_aspect("equal")
    axes.tick_params(length=0, labelsize=SMALL)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def add_scale(figure: "Figure", axes: Any, what: str, height: float) -> None:
    """Put a colour bar beside tiles that are `height` inches high."""
    shrink = min(1.0, 3.0 / height)
    figure.colorbar(axes.images[0], ax=axes, label=what, shrink=shrink, aspect=shrink * height / SCALE_WIDTH)


def mark_columns(axes: Any, tiles: Sequence[Any], words: Sequence[Any], what: str) -> None:
    """Write a word below each column of tiles, and what they are."""
    across, _ = tile_size(tiles)
    axes.set_xticks([column * across + 0.5 for column in range(len(words))], [str(word) for word in words])
    axes.set_xlabel(what)


def mark_rows(axes: Any, tiles: Sequence[Any], words: Sequence[Any], what: str) -> None:
    """Write a word beside each row of tiles, and what they are."""
    _, down = tile_size(tiles)
    middle = tiles[0].shape[0] / tiles[0].shape[1] / 2
    axes.set_yticks([row * down + middle for row in range(len(words))], [str(word) for word in words])
    axes.set_ylabel(what)


def spread(count: int, most: int) -> list[int]:
    """Return at most so many places of a list of `count`, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    if most < 2:
        return [count - 1]
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
