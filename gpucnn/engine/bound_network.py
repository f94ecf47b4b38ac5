"""`BoundNetwork`: a network whose state lies in flat arrays on one backend, and which parameters of it are trained."""

from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Self

from gpucnn import rng
from gpucnn.backends import Array, Backend, get_backend
from gpucnn.backends.reference import as_floats
from gpucnn.core.config import Closed
from gpucnn.core.hints import Function, no_such_attribute
from gpucnn.engine.arguments import check_dtype, check_precision, check_shape
from gpucnn.engine.claims import Claim
from gpucnn.engine.flat_state import FlatState, check_placed, check_same_layers, check_shared_dtype
from gpucnn.errors import ConfigurationError
from gpucnn.layers.base import Layer, Parameter, Shape
from gpucnn.layers.containers import Sequential
from gpucnn.optimizers.layout import Layout
from gpucnn.optimizers.patterns import check_patterns, matched


def on_device(verb: Function) -> Function:
    """Run a method on its backend's device, and leave the calling thread on the one that it was on."""

    @wraps(verb)
    def call(bound: Any, *args: Any, **options: Any) -> Any:
        with bound.backend.on_device():
            return verb(bound, *args, **options)

    return call  # type: ignore[return-value]


class BoundNetwork(Closed):
    """A network that is built for one input shape, with its parameters and buffers in flat arrays on a backend.

    Several of them may share layers, and so their weights. The constructor builds the layers; `_place`, which a
    subclass calls when it is complete, lays their state out.
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

    def __init__(
        self, layers: list[Layer] | Sequential, input_shape: Shape, seed: int, backend: str | Backend, dtype: str
    ) -> None:
        self.network = layers if isinstance(layers, Sequential) else Sequential(layers)
        if not self.network.layers:
            raise ConfigurationError("a model needs at least one layer; got an empty list")
        self.input_shape, self.dtype = check_shape(input_shape), check_dtype(dtype)
        self.backend = get_backend(backend)
        check_precision(dtype, self.backend)
        self.output_shape = self.network.ensure_built(self.input_shape, rng.host_generator(seed, "weights"))
        check_shared_dtype(self.network, self.state_dtype)
        self._groups = [list(self.parameters())]  # of the optimizer
        self._paused: dict[str, Parameter] = {}  # those of groups whose epochs are over, frozen until the run ends
        self.claim: Claim | None = None  # the method that is training it

    if not TYPE_CHECKING:  # with it, a type checker would accept any name

        def __getattr__(self, name: str) -> Any:
            raise no_such_attribute(self, name)

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
        """Load what `state_dict` returned; raises CheckpointError where it does not fit."""
        self._check_layers()
        self.network.load_state_dict(state)

    @property
    def state_dtype(self) -> str:
        """The dtype of parameters, gradients, buffers and the loss: float32 where layers compute in float16."""
        return "float32" if self.dtype == "float16" else self.dtype

    def to(self, backend: str | Backend, dtype: str | None = None) -> Self:
        """Move weights and optimizer state to another backend, and compute in another dtype; returns the model.

        Raises:
            ConfigurationError: a float16 model is moved to a backend that does not compute in it, or the model is
                being trained.
        """
        self.check_not_training("moved")
        target, dtype = get_backend(backend), self.dtype if dtype is None else check_dtype(dtype)
        check_precision(dtype, target)
        self._place(target, dtype)
        return self

    def _place(self, backend: Backend, dtype: str) -> None:
        """Move all state to a backend, into flat arrays there."""
        source = self.backend
        vars(self).update(backend=backend, dtype=dtype)
        self.network.to(backend, self.state_dtype)
        self._lay_out(source)

    @on_device
    def _lay_out(self, source: Backend | None = None) -> None:
        """Lay all parameters, gradients and buffers out in new flat arrays; they come from another backend, if any."""
        self._flat = FlatState(self.network, self.backend, self.state_dtype, self._groups)
        self._follow_frozen()

    def _follow_frozen(self) -> None:
        """Let everything that depends on which parameters are frozen follow them."""
        self._flat.average_over(self._flat.layout.without(self.frozen_parameters()))
        for layer in self.network.all_layers():
            if isinstance(layer, Sequential):
                layer.refresh_trainable()

    def bind(self) -> bool:
        """Make sure that the layers' state lies in this model's flat arrays; return whether it was laid out again.

        That is needed where another model of the same layers has laid it out in its own, or a parameter was replaced.
        Values, gradients and the optimizer's state stay what they are.

        Raises:
            ConfigurationError: the layers were moved to another backend or dtype, or replaced by others.
        """
        if self._flat.is_bound():
            if not self._flat.knows_frozen():
                self._follow_frozen()
            return False
        self._check_layers()
        before = self._flat.layout
        self._lay_out()
        if self._flat.layout == before:
            self._flat.layout = before  # the same object, for callbacks that compare by identity
        return True

    def _check_layers(self) -> None:
        """Reject layers that were changed or moved since the model was made, as `bind` does; change nothing."""
        if not self._flat.is_bound():
            check_same_layers(self.network, self._flat.layout)
            remedy = f"model.to({self.backend.name!r}, {self.dtype!r})"
            check_placed(self.network, self.backend, self.state_dtype, remedy)

    def flat_state(self) -> list[Array]:
        """Return what an average of weights goes over, views: parameters that are not frozen, and buffers of floats.

        The buffers are one flat array, the last. Before it stands one for each of `flat_ranges`.
        """
        self.bind()
        return self._flat.averageable

    def flat_ranges(self) -> list[slice]:
        """Return the contiguous ranges of the flat parameters that are not frozen.

        Those of groups whose epochs are over count as not frozen: their averages still follow them.
        """
        self.bind()
        return self._flat.averageable_ranges

    def flat_values(self) -> Array:
        """Return all parameters as one flat array: a view."""
        self.bind()
        return self._flat.values

    def flat_layout(self) -> Layout:
        """Return where each parameter lies in the flat arrays; a new object where that has changed."""
        return self._flat.layout

    def frozen_parameters(self) -> list[str]:
        """Return the paths of frozen parameters, without those that `fit` has frozen for the time being."""
        return [path for path, parameter in self.parameters().items() if parameter.frozen and path not in self._paused]

    def as_floats(self, x: Array) -> Array:
        """Return x in the model's dtype; uint8 pixels 0 … 255 become 0 … 1."""
        return as_floats(x, self.dtype)

    def flat_gradients(self) -> Array:
        """Return all gradients as one flat array: a view."""
        self.bind()
        return self._flat.gradients

    # --- what is trained ----------------------------------------------------------------------

    def freeze(self, *what: str | Layer) -> Self:
        """Exclude parameters from training until `unfreeze`; returns the model.

        No optimizer, weight decay or weight average changes them, and their gradients are not computed. The running
        statistics of a batch norm are still updated. Models that share a parameter share whether it is frozen.

        Arguments:
            what: patterns such as "conv2d.weight" or "*.bias", names of layers ("conv2d", "residual.*") or layers
                themselves, which stand for all of their parameters; nothing for the whole model.

        Raises:
            ConfigurationError: a pattern matches nothing (lists the paths), a layer is not part of this model, or the
                model is being trained.

        Example:
            >>> (x, y), _ = datasets.synthetic_digits(64)
            >>> model = networks.feedforward(seed=0)
            >>> before = model.state_dict()
            >>> history = model.freeze("dense.weight").fit(x, y, epochs=1, verbose=0)
            >>> [path for path, value in model.state_dict().items() if (value != before[path]).any()]
            ['dense.bias', 'dense_1.weight', 'dense_1.bias', 'dense_2.weight', 'dense_2.bias']
        """
        return self._set_frozen(what, frozen=True)

    def unfreeze(self, *what: str | Layer) -> Self:
        """Train frozen parameters again; takes what `freeze` takes, and returns the model."""
        return self._set_frozen(what, frozen=False)

    @on_device
    def _set_frozen(self, what: tuple[str | Layer, ...], frozen: bool) -> Self:
        self.check_not_training("frozen or unfrozen", between_steps=True)
        self.bind()
        for path, parameter in self._parameters_of(what).items():
            parameter.frozen = frozen
            self._paused.pop(path, None)
        self._flat.knows_frozen()
        self._follow_frozen()
        return self

    def check_not_training(self, what: str, *, between_steps: bool = False) -> None:
        """Reject what steps that are being made, and may be captured, would not follow, such as to be "moved".

        What is allowed `between_steps` is rejected in another thread alone.
        """
        claim = self.claim
        if claim is not None and claim.holds and (not claim.here or (claim.steps and not between_steps)):
            where = " in another thread" if between_steps else ""
            raise ConfigurationError(
                f"the model cannot be {what} while {claim.method} is running{where}: its steps may be captured; do it "
                "before or after it"
            )

    def _parameters_of(self, what: tuple[str | Layer, ...]) -> dict[str, Parameter]:
        """Return the parameters that patterns and layers stand for, by path; all of them for nothing."""
        parameters, own = self.parameters(), {id(layer) for layer in self.network.all_layers()}
        given = [item for item in what if isinstance(item, Layer)]
        named = [item for item in what if not isinstance(item, Layer)]
        for layer in given:
            if id(layer) not in own:
                raise ConfigurationError(
                    f"{layer!r} is not a layer of this model; pass one of model.layers, or its name"
                )
        inside = {id(parameter) for layer in given for parameter in layer.parameters().values()}
        patterns = check_patterns(named or "*", "what is frozen or unfrozen") if named or not given else ()
        named_paths = set(matched(parameters, patterns))
        return {path: p for path, p in parameters.items() if path in named_paths or id(p) in inside}
