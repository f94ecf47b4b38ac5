"""Data augmentation: random transforms of the training images, so that the network learns to be invariant to them.

`model.fit(x, y, augment=[Flip(), Translate(4), Cutout(8)])`. An augmentation samples the parameters of a transform; the
model's backend applies it while it loads a batch, in one pass over the pixels. Its random words come from a
counter-based stream and are the same on every backend. Whatever the order of the list, an image is rotated first, then
translated or cropped, then flipped, and cut out last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.backends import Array, Backend
from gpucnn.backends.image_transform import FIXED_BITS, FIXED_ONE, ImageTransform
from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.data.arrays import host_array
from gpucnn.errors import ConfigurationError, ShapeError

Fields = dict[str, Any]  # of an ImageTransform

TABLE_SIZE = 1025  # angles, and scale factors; the middle entry is the identity
MAX_ROTATED_SIDES = 32768  # pixels, height + width: twice the centre's coordinate, scaled, takes 31 bits


@dataclass(frozen=True)
class Sample:
    """The inputs of `Augmentation.sample` for the N images of a batch; arrays are the backend's.

    random_words   uint32 (N, random_words of the augmentation)
    image_size     (H, W) in the data set
    size           (OH, OW) of the model's inputs; differs from `image_size` for a crop
    epoch          uint32 (), the number of epochs the model was trained for before
    lookup_tables  what the augmentation's `lookup_tables` returned
    """

    random_words: Array
    image_size: tuple[int, int]
    size: tuple[int, int]
    epoch: Array | int = 0
    lookup_tables: tuple[Array, ...] = ()


class Augmentation(Configurable, family="augmentation"):
    """Base of every augmentation: `sample` returns the transform of each image of a batch.

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import Augmentation
        >>> class ShiftRight(Augmentation):
        ...     random_words, effect = 1, "shifts to the right"
        ...     def sample(self, backend, sample):
        ...         return {"shift_x": (sample.random_words[:, 0] % 3).astype("int32")}
        >>> history = networks.lenet().fit(x, y, epochs=1, augment=[ShiftRight()], verbose=0)
    """

    #: the number of random words for each image
    random_words = 1

    #: whether these are drawn once for each image of the data set, by its index there, instead of again for each batch
    per_image = False

    #: the effect on images, as a verb; two augmentations of one list must not have the same
    effect = ""

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Reject images (H, W, C) that cannot be transformed so; raises ShapeError."""

    def result_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (OH, OW) of transformed images of (H, W)."""
        return image_size

    def lookup_tables(self) -> "tuple[np.ndarray[Any, Any], ...]":
        """Return arrays that are computed once for a training run and passed to `sample` on the backend."""
        return ()

    def sample(self, backend: Backend, sample: Sample) -> Fields:
        """Return fields of an `ImageTransform`."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample")


class Flip(Augmentation):
    """Flip an image, left for right, with a probability.

    Arguments
        probability  0 … 1

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import Flip
        >>> history = networks.lenet().fit(x, y, epochs=1, augment=[Flip(0.5)], verbose=0)
    """

    effect = "flips"

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = checks.number(probability, "Flip: probability", minimum=0, maximum=1)

    def sample(self, backend: Backend, sample: Sample) -> Fields:
        """Flip where the random word is below the probability."""
        flipped = sample.random_words[:, 0] < min(int(self.probability * 2**32), 2**32 - 1)
        return {"flip": flipped.astype("int32")}


class AlternatingFlip(Augmentation):
    """Flip each image, left for right, in every other epoch: a random half in the first, the other half in the next.

    Two consecutive epochs then contain both versions of every image, where with `Flip` half of the images are the same
    in both. The version depends on the image's index in the data set and on the number of epochs the model has been
    trained for, so it keeps alternating in a second `fit`, and in a model that was saved and loaded.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import AlternatingFlip
        >>> history = networks.lenet().fit(x, y, epochs=1, augment=[AlternatingFlip()], verbose=0)
    """

    per_image = True
    effect = "flips"

    def sample(self, backend: Backend, sample: Sample) -> Fields:
        """Flip by the random word's highest bit in even epochs, and by its complement in odd ones."""
        return {"flip": ((sample.random_words[:, 0] >> 31) ^ (sample.epoch & 1)).astype("int32")}


class Translate(Augmentation):
    """Translate an image by up to a number of pixels in both directions; the border is filled by reflection.

    The same as a random crop, of the image's own size, from the image padded by reflection.

    Arguments
        pixels  at least 1, and less than the image's sides

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import Translate
        >>> history = networks.lenet().fit(x, y, epochs=1, augment=[Translate(2)], verbose=0)
    """

    random_words = 2
    effect = "translates"

    def __init__(self, pixels: int) -> None:
        self.pixels = checks.integer(pixels, "Translate: pixels", minimum=1)

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Reject images that are too small to be reflected so far."""
        if self.pixels >= min(image_shape[:2]):
            raise ShapeError(
                f"Translate({self.pixels}): an image of {image_shape[0]}x{image_shape[1]} has no {self.pixels} pixels "
                "to reflect at its border; translate by less"
            )

    def sample(self, backend: Backend, sample: Sample) -> Fields:
        """Return both offsets, uniform from −pixels … pixels."""
        offsets = (sample.random_words % (2 * self.pixels + 1)).astype("int32") - self.pixels
        return {"shift_y": offsets[:, 0], "shift_x": offsets[:, 1]}


class RandomCrop(Augmentation):
    """Crop a window of a given size, at a uniformly random position, from an image padded on all sides.

    With the defaults the image is translated by up to 4 pixels over a black border: the standard augmentation of
    residual networks on CIFAR-10.

    Arguments
        size     OH and OW, or one number for both; None is the image's own size. With a size, `fit` takes training
                 images that are larger than the model's inputs.
        padding  in pixels, on each side, at least 0
        mode     "zeros" pads with one value, "reflect" by reflection
        fill     0 … 255, that value: a pixel value of the data set, before any normalisation

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (2016), section 4.2.

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import RandomCrop
        >>> history = networks.lenet().fit(x, y, epochs=1, augment=[RandomCrop(padding=2)], verbose=0)
    """

    random_words = 2
    effect = "translates"

    def __init__(
        self, size: int | tuple[int, int] | None = None, padding: int = 4, mode: str = "zeros", fill: int = 0
    ) -> None:
        size = None if size is None else checks.integer_or_pair(size, "RandomCrop: size")
        self.size, self.padding = size, checks.integer(padding, "RandomCrop: padding", minimum=0)
        self.mode = checks.one_of(mode, "RandomCrop: mode", ("zeros", "reflect"))
        self.fill = _pixel(fill, "RandomCrop: fill")

    def result_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the crop, or that of the images."""
        if self.size is None:
            return image_size
        return checks.pair(self.size)

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Reject images that are too small for the crop or the reflection."""
        (H, W), (OH, OW) = image_shape[:2], self.result_size((image_shape[0], image_shape[1]))
        if H + 2 * self.padding < OH or W + 2 * self.padding < OW:
            raise ShapeError(
                f"{self!r}: an image of {H}x{W} with {self.padding} pixels of padding is too small for a crop of "
                f"{OH}x{OW}; choose a smaller size or more padding"
            )
        if self.mode == "reflect" and self.padding >= min(H, W):
            raise ShapeError(
                f"{self!r}: an image of {H}x{W} has no {self.padding} pixels to reflect at its border; use less padding"
            )

    def sample(self, backend: Backend, sample: Sample) -> Fields:
        """Return the offset of the crop, uniform over the padded image."""
        (H, W), (OH, OW) = sample.image_size, sample.size
        top = (sample.random_words[:, 0] % (H + 2 * self.padding - OH + 1)).astype("int32")
        left = (sample.random_words[:, 1] % (W + 2 * self.padding - OW + 1)).astype("int32")
        return {
            "shift_y": self.padding - top,
            "shift_x": self.padding - left,
            "crop_size": sample.size,
            "border": self.fill if self.mode == "zeros" else None,
        }


class Rotate(Augmentation):
    """Rotate an image about its centre by a random angle, and scale it by a random factor (bilinear interpolation).

    Angles and factors come from a table in steps of about a thousandth of their range; the arithmetic is that of
    integers, so every backend gives the same pixels.

    Arguments
        degrees  0 … 180, the maximum angle; uniform from −degrees … degrees
        scale    0 … 0.5; the factor is uniform from 1 − scale … 1 + scale
        fill     0 … 255, the pixel value outside the image: a value of the data set, before any normalisation

    Source: Simard, Steinkraus, Platt, "Best practices for convolutional neural networks applied to visual document
    analysis" (2003).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import Rotate
        >>> history = networks.lenet().fit(x, y, epochs=1, augment=[Rotate(15, scale=0.1)], verbose=0)
    """

    random_words = 2
    effect = "rotates"

    def __init__(self, degrees: float, scale: float = 0.0, fill: int = 0) -> None:
        self.degrees = checks.number(degrees, "Rotate: degrees", minimum=0, maximum=180)
        self.scale = checks.number(scale, "Rotate: scale", minimum=0, maximum=0.5)
        self.fill = _pixel(fill, "Rotate: fill")

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Reject images whose coordinates do not fit into 32 bits."""
        if image_shape[0] + image_shape[1] > MAX_ROTATED_SIDES:
            raise ShapeError(
                f"{self!r}: an image of {image_shape[0]}x{image_shape[1]} is too large; its sides may add up to "
                f"{MAX_ROTATED_SIDES:,} pixels: make the images smaller"
            )

    def lookup_tables(self) -> "tuple[np.ndarray[Any, Any], ...]":
        """Return cosines and sines of the angles, (TABLE_SIZE, 2), and inverse factors (TABLE_SIZE,), fixed-point."""
        range_of_one = np.linspace(-1.0, 1.0, TABLE_SIZE)
        angles, factors = np.radians(self.degrees) * range_of_one, 1.0 + self.scale * range_of_one
        rotations = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.rint(FIXED_ONE * rotations).astype("int32"), np.rint(FIXED_ONE / factors).astype("int32")

    def sample(self, backend: Backend, sample: Sample) -> Fields:
        """Look up an angle and a scale factor."""
        rotations, inverses = sample.lookup_tables
        indices = (sample.random_words % TABLE_SIZE).astype("int32")
        rotation, inverse = rotations[indices[:, 0]], inverses[indices[:, 1]]
        cosine, sine = (rotation[:, which] * inverse + (FIXED_ONE >> 1) >> FIXED_BITS for which in (0, 1))
        return {"cosine": cosine, "sine": sine, "rotation_fill": self.fill}


class Cutout(Augmentation):
    """Fill a square of an image with one value; its centre is a random pixel, so it may extend past the border.

    Arguments
        size  of the square's sides, in pixels
        fill  0 … 255, a pixel value; middle grey is near the mean of most images

    Source: DeVries, Taylor, "Improved regularization of convolutional neural networks with cutout" (2017).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> from gpucnn.data.augment import Cutout
        >>> history = networks.lenet().fit(x, y, epochs=1, augment=[Cutout(8)], verbose=0)
    """

    random_words = 2
    effect = "cuts out"

    def __init__(self, size: int, fill: int = 128) -> None:
        self.size = checks.integer(size, "Cutout: size", minimum=1)
        self.fill = _pixel(fill, "Cutout: fill")

    def sample(self, backend: Backend, sample: Sample) -> Fields:
        """Return the square's corner; its centre is uniform over the pixels."""
        OH, OW = sample.size
        return {
            "cutout_top": (sample.random_words[:, 0] % OH).astype("int32") - self.size // 2,
            "cutout_left": (sample.random_words[:, 1] % OW).astype("int32") - self.size // 2,
            "cutout": self.size,
            "cutout_fill": self.fill,
        }


def check_augmentations(augmentations: Any, input_shape: tuple[int, ...], x: Any = None) -> list[Augmentation]:
    """Return augmentations as a list, if they turn images x into a model's inputs.

    Raises:
        ConfigurationError: something that is not an augmentation, or two with the same effect.
        ShapeError: samples that are not images, or images that are too small.
    """
    listed = list(augmentations) if isinstance(augmentations, list | tuple) else [augmentations]
    for augmentation in listed:
        if not isinstance(augmentation, Augmentation):
            raise ConfigurationError(
                f"augment takes objects of gpucnn.data.augment, such as Flip() and Translate(4), not {augmentation!r}"
            )
        if sum(type(other) is type(augmentation) for other in listed) > 1:
            raise ConfigurationError(f"augment has two of {type(augmentation).__name__}; remove one of them")
        for other in listed:
            effect = augmentation.effect
            if other is not augmentation and effect and getattr(other, "effect", "") == effect:
                raise ConfigurationError(
                    f"augment has {augmentation!r} and {other!r}, and each {effect} images; remove one of them"
                )
    if listed and len(input_shape) != 3:
        raise ShapeError(f"only images (H, W, C) can be augmented; this model takes samples of shape {input_shape}")
    for augmentation in listed:
        augmentation.check(data_shape(listed, input_shape, x))
    return listed


def data_shape(augmentations: Sequence[Augmentation], input_shape: tuple[int, ...], x: Any) -> tuple[int, ...]:
    """Return the shape of the samples to augment: that of a model's inputs, or of images x if they are cropped to it.

    Raises:
        ConfigurationError: a crop to another size than that of the model's inputs.
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


def count_random_words(augmentations: Sequence[Augmentation], *, per_image: bool = False) -> int:
    """Return the random words that a list of augmentations takes for each image: in a batch, or once `per_image`."""
    return sum(each.random_words for each in augmentations if each.per_image == per_image)


class AugmentationPipeline:
    """The augmentations of a training run on its backend: samples the transforms of each batch.

    Arguments
        image_size  (H, W)
        per_image   uint32 (P, count_random_words(augmentations, per_image=True)): the words of each sample of the data
                    set
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        backend: Backend,
        image_size: tuple[int, int],
        per_image: Array | None = None,
    ) -> None:
        self._augmentations, self._backend, self._image_size = augmentations, backend, image_size
        self._per_image, self._size = per_image, image_size
        for augmentation in augmentations:
            self._size = augmentation.result_size(self._size)
        self._epoch = backend.xp.zeros((), dtype="uint32")
        self._lookup_tables = [
            tuple(backend.from_host(table) for table in each.lookup_tables()) for each in augmentations
        ]

    def begin_epoch(self, number: int) -> None:
        """Begin an epoch, by the number of epochs that the model has been trained for."""
        self._epoch[...] = number

    def sample(self, random_words: Array, indices: Any = None) -> ImageTransform:
        """Return the transforms of a batch of images.

        Arguments:
            random_words: uint32 (N, count_random_words(augmentations)), new ones for each batch.
            indices: of the images in the data set, integers (N,) on the backend or a slice.
        """
        fields: Fields = {}
        sources, used = {False: random_words}, {False: 0, True: 0}
        if self._per_image is not None:
            sources[True] = self._per_image[indices]
        for augmentation, tables in zip(self._augmentations, self._lookup_tables, strict=True):
            kind = augmentation.per_image
            words = sources[kind][:, used[kind] : used[kind] + augmentation.random_words]
            used[kind] += augmentation.random_words
            sample = Sample(words, self._image_size, self._size, self._epoch, tables)
            fields |= augmentation.sample(self._backend, sample)
        return ImageTransform(**fields)


def _pixel(value: Any, what: str) -> int:
    return checks.integer(value, f"{what}, a pixel's value,", minimum=0, maximum=255)
