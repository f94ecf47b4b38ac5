"""NaN and infinity in a training run: noticed before they reach the weights, and traced to where they arose.

Gradients, and the running statistics of batch norms, are looked at between the backward pass and the update, by their
sums, which one bad element spoils. Where arrays lie on the host this costs one or two thousandths of a step, and the
training ends there, with the weights of before. On a device the sums are only noted, and read when the epoch is over or
a checkpoint is due: which step was the first is known then, but the weights are lost, and only the last checkpoint
holds good ones. A model compiled with `jit=False` reads them at each step.
"""

from typing import Any

from gpucnn.backends import Array
from gpucnn.engine.executor import Executor
from gpucnn.errors import NumericError
from gpucnn.layers.hooks import find_not_finite

NEVER = 2**62  # the number of a step that never runs
REMEDY = "A lower learning rate or the optimizer's clip_norm often helps; fit(check_numerics=False) ignores it"


class FiniteCheck:
    """Looks at the gradients and statistics of each step of a training run; `enabled=False` looks at none."""

    def __init__(self, model: Executor, enabled: bool) -> None:
        self.model, self.enabled = model, enabled
        self.immediate = model.backend.is_host or not model.jit
        self._clipped = enabled and model.optimizer.clip_value is not None  # which makes infinity finite
        xp = model.backend.xp
        self._first_bad_step = xp.full((), NEVER, dtype=xp.int64) if enabled and not self.immediate else None
        self._streams = [buffer for buffer in model.network.buffers().values() if buffer.on_host]
        self._before: list[Any] = []

    def begin_step(self) -> None:
        """Note where the random streams are, so that a step can be run again."""
        if self.enabled and self.immediate:
            self._before = [buffer.value.copy() for buffer in self._streams]

    def check_step(self, inputs: Array, labels: Array, number: Array | None) -> None:
        """Look at the gradients of a step on these, before the update.

        Raises:
            NumericError: they are not finite, and this is known already; names the layer and the direction.
        """
        if not self.enabled:
            return
        xp, gradients, statistics = self.model.backend.xp, self.model.flat_gradients(), self.model.flat_state()[-1]
        # with opposite signs infinity and infinity would be NaN
        total = xp.abs(gradients).sum() if self._clipped else gradients.sum()
        bad = xp.isnan(total) if self._clipped else ~xp.isfinite(total)
        bad = bad | ~xp.isfinite(statistics.sum())  # of inputs so large that their squares are not finite
        if self._first_bad_step is not None:
            this = self.model.optimizer.steps + 1 if number is None else number
            self._first_bad_step[...] = xp.minimum(self._first_bad_step, xp.where(bad, this, NEVER))
        elif bool(bad):
            large = not self._clipped and all(bool(xp.isfinite(array).all()) for array in (gradients, statistics))
            if not large:  # for a sum alone
                self._explain(inputs, labels)

    def raise_if_bad(self) -> None:
        """Read what was noted on the device.

        Raises:
            NumericError: a step since the run began was bad; says which.
        """
        if self._first_bad_step is None:
            return
        number = int(self.model.backend.to_host(self._first_bad_step))
        if number < NEVER:
            raise NumericError(
                f"the gradients, or running statistics, hold NaN or infinity since step {number:,} of the optimizer, "
                "and so do the weights; the last checkpoint, if there is one, is from before it. compile(…, "
                f"jit=False) names the layer where it begins. {REMEDY}",
                step=number,
            )

    def _explain(self, inputs: Array, labels: Array) -> None:
        """Raise the error, after running the step again with a check of each layer."""
        step = self.model.optimizer.steps + 1
        saved = [(buffer, buffer.value.copy()) for buffer in self.model.network.buffers().values()]
        for buffer, before in zip(self._streams, self._before, strict=True):
            buffer.value[...] = before
        with find_not_finite(self.model.network) as found:
            self.model.loss_and_gradients(inputs, labels, sharded=False)  # without fused layers
        layer, direction, what = found[0] if found else ("", "backward", "a gradient holds NaN or infinity")
        for buffer, now in saved:
            buffer.value[...] = now
        where = f"{layer}: " if layer else ""
        raise NumericError(
            f"{where}{what} at step {step:,}, in the {direction} pass; the weights are from before it. {REMEDY}",
            step=step,
            layer=layer,
            direction=direction,
        )
