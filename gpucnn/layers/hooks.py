"""Hooks around the forward and backward of single layers: to compare layers, or to find the first that goes wrong."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gpucnn.backends import Array
from gpucnn.layers.base import Backward, Layer
from gpucnn.layers.containers import Sequential


@contextmanager
def forward_hooks(
    network: Layer, make_hook: Callable[[Layer, str], Any], layers: Iterable[tuple[str, Layer]] | None = None
) -> Iterator[None]:
    """Replace the `forward` of layers, by default of every leaf, by `make_hook(layer, path)`, in the block.

    Meanwhile no layers are fused.
    """
    sequentials = [layer for layer in network.all_layers() if isinstance(layer, Sequential)]
    plans = {layer: (layer._train_plan, layer._inference_plan) for layer in sequentials}
    hooked = {id(layer): (path, layer) for path, layer in reversed([*(network.leaves() if layers is None else layers)])}
    try:
        for sequential in plans:
            sequential._train_plan = sequential._inference_plan = sequential.unfused_plan()
        for path, layer in hooked.values():
            vars(layer)["forward"] = make_hook(layer, path)
        yield
    finally:
        for _, layer in hooked.values():
            vars(layer).pop("forward", None)
        for sequential, saved in plans.items():
            sequential._train_plan, sequential._inference_plan = saved


@contextmanager
def find_not_finite(network: Layer) -> Iterator[list[tuple[str, str, str]]]:
    """Yield a list that gets where NaN or infinity first arise in the passes of the block.

    That is the layer, "forward" or "backward", and what holds which.
    """
    found: list[tuple[str, str, str]] = []

    def make_hook(layer: Layer, path: str) -> Any:
        forward, xp = layer.forward, layer.backend.xp

        def note(direction: str, what: str, array: Any) -> None:
            if not found and array is not None and not bool(xp.isfinite(array).all()):
                kind = "NaN" if bool(xp.isnan(array).any()) else "infinity"
                found.append((path, direction, f"{what} holds {kind}"))

        def checked_forward(x: Array, **options: Any) -> tuple[Array, Backward]:
            for name, parameter in layer.parameters().items():
                note("forward", f"its {name}", parameter.value)
            y, backward = forward(x, **options)
            note("forward", "its output", y)
            for name, buffer in layer.buffers().items():
                note("forward", f"its {name}", None if buffer.on_host else buffer.value)

            def checked_backward(dy: Array) -> Array:
                note("backward", "the gradient of its output", dy)
                dx = backward(dy)
                for name, parameter in layer.parameters().items():
                    note("backward", f"the gradient of its {name}", parameter.grad)
                note("backward", "the gradient of its input", dx)
                return dx

            return y, checked_backward

        return checked_forward

    with forward_hooks(network, make_hook):
        yield found
