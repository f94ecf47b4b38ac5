"""Trees: plain data in dictionaries and lists, with host arrays at their leaves, as one safetensors file.

The arrays are the file's tensors, named by their path; the rest is JSON in its metadata, with the name of an array in
its place. A digest of everything stands next to it, so that a single wrong bit is detected. Nothing is pickled: a file
from a stranger holds numbers and strings, and nothing else.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gpucnn.errors import CheckpointError

# the dtypes of safetensors files that NumPy has, by their names there
TYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64"}

Tree = Any  # a dict with strings as keys, a list, str, int, float, bool, None, or a host array
ARRAY = "array:"  # a dictionary with this key alone stands for the array that it names


def to_bytes(tree: Tree, key: str) -> bytes:
    """Return a tree as the bytes of a file, under a key that says what it is.

    Raises:
        CheckpointError: something in it is neither an array nor plain data; gives its path.
    """
    arrays: dict[str, Any] = {}
    text = json.dumps(_without_arrays(tree, "", arrays), separators=(",", ":"))
    return save(arrays, metadata={key: text, "digest": _digest(text, arrays)})


def from_file(path: Path, key: str) -> Tree:
    """Read a tree; tuples come back as lists.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or holds something else.
    """
    described, arrays = read_described(path, key, key, has_digest=True)
    try:
        return _with_arrays(described, arrays)
    except (TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error})") from error


def read_described(
    path: Path, key: str, what: str, *, format_number: int | None = None, has_digest: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Return the plain data that a safetensors file holds in its metadata under a key, and its arrays by name.

    Arguments:
        what: the file is to hold, for messages.
        format_number: the "format" that the plain data must have, if any.
        has_digest: whether a hash of everything stands next to it.

    Raises:
        CheckpointError: the file is missing, damaged, altered, of another format or holds something else.
    """
    metadata, arrays = read_tensors(path)
    if key not in metadata:
        raise CheckpointError(f"{path}: does not hold {what}; was it written by another program?")
    if has_digest and metadata.get("digest") != _digest(metadata[key], arrays):
        raise CheckpointError(f"{path}: its content is not what was written; is the disk damaged, or was it edited?")
    try:
        described = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error})") from error
    found = described.get("format") if isinstance(described, dict) else described
    if format_number is not None and (type(found) is not int or found != format_number):
        raise CheckpointError(
            f"{path}: holds {what} of format {found!r}, and this gpucnn reads format {format_number}; was it written "
            "by another version or program?"
        )
    return described, arrays


def misfit(found: Tree, like: Tree, path: str = "", depth: int = 100) -> str:
    """Return a message that says where a tree that was read has not the structure of another, or "".

    Arrays must have the same shape and kind of dtype, dictionaries the same keys, lists the same length; None in the
    other tree stands for anything. Only `depth` levels of dictionaries and lists are compared.
    """
    pairs: list[tuple[str, Any, Any]] = []
    if like is None:
        fits = True
    elif hasattr(like, "dtype"):
        fits = hasattr(found, "dtype") and found.shape == like.shape and found.dtype.kind == like.dtype.kind
    elif isinstance(like, dict):
        fits = isinstance(found, dict) and (depth == 0 or found.keys() == like.keys())
        pairs = [(f"{path}.{key}" if path else key, found[key], like[key]) for key in like] if fits and depth else []
    elif isinstance(like, list | tuple):
        fits = isinstance(found, list) and (depth == 0 or len(found) == len(like))
        pairs = [(f"{path}.{place}", found[place], like[place]) for place in range(len(like))] if fits and depth else []
    else:
        numbers = isinstance(like, float) and not isinstance(found, bool)
        fits = isinstance(found, int | float) if numbers else type(found) is type(like)
    if not fits:
        return f"{path or 'the whole'} is {_kind(found)} where {_kind(like)} was expected"
    return next((wrong for name, one, other in pairs if (wrong := misfit(one, other, name, depth - 1))), "")


def _kind(value: Tree) -> str:
    """Describe a part of a tree."""
    if hasattr(value, "dtype"):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, dict):
        return f"a dictionary of {', '.join(value) or 'nothing'}"[:200]
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else f"{value!r:.40}"


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the metadata of a safetensors file, and its arrays by their names.

    Raises:
        CheckpointError: there is no such file, it is damaged, or holds a dtype that NumPy does not have.
    """
    if not os.path.isfile(path):  # which an odd name does not stop
        found = "is a folder" if os.path.isdir(path) else "is not a regular file"
        what = found if os.path.exists(path) else "there is no such file"
        raise CheckpointError(f"{path}: {what}")
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            types = {name: file.get_slice(name).get_dtype() for name in names}
            if foreign := next((name for name in names if types[name] not in TYPES), None):
                raise CheckpointError(
                    f"{path}: its tensor {foreign!r:.80} holds numbers of type {types[foreign]}, which gpucnn does not "
                    "read; save it with F32, F16 or F64 instead"
                )
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({error}); was it truncated?") from error


def _without_arrays(value: Tree, path: str, arrays: dict[str, Any]) -> Any:
    """Return plain data, and put the arrays into a dictionary by their paths."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "dtype") and value.dtype.kind in "biuf":
        name = path
        while name in arrays:  # {"a/b": …} and {"a": {"b": …}} have one path
            name += "'"
        array = value if value.shape else value.reshape(1).reshape(())  # of an array's element, an array
        arrays[name] = array if array.flags.c_contiguous else array.copy()
        return {ARRAY: name}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value) and ARRAY not in value:
        return {key: _without_arrays(item, f"{path}/{key}" if path else key, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, f"{path}/{place}", arrays) for place, item in enumerate(value)]
    raise CheckpointError(
        f"{path or 'the tree'} is {value!r:.60}, which a file cannot hold; expected host arrays, numbers, strings, "
        "None, lists, or dictionaries with strings as keys"
    )


def _with_arrays(value: Any, arrays: dict[str, Any]) -> Tree:
    if isinstance(value, dict):
        if ARRAY in value:
            return arrays[value[ARRAY]]
        return {key: _with_arrays(item, arrays) for key, item in value.items()}
    return [_with_arrays(item, arrays) for item in value] if isinstance(value, list) else value


def _digest(text: str, arrays: dict[str, Any]) -> str:
    """Return a hash of the description and of every array with its name, kind and shape."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view("uint8"))
    return digest.hexdigest()
