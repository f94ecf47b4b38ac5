"""Data sets by name: training and test images, uint8 and channels last, with integer labels."""

import os
import re
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

import numpy as np

from gpucnn.core import checks
from gpucnn.core.files import user_path
from gpucnn.core.text import for_output
from gpucnn.data.cifar import CIFAR10_CLASSES, check_class_range, explain_absence, find_cifar10, read_cifar10
from gpucnn.data.download import REMOTES, cache_folder, fetch
from gpucnn.data.folders import Size, composed, list_folders, natural_key, read_image_folder
from gpucnn.data.idx import find_idx, read_idx_pair
from gpucnn.errors import ConfigurationError, DataError

Split = tuple[np.ndarray, np.ndarray]

_DIGITS = [str(digit) for digit in range(10)]
_MNIST_STEMS = [name.removesuffix(".gz") for name in REMOTES["mnist"].files]
_LAYOUTS = {"batches": "binary batches", "sheets": "WebP sprite sheets", "archive": "the official archive"}

# A folder is a split if its name begins or ends with one of these words.
_SPLIT_WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip


class Dataset(tuple[Split, Split]):
    """A pair ((x_train, y_train), (x_test, y_test)) with its name, class names and source.

    Shapes
        x_train  (N, H, W, C) uint8      y_train  (N,) int64
        x_test   (M, H, W, C) uint8      y_test   (M,) int64

    Example
        >>> data = datasets.synthetic_digits(100)
        >>> (x, y), _ = data
        >>> data.name, x.shape, y.dtype
        ('synthetic_digits', (100, 28, 28, 1), dtype('int64'))
    """

    name: str
    class_names: list[str]
    source: str

    def __new__(
        cls, splits: Iterable[Split], *, name: str = "", class_names: Iterable[str] = (), source: str = ""
    ) -> "Dataset":
        """Attach the names to the arrays."""
        self = super().__new__(cls, splits)
        self.name, self.class_names, self.source = name, list(class_names), source
        return self

    def __repr__(self) -> str:
        (x_train, _), (x_test, _) = self
        size = "x".join(map(str, x_train.shape[1:]))
        return for_output(
            f"<Dataset {self.name}: {len(x_train):,} training and {len(x_test):,} test images of {size}, "
            f"{len(self.class_names)} classes; {self.source}>"
        )


def mnist(path: str | PathLike[str] | None = None) -> Dataset:
    """Load MNIST: 60,000 training and 10,000 test images of handwritten digits, (28, 28, 1).

    path: a folder that holds the four IDX files, plain or gzip, or holds them in a sub-folder `mnist`.
    Without it they are looked for in the folder GPUCNN_DATA names, then in the cache, and at last downloaded
    into it.

    Raises
        DataError  the files are missing, damaged, or not MNIST

    Example:
        >>> if datasets.available("mnist"):  # on this machine
        ...     (x, y), (x_test, y_test) = datasets.mnist()
    """
    folder = _locate("mnist", path)
    splits = []
    for images_stem, labels_stem in (_MNIST_STEMS[:2], _MNIST_STEMS[2:]):
        images_path, labels_path = find_idx(folder, images_stem), find_idx(folder, labels_stem)
        if images_path is None or labels_path is None:
            raise DataError(f"{folder}: {images_stem} or {labels_stem} vanished while reading: try again")
        images, labels = read_idx_pair(images_path, labels_path)
        if images.shape[1:] != (28, 28, 1):
            raise DataError(
                f"{images_path}: holds images of {images.shape[1]}x{images.shape[2]} pixels; expected "
                "MNIST's 28x28: pass the folder of MNIST itself"
            )
        check_class_range(labels, 10, str(labels_path))
        splits.append((images, labels))
    return Dataset(splits, name="mnist", class_names=_DIGITS, source=f"IDX files in {folder}")


def cifar10(path: str | PathLike[str] | None = None) -> Dataset:
    """Load CIFAR-10: 50,000 training and 10,000 test photographs of ten kinds of things, (32, 32, 3).

    path: a folder that holds the data in one of the layouts `gpucnn.data.cifar.read_cifar10` knows, or holds
    them in a sub-folder `cifar10`. Without it they are looked for in the folder GPUCNN_DATA names, then in
    the cache, and at last downloaded into it.

    Raises
        DataError  the files are missing or damaged

    Example:
        >>> load_data = datasets.cifar10 if datasets.available("cifar10") else datasets.synthetic_digits
    """
    folder = _locate("cifar10", path)
    found = find_cifar10(folder)
    source = f"{_LAYOUTS[found[0]] if found else 'files'} in {folder}"
    return Dataset(read_cifar10(folder), name="cifar10", class_names=CIFAR10_CLASSES, source=source)


def image_folder(
    path: str | PathLike[str], size: Size | None = None, *, test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """Load image files from a folder with a sub-folder for each class.

    A folder whose sub-folders are splits by their names (train or training beside test, testing, val, valid
    or validation, also as in `Digit_training`), and hold the classes, is taken as it is split; of test and
    validation, test is taken. Any other is split here: `test_fraction` of every class, at least one image
    and not all, drawn with `seed`. `size` is that of `gpucnn.data.folders.read_image_folder`.

    Raises
        DataError           the folder is laid out otherwise, or its splits or sizes do not agree
        ConfigurationError  test_fraction, seed or size are invalid

    Example:
        >>> import os
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     os.makedirs(f"photos/{name}")
        ...     for number in range(4):
        ...         Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(f"photos/{name}/{number}.png")
        >>> (x, y), (x_test, y_test) = datasets.image_folder("photos", size=(32, 32))
        >>> x.shape, x_test.shape
        ((6, 32, 32, 3), (2, 32, 32, 3))
    """
    folder = user_path(path)
    seed = checks.integer(seed, "seed", minimum=0)
    test_fraction = checks.number(test_fraction, "test_fraction", above=0, below=1)
    found = _find_splits(folder)
    if found is not None:
        train, test, beside = found
        splits, class_names = _read_splits(train, test, size)
        source = f"image files in {train} and {test}"
        source += f", without {', '.join(beside)} beside them" if beside else ""
    else:
        images, labels, class_names = read_image_folder(folder, size)
        splits = _draw_split(images, labels, class_names, test_fraction, seed)
        source = f"image files in {folder}, {test_fraction:g} of each class drawn as test with seed {seed}"
    return Dataset(splits, name=folder.absolute().name, class_names=class_names, source=source)


def synthetic_digits(n: int = 20_000, seed: int = 0) -> Dataset:
    """Generate `n` training images of handwriting-like digits and n // 5 (at least one) test images, (28, 28, 1).

    The test images come from a separate random stream. Needs no files and no network connection.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(100, seed=0)
        >>> x.shape, x.dtype, int(y.max())
        ((100, 28, 28, 1), dtype('uint8'), 9)
    """
    from gpucnn.data import synthetic

    n, seed = checks.integer(n, "n", minimum=1), checks.integer(seed, "seed", minimum=0)
    test_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    if test_seed == seed:  # test would repeat training, one chance in 2³²
        test_seed += 1
    splits = (synthetic.synthetic_digits(n, seed), synthetic.synthetic_digits(max(1, n // 5), test_seed))
    source = f"generated with seed {seed}"
    return Dataset(splits, name="synthetic_digits", class_names=_DIGITS, source=source)


def available(name: str) -> str | None:
    """Return the folder a data set ("mnist", "cifar10") would be read from without downloading, or None.

    Example:
        >>> if datasets.available("mnist"):
        ...     data = datasets.mnist()
        ... else:
        ...     data = datasets.synthetic_digits(100)
    """
    if name not in REMOTES:
        raise ConfigurationError(f"there is no data set {name!r}; expected one of {', '.join(REMOTES)}")
    return next((str(folder) for folder in _usual_folders(name) if _is_complete(name, folder)), None)


def _locate(name: str, path: str | PathLike[str] | None) -> Path:
    """Return the folder that holds the files of a data set; without a path, download them if need be."""
    if path is None:
        named = os.environ.get("GPUCNN_DATA")
        if named and not user_path(named).is_dir():
            raise DataError(
                f"the environment variable GPUCNN_DATA names {named}, which is not a folder; expected a folder "
                "of data sets: fix or unset it"
            )
        local = available(name)
        if local is None:
            local = str(cache_folder() / name)
            fetch(name, local, progress=True)
        return Path(local)
    given = user_path(path)
    if not given.is_dir():
        what = "is a file" if given.exists() else "does not exist"
        raise DataError(f"{given}: {what}; expected a folder that holds {name}: pass the folder's own path")
    inside = (Path(name), Path("raw"), Path("MNIST", "raw")) if name == "mnist" else (Path(name),)  # torchvision's two
    for folder in (given, *(given / place for place in inside)):
        if _is_complete(name, folder):
            return folder
    inner = given / name
    raise DataError(_explain_absence(name, inner if inner.is_dir() else given))


def _usual_folders(name: str) -> Iterator[Path]:
    """Yield the default folders of a data set."""
    named = os.environ.get("GPUCNN_DATA")
    if named:
        yield user_path(named) / name
        yield user_path(named)
    yield cache_folder() / name


def _is_complete(name: str, folder: Path) -> bool:
    if name == "cifar10":
        return find_cifar10(folder) is not None
    return all(find_idx(folder, stem) for stem in _MNIST_STEMS)


def _explain_absence(name: str, folder: Path) -> str:
    if name == "cifar10":
        return explain_absence(folder)
    missing = [stem for stem in _MNIST_STEMS if find_idx(folder, stem) is None]
    return (
        f"{folder}: holds no {', '.join(missing)}; expected the four files of MNIST "
        f"({', '.join(_MNIST_STEMS)}), plain or .gz, here or in a sub-folder {name!r}: put them here, pass "
        "another folder, or no path at all to download them"
    )


def _find_splits(folder: Path) -> tuple[Path, Path, list[str]] | None:
    """Return the folders of the training and the test split, if there are such, and the names of others beside them.

    Raises:
        DataError: the training split holds classes, and the test split none.
    """
    inner = list_folders(folder)
    kinds = {entry: kind for entry in inner if (kind := _kind_of_split(entry.name))}
    found = {kind: entry for entry, kind in kinds.items() if list_folders(entry)}
    test = found.get("test", found.get("validation"))
    if "train" not in found or len(kinds) != len(set(kinds.values())):
        return None
    if test is None:
        flat = next((entry for entry, kind in kinds.items() if kind != "train"), None)
        if flat is None:
            return None
        raise DataError(
            f"{flat}: holds no sub-folders, while {found['train']} holds one for each class; expected the same in "
            f"both: sort the images of {flat.name!r} by their class, or pass {found['train']} alone, of which a part "
            "is drawn as test"
        )
    return found["train"], test, [entry.name for entry in inner if entry not in kinds]


def _kind_of_split(name: str) -> str | None:
    words = re.findall("[a-z]+", name.lower())
    return next((_SPLIT_WORDS[word] for word in (words[:1] + words[-1:]) if word in _SPLIT_WORDS), None)


def _read_splits(train: Path, test: Path, size: Size | None) -> tuple[list[Split], list[str]]:
    """Read two folders that hold the same classes."""
    names = [[composed(entry.name) for entry in list_folders(folder)] for folder in (train, test)]
    if names[0] != names[1]:
        only = [sorted(set(names[i]) - set(names[1 - i]), key=natural_key) for i in (0, 1)]
        raise DataError(
            f"{train} and {test} hold different classes: only the first has {only[0]}, only the second has "
            f"{only[1]}; expected the same sub-folders in both: rename or add them"
        )
    x_train, y_train, class_names = read_image_folder(train, size)
    x_test, y_test, _ = read_image_folder(test, size)
    if x_train.shape[1:3] != x_test.shape[1:3]:
        height, width = x_train.shape[1:3]
        raise DataError(
            f"{train} holds images of {height}x{width} pixels (height x width) and {test} of "
            f"{x_test.shape[1]}x{x_test.shape[2]}; expected one size: resize them, for example with "
            f"size=({height}, {width})"
        )
    channels = max(x_train.shape[-1], x_test.shape[-1])
    for i, (x, y) in enumerate(splits := [(x_train, y_train), (x_test, y_test)]):
        if x.shape[-1] < channels:  # one split is grey, the other one in colour
            splits[i] = (np.repeat(x, channels, axis=-1), y)
    return splits, class_names


def _draw_split(
    images: np.ndarray, labels: np.ndarray, class_names: list[str], test_fraction: float, seed: int
) -> list[Split]:
    """Split off a random fraction of every class as test set; both splits keep the order of the files."""
    rng = np.random.default_rng(seed)
    in_test = np.zeros(len(labels), bool)
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DataError(
                f"the class {name!r} holds {len(members)} image; expected at least 2, one to train on and "
                "one to test with: add images, or remove the class"
            )
        count = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        in_test[rng.permutation(members)[:count]] = True
    return [(images[~in_test], labels[~in_test]), (images[in_test], labels[in_test])]
