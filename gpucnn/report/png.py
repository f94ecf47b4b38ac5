"""Small pictures as inline PNG: images, filters and feature maps as tiles."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

MAX_WIDTH = 800  # CSS pixels of a grid of tiles
GAP = 1  # transparent pixels between tiles


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, its size in CSS pixels, and its alternative text."""

    source: str
    width: int
    height: int
    alt: str


def extremes(values: Any) -> tuple[float, float]:
    """Return the minimum and the maximum of the finite values; 0 and 0 if there are none."""
    finite = values[abs(values) < math.inf]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def grey(values: Any, low: float, high: float) -> Image.Image:
    """Return numbers (H, W) as a grey image from `low` (black) to `high` (white); NaN is black."""
    shown = values.astype("float64")
    shown[shown != shown] = low
    return Image.fromarray(((shown - low) * (255.0 / (high - low or 1.0))).clip(0, 255).round().astype("uint8"))


def image_of(pixels: Any) -> Image.Image:
    """Return bytes (H, W, 1) or (H, W, 3) as an image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def grid(tiles: Sequence[Image.Image], columns: int, alt: str, *, largest: int = 160) -> Picture:
    """Return tiles of one size as a grid, pixel by pixel.

    Arguments:
        largest: CSS pixels of a tile's longer side, at most, unless it has more itself.
    """
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    size = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    whole = Image.new("RGBA" if tiles[0].mode == "RGB" else "LA", size)  # transparent between the tiles
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        whole.paste(tile.convert(whole.mode), (column * (width + GAP), row * (height + GAP)))
    scale = max(1, min(MAX_WIDTH // size[0], largest // max(width, height)))
    return Picture(_as_uri(whole), scale * size[0], scale * size[1], alt)


def reduced(tile: Image.Image, max_side: int) -> tuple[Image.Image, int]:
    """Return a tile downscaled by an integer so that its longer side is at most `max_side` pixels, and the factor."""
    factor = -(-max(tile.size) // max_side)
    return (tile, 1) if factor == 1 else (tile.reduce(factor), factor)


def _as_uri(image: Image.Image) -> str:
    written = io.BytesIO()
    image.save(written, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
