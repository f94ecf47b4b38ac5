"""Passes that are recorded while they are made, and then repeated without the layers' own Python.

A training makes the same pass thousands of times, on batches of one shape. What the layers decide, and how the kernels
cut their work, comes out the same each time, and takes longer than the computing where images are small; and threads
wait for each other to do it, since one at a time holds Python's lock. So a pass like the one before it is recorded by
the backend, slice by slice, and those after it are repeats:

    pass 1    made          the layers' text, kernel after kernel
    pass 2    recorded      the same, and each slice's recorder notes what is asked of the backend
    pass 3    compared      made and repeated: are they the same bits? what was made is used
    pass 4 …  repeated      what was noted, with new inputs, in memory of its own

A recorded pass serves as long as the network holds the same layers, attributes and arrays, frozen or not, and the batch
has the same shape. Only layers that say `recordable` are recorded. What a repeat computes is the same to the bit; where
the comparison finds another one, nothing is repeated any more, and a warning says so (see `comparison.py`).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.backends.base import Recorder
from gpucnn.core import forks
from gpucnn.engine.comparison import Doubts, State, same_bits
from gpucnn.engine.passes import Pass
from gpucnn.engine.replicas import Fingerprint, Replica, is_array
from gpucnn.errors import RecordingWarning
from gpucnn.layers.base import Backward, Layer
from gpucnn.layers.containers import already_run

NO_ROOM = "memory does not suffice to compare a replay with an eager pass"
SMALLER = "a smaller batch size leaves room for both"
OWN_LAYERS = (
    "in layers of your own compute with self.backend.xp alone, keep what changes in arrays, or leave out "
    "recordable = True. gpucnn.check_layer looks for the cause"
)

_one_at_a_time = forks.lock()  # to be recorded: parameters are not what they are meanwhile
_to_undo: list[Any] = []  # what puts them back


def _put_back() -> str:
    """Give layers their arrays back; return why what was recorded cannot be repeated, "" if it can."""
    reasons: list[str] = []
    while _to_undo:
        reasons.append(_to_undo.pop()())
    return next((reason for reason in reasons if reason), "")


@forks.in_child
def _put_back_in_child() -> None:
    """Give a forked child its parameters back: nobody goes on there with what was being recorded."""
    _put_back()


class Room:
    """What the recordings of a network share: memory, one for each slice, which one pass at a time makes use of."""

    def __init__(self) -> None:
        self.lock = forks.lock()
        self.training: object | None = None  # stands for a pass whose way back is still to be walked
        self._recorders: dict[Any, Recorder] = {}

    def recorder(self, backend: Backend, number: int) -> Recorder:
        """Return who records a slice on a backend, in the same memory each time."""
        recorder = self._recorders.get((backend, number))
        if recorder is None:
            recorder = backend.recorder()
            assert recorder is not None
            self._recorders[backend, number] = recorder
        return recorder

    def forget(self) -> None:
        """Leave the memory to the recordings that there are, with which it goes; those to come get their own."""
        self.training, self._recorders = None, {}

    def __reduce__(self) -> Any:
        """Begin a copy empty."""
        return Room, ()


class RecordedPass(Pass):
    """A pass that records each slice the first time it is made, and repeats it from then on."""

    def __init__(self, room: Room, backend: Backend, network: Layer, slices: Sequence[slice], **options: Any) -> None:
        super().__init__(backend, network, [Replica(network) for _ in slices[1:]], slices, **options)
        self._room, self._recorders = room, [room.recorder(backend, number) for number in range(len(slices))]
        self._fingerprint = Fingerprint(network)
        self._repeats: dict[str, list[Any]] = {"forward": [None] * len(slices), "backward": [None] * len(slices)}
        self._doubts: Doubts | None = None
        self._wrong, self._said = "", False  # why it is not to be repeated though all of it was recorded

    @property
    def gave_up(self) -> str:
        """Why the pass cannot be repeated; "" if it can."""
        if self._wrong:
            return self._wrong
        repeats = [repeat for way in self._repeats.values() for repeat in way if repeat is not None]
        return next((repeat.gave_up for repeat in repeats if repeat.gave_up), "")

    def serves(self) -> bool:
        """Tell whether all of it was recorded, and the network is still the same."""
        ways = ["forward", "backward"] if self._options["train"] else ["forward"]
        return all(None not in self._repeats[way] for way in ways) and self._fingerprint.is_true()

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the network's output for x and the way back; one of inference makes the pass again, as it comes."""
        if self._doubts is None:
            self._doubts = Doubts(self.networks[0], x)
        elif self._doubts.any_raised(x):
            return self._compared(x, self._doubts)
        with self._being_recorded("forward"):
            y, _ = super().forward(x)
        if self._options["train"]:
            self._room.training = this = object()
            return y, partial(self._walk, this)

        def as_it_comes(dy: Array) -> Array:
            made = Pass(self._backend, self.networks[0], self._replicas, self._slices, **self._options)
            return made.forward(x)[1](dy)

        return y, as_it_comes

    def _walk(self, this: object, dy: Array) -> None:
        """Walk the way back of a pass, which adds to the parameters' gradients.

        Raises:
            ConfigurationError: it was walked already, or another pass of training was begun.
        """
        if self._room.training is not this:
            raise already_run(self.networks[0].display_name)
        with self._being_recorded("backward"):
            self.backward(dy)
        self._ways_back = [None] * len(self._slices)
        self._room.training = None

    def _compared(self, x: Array, doubts: Doubts) -> tuple[Array, Backward]:
        """Return output and way back of an eager pass, with which a replay is compared, forward and then back."""
        start = State(self.networks[0])
        replayed, after = self._replayed(super().forward, x)
        made = Pass(self._backend, *self._eager_networks(), self._slices, **self._options)
        y, way_back = self._with_room(made.forward, x)
        self._judge(after, State(self.networks[0]), replayed is None or same_bits(replayed[0], y))
        if not self._options["train"]:
            doubts.settle()
            self._backend.release()
            return y, way_back
        self._room.training = this = object()

        def anew(dy: Array) -> None:  # a way back can be walked only once, also where it failed
            start.put_back()
            made.forward(x)[1](dy)

        def walk(dy: Array) -> None:
            if self._room.training is not this and not self._wrong:
                raise already_run(self.networks[0].display_name)
            _, after = self._replayed(self.backward, dy) if not self._wrong else (None, None)
            self._with_room(way_back, dy, anew)
            self._judge(after, State(self.networks[0]))
            doubts.settle()
            self._room.training, made._ways_back = None, []
            self._backend.release()  # the memory of the eager pass, which no other one will be

        return y, walk

    def _eager_networks(self) -> tuple[Layer, list[Replica]]:
        return self.networks[0], [Replica(self.networks[0]) for _ in self._slices[1:]]

    def _replayed(self, function: Callable[[Array], Any], array: Array) -> tuple[Any, State | None]:
        """Return what a replay returns, and the state it leaves; the network's own is afterwards what it was before."""
        before = State(self.networks[0])
        try:
            return function(array), State(self.networks[0])
        except MemoryError:
            self._wrong = NO_ROOM
            return None, None
        except Exception as error:  # if the eager pass has it too, it is raised there
            self._wrong = f"a replay raised {type(error).__name__}: {error}"
            return None, None
        finally:
            before.put_back()

    def _with_room(
        self, function: Callable[[Array], Any], array: Array, again: Callable[[Array], Any] | None = None
    ) -> Any:
        """Return what a function returns; where memory does not suffice for both, nothing is replayed any more.

        Then it is called once more, or another one in its place.
        """
        before = State(self.networks[0])
        try:
            return function(array)
        except MemoryError:
            self._wrong = NO_ROOM
        before.put_back()
        self._repeats = {way: [None] * len(self._slices) for way in self._repeats}
        self._room.forget()
        self._backend.release()
        return (again or function)(array)

    def _judge(self, replayed: State | None, eager: State, same_output: bool = True) -> None:
        """Give up where a replay differs from the eager pass, and say so."""
        if replayed is not None:
            differs = eager.difference(replayed) if same_output else "the output"
            if differs:
                self._wrong = f"{differs} of a replay is not what the layers themselves compute"
        if self._wrong and not self._said:
            self._said = True
            remedy = SMALLER if self._wrong == NO_ROOM else OWN_LAYERS
            message = f"passes are no longer captured, all of them are eager: {self._wrong}; {remedy}"
            warnings.warn(RecordingWarning(message), stacklevel=2)

    def _forward(self, number: int, x: Array) -> Array:
        return self._recorded("forward", super()._forward, number, x)

    def _backward(self, number: int, dy: Array) -> Array:
        return self._recorded("backward", super()._backward, number, dy)

    def _recorded(self, way: str, function: Any, number: int, array: Array) -> Array:
        """Return what a function of a slice's number and an array returns: record it, or repeat it."""
        repeat = self._repeats[way][number]
        if repeat is not None:
            return repeat(array)
        result, self._repeats[way][number] = self._recorders[number].record(partial(function, number), array)
        return result

    def _joined(self, parts: list[Array]) -> Array:
        """Return results joined, or copied: they lie where the next repeat writes its own."""
        return parts[0].copy() if len(parts) == 1 else super()._joined(parts)

    @contextmanager
    def _being_recorded(self, way: str) -> Iterator[None]:
        """Let the recorders see what is done with the networks' parameters and buffers, if that is still to record."""
        if None not in self._repeats[way]:
            yield
            return
        with _one_at_a_time:
            try:
                for network, recorder in zip(self.networks, self._recorders, strict=True):
                    _seen(network, recorder)
                yield
            finally:
                reason = _put_back()
                self._wrong = self._wrong or reason


def _seen(network: Layer, recorder: Recorder) -> None:
    """Put arrays that a recorder notices in the place of a network's, until they are put back."""
    parameters = [(parameter, parameter.value, parameter.grad) for parameter in network.parameters().values()]
    buffers = [(buffer, buffer.value) for buffer in network.buffers().values() if not buffer.on_host]
    attributes = [
        (layer, name, value)
        for layer in network.all_layers()
        for name, value in vars(layer).items()
        if is_array(value) and hasattr(value, "__iadd__")  # a number of NumPy's cannot be changed in place
    ]
    traced: dict[int, Array] = {}

    def seen(array: Array) -> Array:
        return traced.setdefault(id(array), recorder.seen(array))

    def put_back() -> str:
        others: list[str] = []

        def own(now: Array | None, before: Array | None, what: str) -> Array | None:
            """Return what was there before, or a copy of what a layer has put there."""
            if now is None or now is before or (before is not None and now is traced.get(id(before))):
                return None if now is None else before
            others.append(what)
            return recorder.unseen(now).copy() if is_array(now) else now

        for parameter, value, grad in parameters:
            made = parameter.grad if grad is None else None
            if made is not None and recorder.knows(made):
                parameter.rebind(value, recorder.unseen(made))
            else:
                parameter.rebind(own(parameter.value, value, "a parameter"), own(parameter.grad, grad, "a gradient"))
        for buffer, value in buffers:
            buffer.rebind(own(buffer.value, value, "a buffer"))
        for layer, name, value in attributes:
            if name in vars(layer):
                vars(layer)[name] = own(vars(layer)[name], value, f"the attribute {name} of {layer.display_name}")
        return f"{others[0]} got another array in a pass; write into the one it has: array[...] = …" if others else ""

    _to_undo.append(put_back)
    for parameter, value, grad in parameters:
        parameter.rebind(seen(value), None if grad is None else seen(grad))
    for buffer, value in buffers:
        buffer.rebind(seen(value))
    for layer, name, value in attributes:
        vars(layer)[name] = seen(value)


class Repeats:
    """What was recorded of a network: one pass of training, one of inference."""

    def __init__(self, network: Layer, room: Room | None = None) -> None:
        self._network = network
        silent = [layer.display_name for layer in network.all_layers() if not layer.recordable]
        self._reason = f"layers that do not say recordable = True: {', '.join(silent)}" if silent else ""
        self._passes: dict[bool, tuple[Any, RecordedPass]] = {}
        self.room = Room() if room is None else room
        self.forget()

    @property
    def gave_up(self) -> str:
        """Why nothing is recorded, or not any more; "" if nothing stands in the way."""
        return self._reason or next((of[1].gave_up for of in self._passes.values() if of[1].gave_up), "")

    def forget(self) -> None:
        """Let go of what was recorded, and of the memory that repeats need."""
        self._reason = self.gave_up
        self._passes = {}
        self._last: dict[bool, Any] = {}  # what the last pass was like, by whether it trained
        self._alike: dict[bool, int] = {}  # how many passes like it there were
        self._wanted: dict[bool, int] = {}  # how many there must have been: each one that serves no more doubles it
        self.room.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out, of a copy, what was recorded of the network that it is a copy of."""
        return {"_network": self._network, "_reason": self.gave_up, "room": self.room}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_passes": {}})
        self.forget()

    def forward(
        self, backend: Backend, x: Array, slices: Sequence[slice], options: dict[str, Any]
    ) -> tuple[Array, Backward] | None:
        """Return the output for x and the way back, if the pass was recorded or can be now; else None."""
        train = options["train"]
        if self.gave_up:
            if self._passes and self.room.training is None:
                self.forget()
            return None
        if train and options.get("need_dx", True):
            return None
        if not self.room.lock.acquire(blocking=False):  # another thread computes there
            return None
        try:
            if self.room.training is not None and not train:  # what its way back needs would be overwritten
                return None
            kind = (x.shape, str(x.dtype), str(slices), backend.choices(), backend)
            recorded = self._recorded(kind, train) or self._to_record(kind, train, backend, slices, options)
            self._last[train] = kind
            return None if recorded is None else recorded.forward(x)
        finally:
            self.room.lock.release()

    def _recorded(self, kind: Any, train: bool) -> RecordedPass | None:
        """Return the recorded pass of a kind, if there is one that serves."""
        of_kind, recorded = self._passes.get(train, (None, None))
        if recorded is None:
            return None
        if recorded.gave_up or not recorded.serves():
            self._reason = self.gave_up
            self._let_go(train)
            self._wanted[train] = 2 * self._wanted.get(train, 1)
            self._alike[train] = 0
            return None
        return recorded if of_kind == kind else None

    def _to_record(
        self, kind: Any, train: bool, backend: Backend, slices: Sequence[slice], options: dict[str, Any]
    ) -> RecordedPass | None:
        """Return a pass that will record itself, if there were enough of the kind before it; else None."""
        alike = self._alike.get(train, 0) if self._last.get(train) == kind else 0
        self._alike[train] = alike + 1
        if self.gave_up or alike < self._wanted.get(train, 1) or backend.recorder() is None:
            return None
        self._let_go(train)
        recorded = RecordedPass(self.room, backend, self._network, slices, **options)
        self._passes[train] = kind, recorded
        return recorded

    def _let_go(self, train: bool) -> None:
        """Let go of a recorded pass, if there is one, and of memory that no other one needs."""
        if self._passes.pop(train, None) is not None:
            self.room.forget()
