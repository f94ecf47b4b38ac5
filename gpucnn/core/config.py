"""Objects described by their constructor arguments: their repr, and conversion to and from plain data.

An attribute that is assigned later is checked as in the constructor, and one that does not exist is rejected: a
setting is never ignored.

Layers, losses, optimizers, schedules and initializers all derive from `Configurable`. Every constructor argument
becomes an attribute of the same name, so `repr(layer)` is the call that constructs it, `layer.config()` is plain data
for a JSON file, and `Layer.from_config(data)` constructs an equal layer. A file can name only classes that are
registered in the expected family: it never contains an import path.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, ClassVar, Self

from gpucnn.core.checks import shown
from gpucnn.core.hints import MEMBERS, REMEDIES, hinted, nearest
from gpucnn.errors import ArgumentError, ConfigurationError, UnknownNameError

SAME = "same"  # in place of the class name, for an object that was described before
OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
MAX_DEPTH = 64  # of nested descriptions; far beyond any real network, far below Python's recursion limit


def snake_case(class_name: str) -> str:
    """Return the name of a class as users write it: `MaxPool2D` → `max_pool2d`, `ReLU` → `relu`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", class_name.replace("ReLU", "Relu")).lower()


class Closed:
    """Base of objects with a fixed set of attributes: setting any other raises an error with a remedy.

    Private attributes, and those of custom classes, are exempt. A class that creates its attributes in `__init__` sets
    `_settled` at its end.
    """

    #: attributes that only a call can change, and which call
    changed_by: ClassVar[dict[str, str]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("_settled", True) and is_ours(self) and not name.startswith("_"):
            if name in self.changed_by:
                raise UnknownNameError(f"{type(self).__name__}.{name} cannot be set; {self.changed_by[name]}")
            if not (name in vars(self) or hasattr(type(self), name)):
                raise unknown_attribute(self, name)
        super().__setattr__(name, value)


def is_ours(held_by: object) -> bool:
    """Return whether an object's class is part of this package, not a custom one."""
    return type(held_by).__module__.startswith("gpucnn.")


def unknown_attribute(held_by: object, name: str) -> UnknownNameError:
    """Return the error for an attribute that an object does not have, with the one that was meant or a remedy."""
    known = [word for word in (*vars(held_by), *dir(type(held_by))) if not word.startswith("_")]
    near = "" if name in REMEDIES else nearest(name, known, held_by)
    hint = REMEDIES.get(name) or (f"did you mean {near}?" if near else "it would have no effect")
    return UnknownNameError(f"{type(held_by).__name__} has no attribute {name!r} that could be set; {hint}")


class Configurable:
    """Base of every object that is described by its constructor arguments.

    A direct subclass that names its `family` opens a registry; every class below it is registered by its name. In a
    description the capitalized name of the family is the key of the class, which cannot be an argument's name:
    `{"Layer": "Conv2D", "filters": 6, "kernel_size": 5}`.
    """

    family: ClassVar[str] = ""
    registry: ClassVar[dict[str, type[Any]]] = {}

    #: attributes of other libraries, which cannot be set on objects of custom classes either
    foreign: ClassVar[tuple[str, ...]] = ()

    #: the new names of renamed arguments, by the old names in older files; and the old names of the class
    renamed: ClassVar[dict[str, str]] = {}
    former_names: ClassVar[tuple[str, ...]] = ()

    _signature: ClassVar[dict[str, inspect.Parameter]]
    _passed_on: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        """Take no arguments, unless a class below does."""

    def __init_subclass__(cls, *, family: str = "", **options: Any) -> None:
        """Open a family, or register `cls` in the one it belongs to."""
        super().__init_subclass__(**options)
        renamed = MEMBERS.get(cls.family, {})
        for old in vars(cls).keys() & renamed.keys():
            raise UnknownNameError(f"class {cls.__name__}: {old} is called {renamed[old]}; rename it")
        if "__init__" in vars(cls):
            cls.__init__ = _constructor(cls.__init__)  # type: ignore[method-assign]
        if family:
            cls.family, cls.registry = family, {}
            return
        if cls.__name__.startswith("_"):  # a shared base class
            return
        known = cls.registry.get(cls.__name__)
        if known is not None and known.__module__.startswith("gpucnn."):
            raise ConfigurationError(
                f"class {cls.__name__} in {cls.__module__}: the {cls.family} {cls.__name__} is part of gpucnn "
                "already, and saved models name it; choose another class name"
            )
        cls.registry[cls.__name__] = cls

    @classmethod
    def argument_names(cls) -> list[str]:
        """Return the names of the constructor's arguments, in order."""
        return list(cls._arguments())

    @classmethod
    def _arguments(cls) -> dict[str, inspect.Parameter]:
        """Return the arguments of the constructor by name, with those that its `**` passes on to its base class."""
        if "_signature" not in vars(cls):
            cls._signature, cls._passed_on = dict(inspect.signature(cls).parameters), frozenset()
            if any(argument.kind is argument.VAR_KEYWORD for argument in cls._signature.values()):
                own = {name: argument for name, argument in cls._signature.items() if argument.kind not in OPEN}
                maker = next(place for place, kind in enumerate(cls.__mro__) if "__init__" in vars(kind))
                above = next(kind for kind in cls.__mro__[maker + 1 :] if issubclass(kind, Configurable))
                cls._signature = own | {name: a for name, a in above._arguments().items() if name not in own}
                cls._passed_on = frozenset(cls._signature) - frozenset(own)
        return cls._signature

    def _described(self) -> dict[str, Any]:
        """Return the arguments and their values; of those that were passed on to the base class, only the ones given.

        Raises:
            ConfigurationError: a custom class does not keep an argument as an attribute.
        """
        arguments, (count, words) = self._arguments(), vars(self).get("_given", (0, ()))
        given = {*list(arguments)[:count], *words}
        named = [name for name in arguments if name not in self._passed_on or name in given]
        for name in named:
            if not hasattr(self, name) or arguments[name].kind in OPEN:
                raise ConfigurationError(
                    f"{type(self).__name__} cannot be described, since it does not keep its argument {name!r}; every "
                    f"argument of the constructor must become an attribute of the same name: self.{name} = {name}, "
                    "or be passed by **options to super().__init__"
                )
        return {name: getattr(self, name) for name in named}

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("_settled"):
            value = self._admitted(name, value)
        super().__setattr__(name, value)

    def _admitted(self, name: str, value: Any) -> Any:
        """Return the value to assign to an attribute: that of an argument as the constructor stores it.

        Objects of custom classes take any attribute except those of other libraries in `foreign`.

        Raises:
            ConfigurationError: there is no such attribute, or the constructor rejects the value.
        """
        ours = is_ours(self)
        if not (name in vars(self) or hasattr(type(self), name)):
            if name in self.foreign or (ours and not name.startswith("_")):
                raise unknown_attribute(self, name)
        elif ours and name in self._arguments():
            settings = {argument: getattr(self, argument) for argument in self._arguments()}
            return getattr(type(self)(**settings | {name: value}), name)
        return value

    def config(self, ids: dict[int, int] | None = None) -> dict[str, Any]:
        """Return this object as plain data: its class and the arguments that differ from their defaults.

        An object that occurs several times is described once, and later as `{"Layer": "same", "as": n}`, where n is its
        number among all described objects, inner ones before outer ones. `ids` holds these numbers by identity;
        callers omit it.
        """
        ids = {} if ids is None else ids
        if id(self) in ids:
            return {self.family.capitalize(): SAME, "as": ids[id(self)]}
        changed = {}
        for name, value in self._described().items():
            numbers = dict(ids)
            plain = _as_plain(value, numbers)
            if plain != _as_plain(self._arguments()[name].default, {}):
                _check_plain(f"{type(self).__name__}.{name}", plain)
                changed[name] = plain
                ids.update(numbers)
        ids[id(self)] = len(ids)
        return {self.family.capitalize(): type(self).__name__, **changed}

    @classmethod
    def from_config(cls, data: Any, depth: int = 0, objects: list[Any] | None = None) -> Self:
        """Create an object of this family from what `config` returned; callers pass `data` alone.

        Raises:
            ConfigurationError: an unknown class, an argument it does not take, or data that is not plain.
        """
        family = cls.family.capitalize()
        if not isinstance(data, dict) or not isinstance(data.get(family), str):
            raise ConfigurationError(f'expected a description {{"{family}": name, …}}, not {shown(data)}')
        objects = [] if objects is None else objects
        data = cls._renamed(data)
        if data[family] == SAME:
            return cls._back_reference(data, objects)
        kind = cls._find(data[family])
        arguments = {key: value for key, value in data.items() if key != family}
        unknown = sorted(set(arguments) - set(kind.argument_names()))
        if unknown:
            raise ConfigurationError(
                f"{kind.__name__} takes no argument {', '.join(map(repr, unknown))}; "
                f"it takes {', '.join(kind.argument_names()) or 'none'}"
            )
        try:
            new: Self = kind(**{name: _from_plain(value, depth + 1, objects) for name, value in arguments.items()})
        except (TypeError, AttributeError, OverflowError) as error:
            raise ConfigurationError(f"{kind.__name__}: {error}") from error
        objects.append(new)
        return new

    @classmethod
    def _renamed(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return a description with the current names of its class and arguments."""
        family = cls.family.capitalize()
        former = {name: kind.__name__ for kind in cls.registry.values() for name in kind.former_names}
        name = former.get(data[family], data[family])
        renamed = cls.registry[name].renamed if name in cls.registry else {}
        return {renamed.get(key, key): value for key, value in data.items()} | {family: name}

    @classmethod
    def _back_reference(cls, data: dict[str, Any], objects: list[Any]) -> Self:
        number = data.get("as")
        if not isinstance(number, int) or not 0 <= number < len(objects) or not isinstance(objects[number], cls):
            raise ConfigurationError(f"{shown(data)} refers to a {cls.family} that was not described before it")
        found: Self = objects[number]
        return found

    @classmethod
    def resolve(cls, value: Any) -> Self:
        """Return `value` itself if it is of this family, or construct the one with that name (`"he_normal"`)."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            article = "an" if cls.family[0] in "aeiou" else "a"
            raise ConfigurationError(f"expected {article} {cls.family} or its name, not {shown(value)}")
        kind = cls._find(value)
        try:
            new: Self = kind()
        except ArgumentError:
            call = f"{kind.__name__}({', '.join(kind.argument_names())})"
            raise ConfigurationError(f"the {cls.family} {value!r} needs arguments: pass {call} instead") from None
        return new

    @classmethod
    def choose(cls, value: Any, what: str, name: str, method: str) -> Self:
        """Do what `resolve` does for an argument of `compile`; the error explains how to write a custom class.

        Arguments:
            what: the beginning of the error, such as "loss must be a loss".
            name: an example.
            method: the method that custom classes must define, and what it returns.
        """
        if isinstance(value, cls | str):
            return cls.resolve(value)
        if isinstance(value, type) and issubclass(value, cls):
            remedy = f"pass an object, {value.__name__}()"
        else:
            base = f"{cls.__module__}.{cls.__name__}"
            remedy = f'pass a name such as "{name}", or an object of a class derived from {base} whose {method}'
        raise ConfigurationError(f"{what} or its name, not {value!r}; {remedy}")

    @classmethod
    def _find(cls, word: str) -> type[Any]:
        """Find a registered class by its name, however its words are joined."""
        plain = word.replace("_", "").replace("-", "").lower()
        for name, kind in cls.registry.items():
            if name.lower() == plain:
                return kind
        known = ", ".join(sorted(cls.registry))
        raise ConfigurationError(f"there is no {cls.family} named {word!r}; there are {known}")

    def __repr__(self) -> str:
        arguments = []
        try:
            described = self._described()
        except ConfigurationError:
            return f"{type(self).__name__}(…)"
        for name, value in described.items():
            argument = self._arguments()[name]
            if argument.default is argument.empty:
                arguments.append(repr(value))
            elif _as_plain(value, {}) != _as_plain(argument.default, {}):
                arguments.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"


def _constructor(init: Callable[..., None]) -> Callable[..., None]:
    """Return a class's `__init__` so that arguments that do not fit it are refused with a hint.

    The outermost one, that of the object's own class, settles the object: see `Configurable._admitted`.
    """
    checked = hinted(init)

    @functools.wraps(init)
    def settling(self: Any, *args: Any, **kwargs: Any) -> None:
        is_outermost = "_settled" not in vars(self)
        vars(self)["_settled"] = False
        checked(self, *args, **kwargs)
        if is_outermost:
            vars(self)["_given"] = len(args), tuple(kwargs)
            vars(self)["_settled"] = True

    return settling


Configurable.__init__ = _constructor(Configurable.__init__)  # type: ignore[method-assign]


def _as_plain(value: Any, ids: dict[int, int]) -> Any:
    """Turn an argument into what JSON can hold."""
    if isinstance(value, Configurable):
        return value.config(ids)
    if isinstance(value, list | tuple):
        return [_as_plain(item, ids) for item in value]
    if hasattr(value, "tolist"):  # an array or an array library's number
        return value.tolist()
    return value


def with_current_names(value: Any) -> Any:
    """Return plain data, such as a saved description, with the names that classes and arguments have now."""
    if isinstance(value, list):
        return [with_current_names(item) for item in value]
    if not isinstance(value, dict):
        return value
    for base in Configurable.__subclasses__():
        if isinstance(value.get(base.family.capitalize()), str):
            value = base._renamed(value)
    return {key: with_current_names(item) for key, item in value.items()}


def _check_plain(what: str, plain: Any) -> None:
    """Reject what JSON cannot represent, such as a function, before a file is written."""
    if isinstance(plain, list | dict):
        for item in plain.values() if isinstance(plain, dict) else plain:
            _check_plain(what, item)
    elif not isinstance(plain, str | int | float | None):
        raise ConfigurationError(
            f"{what} is {shown(plain)}, which a file cannot hold; make the argument a number, a string or a list of "
            "them, and what is computed of it an attribute of another name"
        )


def _from_plain(value: Any, depth: int, objects: list[Any]) -> Any:
    """Turn plain data back into an argument: lists become tuples, nested descriptions their objects."""
    if depth > MAX_DEPTH:
        raise ConfigurationError(f"a description is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        return tuple(_from_plain(item, depth + 1, objects) for item in value)
    if isinstance(value, dict):
        for base in Configurable.__subclasses__():
            if base.family.capitalize() in value:
                return base.from_config(value, depth, objects)
        raise ConfigurationError(f"expected the description of a layer or a setting, not {shown(value)}")
    return value
