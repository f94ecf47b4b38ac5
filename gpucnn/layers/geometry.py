"""From what a user writes for a window (`"same"`, `3`, `(2, 1)`) to the `Window` that a kernel computes with."""

from typing import Any

from gpucnn.backends import Window
from gpucnn.backends.window import Pair
from gpucnn.errors import ConfigurationError, ShapeError

Padding = str | int | Pair | tuple[Pair, Pair]


def pair(value: Any, what: str = "a size", minimum: int = 1) -> Pair:
    """Return an int, or a pair of ints, as a pair.

    Raises:
        ConfigurationError: anything else, or a number below the minimum.
    """
    values = (value, value) if _is_int(value) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(values) != 2 or not all(_is_int(v) and v >= minimum for v in values):
        raise ConfigurationError(f"{what} must be an integer of at least {minimum} or a pair of them, not {value!r}")
    return int(values[0]), int(values[1])


def positive(value: Any, what: str) -> int:
    """Return an int above 0, or raise ConfigurationError."""
    if not _is_int(value) or value < 1:
        raise ConfigurationError(f"{what} must be a positive integer, not {value!r}")
    return int(value)


def check_padding(padding: Any, what: str) -> None:
    """Raise ConfigurationError unless `padding` has one of the forms that users may write."""
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ConfigurationError(f'{what} must be "valid", "same" or numbers, not {padding!r}')
    elif isinstance(padding, list | tuple) and any(isinstance(side, list | tuple) for side in padding):
        if len(padding) != 2:
            raise ConfigurationError(f"{what} must be ((top, bottom), (left, right)), not {padding!r}")
        for side in padding:
            pair(side, f"each side of {what}", minimum=0)
    else:
        pair(padding, what, minimum=0)


def image_shape(input_shape: tuple[int, ...], label: str) -> tuple[int, int, int]:
    """Return (H, W, C), or raise ShapeError where the input is no image."""
    if len(input_shape) != 3:
        raise ShapeError(
            f"{label}: expected images (H, W, C), got inputs of shape {input_shape}; a layer on images must come "
            "before Flatten, and grey images still need their channel axis (H, W, 1)"
        )
    H, W, C = input_shape
    return H, W, C


def fit_window(
    label: str, image_size: Pair, size: Pair, strides: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Window:
    """Make the window's padding explicit for images of (H, W).

    `"same"` gives ceil(H / SH) rows; where the padding is odd the larger half is at the bottom and right.

    Raises:
        ShapeError: not even one window fits.
    """
    reach = Window(size, strides, dilation=dilation).extent
    explicit = tuple(_explicit_padding(padding, axis, image_size[axis], reach[axis], strides[axis]) for axis in (0, 1))
    window = Window(size, strides, (explicit[0], explicit[1]), dilation)
    if min(window.output_size(image_size)) < 1:
        dilated = "" if dilation == (1, 1) else f" dilated by {dilation[0]}x{dilation[1]}"
        raise ShapeError(
            f"{label}: kernel {size[0]}x{size[1]}{dilated} does not fit a {image_size[0]}x{image_size[1]} input "
            f'with padding {padding if padding != "valid" else 0}; use padding="same" or a smaller kernel'
        )
    return window


def _explicit_padding(padding: Any, axis: int, side: int, reach: int, stride: int) -> Pair:
    """Return the padding (before, after) along one axis."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        outputs = -(-side // stride)
        total = max((outputs - 1) * stride + reach - side, 0)
        return total // 2, total - total // 2
    if _is_int(padding):
        return int(padding), int(padding)
    given = padding[axis]
    return (int(given), int(given)) if _is_int(given) else (int(given[0]), int(given[1]))


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and not hasattr(value, "shape")
