"""`Model`: a network together with its training, with the verbs a Keras user knows."""

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from gpucnn import rng
from gpucnn.backends import Array, Backend, get_backend
from gpucnn.backends.base import as_floats
from gpucnn.callbacks import Callback, check_callbacks
from gpucnn.core import checks
from gpucnn.core.config import Closed
from gpucnn.core.hints import hinted
from gpucnn.core.text import for_output
from gpucnn.data.augment import Augmentation, check_augmentations, data_shape
from gpucnn.data.batches import check_batch_size, check_epochs, check_inputs, check_labels, join
from gpucnn.data.tta import Views, check_tta
from gpucnn.engine.arguments import (
    check_dtype,
    check_last_layer,
    check_nothing_shown,
    check_pair,
    check_precision,
    check_verbose,
    checked_shape,
)
from gpucnn.engine.batch_norm_refresh import refresh_statistics
from gpucnn.engine.claims import Claim, trains
from gpucnn.engine.evaluation import by_parts, evaluate
from gpucnn.engine.memory import with_advice
from gpucnn.engine.scale import warn_of_scale, warn_of_targets
from gpucnn.engine.sharding import Sliced
from gpucnn.errors import ConfigurationError, DataError, NumericError, OutOfMemory, ShapeError
from gpucnn.layers.activation import Softmax
from gpucnn.layers.base import Backward, Layer, Parameter, Shape
from gpucnn.layers.containers import Sequential
from gpucnn.losses import CategoricalCrossEntropy, Loss, MeanSquaredError, checked_loss, chosen_loss
from gpucnn.metrics import Accuracy, Metric, RunningMeans, chosen_metrics
from gpucnn.optimizers import Optimizer
from gpucnn.optimizers.base import LearningRates
from gpucnn.optimizers.flat import FlatState, check_placed, check_same_layers, check_shared_dtype
from gpucnn.optimizers.layout import Layout
from gpucnn.optimizers.patterns import check_patterns, matched
from gpucnn.training.checkpoints import Checkpoints, check_checkpoints
from gpucnn.training.history import History
from gpucnn.training.interrupt import whole_step
from gpucnn.training.loop import Training, to_device

if TYPE_CHECKING:
    from gpucnn.engine.profiling import Profile
    from gpucnn.networks import Recipe
    from gpucnn.training.finite_check import Watch

Given = ParamSpec("Given")
Result = TypeVar("Result")


def on_device(verb: Callable[Concatenate["Model", Given], Result]) -> Callable[Concatenate["Model", Given], Result]:
    """Let a verb of a model work on its backend's device, and leave the calling thread on the one it was on."""

    @wraps(verb)
    def call(model: "Model", *args: Given.args, **options: Given.kwargs) -> Result:
        with model.backend.on_device():
            return verb(model, *args, **options)

    return call


class Model(Closed):
    """A network with its weights, and after `compile` with its loss and optimizer.

    Arguments
        layers       a list of layers, or a `Sequential`
        input_shape  of one sample: (H, W, C) for images
        seed         of weights, data order and dropout: the same seed gives the same bits
        backend      "auto", "numpy", "cupy" or "cupy:N"
        dtype        "float32", "float64", or on a GPU "float16": layers compute in half precision then, while
                     parameters, their gradients, the statistics of batch norms and the loss stay in float32
        allow_tf32   on a GPU, let float32 products round their factors to 10 bits, which tensor cores multiply many
                     times as fast; None takes the environment's GPUCNN_TF32, which is off unless it is 1

    Inputs are (N, *input_shape), uint8 or floats: uint8 pixels 0 … 255 count as 0 … 1, floats as they are.

    Models that are made of the same layers, such as `Model([*base.layers[:-2], Dense(2), Softmax()], …)`, share their
    weights, whichever trains; they need the same backend and dtype. `copy.deepcopy` makes weights of its own.

    Raises
        ShapeError, ConfigurationError  a layer does not fit the one before it, or an argument makes no sense
        BackendUnavailable              a backend was named that this machine does not have
    """

    changed_by: ClassVar[dict[str, str]] = {
        "backend": "call model.to(backend)",
        "dtype": "call model.to(backend, dtype)",
        "optimizer": "call model.compile(optimizer=…)",
        "layers": "make a new Model of the layers, which shares their weights",
        "network": "make a new Model of the layers, which shares their weights",
        "input_shape": "make a new Model",
        "output_shape": "make a new Model",
    }

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
        check_dtype(dtype)
        self.seed = checks.integer(seed, "seed", minimum=0)
        self.network = layers if isinstance(layers, Sequential) else Sequential(layers)
        if not self.network.layers:
            raise ConfigurationError("a model needs at least one layer; got an empty list")
        self.input_shape = checked_shape(input_shape)
        self.dtype, self.name = dtype, name
        self.allow_tf32 = (
            checks.environment_flag("GPUCNN_TF32", default=False)
            if allow_tf32 is None
            else checks.flag(allow_tf32, "allow_tf32")
        )
        self.jit = True
        self.backend = get_backend(backend)
        check_precision(dtype, self.backend)
        self.output_shape = self.network.ensure_built(self.input_shape, rng.host_generator(self.seed, "weights"))
        check_shared_dtype(self.network, self.state_dtype)
        self.loss: Loss | None = None
        self.metrics: list[Metric] = []
        self.chooses_metrics = False  # whether the first data decide which metrics mean something
        self._optimizer: Optimizer | None = None
        self._trunk = self.network
        self._sliced = self._sliced_trunk = Sliced(self.network)
        self._gave_up_steps = ""  # why no whole steps are recorded
        self._groups = [list(self.parameters())]
        self.epochs_seen = 0
        self.stop_training = False
        self.claim: Claim | None = None  # what trains it
        self.numerics: Watch | None = None  # looks at gradients while a fit goes on
        self.fault: NumericError | None = None  # what ended the last fit
        self.progress = 0.0, 1.0  # the epoch that a fit has come to, with its fraction, and the number of epochs
        self.averaged_by: Callback | None = None  # who has put averages in the place of the weights
        self.class_names: list[str] | None = None
        self.warned_of_scale = self.warned_of_targets = False
        self.recipe: Recipe | None = None
        self.to(self.backend)
        self._settled = True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._kept(name, value) if vars(self).get("_settled") else value)

    def _kept(self, name: str, value: Any) -> Any:
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
            loss = self._prepared(value)
            if self._trunk is not self.network and not isinstance(loss, CategoricalCrossEntropy):
                raise ConfigurationError(
                    f"the model was compiled for {self.loss!r}, with which its last Softmax is fused, and {loss!r} "
                    "cannot take its place; call model.compile(loss=…)"
                )
            return loss
        return value

    def _prepared(self, loss: Loss | str) -> Loss:
        """Return a loss for this model, checked against its last layer: a copy, whose backend is the model's."""
        loss = copy.copy(chosen_loss(loss))
        loss.backend = self.backend
        if isinstance(loss, CategoricalCrossEntropy):
            check_last_layer(self.layers, self.output_shape, loss)
        return loss

    # --- the network --------------------------------------------------------------------------

    @property
    def layers(self) -> list[Layer]:
        """The layers in order."""
        return self.network.layers

    def parameters(self) -> dict[str, Parameter]:
        """Return every parameter by its path, such as `conv2d_1.weight`."""
        return self.network.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return host copies of every parameter and buffer by path; moves nothing."""
        self._check_layers()
        return self.network.state_dict()

    @on_device
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; raises CheckpointError where it does not fit."""
        self._check_layers()
        self.network.load_state_dict(state)

    @property
    def state_dtype(self) -> str:
        """The dtype of parameters, gradients, buffers and the loss: float32 where layers compute in float16."""
        return "float32" if self.dtype == "float16" else self.dtype

    def to(self, backend: str | Backend, dtype: str | None = None) -> "Model":
        """Move weights and the optimizer's state to another backend, and compute in another dtype; returns the model.

        Raises:
            ConfigurationError: a model of float16 is moved to a backend that does not compute in it, or a training
                goes on.
        """
        self.check_not_training("moved")
        target, dtype = get_backend(backend), self.dtype if dtype is None else check_dtype(dtype)
        check_precision(dtype, target)
        source = self.backend
        vars(self).update(backend=target, dtype=dtype)
        self._gave_up_steps = ""
        self.network.to(self.backend, self.state_dtype)
        if self.loss is not None:
            self.loss.backend = self.backend
        self._lay(source)
        return self

    @on_device
    def _lay(self, source: Backend | None = None) -> None:
        """Lay all parameters, gradients and buffers in flat arrays, anew; the optimizer follows, from `source`."""
        before = vars(self).get("_flat")
        self._flat = FlatState(self.network, self.backend, self.state_dtype, self._groups)
        self._refresh_trainable()
        if before is not None and self._optimizer is not None and self._optimizer.serves(before.values):
            self._optimizer.rebind(source or self.backend, self.backend, self._flat.values, self._flat.layout)

    def bind(self) -> bool:
        """See that the layers' state lies in this model's flat arrays; return whether it had to be laid anew.

        It does not where another model of the same layers has laid it in its own, or a parameter was replaced.
        Values, gradients and the optimizer's state stay what they are.

        Raises:
            ConfigurationError: the layers were moved to another backend or dtype, or others took their places.
        """
        if self._flat.is_bound():
            return False
        self._check_layers()
        before = self._flat.layout
        self._lay()
        if self._flat.layout == before:
            self._flat.layout = before  # the very one, for who goes by it
        return True

    def _check_layers(self) -> None:
        """Refuse layers that were changed or moved since the model was made, as `bind` does; change nothing."""
        if not self._flat.is_bound():
            check_same_layers(self.network, self._flat.layout)
            remedy = f"model.to({self.backend.name!r}, {self.dtype!r})"
            check_placed(self.network, self.backend, self.state_dtype, remedy)

    def flat_state(self) -> list[Array]:
        """Return all parameters that are not frozen and all buffers of floats, each as one flat array: views.

        The list is the same one until the state is laid anew: by `to`, `compile` and `freeze`, and where the layers are
        shared with another model.
        """
        self.bind()
        return self._flat.averageable

    def flat_layout(self) -> Layout:
        """Return where each parameter lies in the flat arrays; a new object where that is settled anew."""
        return self._flat.layout

    # --- what is trained ----------------------------------------------------------------------

    def freeze(self, *what: str | Layer) -> "Model":
        """Leave parameters as they are in every training from now on, until `unfreeze`; returns the model.

        No optimizer, weight decay or average of weights moves them, and their gradients are left out. The statistics
        of a batch norm go on being collected. Models that share a parameter share whether it is frozen.

        Arguments:
            what: patterns such as "conv2d.weight" or "*.bias", names of layers ("conv2d", "residual.*") or layers
                themselves, which stand for all that they hold; nothing for the whole model.

        Raises:
            ConfigurationError: a pattern matches nothing (lists the paths), a layer is none of this model's, or a
                training goes on.
        """
        return self._set_frozen(what, frozen=True)

    def unfreeze(self, *what: str | Layer) -> "Model":
        """Train parameters again that were frozen; takes what `freeze` takes, and returns the model."""
        return self._set_frozen(what, frozen=False)

    @on_device
    def _set_frozen(self, what: tuple[str | Layer, ...], frozen: bool) -> "Model":
        self.check_not_training(
            "frozen or unfrozen", ", or give the optimizer a Group whose rate is a schedule that falls to 0"
        )
        self.bind()
        for parameter in self._parameters_of(what):
            parameter.frozen = frozen
        self.bind()
        return self

    def check_not_training(self, what: str, remedy: str = "") -> None:
        """Refuse what steps that go on, and may be recorded, would not follow, such as to be "moved"."""
        claim = self.claim
        if claim is not None and claim.holds and (claim.steps or not claim.here):
            raise ConfigurationError(
                f"the model cannot be {what} while {claim.method} goes on: its steps may be recorded; do it before or "
                f"after it{remedy}"
            )

    def rest(self, epoch: int | None) -> bool:
        """Let the parameters of groups rest whose epochs are over, or wake all with None; tell whether any changed.

        What rests is laid out as before, so that an optimizer and averages keep what they hold of it.
        """
        parameters, changed = self.parameters(), False
        for paths, resting in zip(self._groups, self.optimizer.rest(epoch), strict=True):
            for path in paths:
                changed |= parameters[path].resting != resting
                parameters[path].resting = resting
        if changed:
            self._refresh_trainable()
        return changed

    def _refresh_trainable(self) -> None:
        for layer in (*self.network.all_layers(), self._trunk):
            if isinstance(layer, Sequential):
                layer.refresh_trainable()

    def _parameters_of(self, what: tuple[str | Layer, ...]) -> list[Parameter]:
        """Return the parameters that patterns and layers stand for; all of them for nothing."""
        parameters, own = self.parameters(), {id(layer) for layer in self.network.all_layers()}
        given = [item for item in what if isinstance(item, Layer)]
        named = [item for item in what if not isinstance(item, Layer)]
        for layer in given:
            if id(layer) not in own:
                raise ConfigurationError(f"{layer!r} is no layer of this model; pass one of model.layers, or its name")
        found = [parameter for layer in given for parameter in layer.parameters().values()]
        if named or not given:
            patterns = check_patterns(named or "*", "what is frozen or unfrozen")
            found += [parameters[path] for path in matched(parameters, patterns)]
        return found

    def forward(self, x: Any, *, train: bool = False) -> tuple[Array, Backward]:
        """Return the network's output for x and the way back; arrays of the model's backend, or host arrays.

        The way back adds to the parameters' gradients, and `apply_gradients` trains by them; `zero_grad` forgets them.
        """
        if train:
            self.bind()
        else:
            self._check_layers()
        with self.computing(len(x)):
            inputs = self.as_floats(self.backend.from_host(x))
            y, network_backward = self._sliced.forward(self.backend, inputs, train=train, repeat=self.jit and not train)

        def backward(dy: Array) -> Array:
            with self.computing(len(x)):
                return network_backward(dy)

        return y, backward

    @contextmanager
    def computing(self, batch: int) -> Iterator[None]:
        """Hold the backend's context around passes of so many samples; say where memory runs out."""
        try:
            working = self.backend.execution_context(sharded=self._sliced.can_slice, allow_tf32=self.allow_tf32)
            with whole_step, working:
                yield
        except MemoryError as error:
            if isinstance(error, OutOfMemory) and error.explained:
                raise
            message = self._where_memory_ended(error, batch)
            raise OutOfMemory(message, getattr(error, "layer", ""), explained=True) from error

    def _where_memory_ended(self, error: MemoryError, batch: int) -> str:
        """Return a message: where memory ran out, what was asked for, and what there is."""
        where, memory = getattr(error, "layer", "") or self.name, self.backend.memory_info()
        message = f"{where}: out of memory on {self.backend.name} at a batch of {batch}: {str(error).rstrip('.')}"
        if memory is not None:
            message += f"; {memory[0] / 1e6:,.0f} of {memory[1] / 1e6:,.0f} MB are free"
        return message

    def bytes_of_a_sample(self) -> int:
        """Return about how much memory a step takes for each sample: all outputs, and all their gradients."""
        outputs = sum(math.prod(layer.output_shape or ()) for layer in self.network.all_layers())
        return 2 * outputs * int(self._flat.values.itemsize)

    def release(self) -> None:
        """Let go of memory that is kept for later: of passes that were recorded, and what the backend keeps."""
        for sliced in (self._sliced, self._sliced_trunk):
            sliced.repeats.forget()
        self.backend.release()

    @trains(within=True)
    @on_device
    def apply_gradients(self) -> None:
        """Make a step of the optimizer by the gradients that ways back have added up, and forget them.

        For losses and trainings of one's own, also through several models:

            y, backward = model.forward(x, train=True)
            dx = backward(2 * (y - target) / y.size)
            model.apply_gradients()

        A schedule has no end to measure by here, so the step is made at its highest rate.

        Raises:
            ConfigurationError: the model is not compiled, or its optimizer serves another model since.
        """
        rates = self.optimizer.learning_rates_at()
        self.bind()
        with self.computing(1):
            self.optimizer.update(self.backend, self._flat.values, self._flat.gradients, rates)
            self.zero_grad()

    @on_device
    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.bind()
        self._flat.gradients[...] = 0

    def as_floats(self, x: Array) -> Array:
        """Return x in the model's dtype; uint8 pixels 0 … 255 become 0 … 1."""
        return as_floats(x, self.dtype)

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
    ) -> "Model":
        """Choose how the model is trained; objects or their names. Returns the model.

        Arguments:
            metrics: what is measured besides the loss: a list of metrics or their names; None or [] for nothing. "auto"
                is the accuracy where labels are classes, or 0 and 1, and nothing for a regression; the first data that
                the model is fitted or evaluated with decide where the loss does not.
            jit: what a training asks of the backend is recorded once and then repeated, if all layers say `recordable`:
                on a GPU by `fit`, a whole step as one launch instead of one for each kernel, and on the CPU passes
                without the layers' Python. The numbers are the same either way; `why_not_repeated` says what stood in
                the way. Losses and metrics of one's own must not decide anything in Python, or this be turned off.

        Raises:
            ConfigurationError: an unknown name, a loss that does not fit the last layer, two metrics of one name, a
                group of the optimizer that no parameter belongs to, or a training goes on.
        """
        self.check_not_training("compiled")
        self._check_layers()
        loss = self._prepared(loss)
        chooses = isinstance(metrics, str) and metrics == "auto"
        chosen = chosen_metrics(["accuracy"] * loss.expects_classes if chooses else metrics)
        optimizer = Optimizer.get(optimizer)
        groups = optimizer.partition({path: parameter.shape for path, parameter in self.parameters().items()})
        self._trunk = self.network
        if isinstance(loss, CategoricalCrossEntropy) and isinstance(self.layers[-1], Softmax):
            self._trunk = self._without_last()  # the softmax is computed with the loss, as one kernel
        self._sliced_trunk = self._sliced
        if self._trunk is not self.network:
            self._sliced_trunk = Sliced(self._trunk, self._sliced.repeats.room)
        self.jit, self._gave_up_steps = checks.flag(jit, "jit"), ""
        vars(self).update(loss=loss, metrics=chosen, chooses_metrics=chooses)
        self._optimizer, self._groups = None, groups
        self._lay()
        self._optimizer = optimizer
        self._optimizer.reset(self.backend, self._flat.values, self._flat.layout)
        return self

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that `compile` was given."""
        if self._optimizer is None:
            raise ConfigurationError(
                "the model is not compiled; call model.compile(optimizer=…, loss=…) before training or evaluating it"
            )
        return self._optimizer

    @trains(within=False)
    @hinted
    @on_device
    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: float | None = None,
        batch_size: int | None = None,
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        shuffle: bool = True,
        augment: Sequence[Augmentation] | None = None,
        checkpoints: Checkpoints | str | os.PathLike[str] | None = None,
        resume: bool | str | os.PathLike[str] = False,
        check_numerics: bool = True,
        deterministic: bool = True,
        verbose: bool | int | str = "auto",
    ) -> History:
        """Train on host data: x (N, *input_shape) uint8 or floats, y class numbers (N,) or targets; return the history.

        Arrays of any library, lists and tables are taken. uint8 counts as 0 … 1 in images, as inputs and as targets;
        bools count as 0 and 1. Class numbers may be given for each position of an image, (N, H, W).

        A named network comes with a recipe, which also prepares the model before its first epoch and adds callbacks
        where it needs them.

        Arguments:
            epochs, batch_size: the recipe's where the model comes with one, else 1 and 128. The last of 9.9 epochs ends
                after nine tenths of its steps, rounded up.
            validation_data: a pair (x, y) that is scored after each epoch.
            augment: objects of `gpucnn.data.augment`, such as Flip() and Translate(4), which change the images of each
                batch a little; the same seed gives the same changes on every backend. None takes the recipe's.
            checkpoints: a folder, or a `Checkpoints(folder, …)` that says how often; the training is saved there from
                time to time, and the best model is kept. Ctrl-C then finishes the step and saves it.
            resume: True goes on with the training that was saved there, to the same bits as if it had not been
                interrupted, or begins it where there is none yet; a folder goes on with the one that was saved in that.
                The model must have been made, and `fit` be called, as before.
            check_numerics: end the training with a NumericError where gradients hold NaN or infinity, before they reach
                the weights; on a device that is noticed when the epoch is over. False goes on.
            deterministic: stay with the number of threads that the CPU engine has at the beginning, by which a batch is
                cut and sums are ordered: the same seed, data, versions and number give the same bits. False lets
                `set_num_threads` take effect between steps. A GPU's results repeat either way.
            verbose: "auto" shows a bar on a terminal and a line an epoch elsewhere; True, 1 or 2 lines; False or 0
                nothing.

        Raises:
            ShapeError, DTypeError, DataError: data or labels that the model cannot take.
            CheckpointError: what is to be resumed is damaged, or another training; says what differs.
            ConfigurationError: an argument makes no sense, or a training lies in the folder and is not to be resumed.
            NumericError: gradients that are not finite; says where, which way and in which step.
        """
        _ = self.optimizer  # refuses a model that is not compiled before any work is done
        self.bind()
        epochs = check_epochs(self._default("epochs", 1) if epochs is None else epochs)
        check_pair(validation_data, "validation_data")
        check_callbacks(callbacks)
        keeper, source = check_checkpoints(checkpoints, resume)
        wanted = self._default("augment", ()) if augment is None else augment
        augmentations = check_augmentations(wanted, self.input_shape, x)
        data = self._checked(x, y, shape=data_shape(augmentations, self.input_shape, x))
        validation = None if validation_data is None else self._checked(*validation_data, pair="validation_data")
        self._suit_metrics([pair[1] for pair in (data, validation) if pair is not None])
        warn_of_scale(self, data[0], "x", whole=True)
        warn_of_targets(self, data[1], "y")
        size = check_batch_size(self._default("batch_size", 128) if batch_size is None else batch_size)
        self._check_batches(len(data[0]), size)
        if self.recipe is not None:
            callbacks = [*self.recipe.callbacks(), *callbacks]
            if self.recipe.prepare is not None and self.epochs_seen == 0:
                self.recipe.prepare(self, data[0])
        return Training(
            model=self,
            data=data,
            epochs=epochs,
            batch_size=size,
            validation_data=validation,
            callbacks=callbacks,
            shuffle=checks.flag(shuffle, "shuffle"),
            augment=augmentations,
            checkpoints=keeper,
            resume=source,
            check_numerics=checks.flag(check_numerics, "check_numerics"),
            deterministic=checks.flag(deterministic, "deterministic"),
            verbose=check_verbose(verbose),
        ).run()

    def _check_batches(self, count: int, size: int) -> None:
        """Refuse batches that a layer cannot be trained on, before any work is done."""
        last = count % size or min(count, size)
        for layer in self.network.all_layers():
            if layer.min_batch_size() > last:
                raise ShapeError(
                    f"{layer.display_name}: needs {layer.min_batch_size()} samples in each batch, and {count:,} "
                    f"samples in batches of {size:,} leave a last one of {last:,}; choose another batch_size"
                )

    @trains(within=True)
    @on_device
    def train_on_batch(self, x: Any, y: Any) -> Array:
        """Make one step on a batch of host data; return its mean loss, still on the device.

        Outside `fit` a schedule has no end to measure by, so the step is made at its highest rate.
        """
        rates = self.optimizer.learning_rates_at()
        x, y = self._checked(x, y)
        try:
            with self.computing(len(x)):
                ((inputs, labels),) = to_device(self, (x, y))
                return self.step(self.as_floats(inputs), labels, rates)[0]
        except MemoryError as error:
            raise with_advice(self, (x, y), len(x), error) from error

    @on_device
    def step(
        self, x: Array, labels: Array, learning_rate: LearningRates, number: Array | None = None
    ) -> tuple[Array, Array]:
        """Make one step on device arrays; return the mean loss and the outputs before the step.

        With a fused softmax the outputs are logits. The learning rate is one number, or all that the optimizer's
        `learning_rates_at` returns, one for each of its groups. A step that is captured takes its rates and its
        `number`, from 1, as arrays () of one.
        """
        optimizer = self.optimizer
        self.bind()
        with self.computing(len(x)):
            if self.numerics is not None:
                self.numerics.begin_step()
            loss, outputs = self.loss_and_gradients(x, labels)
            if self.numerics is not None:
                self.numerics.look(x, labels, number)
            optimizer.update(self.backend, self._flat.values, self._flat.gradients, learning_rate, number)
        return loss, outputs

    def flat_gradients(self) -> Array:
        """Return all gradients as one flat array: a view."""
        self.bind()
        return self._flat.gradients

    @on_device
    def loss_and_gradients(self, x: Array, labels: Array, *, in_slices: bool = True) -> tuple[Array, Array]:
        """Return what `step` does, and leave the gradients in the parameters, without an update.

        The backend may take the batch in slices, on several threads, unless told otherwise.

        A mean over N samples gives each of them a gradient of about 1/N, which float16 can hardly hold: there the loss
        is scaled by a power of two of about N on the way back, and the gradients in float32 by its inverse.
        """
        scale = 2.0 ** math.ceil(math.log2(len(x))) if self.dtype == "float16" else 1.0
        with self.computing(len(x)):
            self.zero_grad()  # which binds
            if in_slices:
                outputs, network_backward = self.training_pass(x, repeat=self.jit)
            else:
                outputs, network_backward = self._trunk.forward(x, train=True, need_dx=False)
            exact = outputs.astype(self.state_dtype, copy=False)
            loss, loss_backward = self._loss_of(exact, labels)
            network_backward(loss_backward(scale).astype(outputs.dtype, copy=False))
            if scale != 1.0:
                self._flat.gradients *= 1.0 / scale
        return loss, exact

    def training_pass(self, x: Array, *, repeat: bool) -> tuple[Array, Backward]:
        """Return the outputs for device floats and the way back, which leaves the gradients in the parameters.

        With a fused softmax the outputs are logits. With `repeat` the pass may be recorded, or repeat one that was.
        """
        return self._sliced_trunk.forward(self.backend, x, train=True, need_dx=False, repeat=repeat)

    @property
    def why_not_repeated(self) -> str:
        """Why passes of training are not recorded and repeated, or not any more; "" if nothing stands in the way."""
        return self._gave_up_steps or self._sliced_trunk.repeats.gave_up

    def give_up_repeating(self, reason: str) -> None:
        """Record no step any more on this backend, for a reason that `why_not_repeated` returns from now on."""
        self._gave_up_steps = reason

    def _score(self, x: Array, labels: Array) -> tuple[Array, Array]:
        """Return the mean loss and the outputs (logits with a fused softmax) of device arrays; trains nothing."""
        self._check_layers()
        with self.computing(len(x)):
            outputs, _ = self._sliced_trunk.forward(self.backend, x, train=False, repeat=self.jit)
            exact = outputs.astype(self.state_dtype, copy=False)
            return self._loss_of(exact, labels)[0], exact

    def _loss_of(self, outputs: Array, labels: Array) -> tuple[Array, Any]:
        assert self.loss is not None
        if self._trunk is not self.network:
            assert isinstance(self.loss, CategoricalCrossEntropy)
            return self.loss.from_logits_fused(outputs, labels)
        return checked_loss(self.loss, outputs, labels)

    @hinted
    @on_device
    def evaluate(
        self, x: Any, y: Any = None, batch_size: int = 256, *, tta: Views | str | None = None, verbose: Any = 0
    ) -> dict[str, float]:
        """Return {"loss": …, "accuracy": …} over host data, a dictionary by name: `scores["accuracy"]`.

        Who wants them side by side writes `loss, accuracy = model.evaluate(x, y).values()`.

        Arguments:
            tta: test-time augmentation, as `predict` takes it.
            verbose: 0, False or "auto"; nothing is shown.

        Raises:
            ShapeError, DTypeError, DataError: data or labels that the model cannot take.
            ConfigurationError: the model is not compiled, an argument makes no sense, or a metric means nothing here.
        """
        _ = self.optimizer
        check_nothing_shown(verbose, "evaluate")
        chosen, size = check_tta(tta, self.input_shape), check_batch_size(batch_size)
        x, y = self._checked(x, y)
        self._suit_metrics([y])
        warn_of_scale(self, x, "x", whole=True)
        warn_of_targets(self, y, "y")
        ((inputs, labels),) = to_device(self, (x, y))
        if chosen is None:
            return evaluate(self, (inputs, labels), size)
        totals = self.new_totals()
        fused = self._trunk is not self.network  # then the loss wants logits

        def score(part: slice) -> None:
            outputs = self._predict_views(inputs[part], chosen, logits=fused)
            totals.add(self._loss_of(outputs, labels[part])[0], outputs, labels[part])

        by_parts(self, len(labels), size, score)
        return totals.read()

    @hinted
    @on_device
    def predict(self, x: Any, batch_size: int = 256, *, tta: Views | str | None = None, verbose: Any = 0) -> Any:
        """Return the network's outputs for host data as a host array (N, K), float32 for a model of float16.

        No more than `batch_size` samples are in the network at once, and fewer where memory does not suffice.

        Arguments:
            tta: test-time augmentation, "flip", "flip+shift" or a `gpucnn.data.tta.Views`: the outputs are averaged
                over several views of each image; where the network ends with a softmax, the logits before it.
            verbose: 0, False or "auto"; nothing is shown.
        """
        check_nothing_shown(verbose, "predict")
        x, size = check_inputs(x, self.input_shape, dtype=self.dtype), check_batch_size(batch_size)
        warn_of_scale(self, x, "x", whole=False)
        chosen = check_tta(tta, self.input_shape)

        def outputs(part: slice) -> Any:
            if chosen is not None:
                return self.backend.to_host(self._predict_views(self.backend.from_host(x[part]), chosen))
            return self.backend.to_host(self.forward(x[part])[0].astype(self.state_dtype, copy=False))

        return join(by_parts(self, len(x), size, outputs))

    def _predict_views(self, x: Array, views: Views, *, logits: bool = False) -> Array:
        """Return the mean of the outputs over views of images on the device; of the logits if a softmax is last."""
        last, network = self.layers[-1], self._sliced
        if isinstance(last, Softmax):
            network = self._sliced_trunk if self._trunk is not self.network else Sliced(self._without_last())
        total = 0.0
        self._check_layers()
        with self.computing(len(x)):
            for view, weight in views.of(self.backend, x, self.dtype):
                outputs, _ = network.forward(self.backend, view, train=False, repeat=self.jit)
                total = total + weight * outputs.astype(self.state_dtype, copy=False)
            return last.forward(total, train=False)[0] if isinstance(last, Softmax) and not logits else total

    def _without_last(self) -> Sequential:
        """Return the layers but for the last one as a network."""
        trunk = Sequential(self.layers[:-1])
        trunk.ensure_built(self.input_shape, None)
        return trunk

    @on_device
    def refresh_statistics(self, x: Any, *, batch_size: int = 128) -> "Model":
        """Compute the running statistics of all batch norms anew, by host data (N, *input_shape); returns the model.

        They become the means over batches, each counting by its samples, with the weights as they are now: for weights
        that were averaged or loaded, whose statistics were collected with others. Nothing is trained, and random
        streams stay where they are.

        Raises:
            ShapeError: a batch norm gets a batch with one value a channel, such as a last one of one sample.

        Source: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging weights leads to wider optima" (2018).
        """
        refresh_statistics(self, check_inputs(x, self.input_shape, dtype=self.dtype), check_batch_size(batch_size))
        return self

    def new_totals(self) -> RunningMeans:
        """Return empty sums of loss and metrics on the model's backend."""
        return RunningMeans(self.backend, self.metrics)

    def _checked(self, x: Any, y: Any, pair: str = "", shape: Shape | None = None) -> tuple[Any, Any]:
        """Return inputs and labels as checked arrays on the host; `pair` is the argument that holds both, if any."""
        names = (f"{pair}[0]", f"{pair}[1]") if pair else ("x", "y")
        if y is None:
            raise DataError(
                f"{names[1]} is missing; pass inputs and labels as two arrays. Loaders, generators and batches are to "
                "be collected first, such as with np.concatenate, and a whole data set taken apart: x, y = data"
            )
        x = check_inputs(x, self.input_shape if shape is None else shape, names[0], self.dtype)
        task = MeanSquaredError() if self.loss is None else self.loss
        return x, check_labels(y, len(x), self.output_shape, task, names[1], self.state_dtype, self.input_shape)

    def _suit_metrics(self, labels: Sequence[Any]) -> None:
        """Choose the form of each metric for data sets with these labels; refuse one that means nothing for them."""
        assert self.loss is not None
        wanted = self.metrics or ([Accuracy()] if self.chooses_metrics else [])
        try:
            suited = [metric.suited(self.loss, self.output_shape, labels) for metric in wanted]
        except ConfigurationError:
            if not self.chooses_metrics:
                raise
            suited = []
        vars(self)["metrics"] = suited

    def _default(self, setting: str, otherwise: Any) -> Any:
        return otherwise if self.recipe is None else getattr(self.recipe, setting)

    # --- looking and saving -------------------------------------------------------------------

    def summary(self) -> None:
        """Print a table of the layers: output shape, parameters, floating-point operations, bytes of the output.

        Below it stands how many parameters are trained, and how many are frozen.
        """
        from gpucnn.core.console import PlainConsole
        from gpucnn.engine.profiling import summary_table

        PlainConsole().print(summary_table(self))

    @on_device
    def profile(self, x: Any, y: Any, *, repeats: int = 10) -> "Profile":
        """Time every layer's forward and backward pass on a batch; returns a table that prints itself."""
        from gpucnn.engine.profiling import profile

        x, y = self._checked(x, y)
        return profile(self, x, y, repeats)

    @on_device
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, architecture and training settings to a safetensors file; `gpucnn.load` reads it."""
        from gpucnn.saving.model_file import save

        save(self, path)

    def __repr__(self) -> str:
        return for_output(
            f"<Model {self.name!r}: {len(self.layers)} layers, {self.input_shape} → {self.output_shape}, "
            f"{sum(p.size for p in self.parameters().values()):,} parameters, {self.dtype} on {self.backend.name}>"
        )
