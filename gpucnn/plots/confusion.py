"""A model's results on a test set: its confusion matrix and most confident mistakes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.core import checks
from gpucnn.core.text import percent, plural
from gpucnn.data.arrays import host_array
from gpucnn.errors import DataError, ShapeError
from gpucnn.plots.canvas import TILE_FONT_SIZE, displayable, escape_mathtext, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NUMBERED = 20  # classes, up to which the cells of a confusion matrix hold numbers
MAX_NAMED = 100  # classes, up to which all are named


def confusion_matrix(labels: Any, predictions: Any, num_classes: int | None = None) -> Any:
    """Count the predictions of each class by true class.

    Shapes:
        labels       (N,) class indices
        predictions  (N,) class indices, or (N, K) probabilities
        returns      (K, K): row i, column j counts the samples of class i that were classified as j

    Raises:
        ShapeError: labels and predictions differ in number.
        DataError: a class index below 0 or from `num_classes` up.

    Example:
        >>> plots.confusion_matrix([0, 0, 1], [0, 1, 1])
        array([[1, 1],
               [0, 1]])
    """
    labels, predictions = host_array(labels, "labels"), host_array(predictions, "predictions")
    if num_classes is not None:
        num_classes = checks.integer(num_classes, "num_classes", minimum=1)
    if predictions.ndim == 2:
        num_classes = num_classes or predictions.shape[1]
        predictions = predictions.argmax(axis=1)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ShapeError(
            f"labels have shape {labels.shape} and predictions {predictions.shape}; expected a class index for each "
            "sample in both, (N,), or predictions (N, K)"
        )
    numbers = np.concatenate([labels, predictions]).astype(int)
    if numbers.size == 0:
        raise DataError("there are no labels to count; expected at least one sample")
    K = int(numbers.max()) + 1 if num_classes is None else num_classes
    if numbers.min() < 0 or numbers.max() >= K:
        raise DataError(
            f"class indices go from {numbers.min()} to {numbers.max()}; expected 0 to {K - 1}, for {K} classes"
        )
    matrix = np.zeros((K, K), int)
    np.add.at(matrix, (labels.astype(int), predictions.astype(int)), 1)
    return matrix


def confusion(matrix: Any, class_names: Sequence[str] | None = None, *, path: str | Path | None = None) -> "Figure":
    """Draw a confusion matrix: true classes as rows, predicted classes as columns.

    Cells hold the count and the fraction of the row, that is of the true class, which is also the colour; with more
    than 20 classes they hold the colour alone. `confusion_matrix` computes the matrix from labels and predictions.

    Raises:
        ShapeError: the matrix is not square, or the number of names differs.

    Example:
        >>> matrix = plots.confusion_matrix([0, 0, 1], [0, 1, 1])
        >>> figure = plots.confusion(matrix, ["cat", "dog"], path="confusion.png")
    """
    matrix = host_array(matrix, "matrix")
    K = len(matrix) if matrix.ndim else 0
    if matrix.shape != (K, K) or K == 0:
        raise ShapeError(
            f"a confusion matrix is square, a row and a column for each class, not {matrix.shape}; "
            "confusion_matrix(labels, predictions) computes one"
        )
    names = _names(class_names, K)
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.62 * K) if K <= MAX_NUMBERED else min(max(7.0, 0.13 * K), 16.0)
    figure = new_figure(side + 1.8, side + 0.8, compressed=True)
    axes = figure.add_subplot()
    image = axes.imshow(100 * fractions, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.7)
    font_size = "medium" if K <= MAX_NUMBERED else 5.5
    every = range(0, K, -(-K // MAX_NAMED))
    long = max(map(len, names)) > 3 or K > MAX_NUMBERED
    axes.set_xticks(every, [names[k] for k in every], fontsize=font_size, rotation=90 if long else 0)
    axes.set_yticks(every, [names[k] for k in every], fontsize=font_size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if K <= MAX_NUMBERED:
        for i, j in np.argwhere(matrix):
            text, colour = (
                f"{matrix[i, j]:,}\n{percent(fractions[i, j], 1)}",
                "white" if fractions[i, j] > 0.5 else "black",
            )
            axes.text(j, i, text, ha="center", va="center", fontsize=TILE_FONT_SIZE, color=colour)
    right, total = int(np.trace(matrix)), int(matrix.sum())
    figure.suptitle(f"Confusion matrix (accuracy {percent(right / max(total, 1))})", fontsize="medium")
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
    """Draw the most confident mistakes: the image, its true class, the predicted class and its probability.

    Shapes:
        images         (N, H, W, C), uint8 or floats 0 … 1, C = 1 or 3
        labels         (N,) class indices
        probabilities  (N, K), what `predict` returns

    Raises:
        ShapeError: the shapes do not match.
        ConfigurationError: `count` is not positive.

    Example:
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> model = networks.lenet()
        >>> figure = plots.mistakes(x, y, model.predict(x), path="mistakes.png")
    """
    images, labels = host_array(images, "images"), host_array(labels, "labels")
    probabilities = host_array(probabilities, "probabilities")
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
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = most_confident_mistakes(labels, probabilities)
    shown = wrong[:count]
    columns = max(1, min(len(shown), int(np.ceil(np.sqrt(count)))))
    rows = max(1, -(-len(shown) // columns))
    figure = new_figure(max(4.2, 1.45 * columns), 1.9 * rows + 0.5)
    for place, index in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(displayable(images[index]), cmap="gray", vmin=0, vmax=1)
        true, predicted = (names[k] for k in (int(labels[index]), int(predictions[index])))
        title = f"true: {true}\npredicted: {predicted}\n{percent(confidence[index], 1)}"
        axes.set_title(title, fontsize=TILE_FONT_SIZE)
        axes.set_axis_off()
    number = f"{len(shown)} most confident of " if len(shown) < len(wrong) else ""
    title = f"{number}{plural(len(wrong), 'mistake')} among {plural(len(images), 'image')}"
    figure.suptitle(f"{title}, with predicted probability" if len(wrong) else title, fontsize="medium")
    return save(figure, path)


def most_confident_mistakes(labels: Any, probabilities: Any) -> Any:
    """Return the indices of the misclassified samples, by descending confidence.

    Shapes:
        labels         (N,) class indices
        probabilities  (N, K), what `predict` returns
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")]


def _names(class_names: Sequence[str] | None, K: int) -> list[str]:
    """Return a name for each of K classes, its index by default."""
    names = [str(k) for k in range(K)] if class_names is None else [escape_mathtext(str(name)) for name in class_names]
    if len(names) != K:
        raise ShapeError(f"there are {len(names)} class names for {K} classes; pass a name for each")
    return names
