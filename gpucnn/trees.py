"""Trees: plain data in dictionaries and lists, with host arrays at their leaves, as one safetensors file.

The arrays are the file's tensors, named by their path; what remains is JSON in its metadata, with the name of an array
in its place. Beside it stands a digest of everything, so a file with a single wrong bit is known to be damaged. Nothing
is pickled: a file from a stranger holds numbers and words, and nothing else.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gpucnn.errors import CheckpointError

Tree = Any  # dict with words as keys, list, str, int, float, bool, None, or a host array
ARRAY = "array:"  # a dictionary with this key alone stands for the array that it names


def to_bytes(tree: Tree, key: str) -> bytes:
    """Return a tree as the content of a file, under a key that says what it is.

    Raises:
        CheckpointError: something in it is neither an array nor plain data; names it by its path.
    """
    arrays: dict[str, Any] = {}
    text = json.dumps(_without_arrays(tree, "", arrays), separators=(",", ":"))
    return save(arrays, metadata={key: text, "digest": _digest(text, arrays)})


def from_file(path: Path, key: str) -> Tree:
    """Read a tree; tuples have become lists.

    Raises:
        CheckpointError: the file is missing, cut, altered, or holds something else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a whole file ({error}); was it cut short?") from error
    text = metadata.get(key)
    if text is None:
        raise CheckpointError(f"{path}: holds no {key}; was it written by another program?")
    if metadata.get("digest") != _digest(text, arrays):
        raise CheckpointError(f"{path}: its content is not what was written; is the disk damaged, or was it edited?")
    try:
        return _with_arrays(json.loads(text), arrays)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error})") from error


def _without_arrays(value: Tree, path: str, arrays: dict[str, Any]) -> Any:
    """Return plain data, and note the arrays by their paths."""
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
        f"{path or 'the tree'} is {value!r:.60}, which a file cannot hold; expected host arrays, numbers, words, None, "
        "lists, or dictionaries by words"
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
