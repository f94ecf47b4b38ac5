"""Speed and memory of gpucnn on a GPU, next to PyTorch where that is installed; prints tables and writes JSON.

    python -m benchmarks.gpu --json gpu.json              all but the training runs, under four minutes
    python -m benchmarks.gpu --quick                      the same in small, about a minute: does everything run?
    python -m benchmarks.gpu --only conv,nets             some sections
    python -m benchmarks.gpu --only training              trains three networks for real

Sections: repeat (are two training runs bitwise identical?), memory, first_use (seconds until a new process has fitted
two batches), workspace (how large the columns' room should be), conv, nets, training.

Both libraries compute in one process and take turns; each run is many calls between two events of the GPU, so that
starting them is overlapped as in real use. "Captured" is a CUDA graph on either side, in which launches cost nothing.
Figures are medians and minima over the runs; ratios are of medians, below 1 where gpucnn is faster. PyTorch runs
channels last, with cuDNN's choice of algorithm by measurement and a fused optimizer. What fails is written down, and
the rest continues; the exit status is 1 then, and 2 where there is no GPU.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_nets import PASSES, WARM_UP, Ours, find_torch, image_of, resnet9_layers
from gpucnn import Model, callbacks, datasets, networks, optimizers, rng, schedules
from gpucnn import layers as L
from gpucnn.backends import get_backend
from gpucnn.data import cifar
from gpucnn.errors import BackendUnavailable, DataError
from gpucnn.training.loop import to_device
from gpucnn.training.steps import make_step_runner

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "nvidia-cublas", "nvidia-cudnn-cu13", "scipy", "pytest")


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    rounds: int  # runs of each subject
    run_seconds: float  # of one run, about
    most_calls: int  # in one run
    calls_a_graph: int  # of a convolution
    repeat: tuple[tuple[str, int, int], ...]  # precision, steps, batch
    memory: tuple[tuple[str, int], ...]  # precision and batch of ResNet-9
    first_use: tuple[int, ...]  # processes that find their kernels compiled
    workspace: tuple[tuple[int, int, int, int], ...]  # images, channels, side, MB
    conv: tuple[tuple[int, int, int, str, str], ...]  # images, channels, side, precision, pass
    nets: tuple[tuple[str, int, str], ...]  # network, batch, precision
    width: int  # of ResNet-9's first convolution
    training: tuple[tuple[str, str, int, int], ...]  # network, precision, batch, epochs
    digits: int  # synthetic ones, for want of CIFAR-10
    passed: float  # the accuracy below which a run has failed


DIAGONAL = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels and side, of equal work
PRECISIONS = ("fp16", "tf32", "fp32")

FULL = Settings(
    rounds=7,
    run_seconds=0.02,
    most_calls=200,
    calls_a_graph=10,
    repeat=(("fp32", 20, 128), ("tf32", 20, 128), ("fp16", 20, 128)),
    memory=(("fp16", 512), ("tf32", 512)),
    first_use=(3,),
    workspace=tuple((128, *place, room) for place in ((128, 16), (64, 32)) for room in (16, 48, 128, 512)),
    conv=(
        *((128, *place, precision, "all") for precision in PRECISIONS for place in DIAGONAL),
        *((128, *place, "fp16", part) for place in DIAGONAL for part in PASSES if part != "all"),
        *((128, channels, 16, precision, "all") for precision in PRECISIONS for channels in (64, 256, 512)),
        *((128, *place, "tf32", part) for place in DIAGONAL for part in PASSES if part != "all"),
    ),
    nets=(
        *(("resnet9", 512, "fp16"), ("lenet", 128, "fp32"), ("resnet20", 128, "fp16"), ("vgg", 128, "fp16")),
        *(("resnet9", 512, "tf32"), ("resnet20", 128, "tf32"), ("vgg", 128, "tf32")),
        *(("resnet20", 512, "fp16"), ("vgg", 512, "fp16"), ("resnet20", 128, "fp32"), ("vgg", 128, "fp32")),
        *(("resnet20", 512, "tf32"), ("vgg", 512, "tf32"), ("resnet20", 512, "fp32"), ("vgg", 512, "fp32")),
    ),
    width=64,
    training=(("network-3", "fp32", 128, 5), ("resnet9", "fp16", 512, 8), ("airbench94", "fp16", 1024, 9.9)),
    digits=20_000,
    passed=0.3,
)
QUICK = Settings(
    rounds=2,
    run_seconds=0.002,
    most_calls=5,
    calls_a_graph=2,
    repeat=(("fp32", 6, 64), ("fp16", 6, 64)),
    memory=(("fp16", 16),),
    first_use=(1,),
    workspace=((8, 16, 8, 1), (8, 16, 8, 16)),
    conv=tuple((8, 16, 8, precision, part) for precision in PRECISIONS for part in PASSES),
    nets=(("lenet", 16, "fp32"), ("vgg", 16, "tf32"), ("resnet20", 16, "fp16"), ("resnet9", 16, "fp16")),
    width=8,
    training=(("network-3", "fp32", 128, 1), ("resnet9", "fp16", 128, 1)),
    digits=1_000,
    passed=0.0,
)


class Bench:
    """One run of the benchmark: both sides, how much is measured by when, and what was found so far.

    `child` is the backend's name in a separate process.
    """

    def __init__(self, ours, theirs, settings, seconds=200.0, child="cupy", save=lambda result: None):
        self.ours, self.theirs, self.settings, self.child = ours, theirs, settings, child
        self._seconds, self._started, self._save = seconds, time.perf_counter(), save
        self.result: dict[str, Any] = {"finished": False, "settings": asdict(settings), "errors": {}, "left_out": {}}

    def run(self, names):
        """Measure sections one after another; each may take its fraction of the time, and what those before it left."""
        total, fraction = sum(SECTIONS[name].fraction for name in names), 0.0
        for name in names:
            fraction += SECTIONS[name].fraction
            self._run_section(name, SECTIONS[name], self._started + self._seconds * fraction / total)
        self.result["finished"] = True
        self.result["seconds"] = time.perf_counter() - self._started
        self._save(self.result)
        return self.result

    def _run_section(self, name, section, until):
        rows = self.result[name] = []
        for number, case in enumerate(section.cases(self.settings)):
            words = " ".join(map(str, case))
            if number and time.perf_counter() > until:
                self.result["left_out"].setdefault(name, []).append(words)
                continue
            started = time.perf_counter()
            try:
                rows.append(section.measure(self, *case))
            except Exception:  # whatever it is: it is reported, and the rest is still wanted
                self.result["errors"][f"{name} {words}"] = traceback.format_exc()
            self.tidy(f"{name} {words}")
            print(f"{time.perf_counter() - started:6.1f} s  {name} {words}", file=sys.stderr, flush=True)
            self._save(self.result)

    def left(self):
        """Return the seconds that are left."""
        return self._started + self._seconds - time.perf_counter()

    def tidy(self, after):
        """Give memory back; what goes wrong here belongs to what was done before."""
        try:
            self.ours.tidy()
            if self.theirs is not None:
                self.theirs.tidy()
        except Exception:  # a GPU that has met a fault answers nothing any more
            self.result["errors"].setdefault(f"{after}, tidying up", traceback.format_exc())

    def compare(self, ours, theirs):
        """Time subjects in turns: name → function that makes a call, a pair of its side's name and of how to make it.

        Returns a dictionary of names: medians, minima and the number of calls; None for one of PyTorch's that cannot be
        had, with the reason under "notes".
        """
        subjects, row, notes = {}, {}, {}
        for name, make in ours.items():
            subjects[name] = self._warm(self.ours, *make())
        for name, make in theirs.items() if self.theirs is not None else ():
            try:
                subjects[name] = self._warm(self.theirs, *make())
            except Exception as error:  # PyTorch's own, or a graph that cannot be captured: not a failure of gpucnn
                notes[name] = f"{type(error).__name__}: {error}"
        seconds = {name: [] for name in subjects}
        for _ in range(self.settings.rounds):
            for name, (side, call, each, count) in subjects.items():
                seconds[name].append(side.clock(call, count) / (count * each))
        for name in (*ours, *theirs):
            taken = seconds.get(name)
            row[name] = taken and {
                "median_ms": 1e3 * statistics.median(taken),
                "min_ms": 1e3 * min(taken),
                "calls": subjects[name][2] * subjects[name][3],
            }
        return row | ({"notes": notes} if notes else {})

    def _warm(self, side, call, each):
        """Return a subject: its side, a call, how many times it does the work, and how many calls make a run."""
        side.clock(call, WARM_UP)
        one = side.clock(call, WARM_UP) / WARM_UP
        count = int(self.settings.run_seconds / max(one, 1e-9))
        return side, call, each, max(1, min(count, self.settings.most_calls))


def ratio(row, ours, *theirs):
    """Return the median of one subject over the best of others; None where one side is missing."""
    medians = [row[name]["median_ms"] for name in theirs if row.get(name)]
    return row[ours]["median_ms"] / min(medians) if row.get(ours) and medians else None


# --- sections: each measures one case and returns a row -----------------------------------------


def repeat(bench, precision, steps, batch):
    """Train a small network three times from one seed: eagerly, again, and captured."""
    states = [_trained(bench.ours.backend, precision, steps, batch, jit) for jit in (False, False, True)]
    first = states[0]
    differences = [_largest_difference(first, state) for state in states[1:]]
    return {
        "precision": precision,
        "steps": steps,
        "batch": batch,
        "again": _is_same(first, states[1]),
        "captured": _is_same(first, states[2]),
        "largest_difference": max(differences),
    }


def _trained(backend, precision, steps, batch, jit):
    """Return the state of a network with batch norm and dropout after some steps."""
    layers = [
        *(L.Conv2D(16, 3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU(), L.MaxPool2D(), L.Dropout(0.3)),
        *(L.Conv2D(32, 3, padding="same"), L.ReLU(), L.Flatten(), L.Dense(10), L.Softmax()),
    ]
    dtype = "float16" if precision == "fp16" else "float32"
    model = Model(layers, (16, 16, 3), backend=backend, dtype=dtype, allow_tf32=precision == "tf32")
    model.compile(optimizers.SGD(0.05, momentum=0.9, nesterov=True), "categorical_crossentropy", jit=jit)
    generator, count = np.random.default_rng(0), 4 * batch
    images = generator.integers(0, 256, (count, 16, 16, 3), np.uint8), generator.integers(0, 10, count)
    made = make_step_runner(model, *to_device(model, images), batch)
    for step in range(steps):
        place = step * batch % count
        if place == 0:
            made.begin_epoch(rng.epoch_order(0, step, count))
        made.run(slice(place, place + batch), 0.05)
    return model.state_dict()


def _is_same(a, b):
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


def _largest_difference(a, b):
    return max(float(np.abs(a[key].astype(np.float64) - b[key].astype(np.float64)).max()) for key in a)


def memory(bench, precision, batch):
    """Measure what steps of ResNet-9 take, in MB."""
    row = {"net": "resnet9", "batch": batch, "precision": precision}
    for name, captured in (("gpucnn", False), ("gpucnn_graph", True)):
        make = functools.partial(bench.ours.step, "resnet9", batch, precision, captured, bench.settings.width)
        row[name] = bench.ours.memory(make)
    row["torch"] = None
    bench.tidy("memory")
    if bench.theirs is not None:
        bench.theirs.set_precision(precision)
        make = functools.partial(bench.theirs.step, "resnet9", batch, precision, False, bench.settings.width)
        try:
            row["torch"] = bench.theirs.memory(make)
        except Exception as error:
            row["notes"] = {"torch": f"{type(error).__name__}: {error}"}
    return row


def first_use(bench, warm):
    """Measure new processes from their start until LeNet has fitted two batches, their kernels not yet compiled.

    Then some more, which find them compiled.
    """
    with tempfile.TemporaryDirectory() as folder:
        cold, *others = [_first_steps_of_a_process(bench.child, folder) for _ in range(1 + warm)]
    return {
        "cold_s": cold["step"],
        "cold_backend_s": cold["backend"],
        "warm_s": [other["step"] for other in others],
        "warm_backend_s": [other["backend"] for other in others],
        "warm_median_s": statistics.median(other["step"] for other in others),
    }


def _first_steps_of_a_process(backend, folder):
    """Return seconds since the start of a process until it has its backend, and until its first steps are done."""
    command = [sys.executable, "-c", f"from benchmarks.gpu import first_steps; first_steps({backend!r})"]
    started = time.time()
    answer = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CUPY_CACHE_DIR": folder}, capture_output=True, text=True, timeout=120
    )
    if answer.returncode:
        raise RuntimeError(f"the first steps of a new process failed:\n{answer.stderr}")
    return {what: at - started for what, at in json.loads(answer.stdout.splitlines()[-1]).items()}


def first_steps(name):
    """Fit LeNet to two batches, one eagerly and one captured; print when the backend was there and when all was."""
    from benchmarks.nets import gpucnn_model

    backend = get_backend(name)
    times = {"backend": time.time()}
    generator, count = np.random.default_rng(0), 256
    x, y = generator.integers(0, 256, (count, *image_of("lenet"))).astype(np.uint8), generator.integers(0, 10, count)
    gpucnn_model("lenet", backend).fit(x, y, batch_size=128, verbose=0)
    print(json.dumps(times | {"step": time.time()}))


def workspace(bench, images, channels, side, room_mb):
    """Time a convolution of float16 with some room for columns: what is small stays in the GPU's cache."""
    backend = bench.ours.backend
    before, backend._workspace = backend._workspace, room_mb * 10**6
    try:
        times = bench.compare(_our_convolution(bench, images, channels, side, "fp16", "all"), {})
    finally:
        backend._workspace = before
    shape = {"images": images, "channels": channels, "side": side}
    return shape | {"precision": "fp16", "room_mb": room_mb} | times


def conv(bench, images, channels, side, precision, part):
    """Time a pass of a 3×3 convolution, or all three, on both sides."""
    case, theirs, each = (images, channels, side, precision), bench.theirs, bench.settings.calls_a_graph
    if theirs is not None:
        theirs.set_precision(precision)
    peers = {
        "torch": lambda: (theirs.convolution(*case)[part], 1),
        "torch_graph": lambda: (theirs.captured(theirs.convolution(*case)[part], each), each),
    }
    operations = PASSES[part] * 2 * images * side * side * 9 * channels * channels
    row = {"images": images, "channels": channels, "side": side, "precision": precision, "pass": part}
    row |= bench.compare(_our_convolution(bench, *case, part), peers)
    row["tflops"] = operations / row["gpucnn_graph"]["median_ms"] / 1e9
    row["ratio"] = ratio(row, "gpucnn", "torch")
    row["ratio_graph"] = ratio(row, "gpucnn_graph", "torch_graph")
    return row


def _our_convolution(bench, images, channels, side, precision, part):
    call, each = bench.ours.convolution(images, channels, side, precision)[part], bench.settings.calls_a_graph
    return {"gpucnn": lambda: (call, 1), "gpucnn_graph": lambda: (bench.ours.captured(call, each), each)}


def nets(bench, net, batch, precision):
    """Time training steps of a network on both sides, eagerly and captured."""

    def maker(side, precision, captured):
        return lambda: (side.step(net, batch, precision, captured, bench.settings.width), 1)

    if bench.theirs is not None:
        bench.theirs.set_precision(precision)
    eager, graphs = ["torch"], ["torch_graph"]
    peers = {"torch": maker(bench.theirs, precision, False), "torch_graph": maker(bench.theirs, precision, True)}
    if precision == "fp16":
        eager.append("torch_half")
        graphs.append("torch_half_graph")
        peers["torch_half"] = maker(bench.theirs, "half", False)
        peers["torch_half_graph"] = maker(bench.theirs, "half", True)
    ours = {"gpucnn": maker(bench.ours, precision, False), "gpucnn_graph": maker(bench.ours, precision, True)}
    row = {"net": net, "batch": batch, "precision": precision} | bench.compare(ours, peers)
    row["images_a_second"] = 1e3 * batch / row["gpucnn_graph"]["median_ms"]
    row["ratio"] = ratio(row, "gpucnn", *eager)
    row["ratio_graph_to_eager"] = ratio(row, "gpucnn_graph", *eager)
    row["ratio_graph"] = ratio(row, "gpucnn_graph", *graphs)
    return row


def training(bench, net, precision, batch, epochs):
    """Train a network on CIFAR-10, or on synthetic digits, and test it; raises where it has learned nothing."""
    data, reason = _training_data(bench.settings.digits)
    (x, y), (x_test, y_test) = data
    options = {"input_shape": x.shape[1:], "backend": bench.ours.backend}
    dtype = "float16" if precision == "fp16" else "float32"
    if net == "resnet9":
        eighth = L.Normalization(0.0, 8.0)  # of the logits: without it a high learning rate leads nowhere
        layers = [L.Normalization(0.0, 1.0), *resnet9_layers(x.shape[1], bench.settings.width), eighth, L.Softmax()]
        model = Model(layers, dtype=dtype, name=net, **options)
        schedule = schedules.OneCycle(0.4, warmup_fraction=0.2)
        model.compile(optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4))
    else:
        model = networks.by_name(net)(dtype=dtype, **options)
    model.allow_tf32 = precision == "tf32"
    model.layers[0].adapt(x[:5000])
    started = time.perf_counter()
    until = started + bench.left() / 2  # a slow machine makes fewer epochs, and has time for the next network
    history = model.fit(x, y, epochs=epochs, batch_size=batch, callbacks=[StopAt(until)], verbose=0)
    seconds, scores = time.perf_counter() - started, model.evaluate(x_test, y_test)
    row = {"net": net, "precision": precision, "batch": batch, "epochs": history.epochs, "epochs_planned": epochs}
    row |= {"data": data.name, "source": data.source, "images": len(x), "seconds": seconds}
    row |= {"seconds_an_epoch": history["seconds"], "training_accuracy": history["accuracy"]}
    row |= scores
    row["accuracy_several_views"] = model.evaluate(x_test, y_test, tta="flip+shift")["accuracy"]
    if reason:
        row["notes"] = {"data": reason}
    if not scores["accuracy"] >= bench.settings.passed:  # nor is NaN
        raise RuntimeError(f"an accuracy of at least {bench.settings.passed} was expected: {json.dumps(row)}")
    return row


class StopAt(callbacks.Callback):
    """Ends training after the epoch in which its time is up."""

    def __init__(self, until):
        self.until = until

    def on_epoch_end(self, model, epoch, logs):
        if time.perf_counter() > self.until:
            model.stop_training = True


@functools.cache
def _training_data(digits):
    """Return CIFAR-10 from the folder that GPUCNN_DATA names, or as much of it as is there; else digits; and why."""
    folder = os.environ.get("GPUCNN_DATA")
    try:
        if folder:
            return datasets.cifar10(folder), ""
        reason = "GPUCNN_DATA is not set"
    except DataError as error:
        reason = str(error)
        data = _share_of_cifar10(Path(folder))
        if data is not None:
            return data, f"a share of the sheets: {reason}"
    return datasets.synthetic_digits(digits), reason


def _share_of_cifar10(folder):
    """Return CIFAR-10 from the sheets that are there, or None where there is none to train on, or none to test."""
    labels = folder / "labels.bin"
    if not labels.is_file():
        return None
    by_sheet = np.fromfile(labels, np.uint8).astype(np.int64).reshape(-1, cifar._SHEET)
    splits = {"train": [], "test": []}
    for number, name in enumerate(f"{name}_{i}.webp" for name in cifar.BATCH_NAMES for i in range(len(by_sheet) // 6)):
        if (folder / name).is_file():
            images = np.empty((cifar._SHEET, 32, 32, 3), np.uint8)
            cifar._read_sheet(folder / name, images)
            splits["test" if name.startswith("test") else "train"].append((images, by_sheet[number]))
    if not all(splits.values()):
        return None
    pairs = [tuple(np.concatenate(arrays) for arrays in zip(*sheets, strict=True)) for sheets in splits.values()]
    source = f"{len(splits['train'])} of 50 sheets to train on and {len(splits['test'])} of 10 to test, in {folder}"
    return datasets.Dataset(pairs, name="cifar10", class_names=cifar.CIFAR10_CLASSES, source=source)


@dataclass(frozen=True)
class Section:
    """A section: its cases, how one is measured, and its fraction of the time."""

    cases: Callable[[Settings], Any]
    measure: Callable[..., dict[str, Any]]
    fraction: float
    default: bool = True


SECTIONS = {
    "repeat": Section(lambda settings: settings.repeat, repeat, 0.05),
    "memory": Section(lambda settings: settings.memory, memory, 0.05),
    "first_use": Section(lambda settings: [(warm,) for warm in settings.first_use], first_use, 0.15),
    "workspace": Section(lambda settings: settings.workspace, workspace, 0.05),
    "conv": Section(lambda settings: settings.conv, conv, 0.25),
    "nets": Section(lambda settings: settings.nets, nets, 0.45),
    "training": Section(lambda settings: settings.training, training, 1.0, default=False),
}


# --- what was measured on, and how it is told ---------------------------------------------------


def facts(backend=None, theirs=None, why_alone=""):
    """Return what the figures were measured on; without a backend, what can be said without touching a GPU."""
    known: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: _or_none(functools.partial(metadata.version, name)) for name in PACKAGES},
    }
    if backend is not None:
        runtime = backend.xp.cuda.runtime
        properties = runtime.getDeviceProperties(backend.device)
        known |= {
            "gpu": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "multiprocessors": properties["multiProcessorCount"],
            "memory_gb": properties["totalGlobalMem"] / 1e9,
            "l2_mb": _or_none(lambda: properties["l2CacheSize"] / 1e6),
            "driver": runtime.driverGetVersion(),
            "runtime": runtime.runtimeGetVersion(),
            "cupy": backend.xp.__version__,
            "numpy": np.__version__,
            "cublas": _or_none(lambda: _cublas_version(backend)),
            "nvrtc": _or_none(lambda: ".".join(map(str, backend.xp.cuda.nvrtc.getVersion()))),
            "torch": None,
            "torch_cuda": None,
            "cudnn": None,
        }
    if theirs is not None:
        torch = theirs.torch
        known |= {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
        known["cudnn"] = _or_none(torch.backends.cudnn.version)
    if why_alone:
        known["without_torch"] = why_alone
    return known


def _or_none(ask):
    """Return what a question is answered with, or None where it cannot be answered."""
    try:
        return ask()
    except Exception:
        return None


def _cublas_version(backend):
    import ctypes

    version, cublas = ctypes.c_int(), backend._cublas
    if cublas._library.cublasGetVersion_v2(cublas.handle.handle, ctypes.byref(version)):
        return None
    return version.value


TABLES = {  # section → heading, and columns: a heading, where the number stands in a row, and its form
    "repeat": (
        "The same bits?",
        "type=precision | steps=steps | again=again | captured=captured | largest difference=largest_difference:.1e",
    ),
    "memory": (
        "Memory of training steps, MB",
        "net=net | batch=batch | type=precision | eager=gpucnn.gpu_mb:,.0f | its pool=gpucnn.pool_mb:,.0f | "
        "captured=gpucnn_graph.gpu_mb:,.0f | torch=torch.gpu_mb:,.0f | torch's arrays=torch.arrays_mb:,.0f",
    ),
    "first_use": (
        "From the start of a process until LeNet has fitted two batches, s",
        "kernels not compiled=cold_s:.2f | until the backend=cold_backend_s:.2f | "
        "compiled=warm_s:.2f | then until the backend=warm_backend_s:.2f",
    ),
    "workspace": (
        "Convolutions 3×3 by the room for columns, all passes, ms",
        "images=images | channels=channels | side=side | type=precision | room, MB=room_mb | "
        "gpucnn=gpucnn.median_ms:.3f | captured=gpucnn_graph.median_ms:.3f",
    ),
    "conv": (
        "Convolutions 3×3, ms",
        "images=images | channels=channels | side=side | type=precision | pass=pass | gpucnn=gpucnn.median_ms:.3f | "
        "torch=torch.median_ms:.3f | ÷ torch=ratio:.2f | captured=gpucnn_graph.median_ms:.3f | TFLOP/s=tflops:.1f | "
        "torch's graph=torch_graph.median_ms:.3f | ÷ torch's graph=ratio_graph:.2f",
    ),
    "nets": (
        "Training steps, ms",
        "net=net | batch=batch | type=precision | gpucnn=gpucnn.median_ms:.3f | captured=gpucnn_graph.median_ms:.3f | "
        "images/s=images_a_second:,.0f | torch=torch.median_ms:.3f | torch's graph=torch_graph.median_ms:.3f | "
        "torch half=torch_half.median_ms:.3f | torch's half graph=torch_half_graph.median_ms:.3f | "
        "÷ torch=ratio:.2f | captured ÷ torch=ratio_graph_to_eager:.2f | captured ÷ graph=ratio_graph:.2f",
    ),
    "training": (
        "Training runs",
        "net=net | data=data | type=precision | batch=batch | epochs=epochs | seconds=seconds:.1f | "
        "seconds per epoch=seconds_an_epoch:.2f | test accuracy=accuracy:.2%",
    ),
}


def table(result):
    """Return a result as Markdown: a table a section, then what was left out and what failed."""
    known = result["facts"]
    versions = ("driver", "runtime", "cupy", "cublas", "numpy", "torch", "cudnn", "python")
    parts = [known["date"], known["gpu"], *(f"{name} {known[name]}" for name in versions if known[name])]
    lines = [f"{', '.join(parts)}; medians of {result['settings']['rounds']} runs.", ""]
    for name, (heading, columns) in TABLES.items():
        if result.get(name):
            lines += [f"## {heading}", "", *_markdown(columns, result[name]), ""]
    for name, words in result["left_out"].items():
        lines += [f"Left out of {name} for want of time: {', '.join(words)}.", ""]
    for what, text in result["errors"].items():
        lines += [f"**Failed: {what}**: {text.strip().splitlines()[-1]}", ""]
    return "\n".join(lines)


def _markdown(columns, rows):
    parsed = [column.partition("=")[::2] for column in columns.split(" | ")]
    yield f"| {' | '.join(heading for heading, _ in parsed)} |"
    yield "|---" * len(parsed) + "|"
    for row in rows:
        yield f"| {' | '.join(_cell(row, *where.partition(':')[::2]) for _, where in parsed)} |"


def _cell(row, where, form):
    for key in where.split("."):
        row = None if row is None else row.get(key)
    numbers = row if isinstance(row, list) else [] if row is None else [row]
    return ", ".join(format(number, form) for number in numbers)


def write(path, result):
    """Write a result atomically, so that an interrupted run leaves the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _sections(text):
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    return names


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=200.0, help="start nothing new after this time (default 200)")
    parser.add_argument("--json", type=Path, help="write all figures to this file, again after each row")
    parser.add_argument("--quick", action="store_true", help="everything in small")
    parser.add_argument("--only", type=_sections, help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--facts", action="store_true", help="only say what this machine has, and touch no GPU")
    options = parser.parse_args(arguments)
    if options.facts:
        print(json.dumps(facts(), indent=1))
        return 0
    try:
        backend = get_backend("cupy")
    except BackendUnavailable as error:
        print(f"no GPU to measure: {error}", file=sys.stderr)
        return 2
    theirs, why_alone = find_torch()
    known = facts(backend, theirs, why_alone)
    save = functools.partial(write, options.json) if options.json else lambda result: None
    bench = Bench(Ours(backend), theirs, QUICK if options.quick else FULL, options.seconds, save=save)
    bench.result["facts"] = known
    result = bench.run(options.only or [name for name, section in SECTIONS.items() if section.default])
    print(table(result))
    for what, text in result["errors"].items():
        print(f"{what}:\n{text}", file=sys.stderr)
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
