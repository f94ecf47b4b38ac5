"""`Model`: an `Executor` with the verbs that a user types, and `load`."""

import os
from collections.abc import Sequence
from glob import escape
from typing import TYPE_CHECKING, Any

from gpucnn.backends import Array, Backend
from gpucnn.callbacks import Callback, check_callbacks
from gpucnn.core import checks
from gpucnn.core.hints import hinted
from gpucnn.core.text import for_output
from gpucnn.data.augment import Augmentation, check_augmentations, data_shape
from gpucnn.data.batches import check_batch_size, check_epochs, check_inputs, check_labels, concatenate
from gpucnn.data.tta import Views, check_tta
from gpucnn.engine.arguments import check_nothing_shown, check_pair, check_verbose
from gpucnn.engine.batch_norm_refresh import recalibrate_batch_norm
from gpucnn.engine.bound_network import on_device
from gpucnn.engine.claims import trains
from gpucnn.engine.declarations import warn_of_undeclared
from gpucnn.engine.evaluation import evaluate, in_batches
from gpucnn.engine.executor import Executor
from gpucnn.engine.memory import suggest_batch_size, to_device
from gpucnn.engine.scale import warn_of_scale, warn_of_targets
from gpucnn.errors import CheckpointError, ConfigurationError, DataError, GpucnnError, ShapeError
from gpucnn.initializers import element_budget
from gpucnn.layers.activation import Softmax
from gpucnn.layers.base import Shape
from gpucnn.losses import Loss, MeanSquaredError
from gpucnn.metrics import Accuracy, Metric
from gpucnn.optimizers import Optimizer
from gpucnn.saving import model_file
from gpucnn.training.checkpoints import Checkpoints, check_checkpoints
from gpucnn.training.history import History
from gpucnn.training.loop import Trainer
from gpucnn.training.recipe import Recipe
from gpucnn.training.session import Training

if TYPE_CHECKING:
    from gpucnn.engine.profiling import Profile


class Model(Executor):
    """A network with its weights, and after `compile` with its loss and optimizer.

    Arguments
        layers       a list of layers, or a `Sequential`
        input_shape  of one sample: (H, W, C) for images
        seed         of weights, data order and dropout: the same seed gives the same bits
        backend      "auto", "numpy", "cupy" or "cupy:N"
        dtype        "float32", "float64", or on a GPU "float16": layers then compute in half precision, while
                     parameters, their gradients, the statistics of batch norms and the loss stay in float32
        allow_tf32   on a GPU, let float32 products round their factors to 10 bits, which tensor cores multiply many
                     times as fast; None uses the environment variable GPUCNN_TF32, which is off unless it is 1

    Inputs are (N, *input_shape), uint8 or floats: uint8 pixels 0 … 255 count as 0 … 1, floats as they are.

    Models made of the same layers, such as `Model([*base.layers[:-2], Dense(2), Softmax()], …)`, share their weights,
    whichever of them is trained; they need the same backend and dtype. `copy.deepcopy` gives a copy its own weights.

    Raises
        ShapeError, ConfigurationError  a layer does not fit the one before it, or an argument is not valid
        BackendUnavailable              the named backend is unavailable on this machine

    Example
        >>> (x, y), _ = datasets.synthetic_digits(200)
        >>> network = [layers.Conv2D(8, 3), layers.ReLU(), layers.Flatten(), layers.Dense(10), layers.Softmax()]
        >>> model = Model(network, input_shape=(28, 28, 1)).compile("adam", "categorical_crossentropy")
        >>> history = model.fit(x, y, epochs=2, validation_data=(x, y), verbose=0)
        >>> len(history.history["val_accuracy"]), sorted(model.evaluate(x, y)), model.predict(x[:3]).shape
        (2, ['accuracy', 'loss'], (3, 10))
    """

    class_names: list[str] | None = None
    recipe: Recipe | None = None  # what `fit` uses where it is not told otherwise
    training: Training | None = None  # the run of the `fit` that is running, for callbacks

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
        """Train on host data: x (N, *input_shape) uint8 or floats, y labels (N,) or targets; return the history.

        Arrays of any library, lists and tables are accepted. uint8 counts as 0 … 1 in images, as inputs and as targets;
        bools count as 0 and 1. Labels can also be given for each position of an image, (N, H, W).

        A named network has a recipe, which may prepare the model before its first epoch and add callbacks.

        Arguments:
            epochs, batch_size: those of the model's recipe by default, else 1 and 128. The last of 9.9 epochs ends
                after nine tenths of its steps, rounded up.
            validation_data: a pair (x, y) that the model is evaluated on after each epoch.
            augment: augmentations from `gpucnn.data.augment`, such as Flip() and Translate(4), which change the images
                of each batch at random; the same seed gives the same changes on every backend. None uses the recipe's.
            checkpoints: a folder, or a `Checkpoints(folder, …)` that says how often; the run is saved there from time
                to time, and the best model is kept. Ctrl-C then finishes the step and saves the run.
            resume: True resumes the run that was saved there, bitwise identically to one that was not interrupted, or
                starts it where there is none yet; a folder resumes the run that was saved in that one. Make the model
                and call `fit` as before.
            check_numerics: raise NumericError if gradients hold NaN or infinity, before they reach the weights; on a
                GPU that is noticed when the epoch is over. False continues.
            deterministic: keep the number of threads that the CPU engine has at the start, on which the shards of a
                batch and the order of sums depend: the same seed, data, versions and number give the same bits. False
                lets `set_num_threads` take effect between steps. Results on a GPU are reproducible either way.
            verbose: "auto" shows a bar on a terminal and a line per epoch elsewhere; True, 1 or 2: lines; False or 0:
                nothing.

        Raises:
            ShapeError, DTypeError, DataError: data or labels do not fit the model.
            CheckpointError: the run to be resumed is damaged, or is another one; says what differs.
            ConfigurationError: an argument is not valid, or the folder holds a run that is not to be resumed.
            NumericError: gradients are not finite; gives the layer, forward or backward, and the step.
        """
        _ = self.optimizer  # raises before any work is done if the model is not compiled
        self.bind()
        epochs = check_epochs(self._recipe_default("epochs", 1) if epochs is None else epochs)
        check_pair(validation_data, "validation_data")
        check_callbacks(callbacks)
        checkpoints, source = check_checkpoints(checkpoints, resume)
        augment = self._recipe_default("augment", ()) if augment is None else augment
        augmentations = check_augmentations(augment, self.input_shape, x)
        data = self._check_data(x, y, shape=data_shape(augmentations, self.input_shape, x))
        validation = None if validation_data is None else self._check_data(*validation_data, pair="validation_data")
        self._suit_metrics([pair[1] for pair in (data, validation) if pair is not None])
        warn_of_scale(self, data[0], "x", whole=True)
        warn_of_targets(self, data[1], "y")
        size = check_batch_size(self._recipe_default("batch_size", 128) if batch_size is None else batch_size)
        self._check_batches(len(data[0]), size)
        warn_of_undeclared(self, size)
        if self.recipe is not None:
            callbacks = [*self.recipe.callbacks(), *callbacks]
            if self.recipe.prepare is not None and self.epochs_trained == 0:
                self.recipe.prepare(self, data[0])
        self.training = trainer = Trainer(
            model=self,
            data=data,
            epochs=epochs,
            batch_size=size,
            validation_data=validation,
            callbacks=callbacks,
            shuffle=checks.flag(shuffle, "shuffle"),
            augment=augmentations,
            checkpoints=checkpoints,
            resume=source,
            check_numerics=checks.flag(check_numerics, "check_numerics"),
            deterministic=checks.flag(deterministic, "deterministic"),
            verbose=check_verbose(verbose),
        )
        try:
            return trainer.fit()
        finally:
            self.training = None

    def _check_batches(self, count: int, size: int) -> None:
        """Reject batches that are too small to train a layer on, before any work is done."""
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
        """Run one training step on a batch of host data; return its mean loss, still on the device.

        Outside `fit` a schedule does not know how long the training run is, so the step uses its highest rate.
        """
        rates = self.optimizer.learning_rates_at()
        x, y = self._check_data(x, y)
        try:
            with self.execution_context(len(x)):
                ((inputs, labels),) = to_device(self, (x, y))
                finite_check = None if self.training is None else self.training.finite_check
                return self.train_step(self.as_floats(inputs), labels, rates, check=finite_check)[0]
        except MemoryError as error:
            raise suggest_batch_size(self, (x, y), len(x), error) from error

    @hinted
    @on_device
    def evaluate(
        self, x: Any, y: Any = None, batch_size: int = 256, *, tta: Views | str | None = None, verbose: Any = 0
    ) -> dict[str, float]:
        """Return the loss and metrics over host data by name: {"loss": …, "accuracy": …}.

        `loss, accuracy = model.evaluate(x, y).values()` unpacks them.

        Arguments:
            tta: test-time augmentation, as `predict` takes it.
            verbose: 0, False or "auto"; nothing is shown.

        Raises:
            ShapeError, DTypeError, DataError: data or labels do not fit the model.
            ConfigurationError: the model is not compiled, or an argument or a metric is not valid here.
        """
        _ = self.optimizer
        check_nothing_shown(verbose, "evaluate")
        chosen, size = check_tta(tta, self.input_shape), check_batch_size(batch_size)
        x, y = self._check_data(x, y)
        self._suit_metrics([y])
        warn_of_scale(self, x, "x", whole=True)
        warn_of_targets(self, y, "y")
        ((inputs, labels),) = to_device(self, (x, y))
        if chosen is None:
            return evaluate(self, (inputs, labels), size)
        totals = self.new_metrics()

        def score(part: slice) -> None:
            outputs = self._predict_views(inputs[part], chosen, logits=self._fuses_softmax)
            totals.add(self._compute_loss(outputs, labels[part])[0], outputs, labels[part])

        in_batches(self, len(labels), size, score)
        return totals.read()

    @hinted
    @on_device
    def predict(self, x: Any, batch_size: int = 256, *, tta: Views | str | None = None, verbose: Any = 0) -> Any:
        """Return the network's outputs for host data as a host array (N, K), float32 for a float16 model.

        Samples are processed in batches of `batch_size`, or smaller ones where memory does not suffice.

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

        return concatenate(in_batches(self, len(x), size, outputs))

    def _predict_views(self, x: Array, views: Views, *, logits: bool = False) -> Array:
        """Return the mean of the outputs over views of images on the device; of the logits if a softmax is last."""
        last = self.layers[-1]
        ends_with_softmax = isinstance(last, Softmax)
        total = 0.0
        self._check_layers()
        with self.execution_context(len(x)):
            for view, weight in views.of(self.backend, x, self.dtype):
                outputs, _ = self._sharded.forward(
                    self.backend, view, train=False, logits=ends_with_softmax, capture=self.jit
                )
                total = total + weight * outputs.astype(self.state_dtype, copy=False)
            return last.forward(total, train=False)[0] if ends_with_softmax and not logits else total

    @on_device
    def recalibrate_batch_norm(self, x: Any, *, batch_size: int = 128) -> "Model":
        """Recompute the running statistics of all batch norms from host data (N, *input_shape); returns the model.

        They become the means over batches, weighted by batch size, with the current weights: for weights that were
        averaged or loaded, whose statistics belong to others. Nothing is trained, and random streams do not advance.

        Raises:
            ShapeError: a batch norm gets a batch with one value per channel, such as a last one of one sample.

        Source: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging weights leads to wider optima" (2018).
        """
        recalibrate_batch_norm(self, check_inputs(x, self.input_shape, dtype=self.dtype), check_batch_size(batch_size))
        return self

    def _check_data(self, x: Any, y: Any, pair: str = "", shape: Shape | None = None) -> tuple[Any, Any]:
        """Return checked inputs and labels as host arrays; `pair` is the argument that holds both, if any."""
        names = (f"{pair}[0]", f"{pair}[1]") if pair else ("x", "y")
        if y is None:
            raise DataError(
                f"{names[1]} is missing; pass inputs and labels as two arrays. Collect the batches of a loader or "
                "generator first, such as with np.concatenate, and unpack a whole data set: x, y = data"
            )
        x = check_inputs(x, self.input_shape if shape is None else shape, names[0], self.dtype)
        task = MeanSquaredError() if self.loss is None else self.loss
        return x, check_labels(y, len(x), self.output_shape, task, names[1], self.state_dtype, self.input_shape)

    def _suit_metrics(self, labels: Sequence[Any]) -> None:
        """Choose the form of each metric for data with these labels; reject a metric that is not defined for them."""
        assert self.loss is not None
        wanted = self.metrics or ([Accuracy()] if self.chooses_metrics else [])
        try:
            suited = [metric.suited(self.loss, self.output_shape, labels) for metric in wanted]
        except ConfigurationError:
            if not self.chooses_metrics:
                raise
            suited = []
        vars(self)["metrics"] = suited

    def _recipe_default(self, setting: str, otherwise: Any) -> Any:
        return otherwise if self.recipe is None else getattr(self.recipe, setting)

    def config(self) -> dict[str, Any]:
        """Return the settings as plain data, with the class names and the recipe."""
        recipe = None if self.recipe is None else self.recipe.config()
        return super().config() | {"class_names": self.class_names, "recipe": recipe}

    # --- reports and files --------------------------------------------------------------------

    def summary(self) -> None:
        """Print a table of the layers: output shape, parameters, FLOPs and output size.

        The last rows are the numbers of trainable and of frozen parameters.
        """
        from gpucnn.core.console import PlainConsole
        from gpucnn.engine.profiling import summary_table

        PlainConsole().print(summary_table(self))

    @on_device
    def profile(self, x: Any, y: Any, *, repeats: int = 10) -> "Profile":
        """Time every layer's forward and backward pass on a batch; returns a table that can be printed."""
        from gpucnn.engine.profiling import profile

        x, y = self._check_data(x, y)
        return profile(self, x, y, repeats)

    @on_device
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, architecture and training settings to a safetensors file; `gpucnn.load` reads it."""
        model_file.save(self, path)

    def __repr__(self) -> str:
        return for_output(
            f"<Model {self.name!r}: {len(self.layers)} layers, {self.input_shape} → {self.output_shape}, "
            f"{sum(p.size for p in self.parameters().values()):,} parameters, {self.dtype} on {self.backend.name}>"
        )


def load(path: str | os.PathLike[str], backend: str | Backend = "auto", dtype: str | None = None) -> Model:
    """Load a model that `save` wrote, onto any backend; `dtype` is that of the file unless another is given.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or does not fit itself; says which.

    Example:
        >>> model = networks.lenet()
        >>> model.save("lenet.safetensors")
        >>> load("lenet.safetensors", backend="numpy")
        <Model 'lenet': 14 layers, (28, 28, 1) → (10,), 61,706 parameters, float32 on numpy>
    """
    path = model_file.find(path)
    described, state = model_file.read(path)
    try:
        return _build(described, state, backend, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (GpucnnError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise CheckpointError(f"{path}: does not describe a model that can be built: {error}") from error


def _build(described: dict[str, Any], state: dict[str, Any], backend: str | Backend, dtype: str | None) -> Model:
    """Return the model that `Model.config` described, with these weights."""
    input_shape = described.get("input_shape")
    with element_budget(sum(array.size for array in state.values())):  # which is what the file holds
        model = Model(
            model_file.read_network(described.get("network")),
            tuple(input_shape) if isinstance(input_shape, list) else (),
            seed=described.get("seed", 0),
            backend=backend,
            dtype=described.get("dtype", "float32") if dtype is None else dtype,
            name=str(described.get("name", "model")),
        )
    model.load_state_dict(state)
    training = described.get("training")
    if isinstance(training, dict):
        metrics = training.get("metrics", [])
        model.compile(
            Optimizer.from_config(training.get("optimizer")),
            Loss.from_config(training.get("loss")),
            "auto" if metrics == "auto" else [Metric.from_config(metric) for metric in metrics],
        )
    frozen = described.get("frozen", [])  # files of older versions lack it
    if frozen:
        model.freeze(*(escape(str(path)) for path in frozen))
    model.epochs_trained = int(described.get("epochs_trained", described.get("epochs_seen", 0)))
    names, recipe = described.get("class_names"), described.get("recipe")
    model.class_names = [str(name) for name in names] if isinstance(names, list) else None
    model.recipe = Recipe.from_config(recipe) if isinstance(recipe, dict) else None
    return model
