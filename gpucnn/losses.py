"""Losses: `loss, backward = loss(y, labels)`, one number for a batch and the backward function to dy.

The loss stays on the device, a 0-d array, until somebody prints it. It is the mean over the batch, and over positions
where each sample has several, such as the pixels of a segmentation.
"""

import math
from collections.abc import Callable
from typing import Any

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.core import checks
from gpucnn.core.config import Configurable, is_ours
from gpucnn.errors import ConfigurationError, ShapeError

LossBackward = Callable[..., Array]

FLOOR = 1e-7  # of probabilities, so that neither their logarithm nor its slope runs away


class Loss(Configurable, family="loss"):
    """Base of every loss.

    A custom loss gets the outputs y (N, …) and the labels as `fit` was given them: targets in the shape of the outputs
    as floats, or integers (N,) untouched, unless it declares below that they are class indices.

    Example
        >>> class AbsoluteError(losses.Loss):
        ...     def __call__(self, y, labels):
        ...         xp, difference = self.backend.xp, y - labels
        ...         return abs(difference).mean(), lambda dloss=1.0: xp.sign(difference) * (dloss / y.size)
        >>> float(AbsoluteError()(np.array([1.0, 3.0]), np.array([1.0, 1.0]))[0])
        1.0
    """

    #: whether the labels are classes: class indices (N,), or one-hot rows (N, K); checked against the K outputs
    expects_classes = False
    #: whether class indices may stand for one-hot rows, though the targets can be any numbers
    takes_classes = False

    def __init__(self) -> None:
        self.backend: Backend = get_backend("numpy")

    def __call__(self, y: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the mean loss of outputs y and its backward function: `backward()` is dy, `backward(2.0)` twice it."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


class CategoricalCrossEntropy(Loss):
    """The mean of −Σ t·log y over the batch and all positions, with t the one-hot label.

    Shapes
        y       (N, K), or (N, H, W, K) for each position; probabilities, or logits with `from_logits`
        labels  (N,) or (N, H, W), class indices 0 … K − 1, or one-hot in the shape of y

    Probabilities are divided by their sum, which is 1 after a softmax, and count as no less than 1e-7.

    Arguments
        label_smoothing  s: each label is mixed with the uniform distribution, t ← (1 − s)·t + s / K
        from_logits      y has not passed through a softmax; a last `Softmax` layer is fused with the loss anyway

    Source for the smoothing: Szegedy et al., "Rethinking the Inception architecture" (2016).

    Example
        >>> loss, backward = losses.CategoricalCrossEntropy()(np.array([[0.5, 0.25, 0.25]]), np.array([0]))
        >>> round(float(loss), 4), backward().shape
        (0.6931, (1, 3))
    """

    expects_classes = True

    def __init__(self, label_smoothing: float = 0.0, from_logits: bool = False) -> None:
        super().__init__()
        self.label_smoothing = checks.number(label_smoothing, "label_smoothing", 0, below=1)
        self.from_logits = checks.flag(from_logits, "from_logits")

    def __call__(self, y: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the loss of probabilities (or of logits with `from_logits`) and the backward function."""
        if self.from_logits:
            return self.from_logits_fused(y, labels)
        xp = self.backend.xp
        targets = self._targets(y, labels)
        total = xp.maximum(y.sum(axis=-1, keepdims=True), FLOOR)
        safe = xp.maximum(y / total, FLOOR)
        count = _positions(y)
        loss = -(targets * xp.log(safe)).sum() / count

        def backward(dloss: Any = 1.0) -> Array:
            weights = targets.sum(axis=-1, keepdims=True)  # the sum in the denominator depends on each output
            return (weights - targets / safe) / total * (dloss / count)

        return loss, backward

    def from_logits_fused(self, logits: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the loss of softmax(logits) and the backward function to the logits, as one stable kernel."""
        rows, targets = (a.reshape(_positions(logits), -1) for a in (logits, self._targets(logits, labels)))
        loss, dlogits = self.backend.softmax_cross_entropy(rows, targets)
        return loss, lambda dloss=1.0: dlogits.reshape(logits.shape) * dloss

    def _targets(self, y: Array, labels: Array) -> Array:
        targets = one_hot(self.backend, labels, y)
        s = self.label_smoothing
        return targets * (1.0 - s) + s / y.shape[-1] if s else targets


def _positions(y: Array) -> int:
    """Return how many rows of K numbers y (N, …, K) has."""
    return math.prod(y.shape[:-1])


class MeanSquaredError(Loss):
    """The mean of (y − t)² over all elements of the batch.

    Shapes
        y       (N, …)
        labels  as y; or class indices (N,) where y is (N, K), which stand for one-hot rows, and likewise
                (N, H, W) for (N, H, W, K)

    Example
        >>> loss, backward = losses.MeanSquaredError()(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
        >>> float(loss), backward()
        (2.0, array([[0., 2.]]))
    """

    takes_classes = True

    def __call__(self, y: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the loss and the backward function."""
        difference = y - one_hot(self.backend, labels, y)
        return (difference * difference).mean(), lambda dloss=1.0: difference * (2.0 * dloss / difference.size)


def one_hot(backend: Backend, labels: Array, y: Array) -> Array:
    """Return labels in the shape and dtype of y (N, …, K): class indices (N, …) become one-hot rows."""
    if labels.ndim == y.ndim - 1:
        labels = labels[..., None] == backend.xp.arange(y.shape[-1])
    return labels.astype(y.dtype, copy=False)


def checked_loss(loss: Loss, y: Array, labels: Array) -> tuple[Array, LossBackward]:
    """Return what a loss returns, or refuse what one of a user's own returns in another form.

    Raises:
        ConfigurationError: not a pair of one number and a function.
        ShapeError: a gradient that is not of the shape of y, which would be broadcast.
    """
    found: Any = loss(y, labels)
    if is_ours(loss):
        return found
    kind = type(loss).__name__
    if not isinstance(found, tuple) or len(found) != 2 or not callable(found[1]):
        raise ConfigurationError(
            f"the loss {kind} returned {checks.shown(found)}; its __call__(y, labels) must return the mean loss, one "
            "number, and its backward function, which takes dloss = 1.0 and returns dy"
        )
    mean, backward = found
    if tuple(getattr(mean, "shape", ())):
        raise ConfigurationError(
            f"the loss {kind} returned a loss of shape {tuple(mean.shape)}; return one number, such as its .mean()"
        )

    def checked_backward(dloss: Any = 1.0) -> Array:
        dy = backward(dloss)
        if tuple(getattr(dy, "shape", ())) != tuple(y.shape):
            raise ShapeError(
                f"the backward function of the loss {kind} returned a gradient of shape "
                f"{tuple(getattr(dy, 'shape', ()))} for outputs of shape {tuple(y.shape)}; both shapes must agree"
            )
        return dy

    return mean, checked_backward


def chosen_loss(loss: Any) -> Loss:
    """Return a loss by itself or by its name, or raise ConfigurationError that says what a loss is."""
    method = "__call__(y, labels) returns the mean loss and its backward function"
    return Loss.choose(loss, "loss must be a loss", "categorical_crossentropy", method)
