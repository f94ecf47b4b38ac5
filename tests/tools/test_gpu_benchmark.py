"""The GPU benchmark, without a GPU: every section over the simulated one, its tables, and the script around it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu, gpu_nets
from gpucnn.backends import Backend
from tests import host_kernels, simulated_cupy

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "run_gpu.sh"
TINY = dataclasses.replace(
    gpu.QUICK,
    rounds=2,
    most_calls=1,
    repeat=(("fp32", 5, 4),),
    memory=(("fp16", 4),),
    workspace=((4, 8, 4, 1),),
    conv=((4, 8, 4, "fp16", "all"), (4, 8, 4, "tf32", "weight gradient")),
    nets=(("lenet", 2, "fp32"), ("resnet9", 2, "fp16")),
    width=2,
    training=(("network-3", "fp32", 8, 1), ("resnet9", "fp16", 8, 1)),
    digits=32,
)
SUBJECT = {"median_ms", "min_ms", "calls"}


@pytest.fixture(scope="module")
def simulated():
    if reason := host_kernels.why_not():
        pytest.skip(reason)
    return simulated_cupy.load_backend()()


@pytest.fixture
def bench(simulated, monkeypatch):
    monkeypatch.delenv("GPUCNN_DATA", raising=False)
    gpu._training_data.cache_clear()
    return gpu.Bench(gpu_nets.Ours(simulated), None, TINY, child="numpy")


class Peer:
    """PyTorch's place, taken by functions that are given."""

    def __init__(self, step):
        self.step, self.precisions = step, []

    def set_precision(self, precision):
        self.precisions.append(precision)

    def clock(self, call, count):
        for _ in range(count):
            call()
        return 0.002 * count

    def tidy(self):
        pass


def rows_of(bench, section):
    result = bench.run([section])
    assert result["errors"] == {}
    assert result["finished"]
    assert len(result[section]) == len(list(gpu.SECTIONS[section].cases(bench.settings)))
    return result[section]


# --- the sections -------------------------------------------------------------------------------


def test_repeat_finds_equal_runs(bench):
    (row,) = rows_of(bench, "repeat")
    assert row == {
        "precision": "fp32",
        "steps": 5,
        "batch": 4,
        "again": True,
        "captured": True,
        "largest_difference": 0.0,
    }


def test_repeat_finds_unequal_runs(bench, monkeypatch):
    states = iter([{"weight": np.float32([1, 2])}, {"weight": np.float32([1, 2])}, {"weight": np.float32([1, 2.5])}])
    monkeypatch.setattr(gpu, "_trained", lambda *args, **kwargs: next(states))
    (row,) = rows_of(bench, "repeat")
    assert (row["again"], row["captured"], row["largest_difference"]) == (True, False, 0.5)


def test_memory(bench):
    (row,) = rows_of(bench, "memory")
    assert row["gpucnn"].keys() == row["gpucnn_graph"].keys() == {"gpu_mb", "pool_mb"}
    assert row["gpucnn"]["pool_mb"] > 0
    assert row["torch"] is None


def test_first_use_starts_processes(bench):
    (row,) = rows_of(bench, "first_use")
    assert 0 < row["cold_backend_s"] < row["cold_s"] < 60
    assert row["warm_s"] == [row["warm_median_s"]]


def test_first_use_that_fails_says_why(bench):
    bench.child = "nothing"
    errors = bench.run(["first_use"])["errors"]
    assert "there is no backend named 'nothing'" in errors["first_use 1"]


def test_workspace_measures_with_the_size_it_reports_and_restores_it(bench, monkeypatch):
    backend, rooms = bench.ours.backend, []
    before, forward = backend._workspace, backend.conv2d

    def watched(*args):
        rooms.append(backend._workspace)
        return forward(*args)

    monkeypatch.setattr(backend, "conv2d", watched)
    (row,) = rows_of(bench, "workspace")
    assert set(rooms) == {1_000_000}
    assert backend._workspace == before
    assert row["room_mb"] == 1
    assert row["gpucnn"].keys() == row["gpucnn_graph"].keys() == SUBJECT


def test_conv(bench):
    whole, part = rows_of(bench, "conv")
    for row, operations in ((whole, 3), (part, 1)):
        assert row["gpucnn"].keys() == row["gpucnn_graph"].keys() == SUBJECT
        seconds = row["gpucnn_graph"]["median_ms"] / 1e3
        assert row["tflops"] == pytest.approx(operations * 2 * 4 * 4 * 4 * 9 * 8 * 8 / seconds / 1e12)
        assert row["torch"] is row["torch_graph"] is row["ratio"] is row["ratio_graph"] is None
    assert (whole["precision"], whole["pass"]) == ("fp16", "all")
    assert (part["precision"], part["pass"]) == ("tf32", "weight gradient")


def test_conv_computes_in_the_reported_precision(bench, monkeypatch):
    cublas, seen = bench.ours.backend._cublas, []
    multiply = cublas.multiply

    def watched(a, b, out, **options):
        seen.append((a.dtype.name, options["tf32"]))
        return multiply(a, b, out, **options)

    monkeypatch.setattr(cublas, "multiply", watched)
    for precision, expected in {
        "fp16": ("float16", False),
        "tf32": ("float32", True),
        "fp32": ("float32", False),
    }.items():
        seen.clear()
        bench.ours.convolution(2, 4, 4, precision)["all"]()
        assert seen == [expected] * 3


def test_nets(bench):
    lenet, resnet9 = rows_of(bench, "nets")
    for row in (lenet, resnet9):
        assert row["gpucnn"].keys() == row["gpucnn_graph"].keys() == SUBJECT
        assert row["images_a_second"] == pytest.approx(2e3 / row["gpucnn_graph"]["median_ms"])
        assert row["torch"] is row["ratio"] is row["ratio_graph"] is None
    assert "torch_half" not in lenet
    assert resnet9["torch_half"] is None


def test_training_reports_accuracies_and_why_it_takes_digits(bench):
    for row in rows_of(bench, "training"):
        assert 0 <= row["accuracy"] <= 1
        assert row["epochs"] == len(row["seconds_an_epoch"]) == 1
        assert (row["data"], row["images"]) == ("synthetic_digits", 32)
        assert row["notes"] == {"data": "GPUCNN_DATA is not set"}


def test_training_that_learns_nothing_has_failed(bench):
    bench.settings = dataclasses.replace(TINY, training=TINY.training[:1], passed=1.01)
    errors = bench.run(["training"])["errors"]
    assert "an accuracy of at least 1.01 was expected" in errors["training network-3 fp32 8 1"]


def test_training_names_a_folder_without_cifar(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))
    gpu._training_data.cache_clear()
    data, reason = gpu._training_data(64)
    assert data.name == "synthetic_digits"
    assert str(tmp_path) in reason


def test_training_on_a_share_of_cifar_says_so(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "labels.bin").write_bytes(bytes(number // 1000 % 10 for number in range(60_000)))
    for name, shade in (("data_batch_2_3", 40), ("test_batch_9", 90)):
        image.new("RGB", (640, 1600), (shade, 0, 0)).save(tmp_path / f"{name}.webp", lossless=True)
        monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))
        gpu._training_data.cache_clear()
        data, reason = gpu._training_data(64)
        assert (data.name == "cifar10") == (shade == 90)
    (x, y), (x_test, y_test) = data
    assert (x.shape, x_test.shape) == ((1000, 32, 32, 3), (1000, 32, 32, 3))
    assert (set(y), set(y_test), x.max(), x_test.max()) == ({3}, {9}, 40, 90)
    assert data.source.startswith("1 of 50 sheets to train on and 1 of 10 to test")
    assert "a share of the sheets" in reason


# --- timing, and what happens when something fails ----------------------------------------------


def test_captured_call_replays_as_often_as_reported(bench):
    total = bench.ours.backend.xp.zeros((), np.int64)

    def call():
        total[...] += 1

    captured = bench.ours.captured(call, 4)
    before = int(total)
    captured()
    captured()
    assert int(total) - before == 8


def test_step_capture_is_requested(bench, monkeypatch):
    monkeypatch.setattr(gpu_nets, "BATCHES", 1)  # too few to capture
    with pytest.raises(RuntimeError, match="asked for captured=True, gpucnn chose StepRunner"):
        bench.ours.step("lenet", 4, "fp32", True)


def test_times_are_per_call_and_compared(bench, monkeypatch):
    bench.theirs, bench.settings = Peer(None), dataclasses.replace(TINY, run_seconds=0.1, most_calls=3)
    calls = {"gpucnn": 0, "torch": 0}

    def count(name):
        calls[name] += 1

    def clock(call, times):
        for _ in range(times):
            call()
        return 0.001 * times

    monkeypatch.setattr(bench.ours, "clock", clock)
    ours = {"gpucnn": lambda: (lambda: count("gpucnn"), 4)}
    row = bench.compare(ours, {"torch": lambda: (lambda: count("torch"), 1)})
    assert row["gpucnn"]["median_ms"] == pytest.approx(0.25)  # a call does the work four times
    assert row["gpucnn"]["calls"] == 4 * row["torch"]["calls"]
    assert calls["gpucnn"] == calls["torch"] == 2 * gpu_nets.WARM_UP + TINY.rounds * row["torch"]["calls"]
    assert gpu.ratio(row, "gpucnn", "torch") == pytest.approx(0.125)
    assert gpu.ratio(row, "gpucnn", "another") is None


def test_pytorch_limits_are_noted(bench):
    def step(net, batch, precision, captured, width):
        if captured:
            raise RuntimeError("no graph of this")
        return lambda: None

    bench.theirs, bench.settings = Peer(step), dataclasses.replace(TINY, nets=(("lenet", 2, "fp16"),))
    (row,) = rows_of(bench, "nets")
    assert bench.theirs.precisions == ["fp16"]
    assert row["torch"]["median_ms"] == row["torch_half"]["median_ms"] == pytest.approx(2)
    assert row["torch_graph"] is row["torch_half_graph"] is row["ratio_graph"] is None
    assert row["notes"] == dict.fromkeys(("torch_graph", "torch_half_graph"), "RuntimeError: no graph of this")
    assert row["ratio"] == pytest.approx(row["gpucnn"]["median_ms"] / 2)


@pytest.fixture
def sections(monkeypatch):
    def measure(bench, word):
        if word == "bad":
            raise ValueError("on purpose")
        return {"word": word}

    sections = {
        "first": gpu.Section(lambda settings: [("bad",), ("good",), ("late",)], measure, 0.5),
        "second": gpu.Section(lambda settings: [("good",)], measure, 0.5),
    }
    monkeypatch.setattr(gpu, "SECTIONS", sections)


@pytest.mark.usefixtures("sections")
def test_failures_are_reported_and_the_rest_continues(bench):
    result = bench.run(["first", "second"])
    assert result["first"] == [{"word": "good"}, {"word": "late"}]
    assert result["second"] == [{"word": "good"}]
    assert list(result["errors"]) == ["first bad"]
    assert result["errors"]["first bad"].startswith("Traceback")
    assert "ValueError: on purpose" in result["errors"]["first bad"]


@pytest.mark.usefixtures("sections")
def test_sections_without_time_left_are_listed(bench):
    bench._seconds = 0
    result = bench.run(["second", "first"])
    assert result["second"] == [{"word": "good"}]  # the first case of a section is measured in any case
    assert result["left_out"] == {"first": ["good", "late"]}


@pytest.mark.usefixtures("sections")
@pytest.mark.parametrize(("names", "status"), [("second", 0), ("first", 1)])
def test_benchmark_command(bench, names, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "get_backend", lambda name: bench.ours.backend)
    monkeypatch.setattr(gpu, "find_torch", lambda: (None, "not wanted here"))
    path = tmp_path / "new" / "gpu.json"
    assert gpu.main(["--quick", "--only", names, "--json", str(path)]) == status
    written = json.loads(path.read_text())
    assert written["finished"]
    assert bool(written["errors"]) == bool(status)
    assert written["settings"]["rounds"] == gpu.QUICK.rounds
    facts = written["facts"]
    assert (facts["gpu"], facts["compute_capability"], facts["torch"]) == ("simulated", "9.0", None)
    assert facts["without_torch"] == "not wanted here"
    printed = capsys.readouterr()
    assert "medians of 2 runs" in printed.out
    assert ("Failed: first bad" in printed.out) == bool(status)
    assert ("Traceback" in printed.err) == bool(status)
    assert [file.name for file in path.parent.iterdir()] == ["gpu.json"]


def test_section_that_is_unknown_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--only", "conv,elephants"])
    assert "no section 'elephants'; there are repeat, memory" in capsys.readouterr().err


def test_benchmark_without_a_gpu_exits_with_2():
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick"]
    answer = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}, capture_output=True, text=True
    )
    assert answer.returncode == 2, answer.stderr
    assert "no GPU to measure: backend 'cupy': CuPy " in answer.stderr
    assert answer.stdout == ""


def test_facts_are_reported_without_a_gpu(capsys):
    assert gpu.main(["--facts"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"]["numpy"] == np.__version__


# --- PyTorch ------------------------------------------------------------------------------------


def test_pytorch_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    theirs, reason = gpu_nets.find_torch()
    assert theirs is None
    assert reason.startswith("PyTorch cannot be imported (ModuleNotFoundError")


def test_pytorch_without_a_gpu_is_left_out(monkeypatch):
    torch = types.SimpleNamespace(__version__="1.2", cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert gpu_nets.find_torch() == (None, "PyTorch 1.2 sees no GPU")


@pytest.mark.filterwarnings("ignore")  # PyTorch's own are not ours
def test_pytorch_does_the_same_work():
    theirs = gpu_nets.Theirs(pytest.importorskip("torch"), "cpu")
    theirs.set_precision("tf32")
    for net in ("lenet", "resnet9"):
        ours = gpu_nets.gpucnn_net(net, Backend(), "fp32", True, 2).parameters().values()
        assert sum(each.numel() for each in theirs.net(net, 2).parameters()) == sum(each.size for each in ours)
    passes = theirs.convolution(2, 4, 4, "fp32")
    assert list(passes) == list(gpu_nets.PASSES)
    assert all(theirs.clock(call, 2) > 0 for call in passes.values())
    assert theirs.clock(theirs.step("resnet9", 4, "fp32", False, 2), 2) > 0
    with pytest.raises(RuntimeError, match="a CPU captures no CUDA graph"):
        theirs.step("lenet", 4, "fp32", True)


def test_resnet9_has_its_published_size():
    parameters = gpu_nets.gpucnn_net("resnet9", Backend(), "fp32", True).parameters().values()
    assert sum(parameter.size for parameter in parameters) == 6_573_120


# --- tables -------------------------------------------------------------------------------------


def times(median):
    return {"median_ms": median, "min_ms": median / 2, "calls": 10}


def test_tables_of_a_made_up_result():
    versions = {"driver": 13000, "runtime": 13000, "cupy": "14.2.0", "cublas": None, "numpy": "2.5.2"}
    facts = {"date": "2026-12-01", "gpu": "A GPU", **versions, "torch": None, "cudnn": None, "python": "3.12.3"}
    convolution = {"images": 128, "channels": 64, "side": 32, "precision": "fp16"}
    result = {
        "facts": facts,
        "settings": {"rounds": 7},
        "first_use": [{"cold_s": 4.0, "cold_backend_s": 1.5, "warm_s": [0.5, 0.75], "warm_backend_s": [0.25, 0.25]}],
        "workspace": [convolution | {"room_mb": 48, "gpucnn": times(1.0), "gpucnn_graph": times(0.5)}],
        "conv": [
            convolution
            | {"pass": "all", "gpucnn": times(0.25), "gpucnn_graph": times(0.2), "torch": times(0.5)}
            | {"torch_graph": None, "tflops": 123.45, "ratio": 0.5, "ratio_graph": None}
        ],
        "left_out": {"nets": ["vgg 512 fp32", "lenet 128 fp32"]},
        "errors": {"memory fp16 512": "Traceback (most recent call last):\n  …\nMemoryError: too much\n"},
    }
    assert gpu.table(result).splitlines() == [
        "2026-12-01, A GPU, driver 13000, runtime 13000, cupy 14.2.0, numpy 2.5.2, python 3.12.3; medians of 7 runs.",
        "",
        "## From the start of a process until LeNet has fitted two batches, s",
        "",
        "| kernels not compiled | until the backend | compiled | then until the backend |",
        "|---|---|---|---|",
        "| 4.00 | 1.50 | 0.50, 0.75 | 0.25, 0.25 |",
        "",
        "## Convolutions 3×3 by the room for columns, all passes, ms",
        "",
        "| images | channels | side | type | room, MB | gpucnn | captured |",
        "|---|---|---|---|---|---|---|",
        "| 128 | 64 | 32 | fp16 | 48 | 1.000 | 0.500 |",
        "",
        "## Convolutions 3×3, ms",
        "",
        "| images | channels | side | type | pass | gpucnn | torch | ÷ torch | captured | TFLOP/s | torch's graph "
        "| ÷ torch's graph |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| 128 | 64 | 32 | fp16 | all | 0.250 | 0.500 | 0.50 | 0.200 | 123.5 |  |  |",
        "",
        "Left out of nets for want of time: vgg 512 fp32, lenet 128 fp32.",
        "",
        "**Failed: memory fp16 512**: MemoryError: too much",
    ]


def test_tables_for_every_section():
    assert gpu.TABLES.keys() == gpu.SECTIONS.keys()


# --- the script ---------------------------------------------------------------------------------


def run_script(tmp_path, answers, *arguments):
    """Run the script with a python3 that notes its arguments, and answers those in which a word occurs."""
    tools, noted = tmp_path / "tools", tmp_path / "noted"
    tools.mkdir()
    cases = "\n".join(f'    *"{word}"*) echo "it says {word}"; exit {status} ;;' for word, status in answers.items())
    stub = tools / "python3"
    stub.write_text(f'#!/bin/sh\necho "$PYTHONPATH $CUPY_TF32 $*" >>"{noted}"\ncase "$*" in\n{cases}\nesac\n')
    stub.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CUPY_TF32": "1", "CDPATH": "."}
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    answer = subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    return answer, noted.read_text().splitlines(), elsewhere


def test_script_tests_in_one_process_without_xdist(tmp_path):
    answer, noted, _ = run_script(tmp_path, {"import xdist": 1}, "answers")
    assert answer.returncode == 0
    assert "-q -ra --backend cupy" in noted[2]


def test_script_is_bash():
    answer = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert os.access(SCRIPT, os.X_OK)


def test_script_runs_every_step(tmp_path):
    answer, noted, elsewhere = run_script(tmp_path, {}, "the answers")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    folder = elsewhere / "the answers"
    assert [line for line in noted if line.endswith("-c import xdist")] == [noted.pop(1)]
    modules = [re.search(r"-m (\S+)", line)[1] for line in noted]
    assert modules == ["benchmarks.gpu", "pytest", "benchmarks.gpu", "benchmarks.gpu"]
    assert "-q -ra -n 8 --backend cupy" in noted[1]
    assert all(line.split(":")[0].split(" ")[0] == str(ROOT) for line in noted)
    assert not any(" 1 -m" in line for line in noted)  # TF32 is for benchmarks that ask for it
    assert f"--json {folder}/benchmark.json" in noted[2]
    assert f"--only training --json {folder}/training.json" in noted[3]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed"] == 0
    assert [(step["step"], step["result"], step["exit"]) for step in summary["steps"]] == [
        *(("facts", "ok", 0), ("tests", "ok", 0), ("benchmark", "ok", 0), ("training", "ok", 0))
    ]
    logs = {"facts.log", "tests.log", "benchmark.log", "training.log"}
    assert {file.name for file in folder.iterdir()} == logs | {"summary.json"}
    assert "0 of 4 steps failed" in answer.stdout


def test_script_goes_on_after_failures_and_counts_them(tmp_path):
    answer, noted, elsewhere = run_script(tmp_path, {"-m pytest": 1, "--seconds 140": 124}, "out")
    assert answer.returncode == 2
    assert len(noted) == 5
    summary = json.loads((elsewhere / "out" / "summary.json").read_text())
    assert summary["failed"] == 2
    results = {step["step"]: (step["result"], step["exit"]) for step in summary["steps"]}
    assert results["tests"] == ("failed", 1)
    assert results["benchmark"] == ("timed out", 124)
    assert results["training"] == ("ok", 0)
    assert "it says -m pytest" in answer.stdout  # the end of a failed step's log
    assert "2 of 4 steps failed" in answer.stdout


def test_script_names_what_exists_and_keeps_its_time():
    text = SCRIPT.read_text()
    files = re.findall(r"tests/\w+/test_\w+\.py", text)
    assert len(set(files)) == 13
    assert [file for file in files if not (ROOT / file).is_file()] == []
    steps = re.findall(r"^step (\w+) (\d+) ", text, re.MULTILINE)
    assert [name for name, _ in steps] == ["facts", "tests", "benchmark", "training"]
    grace = int(re.search(r"--kill-after=(\d+)", text)[1])
    assert sum(int(limit) for _, limit in steps) < 9 * 60
    assert sum(int(limit) + grace for _, limit in steps) < 10 * 60
    for name, limit in steps:
        allowed = re.search(rf"^step {name} .*--seconds (\d+)", text, re.MULTILINE)
        assert allowed is None or int(allowed[1]) <= int(limit) - 25  # for imports, and the row that was begun
