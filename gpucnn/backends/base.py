"""The interface of a backend, and the readable text of every kernel in plain array operations.

A backend is where arrays live: an array module `xp`, two ways across (`from_host`, `to_host`), and a handful of named
kernels. The bodies here use only what NumPy and CuPy share, so this class is itself a working backend on the host:
the reference against which engines are tested. An engine overrides a kernel only to be faster, never to be different.

Shape letters: N batch, C channels, F filters, H W image, KH KW kernel, OH OW output, D features, K classes.
Images are (N, H, W, C), convolution weights (KH, KW, C/groups, F).
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import numpy as np

from gpucnn.backends.image_transform import ImageTransform, apply_transform
from gpucnn.backends.philox import philox4x32
from gpucnn.backends.window import Window

T = TypeVar("T")

Array = Any  # an array of the backend's own module: numpy.ndarray, cupy.ndarray

SQRT_HALF = math.sqrt(0.5)
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


class StreamedDataset:
    """A data set (P, …) that stays on the host; `data[indices]`, a slice or host integers, uploads a batch of it."""

    shape: tuple[int, ...]
    dtype: Any

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} brings nothing across")


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
        """Return an array in the same memory, for the function to use in its place: what it does with it is seen."""
        return array

    def untraced(self, array: Array) -> Array:
        """Return such an array as it was."""
        return array

    def knows(self, array: Array) -> bool:
        """Return whether an array was given or made by this tracer."""
        return True


class Backend:
    """Arrays on the host, and every kernel as the textbook writes it."""

    name = "reference"
    xp: ModuleType | Any = np

    #: returns the backend of a name; `gpucnn.backends`, which stands above, puts its `get_backend` here
    by_name: ClassVar[Callable[[str], "Backend"]]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backend":
        """Return the backend itself: models that are copies of each other compute on the same."""
        return self

    def __reduce__(self) -> Any:
        """Be pickled by name, and found in the other process as the backend of that name there."""
        return Backend.by_name, (self.name,)

    #: whether a model may compute in float16 here, with parameters and statistics in float32
    supports_float16 = False
    is_host = True  # whether reading an array costs nothing
    folds_batch_norm = False  # whether inference folds a batch norm into the weight of the convolution before it

    # --- the two ways across ------------------------------------------------------------------

    def from_host(self, array: Any) -> Array:
        """Bring a host array into the backend; a copy only where it must be one."""
        return np.asarray(array)

    def to_host(self, array: Array) -> "np.ndarray[Any, Any]":
        """Bring an array of the backend to the host, as a NumPy array."""
        return np.asarray(array)

    def upload(self, *data: Any, step: int = 0) -> list[Array | StreamedDataset]:
        """Bring data sets (P, …) across for good, or return feeds of some that bring batches as they are picked.

        The first has the precedence where there is no room for all of them beside a step that takes `step` bytes.
        """
        return [self.from_host(one) for one in data]

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context in which this thread makes arrays, and computes with them, where this backend's lie."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until all work that was started is done (nothing to wait for on the host)."""

    # --- a batch shared among threads: nothing to share here, an engine may -------------------

    def execution_context(self, sharded: bool, allow_tf32: bool = False) -> AbstractContextManager[None]:
        """Return a context that a model holds around its passes: the place for what an engine sets up once a step.

        `sharded` says whether the passes run in slices, by `run_sharded`; `allow_tf32`, whether float32 products may
        round their factors to 10 bits where that is faster.

        What underflows is 0, also where `np.seterr(all="raise")` was called: a share of a softmax, say, or a mean that
        decays. All other errors of arithmetic are NumPy's as they were set.
        """
        return np.errstate(under="ignore")

    def fixed_num_threads(self) -> AbstractContextManager[None]:
        """Return a context in which this thread's work is cut and shared as it is at the beginning."""
        return nullcontext()

    def shards(self, batch_size: int, flops: float) -> list[slice]:
        """Cut a batch that costs `flops` floating-point operations into the slices that `run_sharded` should take."""
        return [slice(0, batch_size)]

    def run_sharded(self, tasks: Sequence[Callable[[], T]], shards: Sequence[slice]) -> list[T]:
        """Run tasks, one a slice of the batch, and return their results in order."""
        return [task() for task in tasks]

    def shard_offset(self) -> int:
        """Return how many samples of the batch stand before those that are passed to the kernels here and now."""
        return 0

    def global_batch_size(self, samples: int) -> int:
        """Return how many samples the batch has of which so many are passed to the kernels here and now."""
        return samples

    def release(self) -> None:
        """Return what memory the backend keeps for later; called when a training ends."""

    def memory_info(self) -> tuple[int, int] | None:
        """Return the bytes that are free for arrays, and those that the device has; None where nobody knows."""
        return None

    # --- capture and replay: an engine may --------------------------------------------------------

    #: what is captured as a whole: "pass", a shard's way through the network; "step", a training step; "", nothing
    captured_unit = ""

    def tracer(self) -> Tracer:
        """Return what captures functions of this backend's arrays, with memory of its own."""
        raise NotImplementedError(f"{self.name} captures nothing")

    def kernel_options(self) -> Any:
        """Return what decides, besides shapes and types, how kernels compute: replays are valid while it stays."""
        return None

    def on_replay(self, draw: Callable[[], Array]) -> Array:
        """Return what a function draws, which is called again in each replay of what computes here and now."""
        return draw()

    # --- looking at time ----------------------------------------------------------------------

    def time_call(self, label: str, call: Callable[[], T]) -> tuple[T, float]:
        """Return what a call returns and the seconds it took; the label is for a profiler's picture."""
        self.synchronize()
        started = time.perf_counter()
        result = call()
        self.synchronize()
        return result, time.perf_counter() - started

    def describe(self) -> str:
        """Return one line that says what computes: for people, not for programs."""
        return f"{self.name} (NumPy {np.__version__})"

    def environment(self) -> dict[str, Any]:
        """Return, as plain data, what the last bits of a result depend on besides its inputs."""
        return {"backend": self.name, "NumPy": np.__version__}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    # --- a function the array modules keep elsewhere ------------------------------------------

    def erf(self, x: Array) -> Array:
        """Return the error function of every element, in the dtype of `x`."""
        from scipy.special import erf  # imported late: only GELU needs it

        return erf(x)

    # --- windows as rows, and back ------------------------------------------------------------

    def pad(self, x: Array, window: Window, fill: float = 0.0) -> Array:
        """Surround images with the window's padding: (N, H, W, C) → (N, H + PT + PB, W + PL + PR, C)."""
        if window.padding == ((0, 0), (0, 0)):
            return x
        N, H, W, C = x.shape
        padded = self.xp.full_like(x, fill, shape=(N, *window.padded_size((H, W)), C))
        padded[window.interior((H, W))] = x
        return padded

    def im2col(self, x: Array, window: Window) -> Array:
        """Lay out what each window sees: (N, H, W, C) → (N, OH, OW, KH, KW, C)."""
        (SH, SW), (DH, DW) = window.strides, window.dilation
        sliding = self.xp.lib.stride_tricks.sliding_window_view  # a view that reads the same memory many times
        views = sliding(self.pad(x, window), window.extent, axis=(1, 2))  # (N, positions, positions, C, rows, columns)
        views = views[:, ::SH, ::SW, :, ::DH, ::DW]
        return self.xp.ascontiguousarray(views.transpose(0, 1, 2, 4, 5, 3))

    def col2im(self, columns: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Add windows back where `im2col` took them from: (N, OH, OW, KH, KW, C) → (N, H, W, C).

        The transpose of `im2col`. Elements are added in a fixed order of offsets, so a run repeats bit for bit.
        """
        N, OH, OW, _, _, C = columns.shape
        padded = self.xp.zeros((N, *window.padded_size(image_size), C), dtype=columns.dtype)
        for i, j in window.offsets():
            padded[window.slices(i, j, (OH, OW))] += columns[:, :, :, i, j]
        return padded[window.interior(image_size)]

    # --- convolution: pad, im2col, one product, reshape ---------------------------------------

    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, groups: int = 1, relu: bool = False
    ) -> Array:
        """Convolve images: x (N, H, W, C), weight (KH, KW, C/groups, F), bias (F,) → (N, OH, OW, F).

        `relu` sets what is negative to 0, as a `ReLU` layer that follows would.
        """
        columns = self.im2col(x, window)
        outputs = [
            rows @ kernel
            for rows, kernel in zip(column_groups(columns, groups), kernel_groups(weight, groups), strict=True)
        ]
        y = outputs[0] if groups == 1 else self.xp.concatenate(outputs, axis=1)
        if bias is not None:
            y = y + bias
        if relu:
            y = self.relu(y)
        return y.reshape(*columns.shape[:3], weight.shape[-1])

    def conv2d_algorithm(self, window: Window, batch: int, channels: int, filters: int, groups: int, dtype: Any) -> str:
        """Return in a word how `conv2d` computes such a convolution."""
        return "im2col"

    def conv2d_parameter_gradients(
        self, x: Array, dy: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None]:
        """Return dweight (KH, KW, C/groups, F) and, with `bias`, dbias (F,) from x (N, H, W, C) and dy (N, OH, OW, F).

        The columns are built again rather than kept from the forward pass: they are KH·KW times the image.
        """
        F = dy.shape[-1]
        columns = self.im2col(x, window)
        outputs = [
            rows.T @ dy_group
            for rows, dy_group in zip(
                column_groups(columns, groups), filter_groups(dy.reshape(-1, F), groups), strict=True
            )
        ]
        dweight = outputs[0] if groups == 1 else self.xp.concatenate(outputs, axis=1)
        return dweight.reshape(*window.size, -1, F), self.channel_sums(dy) if bias else None

    def conv2d_input_gradient(
        self, dy: Array, weight: Array, image_size: tuple[int, int], window: Window, groups: int = 1
    ) -> Array:
        """Return dx (N, H, W, C) from dy (N, OH, OW, F) and weight (KH, KW, C/groups, F)."""
        F = dy.shape[-1]
        grid = (*dy.shape[:3], *window.size, -1)
        outputs = [
            (dy_group @ kernel.T).reshape(grid)
            for dy_group, kernel in zip(
                filter_groups(dy.reshape(-1, F), groups), kernel_groups(weight, groups), strict=True
            )
        ]
        dcolumns = outputs[0] if groups == 1 else self.xp.concatenate(outputs, axis=-1)
        return self.col2im(dcolumns, image_size, window)

    def conv2d_gradients(
        self, x: Array, dy: Array, weight: Array, window: Window, groups: int = 1, bias: bool = True
    ) -> tuple[Array, Array | None, Array]:
        """Return dweight, dbias with `bias`, and dx, for a layer that wants them all: they may share work."""
        dweight, dbias = self.conv2d_parameter_gradients(x, dy, window, groups, bias)
        return dweight, dbias, self.conv2d_input_gradient(dy, weight, x.shape[1:3], window, groups)

    def conv2d_backward(
        self, x: Array, dy: Array, weight: Array, window: Window, groups: int, need: tuple[bool, ...]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Return dx, dweight and dbias; None for those that are not in `need`, which says it in the same order."""
        need_dx, need_dweight, need_dbias = need
        if need_dx and need_dweight:
            dweight, dbias, dx = self.conv2d_gradients(x, dy, weight, window, groups, need_dbias)
            return dx, dweight, dbias
        if need_dweight:
            return None, *self.conv2d_parameter_gradients(x, dy, window, groups, need_dbias)
        dbias = self.channel_sums(dy) if need_dbias else None
        return self.conv2d_input_gradient(dy, weight, x.shape[1:3], window, groups) if need_dx else None, None, dbias

    # --- products of features -----------------------------------------------------------------

    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """Multiply features by a matrix: x (N, D), weight (D, K), bias (K,) → (N, K)."""
        y = x @ weight
        return y if bias is None else y + bias

    def dense_parameter_gradients(self, x: Array, dy: Array, bias: bool = True) -> tuple[Array, Array | None]:
        """Return dweight (D, K) and, with `bias`, dbias (K,) from x (N, D) and dy (N, K)."""
        return x.T @ dy, self.channel_sums(dy) if bias else None

    def dense_input_gradient(self, dy: Array, weight: Array, x: Array) -> Array:
        """Return dx (N, D) from dy (N, K) and weight (D, K), laid out as x is."""
        return self.xp.matmul(dy, weight.T, out=self.xp.empty_like(x))

    def dense_backward(
        self, x: Array, dy: Array, weight: Array, need: tuple[bool, ...]
    ) -> tuple[Array | None, Array | None, Array | None]:
        """Return dx, dweight and dbias; None for those that are not in `need`, which says it in the same order."""
        need_dx, need_dweight, need_dbias = need
        dweight, dbias = None, None
        if need_dweight:
            dweight, dbias = self.dense_parameter_gradients(x, dy, need_dbias)
        elif need_dbias:
            dbias = self.channel_sums(dy)
        return self.dense_input_gradient(dy, weight, x) if need_dx else None, dweight, dbias

    # --- pooling ------------------------------------------------------------------------------

    def max_pool2d(self, x: Array, window: Window, relu: bool = False) -> tuple[Array, Any]:
        """Take the largest element of each window: (N, H, W, C) → y (N, OH, OW, C), and the switches.

        The switches say which elements won, in the backend's own form: here the number of the winning offset,
        0 … KH·KW − 1, (N, OH, OW, C), and −1 where a ReLU cut it off. Of equal elements the first wins. Padding never
        wins against a real element (it is −inf, not 0), and a NaN in the window is passed on. `relu` sets what is
        negative to 0, as a `ReLU` layer before or after would.
        """
        xp = self.xp
        padded = self.pad(x, window, fill=-float("inf"))
        output_size = window.output_size(x.shape[1:3])
        y = xp.copy(padded[window.slices(0, 0, output_size)], order="K")
        switches = xp.zeros_like(y, dtype=xp.int32)
        for number, (i, j) in enumerate(window.offsets()):
            candidate = padded[window.slices(i, j, output_size)]
            switches = xp.where(candidate > y, number, switches)
            y = xp.maximum(y, candidate)
        return (self.relu(y), xp.where(y > 0, switches, -1)) if relu else (y, switches)

    def max_pool2d_gradient(self, dy: Array, switches: Any, image_size: tuple[int, int], window: Window) -> Array:
        """Send dy (N, OH, OW, C) back to the elements that won: dx (N, H, W, C)."""
        N, OH, OW, C = dy.shape
        padded = self.xp.zeros_like(dy, shape=(N, *window.padded_size(image_size), C))
        for number, (i, j) in enumerate(window.offsets()):
            padded[window.slices(i, j, (OH, OW))] += dy * (switches == number)
        return padded[window.interior(image_size)]

    def average_pool2d(self, x: Array, window: Window) -> Array:
        """Average each window over its elements inside the image: (N, H, W, C) → (N, OH, OW, C)."""
        image_size = x.shape[1:3]
        output_size = window.output_size(image_size)
        padded = self.pad(x, window)
        total = self.xp.zeros_like(x, shape=(x.shape[0], *output_size, x.shape[3]))
        for i, j in window.offsets():
            total += padded[window.slices(i, j, output_size)]
        return total / window.valid_counts(self.xp, image_size).astype(x.dtype)

    def average_pool2d_gradient(self, dy: Array, image_size: tuple[int, int], window: Window) -> Array:
        """Share dy (N, OH, OW, C) among the elements of each window: dx (N, H, W, C)."""
        N, OH, OW, C = dy.shape
        share = dy / window.valid_counts(self.xp, image_size).astype(dy.dtype)
        padded = self.xp.zeros_like(dy, shape=(N, *window.padded_size(image_size), C))
        for i, j in window.offsets():
            padded[window.slices(i, j, (OH, OW))] += share
        return padded[window.interior(image_size)]

    # --- batch normalisation ------------------------------------------------------------------

    def batch_norm(
        self, x: Array, scale: Array, shift: Array, epsilon: float, relu: bool = False
    ) -> tuple[Array, Array, Array, Any]:
        """Normalise each channel of x (…, C) over the batch, then scale and shift; with `relu`, cut off below 0.

        Returns y (…, C), the batch's mean (C,) and biased variance (C,), and what the gradient needs, in the backend's
        own form: here the normalised x (…, C), and y if it is a ReLU's. Sums run in float64: a float32 sum over a large
        batch loses digits.
        """
        xp = self.xp
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes, dtype=xp.float64).astype(x.dtype)
        centred = x - mean
        variance = xp.square(centred).mean(axis=axes, dtype=xp.float64).astype(x.dtype)
        normalized = centred / xp.sqrt(variance + epsilon)
        y = normalized * scale + shift
        if relu:
            y = self.relu(y)
        return y, mean, variance, (normalized, y if relu else None)

    def batch_norm_gradient(
        self, dy: Array, kept: Any, variance: Array, scale: Array, epsilon: float
    ) -> tuple[Array, Array, Array]:
        """Return dx (…, C), dscale (C,) and dshift (C,) of `batch_norm`.

        The batch's own mean and variance depend on x; their share is what the last line takes away.
        """
        xp, (normalized, y) = self.xp, kept
        if y is not None:
            dy = self.relu_gradient(dy, y)
        axes = tuple(range(dy.ndim - 1))
        count = normalized.size // normalized.shape[-1]
        dshift = dy.sum(axis=axes, dtype=xp.float64).astype(dy.dtype)
        dscale = (dy * normalized).sum(axis=axes, dtype=xp.float64).astype(dy.dtype)
        factor = scale / xp.sqrt(variance + epsilon)
        return factor * (dy - dshift / count - normalized * (dscale / count)), dscale, dshift

    # --- elementwise, and sums over everything but the channels ---------------------------------

    def relu(self, x: Array) -> Array:
        """Return max(x, 0), of any shape."""
        return self.xp.maximum(x, 0)

    def relu_gradient(self, dy: Array, y: Array) -> Array:
        """Return dy where y, the output of `relu`, is positive, else 0."""
        return dy * (y > 0)

    def gelu(self, x: Array) -> tuple[Array, Any]:
        """Return x·Φ(x), Φ the normal distribution, and what the gradient needs, in the backend's own form."""
        share = 0.5 * self.erf(x * SQRT_HALF) + 0.5
        return x * share, (x, share)

    def gelu_gradient(self, dy: Array, kept: Any) -> Array:
        """Return dy·(Φ(x) + x·φ(x)), φ the normal density."""
        x, share = kept
        density = INV_SQRT_2PI * self.xp.exp(-0.5 * x * x)
        return dy * (share + x * density)

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        """Return a + b of one shape, and what is negative set to 0 with `relu`."""
        return self.relu(a + b) if relu else a + b

    def scale_and_shift(self, x: Array, scale: Array, shift: Array, relu: bool = False) -> Array:
        """Return scale·x + shift of x (…, C) with numbers for each channel (C,), cut off below 0 with `relu`."""
        y = x * scale + shift
        return self.relu(y) if relu else y

    def channel_sums(self, x: Array) -> Array:
        """Return the sum of each channel of x (…, C), (C,)."""
        return x.sum(axis=tuple(range(x.ndim - 1)))

    # --- softmax and its loss -----------------------------------------------------------------

    def softmax(self, logits: Array) -> Array:
        """Return probabilities (N, K) from logits (N, K); the largest logit is subtracted first, so none overflows."""
        powers = self.xp.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def softmax_cross_entropy(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """Return the mean cross-entropy of softmax(logits) with targets, both (N, K), and dlogits (N, K).

        log softmax is formed from the logits directly: logits of ±10,000 give a finite loss and gradient.
        """
        xp = self.xp
        N = logits.shape[0]
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_total = xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
        log_probabilities = shifted - log_total
        loss = -(targets * log_probabilities).sum() / N
        dlogits = (xp.exp(log_probabilities) * targets.sum(axis=-1, keepdims=True) - targets) / N
        return loss, dlogits

    # --- the optimizers' updates, in place over one flat buffer (P,) --------------------------

    def clip_value(self, gradients: Array, limit: float) -> None:
        """Cut every element off at ±limit."""
        self.xp.clip(gradients, -limit, limit, out=gradients)

    def clip_norm(self, gradients: Array, limit: float) -> None:
        """Scale gradients whose Euclidean norm is above the limit down to it; its squares are added up in float64."""
        xp = self.xp
        norm = xp.sqrt(xp.square(gradients, dtype=xp.float64).sum())
        gradients *= (limit / xp.maximum(norm, limit)).astype(gradients.dtype)

    def sgd_update(
        self,
        values: Array,
        gradients: Array,
        velocity: Array | None,
        *,
        learning_rate: float | Array,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ) -> None:
        """Step down the gradient: velocity ← momentum·velocity + gradient; values ← values − rate·velocity.

        The learning rate is a number, or an array () of one.
        """
        step = gradients + weight_decay * values if weight_decay else gradients
        if velocity is not None:
            velocity *= momentum
            velocity += step
            step = step + momentum * velocity if nesterov else velocity
        values -= learning_rate * step

    def adam_update(
        self,
        values: Array,
        gradients: Array,
        mean: Array,
        square: Array,
        *,
        step: int | Array,
        learning_rate: float | Array,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        """Step by the running mean of the gradient over the root of its running square, both unbiased.

        `decoupled` takes the weight decay off the values directly (AdamW) instead of adding it to the gradient. The
        learning rate and the number of the step, from 1, are numbers, or arrays () of one.
        """
        if weight_decay and decoupled:
            values *= 1.0 - learning_rate * weight_decay
        elif weight_decay:
            gradients = gradients + weight_decay * values
        mean *= beta1
        mean += (1.0 - beta1) * gradients
        square *= beta2
        square += (1.0 - beta2) * gradients * gradients
        unbiased_mean = mean / (1.0 - beta1**step)
        unbiased_square = square / (1.0 - beta2**step)
        values -= learning_rate * unbiased_mean / (self.xp.sqrt(unbiased_square) + epsilon)

    def lerp_(self, target: Array, source: Array, weight: float) -> None:
        """Interpolate `target` (P,) towards `source` (P,) in place; weight 0 leaves it, 1 gives the source exactly."""
        difference = source - target
        if weight < 0.5:
            target += weight * difference
        else:
            target[...] = source - (1.0 - weight) * difference

    # --- batches and random numbers -----------------------------------------------------------

    def load_batch(self, x: Array, indices: Any, dtype: Any, transform: ImageTransform | None = None) -> Array:
        """Return samples of a data set x (P, …), picked by number (N,) or slice, as floats; bytes become 0 … 1.

        Images (P, H, W, C) may be placed on the way: cropped, moved, mirrored, painted over in part.
        """
        if transform is None:
            return as_floats(x[indices], dtype)
        numbers = self.xp.arange(len(x))[indices] if isinstance(indices, slice) else indices
        return as_floats(apply_transform(self.xp, x, numbers, transform), dtype)

    def random_bits(self, key: int, counter: int, count: int, start: int = 0) -> Array:
        """Return the words start … start + count − 1, uint32 (count,), of the stream (key, counter), 64 bits each."""
        return philox4x32(self.xp, key, counter, count, start)


def as_floats(x: Array, dtype: Any) -> Array:
    """Return x in a float dtype; uint8 pixels 0 … 255 become 0 … 1, everything else keeps its values."""
    floats = x.astype(dtype, copy=False)
    return floats / 255.0 if x.dtype == "uint8" else floats


def column_groups(columns: Array, groups: int) -> list[Array]:
    """Cut columns (N, OH, OW, KH, KW, C) into one matrix (N·OH·OW, KH·KW·C/groups) a group."""
    N, OH, OW, KH, KW, C = columns.shape
    width = C // groups
    return [columns[..., g * width : (g + 1) * width].reshape(N * OH * OW, KH * KW * width) for g in range(groups)]


def kernel_groups(weight: Array, groups: int) -> list[Array]:
    """Cut weight (KH, KW, C/groups, F) into one matrix (KH·KW·C/groups, F/groups) a group."""
    return filter_groups(weight.reshape(-1, weight.shape[-1]), groups)


def filter_groups(matrix: Array, groups: int) -> list[Array]:
    """Cut (rows, F) into one matrix (rows, F/groups) a group."""
    width = matrix.shape[1] // groups
    return [matrix[:, g * width : (g + 1) * width] for g in range(groups)]
