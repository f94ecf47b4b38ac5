"""`Executor`: a network on a backend that can be run, trained for one step at a time, and scored.

It owns what a step needs: the layers with their flat arrays of parameters and gradients, the loss, the metrics and the
optimizer. What surrounds a step, such as epochs, callbacks, checkpoints and files, is the business of the parts above.

    compile       optimizer, loss and metrics are chosen
    train_step    forward, loss, backward, update          ─┐  device arrays, inside `execution_context`
    test_step     forward, loss                             ─┘
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, Self

from gpucnn.backends import Array, Backend
from gpucnn.core import checks
from gpucnn.core.hints import hinted
from gpucnn.engine.arguments import check_last_layer
from gpucnn.engine.bound_network import BoundNetwork, on_device
from gpucnn.engine.capture import Captured
from gpucnn.engine.claims import trains
from gpucnn.engine.sharding import ShardedNetwork
from gpucnn.engine.signals import whole_step
from gpucnn.errors import ConfigurationError, OutOfMemoryError
from gpucnn.layers.activation import Softmax
from gpucnn.layers.base import Backward, Layer, Shape
from gpucnn.layers.containers import Sequential
from gpucnn.losses import CategoricalCrossEntropy, Loss, checked_loss, chosen_loss
from gpucnn.metrics import Metric, RunningMeans, chosen_metrics
from gpucnn.optimizers import Optimizer
from gpucnn.optimizers.base import LearningRates

#: the executor whose context this thread is in
_executing: "ContextVar[Executor | None]" = ContextVar("executing", default=None)


class GradientCheck(Protocol):
    """What looks at the gradients of each step, between the backward pass and the update."""

    def begin_step(self) -> None:
        """Note what is needed to run the step again."""

    def check_step(self, inputs: Array, labels: Array, number: Array | None) -> None:
        """Check the gradients of a step on these inputs and labels."""


class Executor(BoundNetwork):
    """A network with its weights on a backend, and after `compile` with its loss, metrics and optimizer.

    The arguments are those of `gpucnn.Model`.

    Raises
        ShapeError, ConfigurationError  a layer does not fit the one before it, or an argument is not valid
        BackendUnavailable              the named backend is unavailable on this machine
    """

    @hinted
    def __init__(
        self,
        layers: list[Layer] | Sequential,
        input_shape: Shape,
        *,
        seed: int = 0,
        backend: str | Backend = "auto",
        dtype: str = "float32",
        allow_tf32: bool | None = None,
        name: str = "model",
    ) -> None:
        vars(self)["_settled"] = False
        self.seed = checks.integer(seed, "seed", minimum=0)
        self.name, self.jit = name, True
        requested = checks.optional(checks.flag, allow_tf32, "allow_tf32")
        self.allow_tf32 = checks.environment_flag("GPUCNN_TF32", default=False) if requested is None else requested
        super().__init__(layers, input_shape, self.seed, backend, dtype)
        self.loss: Loss | None = None
        self.metrics: list[Metric] = []
        self.chooses_metrics = False  # whether the first data decide which metrics mean something
        self._optimizer: Optimizer | None = None
        self._fuses_softmax = False
        self._sharded = ShardedNetwork(self.network)
        self.epochs_trained, self.stop_training = 0, False
        self.warned_of_scale = self.warned_of_targets = self.warned_of_undeclared = False
        self._place(self.backend, dtype)
        self._settled = True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._checked_setting(name, value) if vars(self).get("_settled") else value)

    def _checked_setting(self, name: str, value: Any) -> Any:
        """Return what a setting is set to, as the constructor and `compile` would keep it.

        Raises:
            ConfigurationError: they would not take it, or the loss needs a network compiled for it.
        """
        if name == "seed":
            return checks.integer(value, name, minimum=0)
        if name in ("jit", "allow_tf32"):
            return checks.flag(value, name)
        if name == "metrics":
            self.chooses_metrics = False
            return chosen_metrics(value)
        if name == "loss":
            loss = self._prepare_loss(value)
            self._fuses_softmax = self._can_fuse(loss)
            return loss
        return value

    def _prepare_loss(self, loss: Loss | str) -> Loss:
        """Return a copy of a loss on this model's backend, checked against the last layer."""
        loss = copy.copy(chosen_loss(loss))
        loss.backend = self.backend
        if isinstance(loss, CategoricalCrossEntropy):
            check_last_layer(self.network, self.output_shape, loss)
        return loss

    def _can_fuse(self, loss: Loss) -> bool:
        """Return whether the last softmax is computed with the loss, as one kernel, from the logits before it."""
        return isinstance(loss, CategoricalCrossEntropy) and isinstance(self.layers[-1], Softmax)

    def config(self) -> dict[str, Any]:
        """Return the settings as plain data: what it takes, with the weights, to make the same model again."""
        training = None
        if self.loss is not None:
            training = {
                "optimizer": self.optimizer.config(),
                "loss": self.loss.config(),
                "metrics": "auto" if self.chooses_metrics else [metric.config() for metric in self.metrics],
            }
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "dtype": self.dtype,
            "seed": self.seed,
            "epochs_trained": self.epochs_trained,
            "network": self.network.config(),
            "frozen": self.frozen_parameters(),
            "training": training,
        }

    # --- state that follows the network's ---------------------------------------------------------

    def _place(self, backend: Backend, dtype: str) -> None:
        self.captured_step: Captured[Any] = Captured("training steps", prepares=True)
        super()._place(backend, dtype)
        if self.loss is not None:
            self.loss.backend = backend

    @on_device
    def _lay_out(self, source: Backend | None = None) -> None:
        before = vars(self).get("_flat")
        super()._lay_out(source)
        if before is not None and self._optimizer is not None and self._optimizer.serves(before.values):
            self._optimizer.rebind(source or self.backend, self.backend, self._flat.values, self._flat.layout)
            self._optimizer.set_frozen(self._flat.frozen)

    def _follow_frozen(self) -> None:
        super()._follow_frozen()
        if self._optimizer is not None and self._optimizer.serves(self._flat.values):
            self._optimizer.set_frozen(self._flat.frozen)

    def freeze_finished_groups(self, epoch: int | None) -> None:
        """Freeze the parameters of groups whose epochs are over, until a call with None: the training run has ended."""
        for parameter in self._paused.values():
            parameter.frozen = False
        parameters = self.parameters()
        finished = zip(self._groups, self.optimizer.finished_groups(epoch), strict=True)
        over = [path for paths, is_over in finished if is_over for path in paths]
        self._paused = {path: parameters[path] for path in over if not parameters[path].frozen}
        for parameter in self._paused.values():
            parameter.frozen = True

    # --- passes -------------------------------------------------------------------------------

    def execution_context(self, batch_size: int) -> AbstractContextManager[None]:
        """Return the context that every pass runs in; inside another one of the same model it does nothing.

        The backend is set up for passes of that many samples, signals wait until they are over, and an error says where
        memory ran out.
        """
        return nullcontext() if _executing.get() is self else self._execution_context(batch_size)

    @contextmanager
    def _execution_context(self, batch_size: int) -> Iterator[None]:
        try:
            context = self.backend.execution_context(sharded=self._sharded.can_shard, allow_tf32=self.allow_tf32)
            with whole_step, context:
                before = _executing.set(self)
                try:
                    yield
                finally:
                    _executing.reset(before)
        except MemoryError as error:
            if isinstance(error, OutOfMemoryError) and error.has_advice:
                raise
            layer, memory = getattr(error, "layer", ""), self.backend.memory_info()
            message = f"{layer or self.name}: out of memory on {self.backend.name} at a batch of {batch_size}: "
            message += str(error).rstrip(".")
            if memory is not None:
                message += f"; {memory[0] / 1e6:,.0f} of {memory[1] / 1e6:,.0f} MB are free"
            raise OutOfMemoryError(message, layer, has_advice=True) from error

    def forward(self, x: Any, *, train: bool = False) -> tuple[Array, Backward]:
        """Return the network's output for x, host or device arrays, and the backward function of this pass.

        Backward adds to the parameters' gradients; `apply_gradients` updates by them, and `zero_grad` clears them.

        Example:
            >>> (x, y), _ = datasets.synthetic_digits(64)
            >>> model = networks.feedforward(seed=0)
            >>> outputs, backward = model.forward(x[:8], train=True)
            >>> backward(outputs).shape  # and the gradients of the parameters
            (8, 28, 28, 1)
        """
        if train:
            self.bind()
        else:
            self._check_layers()
        with self.execution_context(len(x)):
            inputs = self.as_floats(self.backend.from_host(x))
            y, network_backward = self._sharded.forward(
                self.backend, inputs, train=train, capture=self.jit and not train
            )

        def backward(dy: Array) -> Array:
            with self.execution_context(len(x)):
                return network_backward(dy)

        return y, backward

    def forward_train(self, x: Array, *, capture: bool) -> tuple[Array, Backward]:
        """Return the outputs for device floats and the backward function, which leaves gradients in the parameters.

        With a fused softmax the outputs are logits. With `capture` the pass may be captured, or be a replay of one.
        """
        return self._sharded.forward(
            self.backend, x, train=True, need_dx=False, logits=self._fuses_softmax, capture=capture
        )

    def bytes_per_sample(self) -> int:
        """Return about how much memory a step takes for each sample: all outputs, and all their gradients."""
        outputs = sum(math.prod(layer.output_shape or ()) for layer in self.network.all_layers())
        return 2 * outputs * int(self._flat.values.itemsize)

    def free_memory(self) -> None:
        """Free cached memory: captured passes, and what the backend caches."""
        self._sharded.captures.invalidate()
        self.backend.release()

    @property
    def why_not_captured(self) -> str:
        """Why passes of training are not captured, or not any more; "" if nothing stands in the way."""
        return self.captured_step.failure or self._sharded.captures.failure

    # --- training -----------------------------------------------------------------------------

    @hinted
    @on_device
    def compile(
        self,
        optimizer: Optimizer | str = "sgd",
        loss: Loss | str = "categorical_crossentropy",
        metrics: Sequence[Metric | str] | str | None = "auto",
        *,
        jit: bool = True,
    ) -> Self:
        """Choose how the model is trained; objects or their names. Returns the model.

        Arguments:
            metrics: what is measured besides the loss: a list of metrics or their names; None or [] for nothing. "auto"
                is the accuracy where labels are classes, or 0 and 1, and nothing for a regression; the first data that
                the model is fitted or evaluated with decide where the loss does not.
            jit: capture the work of training once and replay it from then on, if all layers say `capturable`: on a GPU
                `fit` launches a whole step as one graph instead of kernel by kernel, and on the CPU passes run without
                the layers' Python. The numbers are the same either way; `why_not_captured` says why nothing is
                captured. Turn it off if custom losses or metrics decide anything in Python.

        Raises:
            ConfigurationError: an unknown name, a loss that does not fit the last layer, two metrics of one name, a
                group of the optimizer that no parameter belongs to, or the model is being trained.

        Example:
            >>> model = Model([layers.Dense(10), layers.Softmax()], input_shape=(20,))
            >>> sgd = optimizers.SGD(0.1, momentum=0.9)
            >>> model = model.compile(sgd, loss="categorical_crossentropy", metrics=["accuracy"])
        """
        self.check_not_training("compiled")
        self._check_layers()
        loss = self._prepare_loss(loss)
        chooses = isinstance(metrics, str) and metrics == "auto"
        chosen = chosen_metrics(["accuracy"] * loss.expects_classes if chooses else metrics)
        optimizer = Optimizer.resolve(optimizer)
        groups = optimizer.partition({path: parameter.shape for path, parameter in self.parameters().items()})
        self.jit, self.captured_step = checks.flag(jit, "jit"), Captured("training steps", prepares=True)
        self._fuses_softmax, self._sharded = self._can_fuse(loss), ShardedNetwork(self.network)
        vars(self).update(loss=loss, metrics=chosen, chooses_metrics=chooses)
        self._optimizer, self._groups = None, groups
        self._lay_out()
        self._optimizer = optimizer
        self._optimizer.reset(self.backend, self._flat.values, self._flat.layout)
        self._optimizer.set_frozen(self._flat.frozen)
        return self

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that `compile` was given."""
        if self._optimizer is None:
            raise ConfigurationError(
                "the model is not compiled; call model.compile(optimizer=…, loss=…) before training or evaluating it"
            )
        return self._optimizer

    def new_metrics(self) -> RunningMeans:
        """Return empty sums of loss and metrics on the model's backend."""
        return RunningMeans(self.backend, self.metrics)

    @on_device
    def train_step(
        self,
        x: Array,
        labels: Array,
        learning_rate: LearningRates,
        number: Array | None = None,
        check: GradientCheck | None = None,
    ) -> tuple[Array, Array]:
        """Run one training step on device arrays; return the mean loss and the outputs before the update.

        With a fused softmax the outputs are logits. The learning rate is one number, or all that the optimizer's
        `learning_rates_at` returns, one for each of its groups. A step that is captured takes rates and its `number`,
        from 1, as arrays () of one. `check` looks at the gradients before the update.
        """
        optimizer = self.optimizer
        self.bind()
        with self.execution_context(len(x)):
            if check is not None:
                check.begin_step()
            loss, outputs = self._loss_and_gradients(x, labels, sharded=True)
            if check is not None:
                check.check_step(x, labels, number)
            optimizer.update(self.backend, self._flat.values, self._flat.gradients, learning_rate, number)
        return loss, outputs

    @on_device
    def loss_and_gradients(self, x: Array, labels: Array, *, sharded: bool = True) -> tuple[Array, Array]:
        """Return what `train_step` does, and leave the gradients in the parameters, without an update.

        The backend may split the batch into shards, on several threads, unless `sharded` is False.

        A mean over N samples gives each of them a gradient of about 1/N, which float16 can hardly hold: there the loss
        is scaled by a power of two of about N in the backward pass, and the gradients in float32 by its inverse.
        """
        self.bind()
        with self.execution_context(len(x)):
            return self._loss_and_gradients(x, labels, sharded)

    def _loss_and_gradients(self, x: Array, labels: Array, sharded: bool) -> tuple[Array, Array]:
        scale = 2.0 ** math.ceil(math.log2(len(x))) if self.dtype == "float16" else 1.0
        self._flat.gradients[...] = 0
        if sharded:
            outputs, network_backward = self.forward_train(x, capture=self.jit)
        else:
            outputs, network_backward = self.network.forward(x, train=True, need_dx=False, logits=self._fuses_softmax)
        exact = outputs.astype(self.state_dtype, copy=False)
        loss, loss_backward = self._compute_loss(exact, labels)
        network_backward(loss_backward(scale).astype(outputs.dtype, copy=False))
        if scale != 1.0:
            self._flat.gradients *= 1.0 / scale
        return loss, exact

    def test_step(self, x: Array, labels: Array) -> tuple[Array, Array]:
        """Return the mean loss and the outputs (logits with a fused softmax) of device arrays; trains nothing."""
        self._check_layers()
        with self.execution_context(len(x)):
            outputs, _ = self._sharded.forward(
                self.backend, x, train=False, logits=self._fuses_softmax, capture=self.jit
            )
            exact = outputs.astype(self.state_dtype, copy=False)
            return self._compute_loss(exact, labels)[0], exact

    def _compute_loss(self, outputs: Array, labels: Array) -> tuple[Array, Any]:
        assert self.loss is not None
        if self._fuses_softmax:
            assert isinstance(self.loss, CategoricalCrossEntropy)
            return self.loss.from_logits_fused(outputs, labels)
        return checked_loss(self.loss, outputs, labels)

    @trains(within=True)
    @on_device
    def apply_gradients(self) -> None:
        """Update the weights by the gradients that backward passes have added up, and clear the gradients.

        For custom losses and training loops, also through several models:

            y, backward = model.forward(x, train=True)
            dx = backward(2 * (y - target) / y.size)
            model.apply_gradients()

        A schedule does not know how long the training run is here, so the update uses its highest rate.

        Raises:
            ConfigurationError: the model is not compiled, or its optimizer is bound to another model by now.

        Example:
            >>> (x, y), _ = datasets.synthetic_digits(64)
            >>> model = networks.feedforward(seed=0)
            >>> outputs, backward = model.forward(x[:8], train=True)
            >>> dx = backward(outputs - 0.1)
            >>> model.apply_gradients()
        """
        rates = self.optimizer.learning_rates_at()
        self.bind()
        with self.execution_context(1):
            self.optimizer.update(self.backend, self._flat.values, self._flat.gradients, rates)
            self._flat.gradients[...] = 0

    @on_device
    def zero_grad(self) -> None:
        """Clear all gradients."""
        self.bind()
        self._flat.gradients[...] = 0
