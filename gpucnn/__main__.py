"""The command line: `gpucnn` and `python -m gpucnn`."""

import sys


def main() -> None:
    """Run a command; a user's mistake ends with its message and exit status 1, without a trace."""
    from gpucnn.cli import app
    from gpucnn.cli.common import errors
    from gpucnn.errors import GpucnnError

    try:
        app(prog_name="gpucnn")
    except (GpucnnError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        errors.print(f"[bold red]{type(error).__name__}:[/]", end=" ")
        errors.print(str(error) or "there is not enough memory", markup=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
