"""The results on the test images: the confusion matrix, and the most confident mistakes."""

from dataclasses import dataclass
from typing import Any

from gpucnn import plots
from gpucnn.core.text import percent
from gpucnn.plots.confusion import MAX_NUMBERED, most_confident_mistakes
from gpucnn.plots.svg import inline_svg
from gpucnn.report.png import Picture, grid, image_of
from gpucnn.runs.folder import Predictions, dataset_title

MAX_CONFUSIONS = 8  # listed
MAX_MISTAKES = 18
SHADES = 10  # of a cell, besides none


@dataclass(frozen=True)
class Cell:
    """The number of images of one class that were classified as another, and the shade of the cell."""

    count: int
    shade: int


@dataclass(frozen=True)
class Row:
    """A true class: the number of images by predicted class, and its recall."""

    name: str
    cells: list[Cell]
    recall: str


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix: as rows of cells, or as a picture for many classes."""

    names: list[str]
    rows: list[Row]
    precision: list[str]
    picture: str
    frequent: list[str]


@dataclass(frozen=True)
class Mistake:
    """A misclassified image, and the probability of the predicted class."""

    picture: Picture
    index: int
    true: str
    predicted: str
    confidence: str


@dataclass(frozen=True)
class TestResults:
    """All results, with the data set."""

    data: str
    correct: int
    total: int
    confusion: Confusion
    mistakes: list[Mistake]
    wrong: int

    @property
    def accuracy(self) -> str:
        """The accuracy, formatted."""
        return percent(self.correct / self.total)


def test_results(test: Predictions | str) -> TestResults | str:
    """Return the results on the test images, or the reason why there are none."""
    if isinstance(test, str):
        return test
    matrix = plots.confusion_matrix(test.labels, test.probabilities)
    wrong = most_confident_mistakes(test.labels, test.probabilities)
    return TestResults(
        data=f"the {len(test.images):,} test images of {dataset_title(test.dataset)}",
        correct=int(matrix.trace()),
        total=int(matrix.sum()),
        confusion=_confusion(matrix, test.names),
        mistakes=[_mistake(test, int(index)) for index in wrong[:MAX_MISTAKES]],
        wrong=len(wrong),
    )


def _confusion(matrix: Any, names: list[str]) -> Confusion:
    """Return a matrix of counts with shaded cells.

    Cells on the diagonal are shaded by their fraction of the true class, the others relative to the largest of them, as
    they would all be white next to the diagonal.
    """
    K, of_class, of_prediction = len(names), matrix.sum(axis=1), matrix.sum(axis=0)
    confusions = [(int(matrix[i, j]), i, j) for i in range(K) for j in range(K) if i != j and matrix[i, j]]
    confusions.sort(key=lambda one: (-one[0], one[1:]))
    maximum = confusions[0][0] if confusions else 1

    def cell(i: int, j: int) -> Cell:
        number = int(matrix[i, j])
        fraction = number / max(int(of_class[i]), 1) if i == j else number / maximum
        return Cell(number, max(1, round(SHADES * fraction)) if number else 0)

    def ratio(part: int, whole: int) -> str:
        return percent(part / whole, 1) if whole else "–"

    correct = [int(matrix[k, k]) for k in range(K)]
    numbered = K <= MAX_NUMBERED
    return Confusion(
        names=names,
        rows=[
            Row(name, [cell(i, j) for j in range(K)], ratio(correct[i], int(of_class[i])))
            for i, name in enumerate(names)
            if numbered
        ],
        precision=[ratio(correct[k], int(of_prediction[k])) for k in range(K)],
        picture="" if numbered else inline_svg(plots.confusion(matrix, names), "confusion", "The confusion matrix"),
        frequent=[
            f"{names[i]} classified as {names[j]}: {number:,} of {int(of_class[i]):,}"
            for number, i, j in confusions[:MAX_CONFUSIONS]
        ],
    )


def _mistake(test: Predictions, index: int) -> Mistake:
    probabilities = test.probabilities[index]
    predicted, label = int(probabilities.argmax()), int(test.labels[index])
    return Mistake(
        picture=grid([image_of(test.images[index])], 1, f"test image {index}", largest=96),
        index=index,
        true=test.names[label],
        predicted=test.names[predicted],
        confidence=percent(float(probabilities[predicted]), 1),
    )
