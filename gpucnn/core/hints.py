"""What to write instead: names of other libraries, and names that are nearly right."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from gpucnn.errors import ArgumentError, UnknownNameError

Function = TypeVar("Function", bound=Callable[..., Any])

#: arguments as other libraries call them, and what they are called here
ARGUMENTS = {
    "action": "on_defect",
    "alpha": "slope",
    "beta_1": "beta1",
    "beta_2": "beta2",
    "betas": "beta1",
    "bias": "use_bias",
    "classes": "num_classes",
    "clipnorm": "clip_norm",
    "clipvalue": "clip_value",
    "deviation": "std",
    "dilation_rate": "dilation",
    "eps": "epsilon",
    "final": "end_factor",
    "gamma": "factor",
    "global_clipnorm": "clip_norm",
    "grace": "grace_steps",
    "initial": "start_factor",
    "initial_learning_rate": "rate",
    "kernel": "kernel_size",
    "kernel_initializer": "weight_initializer",
    "lr": "learning_rate",
    "lr_mult": "lr_multiplier",
    "lr_scale": "lr_multiplier",
    "max_lr": "rate",
    "minimum": "min_delta",
    "mirror": "flip",
    "negative_slope": "slope",
    "other": "fallback",
    "out_channels": "filters",
    "out_features": "units",
    "p": "rate",
    "pct_start": "warmup_fraction",
    "probe": "monitor_data",
    "rate": "lr_multiplier",
    "rest": "remaining",
    "restore_best": "restore_best_weights",
    "rise": "warmup_fraction",
    "stddev": "std",
    "step_size": "every",
    "stride": "strides",
    "variance": "std",
    "views": "tta",
    "warmup_epochs": "epochs",
}

#: arguments, attributes and classes that do not exist here, and what does the same
REMEDIES = {
    "Activation": "write the function itself as a layer, such as layers.ReLU()",
    "Input": "pass input_shape to gpucnn.Model(layers, input_shape)",
    "InputLayer": "pass input_shape to gpucnn.Model(layers, input_shape)",
    "Rescaling": "uint8 images count as 0 … 1 without a layer; layers.Normalization scales anything else",
    "Sequential": "gpucnn.Model([…], input_shape) takes the layers in order",
    "activation": "put the activation behind it as a layer of its own, such as layers.ReLU()",
    "amsgrad": "there is no such variant here",
    "bias_initializer": "a bias begins at 0; assign layer.bias.value once the model is made",
    "data_format": "images are (N, H, W, C)",
    "dtype": "pass it to Model(…, dtype=…)",
    "in_channels": "the channels of the input are found by Model(layers, input_shape)",
    "in_features": "the features of the input are found by Model(layers, input_shape)",
    "inplace": "leave it out",
    "input_dim": "pass input_shape to Model(layers, input_shape)",
    "input_shape": "pass it to Model(layers, input_shape)",
    "kernel_regularizer": "pass weight_decay to the optimizer",
    "params": "an optimizer is given to model.compile, which tells it the parameters",
    "requires_grad": "model.freeze(…) and model.unfreeze(…) say by name what is trained",
    "trainable": "model.freeze(…) and model.unfreeze(…) say by name what is trained",
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

#: classes as other libraries call them, and what they are called here
CLASSES = {
    "AvgPool2d": "AveragePool2D",
    "AveragePooling2D": "AveragePool2D",
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "BatchNormalization": "BatchNorm",
    "Conv2d": "Conv2D",
    "Convolution2D": "Conv2D",
    "DefectWatch": "TrainingMonitor",
    "Dropout2d": "Dropout",
    "FullyConnected": "Dense",
    "GlobalAveragePooling2D": "GlobalAveragePool2D",
    "LeakyRelu": "LeakyReLU",
    "Linear": "Dense",
    "LookAhead": "Lookahead",
    "MaxPool2d": "MaxPool2D",
    "MaxPooling2D": "MaxPool2D",
    "OutOfMemory": "OutOfMemoryError",
    "Relu": "ReLU",
    "Gelu": "GELU",
}


def nearest(name: str, known: Collection[str]) -> str:
    """Return the known name that a user may have meant; "" if none is near."""
    if ARGUMENTS.get(name) in known:
        return ARGUMENTS[name]
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
    """Return what is wrong with the arguments of a call, and what to write instead; "" if they fit.

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
        return f"{label} takes no argument {unknown[0]!r}; {_instead(unknown[0], names)}"
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


def _instead(name: str, known: list[str]) -> str:
    near = nearest(name, known)
    if near:
        return f"did you mean {near}=…?"
    return REMEDIES.get(name) or f"it takes {', '.join(known) or 'none'}"


def no_such_class(module: str, name: str, known: Collection[str]) -> UnknownNameError:
    """Return the error for a name that a module does not have, with the one that it has."""
    there = CLASSES.get(name, "")
    near = there if there in known else nearest(name, known)
    hint = f"did you mean {near}?" if near else REMEDIES.get(name, "")
    return UnknownNameError(f"module {module!r} has no {name!r}" + (f"; {hint}" if hint else ""))
