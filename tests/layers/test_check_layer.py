"""`gpucnn.check_layer`: a right layer passes, and each thing that can be wrong with one is found and said."""

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, rng
from gpucnn.errors import ConfigurationError, LayerError
from gpucnn.layers.base import Buffer, Layer, Parameter
from tests.cases import CASES

SHAPE = (5, 4, 3)


class Scale(Layer):
    """y = factor · weight · x, a weight a channel: right in every way; the layers below each spoil one thing."""

    def __init__(self, factor=2.0, *, name=None):
        super().__init__(name=name)
        self.factor = factor

    def build(self, input_shape, rng):
        self.weight = Parameter(rng.standard_normal(input_shape[-1:]))
        return input_shape

    def forward(self, x, *, train):
        weight, factor = self.weight, self.factor
        y = factor * weight.value * x

        def backward(dy):
            weight.add_grad(factor * (dy * x).sum(axis=tuple(range(x.ndim - 1))))
            return factor * weight.value * dy

        return y, backward


def spoiled(**methods):
    """Return a class like Scale with other methods; each has a different name, as the registry wants."""
    return type(f"Scale{next(NUMBERS)}", (Scale,), methods)


NUMBERS = iter(range(1000))


def forward_with(make):
    """Return a `forward` of which `make(layer, x, y, backward)` changes what it returns."""

    def forward(self, x, *, train):
        y, backward = Scale.forward(self, x, train=train)
        return make(self, x, y, backward)

    return forward


def checked(layer, shape=SHAPE, **options):
    with pytest.raises(LayerError) as caught:
        gpucnn.check_layer(layer, shape, **options)
    return caught.value


def test_check_layer_passes_a_right_layer():
    result = gpucnn.check_layer(Scale(3.0), SHAPE)
    assert not result.failures
    names = [check.name for check in result.checks]
    assert names == [
        *(
            "config",
            "shapes",
            "dtypes",
            "inputs unchanged",
            "deterministic",
            "inference",
            "gradients",
            "gradient accumulation",
        ),
        *("device", "parity", "saving"),
    ]
    text = str(result)
    assert "checks of Scale(3.0)" in text or "checks of Scale(factor=3.0)" in text
    assert "all passed" in text
    assert "(5, 4, 3) → (5, 4, 3), 3 parameters" in text


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_check_layer_passes_built_in_layers(case):
    layer = case.make()
    result = gpucnn.check_layer(layer, case.input_shape)
    assert not result.failures
    assert layer.output_shape is None, "the layer stays as it was"


def test_check_layer_tries_what_a_layer_declares():
    names = [check.name for check in gpucnn.check_layer(layers.Conv2D(2, 3), SHAPE).checks]
    assert {"supports_skip_dx", "supports_fused_relu", "batch_independent", "capturable"} <= set(names)


def test_check_layer_keeps_the_weights_of_a_built_layer():
    layer = layers.Dense(3)
    model = gpucnn.Model([layer], (4,), seed=1)
    before = model.state_dict()
    gpucnn.check_layer(layer, (4,))
    for path, array in model.state_dict().items():
        assert (array == before[path]).all()
    assert layer.weight.grad is None or not layer.weight.grad.any()


def test_check_layer_takes_given_inputs():
    class Logarithm(Layer):
        def forward(self, x, *, train):
            xp = self.backend.xp
            return xp.log(x), lambda dy: dy / x

    with np.errstate(invalid="ignore"):
        error = checked(Logarithm(), (6,))
    assert "NaN or infinity for normal inputs" in str(error)
    x = np.random.default_rng(0).uniform(0.5, 2, (5, 6))
    assert not gpucnn.check_layer(Logarithm(), (6,), x=x).failures


def _no_attribute(self, factor=2.0, *, name=None):
    Layer.__init__(self, name=name)
    self._factor = factor


def _changes_argument(self, factor=2.0, *, name=None):
    Layer.__init__(self, name=name)
    self.factor = 2 * factor


def _wrong_shape_promised(self, input_shape, rng):
    Scale.build(self, input_shape, rng)
    return (*input_shape[:-1], 7)


def _no_tuple(self, input_shape, rng):
    Scale.build(self, input_shape, rng)
    return list(input_shape)


def _random_mask(self, x, *, train):
    mask = np.random.default_rng().random(x.shape) < 0.5
    return x * mask, lambda dy: dy * mask


def _counts_in_evaluation(self, x, *, train):
    self.count.value = self.count.value + 1
    return Scale.forward(self, x, train=train)


def _builds_a_counter(self, input_shape, rng):
    self.count = Buffer(np.zeros(1))
    return Scale.build(self, input_shape, rng)


def _assigns_gradient(self, x, *, train):
    y, backward = Scale.forward(self, x, train=train)

    def assigning(dy):
        before = self.weight.grad
        self.weight.grad = None if before is None else 0 * before
        return backward(dy)

    return y, assigning


def _needs_numpy(self, x, *, train):
    return np.maximum(x, 0), lambda dy: np.where(x > 0, dy, 0)


def _host_constant(self, x, *, train):
    slope = np.linspace(1, 2, x.shape[-1])
    return x * slope, lambda dy: dy * slope


def _state_outside(self, x, *, train):
    factor = self.drawn
    return factor * x, lambda dy: factor * dy


def _draws_outside(self, input_shape, rng):
    self.drawn = float(np.random.default_rng(len(vars(self))).random()) + next(NUMBERS)
    return input_shape


def _decides(self, x, *, train):
    return (x, lambda dy: dy) if x.sum() > 0 else (2 * x, lambda dy: 2 * dy)


def _counts(self, x, *, train):
    factor = 1.0 + next(NUMBERS)
    return factor * x, lambda dy: factor * dy


WRONG = {
    "an argument that is not kept": (
        {"__init__": _no_attribute},
        "config",
        "takes 'factor', but the layer has no attribute of that name; add self.factor = factor",
    ),
    "an argument that is kept changed": (
        {"__init__": _changes_argument},
        "config",
        "keep each argument as it was passed",
    ),
    "a shape that is not a tuple": ({"build": _no_tuple}, "shapes", "build returned [5, 4, 3]; expected the output's"),
    "another shape than declared": (
        {"build": _wrong_shape_promised},
        "shapes",
        "forward returned shape (4, 5, 4, 3) for 4 samples; build declared (4, 5, 4, 7)",
    ),
    "dx in another shape": (
        {"forward": forward_with(lambda self, x, y, back: (y, lambda dy: back(dy)[:, :1]))},
        "shapes",
        "the backward function returned shape (4, 1, 4, 3) for 4 samples; expected the shape of x, (4, 5, 4, 3)",
    ),
    "no dx": (
        {"forward": forward_with(lambda self, x, y, back: (y, lambda dy: None))},
        "shapes",
        "the backward function returned None for 4 samples",
    ),
    "a custom error": (
        {"forward": forward_with(lambda self, x, y, back: 1 / 0)},
        "shapes",
        "raised ZeroDivisionError: division by zero (test_check_layer.py, line ",
    ),
    "another dtype": (
        {"forward": forward_with(lambda self, x, y, back: (y.astype("float64"), back))},
        "dtypes",
        "y is float64 for inputs and parameters of float32; make arrays with dtype=x.dtype",
    ),
    "x written to": (
        {"forward": forward_with(lambda self, x, y, back: (y, lambda dy: (x.__imul__(1.5), back(dy))[1]))},
        "inputs unchanged",
        "x was modified; other layers still need it",
    ),
    "dy written to": (
        {"forward": forward_with(lambda self, x, y, back: (y, lambda dy: dy.__imul__(1.5)))},
        "inputs unchanged",
        "dy was modified",
    ),
    "random numbers from nowhere": (
        {"forward": _random_mask},
        "deterministic",
        "y differs between two runs from one state",
    ),
    "evaluation with a memory": (
        {"build": _builds_a_counter, "forward": _counts_in_evaluation},
        "inference",
        "forward with train=False changed count; only training may",
    ),
    "a wrong dx": (
        {"forward": forward_with(lambda self, x, y, back: (y, lambda dy: -back(dy)))},
        "gradients",
        ": the backward function gives ",
    ),
    "a wrong gradient of a weight": (
        {"forward": forward_with(lambda self, x, y, back: (y, lambda dy: (back(dy), self.weight.grad.__imul__(2))[0]))},
        "gradients",
        "the gradient of weight is wrong at (0,): the backward function gives ",
    ),
    "no gradient of a weight": (
        {"forward": forward_with(lambda self, x, y, back: (y, lambda dy: 2.0 * self.weight.value * dy))},
        "gradients",
        "the gradient of weight is missing; the backward function must add it",
    ),
    "a gradient that is assigned": (
        {"forward": _assigns_gradient},
        "gradient accumulation",
        "use add_grad, which adds",
    ),
    "NumPy in place of the backend": ({"forward": _needs_numpy}, "device", "use self.backend.xp"),
    "a constant on the host": (
        {"forward": _host_constant},
        "device",
        "a host array (3,) was mixed with a device array",
    ),
    "a false declaration of batch independence": (
        {"forward": forward_with(lambda self, x, y, back: (y - y.mean(axis=0), back)), "batch_independent": True},
        "batch_independent",
        "samples depend on each other, but batch_independent = True",
    ),
    "declared capturable, but Python decides": (
        {"forward": _decides, "capturable": True},
        "capturable",
        "__bool__ is not captured, but capturable = True declares that a pass can be replayed",
    ),
    "declared capturable, but Python counts": (
        {"forward": _counts, "capturable": True},
        "capturable",
        "y of a replayed pass differs from an eager one, but capturable = True",
    ),
    "numbers that are not saved": (
        {"build": _draws_outside, "forward": _state_outside},
        "saving",
        "predicts something else after saving and loading; keep state in a Buffer",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_check_layer_finds_what_is_wrong(fault):
    methods, name, said = WRONG[fault]
    error = checked(spoiled(**methods)())
    failures = {check.name: check.found for check in error.check.failures}
    assert name in failures
    assert said in failures[name]
    assert f"  {name}: " in str(error)
    assert "checks:" in str(error)
    assert str(error.check).count("WRONG") == len(failures)


@pytest.mark.parametrize("flag", ["supports_skip_dx", "supports_fused_relu"])
def test_check_layer_finds_false_declarations(flag):
    class Wrong(Scale):
        locals()[flag] = True

        def forward(self, x, *, train, need_dx=True, fused_relu=False):
            y, backward = Scale.forward(self, x, train=train)
            return y, backward if need_dx else (lambda dy: None)

    names = [check.name for check in checked(Wrong()).check.failures]
    assert names == [flag]


def test_check_layer_passes_random_streams_in_buffers():
    class Noise(Layer):
        def build(self, input_shape, generator):
            self.stream = Buffer(rng.new_stream(generator), on_host=True)
            return input_shape

        def forward(self, x, *, train):
            if not train:
                return x, lambda dy: dy
            mask = rng.bernoulli(self.backend, self.stream.value, x.shape, 0.5)
            return x * mask, lambda dy: dy * mask

    assert not gpucnn.check_layer(Noise(), (7,)).failures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Scale, SHAPE), r"check_layer takes a Layer object, not <class .*Scale'>; pass an object: MyLayer"),
        ((Scale(), 5), "input_shape must be the shape of one sample, such as .*, not 5"),
        ((Scale(), (5, 0)), "input_shape must be the shape of one sample"),
    ],
)
def test_check_layer_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        gpucnn.check_layer(*arguments)


@pytest.mark.parametrize("x", [np.zeros((1, 5, 4, 3)), np.zeros((4, 5, 4))])
def test_check_layer_inputs_that_do_not_fit_are_refused(x):
    with pytest.raises(ConfigurationError, match="expected at least two samples of shape"):
        gpucnn.check_layer(Scale(), SHAPE, x=x)


def test_layer_error_is_a_gpucnn_error_and_an_assertion():
    assert issubclass(LayerError, gpucnn.GpucnnError)
    assert issubclass(LayerError, AssertionError)


# --- in a model -------------------------------------------------------------------------------


def test_check_layer_in_a_model_names_a_false_declaration():
    wrong = spoiled(**WRONG["another shape than declared"][0])
    model = gpucnn.Model([layers.ReLU(), wrong(name="mine"), layers.Flatten()], SHAPE)
    message = (
        r"mine: its forward returned shape \(2, 5, 4, 3\) where its build declared \(2, 5, 4, 7\); gpucnn.check_layer"
    )
    with pytest.raises(gpucnn.ShapeError, match=message):
        model.predict(np.zeros((2, *SHAPE), "float32"))


def test_check_layer_in_a_model_names_a_wrong_backward():
    wrong = spoiled(**WRONG["dx in another shape"][0])
    network = [layers.Conv2D(3, 1), wrong(name="mine"), layers.Flatten(), layers.Dense(2), layers.Softmax()]
    model = gpucnn.Model(network, SHAPE).compile("sgd")
    message = (
        r"mine: its backward function returned shape \(2, 1, 4, 3\) for inputs of shape \(2, 5, 4, 3\); "
        "dx must have theirs"
    )
    with pytest.raises(gpucnn.ShapeError, match=message):
        model.train_on_batch(np.zeros((2, *SHAPE), "float32"), [0, 1])


# --- what only other weights, signs and inference show ----------------------------------------


def neighbour_of_numpy(xp, a):
    z = np.zeros(a.shape, a.dtype)
    z[..., 1:] = a[..., :-1]
    return a + z


def product_with_out(xp, a):
    rows, y = a.reshape(-1, a.shape[-1]), np.empty(a.shape, a.dtype)
    np.dot(rows, np.ones((a.shape[-1],) * 2, a.dtype), y.reshape(rows.shape))
    return a + y


ODD = {
    "insert": lambda xp, a: a + xp.insert(a[..., 1:], 0, 0.0, axis=-1),
    "flat": lambda xp, a: a + a.flat[0],
    "a product with out": product_with_out,
    "asarray": lambda xp, a: a + np.asarray(a).max(),
    "a copy": lambda xp, a: a + np.array(a).mean(),
    "full of a number": lambda xp, a: a + np.full(a.shape, np.asarray(a).reshape(-1)[0]),
    "zeros filled": neighbour_of_numpy,
}


@pytest.mark.parametrize("where", ["weights", "inference"])
@pytest.mark.parametrize("name", ODD)
def test_check_layer_tries_capturable_with_other_weights_and_in_inference(name, where):
    class Odd(Layer):
        batch_independent = capturable = True

        def build(self, input_shape, generator):
            self.weight = Parameter(1 + 0.1 * generator.standard_normal(input_shape))
            return input_shape

        def forward(self, x, *, train):
            w = self.weight.value
            if where == "weights":
                w = w + 0 * ODD[name](self.backend.xp, w)
            elif not train:
                x = ODD[name](self.backend.xp, x)

            def backward(dy):
                self.weight.add_grad((dy * x).sum(axis=0))
                return dy * w

            return x * w, backward

    assert "capturable" in [check.name for check in checked(Odd(), (6,)).check.failures]


def test_check_layer_tries_capturable_with_other_signs():
    def leaky(self, x, y, back):
        y, negative = x.copy(), x < 0
        y[negative] *= 0.1
        return y, lambda dy: dy * (0.1 + 0.9 * ~negative)

    error = checked(spoiled(forward=forward_with(leaky), capturable=True)())
    assert "an array indexed by a mask" in str(error)


def test_check_layer_takes_a_clean_copy_of_a_layer_in_use():
    generator = np.random.default_rng(0)
    x, y = generator.random((32, 8, 8, 1), dtype=np.float32), generator.integers(0, 10, 32)
    network = [layers.Conv2D(4, 3, padding="same"), layers.Flatten(), layers.Dense(10), layers.Softmax()]
    model = gpucnn.Model(network, (8, 8, 1), backend="numpy").compile()
    model.fit(x, y, verbose=0)
    model.freeze("conv2d.bias")
    before = model.flat_gradients().copy()
    assert not gpucnn.check_layer(model.layers[0], (8, 8, 1)).failures
    assert (model.flat_gradients() == before).all()
    assert model.layers[0].bias.frozen


def test_check_layer_finds_a_work_array_shared_by_threads():
    class Remembers(Layer):
        batch_independent = capturable = True

        def forward(self, x, *, train):
            self.work = self.backend.xp.empty(x.shape, x.dtype)
            self.backend.xp.multiply(x, 2.0, out=self.work)
            return self.work + 0.0, lambda dy: dy * 2.0

    assert "forward changes an attribute" in str(checked(Remembers(), (6,)))
