"""Whether a captured pass is what the layers compute: its first replay is compared with an eager pass, bit for bit.

What a layer does past everything that a capture sees, code in C that reads an array's memory, say, or a count in a
variable of a module, shows in the numbers of a replay, if what it read has changed since the capture:

    captured    x₁, weights₁, buffers₁ ──▶ y₁
    replayed    x₂, weights₂, buffers₂ ──▶ y ─┐
    eager       x₂, weights₂, buffers₂ ──▶ y₂ ┴─ equal?      y₂ is used, either way

Training steps change all three. In inference the weights may stay, and x may be the same array: what was the same
ever since the capture stays in doubt, and the first replay after it has changed is compared as well.
"""

from gpucnn.backends import Array
from gpucnn.layers.base import Buffer, Layer, Parameter

SAMPLES = 4  # the number of elements along each axis, about, by which a changed array is noticed


class State:
    """What passes change in a network: copies of its gradients and its buffers."""

    def __init__(self, network: Layer) -> None:
        parameters, buffers = network.parameters(), network.buffers()
        gradients = {f"the gradient of {path}": p.grad for path, p in parameters.items() if p.grad is not None}
        self._arrays = gradients | {path: buffer.value for path, buffer in buffers.items()}
        self._copies = {what: array.copy() for what, array in self._arrays.items()}

    def restore(self) -> None:
        """Write the copies back to where they came from."""
        for what, array in self._arrays.items():
            array[...] = self._copies[what]

    def difference(self, other: "State") -> str:
        """Return what another state of the network holds other bits of; "" for nothing."""
        pairs = ((what, copy, other._copies.get(what)) for what, copy in self._copies.items())
        return next((what for what, one, two in pairs if two is None or not same_bits(one, two)), "")


class Doubts:
    """The arrays that a captured pass reads and that have been the same ever since."""

    def __init__(self, network: Layer, x: Array) -> None:
        holders: list[Parameter | Buffer] = list(network.parameters().values())
        holders += [buffer for buffer in network.buffers().values() if not buffer.on_host]
        self._of = [(holder, _sample(holder.value)) for holder in holders]
        self._x: bytes | None = _sample(x)
        self._compared = False
        # what is still in doubt when the current comparison is over
        self._open: tuple[list[tuple[Parameter | Buffer, bytes]], bytes | None] = self._of, self._x

    def any_raised(self, x: Array) -> bool:
        """Return whether a replay for x should be compared: no one was yet, or what was in doubt has changed."""
        same = [(holder, then) for holder, then in self._of if _sample(holder.value) == then]
        x_changed = self._x is not None and _sample(x) != self._x
        self._open = same, None if x_changed else self._x
        return not self._compared or len(same) < len(self._of) or x_changed

    def settle(self) -> None:
        """Take what was raised as compared, to the end of the pass: one that is interrupted proves nothing."""
        (self._of, self._x), self._compared = self._open, True


def _sample(array: Array) -> bytes:
    """Return some of an array's numbers, from all over it."""
    return bytes(array[tuple(slice(None, None, max(1, side // SAMPLES)) for side in array.shape)].tobytes())


def same_bits(one: Array, two: Array) -> bool:
    """Return whether two arrays of the host are the same; a NaN is like any other."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.tobytes() == two.tobytes():
        return True
    numbers = one == one
    return bool((numbers == (two == two)).all()) and one[numbers].tobytes() == two[numbers].tobytes()
