"""Single image files, preprocessed for a model."""

import math
from os import PathLike
from typing import Any

import numpy as np

from gpucnn.core.files import user_path
from gpucnn.data.folders import decode_image

LUMA = 0.299, 0.587, 0.114  # the weights of red, green and blue in grey: ITU-R BT.601

ROW_BLOCK = 64  # rows of an image that are converted to grey at a time
MAX_SIDE = 1024  # pixels; larger photographs are downscaled before a digit is segmented
MIN_CONTRAST = 20  # grey levels between ink and background
MIN_STROKE = 1.8  # pixels of the 20 that a digit fills: about the thinnest strokes of MNIST

Image = np.ndarray[Any, np.dtype[np.uint8]]


def read_image(path: str | PathLike[str], size: tuple[int, int] | None, channels: int) -> Image:
    """Return an image file as uint8 (H, W, C), upright: in grey for C = 1, in colour for C = 3.

    It is resized to `size` (H, W), or keeps its own size if that is None. Transparent pixels become white in grey, the
    paper of a drawing, and black in colour, as in folders of images for training.

    Raises
        DataError  the file is missing, damaged, or not an image
    """
    pixels = decode_image(user_path(path), size, background=255 if channels == 1 else 0)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], channels, axis=-1)
    if channels == 3:
        return pixels
    grey = np.empty((*pixels.shape[:2], 1), np.uint8)
    for top in range(0, len(pixels), ROW_BLOCK):  # the products take 20 bytes per pixel
        grey[top : top + ROW_BLOCK, :, 0] = np.rint(pixels[top : top + ROW_BLOCK] @ np.array(LUMA))
    return grey


def is_dark_on_light(image: Image) -> bool:
    """Return whether the background of an image (H, W, C), judged by its border, is lighter than the foreground."""
    background = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]))
    darkest, lightest = int(image.min()), int(image.max())
    if lightest - darkest < MIN_CONTRAST:  # a blank image
        return bool(background > 127)
    return bool(background > (darkest + lightest) / 2)


def centre_digit(image: Image, size: tuple[int, int]) -> Image:
    """Preprocess a light digit on a dark background (H, W, 1) like those of MNIST, in an image of another size.

    Its bounding box fills 20 of 28 pixels, and its centre of mass is in the middle. Before that the background's
    gradient, noise and small specks are removed, and very thin strokes are thickened. Without ink the image is black.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998).
    """
    from PIL import Image as pillow

    H, W = size
    ink = _ink(_reduced(image[..., 0]))
    if not ink.any():
        return np.zeros((H, W, 1), np.uint8)
    box = _cropped(ink)
    box = _cropped(_thickened(box, MIN_STROKE / 20 * max(box.shape)))
    scale = min(H, W) * 20 / 28 / max(box.shape)
    height, width = (max(1, round(scale * side)) for side in box.shape)
    small = pillow.fromarray(box).resize((width, height), pillow.Resampling.BILINEAR)
    return _centred(np.asarray(small), (H, W))


def _reduced(grey: Image) -> Image:
    """Return an image downscaled to at most MAX_SIDE pixels per side."""
    from PIL import Image as pillow

    scale = MAX_SIDE / max(grey.shape)
    if scale >= 1:
        return grey
    H, W = (max(1, round(scale * side)) for side in grey.shape)
    return np.asarray(pillow.fromarray(grey).resize((W, H), pillow.Resampling.BILINEAR))


def _ink(grey: Image) -> Any:
    """Return the amount of ink of each pixel (H, W), 0 … 1: float32, all 0 if there is too little contrast."""
    from scipy import ndimage

    level = grey - _slope(grey)
    cut = _otsu(level)
    if not (level > cut).any():
        return np.zeros(grey.shape, np.float32)
    background, stroke = np.median(level[level <= cut]), np.median(level[level > cut])
    if stroke - background < MIN_CONTRAST:
        return np.zeros(grey.shape, np.float32)
    ink = ((level - background) / (stroke - background)).astype(np.float32)
    ink = np.clip((ink - 0.2) / 0.8, 0, 1)  # the lowest fifth is background noise
    parts, count = ndimage.label(ink > 0.5, structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    specks = areas < 0.03 * areas[1:].max(initial=0)
    specks[0] = False
    if specks.any():  # with the soft edge of each
        near = ndimage.binary_dilation(specks[parts], np.ones((3, 3)), iterations=2)
        ink[near & (specks[parts] | (parts == 0))] = 0
    return ink


def _slope(grey: Image) -> Any:
    """Return the plane (H, W) fitted to the background at the image's border: uneven lighting of the paper."""
    H, W = grey.shape
    edge = max(1, min(H, W) // 20)
    border = np.ones((H, W), bool)
    border[edge : H - edge, edge : W - edge] = False
    row, column = np.nonzero(border)
    terms = np.stack([row / H, column / W, np.ones(len(row))], axis=1)
    plane, *_ = np.linalg.lstsq(terms, grey[border].astype(float), rcond=None)
    return plane[0] * np.arange(H)[:, None] / H + plane[1] * np.arange(W) / W + plane[2]


def _otsu(level: Any) -> float:
    """Return the threshold between dark and light pixels with the minimum variance within both.

    Source: Otsu, "A threshold selection method from gray-level histograms" (1979).
    """
    counts, edges = np.histogram(level, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + np.nanargmax(np.where(above > 0, between, -1))])


def _cropped(ink: Any) -> Any:
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thickened(ink: Any, stroke: float) -> Any:
    """Return ink, with a margin, dilated to strokes of about a given width if they are thinner."""
    from scipy import ndimage

    inside = np.pad(ink > 0.5, 1)
    thickness = 4 * ndimage.distance_transform_edt(inside)[inside].mean()  # of a bar: the mean is a quarter of it
    extra = round(stroke - thickness)
    return ndimage.grey_dilation(np.pad(ink, extra), footprint=_disc(extra)) if extra > 0 else ink


def _disc(diameter: int) -> Any:
    away = np.arange(diameter + 1) - diameter / 2
    return np.hypot(away[:, None], away) <= diameter / 2 + 0.3


def _centred(ink: Any, size: tuple[int, int]) -> Image:
    """Return ink in a black image, its centre of mass in the middle as far as it fits."""
    image = np.zeros((*size, 1), np.uint8)
    mass = ink.sum()
    corner = []
    for axis, side in enumerate(size):
        centre = (ink.sum(axis=1 - axis) * (np.arange(ink.shape[axis]) + 0.5)).sum() / mass
        corner.append(min(max(math.floor(side / 2 - centre + 0.5), 0), side - ink.shape[axis]))
    (top, left), (height, width) = corner, ink.shape
    image[top : top + height, left : left + width, 0] = np.rint(255 * np.clip(ink / ink.max(), 0, 1))
    return image
