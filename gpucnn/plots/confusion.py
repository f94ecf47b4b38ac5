"""What a model makes of a test set: which classes it confuses, and its most confident mistakes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.core import checks
from gpucnn.core.text import percent
from gpucnn.data.arrays import host_array
from gpucnn.errors import DataError, ShapeError
from gpucnn.plots.canvas import SMALL, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20  # with more classes the cells of a confusion matrix hold no numbers
NAMED = 100  # with more classes only some are named


def confusion_matrix(labels: Any, predictions: Any, classes: int | None = None) -> Any:
    """Count what was taken for what.

    Shapes:
        labels       (N,) class numbers
        predictions  (N,) class numbers, or (N, K) probabilities
        returns      (K, K): row i, column j counts the samples of class i that were taken for class j

    Raises:
        ShapeError: not as many predictions as labels.
        DataError: a class number below 0 or from `classes` up.
    """
    labels, predictions = host_array(labels, "labels"), host_array(predictions, "predictions")
    if predictions.ndim == 2:
        classes = classes or predictions.shape[1]
        predictions = predictions.argmax(axis=1)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ShapeError(
            f"labels have shape {labels.shape} and predictions {predictions.shape}; expected a class number for each "
            "sample in both, (N,), or predictions (N, K)"
        )
    numbers = np.concatenate([labels, predictions]).astype(int)
    if numbers.size == 0:
        raise DataError("there are no labels to count; expected at least one sample")
    K = int(numbers.max()) + 1 if classes is None else classes
    if numbers.min() < 0 or numbers.max() >= K:
        raise DataError(
            f"class numbers go from {numbers.min()} to {numbers.max()}; expected 0 to {K - 1}, for {K} classes"
        )
    matrix = np.zeros((K, K), int)
    np.add.at(matrix, (labels.astype(int), predictions.astype(int)), 1)
    return matrix


def confusion(matrix: Any, class_names: Sequence[str] | None = None, *, path: str | Path | None = None) -> "Figure":
    """Draw a confusion matrix: how many samples of each class (rows) were taken for which (columns).

    Colours are shares of the row, that is of the true class; so are the numbers in per cent below the counts. With
    more than 20 classes colours stand alone. `confusion_matrix` makes the matrix from labels and predictions.

    Raises:
        ShapeError: the matrix is not square, or the names are not as many.
    """
    matrix = host_array(matrix, "matrix")
    K = len(matrix) if matrix.ndim else 0
    if matrix.shape != (K, K) or K == 0:
        raise ShapeError(
            f"a confusion matrix is square, a row and a column for each class, not {matrix.shape}; "
            "confusion_matrix(labels, predictions) makes one"
        )
    names = _names(class_names, K)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.62 * K) if K <= NUMBERED else min(max(7.0, 0.13 * K), 16.0)
    figure = new_figure(side + 1.8, side + 0.8, compressed=True)
    axes = figure.add_subplot()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.7)
    letters = "medium" if K <= NUMBERED else 5.5
    every = range(0, K, -(-K // NAMED))
    long = max(map(len, names)) > 3 or K > NUMBERED
    axes.set_xticks(every, [names[k] for k in every], fontsize=letters, rotation=90 if long else 0)
    axes.set_yticks(every, [names[k] for k in every], fontsize=letters)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if K <= NUMBERED:
        for i, j in np.argwhere(matrix):
            axes.text(
                j,
                i,
                f"{matrix[i, j]:,}\n{percent(shares[i, j], 1)}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if shares[i, j] > 0.5 else "black",
            )
    right, total = int(np.trace(matrix)), int(matrix.sum())
    figure.suptitle(f"{right:,} of {total:,} right: {100 * right / max(total, 1):.2f} %", fontsize="medium")
    return save(figure, path)


def mistakes(
    images: Any,
    labels: Any,
    probabilities: Any,
    class_names: Sequence[str] | None = None,
    count: int = 25,
    *,
    path: str | Path | None = None,
) -> "Figure":
    """Draw the wrong answers that the model was surest of: the image, what it is, what it was taken for, how surely.

    Shapes:
        images         (N, H, W, C), uint8 or floats 0 … 1, C = 1 or 3
        labels         (N,) class numbers
        probabilities  (N, K), what `predict` returns

    Raises:
        ShapeError: the three do not go together.
        ConfigurationError: `count` is not positive.
    """
    images, labels, probabilities = (
        host_array(images, "images"),
        host_array(labels, "labels"),
        host_array(probabilities, "probabilities"),
    )
    count = checks.integer(count, "count", minimum=1)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or probabilities.ndim != 2:
        raise ShapeError(
            f"images have shape {images.shape} and probabilities {probabilities.shape}; expected grey or coloured "
            "images (N, H, W, C) and a row of probabilities for each, (N, K)"
        )
    if labels.shape != (len(images),) or len(probabilities) != len(images):
        raise ShapeError(
            f"there are {len(images)} images, labels of shape {labels.shape} and {len(probabilities)} rows of "
            "probabilities; expected one of each for every image"
        )
    names = _names(class_names, probabilities.shape[1])
    predictions, sureness = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = surest_mistakes(labels, probabilities)
    shown = wrong[:count]
    columns = max(1, min(len(shown), int(np.ceil(np.sqrt(count)))))
    rows = max(1, -(-len(shown) // columns))
    figure = new_figure(max(4.2, 1.45 * columns), 1.9 * rows + 0.5)
    for place, index in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        top = 255 if images.dtype == np.uint8 else 1.0
        picture = np.clip(images[index] / top, 0, 1)
        axes.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
        is_, said = (names[k] for k in (int(labels[index]), int(predictions[index])))
        axes.set_title(f"true: {is_}\npredicted: {said}\n{percent(sureness[index], 1)}", fontsize=SMALL)
        axes.set_axis_off()
    number = f"{len(shown)} most confident of " if len(shown) < len(wrong) else ""
    words = f"{number}{len(wrong):,} mistakes" if len(wrong) else "no mistakes"
    figure.suptitle(f"{words} among {len(images):,} images, with the probability given", fontsize="medium")
    return save(figure, path)


def surest_mistakes(labels: Any, probabilities: Any) -> Any:
    """Return which samples are taken for a wrong class, those first of which the model is surest.

    Shapes:
        labels         (N,) class numbers
        probabilities  (N, K), what `predict` returns
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")]


def _names(class_names: Sequence[str] | None, K: int) -> list[str]:
    """Return a name for each of K classes, numbers where there are none."""
    names = [str(k) for k in range(K)] if class_names is None else [plain(str(name)) for name in class_names]
    if len(names) != K:
        raise ShapeError(f"there are {len(names)} class names for {K} classes; pass a name for each")
    return names
