"""Faults planted one at a time, to see whether the tests notice: `python -m tests.mutations`.

Each line of FAULTS is one change of one place in the package, such as a programmer might make by mistake. For each the
repository is copied, changed there, and tested, first by the tests nearest to the place and then, where these pass, by
the whole ordinary suite. A fault that survives both is a hole in the tests, or changes nothing that is guaranteed.

    python -m tests.mutations                 all of them; some minutes
    python -m tests.mutations 3 17            these alone
    python -m tests.mutations --near          without the whole suite
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("gpucnn", "tests", "benchmarks", "examples", "docs", "backends")
FILES = ("pyproject.toml", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")

REFERENCE, NUMPY = "gpucnn/backends/reference.py", "gpucnn/backends/numpy"
CUDA = "gpucnn/backends/cupy/kernels"
KERNELS = (
    "tests/layers/test_layers.py",
    "tests/backends/test_cpu_engine.py",
    "tests/layers/test_losses.py",
    "tests/training/test_optimizers.py",
)
TEAM = ("tests/engine/test_sharding.py", "tests/training/test_reliability.py")
CAPTURE = ("tests/engine/test_capture.py",)


@dataclass(frozen=True)
class Fault:
    """A piece of a file and what takes its place, and the tests nearest to it."""

    what: str
    file: str
    old: str
    new: str
    near: tuple[str, ...] = KERNELS


FAULTS = (
    # layers
    Fault(
        "sign: leaky ReLU's slope",
        "gpucnn/layers/activation.py",
        "where(x > 0, 1.0, self.slope)",
        "where(x < 0, 1.0, self.slope)",
    ),
    Fault(
        "stale: dropout draws one mask for ever",
        "gpucnn/rng.py",
        "state[1] += np.uint64(1)",
        "state[1] += np.uint64(0)",
        ("tests/backends/test_random.py", *KERNELS),
    ),
    Fault(
        "dropped rescale: dropout keeps the scale",
        "gpucnn/layers/dropout.py",
        ".astype(x.dtype) / kept",
        ".astype(x.dtype)",
    ),
    Fault(
        "missing term: unbiased running variance",
        "gpucnn/layers/norm.py",
        "variance * (count / (count - 1))",
        "variance",
        ("tests/training/test_model.py",),
    ),
    Fault(
        "exchanged: running momentum",
        "gpucnn/layers/norm.py",
        "backend.lerp_(running.value, batch, 1.0 - self.momentum)",
        "backend.lerp_(running.value, batch, self.momentum)",
        ("tests/training/test_model.py",),
    ),
    Fault(
        "dropped: epsilon in evaluation",
        "gpucnn/layers/norm.py",
        "self.backend.xp.sqrt(self.running_var.value + self.epsilon)",
        "self.backend.xp.sqrt(self.running_var.value)",
    ),
    Fault(
        "dropped rescale: global average's gradient",
        "gpucnn/layers/pool.py",
        "spread((dy / (H * W))",
        "spread((dy / H)",
    ),
    Fault(
        "assigned: gradients of a shared layer",
        "gpucnn/layers/parameter.py",
        "self.grad += gradient",
        "self.grad[...] = gradient",
    ),
    Fault(
        "off by one: the backward pass stops early",
        "gpucnn/layers/containers.py",
        "needed = needed or trainable\n",
        "needed = needed or (trainable and place > 0)\n",
        ("tests/layers/test_layers.py", "tests/training/test_model.py"),
    ),
    Fault(
        "missing term: a residual's shortcut in the backward pass",
        "gpucnn/layers/containers.py",
        "return add(main_backward(dy), shortcut_backward(dy))",
        "return main_backward(dy)",
    ),
    # losses
    Fault(
        "dropped rescale: cross-entropy's mean",
        REFERENCE,
        "loss = -(targets * log_probabilities).sum() / N",
        "loss = -(targets * log_probabilities).sum()",
    ),
    Fault(
        "missing term: smoothing's uniform part",
        "gpucnn/losses.py",
        "targets * (1.0 - s) + s / y.shape[-1]",
        "targets * (1.0 - s)",
    ),
    Fault(
        "factor: squared error's gradient",
        "gpucnn/losses.py",
        "difference * (2.0 * dloss / difference.size)",
        "difference * (dloss / difference.size)",
    ),
    Fault(
        "dropped: the guard of log(0)", "gpucnn/losses.py", "safe = xp.maximum(y / total, FLOOR)", "safe = y / total"
    ),
    # optimizers
    Fault(
        "stale: Nesterov without looking ahead",
        REFERENCE,
        "step = step + momentum * velocity if nesterov else velocity",
        "step = velocity",
    ),
    Fault("sign: SGD climbs", REFERENCE, "values -= learning_rate * step", "values += learning_rate * step"),
    Fault(
        "dropped: Adam's first bias correction",
        REFERENCE,
        "unbiased_mean = mean / (1.0 - beta1**step)",
        "unbiased_mean = mean",
    ),
    Fault(
        "off by one: Adam's second bias correction",
        REFERENCE,
        "unbiased_square = square / (1.0 - beta2**step)",
        "unbiased_square = square / (1.0 - beta2 ** (step + 1))",
    ),
    Fault(
        "coupled: AdamW's weight decay",
        REFERENCE,
        "values *= 1.0 - learning_rate * weight_decay",
        "values *= 1.0 - weight_decay",
    ),
    Fault(
        "axis: clipping by norm squares nothing",
        REFERENCE,
        "norm = xp.sqrt(xp.square(gradients, dtype=xp.float64).sum())",
        "norm = xp.abs(gradients).sum()",
        ("tests/training/test_clipping.py",),
    ),
    Fault(
        "dropped: a group's weight decay",
        "gpucnn/optimizers/base.py",
        "own if group.weight_decay is None else group.weight_decay",
        "own",
        ("tests/training/test_groups.py",),
    ),
    Fault(
        "stale: gradients of the step before",
        "gpucnn/engine/executor.py",
        "        self._flat.gradients[...] = 0\n        if sharded",
        "        if sharded",
        ("tests/training/test_model.py", "tests/engine/test_sharding.py"),
    ),
    # the reference kernels
    Fault(
        "off by one: col2im's interior",
        REFERENCE,
        "        return padded[window.interior(image_size)]\n\n    # --- convolution",
        "        return padded[:, : image_size[0], : image_size[1]]\n\n    # --- convolution",
    ),
    Fault("padding: max pooling pads with 0", REFERENCE, 'fill=-float("inf")', "fill=0.0"),
    Fault(
        "tie: the last of equal elements wins",
        REFERENCE,
        "switches = xp.where(candidate > y, number, switches)",
        "switches = xp.where(candidate >= y, number, switches)",
    ),
    Fault(
        "counted: padding in an average",
        REFERENCE,
        "dy_per_element = dy / window.valid_counts(self.xp, image_size).astype(dy.dtype)",
        "dy_per_element = dy / window.area",
    ),
    Fault(
        "missing term: batch norm's variance in the backward pass",
        REFERENCE,
        "factor * (dy - dshift / count - normalized * (dscale / count))",
        "factor * (dy - dshift / count)",
    ),
    Fault(
        "axis: the bias's gradient",
        REFERENCE,
        "return x.sum(axis=tuple(range(x.ndim - 1)))",
        "return x.sum(axis=tuple(range(1, x.ndim)))[: x.shape[-1]]",
    ),
    Fault(
        "dropped: uint8 counts as 0 … 255",
        REFERENCE,
        'floats / 255.0 if x.dtype == "uint8" else floats',
        "floats",
        ("tests/training/test_error_messages.py",),
    ),
    Fault(
        "exchanged: channels of a convolution",
        REFERENCE,
        "    return [columns[...",
        "    columns = columns[..., ::-1]\n    return [columns[...",
    ),
    # the CPU engine
    Fault(
        "sign: one of Winograd's numbers",
        f"{NUMPY}/tiles.py",
        "[0, 4, -4, -1, 1, 0]",
        "[0, 4, 4, -1, 1, 0]",
        ("tests/backends/test_cpu_engine.py",),
    ),
    Fault(
        "overlap: Winograd's bias at a wrong place",
        f"{NUMPY}/winograd.py",
        "BIAS_POSITION = 1 * TILE_IN + 1",
        "BIAS_POSITION = 0",
        ("tests/backends/test_cpu_engine.py",),
    ),
    Fault(
        "lost: what a row of the kernel adds",
        f"{NUMPY}/kernel_row_gemm.py",
        "out[row.outputs] += term",
        "pass",
        ("tests/backends/test_cpu_engine.py",),
    ),
    Fault(
        "dropped: the last slice of images",
        f"{NUMPY}/winograd.py",
        "for images in slices for down, across in tiles",
        "for images in slices[:1] for down, across in tiles",
        ("tests/backends/test_cpu_engine.py",),
    ),
    Fault(
        "stale buffer: padding that is not cleared",
        f"{NUMPY}/im2col.py",
        "        padded[...] = 0\n        for rows in blocks(OH",
        "        for rows in blocks(OH",
        ("tests/backends/test_cpu_engine.py",),
    ),
    Fault(
        "not flipped: the weight of an input gradient",
        f"{NUMPY}/convolution.py",
        "weight[::-1, ::-1, :, f].swapaxes(2, 3)",
        "weight[:, ::-1, :, f].swapaxes(2, 3)",
        ("tests/backends/test_cpu_engine.py",),
    ),
    Fault(
        "own mean: batch norm over a slice alone",
        f"{NUMPY}/norm.py",
        "mean = sum(count * mean for count, mean, _ in parts) / whole_count",
        "mean = parts[0][1]",
        TEAM,
    ),
    Fault(
        "missing term: variance between slices",
        f"{NUMPY}/norm.py",
        "sum(squares + count * (own - mean) ** 2 for count, own, squares in parts)",
        "sum(squares for count, own, squares in parts)",
        TEAM,
    ),
    Fault(
        "handed out twice: memory in use",
        f"{NUMPY}/arena.py",
        "if not blocks[place].in_use():",
        "if True:",
        ("tests/engine/test_sharding.py", "tests/backends/test_cpu_engine.py", "tests/training/test_model.py"),
    ),
    Fault(
        "never at rest: velocities too small to matter",
        "gpucnn/optimizers/base.py",
        "if backend.is_host and self.steps % FLUSH_EVERY == 0:",
        "if False:",
        ("tests/training/test_optimizers.py",),
    ),
    Fault(
        "same draws: each slice draws the first's mask",
        "gpucnn/rng.py",
        "start = backend.shard_offset() * per_sample",
        "start = 0",
        TEAM,
    ),
    Fault(
        "lost: gradients of the second thread",
        "gpucnn/engine/replicas.py",
        "parameter.add_grad(clone.grad)",
        "pass",
        TEAM,
    ),
    # passes that are captured and replayed
    Fault(
        "stale: weights as they were at the capture",
        "gpucnn/engine/captured_pass.py",
        "parameter.rebind(traced(value), ",
        "parameter.rebind(value, ",
        CAPTURE,
    ),
    Fault(
        "stale: the same dropout mask in each replay",
        f"{NUMPY}/tracer.py",
        "    return tracer.trace_opaque(_untraced(draw))",
        "    return tracer.copy_like(_untraced(draw)())",
        CAPTURE,
    ),
    Fault(
        "not traced: arrays that are cast",
        f"{NUMPY}/traced_array.py",
        'tracer.append(np.copyto, untraced(copy), own, casting="unsafe")',
        "pass",
        CAPTURE,
    ),
    Fault(
        "stale: a captured pass of another network",
        "gpucnn/engine/capture.py",
        "if not (self._signature.is_current() and self.replayed.is_valid()):",
        "if not self.replayed.is_valid():",
        CAPTURE,
    ),
    Fault(
        "no barrier: threads that replay a batch norm",
        f"{NUMPY}/threads.py",
        "    tracer.append(_wait_again)",
        "    pass",
        CAPTURE,
    ),
    Fault(
        "overwritten: outputs of an earlier replay",
        "gpucnn/engine/captured_pass.py",
        "return parts[0].copy() if len(parts) == 1 else",
        "return parts[0] if len(parts) == 1 else",
        CAPTURE,
    ),
    Fault(
        "in use for ever: memory of traced calls",
        f"{NUMPY}/traced_array.py",
        "return np.asarray(_ArrayInterface(array, maker if base is None else base))",
        "return array.view(np.ndarray)",
        CAPTURE,
    ),
    # CUDA kernels, compiled for the host
    Fault(
        "off by one: a column beyond the image",
        f"{CUDA}/windows.cu",
        "const bool inside = h >= 0 && h < H && w >= 0 && w < W;",
        "const bool inside = h >= 0 && h < H && w >= 0 && w <= W;",
    ),
    Fault(
        "sign: where the windows of a pixel lie",
        f"{CUDA}/windows.cu",
        "if (!window_at(w + PL - kj * DW, SW, OW, ow)) continue;",
        "if (!window_at(w - PL - kj * DW, SW, OW, ow)) continue;",
    ),
    Fault(
        "tie: the last of equal elements wins on a GPU",
        f"{CUDA}/pooling.cu",
        "if (value > best[k]) best[k] = value, winner[k]",
        "if (value >= best[k]) best[k] = value, winner[k]",
    ),
    Fault("dropped: Adam's bias correction on a GPU", f"{CUDA}/update.cu", "(m / unbias1)", "m"),
    Fault(
        "order: weight decay after the momentum on a GPU",
        f"{CUDA}/update.cu",
        "step = nesterov ? step + (accum_t)momentum * moved : moved;",
        "step = nesterov ? moved + (accum_t)momentum * moved : moved;",
    ),
    Fault(
        "overflow: a softmax without its largest logit",
        f"{CUDA}/loss.cu",
        "y[(size_t)n * K + k] = (scalar_t)(exp((accum_t)row[k] - maximum) / total)",
        "y[(size_t)n * K + k] = (scalar_t)(exp((accum_t)row[k]) / (exp(maximum) * total))",
    ),
    # training runs
    Fault(
        "order: every epoch the same",
        "gpucnn/rng.py",
        'host_generator(seed, "shuffle", epoch)',
        'host_generator(seed, "shuffle")',
        ("tests/backends/test_random.py", "tests/training/test_model.py"),
    ),
    Fault(
        "off by one: the step's rate",
        "gpucnn/training/loop.py",
        "self.epoch + part.start / count, self.epochs)\n            model",
        "self.epoch + part.stop / count, self.epochs)\n            model",
        ("tests/training/test_model.py", "tests/training/test_epochs.py", "tests/training/test_optimizers.py"),
    ),
    Fault(
        "forgotten: the optimizer's slots in a checkpoint",
        "gpucnn/training/state.py",
        'model.optimizer.load_state_dict(model.backend, tree["optimizer"]["slots"])',
        "pass",
        ("tests/training/test_resume.py",),
    ),
    Fault(
        "forgotten: where the augmentation's stream is",
        "gpucnn/training/state.py",
        'steps.input.stream[...] = tree["augment"]',
        "pass",
        ("tests/training/test_resume.py",),
    ),
)


def main() -> None:
    """Plant the faults that are asked for, and print and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--near", action="store_true", help="run the nearest tests alone")
    parser.add_argument("--out", type=Path, help="write the results as JSON here")
    asked = parser.parse_args()
    results = []
    for number in asked.numbers or range(len(FAULTS)):
        fault = FAULTS[number]
        started = time.perf_counter()
        noticed = plant(fault, whole=not asked.near)
        seconds = time.perf_counter() - started
        results.append({"number": number, "fault": fault.what, "file": fault.file, "noticed by": noticed})
        print(f"{number:3}  {noticed or 'SURVIVED':70.70}  {fault.what}  ({seconds:.0f} s)", flush=True)
    survived = [result["fault"] for result in results if not result["noticed by"]]
    print(f"{len(results) - len(survived)} of {len(results)} faults noticed")
    if asked.out:
        asked.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(survived))


def plant(fault: Fault, whole: bool) -> str:
    """Return the first test that notices a fault in a copy of the repository, or "" if none does."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(ROOT / name, place / name, ignore=ignored, symlinks=True)
        for name in FILES:
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, place / name)
        file = place / fault.file
        text = file.read_text(encoding="utf-8")
        assert text.count(fault.old) == 1, f"{fault.file}: {fault.old!r} stands there {text.count(fault.old)} times"
        file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        return first_failure(place, fault.near) or (first_failure(place, ("tests",)) if whole else "")


def first_failure(place: Path, tests: tuple[str, ...]) -> str:
    """Return the first test that fails in a folder, or ""."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    if ran.returncode == 0:
        return ""
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0].split(" ", 1)[1].split(" - ")[0] if failed else f"pytest ended with {ran.returncode}"


if __name__ == "__main__":
    main()
