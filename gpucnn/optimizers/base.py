"""`Optimizer`: the settings of an update and the slots it keeps; the arithmetic is a kernel of the backend."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from gpucnn.backends import Array, Backend
from gpucnn.core import checks
from gpucnn.core.config import Configurable
from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.optimizers.groups import Group, check_groups, partition
from gpucnn.optimizers.layout import Layout, Shape
from gpucnn.schedules import Schedule, as_rate, rate_of

Number = float | Array  # a Python number, or an array () of one
Slots = dict[str, Array]
Step = int | Array  # its number, from 1
LearningRates = Number | Sequence[Number]  # the learning rate of everything, or one for each part of the flat buffer

FLUSH_EVERY = 256  # updates; denormal numbers in the slots are set to 0 then


class Optimizer(Configurable, family="optimizer"):
    """Base of every optimizer.

    Arguments
        learning_rate  a number or a schedule
        weight_decay   at least 0; what it does, each optimizer says
        groups         `Group` objects: parameters with another rate or weight decay
        clip_norm      scales the gradients of all parameters that are trained down to this norm, taken over all of
                       them, where it is larger
        clip_value     clips every element of the gradients to ± this value, before the norm is taken

    Source of the clipping: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013).

    `slots` are arrays as long as the flat parameter buffer, by name; `steps` counts the updates. The buffer is
    divided into ranges: what no group matches, and then each group.

    Example
        >>> class SignSGD(optimizers.Optimizer):
        ...     def _update(self, backend, values, gradients, slots, learning_rate, weight_decay, number):
        ...         values -= learning_rate * backend.xp.sign(gradients)
        >>> model = Model([layers.Dense(1)], (3,)).compile(SignSGD(0.01), "mean_squared_error")
    """

    learning_rate: Schedule | float
    foreign = ("lr",)

    #: settings by which the parameters are laid out when a model is compiled
    laid_by: ClassVar[tuple[str, ...]] = ("groups",)

    def __init__(
        self,
        learning_rate: Schedule | float,
        weight_decay: float = 0.0,
        groups: Sequence[Group] = (),
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.learning_rate = as_rate(learning_rate)
        self.weight_decay = checks.number(weight_decay, "weight_decay", minimum=0)
        self.groups = check_groups(groups)
        self.clip_norm = checks.optional(checks.positive, clip_norm, "clip_norm")
        self.clip_value = checks.optional(checks.positive, clip_value, "clip_value")
        self.steps = 0
        self.slots: Slots = {}
        self._values: Array = None
        self._layout = Layout.flat(0)
        self._trainable: list[list[slice]] = []  # what of the range of each group is not frozen
        self._frozen: tuple[str, ...] = ()

    def _admitted(self, name: str, value: Any) -> Any:
        """Return what an attribute is set to; how the parameters of a model are laid out is settled by `compile`."""
        if name in self.laid_by and self._values is not None:
            raise ConfigurationError(
                f"{name} cannot be changed once a model is compiled with this {type(self).__name__}; compile it with a "
                "new one"
            )
        return super()._admitted(name, value)

    def slot_names(self) -> tuple[str, ...]:
        """Return the names of the slots that the update keeps."""
        return ()

    def partition(self, shapes: Mapping[str, Shape]) -> list[list[str]]:
        """Return the paths of the parameters of these shapes, a list for each part of the flat buffer.

        Raises:
            ConfigurationError: a group's pattern matches none; lists the paths there are.
        """
        return partition(list(shapes), self.groups)

    def reset(self, backend: Backend, values: Array, layout: Layout | None = None) -> None:
        """Start for the flat parameter buffer `values` (P,), laid out as `layout` says, with all slots 0."""
        self.steps, self.slots = 0, {}
        self._values = values
        self._layout = layout or Layout.flat(len(values))
        self.set_frozen(())
        self._keep_slots(backend)

    def set_frozen(self, paths: Collection[str]) -> None:
        """Leave these parameters out of all updates until the next call; their slots stay what they are."""
        self._frozen = tuple(paths)
        self._trainable = [self._layout.without(paths, within) for within in self._layout.ranges]

    def _keep_slots(self, backend: Backend) -> None:
        """Keep those slots that the update keeps with its settings of now; a new one begins at 0."""
        if tuple(self.slots) != self.slot_names():
            zeros = backend.xp.zeros_like
            self.slots = {
                name: self.slots[name] if name in self.slots else zeros(self._values) for name in self.slot_names()
            }

    def rebind(self, source: Backend, target: Backend, values: Array, layout: Layout | None = None) -> None:
        """Follow the parameters, now the flat buffer `values` (P,), to another backend or into another layout."""
        layout = layout or self._layout
        for name, slot in self.slots.items():
            there = slot if source is target else target.from_host(source.to_host(slot))
            there = there.astype(values.dtype, copy=False)
            self.slots[name] = there if layout == self._layout else _relayout(target, there, self._layout, layout)
        self._values, self._layout = values, layout
        self.set_frozen(self._frozen)

    def serves(self, values: Array) -> bool:
        """Return whether its state belongs to this flat parameter buffer."""
        return values is self._values

    def all_slots(self) -> dict[str, Array]:
        """Return every slot by its name, those of an optimizer inside this one too."""
        return self.slots

    def state_dict(self, backend: Backend) -> dict[str, Any]:
        """Return host copies of every slot by name and path, such as `velocity/conv2d.weight`."""
        return {name: backend.to_host(slot).reshape(shape).copy() for name, slot, shape in self._named_slots()}

    def load_state_dict(self, backend: Backend, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned for the same parameters; the count of steps is an attribute.

        Raises:
            CheckpointError: a slot is missing, unknown, or of another shape.
        """
        parts = list(self._named_slots())
        if {name: tuple(slot.shape) for name, slot in state.items()} != {name: shape for name, _, shape in parts}:
            raise CheckpointError(
                f"the slots {', '.join(sorted(state)) or 'none'} do not fit this {type(self).__name__}, which keeps "
                f"{', '.join(name for name, _, _ in parts) or 'none'}; are they of another optimizer or architecture?"
            )
        for name, slot, _ in parts:
            slot[...] = backend.from_host(state[name].reshape(-1))

    def with_current_slots(self, slots: Mapping[str, Any]) -> dict[str, Any]:
        """Return slots of a file, by path, under the names that they have now."""
        return dict(slots)

    def _named_slots(self) -> Iterator[tuple[str, Array, Shape]]:
        """Yield what each slot keeps for each parameter: its name, a view, and the parameter's shape."""
        for name, slot in self.all_slots().items():
            for path, place in self._layout.places.items():
                yield f"{name}/{path}", slot[place.slice], place.shape

    def learning_rate_at(self, epoch: float | None = None, epochs: float = 1.0) -> float:
        """Return the learning rate at a point of a training run, or the highest one outside of any."""
        return rate_of(self.learning_rate, epoch, epochs)

    def learning_rates_at(self, epoch: float | None = None, epochs: float = 1.0) -> list[float]:
        """Return the learning rate of each range of the flat buffer: of what no group matches, then of each group.

        Raises:
            ConfigurationError: a schedule returns what is not a rate; says what, when and before which step.
        """
        try:
            rate = self.learning_rate_at(epoch, epochs)
            return [rate, *(rate * group.multiplier_at(epoch, epochs) for group in self.groups)]
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error}; step {self.steps + 1:,} of the optimizer was not made, and the weights are those before it"
            ) from None

    def finished_groups(self, epoch: float | None) -> list[bool]:
        """Return of which ranges of the flat buffer the groups' epochs are over."""
        return [False, *(group.is_finished(epoch) for group in self.groups)]

    def update(
        self, backend: Backend, values: Array, gradients: Array, learning_rate: LearningRates, step: Array | None = None
    ) -> None:
        """Update `values` (P,) in place by one step.

        The learning rate is that of what no group matches, or a sequence of all that `learning_rates_at` returns. A
        step that is captured takes rates and its number, `step` from 1, as arrays () of one; otherwise the number is
        the optimizer's own count.

        Raises:
            ConfigurationError: the optimizer is bound to another model.
        """
        if not self.serves(values):
            raise ConfigurationError(
                f"this {type(self).__name__} is already bound to another model, which was compiled with it since, or "
                "to other arrays; create one optimizer per model, and call model.apply_gradients() rather than update"
            )
        self._keep_slots(backend)
        self.steps += 1
        self._clip(backend, gradients)
        step = self.steps if step is None else step
        self._apply(backend, values, gradients, self.broadcast_rates(learning_rate), step)
        if backend.is_host and self.steps % FLUSH_EVERY == 0:
            self._flush_denormals(backend)

    def broadcast_rates(self, rate: LearningRates) -> Sequence[Number]:
        """Return the rates of all ranges; where only the first is given, groups take their highest multiplier."""
        if isinstance(rate, Sequence):
            return rate
        return [rate, *(rate * group.multiplier_at(None, 1.0) for group in self.groups)]

    def _clip(self, backend: Backend, gradients: Array) -> None:
        """Clip gradients, in place; those of frozen parameters count as 0."""
        if self.clip_norm is not None:
            for path in self._frozen:  # what was frozen after a backward pass has left its gradients behind
                gradients[self._layout.places[path].slice] = 0
        if self.clip_value is not None:
            backend.clip_value(gradients, self.clip_value)
        if self.clip_norm is not None:
            backend.clip_norm(gradients, self.clip_norm)

    def _apply(self, backend: Backend, values: Array, gradients: Array, rates: Sequence[Number], step: Step) -> None:
        """Update what is trainable of each group, with its rate and weight decay."""
        for parts, rate, decay in zip(self._trainable, rates, self._decays(), strict=True):
            for part in parts:
                slots = {name: slot[part] for name, slot in self.slots.items()}
                self._update(backend, values[part], gradients[part], slots, rate, decay, step)

    def _flush_denormals(self, backend: Backend) -> None:
        """Set numbers of the slots to 0 that are smaller than any normal one.

        The velocity of a weight that gets no gradient any more shrinks until it is that small, and then it stays so:
        0.9 of the smallest number there is rounds to itself. A processor computes a hundred times as long with it.
        """
        for slot in self.all_slots().values():
            slot[abs(slot) < backend.xp.finfo(slot.dtype).tiny] = 0

    def _decays(self) -> list[float]:
        """Return the weight decay of what no group matches, and of each group."""
        own = self.weight_decay
        return [own, *(own if group.weight_decay is None else group.weight_decay for group in self.groups)]

    def _update(
        self, backend: Backend, values: Array, gradients: Array, slots: Slots, rate: Number, decay: float, step: Step
    ) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no _update")


def _relayout(backend: Backend, slot: Array, old: Layout, new: Layout) -> Array:
    """Return a slot in another layout of the same parameters."""
    result = backend.xp.zeros_like(slot)
    for path, place in new.places.items():
        result[place.slice] = slot[old.places[path].slice]
    return result
