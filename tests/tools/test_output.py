"""What is printed: on outputs of any kind and encoding, and with names that are data, whatever stands in them."""

import importlib
import io
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gpucnn
from gpucnn import layers, metrics
from gpucnn.backends import Backend
from gpucnn.core.console import PlainConsole
from gpucnn.core.text import for_output, printable
from gpucnn.errors import DataError
from gpucnn.training import progress
from tests.helpers import small_model, stripes

HOSTILE = ["\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\rsure", "\u202eevil", "a\nb", "\ud800", "\udce9", "\x00"]
MARKUP = ["[bold]x[/bold]", "[/x]", "[link=http://evil]y[/link]", "[red]fox", "cat [old]", ":smile:", "[", "\\[x]"]
ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437"]


class Tee:
    """The class that copies what is printed, as in many training scripts: it has `write` and nothing else."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


@pytest.fixture
def encoded(monkeypatch):
    """Make standard output one of an encoding; return what was written to it so far."""

    def use(encoding):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
        monkeypatch.setattr("sys.stdout", stream)
        return lambda: raw.getvalue().decode(encoding)

    return use


# Names


def test_printable_escapes_what_a_terminal_would_obey():
    assert [printable(name) for name in HOSTILE] == [
        r"\x1b]0;title\x07",
        r"\x1b[2J\x1b[H",
        r"\x9b31m",
        r"\rsure",
        r"\u202eevil",
        r"a\nb",
        r"\ud800",
        r"\xe9",
        r"\x00",
    ]
    assert printable("a\nb\tc", lines=True) == "a\nb\tc"
    for name in (*MARKUP, "naïve", "日本", "👩‍🔬", "שלום"):
        assert printable(name) == name


def test_errors_show_printable_names(encoded):
    shown = encoded("cp1252")
    print(DataError("HTTP 500 \x1b]0;title\x07, café…\nnext"))
    print(gpucnn.LayerError("\udce9"))
    assert shown() == "HTTP 500 \\x1b]0;title\\x07, café…\nnext\n\\xe9\n".replace("\n", os.linesep)


@pytest.mark.parametrize("names", [HOSTILE, MARKUP], ids=["hostile", "markup"])
def test_names_of_a_model_are_escaped(run, names, tmp_path):
    K = len(names)
    model = gpucnn.Model([layers.Flatten(), layers.Dense(K), layers.Softmax()], (28, 28, 1), backend="numpy")
    model.compile()
    model.class_names, model.name = names, names[0]
    model.save("model.safetensors")
    Image.new("L", (28, 28)).save("black.png")
    status, shown, errors = run("predict", "black.png", "--model", "model.safetensors", "--top", K, "--json", "o.json")
    assert (status, errors) == (0, "")
    for name in names:
        assert printable(name) in shown
    assert not set(shown) & set("\x1b\x07\x9b\r\u202e\ud800\udce9\x00")
    listed = json.loads((tmp_path / "o.json").read_bytes())["images"][0]["classes"]
    assert sorted(entry["class"] for entry in listed) == sorted(names)  # the same names come back
    model.summary()
    print(model)


def test_names_of_folders_are_not_markup(run, tmp_path):
    """`gpucnn train --run-dir "x [/bold] y"` ended with a MarkupError and an unusable folder."""
    generator = np.random.default_rng(0)
    for name in ("cat [tabby]", "[red]fox", "a:smile:b"):
        (tmp_path / "photos [v2]" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos [v2]" / name / f"{number}.png")
    options = ("--data", "images", "--data-dir", "photos [v2]", "--epochs", 1, "--run-dir", "x [/bold] y")
    status, shown, errors = run("train", *options)
    assert (status, errors) == (0, "")
    assert "  data      photos [v2]: " in shown
    assert f"  saved     {Path('x [/bold] y', 'model.safetensors')}" in shown
    shown = run("test", "x [/bold] y")[1]
    for name in ("cat [tabby]", "[red]fox", "a:smile:b"):
        assert f"\n  {name} " in shown
    assert run("bench", "[/x]")[0] == 1


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode here")
def test_names_that_are_not_utf8(run, tmp_path):
    """A folder b"caf\\xe9": every command shows something for it, and JSON leads back to it."""
    generator = np.random.default_rng(0)
    for name in (b"caf\xe9", b"na\xefve"):
        folder = os.fsencode(tmp_path) + b"/photos/" + name
        os.makedirs(folder)
        for number in range(6):
            pixels = generator.integers(0, 255, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder + b"/%d.png" % number)
    assert run("train", "--data", "images", "--data-dir", "photos", "--epochs", 1, "--run-dir", "run")[0] == 0
    image = os.path.join("photos", os.fsdecode(b"caf\xe9"), "0.png")
    for command in (
        ("test", "run"),
        ("predict", image, "--model", "run", "--json", "p.json", "--show", "p.png"),
        ("report", "run"),
        ("show", "confusion", "run"),
        ("show", "mistakes", "run"),
    ):
        status, shown, errors = run(*command)
        assert (status, errors) == (0, ""), command
        assert command[0] in ("report", "show") or r"caf\xe9" in shown
    (result,) = json.loads((tmp_path / "p.json").read_bytes())["images"]
    assert result["image"] == image
    assert {entry["class"] for entry in result["classes"]} == {os.fsdecode(b"caf\xe9"), os.fsdecode(b"na\xefve")}
    assert r"caf\xe9" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_console_is_the_only_output():
    """No other console than the one that takes names as data, and no markup, anywhere in the package."""
    for path in Path(gpucnn.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "console.py":
            assert "rich.console" not in text, path
        assert "rich.markup" not in text, path
        assert "[/]" not in text, path


# Outputs


def everything(model, x, y):
    """Fit, and print all that the library prints."""
    model.fit(x, y)
    model.summary()
    print(model)
    print(model.profile(x, y, repeats=1))
    print(gpucnn.check_layer(layers.Dense(2), (3,)))
    try:
        model.fit(x, y + 99)
    except gpucnn.GpucnnError as error:
        print(error)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_output_of_any_encoding(encoded, encoding):
    shown = encoded(encoding)
    everything(small_model(), *stripes(20))
    assert "epoch 1/1: loss" in shown()
    assert "(8, 8, 1) -> (3,)" in shown()
    assert "8x8x1" in shown() or encoding in ("latin-1", "cp1252")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_commands_print_in_any_encoding(run, encoding, encoded, trained, digits, capsys):
    Image.new("L", (28, 28), 255).save("white.png")
    shown = encoded(encoding)
    for command in (
        ("doctor",),
        ("profile", "--network", "network-1", "--batch-size", 2, "--repeats", 1),
        ("predict", "white.png", "--model", trained),
        ("test", trained),
        ("--help",),
    ):
        assert run(*command)[0] == 0, command
    assert "26x26x4" in shown() or encoding in ("latin-1", "cp1252")
    assert run("train", "--network", "é…")[0] == 1


def test_output_that_only_writes(monkeypatch):
    tee = Tee()
    monkeypatch.setattr("sys.stdout", tee)
    everything(small_model(), *stripes(20))
    assert "epoch 1/1: loss" in tee.text
    assert "(8, 8, 1) → (3,)" in tee.text


def test_output_that_is_none(monkeypatch):
    """A program without a console, made for Windows, has None for standard output."""
    monkeypatch.setattr("sys.stdout", None)
    everything(small_model(), *stripes(20))
    monkeypatch.undo()
    assert for_output("→") == "→"


class Mute(io.StringIO):
    """A stream whose terminal has gone: asking it fails."""

    def isatty(self):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("make", [io.StringIO, Mute])
@pytest.mark.parametrize("close", [False, True])
def test_output_that_is_closed_does_not_end_fit(monkeypatch, make, close):
    out = make()
    if close:
        out.close()
    monkeypatch.setattr("sys.stdout", out)
    model = gpucnn.Model([layers.Dense(2), layers.Softmax()], (3,), backend="numpy").compile()
    model.summary()
    history = model.fit(np.ones((8, 3), "float32"), np.arange(8) % 2, epochs=2)
    assert len(history.history["loss"]) == 2
    assert close or "epoch 2/2" in out.getvalue()


def test_output_that_nobody_reads_ends_a_command_silently():
    """`gpucnn doctor | true`."""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "gpucnn", "doctor"]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("option", "found"),
    [
        (("train", "--run-dir", "a" * 300, "--epochs", "0.01"), "OSError: " + "a" * 300 + ": File name too long"),
        (("profile", "--batch-size", "1000000000000"), "choose a smaller --batch-size"),
    ],
)
def test_errors_of_the_system_end_with_a_sentence(run, option, found):
    status, _, errors = run(*option)
    assert status == 1
    assert found in errors
    assert "Traceback" not in errors


def test_doctor_in_a_source_tree(run, monkeypatch):
    version = metadata.version

    def not_installed(name):
        if name == "gpucnn":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.import_module("gpucnn.cli.doctor").metadata, "version", not_installed)
    status, shown, _ = run("doctor")
    assert status == 0
    assert f"gpucnn    {gpucnn.__version__}, not installed, run from {Path(gpucnn.__file__).parents[1]}" in shown


# Terminals


@pytest.fixture
def terminal(monkeypatch):
    """Let standard output say that it is a terminal of a kind."""

    def use(kind="xterm", columns=80, **settings):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": kind, "COLUMNS": str(columns), **settings}.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("dumb", {}), ("unknown", {}), ("xterm", {"TTY_COMPATIBLE": "0"}), ("xterm", {"TTY_INTERACTIVE": "0"})],
)
def test_progress_on_a_dumb_terminal_is_lines(terminal, kind, settings):
    terminal(kind, **settings)
    assert type(progress.make_progress("auto")) is progress.Lines


def test_progress_in_a_file_is_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert type(progress.make_progress("auto")) is progress.Lines


def shown_epochs(terminal, capsys, epochs, **more):
    """Return what a terminal shows of a training run of a number of epochs."""
    terminal(**more)
    x, y = stripes(20)
    small_model().fit(x, y, epochs=epochs, batch_size=10, validation_data=(x, y))
    return capsys.readouterr().out


def test_progress_bar_costs_the_same_per_epoch_for_many_epochs(terminal, capsys, monkeypatch):
    """Each epoch was drawn again with each later one, 42 s of them for 400 epochs."""
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 100)  # so that the clock has no say in what is drawn
    few, many = (len(shown_epochs(terminal, capsys, epochs)) / epochs for epochs in (5, 60))
    assert many < 1.2 * few


def test_progress_bar_leaves_one_row_per_epoch(terminal, capsys):
    terminal()
    console = PlainConsole(height=24)
    bar, running = progress.Bar(console), []
    logs = {"loss": 0.1234, "accuracy": 0.98, "val_loss": 0.5, "val_accuracy": 0.9, "seconds": 2.0, "val_seconds": 0.1}
    with bar:
        for epoch in range(30):
            bar.begin_epoch(epoch, 30, 4)
            running.append([task.fields["epoch"] for task in bar.progress.tasks])
            bar.end_epoch(logs)
            assert not bar.progress.tasks
    assert running == [[f"{epoch + 1:2}/30"] for epoch in range(30)]
    shown = capsys.readouterr().out
    for epoch in range(1, 31):
        assert f"epoch {epoch:2}/30" in shown
    assert " ... " not in shown
    assert max(map(len, plain_lines(shown))) <= 80


def plain_lines(shown):
    """Return the lines of what a terminal got, without its orders."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()


def test_progress_bar_labels_its_times(terminal, capsys, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))  # a step takes a second
    bar = progress.Bar(PlainConsole())
    bar.begin_epoch(0, 2, 100)
    bar.step(metrics.RunningMeans(Backend(), []))
    assert bar.progress.tasks[0].fields["times"] == "ETA 1:39 / total 3:19"
    bar = progress.Bar(PlainConsole())
    bar.begin_epoch(0, 1, 100)
    bar.step(metrics.RunningMeans(Backend(), []))
    assert bar.progress.tasks[0].fields["times"] == "ETA 1:39"


@pytest.mark.parametrize(("columns", "rows"), [(80, 2), (120, 2), (160, 1)])
def test_progress_bar_breaks_between_training_and_validation(terminal, capsys, columns, rows):
    terminal(columns=columns)
    with progress.Bar(PlainConsole()) as bar:
        bar.begin_epoch(9, 30, 352)
        logs = {"loss": 7.1234, "accuracy": 0.98, "val_loss": 7.8858, "val_accuracy": 0.108, "seconds": 29.0}
        bar.end_epoch(logs)
    lines = [line.rstrip() for line in plain_lines(capsys.readouterr().out) if "accuracy" in line]
    assert len(lines) == rows
    assert lines[-1].endswith("validation loss 7.8858, accuracy 10.80 %" if rows == 2 else "accuracy 10.80 %")
    assert lines[0].startswith("epoch 10/30 ")


def test_progress_bar_keeps_an_interrupted_epoch(terminal, capsys):
    terminal()
    with progress.Bar(PlainConsole()) as bar:
        bar.begin_epoch(2, 9, 100)
    assert not bar.progress.tasks  # what is drawn again is wiped out, and what was printed stays
    assert [line.split()[:2] for line in plain_lines(capsys.readouterr().out) if line][-1] == ["epoch", "3/9"]
