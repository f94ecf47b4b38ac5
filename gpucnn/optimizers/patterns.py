"""Patterns that name parameters by path: `"*.bias"`, `"conv2d_1.weight"`, or a layer alone, `"conv2d_1"`."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from gpucnn.errors import ConfigurationError


def check_patterns(patterns: str | Sequence[str], what: str) -> tuple[str, ...]:
    """Return one pattern or several as a tuple, or raise ConfigurationError where they are not strings."""
    listed = (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(p, str) and p for p in listed):
        raise ConfigurationError(f'{what} must be a pattern such as "*.bias", or a list of them, not {patterns!r}')
    return tuple(listed)


def is_matched(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern matches a path, or a layer that holds it: `*`, `?` and `[…]` as in names of files."""
    return any(fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*") for pattern in patterns)


def matched(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the paths that any of the patterns fits, in order.

    Raises:
        ConfigurationError: a pattern fits none; lists the paths there are.
    """
    paths = list(paths)
    for pattern in patterns:
        if not any(is_matched(path, (pattern,)) for path in paths):
            raise ConfigurationError(
                f"no parameter matches {pattern!r}; there are {', '.join(paths) or 'none'}; a pattern is a path with "
                "* for anything, or the name of a layer for all that it holds"
            )
    return [path for path in paths if is_matched(path, patterns)]
