"""Augmentation: images that are shown a little differently each time, so that a network learns what does not matter.

An augmentation only says how; the images are changed on the model's backend, while a batch is gathered, in one pass
over their bytes. It draws random words for each image from a counter-based stream, which give the same transforms on
every backend: `model.fit(x, y, augment=[Flip(), Translate(4), Cutout(8)])`. Whatever the order of the list, an image is
turned first, then moved or cropped, then mirrored, and painted over at last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends import Array, Backend
from gpucnn.backends.image_transform import BITS, ONE, ImageTransform
from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.data.arrays import host_array
from gpucnn.errors import ConfigurationError, ShapeError

Numbers = dict[str, Any]  # the fields of a Placement

STEPS = 1025  # of an angle and of a factor; the one in the middle is none at all
LARGEST_TURNED = 32768  # pixels, the sides of an image together: twice the centre's place, enlarged, takes 31 bits


@dataclass(frozen=True)
class Draw:
    """What an augmentation goes by for the N images of a batch; arrays are the backend's.

    words       uint32 (N, words of the augmentation), random
    image_size  (H, W), in the data set
    size        (OH, OW), as the model is given them; the same but for a crop
    epoch       uint32 (), how often the model has seen its data before
    tables      what the augmentation's `tables` returned
    """

    words: Array
    image_size: tuple[int, int]
    size: tuple[int, int]
    epoch: Array | int = 0
    tables: tuple[Array, ...] = ()


class Augmentation(Configurable, family="augmentation"):
    """Base of every augmentation: `place` says what it does to the images of a batch."""

    #: how many random words it draws for each image
    words = 1

    #: whether these are drawn once for each image of the data set, by its place there, instead of for each batch anew
    lasting = False

    #: what it does to images, as a verb; two augmentations that do the same to one would undo each other
    does = ""

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuse images (H, W, C) that cannot be changed so; raises ShapeError."""

    def result_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of what it makes of images of (H, W)."""
        return image_size

    def tables(self) -> "tuple[np.ndarray[Any, Any], ...]":
        """Return what the host computes once for a training and the backend looks up in every batch."""
        return ()

    def place(self, backend: Backend, draw: Draw) -> Numbers:
        """Return fields of an `ImageTransform`."""
        raise NotImplementedError(f"{type(self).__name__} has no place")


class Flip(Augmentation):
    """Mirror an image, left for right, with a probability.

    Arguments
        probability  0 … 1
    """

    does = "mirrors"

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = checks.number(probability, "Flip: probability", minimum=0, maximum=1)

    def place(self, backend: Backend, draw: Draw) -> Numbers:
        """Mirror where the word is below the probability."""
        mirrored = draw.words[:, 0] < min(int(self.probability * 2**32), 2**32 - 1)
        return {"flip": mirrored.astype("int32")}


class AlternatingFlip(Augmentation):
    """Mirror each image, left for right, in every other epoch: half of them in the first, the others in the next.

    Which half is drawn by chance, once. Two epochs in a row then show every image both ways, where `Flip` shows half of
    the images twice the same way. Which way depends on the image's place in the data set and on how many epochs the
    model has been trained for, so it goes on alternating in a second `fit` and in a model that was saved and loaded.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024).
    """

    lasting = True
    does = "mirrors"

    def place(self, backend: Backend, draw: Draw) -> Numbers:
        """Mirror by the word's highest bit in even epochs, and by its opposite in odd ones."""
        return {"flip": ((draw.words[:, 0] >> 31) ^ (draw.epoch & 1)).astype("int32")}


class Translate(Augmentation):
    """Move an image by up to so many pixels down or up and right or left; what comes in is the image reflected.

    A crop of the image's own size from the image padded by reflection is the same.

    Arguments
        pixels  at least 1, and less than the image's sides
    """

    words = 2
    does = "moves"

    def __init__(self, pixels: int) -> None:
        self.pixels = _positive(pixels, "Translate: pixels")

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuse images that cannot be reflected so far."""
        if self.pixels >= min(image_shape[:2]):
            raise ShapeError(
                f"Translate({self.pixels}): an image of {image_shape[0]}x{image_shape[1]} has no {self.pixels} pixels "
                "to reflect beside its edge; translate by less"
            )

    def place(self, backend: Backend, draw: Draw) -> Numbers:
        """Draw both offsets from −pixels … pixels, all equally likely."""
        offsets = (draw.words % (2 * self.pixels + 1)).astype("int32") - self.pixels
        return {"shift_y": offsets[:, 0], "shift_x": offsets[:, 1]}


class RandomCrop(Augmentation):
    """Cut a part of a given size out of an image that was padded on all sides; all parts are equally likely.

    With the defaults the image is moved by up to 4 pixels, and black comes in: what residual networks are trained with
    on CIFAR-10.

    Arguments
        size     OH and OW, or one number for both; None is the image's own size. With a size, `fit` takes images that
                 are larger than the model's inputs; only those it is trained on are cropped.
        padding  in pixels, on each side, at least 0
        mode     "zeros" pads by one value, "reflect" by the image as a mirror at its edges shows it
        fill     0 … 255, that value: of a pixel as it lies in the data set, before any normalisation

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), section 4.2.
    """

    words = 2
    does = "moves"

    def __init__(
        self, size: int | tuple[int, int] | None = None, padding: int = 4, mode: str = "zeros", fill: int = 0
    ) -> None:
        if isinstance(size, list | tuple):
            if len(size) != 2:
                raise ConfigurationError(f"RandomCrop: size must be a number of pixels or a pair of them, not {size!r}")
            size = _positive(size[0], "RandomCrop: size"), _positive(size[1], "RandomCrop: size")
        elif size is not None:
            size = _positive(size, "RandomCrop: size")
        self.size, self.padding = size, checks.integer(padding, "RandomCrop: padding", minimum=0)
        self.mode = checks.one_of(mode, "RandomCrop: mode", ("zeros", "reflect"))
        self.fill = _pixel(fill, "RandomCrop: fill")

    def result_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the crop's size, or that of the images."""
        if self.size is None:
            return image_size
        OH, OW = self.size if isinstance(self.size, list | tuple) else (self.size, self.size)
        return OH, OW

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuse images that are too small to be cropped or reflected so."""
        (H, W), (OH, OW) = image_shape[:2], self.result_size((image_shape[0], image_shape[1]))
        if H + 2 * self.padding < OH or W + 2 * self.padding < OW:
            raise ShapeError(
                f"{self!r}: an image of {H}x{W} with {self.padding} pixels of padding is too small for a crop of "
                f"{OH}x{OW}; choose a smaller size or more padding"
            )
        if self.mode == "reflect" and self.padding >= min(H, W):
            raise ShapeError(
                f"{self!r}: an image of {H}x{W} has no {self.padding} pixels to reflect beside its edge; pad by less"
            )

    def place(self, backend: Backend, draw: Draw) -> Numbers:
        """Draw the crop's first pixel in the padded image."""
        (H, W), (OH, OW) = draw.image_size, draw.size
        top = (draw.words[:, 0] % (H + 2 * self.padding - OH + 1)).astype("int32")
        left = (draw.words[:, 1] % (W + 2 * self.padding - OW + 1)).astype("int32")
        return {
            "shift_y": self.padding - top,
            "shift_x": self.padding - left,
            "crop_size": draw.size,
            "border": self.fill if self.mode == "zeros" else None,
        }


class Rotate(Augmentation):
    """Turn an image about its centre by a random angle, and enlarge or shrink it by a random factor.

    Pixels are interpolated between four (bilinear). It is turned first, whatever the order of the list, and then moved,
    mirrored and painted over. Angles and factors are taken from a table in steps of a thousandth of their range, and
    computed with in integers, so that every backend gives the same pixels.

    Arguments
        degrees  0 … 180, the largest angle to either side; all angles are equally likely
        scale    0 … 0.5; the factor lies between 1 − scale and 1 + scale, all equally likely
        fill     0 … 255, the pixel value of what comes in; as it lies in the data set, before any normalisation

    Source: Simard, Steinkraus, Platt, "Best practices for convolutional neural networks applied to visual document
    analysis" (2003).
    """

    words = 2
    does = "turns"

    def __init__(self, degrees: float, scale: float = 0.0, fill: int = 0) -> None:
        self.degrees = checks.number(degrees, "Rotate: degrees", minimum=0, maximum=180)
        self.scale = checks.number(scale, "Rotate: scale", minimum=0, maximum=0.5)
        self.fill = _pixel(fill, "Rotate: fill")

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuse images whose places do not fit into 32 bits."""
        if image_shape[0] + image_shape[1] > LARGEST_TURNED:
            raise ShapeError(
                f"{self!r}: an image of {image_shape[0]}x{image_shape[1]} is too large; its sides may add up to "
                f"{LARGEST_TURNED:,} pixels: make the images smaller"
            )

    def tables(self) -> "tuple[np.ndarray[Any, Any], ...]":
        """Return cosines and sines of the angles, (STEPS, 2), and the inverse of each factor, (STEPS,), times ONE."""
        range_of_one = np.linspace(-1.0, 1.0, STEPS)
        angles, factors = np.radians(self.degrees) * range_of_one, 1.0 + self.scale * range_of_one
        turns = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        turns, inverses = np.rint(ONE * turns).astype("int32"), np.rint(ONE / factors).astype("int32")
        return turns, inverses

    def place(self, backend: Backend, draw: Draw) -> Numbers:
        """Look an angle and a factor up."""
        turns, inverses = draw.tables
        numbers = (draw.words % STEPS).astype("int32")
        turn, inverse = turns[numbers[:, 0]], inverses[numbers[:, 1]]
        cosine, sine = (turn[:, which] * inverse + (ONE >> 1) >> BITS for which in (0, 1))
        return {"cosine": cosine, "sine": sine, "rotation_fill": self.fill}


class Cutout(Augmentation):
    """Paint a square of an image over; its centre is any pixel, so it may reach over the edge.

    Arguments
        size  of the square's sides, in pixels
        fill  0 … 255, a pixel's value; a middle grey is near the mean of most images

    Source: DeVries, Taylor, "Improved regularization of convolutional neural networks with cutout" (2017).
    """

    words = 2
    does = "paints over"

    def __init__(self, size: int, fill: int = 128) -> None:
        self.size = _positive(size, "Cutout: size")
        self.fill = _pixel(fill, "Cutout: fill")

    def place(self, backend: Backend, draw: Draw) -> Numbers:
        """Draw the centre, a pixel of the image."""
        OH, OW = draw.size
        return {
            "cutout_top": (draw.words[:, 0] % OH).astype("int32") - self.size // 2,
            "cutout_left": (draw.words[:, 1] % OW).astype("int32") - self.size // 2,
            "cutout": self.size,
            "cutout_fill": self.fill,
        }


def check_augmentations(augmentations: Any, input_shape: tuple[int, ...], x: Any = None) -> list[Augmentation]:
    """Return augmentations as a list, each of a kind of its own, that make inputs of a model of images x.

    Raises:
        ConfigurationError: something that is no augmentation, or two that do the same.
        ShapeError: samples that are no images, or too small for a translation.
    """
    listed = list(augmentations) if isinstance(augmentations, list | tuple) else [augmentations]
    for augmentation in listed:
        if not isinstance(augmentation, Augmentation):
            raise ConfigurationError(
                f"augment takes objects of gpucnn.data.augment, such as Flip() and Translate(4), not {augmentation!r}"
            )
        if sum(type(other) is type(augmentation) for other in listed) > 1:
            raise ConfigurationError(f"augment has two of the kind {type(augmentation).__name__}; leave one of them")
        for other in listed:
            if other is not augmentation and augmentation.does and getattr(other, "does", "") == augmentation.does:
                raise ConfigurationError(
                    f"augment has {augmentation!r} and {other!r}, and each {augmentation.does} images; leave one of "
                    "them"
                )
    if listed and len(input_shape) != 3:
        raise ShapeError(f"only images (H, W, C) can be augmented; this model takes samples of shape {input_shape}")
    for augmentation in listed:
        augmentation.check(data_shape(listed, input_shape, x))
    return listed


def data_shape(augmentations: Sequence[Augmentation], input_shape: tuple[int, ...], x: Any) -> tuple[int, ...]:
    """Return the shape of samples that become a model's inputs: its own, or that of images x if they are cropped to it.

    Raises:
        ConfigurationError: a crop of another size than the model's inputs.
    """
    crop = next((each for each in augmentations if isinstance(each, RandomCrop) and each.size is not None), None)
    if crop is None:
        return input_shape
    OH, OW = crop.result_size((0, 0))
    if input_shape[:2] != (OH, OW):
        raise ConfigurationError(
            f"{crop!r} makes images of {OH}x{OW}, but the model takes {input_shape[0]}x{input_shape[1]}; give both the "
            "same size"
        )
    images = host_array(x, "x")
    H, W = images.shape[1:3] if images.ndim == 4 else (OH, OW)
    return H, W, input_shape[2]


def words_of(augmentations: Sequence[Augmentation], *, lasting: bool = False) -> int:
    """Return how many random words a list of augmentations draws for each image: of a batch, or `lasting` ones."""
    return sum(augmentation.words for augmentation in augmentations if augmentation.lasting == lasting)


class Placing:
    """What the augmentations of one training need on its backend, and how they place the images of each batch.

    Arguments
        image_size  (H, W)
        lasting     uint32 (P, words_of(augmentations, lasting=True)): the words of each sample of the data set
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        backend: Backend,
        image_size: tuple[int, int],
        lasting: Array | None = None,
    ) -> None:
        self._augmentations, self._backend, self._image_size = augmentations, backend, image_size
        self._lasting, self._size = lasting, image_size
        for augmentation in augmentations:
            self._size = augmentation.result_size(self._size)
        self._epoch = backend.xp.zeros((), dtype="uint32")
        self._tables = [tuple(backend.from_host(table) for table in each.tables()) for each in augmentations]

    def begin_epoch(self, number: int) -> None:
        """Begin an epoch, of those that the model has been trained for, from 0."""
        self._epoch[...] = number

    def of(self, words: Array, picked: Any = None) -> ImageTransform:
        """Return how the images of a batch are placed.

        Arguments:
            words: uint32 (N, words_of(augmentations)), new ones for each batch.
            picked: the places of the images in the data set, integers (N,) on the backend or a slice.
        """
        fields: Numbers = {}
        sources, used = {False: words}, {False: 0, True: 0}
        if self._lasting is not None:
            sources[True] = self._lasting[picked]
        for augmentation, tables in zip(self._augmentations, self._tables, strict=True):
            kind = augmentation.lasting
            own = sources[kind][:, used[kind] : used[kind] + augmentation.words]
            used[kind] += augmentation.words
            draw = Draw(own, self._image_size, self._size, self._epoch, tables)
            fields |= augmentation.place(self._backend, draw)
        return ImageTransform(**fields)


def _pixel(value: Any, what: str) -> int:
    return checks.integer(value, f"{what}, a pixel's value,", minimum=0, maximum=255)


def _positive(value: Any, what: str) -> int:
    return checks.integer(value, what, minimum=1)
