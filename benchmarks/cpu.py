"""Train and inference times on the CPU, next to PyTorch, reference kernels and a naive peer; writes JSON and a table.

    python -m benchmarks.cpu                                  all nets, batches 32, 128, 512, one and two threads
    python -m benchmarks.cpu --nets lenet --batches 128 --threads 2 --rounds 5
    python -m benchmarks.cpu --no-avx512                      all subjects as on a processor without AVX-512
    python -m benchmarks.cpu --python python3.13t             gpucnn on a free-threaded Python as one more subject

Every subject runs in a separate process, in an environment without the variables that hold BLAS to an older
instruction set, with BLAS and PyTorch given the same number of threads. The subjects take turns, so that a machine
whose speed drifts treats all alike; figures are medians and minima over all rounds, ratios are of medians. PyTorch runs
as installed, and "tuned" with the malloc settings that spare it page faults, each in both memory formats: the fair peer
is the better tuned one.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HELD_BACK = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # they leave PyTorch alone and halve NumPy's products
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967295",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
PEERS = {  # name → subject, additions to the environment
    "gpucnn": ("gpucnn", {}),
    "reference": ("reference", {}),
    "torch": ("torch", {}),
    "torch_channels_last": ("torch_channels_last", {}),
    "torch_tuned": ("torch", TUNED),
    "torch_channels_last_tuned": ("torch_channels_last", TUNED),
}
NO_AVX512 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
REFERENCE_UP_TO = 128  # images per batch: its columns for larger ones are gigabytes
RESULTS = Path(__file__).parent / "results"


class Subject:
    """A child process that is warm and waits for its turn."""

    def __init__(self, name, net, batch, threads, held=None, python=None):
        kind, additions = PEERS.get(name, (name, {}))
        environment = {key: value for key, value in os.environ.items() if key not in HELD_BACK} | additions
        environment |= held or {}
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GPUCNN_NUM_THREADS"):
            environment[variable] = str(threads)
        if python:
            environment["PYTHON_GIL"] = "0"
        command = [python or sys.executable, "-m", "benchmarks.subject", kind, net, str(batch), str(threads)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.seconds, self.megabytes = {"train": [], "infer": []}, {}
        if self._answer() != "ready":
            raise RuntimeError(f"{' '.join(command)} did not start")

    def _answer(self):
        return self.process.stdout.readline().strip()

    def run(self, what, count, keep=True):
        """Let it make `count` calls."""
        self.process.stdin.write(f"{what} {count}\n")
        answer = json.loads(self._answer())
        if keep:
            self.seconds[what] += answer["seconds"]
        self.megabytes[what] = answer["megabytes"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(net, batch, threads, rounds, calls, held=None, python=None):
    """Time every peer on one net; return a row per peer: medians, minima (ms) and peak memory (MB)."""
    names = [name for name in PEERS if name != "reference" or batch <= REFERENCE_UP_TO]
    if net == "lenet" and batch == 32 and threads == 1:
        names.append("naive")
    subjects = {name: Subject(name, net, batch, threads, held) for name in names}
    if python:
        subjects["gpucnn_free_threaded"] = Subject("gpucnn", net, batch, threads, held, python)
    try:
        for what in ("infer", "train"):
            for name, subject in subjects.items():
                subject.run(what, 1 if name == "naive" else 3, keep=name == "naive")
            for _ in range(rounds):
                for name, subject in subjects.items():
                    if name != "naive":  # one step of it takes as long as a whole round of the others
                        subject.run(what, calls)
    finally:
        for subject in subjects.values():
            subject.close()
    return {name: _row(subject) for name, subject in subjects.items()}


def _row(subject):
    row = {}
    for what, seconds in subject.seconds.items():
        row[f"{what}_median_ms"] = 1e3 * statistics.median(seconds)
        row[f"{what}_min_ms"] = 1e3 * min(seconds)
        row[f"{what}_mb"] = subject.megabytes[what]
    return row


def ratio(rows, what, subject="gpucnn", tuned=True):
    """Return the subject's median over the better PyTorch's."""
    peers = ("torch_tuned", "torch_channels_last_tuned") if tuned else ("torch", "torch_channels_last")
    return rows[subject][f"{what}_median_ms"] / min(rows[peer][f"{what}_median_ms"] for peer in peers)


def table(results):
    """Return the results as Markdown: ratios below 1 are faster than PyTorch."""
    lines = [
        "| net | batch | threads | train ms | ÷ tuned torch | ÷ torch | ÷ reference | infer ms | ÷ tuned torch "
        "| peak MB | torch's peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rows = result["peers"]
        ours, reference = rows["gpucnn"], rows.get("reference")
        of_reference = f"{ours['train_median_ms'] / reference['train_median_ms']:.2f}" if reference else ""
        torch_mb = min(rows[peer]["train_mb"] for peer in ("torch", "torch_channels_last"))
        lines.append(
            f"| {result['net']} | {result['batch']} | {result['threads']} | {ours['train_median_ms']:.2f} "
            f"| **{ratio(rows, 'train'):.2f}** | {ratio(rows, 'train', tuned=False):.2f} "
            f"| {of_reference} "
            f"| {ours['infer_median_ms']:.2f} | {ratio(rows, 'infer'):.2f} | {ours['train_mb']:.0f} | {torch_mb:.0f} |"
        )
    for result in results:
        if "gpucnn_free_threaded" in result["peers"]:
            rows = result["peers"]
            ratios = (f"{ratio(rows, what, 'gpucnn_free_threaded'):.2f}" for what in ("train", "infer"))
            where = f"{result['net']}, {result['batch']} images, {result['threads']} threads"
            lines += ["", f"Free-threaded, {where}: {', '.join(ratios)} of tuned torch, training and inference."]
    for result in results:
        if "naive" in result["peers"]:
            times = result["peers"]["naive"]["train_median_ms"] / result["peers"]["gpucnn"]["train_median_ms"]
            lines += ["", f"The naive peer needs {times:,.0f} times as long for a LeNet step of 32 images as gpucnn."]
    return "\n".join(lines)


def machine():
    """Return what the figures were measured on."""
    import numpy
    import threadpoolctl
    import torch

    import gpucnn

    blas = [library for library in threadpoolctl.threadpool_info() if "numpy" in library["filepath"]]
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "blas": [f"{library['internal_api']} {library['version']} {library['architecture']}" for library in blas],
        "torch": torch.__version__,
        "gpucnn": gpucnn.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["lenet", "net2", "net3", "vgg", "resnet20"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128, 512])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5, help="calls of each subject a round")
    parser.add_argument("--coretype", help="force an OPENBLAS_CORETYPE, such as Haswell, on every subject")
    parser.add_argument(
        "--no-avx512", action="store_true", help="hold every subject to what a processor without it has"
    )
    parser.add_argument(
        "--python", help="a free-threaded Python that has NumPy and what gpucnn needs, to be tried as well"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "cpu.json")
    options = parser.parse_args()
    held = NO_AVX512 if options.no_avx512 else {"OPENBLAS_CORETYPE": options.coretype} if options.coretype else {}
    results = []
    for net in options.nets:
        for batch in options.batches:
            for threads in options.threads:
                peers = measure(net, batch, threads, options.rounds, options.calls, held, options.python)
                results.append({"net": net, "batch": batch, "threads": threads, "peers": peers})
                print(table(results[-1:]).splitlines()[2], flush=True)
    settings = {
        "rounds": options.rounds,
        "calls": options.calls,
        "coretype": options.coretype,
        "no_avx512": options.no_avx512,
    }
    if options.python:
        settings["free_threaded"] = subprocess.check_output([options.python, "-VV"], text=True).strip()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": machine(), "settings": settings, "results": results}
    options.output.write_text(json.dumps(written, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
