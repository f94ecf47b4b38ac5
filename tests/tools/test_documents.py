"""The README and docs/: every block runs, every command is one, and every figure is that of its results."""

import contextlib
import importlib
import inspect
import itertools
import json
import re
import shlex
import statistics
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer

import gpucnn
from benchmarks import broken_runs, cpu
from gpucnn import callbacks, datasets, initializers, layers, losses, metrics, networks, optimizers, plots, schedules
from gpucnn.cli import app
from gpucnn.data import augment
from gpucnn.data.synthetic import synthetic_digits
from gpucnn.runs.reproduction import REPRODUCTIONS

ROOT = Path(__file__).parents[2]
if not (ROOT / "README.md").exists():
    pytest.skip("not a source tree", allow_module_level=True)

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = {p.relative_to(DOCS).as_posix(): p.read_text(encoding="utf-8") for p in sorted(DOCS.rglob("*.md"))}
OTHERS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("ARCHITECTURE.md", "CONTRIBUTING.md")}
EVERY = {"README.md": README, **PAGES, **OTHERS}
MEASURED = PAGES["measurements.md"]

# what the blocks of a page write
WRITTEN = {
    "training.md": {"mnist.safetensors"},
    "long-runs.md": {"run"},
    "visualization.md": {"history.png", "filters.png", "maps.png", "confusion.png", "mistakes.png", "report.html"},
}

# what a machine without a GPU has in its place
WITHOUT_GPU = {'backend="cupy"': 'backend="numpy"', 'dtype="float16"': 'dtype="float32"', "allow_tf32=True": "seed=1"}


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def blocks(text, language):
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def spaced(text):
    """Return a page with its line ends as spaces, so that a sentence can be looked for."""
    return " ".join(text.split())


# Blocks and commands


def few_digits(path=None):
    splits = [synthetic_digits(256, 0), synthetic_digits(64, 1)]
    return datasets.Dataset(splits, name="mnist", class_names=map(str, range(10)), source="drawn")


@pytest.mark.parametrize("name", [name for name, text in EVERY.items() if blocks(text, "python")])
def test_documents_blocks_run(name, run, trained, tmp_path, monkeypatch):
    """As they are pasted, in one session; only the data are fewer, and there is no GPU."""
    monkeypatch.setattr("gpucnn.datasets.mnist", few_digits)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "lenet-mnist-1").symlink_to(trained, target_is_directory=True)  # as the first line left it
    before, session = sorted(path.name for path in trained.iterdir()), {}
    for block in blocks(EVERY[name], "python"):
        for device, host in WITHOUT_GPU.items():
            block = block.replace(device, host)
        with contextlib.redirect_stdout(None):
            exec(compile(block, name, "exec"), session)
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN.get(name, set()) | {"runs"}
    assert sorted(path.name for path in trained.iterdir()) == before


@pytest.mark.slow
def test_readme_output_is_what_its_first_block_prints(capfd, tmp_path, monkeypatch):
    if datasets.available("mnist") is None:
        pytest.skip("no mnist in $GPUCNN_DATA or the cache")
    monkeypatch.chdir(tmp_path)
    block, (printed,) = blocks(README, "python")[0], blocks(README, "text")
    exec(compile(block, "README.md", "exec"), {})
    found, shown = (re.findall(r"[\d.]+(?= ?%)", text) for text in (capfd.readouterr().out, printed))
    assert len(found) == len(shown) > 0
    assert [float(n) for n in found] == pytest.approx([float(n) for n in shown], abs=0.5)


@pytest.mark.parametrize("name", EVERY)
def test_documents_links_lead_to_files(name):
    folder = (DOCS / name).parent if name in PAGES else ROOT
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", EVERY[name]):
        assert (folder / link).exists(), link


def test_tests_named_in_the_guarantees_exist():
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    missing, file = [], ""
    for named in re.finditer(r"`(test_\w+\.py)?(?:::(Test\w+))?(?:::(\w+))?`", PAGES["reliability.md"]):
        file = named[1] or file
        names = [name for name in named.groups()[1:] if name]
        missing += [f"{file}::{n}" for n in names if not re.search(rf"(def|class) {n}\b", sources.get(file, ""))]
        missing += [] if file in sources else [file]
    assert not missing


def test_files_named_in_the_architecture_exist():
    every = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gpucnn").rglob("*") if path.is_file()}
    every |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    named = set(re.findall(r"[\w/]+\.(?:py|cu|md)\b", OTHERS["ARCHITECTURE.md"]))
    places = {*every, *OTHERS, "benchmarks/README.md", *(f"docs/{page}" for page in PAGES)}
    missing = [name for name in named if not any(place == name or place.endswith(f"/{name}") for place in places)]
    assert not missing


def commands(text):
    """Return the commands of a page: those of its shell blocks, and those that stand in a line."""
    shell = [part for block in blocks(text, "sh") for line in block.splitlines() for part in line.split("&&")]
    inline = re.findall(r"`(gpucnn [^`]+)`", re.sub(r"\s+", " ", text))
    found = [line.strip().removeprefix(".venv/bin/") for line in [*shell, *inline]]
    return dict.fromkeys(line.split("#")[0].strip() for line in found if line.startswith("gpucnn "))


def variants(command):
    """Return a command without the marks of what may be left out, once for each of its choices."""
    words = re.sub(r"[\[\]…]", " ", command.replace("\\|", "|")).split()
    return [" ".join(chosen) for chosen in itertools.product(*(word.split("|") for word in words))]


def refused(command, arguments):
    """Return why the command line does not take these arguments; nothing is carried out."""
    try:
        with command.make_context("gpucnn", list(arguments)) as context:
            if hasattr(command, "resolve_command"):
                rest = [*context._protected_args, *context.args]
                _, inner, left = command.resolve_command(context, rest)
                return refused(inner, left)
    except Exception as error:
        is_named_alone = not arguments and type(error).__name__ == "MissingParameter"  # `gpucnn runs`, as a noun
        return "" if is_named_alone else getattr(error, "message", None) or repr(error)
    return ""


COMMANDS = sorted({line for text in EVERY.values() for command in commands(text) for line in variants(command)})


@pytest.mark.parametrize("line", COMMANDS)
def test_documents_commands_exist(line):
    arguments = shlex.split(line)[1:]
    wrong = refused(typer.main.get_command(app), arguments)
    assert not wrong, f"{line}: {wrong}"
    if arguments[0] in ("reproduce", "runs") and len(arguments) > 1 and arguments[1] != "NAME":
        assert arguments[1].startswith("-") or arguments[1] in REPRODUCTIONS


def test_documents_wrong_commands_are_noticed():
    assert len(COMMANDS) > 20
    command = typer.main.get_command(app)
    assert "alexnet" in refused(command, ["alexnet"])
    assert "--epoch" in refused(command, ["train", "--epoch", "3"])
    assert "a valid" in refused(command, ["train", "--epochs", "three"])
    assert "MissingParameter" in refused(command, ["predict", "--top", "3"])


def test_documents_installed_packages_exist():
    """No name of an index that it is not on; extras that are there, and that something uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) == {"cuda12", "cuda13", "test", "dev"}
    for text in (*EVERY.values(), *(path.read_text(encoding="utf-8") for path in ROOT.glob("gpucnn/**/*.py"))):
        assert not re.search(r"pip install[^\n]*'gpucnn", text)
        for extra in re.findall(r"pip install[^\n]*'\.\[(\w+)\]'", text):
            assert extra in project["optional-dependencies"]


def test_readme_first_block_is_the_test_command():
    """The gate runs the second line of the README's first block."""
    first = re.search(r"^```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]
    assert first.splitlines()[1].endswith("-m pytest -n auto")
    assert "gpucnn train" in first.splitlines()[0]


# What there is


def public(module, base):
    """Return the classes of a module that derive from a base, but for those that are only derived from."""
    module = importlib.import_module(module) if isinstance(module, str) else module
    found = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, base)]
    return sorted({kind.__name__ for kind in found if kind is not base and not kind.__name__.startswith("_")})


def what_there_is():
    """Return the rows of the README's table."""
    base = importlib.import_module("gpucnn.callbacks.base").Callback
    watch = importlib.import_module("gpucnn.callbacks.defects").TrainingMonitor
    snapshots = importlib.import_module("gpucnn.callbacks.snapshots").Snapshots
    kinds = {
        "layers": sorted(public(layers, layers.Layer), key=str.lower),
        "losses": public(losses, losses.Loss),
        "metrics": public(metrics, metrics.Metric),
        "optimizers": sorted(public(optimizers, optimizers.Optimizer)),
        "schedules": public(schedules, schedules.Schedule),
        "callbacks": [*public(callbacks, base), *(f"{kind.__module__}.{kind.__name__}" for kind in (watch, snapshots))],
        "initializers": public(initializers, initializers.Initializer),
        "augmentations, in `gpucnn.data.augment`": public(augment, augment.Augmentation),
        "networks, each with its recipe": list(networks.NETWORKS),
        "data sets": ["mnist", "cifar10", "image_folder", "synthetic_digits"],
        "pictures, in `gpucnn.plots`": plots.__all__,
    }
    return [f"| {kind} | {', '.join(f'`{name}`' for name in names)} |" for kind, names in kinds.items()]


def test_documents_tables_name_what_there_is():
    text = "\n".join((README, PAGES["training.md"], PAGES["visualization.md"]))
    missing = [row for row in what_there_is() if row not in text]
    assert not missing, "\n".join(["rows that the README, or a table of docs/, should have:", *missing])


def test_new_names_of_the_changelog_are_those_of_the_package():
    page = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    cells = re.findall(r"^  \| [\w ]+ \| .* \| (.*) \|$", page, re.MULTILINE)[1:]
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("gpucnn/**/*.py")).replace("-", "_")
    new = {word for cell in cells for word in re.findall(r"[a-zA-Z_]{3,}", cell.replace("-", "_"))}
    assert len(cells) > 30
    assert not [word for word in new if not re.search(rf"\b{word}", source)]


# Figures


def test_documents_table_of_defective_runs_is_that_of_its_results():
    """A curvature of 326 stood there as 3.300."""
    assert broken_runs.table(results("broken_runs")) in PAGES["broken-runs.md"]


def test_documents_sentences_on_defective_runs_are_those_of_their_results():
    found = results("broken_runs")["runs"]
    page = spaced(PAGES["broken-runs.md"])
    every = [run for runs in found.values() for run in runs]
    steep = [run["outcome"] for run in every if run["curvature"] > 300]
    assert "learned" not in steep
    assert f"Of the {len(steep)} runs that began above 300 none learned" in page
    middle = [run["outcome"] for name in ("gain 0.7", "gain 1", "gain 1.4") for run in found[name]]
    assert f"a gain from 0.7 to 1.4, {middle.count('learned')} of {len(middle)} runs learned" in page
    late = [run["accuracy"] for run in found["gain 0.25"] if run["outcome"] == "learned"]
    average = " → ".join(f"{100 * fraction:.0f}" for fraction in np.mean(late, axis=0))
    assert f"they average {average} %" in page
    medians = {name: float(f"{np.median([run['curvature'] for run in runs]):.2g}") for name, runs in found.items()}
    begins = f"about {medians['gain 2']:.0f}, with 2.8 at {medians['gain 2.8']:.0f}, with weights uniform in ±0.5 at "
    assert begins + f"{medians['uniform ±0.5']:.0f}." in page
    for name, words in (("gain 1.4", "nine of ten runs learned"), ("gain 0.25", "four of ten runs came through")):
        count = [run["outcome"] for run in found[name]].count("learned")
        assert words.startswith({9: "nine of ten", 4: "four of ten"}[count])
        assert words in page


def in_percent(fractions):
    return [f"{100 * fraction:.1f}" for fraction in fractions]


def test_documents_numbers_of_cifar10_are_those_of_their_results():
    page, plain = PAGES["cifar10.md"], spaced(PAGES["cifar10.md"])
    ours, torch = results("cifar10_airbench94_gpucnn"), results("cifar10_airbench94_torch")
    assert f"| gpucnn, % | {' | '.join(in_percent(ours['accuracy']))} | **{100 * ours['views']:.1f}** |" in page
    assert f"| PyTorch, % | {' | '.join(in_percent([*torch['accuracy'], torch['views']]))} |" in page
    minutes = [held["seconds"][-1] / 60 for held in (ours, torch)]
    ratio = (
        f"{minutes[0]:.1f} minutes where PyTorch took {minutes[1]:.1f}, a ratio of **{minutes[0] / minutes[1]:.2f}**"
    )
    assert ratio in plain
    held = results("cifar10_network-4_gpucnn")
    passed = [(held["accuracy"][place], held["seconds"][place] / 60) for place in (5, 11)]
    words = f"{100 * passed[0][0]:.1f} % after {passed[0][1]:.1f} minutes, **{100 * passed[1][0]:.1f} %** after "
    assert words + f"{passed[1][1]:.1f}, and {100 * held['views']:.1f} % with TTA" in plain
    assert (
        f"| `network-4` on CIFAR-10, 12 epochs | 1 | {100 * passed[0][0]:.1f} % after {passed[0][1]:.0f} minutes, "
        f"{100 * passed[1][0]:.1f} % after {passed[1][1]:.0f} |"
    ) in MEASURED
    held = results("cifar10_resnet20_gpucnn")
    assert held["epochs"] == 10
    assert f"**{100 * held['plain']:.1f} %**, and {100 * held['views']:.1f} % with TTA" in plain
    assert f"| `resnet20` on CIFAR-10, 10 epochs | 1 | {100 * held['plain']:.1f} % |" in MEASURED
    right, averaged = (f"{100 * ours[key]:.1f} %" for key in ("plain", "views"))
    times = f"{minutes[0]:.0f} min (PyTorch: {minutes[1]:.0f} min, run alternately)"
    assert f"{right} of the test images, {averaged} with test-time augmentation; {times}" in MEASURED
    assert f"epochs, 1 run | {right} of the test images in {times} |" in README


def test_documents_sizes_of_the_networks_on_cifar10():
    """Parameters, multiply-adds, epochs and batches, of every row; and which of them `gpucnn reproduce` takes."""
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGES["cifar10.md"], re.MULTILINE)
    seen = []
    for names, parameters, adds, recipe in rows:
        of_row = re.findall(r"`([\w-]+)`", names)
        seen += of_row
        models = [networks.by_name(name)(backend="numpy") for name in of_row]
        sizes = [sum(parameter.size for parameter in model.parameters().values()) for model in models]
        shown = [f"{size:,}" for size in sizes] if "million" not in parameters else [f"{s / 1e6:.1f}" for s in sizes]
        assert re.findall(r"[\d,.]*\d", parameters) == shown
        counted = [f"{model.network.total_flops() / 2e6:.0f}" for model in models]
        assert re.findall(r"\d+", adds) == counted
        epochs = {model.recipe.epochs for model in models}
        assert recipe.startswith(f"{epochs.pop():g} epochs")
        batch = re.search(r"of ([\d,]+) images", recipe)
        assert not batch or {int(batch[1].replace(",", ""))} == {model.recipe.batch_size for model in models}
    assert set(seen) == {name for name, network in networks.NETWORKS.items() if network.recipe.epochs != 25} - {
        name for name, network in networks.NETWORKS.items() if network.recipe.data != "cifar10"
    }
    not_reproduced = [name for name in seen if name not in REPRODUCTIONS]
    sentence = ", ".join(f"`{name}`" for name in not_reproduced)
    assert f"for all but {sentence}" in spaced(PAGES["cifar10.md"])


def seconds_of(words):
    """Return a time of a table in seconds, and by how much it may be off for having been rounded."""
    units = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
    parts = re.findall(r"([\d.]+) (ms|s|min|h)", words)
    last = parts[-1]
    return sum(float(n) * units[u] for n, u in parts), units[last[1]] * (0.05 if "." in last[0] else 0.5)


def test_documents_published_numbers_are_those_of_the_recipes():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGES["reproduction.md"].splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    assert rows[0] == importlib.import_module("gpucnn.cli.reproduce").HEADINGS
    for name, published, ours, must, _, theirs, time, ratio in rows[1:]:
        entry = REPRODUCTIONS[name]
        assert must == f"{100 * entry.required_accuracy:.1f} %"
        assert published == (f"{100 * entry.published.accuracy:.2f} %" if entry.published else "")
        assert float(ours.split(" ")[0]) / 100 >= entry.required_accuracy
        if theirs:
            (long, _), (short, off) = seconds_of(theirs), seconds_of(time)
            assert seconds_of(theirs)[0] == pytest.approx(entry.published.seconds, abs=30)
            low, high = (entry.published.seconds / (short + by) for by in (off, -off))
            assert low - 0.5 <= float(ratio) <= high + 0.5, (name, long / short)
    assert {row[0] for row in rows[1:]} == {name for name, entry in REPRODUCTIONS.items() if not entry.long}


def test_documents_accuracies_are_those_of_their_results():
    held = results("accuracy")
    assert held["epochs"] == 3
    for net, begins in (("lenet", "| `lenet` on MNIST for 3 epochs"), ("network-3", "| `network-3` on CIFAR-10 for 3")):
        engine = held["nets"][net]["engine"]
        row = next(line for line in MEASURED.splitlines() if line.startswith(begins))
        mean, low, high = (round(f(engine["accuracies"]), 3) for f in (statistics.mean, min, max))
        assert f"| {len(engine['accuracies'])} seeds | {mean:.2f} % of the test images on average, " in row
        assert f"{low:.2f} % to {high:.2f} %" in row
        times = sorted({f"{seconds:.0f}" for seconds in engine["seconds"]})
        assert f"; {' to '.join(times[:1] + times[1:][-1:])} s" in row
        if net == "lenet":
            assert f"3 epochs, {len(engine['accuracies'])} seeds | {mean:.2f} % of the test images" in README


def of_nets(what, threads, batch=128):
    found = {r["net"]: r["peers"] for r in results("cpu")["results"] if (r["batch"], r["threads"]) == (batch, threads)}
    return {net: cpu.ratio(found[net], what) for net in ("lenet", "net2", "net3", "vgg", "resnet20")}, found


@pytest.mark.parametrize(("what", "word"), [("train", "training step"), ("infer", "inference")])
@pytest.mark.parametrize(("threads", "counted"), [(1, "one thread"), (2, "two threads")])
def test_documents_times_beside_pytorch_are_those_of_their_results(what, word, threads, counted):
    ratios, found = of_nets(what, threads)
    figures = [f"{ratio:.2f}" for ratio in ratios.values()]
    assert f"| {word}, {counted} | {' | '.join(figures)} |" in MEASURED
    if threads == 2:
        assert re.search(rf"^\| {word} time relative to PyTorch.* \| {', '.join(figures)} \|$", README, re.MULTILINE)
    fractions = [
        found[net]["gpucnn"]["train_mb"] / min(found[net][p]["train_mb"] for p in ("torch", "torch_channels_last"))
        for net in ratios
    ]
    assert 0.15 < min(fractions) < 0.25, "a fifth"
    assert 0.65 < max(fractions) < 0.8, "three quarters"


def test_documents_sentences_on_small_batches_are_those_of_their_results():
    one, two = (of_nets("train", threads, 32)[0] for threads in (1, 2))
    assert all(ratio < 1.005 for ratio in one.values())
    assert f"{two['net3']:.1f}" == "1.0"
    assert (
        f"network-3 is level, and the deeper ones take {two['vgg']:.1f} and {two['resnet20']:.1f} times as long"
        in spaced(MEASURED)
    )


@pytest.mark.parametrize("name", ["cpu", "cpu_haswell", "cpu_no_avx512"])
def test_documents_benchmark_tables_are_those_of_their_results(name):
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in cpu.table(results(name)["results"]).splitlines() if line.startswith("|")]
    assert all(row in page for row in rows)


def test_package_under_test_is_that_of_this_tree():
    assert Path(gpucnn.__file__).parent.parent == ROOT
