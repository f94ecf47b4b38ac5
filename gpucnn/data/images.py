"""A single image file, brought to the form that a model takes."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.data.folders import decode_image

LUMA = 0.299, 0.587, 0.114  # the weights of red, green and blue in grey: ITU-R BT.601


def read_image(path: str | PathLike[str], size: tuple[int, int], channels: int) -> "np.ndarray[Any, Any]":
    """Return an image file as uint8 (H, W, C): resized to `size` (H, W), in grey for C = 1, in colour for C = 3.

    Raises
        DataError  the file is missing, is no image or is damaged
    """
    pixels = decode_image(Path(path), size)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], channels, axis=-1)
    if channels == 3:
        return pixels
    return np.rint(pixels @ np.array(LUMA)).astype(np.uint8)[..., None]


def is_dark_on_light(image: "np.ndarray[Any, Any]") -> bool:
    """Tell whether the ground of an image (H, W, C) is light: its border is lighter than the middle grey."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return bool(np.median(border) > 127)
