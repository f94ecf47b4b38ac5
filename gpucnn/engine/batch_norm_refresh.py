"""Running statistics of batch norms computed again, where they were collected with other weights."""

from typing import Any

from gpucnn.data.batches import batches
from gpucnn.engine.executor import Executor
from gpucnn.layers.norm import BatchNorm


def recalibrate_batch_norm(model: Executor, x: Any, batch_size: int) -> None:
    """Set each batch norm's running statistics to their mean over the batches of checked host data.

    Batches are weighted by their size. With a momentum of 0 a pass in training mode leaves the batch's own statistics
    in the layer, from where they are added up on the device. The random streams of dropout layers are restored.
    """
    backend = model.backend
    norms = list({id(layer): layer for layer in model.network.all_layers() if isinstance(layer, BatchNorm)}.values())
    held = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    streams = [buffer for buffer in model.network.buffers().values() if buffer.on_host]
    if not norms:
        return
    (inputs,) = backend.upload(x)
    sums = [backend.xp.zeros_like(buffer.value) for buffer in held]
    before = [buffer.value.copy() for buffer in held]
    momenta, states = [norm.momentum for norm in norms], [stream.value.copy() for stream in streams]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm.running_mean.value[...] = 0  # 0 times what is not finite would not be 0
            norm.running_var.value[...] = 1
        for part in batches(len(x), batch_size):
            model.forward(inputs[part], train=True)
            for total, buffer in zip(sums, held, strict=True):
                total += buffer.value * ((part.stop - part.start) / len(x))
        before = sums
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for buffer, value in zip((*held, *streams), (*before, *states), strict=True):
            buffer.value[...] = value
