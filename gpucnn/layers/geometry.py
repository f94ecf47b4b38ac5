"""From what a user writes for a window (`"same"`, `3`, `(2, 1)`) to the `Window` that a kernel computes with."""

from typing import Any

from gpucnn.backends import Window
from gpucnn.backends.window import Pair
from gpucnn.core import checks
from gpucnn.errors import ConfigurationError, ShapeError

Padding = str | int | Pair | tuple[Pair, Pair]


def checked_padding(padding: Any, what: str) -> Padding:
    """Return a padding in the form in which it was written; raise ConfigurationError where that is none."""
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ConfigurationError(f'{what} must be "valid", "same" or numbers, not {padding!r}')
        return padding
    if isinstance(padding, list | tuple) and any(isinstance(side, list | tuple) for side in padding):
        if len(padding) != 2:
            raise ConfigurationError(f"{what} must be ((top, bottom), (left, right)), not {padding!r}")
        top_bottom, left_right = (checks.pair(side, f"each side of {what}", minimum=0) for side in padding)
        return top_bottom, left_right
    return checks.integer_or_pair(padding, what, minimum=0)


def require_image(input_shape: tuple[int, ...], label: str) -> tuple[int, int, int]:
    """Return (H, W, C), or raise ShapeError where the input is not an image."""
    if len(input_shape) != 3:
        raise ShapeError(
            f"{label}: expected images (H, W, C), got inputs of shape {input_shape}; a layer on images must come "
            "before Flatten, and grey images still need their channel axis (H, W, 1)"
        )
    H, W, C = input_shape
    return H, W, C


def make_window(
    label: str, image_size: Pair, size: Pair, strides: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Window:
    """Make the window's padding explicit for images of (H, W).

    `"same"` gives ceil(H / SH) rows; where the padding is odd the larger half is at the bottom and right.

    Raises:
        ShapeError: not even one window fits.
    """
    extent = Window(size, strides, dilation=dilation).extent
    explicit = tuple(_resolve_padding(padding, axis, image_size[axis], extent[axis], strides[axis]) for axis in (0, 1))
    window = Window(size, strides, (explicit[0], explicit[1]), dilation)
    if min(window.output_size(image_size)) < 1:
        dilated = "" if dilation == (1, 1) else f" dilated by {dilation[0]}x{dilation[1]}"
        raise ShapeError(
            f"{label}: kernel {size[0]}x{size[1]}{dilated} does not fit a {image_size[0]}x{image_size[1]} input "
            f'with padding {padding if padding != "valid" else 0}; use padding="same" or a smaller kernel'
        )
    return window


def _resolve_padding(padding: Any, axis: int, size: int, extent: int, stride: int) -> Pair:
    """Return the padding (before, after) along one axis."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + extent - size, 0)
        return total // 2, total - total // 2
    given = padding if isinstance(padding, int) else padding[axis]
    return (given, given) if isinstance(given, int) else (given[0], given[1])
