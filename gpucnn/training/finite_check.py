"""Detection of NaN and infinity in a training run, before they reach the weights, and the layer where they arise.

Gradients, and the running statistics of batch norms, are checked between the backward pass and the update, by their
sums: a single non-finite element makes the sum non-finite. On the host this takes 0.1 to 0.2 % of a step, and training
stops with the weights from before the step. On a device the sums are read at the end of the epoch and before a
checkpoint: the first bad step is known then, but the weights are lost; those of the last checkpoint are finite. A model
compiled with `jit=False` reads them at each step.
"""

from typing import Any

from gpucnn.backends import Array
from gpucnn.engine.executor import Executor
from gpucnn.errors import NumericError
from gpucnn.layers.hooks import find_not_finite

NEVER = 2**62  # larger than any step number
REMEDY = (
    "A lower learning rate or the optimizer's clip_norm often helps; fit(check_numerics=False) continues regardless"
)


class FiniteCheck:
    """Checks the gradients and statistics of each step of a training run; does nothing unless `enabled`."""

    def __init__(self, model: Executor, enabled: bool) -> None:
        self.model, self.enabled = model, enabled
        self.immediate = model.backend.is_host or not model.jit
        self._clipped = enabled and model.optimizer.clip_value is not None  # clipping makes infinity finite
        xp = model.backend.xp
        self._first_bad_step = xp.full((), NEVER, dtype=xp.int64) if enabled and not self.immediate else None
        self._streams = [buffer for buffer in model.network.buffers().values() if buffer.on_host]
        self._before: list[Any] = []

    def begin_step(self) -> None:
        """Save the state of the random streams, so that the step can be repeated."""
        if self.enabled and self.immediate:
            self._before = [buffer.value.copy() for buffer in self._streams]

    def check_step(self, inputs: Array, labels: Array, number: Array | None) -> None:
        """Check the gradients of a step, before the update.

        Raises:
            NumericError: they are not finite, if that is known without synchronizing; with layer and direction.
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
            if not large:  # finite elements, whose sum overflows
                self._explain(inputs, labels)

    def raise_if_bad(self) -> None:
        """Read the number of the first bad step from the device.

        Raises:
            NumericError: there was a bad step; with its number.
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
        """Repeat the step with checks of each layer, and raise the error."""
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
