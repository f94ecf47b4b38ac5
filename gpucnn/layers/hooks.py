"""Each layer of a network seen while it computes for itself: for who compares layers, or looks for the faulty one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpucnn.layers.base import Layer
from gpucnn.layers.containers import Sequential


@contextmanager
def watched(network: Layer, watch: Callable[[Layer, str], Any]) -> Iterator[None]:
    """Put `watch(layer, path)` in the place of the `forward` of every layer that has none inside, in the block.

    Meanwhile no layer takes over what is its neighbour's, such as a ReLU.
    """
    sequentials = [layer for layer in network.all_layers() if isinstance(layer, Sequential)]
    plans = {layer: (layer._train_plan, layer._inference_plan) for layer in sequentials}
    leaves = _leaves(network)
    try:
        for sequential in plans:
            sequential._train_plan = sequential._inference_plan = sequential.unfused_plan()
        for path, layer in leaves:
            vars(layer)["forward"] = watch(layer, path)
        yield
    finally:
        for _, layer in leaves:
            vars(layer).pop("forward", None)
        for sequential, kept in plans.items():
            sequential._train_plan, sequential._inference_plan = kept


def _leaves(layer: Layer) -> list[tuple[str, Layer]]:
    """Return the layers that have none inside, each once, with the path that leads to it."""
    found: dict[int, tuple[str, Layer]] = {}

    def visit(inside: Layer, path: str) -> None:
        children = list(inside.children())
        for name, child in children:
            visit(child, f"{path}.{name}" if path else name)
        if not children:
            found.setdefault(id(inside), (path, inside))

    visit(layer, "")
    return list(found.values())
