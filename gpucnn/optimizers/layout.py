"""Where each parameter lies in the flat buffers of values and gradients, and in an optimizer's slots.

The parameters lie group after group, so that an optimizer's update of a group is one kernel over one range.
"""

import builtins
import math
from collections.abc import Collection, Mapping, Sequence
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
    """The places of all parameters by path, the range of each group, and the length of the whole."""

    places: dict[str, Range]
    ranges: tuple[slice, ...]
    size: int

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], groups: Sequence[Sequence[str]]) -> "Layout":
        """Lay out parameters of these shapes, group after group."""
        places: dict[str, Range] = {}
        ranges, end = [], 0
        for paths in groups:
            start = end
            for path in paths:
                size = math.prod(shapes[path])
                places[path] = Range(slice(end, end + size), shapes[path])
                end += -(-size // ALIGNMENT) * ALIGNMENT
            ranges.append(slice(start, end))
        return cls(places, tuple(ranges), end)

    def without(self, paths: Collection[str], within: slice | None = None) -> list[slice]:
        """Return the contiguous ranges, within one or the whole, of all parameters but these."""
        within = within or slice(0, self.size)
        starts = {place.slice.start: path in paths for path, place in self.places.items()} if paths else {}
        found, start = [], within.start
        for place in sorted(place for place in starts if within.start <= place < within.stop):
            if starts[place] and start is not None:
                found.append(slice(start, place))
                start = None
            elif not starts[place] and start is None:
                start = place
        if start is not None:
            found.append(slice(start, within.stop))
        return [part for part in found if part.start < part.stop]

    @classmethod
    def flat(cls, size: int) -> "Layout":
        """Return the layout of one group without names."""
        return cls({}, (slice(0, size),), size)
