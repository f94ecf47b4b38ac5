"""What the network makes of the test images: which classes it confuses, and its most confident mistakes."""

from dataclasses import dataclass
from typing import Any

from gpucnn import plots
from gpucnn.core.text import percent
from gpucnn.plots.confusion import NUMBERED, surest_mistakes
from gpucnn.plots.svg import inline_svg
from gpucnn.report.png import Picture, grid, image_of
from gpucnn.runs.folder import Predicted, describe

FREQUENT = 8  # confusions that are named
MISTAKES = 18
SHADES = 10  # that a cell can have, besides none


@dataclass(frozen=True)
class Cell:
    """How many images of one class were taken for another, and how dark that is drawn."""

    count: int
    shade: int


@dataclass(frozen=True)
class Row:
    """A true class: what its images were taken for, and the share that was recognised."""

    name: str
    cells: list[Cell]
    recall: str


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix: as rows of cells, or with very many classes as a picture."""

    names: list[str]
    rows: list[Row]
    precision: list[str]
    picture: str
    frequent: list[str]


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class, and how sure the network was."""

    picture: Picture
    index: int
    true: str
    predicted: str
    sureness: str


@dataclass(frozen=True)
class Answers:
    """All of it, with what it was measured on."""

    data: str
    right: int
    total: int
    confusion: Confusion
    mistakes: list[Mistake]
    wrong: int

    @property
    def accuracy(self) -> str:
        """The share that is right."""
        return percent(self.right / self.total)


def answers(test: Predicted | str) -> Answers | str:
    """Return what the network makes of the test images, or say why that is not known."""
    if isinstance(test, str):
        return test
    matrix = plots.confusion_matrix(test.labels, test.probabilities)
    wrong = surest_mistakes(test.labels, test.probabilities)
    return Answers(
        data=f"the {len(test.images):,} test images of {describe(test.dataset)}",
        right=int(matrix.trace()),
        total=int(matrix.sum()),
        confusion=_confusion(matrix, test.names),
        mistakes=[_mistake(test, int(index)) for index in wrong[:MISTAKES]],
        wrong=len(wrong),
    )


def _confusion(matrix: Any, names: list[str]) -> Confusion:
    """Return a matrix of counts with its cells shaded.

    Cells on the diagonal are shaded by their share of the true class, the others by their share of the largest of them,
    for beside the diagonal all of them would be white.
    """
    K, of_class, of_prediction = len(names), matrix.sum(axis=1), matrix.sum(axis=0)
    mistaken = [(int(matrix[i, j]), i, j) for i in range(K) for j in range(K) if i != j and matrix[i, j]]
    mistaken.sort(key=lambda one: (-one[0], one[1:]))
    most = mistaken[0][0] if mistaken else 1

    def cell(i: int, j: int) -> Cell:
        number = int(matrix[i, j])
        share = number / max(int(of_class[i]), 1) if i == j else number / most
        return Cell(number, max(1, round(SHADES * share)) if number else 0)

    def share(part: int, whole: int) -> str:
        return percent(part / whole, 1) if whole else "–"

    right = [int(matrix[k, k]) for k in range(K)]
    numbered = K <= NUMBERED
    return Confusion(
        names=names,
        rows=[
            Row(name, [cell(i, j) for j in range(K)], share(right[i], int(of_class[i])))
            for i, name in enumerate(names)
            if numbered
        ],
        precision=[share(right[k], int(of_prediction[k])) for k in range(K)],
        picture="" if numbered else inline_svg(plots.confusion(matrix, names), "confusion", "The confusion matrix"),
        frequent=[
            f"{names[i]} taken for {names[j]}: {number:,} of {int(of_class[i]):,}"
            for number, i, j in mistaken[:FREQUENT]
        ],
    )


def _mistake(test: Predicted, index: int) -> Mistake:
    probabilities = test.probabilities[index]
    predicted, label = int(probabilities.argmax()), int(test.labels[index])
    return Mistake(
        picture=grid([image_of(test.images[index])], 1, f"test image {index}", largest=96),
        index=index,
        true=test.names[label],
        predicted=test.names[predicted],
        sureness=percent(float(probabilities[predicted]), 1),
    )
