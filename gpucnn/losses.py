"""Losses: `loss, backward = loss(y, labels)`, one number for a batch and the way back to dy.

The loss stays on the device, a 0-d array, until somebody prints it. It is the mean over the batch.
"""

from collections.abc import Callable

from gpucnn.backends import Array, Backend, get_backend
from gpucnn.config import Configurable
from gpucnn.errors import ConfigurationError

LossBackward = Callable[..., Array]


class Loss(Configurable, family="loss"):
    """Base of every loss."""

    #: whether the labels are classes: integers (N,) or one-hot rows (N, K)
    of_classes = False

    def __init__(self) -> None:
        self.backend: Backend = get_backend("numpy")

    def __call__(self, y: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the mean loss of outputs y and the way back: `backward()` is dy; `backward(2.0)` is twice that."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


class CategoricalCrossEntropy(Loss):
    """The mean of −Σ t·log y over the batch, with t the one-hot label.

    Shapes
        y       (N, K), probabilities, or logits with `from_logits`
        labels  (N,), the numbers of the classes 0 … K − 1, or one-hot (N, K)

    Arguments
        label_smoothing  s: each label is mixed with the uniform distribution, t ← (1 − s)·t + s / K
        from_logits      y has not passed through a softmax; a last `Softmax` layer is fused with the loss anyway

    Source for the smoothing: Szegedy et al., "Rethinking the Inception architecture" (2016).
    """

    of_classes = True

    def __init__(self, label_smoothing: float = 0.0, from_logits: bool = False) -> None:
        super().__init__()
        if not (isinstance(label_smoothing, int | float) and 0 <= label_smoothing < 1):
            raise ConfigurationError(f"label_smoothing must be at least 0 and below 1, not {label_smoothing!r}")
        self.label_smoothing = label_smoothing
        self.from_logits = from_logits

    def __call__(self, y: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the loss of probabilities (or of logits with `from_logits`) and the way back."""
        if self.from_logits:
            return self.on_logits(y, labels)
        xp = self.backend.xp
        targets = self._targets(y, labels)
        safe = xp.maximum(y, xp.finfo(y.dtype).tiny)  # a probability that underflowed to 0 has a finite loss
        N = len(y)
        loss = -(targets * xp.log(safe)).sum() / N
        return loss, lambda dloss=1.0: -targets / safe * (dloss / N)

    def on_logits(self, logits: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the loss of softmax(logits) and the way back to the logits, as one stable kernel."""
        loss, dlogits = self.backend.softmax_cross_entropy(logits, self._targets(logits, labels))
        return loss, lambda dloss=1.0: dlogits * dloss

    def _targets(self, y: Array, labels: Array) -> Array:
        targets = one_hot(self.backend, labels, y)
        s = self.label_smoothing
        return targets * (1.0 - s) + s / y.shape[-1] if s else targets


class MeanSquaredError(Loss):
    """The mean of (y − t)² over all elements of the batch.

    Shapes
        y       (N, …)
        labels  as y; or the numbers of the classes (N,) where y is (N, K), which stand for one-hot rows
    """

    def __call__(self, y: Array, labels: Array) -> tuple[Array, LossBackward]:
        """Return the loss and the way back."""
        difference = y - one_hot(self.backend, labels, y)
        return (difference * difference).mean(), lambda dloss=1.0: difference * (2.0 * dloss / difference.size)


def one_hot(backend: Backend, labels: Array, y: Array) -> Array:
    """Return labels in the shape and dtype of y (N, K): class numbers (N,) become one-hot rows."""
    if labels.ndim == 1 and y.ndim == 2:
        labels = labels[:, None] == backend.xp.arange(y.shape[1])
    return labels.astype(y.dtype, copy=False)
