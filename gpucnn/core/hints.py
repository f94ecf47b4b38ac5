"""Hints for wrong names: those of other libraries, former names, and misspellings."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from gpucnn.errors import ArgumentError, UnknownNameError

Function = TypeVar("Function", bound=Callable[..., Any])


def _by_other_name(**names: str) -> dict[str, str]:
    """Return gpucnn's names by each of the other names."""
    return {other: name for name, others in names.items() for other in others.split()}


#: arguments, and their names in other libraries; former names of gpucnn are in `renamed` of each class
ARGUMENTS = _by_other_name(
    beta1="beta_1 betas",
    beta2="beta_2",
    clip_norm="clipnorm global_clipnorm",
    clip_value="clipvalue",
    dilation="dilation_rate",
    epochs="warmup_epochs",
    epsilon="eps",
    every="step_size",
    factor="gamma",
    filters="out_channels",
    flip="mirror",
    kernel_size="kernel",
    learning_rate="lr",
    lr_multiplier="lr_mult lr_scale",
    monitor_data="probe",
    num_classes="classes",
    rate="initial_learning_rate max_lr p",
    slope="alpha negative_slope",
    std="stddev variance",
    strides="stride",
    tta="views",
    units="out_features",
    use_bias="bias",
    warmup_fraction="pct_start",
    weight_initializer="kernel_initializer",
)

#: arguments, attributes and classes that do not exist here, and their equivalents
REMEDIES = {
    "Activation": "write the function itself as a layer, such as layers.ReLU()",
    "Input": "pass input_shape to gpucnn.Model(layers, input_shape)",
    "InputLayer": "pass input_shape to gpucnn.Model(layers, input_shape)",
    "Rescaling": "uint8 images count as 0 … 1 without a layer; layers.Normalization scales anything else",
    "Sequential": "gpucnn.Model([…], input_shape) takes the layers in order",
    "activation": "add the activation after it as a layer, such as layers.ReLU()",
    "amsgrad": "this variant is not implemented",
    "bias_initializer": "biases start at 0; assign layer.bias.value after the model is constructed",
    "data_format": "images are (N, H, W, C)",
    "dtype": "pass it to Model(…, dtype=…)",
    "in_channels": "Model(layers, input_shape) infers the channels of the input",
    "in_features": "the features of the input are found by Model(layers, input_shape)",
    "inplace": "leave it out",
    "input_dim": "pass input_shape to Model(layers, input_shape)",
    "input_shape": "pass it to Model(layers, input_shape)",
    "kernel_regularizer": "pass weight_decay to the optimizer",
    "params": "an optimizer is given to model.compile, which tells it the parameters",
    "requires_grad": "model.freeze(…) and model.unfreeze(…) select by name what is trained",
    "trainable": "model.freeze(…) and model.unfreeze(…) select by name what is trained",
}

#: what custom classes once declared under another name, by family
MEMBERS = {
    "layer": {
        "can_apply_relu": "supports_fused_relu",
        "can_skip_input_gradient": "supports_skip_dx",
        "least_batch": "min_batch_size",
        "method": "algorithm",
        "per_sample": "batch_independent",
        "recordable": "capturable",
    },
    "loss": {"of_classes": "expects_classes"},
}

#: methods and attributes of a model as they were called before, or are in other libraries
OF_MODELS = {
    "averaged_by": "training.averaged_by",
    "computing": "execution_context",
    "epochs_seen": "epochs_trained",
    "fault": "training.fault",
    "get_weights": "state_dict",
    "progress": "training.progress",
    "refresh_statistics": "recalibrate_batch_norm",
    "release": "free_memory",
    "set_weights": "load_state_dict",
    "step": "train_step",
    "test_on_batch": "evaluate",
    "training_pass": "forward_train",
    "why_not_repeated": "why_not_captured",
}

#: classes, and what other libraries or earlier versions call them
CLASSES = _by_other_name(
    AveragePool2D="AvgPool2d AveragePooling2D",
    BatchNorm="BatchNorm1d BatchNorm2d BatchNormalization",
    Conv2D="Conv2d Convolution2D",
    Dense="FullyConnected Linear",
    Dropout="Dropout2d",
    GELU="Gelu",
    GlobalAveragePool2D="GlobalAveragePooling2D",
    LeakyReLU="LeakyRelu",
    Lookahead="LookAhead",
    MaxPool2D="MaxPool2d MaxPooling2D",
    OutOfMemoryError="OutOfMemory",
    ReLU="Relu",
    TrainingMonitor="DefectWatch",
)


def nearest(name: str, known: Collection[str], held_by: object = None) -> str:
    """Return the known name that a user may have meant, of what an object holds or takes; "" if none is near."""
    for table in (getattr(held_by, "renamed", {}), ARGUMENTS):
        if table.get(name) in known:
            return str(table[name])
    by_small = {word.lower().replace("_", ""): word for word in known}
    plain = name.lower().replace("_", "")
    found = [plain] if plain in by_small else difflib.get_close_matches(plain, by_small, n=1, cutoff=0.7)
    return by_small[found[0]] if found else ""


def no_such_attribute(held_by: Any, name: str) -> AttributeError:
    """Return the error for an attribute that a model does not have, with the one that was meant."""
    what = f"{type(held_by).__name__!r} object has no attribute {name!r}"
    if name.startswith("_"):
        return AttributeError(what)
    near = OF_MODELS.get(name) or nearest(name, [known for known in dir(held_by) if not known.startswith("_")])
    return UnknownNameError(what + (f"; did you mean {near}?" if near else ""))


def misfit(label: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the error in the arguments of a call, with the remedy; "" if they are valid.

    The first of the arguments is `self`.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        every = list(signature.parameters.values())[1:]
    else:
        return ""
    parameters = [parameter for parameter in every if parameter.kind is not parameter.VAR_KEYWORD]
    names = [parameter.name for parameter in parameters]
    unknown = [name for name in kwargs if name not in names]
    if unknown and len(parameters) == len(every):
        return f"{label} takes no argument {unknown[0]!r}; {_instead(unknown[0], names, args[0])}"
    by_position = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    if len(args) - 1 > len(by_position):
        others = [f"{name}=…" for name in names if name not in by_position]
        return f"{label} takes {', '.join(by_position) or 'nothing'} by position, and got {len(args) - 1} arguments" + (
            f"; write the others with their names: {', '.join(others)}" if others else ""
        )
    twice = [name for name in by_position[: len(args) - 1] if name in kwargs]
    if twice:
        return f"{label} got {twice[0]} twice, by its position and by its name"
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in (*kwargs, *by_position[: len(args) - 1])
    ]
    return f"{label} needs {' and '.join(missing)}: pass {label}({', '.join(names)})"


def hinted(function: Function) -> Function:
    """Return a method that refuses arguments that do not fit it, with what to write instead."""

    @functools.wraps(function)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(self, *args, **kwargs)
        except TypeError as error:
            is_constructor = function.__name__ == "__init__"
            wrong = misfit(
                type(self).__name__ if is_constructor else function.__name__, function, (self, *args), kwargs
            )
            if not wrong:
                raise
            raise ArgumentError(wrong) from error

    return checked  # type: ignore[return-value]


def _instead(name: str, known: list[str], held_by: object) -> str:
    if near := nearest(name, known, held_by):
        return f"did you mean {near}=…?"
    return REMEDIES.get(name) or f"it takes {', '.join(known) or 'none'}"


def no_such_class(module: str, name: str, known: Collection[str]) -> UnknownNameError:
    """Return the error for a name that a module does not have, with the one that it has."""
    there = CLASSES.get(name, "")
    near = there if there in known else nearest(name, known)
    hint = f"did you mean {near}?" if near else REMEDIES.get(name, "")
    return UnknownNameError(f"module {module!r} has no {name!r}" + (f"; {hint}" if hint else ""))
