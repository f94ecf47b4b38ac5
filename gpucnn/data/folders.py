"""Reading folders of image files, one sub-folder per class."""

import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpucnn.core import checks
from gpucnn.core.files import read_regular, user_path
from gpucnn.data.idx import guess_format, require_file
from gpucnn.errors import DataError, GpucnnError

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}

# Files of file managers and archivers that are hidden on their own systems.
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}

# The maximum memory of reading one image, in bytes, and the memory per pixel: decoded, in colour, as an array, and in
# the decoder (measured; that of WebP holds two canvases and a copy of the whole image).
MEMORY = 640 << 20
_BYTES_PER_PIXEL = {"WEBP": 24}
_DEFAULT_BYTES_PER_PIXEL = 12
_MAX_BYTES = 256 << 20  # of a file
_MAX_SIDE = 1 << 16  # pixels
_BAND = 1 << 20  # pixels that are converted at a time

Size = int | tuple[int, int]


def read_image_folder(path: str | PathLike[str], size: Size | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read every image of a folder whose sub-folders are the classes.

    Classes, and the images in each, come in natural order ("10" after "9"); hidden files are left out.
    PNG, JPEG, BMP, GIF (first frame) and WebP are read. If every image is grey, however its file stores that,
    there is one channel; otherwise all have three. Transparent pixels are blended with black, the value that
    padding has too.

    Shapes
        images  (N, H, W, C) uint8, C is 1 or 3
        labels  (N,) int64, an index into the class names

    size: (height, width) in pixels, or one number for both; images are resized with bilinear interpolation
    and antialiasing. By default all images must have the same size.

    Raises
        DataError           the folder is laid out otherwise, a file is not an image, or has another size
        ConfigurationError  the size is invalid
    """
    folder = user_path(path)
    shape = None if size is None else checks.pair(size, "size, (height, width) or one number,")
    classes = list_folders(folder)
    if not classes:
        raise DataError(_explain_layout(folder))
    for one, other in pairwise(classes):  # neighbours in their order
        if composed(one.name) == composed(other.name):
            raise DataError(
                f"{folder}: the classes {one.name!a} and {other.name!a} are the same name, one with letters and "
                "accents apart; expected one folder for both: put their images together"
            )
    files = [(label, file) for label, inner in enumerate(classes) for file in _list_images(inner)]
    arrays = _read_images([file for _, file in files], shape)
    labels = np.array([label for label, _ in files], np.int64)
    return _stack(arrays), labels, [folder.name for folder in classes]


def list_folders(folder: Path) -> list[Path]:
    """Return the visible sub-folders of a folder in natural order."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"{folder}: {what}; expected a folder with a sub-folder of images for each class: check the path"
        )
    return [entry for entry in _list_visible(folder) if entry.is_dir()]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a key for natural order: digits by their value, letters regardless of case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def composed(name: str) -> str:
    """Return a name in Unicode form NFC: systems and archives differ in how they store accents."""
    return unicodedata.normalize("NFC", name)


def _list_visible(folder: Path) -> list[Path]:
    visible = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    entries = [entry for entry in visible if entry.name.casefold() not in _SYSTEM_FILES]
    return sorted(entries, key=lambda entry: natural_key(composed(entry.name)))


def _list_images(folder: Path) -> list[Path]:
    files = _list_visible(folder)
    inner = [file.name for file in files if file.is_dir()]
    if inner:
        raise DataError(
            f"{folder}: holds the folder {inner[0]!r} ({len(inner)} in all) where a class folder holds only "
            f"images; if {folder.name!r} is not a class but holds the classes, pass it as the path"
        )
    if not files:
        raise DataError(
            f"{folder}: this class folder holds no file; expected at least one image: add images, or remove the folder"
        )
    return files


def _read_images(files: list[Path], shape: tuple[int, int] | None) -> list[np.ndarray]:
    """Decode all files, of one size."""
    arrays: list[np.ndarray] = []
    for file in files:
        array = decode_image(file, shape)
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            raise DataError(_explain_sizes(files[0], arrays[0], file, array))
        arrays.append(array)
    return arrays


def decode_image(path: Path, shape: tuple[int, int] | None, background: int = 0) -> np.ndarray:
    """Decode one file, rotated by its EXIF orientation, to (H, W) if it is grey, else to (H, W, 3)."""
    from PIL import Image

    with open_image(path) as file:
        image = flattened(file, background)
        if shape is not None and image.size != shape[::-1]:
            image = image.resize(shape[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image)


@contextmanager
def open_image(path: Path) -> Iterator["Image.Image"]:
    """Open an image file, rotated by its EXIF orientation; all errors, also while decoding, are raised as DataError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # from memory: reading from disk a decoder may allocate as many bytes as a damaged length declares
            with Image.open(BytesIO(read_regular(path, _MAX_BYTES)), formats=_FORMATS) as file:
                _check_pixels(file, path)
                ImageOps.exif_transpose(file, in_place=True)
                yield file
    except GpucnnError as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path}: {error} Expected at most {Image.MAX_IMAGE_PIXELS:,} pixels: remove or shrink the "
            "image, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except UnidentifiedImageError as error:
        with path.open("rb") as raw:
            format_name = guess_format(raw.read(64))
        raise DataError(
            f"{path}: is not a supported image; it looks like {format_name}. Expected PNG, JPEG, BMP, "
            "GIF or WebP: convert or remove it"
        ) from error
    except Exception as error:  # a decoder fed with damaged bytes may fail in any way
        raise DataError(
            f"{path}: cannot be decoded ({error}); expected a whole image file: it is damaged, replace or remove it"
        ) from error


def _check_pixels(file: "Image.Image", path: Path) -> None:
    """Reject an image whose pixels would take too much memory, before decoding.

    Raises:
        DataError: with its size, and the maximum.
    """
    width, height = file.size
    maximum = MEMORY // _BYTES_PER_PIXEL.get(str(file.format), _DEFAULT_BYTES_PER_PIXEL)
    if width * height > maximum or max(width, height) > _MAX_SIDE:
        raise DataError(
            f"{path}: has {width:,} by {height:,} pixels; expected at most {maximum:,} in a {file.format} image, "
            f"which is decoded within {MEMORY >> 20} MB, and at most {_MAX_SIDE:,} per side: shrink the image"
        )


def flattened(image: "Image.Image", background: int = 0) -> "Image.Image":
    """Return the image in mode L if it is grey, else in RGB, transparency blended with a grey background: 0 is black.

    It is converted band by band, so that a large image takes little more memory than its pixels.
    """
    from PIL import Image

    transparent = image.has_transparency_data
    if image.mode in ("1", "L") and not transparent:
        return image.convert("L")
    image.load()
    width, height = image.size
    pixels = np.empty((height, width, 1 if image.mode.startswith("I") else 3), np.uint8)
    grey = True  # WebP, palettes and many JPEG files keep grey as three channels
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        part = pixels[top : top + rows]
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
            deep = np.asarray(band).astype(np.int64)
            part[..., 0] = ((deep * 255 + 32767) // 65535).clip(0, 255)
            continue
        if transparent:
            below = Image.new("RGBA", band.size, (background, background, background, 255))
            band = Image.alpha_composite(below, band.convert("RGBA"))
        part[:] = np.asarray(band.convert("RGB"))
        grey = grey and bool((part == part[..., :1]).all())
    image.close()  # free its pixels
    return Image.fromarray(pixels[..., 0] if grey else pixels)


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    """Stack images of one size, each (H, W) or (H, W, 3), and free each one after copying it."""
    channels = 3 if any(array.ndim == 3 for array in arrays) else 1
    images = np.empty((len(arrays), *arrays[0].shape[:2], channels), np.uint8)
    for image in images[::-1]:
        array = arrays.pop()
        image[:] = array if array.ndim == 3 else array[..., np.newaxis]
    return images


def _explain_layout(folder: Path) -> str:
    """Return why a folder without sub-folders cannot be read, and what to pass instead."""
    images = [entry for entry in _list_visible(folder) if entry.suffix.casefold() in _SUFFIXES]
    parent = folder.absolute().parent
    expected = "expected a sub-folder of images for each class"
    if not images:
        return f"{folder}: holds no sub-folders and no images; {expected}: check the path"
    files = f"{len(images):,} image files, {images[0].name} first"
    message = f"{folder}: holds no sub-folders but {files}; {expected}"
    if len([entry for entry in _list_visible(parent) if entry.is_dir()]) > 1:
        return f"{message}: this looks like one class's folder; pass its parent {parent}"
    return f"{message}: sort the images into sub-folders named by their class"


def _explain_sizes(first: Path, one: np.ndarray, other: Path, two: np.ndarray) -> str:
    return (
        f"{first} is {one.shape[0]}x{one.shape[1]} pixels (height x width) and {other} is "
        f"{two.shape[0]}x{two.shape[1]}; expected one size for all: resize them, for example with "
        f"size=({one.shape[0]}, {one.shape[1]})"
    )
