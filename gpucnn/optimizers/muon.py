"""Muon: matrices step by the orthogonal matrix nearest to their momentum; a second optimizer trains the rest."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from gpucnn.backends import Array, Backend
from gpucnn.core import checks
from gpucnn.errors import ConfigurationError
from gpucnn.optimizers.adam import AdamW
from gpucnn.optimizers.base import LearningRates, Number, Optimizer, Step
from gpucnn.optimizers.groups import Group, partition
from gpucnn.optimizers.layout import Layout, Shape
from gpucnn.optimizers.patterns import check_patterns, matched
from gpucnn.schedules import Schedule

# of the polynomial; they bring small singular values up fast, to about 0.7 … 1.2
COEFFICIENTS = 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """Momentum whose matrices are made nearly orthogonal: every direction of a weight is trained at the same speed.

    The filters (KH, KW, C, F) of a convolution count as a matrix (KH·KW·C, F), as the weight (D, K) of a dense layer
    does. velocity ← momentum·velocity + gradient; the step is an orthogonalised velocity, times √(outputs / inputs)
    where there are more outputs.

    Arguments
        learning_rate  a number or a schedule
        momentum       at least 0, below 1
        nesterov       look ahead: what is orthogonalised is gradient + momentum·velocity
        weight_decay   shrinks the values directly: value ← value·(1 − rate·weight_decay)
        fallback       the optimizer of all other parameters, with its own rate; None for `AdamW()`
        match          patterns of the parameters that Muon trains; None chooses all filters and matrices but the last,
                       which makes the network's outputs
        iterations     of Newton and Schulz, 3 to 5
        fixed_norm     bring each matrix to the norm √outputs before its step, as the CIFAR-10 speed runs do; for
                       weights in front of a batch norm, which takes away their scale
        groups, clip_norm, clip_value
                       see `Optimizer`; groups of what Muon trains, and limits for all gradients together

    Raises
        ConfigurationError  an argument is not valid, or the model has no parameter for Muon

    Source: Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: an optimizer for hidden layers in neural
    networks" (2024).

    Example
        >>> (x, y), _ = datasets.synthetic_digits(64)
        >>> model = networks.lenet().compile(optimizers.Muon(0.02), "categorical_crossentropy")
        >>> history = model.fit(x, y, epochs=1, verbose=0)
    """

    def __init__(
        self,
        learning_rate: Schedule | float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        fallback: Optimizer | None = None,
        match: str | Sequence[str] | None = None,
        iterations: int = 5,
        fixed_norm: bool = False,
        groups: Sequence[Group] = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, groups, clip_norm, clip_value)
        self.momentum = checks.number(momentum, "momentum", minimum=0, below=1)
        self.nesterov = checks.flag(nesterov, "nesterov")
        if fallback is not None and (not isinstance(fallback, Optimizer) or isinstance(fallback, Muon)):
            raise ConfigurationError(
                f"fallback must be an optimizer such as SGD(0.1) or AdamW(0.001), not {fallback!r}"
            )
        if fallback is not None and (fallback.clip_norm or fallback.clip_value):
            raise ConfigurationError(
                f"{fallback!r} has limits for gradients; pass clip_norm and clip_value to Muon, for all of them"
            )
        self.fallback = fallback
        self._fallback = fallback or AdamW()
        self.match = checks.optional(check_patterns, match, "match")
        self.iterations = checks.integer(iterations, "iterations, of which 3 to 5 are enough,", minimum=1)
        self.fixed_norm = checks.flag(fixed_norm, "fixed_norm")

    laid_by = "groups", "fallback", "match"
    renamed: ClassVar[dict[str, str]] = {"other": "fallback"}

    def slot_names(self) -> tuple[str, ...]:
        """Return the velocity, which the update without momentum does without."""
        return ("velocity",) if self.momentum else ()

    def partition(self, shapes: Mapping[str, Shape]) -> list[list[str]]:
        """Return the paths of Muon's ranges of the flat buffer, and then those of the fallback."""
        matrices = [path for path, shape in shapes.items() if len(shape) > 1]
        own = matrices[:-1] if self.match is None else matched(shapes, self.match)
        if not own or not set(own) <= set(matrices):
            flat = ", ".join(path for path in own if path not in matrices) or "nothing else"
            raise ConfigurationError(
                f"Muon trains filters and matrices; of this model it would get {flat}; say by match=… which of "
                f"{', '.join(matrices) or 'them, where there are any,'} it is to train"
            )
        rest = {path: shape for path, shape in shapes.items() if path not in own}
        return [*partition(own, self.groups), *self._fallback.partition(rest)]

    def reset(self, backend: Backend, values: Array, layout: Layout | None = None) -> None:
        """Start again, with the fallback."""
        super().reset(backend, values, layout)
        self._fallback.reset(backend, values, self._fallback_layout(self._layout))

    def set_frozen(self, paths: Collection[str]) -> None:
        """Leave these parameters out of the updates of both optimizers."""
        super().set_frozen(paths)
        self._fallback.set_frozen(paths)

    def rebind(self, source: Backend, target: Backend, values: Array, layout: Layout | None = None) -> None:
        """Follow the parameters, with the fallback."""
        super().rebind(source, target, values, layout)
        self._fallback.rebind(source, target, values, self._fallback_layout(self._layout))

    def all_slots(self) -> dict[str, Array]:
        """Return the slots of both; those of the fallback are called `fallback/…`."""
        return self.slots | {f"fallback/{name}": slot for name, slot in self._fallback.all_slots().items()}

    def with_current_slots(self, slots: Mapping[str, Any]) -> dict[str, Any]:
        """Return slots of a file by their names of now; those of the fallback were called `other/…`."""
        return {re.sub("^other/", "fallback/", name): slot for name, slot in slots.items()}

    def _fallback_layout(self, layout: Layout) -> Layout:
        return Layout(layout.places, layout.ranges[len(self.groups) + 1 :], layout.size)

    def learning_rates_at(self, epoch: float | None = None, epochs: float = 1.0) -> list[float]:
        """Return the learning rates of Muon's ranges of the flat buffer, and then those of the fallback."""
        return [*super().learning_rates_at(epoch, epochs), *self._fallback.learning_rates_at(epoch, epochs)]

    def finished_groups(self, epoch: float | None) -> list[bool]:
        """Return it for the ranges of both optimizers."""
        return [*super().finished_groups(epoch), *self._fallback.finished_groups(epoch)]

    def broadcast_rates(self, rate: LearningRates) -> Sequence[Number]:
        """Return the rates of all parts; where only Muon's is given, the other optimizer takes its highest."""
        rates = super().broadcast_rates(rate)
        return rates if rates is rate else [*rates, *self._fallback.learning_rates_at()]

    def _apply(self, backend: Backend, values: Array, gradients: Array, rates: Sequence[Number], step: Step) -> None:
        own = len(self.groups) + 1
        for parts, rate, decay in zip(self._trainable[:own], rates[:own], self._decays(), strict=True):
            for part in parts:
                steps = self._orthogonal_update(backend, values, gradients, part)
                backend.sgd_update(
                    values[part],
                    steps,
                    None,
                    learning_rate=rate,
                    momentum=0.0,
                    nesterov=False,
                    weight_decay=decay,  # added to a step that is orthogonal by now, so it shrinks the values directly
                )
        self._fallback._apply(backend, values, gradients, rates[own:], step)

    def _orthogonal_update(self, backend: Backend, values: Array, gradients: Array, part: slice) -> Array:
        """Return the steps of one part of the flat buffer, as long as that; with `fixed_norm`, scale its values."""
        direction = gradients[part]
        if self.momentum:
            velocity = self.slots["velocity"][part]
            velocity *= self.momentum
            velocity += direction
            direction = direction + self.momentum * velocity if self.nesterov else velocity
        steps = backend.xp.zeros_like(direction)
        for place in self._layout.places.values():
            if not part.start <= place.slice.start < part.stop:
                continue
            outputs = place.shape[-1]
            inputs = math.prod(place.shape) // outputs
            local = slice(place.slice.start - part.start, place.slice.stop - part.start)
            nearest = newton_schulz(backend, direction[local].reshape(inputs, outputs), self.iterations)
            steps[local] = (nearest * max(1.0, outputs / inputs) ** 0.5).reshape(-1)
            if self.fixed_norm:
                weight = values[place.slice]
                weight *= math.sqrt(outputs) / _norm(backend, weight)
        return steps


def newton_schulz(backend: Backend, matrix: Array, iterations: int) -> Array:
    """Return about the orthogonal matrix nearest to `matrix` (M, N): U·Vᵀ, where that is U·S·Vᵀ.

    An odd polynomial of a matrix is that of its singular values, which these iterations bring near to 1; the vectors
    stay. Products alone are needed, and the smaller of both sides has the larger part in them.

    Source: Bernstein, Newhouse, "Old optimizer, new norm: an anthology" (2024).
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / _norm(backend, x)  # so that no singular value is above 1
    for _ in range(iterations):
        gram = backend.dense(x, x.T, None)
        x = a * x + backend.dense(b * gram + c * backend.dense(gram, gram, None), x, None)
    return x.T if is_tall else x


def _norm(backend: Backend, x: Array) -> Array:
    """Return the Euclidean norm of all elements, an array () of their dtype that can be divided by, even for zeros."""
    xp = backend.xp
    norm = xp.sqrt(xp.square(x, dtype=xp.float64).sum())
    return xp.maximum(norm, xp.finfo(x.dtype).tiny).astype(x.dtype)
