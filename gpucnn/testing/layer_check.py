"""A test battery for custom layers, the same that the package's layers are tested with.

Each check is a function of a `Case`: it returns its result as text, or raises `CheckFailed` with what happened, what
was expected, and the remedy. All start from the same weights and random streams, and get the same inputs. The layer
itself is never changed: every check works on a clone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpucnn.core.console import PrintsAsTable, styled
from gpucnn.errors import LayerError
from gpucnn.layers.base import DECLARATIONS, Layer, Shape
from gpucnn.testing import layer_capabilities as capabilities
from gpucnn.testing import layer_semantics as semantics
from gpucnn.testing.layer_case import Case, CheckFailed, where

CHECKS: tuple[tuple[str, Callable[[Case], str]], ...] = (
    ("config", semantics.check_config),
    ("shapes", semantics.check_shapes),
    ("dtypes", semantics.check_dtypes),
    ("inputs unchanged", semantics.check_inputs_unchanged),
    ("deterministic", semantics.check_deterministic),
    ("inference", semantics.check_inference),
    ("gradients", semantics.check_gradients),
    ("gradient accumulation", semantics.check_accumulation),
    ("supports_skip_dx", capabilities.check_skip_dx),
    ("supports_fused_relu", capabilities.check_fused_relu),
    ("batch_independent", capabilities.check_sharding),
    ("capturable", capabilities.check_capture),
    ("device", capabilities.check_device),
    ("parity", capabilities.check_parity),
    ("saving", capabilities.check_saving),
)


@dataclass(frozen=True)
class Check:
    """One check and its result as text."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, repr=False)
class LayerCheck(PrintsAsTable):
    """All checks of a layer; prints as a table."""

    layer: str
    checks: list[Check]

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.passed]

    def table(self) -> Table:
        """Return a table with one line per check."""
        caption = f"{len(self.failures)} of {len(self.checks)} failed" if self.failures else "all passed"
        table = Table(title=f"checks of {self.layer}", box=SIMPLE_HEAD, caption=caption)
        table.add_column("check", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("found", overflow="fold")
        for check in self.checks:
            table.add_row(check.name, styled(("ok", "green") if check.passed else ("WRONG", "red")), check.found)
        return table


def check_layer(layer: Layer, input_shape: Shape, *, x: Any = None, seed: int = 0) -> LayerCheck:
    """Run a full test battery on a custom layer; returns a table of the checks.

    Checks its config, shapes and dtypes, the gradients against central differences in float64, gradient accumulation,
    that inputs are unchanged, that runs are bitwise reproducible, inference, what it declares (`batch_independent`,
    `capturable`, `supports_skip_dx`, `supports_fused_relu`), that host and device arrays are never mixed, parity on
    every backend of this machine, and saving and loading.

    Arguments
        layer        the layer, built or not; it is not changed
        input_shape  of one sample, such as (8, 8, 3)
        x            inputs (N, *input_shape), N at least 2; by default random normal numbers
        seed         of these, of the weights and of the layer's random streams

    Raises
        LayerError          a check failed: which, what was found, what was expected; its attribute `check` is the table
        ConfigurationError  the arguments are invalid

    Example:
        >>> check_layer(layers.Dense(3), input_shape=(4,)).failures
        []
    """
    case = Case(layer, input_shape, x, seed)
    found: list[Check] = []
    for name, function in CHECKS:
        if name in DECLARATIONS and not getattr(layer, name):
            continue
        try:
            detail = function(case)
        except CheckFailed as error:
            found.append(Check(name, False, str(error)))
        except Exception as error:  # a custom layer may fail in any way
            found.append(Check(name, False, f"raised {type(error).__name__}: {error}{where(error)}"))
        else:
            if detail:
                found.append(Check(name, True, detail))
            continue
        if function is semantics.check_shapes:  # nothing else can be checked then
            break
    result = LayerCheck(repr_of(layer), found)
    if result.failures:
        listed = "\n".join(f"  {check.name}: {check.found}" for check in result.failures)
        count = len(result.failures)
        raise LayerError(f"{result.layer} fails {count} of {len(found)} checks:\n{listed}", result)
    return result


def repr_of(layer: Layer) -> str:
    """Return a layer's repr, or its class where that fails."""
    try:
        return repr(layer)
    except Exception:
        return type(layer).__name__
