"""Passes of a network that are captured, shard by shard, forward and backward, and replayed without the layers' Python.

Threads wait for each other where one at a time runs Python, so a replay, which is a list of calls of NumPy's, also lets
shards compute side by side. A capture sees what is done with arrays; so parameters, buffers and arrays among a layer's
attributes are replaced by traced ones during a capture, and restored after it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.backends.base import Tracer
from gpucnn.core import forks
from gpucnn.engine.capture import Captured
from gpucnn.engine.comparison import Doubts, State, same_bits
from gpucnn.engine.passes import ShardedPass
from gpucnn.engine.replicas import Replica
from gpucnn.engine.signature import Signature, is_array
from gpucnn.layers.base import Backward, Layer
from gpucnn.layers.containers import already_run

KINDS = ("train", "outputs", "logits")  # of passes that are captured at the same time
NO_MEMORY = "memory does not suffice to compare a replay with an eager pass"
SMALLER = "a smaller batch size leaves room for both"
CUSTOM_LAYERS = (
    "in custom layers compute with self.backend.xp alone, keep what changes in arrays, or leave out "
    "capturable = True. gpucnn.check_layer looks for the cause"
)

_capture_lock = forks.lock()  # while one pass is captured, parameters are not what they are
_to_undo: list[Callable[[], str]] = []  # what restores them


def _restore() -> str:
    """Give layers their arrays back; return why what was captured cannot be replayed, "" if it can."""
    reasons: list[str] = []
    while _to_undo:
        reasons.append(_to_undo.pop()())
    return next((reason for reason in reasons if reason), "")


@forks.in_child
def _restore_in_child() -> None:
    """Give a forked child its parameters back: there the capture under way never ends."""
    _restore()


class CaptureMemory:
    """What the captured passes of a network share: a tracer for each shard, for one pass at a time."""

    def __init__(self) -> None:
        self.lock = forks.lock()
        self.training: object | None = None  # stands for a pass whose backward function was not called yet
        self._tracers: dict[Any, Tracer] = {}

    def tracer(self, backend: Backend, number: int) -> Tracer:
        """Return the tracer of a shard on a backend."""
        if (backend, number) not in self._tracers:
            self._tracers[backend, number] = backend.tracer()
        return self._tracers[backend, number]

    def invalidate(self) -> None:
        """Leave the memory to the replays that there are, with which it is freed; later ones get their own."""
        self.training, self._tracers = None, {}

    def __reduce__(self) -> Any:
        """Begin a copy empty."""
        return CaptureMemory, ()


class CapturedPass(ShardedPass):
    """A pass that captures each shard the first time it runs, and replays it from then on."""

    def __init__(
        self,
        fail: Callable[..., None],
        memory: CaptureMemory,
        backend: Backend,
        network: Layer,
        shards: Sequence[slice],
        **options: Any,
    ) -> None:
        super().__init__(backend, network, [Replica(network) for _ in shards[1:]], shards, **options)
        self._fail, self._memory = fail, memory
        self._tracers = [memory.tracer(backend, number) for number in range(len(shards))]
        directions = ("forward", "backward") if options["train"] else ("forward",)
        self._replays: dict[str, list[Any]] = {direction: [None] * len(shards) for direction in directions}
        self._doubts: Doubts | None = None
        self._wrong = ""  # why it is not to be replayed though all of it was captured

    def is_valid(self) -> bool:
        """Return whether all of it was captured."""
        return all(None not in replays for replays in self._replays.values())

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the network's output for x and the backward function, which in inference runs the pass again."""
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
            return self._eager_pass(self._replicas).forward(x)[1](dy)

        return y, eager_backward

    def _eager_pass(self, replicas: list[Replica]) -> ShardedPass:
        return ShardedPass(self._backend, self.networks[0], replicas, self._shards, **self._options)

    def _backward_once(self, token: object, dy: Array) -> None:
        """Run backward, which adds to the parameters' gradients.

        Raises:
            ConfigurationError: it has already run, or another training pass has begun.
        """
        if self._memory.training is not token:
            raise already_run(self.networks[0].display_name)
        with self._tracing("backward"):
            self.backward(dy)
        self._backwards = [None] * len(self._shards)
        self._memory.training = None

    # --- the comparison -----------------------------------------------------------------------

    def _compared(self, x: Array, doubts: Doubts) -> tuple[Array, Backward]:
        """Return output and backward function of an eager pass, with which a replay is compared in both directions."""
        start = State(self.networks[0])
        replayed, after = self._replayed(super().forward, x)
        eager = self._eager_pass([Replica(self.networks[0]) for _ in self._shards[1:]])
        y, eager_backward = self._with_memory(eager.forward, x)
        self._judge(after, replayed is None or same_bits(replayed[0], y))
        if not self._options["train"]:
            doubts.settle()
            self._backend.release()
            return y, eager_backward
        self._memory.training = token = object()

        def both_passes(dy: Array) -> None:  # backward runs only once, also where it failed
            start.restore()
            eager.forward(x)[1](dy)

        def backward(dy: Array) -> None:
            if self._memory.training is not token and not self._wrong:
                raise already_run(self.networks[0].display_name)
            _, after = self._replayed(self.backward, dy) if not self._wrong else (None, None)
            self._with_memory(eager_backward, dy, both_passes)
            self._judge(after)
            doubts.settle()
            self._memory.training, eager._backwards = None, []
            self._backend.release()  # the memory of the eager pass, the last one

        return y, backward

    def _replayed(self, function: Callable[[Array], Any], array: Array) -> tuple[Any, State | None]:
        """Return what a replay returns, and the state it leaves; the network's own is afterwards what it was before."""
        before = State(self.networks[0])
        try:
            return function(array), State(self.networks[0])
        except MemoryError:
            self._wrong = NO_MEMORY
        except Exception as error:  # if the eager pass has it too, it is raised there
            self._wrong = f"a replay raised {type(error).__name__}: {error}"
        finally:
            before.restore()
        return None, None

    def _with_memory(
        self, function: Callable[[Array], Any], array: Array, again: Callable[[Array], Any] | None = None
    ) -> Any:
        """Return what a function returns; where memory does not suffice, free that of the replays, and run `again`."""
        before = State(self.networks[0])
        try:
            return function(array)
        except MemoryError:
            self._wrong = NO_MEMORY
        before.restore()
        self._replays = {direction: [None] * len(self._shards) for direction in self._replays}
        self._memory.invalidate()
        self._backend.release()
        try:
            return (again or function)(array)
        except MemoryError:
            self._fail(NO_MEMORY)  # so that the smaller batch that is advised fits as it is tried: eagerly
            raise

    def _judge(self, replayed: State | None, same_output: bool = True) -> None:
        """Fall back where a replay differs from the eager pass that has just run, and say so."""
        if replayed is not None:
            differs = State(self.networks[0]).difference(replayed) if same_output else "the output"
            if differs:
                self._wrong = f"{differs} of a replay is not what the layers themselves compute"
        if self._wrong:
            self._fail(self._wrong, SMALLER if self._wrong == NO_MEMORY else CUSTOM_LAYERS)

    # --- each shard ---------------------------------------------------------------------------

    def _forward(self, number: int, x: Array) -> Array:
        return self._run("forward", super()._forward, number, x)

    def _backward(self, number: int, dy: Array) -> Array:
        return self._run("backward", super()._backward, number, dy)

    def _run(self, direction: str, function: Callable[[int, Array], Array], number: int, array: Array) -> Array:
        """Return what a function returns for a shard: capture it, or replay it."""
        replay = self._replays[direction][number]
        if replay is not None:
            result: Array = replay(array)
            return result
        result, replay = self._tracers[number].capture(partial(function, number), array)
        self._replays[direction][number] = replay
        if replay.failure:
            self._fail(replay.failure)
        return result

    def _concatenate(self, parts: list[Array]) -> Array:
        """Return results joined, or copied: they lie where the next replay writes its own."""
        return parts[0].copy() if len(parts) == 1 else super()._concatenate(parts)

    @contextmanager
    def _tracing(self, direction: str) -> Iterator[None]:
        """Let the tracers see what is done with the networks' parameters and buffers, if that is still to capture."""
        if None not in self._replays[direction]:
            yield
            return
        with _capture_lock:
            try:
                for network, tracer in zip(self.networks, self._tracers, strict=True):
                    _with_traced_state(network, tracer)
                yield
            finally:
                if reason := _restore():
                    self._fail(reason)


def _with_traced_state(network: Layer, tracer: Tracer) -> None:
    """Put traced arrays in the place of a network's, until they are restored."""
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


class CapturedPasses:
    """What is captured of a network: one pass of training, one of inference, and one of inference to the logits."""

    def __init__(self, network: Layer) -> None:
        self._network = network
        silent = [layer.display_name for layer in network.all_layers() if not layer.capturable]
        self._undeclared = f"layers that do not declare capturable = True: {', '.join(silent)}" if silent else ""
        self._captured: dict[str, Captured[CapturedPass]] = {kind: Captured("passes") for kind in KINDS}
        self.memory = CaptureMemory()

    @property
    def failure(self) -> str:
        """Why nothing is captured, or not any more; "" if nothing stands in the way."""
        return self._undeclared or next((one.failure for one in self._captured.values() if one.failure), "")

    def invalidate(self) -> None:
        """Free what was captured, with the memory that it needs."""
        for captured in self._captured.values():
            captured.clear()
        self.memory.invalidate()

    def forward(
        self, backend: Backend, x: Array, shards: Sequence[slice], options: dict[str, Any]
    ) -> tuple[Array, Backward] | None:
        """Return the output for x and the backward function, if the pass was captured or can be now; else None."""
        train, logits = options["train"], "logits" in options
        captured = self._captured["train" if train else "logits" if logits else "outputs"]
        if self.failure:
            if captured.replayed is not None and self.memory.training is None:
                self.invalidate()
            return None
        if backend.captured_unit != "pass" or (train and options.get("need_dx", True)):
            return None
        if not self.memory.lock.acquire(blocking=False):  # another thread computes there
            return None
        try:
            if self.memory.training is not None and not train:  # what its backward needs would be overwritten
                return None
            key = x.shape, x.dtype, shards, backend.kernel_options(), backend, logits
            before, found = captured.replayed, captured.find(key)
            if found is None and captured.is_due(key):
                if before is not None:
                    self.memory.invalidate()
                replayed = CapturedPass(captured.fail, self.memory, backend, self._network, shards, **options)
                found = captured.keep(replayed, Signature(self._network), key)
            elif captured.replayed is not before:  # it was outdated
                self.memory.invalidate()
            return None if found is None else found.forward(x)
        finally:
            self.memory.lock.release()
