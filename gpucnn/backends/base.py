"""The interface of a backend: where arrays live, and how work on them is split, captured and measured.

A backend has an array module `xp`, two transfer functions (`from_host`, `to_host`), and named kernels with a readable
reference implementation (see `reference.py`). This class itself is a working backend on the host, named "reference".
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import numpy as np

from gpucnn.backends.reference import Array, ReferenceKernels

T = TypeVar("T")


class StreamedDataset:
    """A data set (P, …) that stays on the host; `data[indices]`, a slice or host integers, uploads a batch of it."""

    shape: tuple[int, ...]
    dtype: Any

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} does not define __getitem__")


class Replay:
    """A captured function, which does the same again with other numbers; without the Python that it ran through."""

    failure = ""  # why it cannot be replayed, if so

    def __call__(self, *arrays: Array, number: int = 0) -> Array:
        """Return what the function returns for arrays like those that it was captured with.

        The result lies where it lay before, so copy it before the next replay in the same memory. `number` counts the
        replays, from 0, for random streams: see `Tracer.capture`.
        """
        raise NotImplementedError(f"{type(self).__name__} replays nothing")


class Tracer:
    """Captures what functions do with arrays, on one thread at a time, and holds the memory that their replays use.

    All replays use the same memory, so what one of them leaves there is gone with the next, except what a function that
    was captured later took from one that was captured earlier.
    """

    def warm_up(self) -> AbstractContextManager[Any]:
        """Return a context for the last eager run before the capture, which shows how much memory it takes."""
        return nullcontext()

    def capture(
        self, function: Callable[..., Array | None], *arrays: Array, increments: dict[int, int] | None = None
    ) -> tuple[Array | None, Replay]:
        """Run a function of arrays; return what it returns, and its replay.

        All that changes between two replays must be in arrays. A random stream of key k that has `increments` draws in
        replay r what it would have drawn at a counter larger by r·increments[k]; this run is number 0.
        """
        raise NotImplementedError(f"{type(self).__name__} captures nothing")

    def traced(self, array: Array) -> Array:
        """Return an array in the same memory, for the function to use in its place, whose operations are traced."""
        return array

    def untraced(self, array: Array) -> Array:
        """Return such an array as it was."""
        return array

    def knows(self, array: Array) -> bool:
        """Return whether an array belongs to this tracer."""
        return True


class Backend(ReferenceKernels):
    """Arrays on the host, and the reference implementation of every kernel."""

    name = "reference"

    #: returns the backend of a name; `gpucnn.backends`, which stands above, puts its `get_backend` here
    by_name: ClassVar[Callable[[str], "Backend"]]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backend":
        """Return the backend itself: copies of a model share it."""
        return self

    def __reduce__(self) -> Any:
        """Pickle the backend by name: another process uses its own backend of that name."""
        return Backend.by_name, (self.name,)

    #: whether models may compute in float16, with parameters and statistics in float32
    supports_float16 = False
    is_host = True  # whether reading an array costs nothing
    folds_batch_norm = False  # whether inference folds a batch norm into the weight of the convolution before it

    # --- host and device ----------------------------------------------------------------------

    def from_host(self, array: Any) -> Array:
        """Return a host array as one of the backend; a copy only where necessary."""
        return np.asarray(array)

    def to_host(self, array: Array) -> "np.ndarray[Any, Any]":
        """Return an array of the backend as a NumPy array on the host."""
        return np.asarray(array)

    def upload(self, *data: Any, step: int = 0) -> list[Array | StreamedDataset]:
        """Upload data sets (P, …), or return those that do not fit as streamed data sets, which upload single batches.

        The first ones have precedence where not all fit in memory next to a step of `step` bytes.
        """
        return [self.from_host(one) for one in data]

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context in which this thread allocates and computes on this backend's device."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until all work that was started is done; a no-op on the host."""

    # --- a batch split among threads: an engine may -------------------------------------------

    def execution_context(self, sharded: bool, allow_tf32: bool = False) -> AbstractContextManager[None]:
        """Return a context that a model enters around its passes, for what an engine sets up once per step.

        `sharded` says whether the passes run in shards, by `run_sharded`; `allow_tf32`, whether float32 products may
        round their factors to 10 bits where that is faster.

        Underflow gives 0, even after `np.seterr(all="raise")`: in a softmax, say, or a decaying mean. All other
        floating-point errors are handled as set in NumPy.
        """
        return np.errstate(under="ignore")

    def fixed_num_threads(self) -> AbstractContextManager[None]:
        """Return a context in which this thread's work is always split for the same number of threads."""
        return nullcontext()

    def shards(self, batch_size: int, flops: float) -> list[slice]:
        """Split a batch whose forward pass costs `flops` into the shards for `run_sharded`."""
        return [slice(0, batch_size)]

    def run_sharded(self, tasks: Sequence[Callable[[], T]], shards: Sequence[slice]) -> list[T]:
        """Run tasks, one per shard of the batch, and return their results in order."""
        return [task() for task in tasks]

    def shard_offset(self) -> int:
        """Return how many samples of the batch precede the shard of this thread."""
        return 0

    def global_batch_size(self, samples: int) -> int:
        """Return the size of the whole batch, given that of this thread's shard."""
        return samples

    def release(self) -> None:
        """Free memory that the backend keeps for reuse; called when a training run ends."""

    def memory_info(self) -> tuple[int, int] | None:
        """Return the free and the total memory of the device in bytes; None where unknown."""
        return None

    # --- capture and replay: an engine may --------------------------------------------------------

    #: what is captured as a whole: "pass", a shard's way through the network; "step", a training step; "", nothing
    captured_unit = ""

    def tracer(self) -> Tracer:
        """Return what captures functions of this backend's arrays, with separate memory."""
        raise NotImplementedError(f"{self.name} captures nothing")

    def kernel_options(self) -> Any:
        """Return what decides, besides shapes and types, how kernels compute: replays are valid while it stays."""
        return None

    def on_replay(self, draw: Callable[[], Array]) -> Array:
        """Return what a function draws, which is called again in each replay of what computes here and now."""
        return draw()

    # --- timing and description ---------------------------------------------------------------

    def time_call(self, label: str, call: Callable[[], T]) -> tuple[T, float]:
        """Return the result of a call and the seconds it took; `label` is shown by profilers."""
        self.synchronize()
        started = time.perf_counter()
        result = call()
        self.synchronize()
        return result, time.perf_counter() - started

    def describe(self) -> str:
        """Return one line that describes the backend, for people."""
        return f"{self.name} (NumPy {np.__version__})"

    def environment(self) -> dict[str, Any]:
        """Return, as plain data, what the last bits of a result depend on besides its inputs."""
        return {"backend": self.name, "NumPy": np.__version__}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
