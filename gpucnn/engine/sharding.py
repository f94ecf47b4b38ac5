"""A batch passed through a network in slices, which the backend may compute on several threads at a time.

Each slice has a replica of the network: the same layers with the same parameters, but gradients and buffers of its own.
The gradients of all replicas are added in order; the buffers, such as running statistics, are those of the first, which
is the network itself. The loss is not the network's, so it always sees the whole batch.

    slice 0 ──▶ network    values ◀─┐         gradients ◀──────┐    buffers, which stay
                                    │ the same                 │ added after the pass
    slice 1 ──▶ replica    values ──┘         gradients ───────┘    buffers, copied before each pass

Where the backend can record what a slice computes, a pass like the one before it is recorded, and those like it are
repeats of that one: the layers' own text does not run again (see `repeats.py`).
"""

from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.engine.capture import CaptureCache, CaptureMemory
from gpucnn.engine.passes import ShardedPass
from gpucnn.engine.replicas import Replica
from gpucnn.layers.base import Backward, Layer


class ShardedNetwork:
    """A network that takes a batch in slices where the backend wants it so and every layer allows it."""

    def __init__(self, network: Layer, memory: CaptureMemory | None = None) -> None:
        """Take the network, and the room for what is recorded of it, if it shares that with another."""
        self.network = network
        self.can_shard = all(layer.per_sample for layer in network.all_layers())
        self.captures = CaptureCache(network, memory)
        self._flops = network.total_flops()
        self._replicas: list[Replica] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out, of a copy, the replicas of the network that it is a copy of."""
        return vars(self) | {"_replicas": []}

    def forward(
        self, backend: Backend, x: Array, *, train: bool, need_dx: bool = True, capture: bool = False
    ) -> tuple[Array, Backward]:
        """Return the network's output for x (N, …) and the way back, as `network.forward` does.

        With `capture` the pass may be captured or replayed. Its backward function is to be called then before the next
        pass, unless it is one of inference.
        """
        slices = backend.shards(len(x), self._flops * len(x)) if self.can_shard else [slice(0, len(x))]
        options: dict[str, Any] = {"train": train} | ({} if need_dx else {"need_dx": False})
        if capture:
            done = self.captures.forward(backend, x, slices, options)
            if done is not None:
                return done
        return ShardedPass(backend, self.network, self._current_replicas(len(slices) - 1), slices, **options).forward(x)

    def _current_replicas(self, count: int) -> list[Replica]:
        """Return replicas that agree with the network as it is now: those of the last step, if nothing has changed."""
        kept = [replica for replica in self._replicas if replica.is_current()][:count]
        self._replicas = kept + [Replica(self.network) for _ in range(count - len(kept))]
        return self._replicas
