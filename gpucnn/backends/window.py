"""How a kernel or a pooling window slides over an image: pure geometry, no arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A window of KH × KW elements that moves by SH × SW over an image of H × W.

    Padding is explicit here, ((PT, PB), (PL, PR)); `"same"` and the like are resolved before.
    """

    size: Pair
    strides: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)

    @property
    def area(self) -> int:
        """The number of elements, KH·KW."""
        return self.size[0] * self.size[1]

    @property
    def extent(self) -> Pair:
        """Rows and columns from the first to the last element, dilation included."""
        return (self.size[0] - 1) * self.dilation[0] + 1, (self.size[1] - 1) * self.dilation[1] + 1

    def output_size(self, image_size: Pair) -> Pair:
        """Return (OH, OW), the number of positions in an image of (H, W); not positive if none fits."""
        (H, W), (EH, EW), ((PT, PB), (PL, PR)) = image_size, self.extent, self.padding
        OH = (H + PT + PB - EH) // self.strides[0] + 1
        OW = (W + PL + PR - EW) // self.strides[1] + 1
        return OH, OW

    def offsets(self) -> Iterator[Pair]:
        """Yield the elements (i, j) of the window, row by row."""
        for i in range(self.size[0]):
            for j in range(self.size[1]):
                yield i, j

    def slices(self, i: int, j: int, output_size: Pair) -> tuple[slice, slice, slice]:
        """Return the part of a padded (N, H, W, C) image that element (i, j) covers over all positions."""
        rows, columns = (
            slice(offset * dilation, offset * dilation + stride * (count - 1) + 1, stride)
            for offset, dilation, stride, count in zip((i, j), self.dilation, self.strides, output_size, strict=True)
        )
        return slice(None), rows, columns

    def interior(self, image_size: Pair) -> tuple[slice, slice, slice]:
        """Return the part of a padded (N, H, W, C) image that is not padding."""
        (PT, _), (PL, _) = self.padding
        H, W = image_size
        return slice(None), slice(PT, PT + H), slice(PL, PL + W)

    def padded_size(self, image_size: Pair) -> Pair:
        """Return (H + PT + PB, W + PL + PR)."""
        return image_size[0] + sum(self.padding[0]), image_size[1] + sum(self.padding[1])

    def flipped(self) -> "Window":
        """Return the window of the input gradient for stride 1; padding wider than the kernel gives a negative one."""
        (PT, PB), (PL, PR) = self.padding
        last_h, last_w = self.extent[0] - 1, self.extent[1] - 1
        padding = (last_h - PT, last_h - PB), (last_w - PL, last_w - PR)
        return Window(self.size, padding=padding, dilation=self.dilation)

    def valid_counts(self, xp: Any, image_size: Pair) -> Any:
        """Return how many elements of each window lie inside the image: integers (OH, OW, 1)."""
        sides: list[Any] = []
        for axis, positions in enumerate(self.output_size(image_size)):
            starts = xp.arange(positions) * self.strides[axis] - self.padding[axis][0]
            inside: Any = 0
            for offset in range(self.size[axis]):
                at = starts + offset * self.dilation[axis]
                inside = inside + ((at >= 0) & (at < image_size[axis]))
            sides.append(inside)
        return (sides[0][:, None] * sides[1][None, :])[:, :, None]
