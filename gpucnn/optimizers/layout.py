"""Where each parameter lies in the flat buffers of values and gradients, and in an optimizer's slots.

The parameters lie group after group, so that an optimizer's update of a group is one kernel over one range.
"""

import builtins
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 16  # elements: each parameter begins on a cache line of the flat buffer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Where one parameter lies, and its shape."""

    slice: "builtins.slice"
    shape: Shape


@dataclass(frozen=True)
class Layout:
    """The places of all parameters by path, the range of each group, and the length of the whole.

    What is frozen lies behind all groups, where no update reaches it.
    """

    places: dict[str, Range]
    ranges: tuple[slice, ...]
    size: int

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], groups: Sequence[Sequence[str]], frozen: Sequence[str] = ()) -> "Layout":
        """Lay out parameters of these shapes, group after group, and then those of all groups that are frozen."""
        places: dict[str, Range] = {}
        ranges, end = [], 0
        for paths in (*([path for path in group if path not in frozen] for group in groups), frozen):
            start = end
            for path in paths:
                size = math.prod(shapes[path])
                places[path] = Range(slice(end, end + size), shapes[path])
                end += -(-size // ALIGNMENT) * ALIGNMENT
            ranges.append(slice(start, end))
        return cls(places, tuple(ranges[:-1]), end)

    @property
    def trainable(self) -> slice:
        """The range of all groups together."""
        return slice(0, self.ranges[-1].stop)

    @classmethod
    def flat(cls, size: int) -> "Layout":
        """Return the layout of one group without names."""
        return cls({}, (slice(0, size),), size)
