"""The command line, one module per command."""

import typer

from gpucnn.cli.bench import bench
from gpucnn.cli.doctor import doctor
from gpucnn.cli.parity import parity
from gpucnn.cli.predict import predict
from gpucnn.cli.profile import profile
from gpucnn.cli.report import report
from gpucnn.cli.reproduce import reproduce
from gpucnn.cli.runs import runs
from gpucnn.cli.show import show
from gpucnn.cli.test import test
from gpucnn.cli.train import train

app = typer.Typer(
    name="gpucnn",
    help="Train CNNs with NumPy on a CPU or CuPy on a GPU.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (train, test, predict, report, reproduce, runs, profile, bench, parity, doctor):
    app.command()(command)
app.add_typer(show, name="show")


@app.callback(invoke_without_command=True)
def version(requested: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Train CNNs with NumPy on a CPU or CuPy on a GPU."""
    if requested:
        from gpucnn.version import __version__

        print(f"gpucnn {__version__}")
        raise typer.Exit
