"""A batch passed through a network in shards, which the backend may compute on several threads at a time.

Each shard has a replica of the network: the same layers with the same parameters, but its own gradients and buffers.
The gradients of all replicas are added in order; the buffers, such as running statistics, are those of the first, which
is the network itself. The loss is not part of the network, so it always gets the whole batch.

    shard 0 ──▶ network    values ◀─┐         gradients ◀──────┐    buffers, which stay
                                    │ the same                 │ added after the pass
    shard 1 ──▶ replica    values ──┘         gradients ───────┘    buffers, copied before each pass

Where the backend captures passes, one like the one before it is captured, and those after it are replays: the layers'
Python does not run again (see `captured_pass.py`).
"""

from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.engine.captured_pass import CapturedPasses
from gpucnn.engine.passes import ShardedPass
from gpucnn.engine.replicas import Replica
from gpucnn.layers.base import Backward, Layer


class ShardedNetwork:
    """A network that gets batches in shards where the backend splits them and all layers are `batch_independent`."""

    def __init__(self, network: Layer) -> None:
        self.network = network
        self.can_shard = all(layer.batch_independent for layer in network.all_layers())
        self.captures = CapturedPasses(network)
        self._flops = network.total_flops()
        self._replicas: list[Replica] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out, of a copy, the replicas of the original."""
        return vars(self) | {"_replicas": []}

    def forward(
        self,
        backend: Backend,
        x: Array,
        *,
        train: bool,
        need_dx: bool = True,
        logits: bool = False,
        capture: bool = False,
    ) -> tuple[Array, Backward]:
        """Return the network's output for x (N, …) and the backward function, as `network.forward` does.

        With `capture` the pass may be captured or replayed. Call its backward function before the next pass then,
        unless it is one of inference.
        """
        shards = backend.shards(len(x), self._flops * len(x)) if self.can_shard else [slice(0, len(x))]
        options: dict[str, Any] = {"train": train} | ({} if need_dx else {"need_dx": False})
        if logits:
            options["logits"] = True
        if capture:
            done = self.captures.forward(backend, x, shards, options)
            if done is not None:
                return done
        return ShardedPass(backend, self.network, self._current_replicas(len(shards) - 1), shards, **options).forward(x)

    def _current_replicas(self, count: int) -> list[Replica]:
        """Return replicas that agree with the network as it is now: those of the last pass, if nothing has changed."""
        current = [replica for replica in self._replicas if replica.is_current()][:count]
        self._replicas = current + [Replica(self.network) for _ in range(count - len(current))]
        return self._replicas
