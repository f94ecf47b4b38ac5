"""What a person looks at: summary, profile, progress, pictures; and the named networks."""

import re

import numpy as np
import pytest

import gpucnn
from gpucnn import layers, metrics, networks, plots
from gpucnn.core.console import PlainConsole
from gpucnn.engine import profiling
from gpucnn.errors import ConfigurationError
from gpucnn.testing.strict import StrictBackend
from gpucnn.training import progress
from gpucnn.training.history import History
from tests.helpers import small_model, stripes


def test_summary_shows_every_layer(capsys):
    small_model().summary()
    shown = capsys.readouterr().out
    assert "model: input 8 × 8 × 1, float32" in shown
    for words in ("conv2d_1 ", "8×8×4", "2×2×8", "296", "367"):
        assert words in shown, words


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_summary_and_profile_fit_80_columns(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    model = networks.by_name(name)(backend="numpy")
    model.summary()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["layer", "what", "output", "params", "MFLOP", "kB"]
    ends = next(place for place, line in enumerate(lines) if not line.strip())
    for line in lines[3:ends]:  # only the layer column may be shortened
        assert re.fullmatch(r"\w[\w.]* +\w+\(?[^…]*…? +[\d×]+( +[\d,.]+)*", line), line
    rows = [
        profiling.LayerTime(path, layer.output_shape, 9_999, 10**9, 10**9, 10**8, "winograd-1d", 0.1, 0.1)
        for path, layer in model.network.children()
    ]
    PlainConsole().print(profiling.Profile("numpy", 128, 10, rows).table())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    headings = "layer, algorithm", "output", "params", "MB", "MFLOP", "fwd ms", "bwd ms", "share", "GFLOP/s"
    assert all(heading in lines[1] for heading in headings)
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("layer", "input_shape", "flops"),
    [
        (layers.Conv2D(6, 5, padding="same"), (28, 28, 1), 2 * 28 * 28 * 6 * 25),
        (layers.Conv2D(8, 3, strides=2, groups=4), (9, 9, 16), 2 * 4 * 4 * 8 * 9 * 4),
        (layers.Dense(10), (84,), 2 * 840),
        (layers.Residual([layers.Dense(5), layers.Dense(5)], layers.Dense(5)), (5,), 3 * 50),
        (layers.ReLU(), (5,), 0),
    ],
)
def test_summary_flops(layer, input_shape, flops):
    model = gpucnn.Model([layer], input_shape)
    assert model.network.total_flops() == flops


def test_profile_times_every_layer_and_leaves_the_model_alone(backend):
    x, y = stripes(20)
    model = small_model(backend=backend)
    before = model.state_dict()
    profile = model.profile(x, y, repeats=2)
    assert [row.path for row in profile.layers] == [layer.display_name for layer in model.layers]
    assert all(row.forward_seconds > 0 for row in profile.layers)
    assert profile.layers[0].backward_seconds == 0  # nothing before the first weights has a backward pass
    assert all(row.backward_seconds > 0 for row in profile.layers[1:])
    assert profile.layers[1].flops_forward == 20 * 2 * 64 * 36
    assert profile.layers[1].flops_backward == profile.layers[1].flops_forward  # the first: no gradient of its input
    dense = profile.layers[-2]
    assert dense.flops_backward == 2 * dense.flops_forward > 0
    assert dense.gflops == pytest.approx(3 * dense.flops_forward / dense.seconds / 1e9)
    itemsize = 4
    assert all(row.output_bytes == 20 * itemsize * np.prod(row.output_shape) for row in profile.layers)
    data = profile.as_data()
    assert data["batch_size"] == 20
    assert [row["path"] for row in data["layers"]] == [row.path for row in profile.layers]
    assert all(np.array_equal(array, model.state_dict()[path]) for path, array in before.items())
    assert "conv2d_1" in str(profile)
    assert "batch of 20" in str(profile)


def test_profile_of_a_model_that_is_not_compiled():
    model = gpucnn.Model([layers.Dense(3)], (4,))
    assert len(model.profile(np.ones((2, 4)), np.ones((2, 3))).layers) == 1


def test_progress_is_lines_without_a_terminal(capsys):
    x, y = stripes(40)
    small_model().fit(x, y, epochs=2, batch_size=20, validation_data=(x, y))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    number = r"\d+\.\d+"
    pattern = (
        rf"epoch 2/2: loss {number}, accuracy {number} %, validation loss {number}, "
        rf"validation accuracy {number} %, {number} s"
    )
    assert re.fullmatch(pattern, lines[1])


def test_progress_silent_at_verbose_0(capsys):
    x, y = stripes(20)
    small_model().fit(x, y, verbose=0)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 1e-3)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    x, y = stripes(40)
    assert isinstance(progress.make_progress("auto"), progress.Bar)
    small_model().fit(x, y, epochs=2, batch_size=20)
    shown = capsys.readouterr().out
    assert "epoch 1/2" in shown
    assert "epoch 2/2" in shown
    assert "2/2" in shown
    assert "accuracy" in shown


def test_progress_bar_reads_the_device_at_its_refresh_rate(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock) * 0.01)  # a step takes 10 ms
    backend = StrictBackend()
    totals = metrics.RunningMeans(backend, [])
    totals.add(backend.from_host(np.array(1.0)), backend.from_host(np.zeros((2, 2))), None)
    bar = progress.Bar(PlainConsole())
    bar.begin_epoch(0, 1, 100)
    for _ in range(100):
        bar.step(totals)
    assert backend.reads == 4  # one second at four looks a second


def test_history_plot_shows_its_numbers(tmp_path):
    numbers = {
        "loss": [1.0, 0.5, 0.25],
        "cumulative_loss": [1.0, 0.75, 0.6],
        "accuracy": [0.5, 0.75, 1.0],
        "val_accuracy": [0.6, 0.7, 0.8],
    }
    figure = plots.history(History(numbers), tmp_path / "history.png")
    loss, accuracy = figure.axes
    drawn = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in loss.lines}
    assert drawn == {
        "train": ([1, 2, 3], [1.0, 0.5, 0.25]),
        "train (cumulative mean)": ([1, 2, 3], [1.0, 0.75, 0.6]),
    }
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[50, 75, 100], [60, 70, 80]]
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy (%)")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_history_that_is_empty_cannot_be_drawn():
    with pytest.raises(ConfigurationError, match="holds no epoch to draw"):
        plots.history(History())
