"""A user's data as host arrays, or an error with the expression that converts them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpucnn.errors import DataError, DTypeError, ShapeError

HostArray = Any  # numpy.ndarray of any dtype

CHUNK = 1 << 20  # elements that are checked at a time, so that temporary arrays stay small


def host_array(data: Any, what: str = "x") -> HostArray:
    """Return data as an array on the host: arrays of any library, lists of them, images, tables.

    Arguments:
        what: the name of the data in messages: "x", "validation_data[0]".

    Raises:
        DataError: not an array, such as a generator, or masked values.
        ShapeError: a list of samples of different shapes.
        DTypeError: an array of another library that must be copied to the host first.
    """
    _refuse_containers(data, what)
    try:
        array = np.asarray(data)
    except MemoryError:
        raise
    except Exception as error:  # of another library, or NumPy's own
        raise _explained(data, what, error) from error
    if array.dtype.kind == "O" and isinstance(data, list | tuple):
        _refuse_ragged(data, what)
    if isinstance(data, np.ma.MaskedArray) and np.ma.is_masked(data):
        raise DataError(
            f"{what} is a masked array with {int(np.ma.count_masked(data)):,} masked values, which would count like "
            f"all others; pass {what}.filled(value), or remove these samples"
        )
    return array


def named(data: Any, what: str) -> str:
    """Return the expression for data as a NumPy array, for remedies."""
    return what if isinstance(data, np.ndarray) else f"np.asarray({what})"


def _refuse_containers(data: Any, what: str) -> None:
    """Reject what NumPy would wrap as a single object: generators, loaders, dictionaries, text, None."""
    is_plain = isinstance(data, list | tuple | range | int | float | complex | np.generic | memoryview | bytearray)
    if is_plain or any(hasattr(data, name) for name in ("__array__", "__array_interface__", "__array_struct__")):
        return
    kind = type(data).__name__
    if callable(getattr(data, "toarray", None)):
        raise DataError(f"{what} is a sparse {kind}; pass {what}.toarray()")
    if data is None or isinstance(data, str | bytes):
        raise DataError(f"{what} is {data!r}, which is not an array; pass an array (N, …) with a sample in each row")
    if isinstance(data, Mapping):
        raise DataError(f"{what} is a {kind}, which is not an array; pass one of its values, such as {what}['image']")
    raise DataError(
        f"{what} is a {kind}, which is not an array; gpucnn takes whole arrays: collect its samples first, such as "
        f"np.stack([sample for sample, label in {what}]) if it yields samples, or np.concatenate if "
        "it yields batches"
    )


def _explained(data: Any, what: str, error: Exception) -> Exception:
    """Return the error for data that NumPy could not read."""
    if isinstance(data, list | tuple):
        _refuse_ragged(data, what)
    kind = f"{type(data).__module__.split('.')[0]}.{type(data).__name__}"
    if calls := _calls_to_host(data):
        return DTypeError(
            f"{what} is a {kind} that cannot be read as it is ({str(error).rstrip('.')}); pass {what}{calls}"
        )
    return DataError(
        f"{what} cannot be read as an array: {type(error).__name__}: {error}; pass a NumPy array of numbers"
    )


def _calls_to_host(data: Any) -> str:
    """Return the method calls that copy another library's array to the host; "" if none are known."""
    if callable(getattr(data, "numpy", None)):  # a tensor of PyTorch, which has four reasons
        calls = ".detach()" if getattr(data, "requires_grad", False) is True else ""
        calls += "" if getattr(getattr(data, "device", None), "type", "cpu") == "cpu" else ".cpu()"
        calls += "" if str(getattr(data, "layout", "strided")).endswith("strided") else ".to_dense()"
        calls += ".float()" if "bfloat16" in str(getattr(data, "dtype", "")) else ""
        return f"{calls}.numpy()"
    return ".get()" if callable(getattr(data, "get", None)) else ""  # CuPy's


def _refuse_ragged(data: Any, what: str) -> None:
    """Reject a list that is not an array, by the first item that cannot be read or differs in shape."""
    if isinstance(data, tuple) and len(data) == 2 and not any(np.isscalar(item) for item in data):
        unpacked = "(x_train, y_train), (x_test, y_test)" if all(isinstance(item, tuple) for item in data) else "x, y"
        raise DataError(f"{what} is a tuple of two; if it is a whole data set, unpack it: {unpacked} = {what}")
    first = None
    for place, item in enumerate(data):
        if isinstance(item, str | bytes | None | Mapping):
            raise DTypeError(f"{what}[{place}] is {item!r}; expected numbers")
        shape = host_array(item, f"{what}[{place}]").shape
        first = shape if first is None else first
        if shape != first:
            raise ShapeError(
                f"{what}[0] has shape {first} and {what}[{place}] {shape}; all must have one shape"
                + (": resize or crop them, such as with PIL's image.resize((W, H))" if len(shape) > 1 else "")
                + (f"; if these are batches pass np.concatenate({what})" if len(shape) > 1 < len(first) else "")
            )


def chunks(array: HostArray) -> Iterator[HostArray]:
    """Yield an array (N, …) in parts of about a million elements."""
    each = max(array.size // max(len(array), 1), 1)
    step = max(CHUNK // each, 1)
    for start in range(0, len(array), step):
        yield array[start : start + step]


def is_zero_one(array: HostArray) -> bool:
    """Return whether all elements are 0 or 1, as in one-hot rows, masks and multi-label targets."""
    return all(bool(((part == 0) | (part == 1)).all()) for part in chunks(array))


def check_finite(x: HostArray, what: str, dtype: str) -> None:
    """Reject NaN, infinity, and numbers that overflow a dtype, by the index of the first.

    Raises:
        DataError: there is such a number.
    """
    largest = float(np.finfo(dtype).max)
    if x.dtype.itemsize > np.dtype(dtype).itemsize:  # comparisons with NaN are false
        fine = -largest <= x.min() and x.max() <= largest
    else:
        with np.errstate(all="ignore"):
            fine = bool(np.isfinite(x.sum(dtype=np.float64)))  # one pass
    if fine:
        return
    start, first, count, finite = 0, None, 0, True
    for part in chunks(x):
        beyond = ~(np.abs(part) <= largest)
        if (found := int(beyond.sum())) and first is None:
            place = np.argwhere(beyond)[0].tolist()
            first, finite = (start + place[0], *place[1:]), bool(np.isfinite(part[tuple(place)]))
        count, start = count + found, start + len(part)
    if first is None:
        return
    value = f"{what} holds {x[first]} at index {first}, and {count:,} such value{'s' * (count > 1)} in all"
    if finite:
        raise DataError(
            f"{value}; the maximum of {dtype} is {largest:.2g}: if it stands for a missing number, repair or "
            'remove these samples, else scale the data or use a model of dtype="float64"'
        )
    raise DataError(f"{value}; a network cannot learn from NaN or infinity: repair or remove these samples")


def check_kind(x: HostArray, what: str, name: str, pixels: bool) -> None:
    """Reject inputs that are not real numbers, and integers that may be pixels, whose scale is ambiguous.

    Arguments:
        name: the expression for the array, for remedies.
        pixels: whether the inputs may be pixels; integers are features otherwise.

    Raises:
        DTypeError: with a remedy that preserves the values.
    """
    if x.dtype == np.uint8 or x.dtype.kind in ("fb" if pixels else "fbiu"):
        return
    if x.dtype.kind in "iu":
        raise DTypeError(
            f"{what} holds {x.dtype} from {x.min()} to {x.max()}, whose scale is ambiguous; uint8 pixels 0 … 255 "
            f"count as 0 … 1, floats as they are: pass {_scaled(x, name)}"
        )
    raise DTypeError(f"{what} holds {x.dtype}; expected numbers: {_as_numbers(x, name)}")


def as_inputs(x: HostArray) -> HostArray:
    """Return checked inputs as uint8 or floats: bools count as 0 and 1, integers as they are."""
    if x.dtype.kind == "b":
        return x.view(np.uint8) * np.uint8(255)  # one byte each
    return x if x.dtype == np.uint8 or x.dtype.kind == "f" else x.astype(np.float64)


def _scaled(x: HostArray, name: str) -> str:
    """Return expressions that convert integers to inputs."""
    low, high = int(x.min()), int(x.max())
    if low >= 0 and high <= 1:
        return f'{name}.astype("float32") where these are 0 and 1, or {name}.astype("uint8") for very dark pixels'
    if low >= 0 and high <= 255:
        return f'{name}.astype("uint8") for pixels, or {name}.astype("float32") for the numbers as they are'
    if low >= 0 and high <= 65535:
        return f'({name} / 65535).astype("float32") for pixels of 16 bits, or {name}.astype("float32") for numbers'
    return f'{name}.astype("float32") for the numbers as they are, and scale them to about −1 … 1'


def _as_numbers(x: HostArray, name: str) -> str:
    """Return the expression that converts an array to numbers."""
    if x.dtype.kind == "c":
        return f"pass np.abs({name}) or {name}.real"
    try:
        if x.dtype.kind not in "mM":  # dates and times, which float32 cannot represent
            x.astype(np.float64)
            return f'pass {name}.astype("float32")'
    except (TypeError, ValueError, OverflowError):
        pass
    return "remove or encode what is not a number"


def channel_statistics(data: Any, what: str) -> tuple[HostArray, HostArray]:
    """Return mean and standard deviation of each channel (C,) of host data (N, …, C), as inputs count: uint8 as 0 … 1.

    One pass over chunks, combined by Chan's rule in float64: accurate for means far above the standard deviation, in
    the memory of a chunk.

    Raises:
        ShapeError, DTypeError, DataError: data that `fit` would reject.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    x = host_array(data, what)
    if x.ndim < 2:
        raise ShapeError(f"{what} has shape {x.shape}; expected samples (N, …, C), such as images (N, H, W, C)")
    if x.size == 0:
        raise DataError(f"{what} is empty: shape {x.shape}; expected at least one sample")
    check_kind(x, what, named(data, what), pixels=x.ndim == 4)
    count, mean, squares = 0, 0.0, 0.0
    with np.errstate(all="ignore"):  # non-finite values are reported below
        for part in chunks(x):
            rows = as_inputs(part).reshape(-1, x.shape[-1]).astype(np.float64)
            part_mean = rows.mean(axis=0)
            rows -= part_mean
            shift, total = part_mean - mean, count + len(rows)
            squares = squares + (rows * rows).sum(axis=0) + shift * shift * (count * len(rows) / total)
            mean, count = mean + shift * (len(rows) / total), total
    if not np.isfinite(squares).all():
        check_finite(x, what, "float32")
    scale = 255.0 if as_inputs(x[:0]).dtype == np.uint8 else 1.0
    return np.asarray(mean) / scale, np.sqrt(squares / count) / scale
