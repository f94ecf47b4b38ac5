"""Why a LeNet breaks at a constant rate of 0.5: how its weights begin, how many runs learn, and how curved the loss is.

    python -m benchmarks.broken_runs              an hour; writes results/broken_runs.json and pictures
    python -m benchmarks.broken_runs --draw       draws what the JSON holds

The recipe is `lenet-002` but for its first weights: batches of 128, three epochs, real MNIST with pixels from 0 to 1. A
run that shows a defect (see `gpucnn.callbacks.defects`) is stopped. The curvature is the largest eigenvalue of the
loss' Hessian before the first step, on 512 images, in float64: on a quadratic, gradient descent with the rate η shrinks
the error along an eigenvector only where η times its eigenvalue is below 2 (for example Cohen and others, "Gradient
descent on neural networks typically occurs at the edge of stability", 2021).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.cpu import machine
from gpucnn import datasets, plots
from gpucnn.callbacks.defects import TrainingMonitor
from gpucnn.core.text import significant
from gpucnn.initializers import Initializer, Uniform
from gpucnn.layers import AveragePool2D, Conv2D, Dense, Flatten, ReLU, Softmax
from gpucnn.model import Model
from gpucnn.optimizers import SGD

RATE, EVERY, GRACE = 0.5, 10, 469  # a run has an epoch to begin to learn
BIAS = 0.01  # of the biases, as a deviation, where the curvature is taken: with biases of 0 every pixel of the black
# ground lies on the kink of the first ReLU, where the loss has no second derivative
RESULTS = Path(__file__).parent / "results" / "broken_runs.json"
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
KEPT = ("deviation 0.1",)  # whose first runs keep their histograms and all looks, to be drawn
COLOURS = {
    "learned": "#0072B2",
    "not learning": "#E69F00",
    "single-class predictions": "#CC79A7",
    "late collapse": "#56B4E9",
    "dead ReLUs": "#D55E00",
    "diverged": "#000000",
}


class Deviation(Initializer):
    """Normal with one deviation for every layer, whatever feeds it."""

    def __init__(self, deviation):
        self.deviation = deviation

    def __call__(self, shape, fan_in, fan_out, rng):
        return rng.normal(0.0, self.deviation, shape)


class Gain(Initializer):
    """Normal with a deviation of gain / √fan-in: 1 is LeCun's, √2 is He's."""

    def __init__(self, gain):
        self.gain = gain

    def __call__(self, shape, fan_in, fan_out, rng):
        return rng.normal(0.0, self.gain / fan_in**0.5, shape)


WEIGHTS = {
    **{f"gain {gain:.2g}": Gain(gain) for gain in (0.25, 0.5, 0.7, 1.0, 2.0**0.5, 2.0, 2.8, 4.0)},
    "Glorot, uniform": "glorot_uniform",
    "deviation 0.01": Deviation(0.01),
    "deviation 0.1": Deviation(0.1),
    "uniform ±0.5": Uniform(-0.5, 0.5),
}


def lenet(weights, seed, dtype="float32"):
    """Return `lenet-002` with other first weights."""
    w = {"weight_initializer": weights}
    layers = [
        *(Conv2D(6, 5, padding="same", **w), ReLU(), AveragePool2D(2)),
        *(Conv2D(16, 5, **w), ReLU(), AveragePool2D(2), Flatten()),
        *(Dense(120, **w), ReLU(), Dense(84, **w), ReLU(), Dense(10, **w), Softmax()),
    ]
    return Model(layers, (28, 28, 1), seed=seed, backend="numpy", dtype=dtype).compile(SGD(RATE))


def curvature(model, x, y, max_steps=100):
    """Return the largest eigenvalue of the Hessian, by power iteration with differences of gradients (float64).

    Where the eigenvalue of largest magnitude is negative, the Hessian is shifted by it and iterated again.
    """
    parameters = list(model.parameters().values())

    def product(direction, step=1e-9):
        sides = []
        for sign in (1, -2):
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.value[...] += sign * step * part
            model.loss_and_gradients(model.as_floats(x), y)
            sides.append([parameter.grad.copy() for parameter in parameters])
        for parameter, part in zip(parameters, direction, strict=True):
            parameter.value[...] += step * part
        return [(ahead - behind) / (2 * step) for ahead, behind in zip(*sides, strict=True)]

    def iterate(shift):
        generator = np.random.default_rng(0)
        direction = [generator.normal(size=parameter.shape) for parameter in parameters]
        found = 0.0
        for turn in range(max_steps):
            length = np.sqrt(sum(float((part**2).sum()) for part in direction))
            direction = [part / length for part in direction]
            image = [image - shift * part for image, part in zip(product(direction), direction, strict=True)]
            before, found = found, sum(float((p * d).sum()) for p, d in zip(image, direction, strict=True))
            if turn > 15 and abs(found - before) < 1e-2 * abs(found):
                break
            direction = image
        return found + shift

    largest = iterate(0.0)
    return largest if largest > 0 else iterate(largest)


def one_run(weights, seed, data):
    """Return what became of one run."""
    (x, y), (x_test, y_test) = data
    exact = lenet(weights, seed, "float64")
    generator = np.random.default_rng(seed)
    for path, parameter in exact.parameters().items():
        if path.endswith("bias"):
            parameter.value[...] = generator.normal(0.0, BIAS, parameter.shape)
    steepness = curvature(exact, x[:512], y[:512])
    model = lenet(weights, seed)
    watch = TrainingMonitor((x[:500], y[:500]), every=EVERY, grace_steps=GRACE, on_defect="stop")
    history = model.fit(x, y, epochs=3, batch_size=128, callbacks=[watch], check_numerics=False, verbose=0)
    return {
        "seed": seed,
        "outcome": watch.defect.kind if watch.defect else "learned",
        "defect": str(watch.defect) if watch.defect else None,
        "test": model.evaluate(x_test, y_test)["accuracy"],
        "accuracy": history["accuracy"],
        "curvature": steepness,
        "observations": watch.observations,
        "histograms": watch.histograms,
    }


def measure(runs):
    """Make the runs that are missing, and write the file after each."""
    data = datasets.mnist()
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": machine(), "rate": RATE, "runs": {}}
    for seed in range(runs):
        for name, weights in WEIGHTS.items():
            made = held["runs"].setdefault(name, [])
            if any(run["seed"] == seed for run in made):
                continue
            made.append(one_run(weights, seed, data))
            if name not in KEPT or seed >= 6:
                made[-1]["histograms"], made[-1]["observations"] = {}, made[-1]["observations"][-1:]
            last = made[-1]
            print(name, seed, last["outcome"], f"{last['test']:.4f}", f"curvature {last['curvature']:.3g}", flush=True)
            made.sort(key=lambda run: run["seed"])
            RESULTS.write_text(json.dumps(rounded(held)) + "\n")
    return held


def rounded(value):
    """Return plain data with five digits of each number, which is all that the pictures show."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def rows(held):
    """Return for each way to begin: its name, how many runs ended how, their curvatures, and the good ones' test."""
    for name, runs in held["runs"].items():
        outcomes = {outcome: sum(run["outcome"] == outcome for run in runs) for outcome in COLOURS}
        good = [run["test"] for run in runs if run["outcome"] == "learned"]
        yield name, outcomes, [run["curvature"] for run in runs], good


def table(held):
    """Return the table in Markdown."""
    lines = [
        "| first weights | runs | learned | what became of the others | test accuracy | curvature |",
        "|" + " --- |" * 6,
    ]
    for name, outcomes, curvatures, good in rows(held):
        others = ", ".join(f"{count} {word}" for word, count in outcomes.items() if count and word != "learned")
        tested = f"{100 * np.mean(good):.2f} %" if good else ""
        total, low, high = sum(outcomes.values()), min(curvatures), max(curvatures)
        middle, low, high = (significant(number, 2) for number in (np.median(curvatures), low, high))
        steepness = f"{middle} ({low} … {high})"
        lines.append(f"| {name} | {total} | {outcomes['learned']} | {others} | {tested} | {steepness} |")
    return "\n".join(lines)


def draw_outcomes(held):
    """Return a figure: what became of the runs, and how curved the loss was before, a row for each way to begin."""
    from matplotlib.figure import Figure

    found = list(rows(held))
    figure = Figure(figsize=(10, 0.36 * len(found) + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(found))
    begun = np.zeros(len(found))
    for outcome, colour in COLOURS.items():
        counts = np.array([outcomes[outcome] for _, outcomes, _, _ in found])
        if counts.any():
            left.barh(places, counts, left=begun, color=colour, label=outcome, height=0.7)
        begun += counts
    left.set(xlabel="runs", yticks=places)
    left.set_yticklabels([name for name, *_ in found])
    left.invert_yaxis()
    for place, (_, _, curvatures, _) in enumerate(found):
        right.plot(curvatures, [place] * len(curvatures), "o", color="#0072B2", alpha=0.5, markersize=4)
    right.axvline(2 / held["rate"], color="#888888", linestyle="--")
    right.annotate(f" 2 / rate = {2 / held['rate']:g}", (2 / held["rate"], -0.5), fontsize="small", va="bottom")
    right.set(xscale="log", xlabel="largest eigenvalue of the Hessian at the start")
    figure.legend(loc="outside upper center", ncols=len(COLOURS), fontsize="small", frameon=False)
    return figure


def draw_looks(held, name):
    """Return a figure: accuracy and dead units of the first steps, of a run that learned and one that did not."""
    from matplotlib.figure import Figure

    runs = [run for run in held["runs"][name] if len(run["observations"]) > 1]
    good = next(run for run in runs if run["outcome"] == "learned")
    bad = next(run for run in runs if run["outcome"] != "learned")
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, run in zip(panels, (good, bad), strict=True):
        checks = [check for check in run["observations"] if check["step"] <= 200]
        steps = [check["step"] for check in checks]
        panel.plot(steps, [100 * check["accuracy"] for check in checks], color="#0072B2", label="accuracy")
        for number, (relu, style) in enumerate(zip(checks[0]["dead"], ("-", "--", "-.", ":"), strict=True), start=1):
            dead = [100 * check["dead"][relu] for check in checks]
            panel.plot(steps, dead, color="#D55E00", linestyle=style, label=f"units of ReLU {number} that never fire")
        panel.set(title=f"seed {run['seed']}: {run['outcome']}", xlabel="step", ylim=(-3, 103))
    panels[0].set_ylabel("%")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    return figure, good, bad


def draw(held):
    """Write the pictures of the docs page."""
    PICTURES.mkdir(exist_ok=True)
    draw_outcomes(held).savefig(PICTURES / "broken_outcomes.png", dpi=110)
    figure, good, bad = draw_looks(held, KEPT[0])
    figure.savefig(PICTURES / "broken_looks.png", dpi=110)
    names = [f"seed {run['seed']}: {run['outcome']}" for run in (good, bad)]
    plots.histograms(good["histograms"], bad["histograms"], names=names).savefig(
        PICTURES / "broken_histograms.png", dpi=80
    )


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--draw", action="store_true", help="draw what the JSON holds")
    asked = parser.parse_args()
    held = json.loads(RESULTS.read_text()) if asked.draw else measure(asked.runs)
    draw(held)
    print(table(held))


if __name__ == "__main__":
    main()
