"""Timing whole steps of a named network, on a backend and on the reference kernels in turn."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpucnn import rng
from gpucnn.backends import Backend
from gpucnn.model import Model
from gpucnn.networks import by_name

WARM_UP_CALLS = 2  # untimed calls that fill caches and buffers


@dataclass(frozen=True)
class Timing:
    """Medians in seconds of one step, and of one inference, on a batch of one network.

    `train_flops` counts the products of a step: three times those of the forward pass, the forward pass included.
    """

    network: str
    batch_size: int
    train_seconds: float
    inference_seconds: float
    reference_train_seconds: float
    train_flops: int


def time_network(name: str, backend: Backend, batch_size: int, seconds: float) -> Timing:
    """Time a network on random images for about this many seconds, interleaved with the reference backend."""
    model, reference = by_name(name)(backend=backend), by_name(name)(backend=Backend())
    generator = rng.host_generator(0, "bench")
    images = generator.standard_normal((batch_size, *model.input_shape)).astype(model.dtype)
    labels = generator.integers(0, model.output_shape[-1], batch_size)

    calls = {
        "train": _call(model, lambda x, y: model.train_step(x, y, 0.01), images, labels),
        "inference": _call(model, lambda x, y: model.forward(x), images, labels),
        "reference": _call(reference, lambda x, y: reference.train_step(x, y, 0.01), images, labels),
    }
    taken: dict[str, list[float]] = {what: [] for what in calls}
    started, rounds = time.perf_counter(), 0
    while rounds < WARM_UP_CALLS + 1 or time.perf_counter() - started < seconds:
        for what, call in calls.items():
            if rounds < WARM_UP_CALLS or what != "reference" or rounds % 4 == 0 or not taken[what]:  # the slowest
                duration = call()
                if rounds >= WARM_UP_CALLS:
                    taken[what].append(duration)
        rounds += 1
    median = {what: statistics.median(durations) for what, durations in taken.items()}
    return Timing(
        network=name,
        batch_size=batch_size,
        train_seconds=median["train"],
        inference_seconds=median["inference"],
        reference_train_seconds=median["reference"],
        train_flops=3 * model.network.total_flops() * batch_size,
    )


def _call(model: Model, function: Callable[[Any, Any], Any], images: Any, labels: Any) -> Callable[[], float]:
    """Return a function that calls another on arrays of the model's backend and returns the seconds it took."""
    x, y = model.backend.from_host(images), model.backend.from_host(labels)

    def timed() -> float:
        model.backend.synchronize()
        started = time.perf_counter()
        function(x, y)
        model.backend.synchronize()
        return time.perf_counter() - started

    return timed
