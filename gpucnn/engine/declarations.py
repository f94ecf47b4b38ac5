"""What layers declare about sharding and capture, and what it costs where a custom layer says nothing.

Neither is tried where a layer says nothing. Whether samples depend on each other does not show by trying: sums of
shards differ from those of the batch in their last bits where all is right, and a `forward` that keeps something on the
layer goes wrong only when two threads run it at once. Nor does the comparison of one replay show what Python decides by
a random number, a counter or the time: it may come out the same, and then be replayed for ever. So a layer that says
nothing computes as it is written, whole batches and eagerly, and who trains it is told once what that costs.
"""

import warnings

from gpucnn.engine.executor import Executor
from gpucnn.errors import CaptureWarning
from gpucnn.layers.base import Layer

ADVICE = "Set them to True in the class if they hold (gpucnn.check_layer tests both); False silences this warning"


def cost_of_undeclared(model: Executor, batch_size: int | None = None) -> str:
    """Return what is left undone because layers declare nothing, "" for nothing; with a batch size, in its steps."""
    network, backend = model.network, model.backend
    whole = _undeclared(network, "batch_independent")
    if batch_size is not None and len(backend.shards(batch_size, network.total_flops() * batch_size)) == 1:
        whole = ""
    eager = _undeclared(network, "capturable") if model.jit and backend.captured_unit else ""
    parts = [f"batches are not split among threads, since {whole} does not declare batch_independent"] if whole else []
    what = "passes" if backend.captured_unit == "pass" else "training steps"
    parts += [f"{what} are not captured and replayed, since {eager} does not declare capturable"] if eager else []
    return "; ".join(parts)


def warn_of_undeclared(model: Executor, batch_size: int) -> None:
    """Warn, once per model, of layers whose silence makes training slower."""
    cost = "" if model.warned_of_undeclared else cost_of_undeclared(model, batch_size)
    if cost:
        model.warned_of_undeclared = True
        warnings.warn(f"training is slower than it could be: {cost}. {ADVICE}", CaptureWarning, stacklevel=3)


def _undeclared(network: Layer, flag: str) -> str:
    return ", ".join(layer.display_name for layer in network.all_layers() if getattr(layer, flag) is None)
