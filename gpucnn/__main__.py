"""The command line: `gpucnn` and `python -m gpucnn`."""

import contextlib
import os
import sys


def main() -> None:
    """Run a command; a user's mistake ends with its message and exit status 1, without a trace.

    Where the output is no longer read, as behind `| head -1`, typer exits with status 1 and prints nothing.
    """
    from gpucnn.cli import app
    from gpucnn.cli.common import say_error
    from gpucnn.core.text import REPLACING
    from gpucnn.errors import GpucnnError

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for help and usage errors, which typer prints itself
            stream.reconfigure(errors=REPLACING)
    try:
        _reject_renamed(sys.argv[1:])
        app(prog_name="gpucnn")
    except GpucnnError as error:
        say_error(error)
        sys.exit(1)
    except OSError as error:  # such as a full disk below standard output, or a name that is too long
        say_error(f"{error.filename or 'standard output'}: {error.strerror or error}", type(error).__name__)
        _drop_output()
        sys.exit(1)
    except MemoryError as error:
        say_error(f"{error or 'out of memory'}; choose a smaller --batch-size", "MemoryError")
        sys.exit(1)


RENAMED_OPTIONS = {
    "--as-is": "--no-centre",
    "--beside": "--compare",
    "--hold-out": "--validation-split",
    "--views": "--tta",
}
RENAMED_COMMANDS = {"kernels": "filters-by-epoch", "maps": "feature-maps"}  # of `show`


def _reject_renamed(arguments: list[str]) -> None:
    """Refuse an option or command by its former name, and say what it is called now."""
    from gpucnn.errors import ConfigurationError

    for argument in arguments:
        option = argument.partition("=")[0]
        if option in RENAMED_OPTIONS:
            raise ConfigurationError(f"{option} was renamed; write {RENAMED_OPTIONS[option]}")
    if arguments[:1] == ["show"] and arguments[1:2] and arguments[1] in RENAMED_COMMANDS:
        old = arguments[1]
        raise ConfigurationError(f"show {old} was renamed; write: gpucnn show {RENAMED_COMMANDS[old]}")


def _drop_output() -> None:
    """Send what is still to be written nowhere, or Python would complain of it when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
