"""`NamedNetwork`: a function that returns layers and an optimizer, with the recipe that trains them."""

import functools
from collections.abc import Callable

from gpucnn.backends import Backend
from gpucnn.core.hints import hinted
from gpucnn.errors import ConfigurationError
from gpucnn.layers import Layer, Normalization
from gpucnn.losses import CategoricalCrossEntropy, Loss
from gpucnn.model import Model
from gpucnn.optimizers import Optimizer
from gpucnn.training.recipe import Recipe

Shape = tuple[int, int, int]
LayersAndOptimizer = tuple[list[Layer], Optimizer]

MNIST_IMAGE, CIFAR10_IMAGE = (28, 28, 1), (32, 32, 3)

# mean and standard deviation of the training images per channel, of pixel / 255
MNIST_STATISTICS = 0.1307, 0.3081
CIFAR10_STATISTICS = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


class NamedNetwork:
    """A named network; calling it makes a model of it, compiled with its recipe.

    Example
        >>> model = networks.resnet20(num_classes=100, seed=1)
        >>> model.output_shape, model.recipe.epochs
        ((100,), 30)
    """

    def __init__(
        self, design: Callable[[Shape, int], LayersAndOptimizer], name: str, image: Shape, recipe: Recipe, loss: Loss
    ) -> None:
        functools.update_wrapper(self, design)
        self.name, self.image, self.recipe = name, image, recipe
        self._design, self._loss = design, loss

    @hinted
    def __call__(
        self,
        seed: int = 0,
        backend: str | Backend = "auto",
        *,
        input_shape: Shape | None = None,
        num_classes: int = 10,
        dtype: str = "float32",
        allow_tf32: bool | None = None,
    ) -> Model:
        """Return a compiled model; the arguments are those of `Model`."""
        shape = self.image if input_shape is None else input_shape
        layers, optimizer = self._design(shape, num_classes)
        model = Model(layers, shape, seed=seed, backend=backend, dtype=dtype, allow_tf32=allow_tf32, name=self.name)
        model.compile(optimizer=optimizer, loss=self._loss, metrics=["accuracy"])
        model.recipe = self.recipe
        return model


NETWORKS: dict[str, NamedNetwork] = {}


def register(
    name: str, image: Shape, recipe: Recipe, loss: Loss | None = None
) -> Callable[[Callable[[Shape, int], LayersAndOptimizer]], NamedNetwork]:
    """Register a function that returns layers and an optimizer for an image shape and a number of classes."""

    def decorate(design: Callable[[Shape, int], LayersAndOptimizer]) -> NamedNetwork:
        NETWORKS[name] = NamedNetwork(design, name, image, recipe, loss or CategoricalCrossEntropy())
        return NETWORKS[name]

    return decorate


def by_name(name: str) -> NamedNetwork:
    """Return a named network.

    Raises:
        ConfigurationError: there is no such network.

    Example:
        >>> networks.by_name("network-3") is networks.network_3
        True
    """
    plain = name.lower().replace("_", "-")
    if plain not in NETWORKS:
        raise ConfigurationError(f"there is no network named {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[plain]


def normalization(input_shape: Shape) -> Layer:
    """Return a normalisation by the statistics of MNIST for grey images, else of CIFAR-10; `adapt` sets others."""
    return Normalization(*(CIFAR10_STATISTICS if input_shape[-1] == 3 else MNIST_STATISTICS))
