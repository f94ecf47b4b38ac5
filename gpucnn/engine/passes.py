"""One pass of a network over the shards of a batch, which the backend may compute side by side."""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

from gpucnn.backends import Array, Backend
from gpucnn.engine.replicas import Replica
from gpucnn.layers.base import Backward, Layer


class ShardedPass:
    """A pass of a network over the shards of a batch: forward once, then backward any number of times."""

    def __init__(
        self, backend: Backend, network: Layer, replicas: list[Replica], shards: Sequence[slice], **options: Any
    ) -> None:
        self._backend, self._replicas, self._shards, self._options = backend, replicas, shards, options
        self.networks = [network, *(replica.network for replica in replicas)]
        self._backwards: list[Any] = [None] * len(shards)

    def forward(self, x: Array) -> tuple[Array, Backward]:
        """Return the network's output for x (N, …) and the backward function."""
        for replica in self._replicas:
            replica.copy_buffers()
        return self._concatenate(self._map_shards(self._forward, x)), self.backward

    def backward(self, dy: Array) -> Array:
        """Return dx, or None if it is not needed, and add to the parameters' gradients."""
        dx = self._map_shards(self._backward, dy)
        for replica in self._replicas:
            replica.reduce_gradients()
        return self._concatenate(dx) if self._options.get("need_dx", True) else None

    def _map_shards(self, function: Callable[[int, Array], Array], array: Array) -> list[Array]:
        """Return what a function returns for each shard of an array, given the shard's number as well."""
        if len(self._shards) == 1:
            return [function(0, array[self._shards[0]])]
        # each thread with the context of this one: which errors of arithmetic are raised, say, is kept there
        tasks = [partial(copy_context().run, function, number, array[part]) for number, part in enumerate(self._shards)]
        return self._backend.run_sharded(tasks, self._shards)

    def _forward(self, number: int, x: Array) -> Array:
        y, self._backwards[number] = self.networks[number].forward(x, **self._options)
        return y

    def _backward(self, number: int, dy: Array) -> Array:
        if number:
            self._replicas[number - 1].clear_gradients()
        return self._backwards[number](dy)

    def _concatenate(self, parts: list[Array]) -> Array:
        return parts[0] if len(parts) == 1 else self._backend.xp.concatenate(parts)
