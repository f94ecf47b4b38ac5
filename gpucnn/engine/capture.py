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
has the same shape. Only layers that say `capturable` are recorded. What a repeat computes is the same to the bit; where
the comparison finds another one, nothing is repeated any more, and a warning says so (see `comparison.py`).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.backends.base import Tracer
from gpucnn.core import forks
from gpucnn.engine.comparison import Doubts, State, same_bits
from gpucnn.engine.passes import ShardedPass
from gpucnn.engine.replicas import NetworkSignature, Replica, is_array
from gpucnn.errors import CaptureWarning
from gpucnn.layers.base import Backward, Layer
from gpucnn.layers.containers import already_run

NO_ROOM = "memory does not suffice to compare a replay with an eager pass"
SMALLER = "a smaller batch size leaves room for both"
OWN_LAYERS = (
    "in layers of your own compute with self.backend.xp alone, keep what changes in arrays, or leave out "
    "capturable = True. gpucnn.check_layer looks for the cause"
)

_capture_lock = forks.lock()  # to be recorded: parameters are not what they are meanwhile
_to_undo: list[Any] = []  # what puts them back


def _restore() -> str:
    """Give layers their arrays back; return why what was recorded cannot be repeated, "" if it can."""
    reasons: list[str] = []
    while _to_undo:
        reasons.append(_to_undo.pop()())
    return next((reason for reason in reasons if reason), "")


@forks.in_child
def _restore_in_child() -> None:
    """Give a forked child its parameters back: nobody goes on there with what was being recorded."""
    _restore()


class CaptureMemory:
    """What the recordings of a network share: memory, one for each slice, which one pass at a time makes use of."""

    def __init__(self) -> None:
        self.lock = forks.lock()
        self.training: object | None = None  # stands for a pass whose way back is still to be walked
        self._tracers: dict[Any, Tracer] = {}

    def tracer(self, backend: Backend, number: int) -> Tracer:
        """Return who records a slice on a backend, in the same memory each time."""
        tracer = self._tracers.get((backend, number))
        if tracer is None:
            tracer = backend.tracer()
            assert tracer is not None
            self._tracers[backend, number] = tracer
        return tracer

    def invalidate(self) -> None:
        """Leave the memory to the recordings that there are, with which it goes; those to come get their own."""
        self.training, self._tracers = None, {}

    def __reduce__(self) -> Any:
        """Begin a copy empty."""
        return CaptureMemory, ()


class CapturedPass(ShardedPass):
    """A pass that records each slice the first time it is made, and repeats it from then on."""

    def __init__(
        self, memory: CaptureMemory, backend: Backend, network: Layer, slices: Sequence[slice], **options: Any
    ) -> None:
        super().__init__(backend, network, [Replica(network) for _ in slices[1:]], slices, **options)
        self._memory, self._tracers = memory, [memory.tracer(backend, number) for number in range(len(slices))]
        self._signature = NetworkSignature(network)
        self._replays: dict[str, list[Any]] = {"forward": [None] * len(slices), "backward": [None] * len(slices)}
        self._doubts: Doubts | None = None
        self._wrong, self._said = "", False  # why it is not to be repeated though all of it was recorded

    @property
    def failure(self) -> str:
        """Why the pass cannot be repeated; "" if it can."""
        if self._wrong:
            return self._wrong
        captures = [replay for direction in self._replays.values() for replay in direction if replay is not None]
        return next((replay.failure for replay in captures if replay.failure), "")

    def is_valid(self) -> bool:
        """Tell whether all of it was recorded, and the network is still the same."""
        directions = ["forward", "backward"] if self._options["train"] else ["forward"]
        return all(None not in self._replays[direction] for direction in directions) and self._signature.is_current()

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the network's output for x and the way back; one of inference makes the pass again, as it comes."""
        if self._doubts is None:
            self._doubts = Doubts(self.networks[0], x)
        elif self._doubts.any_raised(x):
            return self._compared(x, self._doubts)
        with self._tracing("forward"):
            y, _ = super().forward(x)
        if self._options["train"]:
            self._memory.training = token = object()
            return y, partial(self._backward_once, token)

        def eager_backward(dy: Array) -> Array:
            eager_pass = ShardedPass(self._backend, self.networks[0], self._replicas, self._slices, **self._options)
            return eager_pass.forward(x)[1](dy)

        return y, eager_backward

    def _backward_once(self, token: object, dy: Array) -> None:
        """Walk the way back of a pass, which adds to the parameters' gradients.

        Raises:
            ConfigurationError: it was walked already, or another pass of training was begun.
        """
        if self._memory.training is not token:
            raise already_run(self.networks[0].display_name)
        with self._tracing("backward"):
            self.backward(dy)
        self._backwards = [None] * len(self._slices)
        self._memory.training = None

    def _compared(self, x: Array, doubts: Doubts) -> tuple[Array, Backward]:
        """Return output and way back of an eager pass, with which a replay is compared, forward and then back."""
        start = State(self.networks[0])
        replayed, after = self._replayed(super().forward, x)
        eager_pass = ShardedPass(self._backend, *self._eager_networks(), self._slices, **self._options)
        y, network_backward = self._with_room(eager_pass.forward, x)
        self._judge(after, State(self.networks[0]), replayed is None or same_bits(replayed[0], y))
        if not self._options["train"]:
            doubts.settle()
            self._backend.release()
            return y, network_backward
        self._memory.training = token = object()

        def start_again(dy: Array) -> None:  # a way back can be walked only once, also where it failed
            start.restore()
            eager_pass.forward(x)[1](dy)

        def run_backward(dy: Array) -> None:
            if self._memory.training is not token and not self._wrong:
                raise already_run(self.networks[0].display_name)
            _, after = self._replayed(self.backward, dy) if not self._wrong else (None, None)
            self._with_room(network_backward, dy, start_again)
            self._judge(after, State(self.networks[0]))
            doubts.settle()
            self._memory.training, eager_pass._backwards = None, []
            self._backend.release()  # the memory of the eager pass, which no other one will be

        return y, run_backward

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
            before.restore()

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
        before.restore()
        self._replays = {direction: [None] * len(self._slices) for direction in self._replays}
        self._memory.invalidate()
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
            warnings.warn(CaptureWarning(message), stacklevel=2)

    def _forward(self, number: int, x: Array) -> Array:
        return self._find("forward", super()._forward, number, x)

    def _backward(self, number: int, dy: Array) -> Array:
        return self._find("backward", super()._backward, number, dy)

    def _find(self, direction: str, function: Any, number: int, array: Array) -> Array:
        """Return what a function of a slice's number and an array returns: record it, or repeat it."""
        replay = self._replays[direction][number]
        if replay is not None:
            return replay(array)
        result, self._replays[direction][number] = self._tracers[number].trace(partial(function, number), array)
        return result

    def _concatenate(self, parts: list[Array]) -> Array:
        """Return results joined, or copied: they lie where the next repeat writes its own."""
        return parts[0].copy() if len(parts) == 1 else super()._concatenate(parts)

    @contextmanager
    def _tracing(self, direction: str) -> Iterator[None]:
        """Let the recorders see what is done with the networks' parameters and buffers, if that is still to record."""
        if None not in self._replays[direction]:
            yield
            return
        with _capture_lock:
            try:
                for network, tracer in zip(self.networks, self._tracers, strict=True):
                    _with_traced_state(network, tracer)
                yield
            finally:
                reason = _restore()
                self._wrong = self._wrong or reason


def _with_traced_state(network: Layer, tracer: Tracer) -> None:
    """Put arrays that a recorder notices in the place of a network's, until they are put back."""
    parameters = [(parameter, parameter.value, parameter.grad) for parameter in network.parameters().values()]
    buffers = [(buffer, buffer.value) for buffer in network.buffers().values() if not buffer.on_host]
    attributes = [
        (layer, name, value)
        for layer in network.all_layers()
        for name, value in vars(layer).items()
        if is_array(value) and hasattr(value, "__iadd__")  # a number of NumPy's cannot be changed in place
    ]
    traced_arrays: dict[int, Array] = {}

    def traced(array: Array) -> Array:
        return traced_arrays.setdefault(id(array), tracer.traced(array))

    def restore() -> str:
        others: list[str] = []

        def own(now: Array | None, before: Array | None, what: str) -> Array | None:
            """Return what was there before, or a copy of what a layer has put there."""
            if now is None or now is before or (before is not None and now is traced_arrays.get(id(before))):
                return None if now is None else before
            others.append(what)
            return tracer.untraced(now).copy() if is_array(now) else now

        for parameter, value, grad in parameters:
            fresh = parameter.grad if grad is None else None
            if fresh is not None and tracer.knows(fresh):
                parameter.rebind(value, tracer.untraced(fresh))
            else:
                parameter.rebind(own(parameter.value, value, "a parameter"), own(parameter.grad, grad, "a gradient"))
        for buffer, value in buffers:
            buffer.rebind(own(buffer.value, value, "a buffer"))
        for layer, name, value in attributes:
            if name in vars(layer):
                vars(layer)[name] = own(vars(layer)[name], value, f"the attribute {name} of {layer.display_name}")
        return f"{others[0]} got another array in a pass; write into the one it has: array[...] = …" if others else ""

    _to_undo.append(restore)
    for parameter, value, grad in parameters:
        parameter.rebind(traced(value), None if grad is None else traced(grad))
    for buffer, value in buffers:
        buffer.rebind(traced(value))
    for layer, name, value in attributes:
        vars(layer)[name] = traced(value)


class CaptureCache:
    """What was recorded of a network: one pass of training, one of inference."""

    def __init__(self, network: Layer, memory: CaptureMemory | None = None) -> None:
        self._network = network
        silent = [layer.display_name for layer in network.all_layers() if not layer.capturable]
        self._reason = f"layers that do not say capturable = True: {', '.join(silent)}" if silent else ""
        self._captured: dict[bool, tuple[Any, CapturedPass]] = {}
        self.memory = CaptureMemory() if memory is None else memory
        self.invalidate()

    @property
    def failure(self) -> str:
        """Why nothing is recorded, or not any more; "" if nothing stands in the way."""
        return self._reason or next((of[1].failure for of in self._captured.values() if of[1].failure), "")

    def invalidate(self) -> None:
        """Let go of what was recorded, and of the memory that repeats need."""
        self._reason = self.failure
        self._captured = {}
        self._last_signature: dict[bool, Any] = {}  # what the last pass was like, by whether it trained
        self._hits: dict[bool, int] = {}  # how many passes like it there were
        self._warmup: dict[bool, int] = {}  # how many there must have been: each one that serves no more doubles it
        self.memory.invalidate()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out, of a copy, what was recorded of the network that it is a copy of."""
        return {"_network": self._network, "_reason": self.failure, "memory": self.memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_captured": {}})
        self.invalidate()

    def forward(
        self, backend: Backend, x: Array, slices: Sequence[slice], options: dict[str, Any]
    ) -> tuple[Array, Backward] | None:
        """Return the output for x and the way back, if the pass was recorded or can be now; else None."""
        train = options["train"]
        if self.failure:
            if self._captured and self.memory.training is None:
                self.invalidate()
            return None
        if train and options.get("need_dx", True):
            return None
        if not self.memory.lock.acquire(blocking=False):  # another thread computes there
            return None
        try:
            if self.memory.training is not None and not train:  # what its way back needs would be overwritten
                return None
            signature = (x.shape, str(x.dtype), str(slices), backend.kernel_options(), backend)
            recorded = self._find(signature, train) or self._start_capture(signature, train, backend, slices, options)
            self._last_signature[train] = signature
            return None if recorded is None else recorded.forward(x)
        finally:
            self.memory.lock.release()

    def _find(self, signature: Any, train: bool) -> CapturedPass | None:
        """Return the recorded pass of a kind, if there is one that serves."""
        of_kind, recorded = self._captured.get(train, (None, None))
        if recorded is None:
            return None
        if recorded.failure or not recorded.is_valid():
            self._reason = self.failure
            self._evict(train)
            self._warmup[train] = 2 * self._warmup.get(train, 1)
            self._hits[train] = 0
            return None
        return recorded if of_kind == signature else None

    def _start_capture(
        self, signature: Any, train: bool, backend: Backend, slices: Sequence[slice], options: dict[str, Any]
    ) -> CapturedPass | None:
        """Return a pass that will record itself, if there were enough of the kind before it; else None."""
        alike = self._hits.get(train, 0) if self._last_signature.get(train) == signature else 0
        self._hits[train] = alike + 1
        if self.failure or alike < self._warmup.get(train, 1) or backend.tracer() is None:
            return None
        self._evict(train)
        recorded = CapturedPass(self.memory, backend, self._network, slices, **options)
        self._captured[train] = signature, recorded
        return recorded

    def _evict(self, train: bool) -> None:
        """Let go of a recorded pass, if there is one, and of memory that no other one needs."""
        if self._captured.pop(train, None) is not None:
            self.memory.invalidate()
