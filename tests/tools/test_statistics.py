"""Many runs: the averages, the file that can be gone on with, and the runs that are left out."""

import json

import numpy as np
import pytest
from scipy import stats

from gpucnn.errors import CheckpointError, ConfigurationError
from gpucnn.runs.statistics import Runs, possible_mean, summary


def test_statistics_are_those_of_the_textbook(rng):
    values = rng.normal(3, 2, 12)
    found = summary(values)
    assert (found.count, found.minimum, found.maximum) == (12, values.min(), values.max())
    assert found.mean == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.std(ddof=1))
    low, high = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[0.5], [0.4, 0.6]])
def test_interval_needs_three_values(values):
    found = summary(values)
    assert (found.mean, found.low, found.high) == (0.5, None, None)
    assert summary([0.5]).std == 0.0
    with pytest.raises(ConfigurationError, match="no values to summarise"):
        summary([])


def test_interval_stays_within_what_a_mean_can_be():
    """Runs that differ much: Student's interval alone would give 107.7 % and a loss below zero."""
    accuracies, losses = [0.99, 0.80, 0.96], [0.02, 0.70, 0.10]
    assert summary(accuracies).high > 1
    assert summary(losses).low < 0
    cut = summary(accuracies, possible_mean("test accuracy"))
    assert (cut.low, cut.high) == (summary(accuracies).low, 1.0)
    cut = summary(losses, possible_mean("training loss, epoch 1"))
    assert (cut.low, cut.high) == (0.0, summary(losses).high)
    assert summary([3.0, 0.1, 0.1], possible_mean("test time (s)")).low == 0.0
    assert possible_mean("learning_rate") == (-np.inf, np.inf)


@pytest.mark.parametrize("mean", [0.5, 0.97])
def test_interval_that_was_clipped_keeps_its_coverage(mean, rng):
    """19 times in 20, as it says, also where the values lie near the end of what is possible."""
    held = 0
    for _ in range(1000):
        found = summary(rng.normal(mean, 0.02, 5).clip(0, 1), (0.0, 1.0))
        held += found.low <= mean <= found.high
    assert 925 <= held <= 975


def test_statistics_table_fits_a_terminal_and_names_its_interval(tmp_path):
    runs = Runs(tmp_path / "runs.json", {"recipe": "lenet"})
    for seed in range(3):
        numbers = {"training accuracy": [0.2 + seed / 3] * 12, "training cumulative_accuracy": [0.97] * 12}
        runs.add({"seed": seed, "numbers": numbers | {"step time (s)": 0.0123456 + seed / 1000, "test loss": seed}})
        if seed < 2:
            assert "A confidence interval needs 3 runs." in runs.text()
            assert "…" not in runs.text()
    lines = runs.text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["mean", "std", "min", "max", "95", "%", "CI", "of", "mean"]
    first = next(line for line in lines if line.startswith("accuracy, epoch 12"))
    assert first.endswith("0 … 100 %")
    assert "33.3 pp" in first
    assert "cumulative_accuracy" not in runs.text()
    assert next(line for line in lines if line.startswith("test loss")).endswith("0 … 3.484")


def record(accuracy, defect=None):
    return {"numbers": {"accuracy": [accuracy / 2, accuracy], "seconds": 2.0 * accuracy}, "defect": defect}


def test_series_of_runs_goes_on_after_an_interruption(tmp_path):
    path, settings, made = tmp_path / "runs.json", {"recipe": "lenet", "epochs": 3}, []

    def run(seed, until=2):
        if seed == until:
            raise KeyboardInterrupt
        made.append(seed)
        return record(0.9 + seed / 100)

    with pytest.raises(KeyboardInterrupt):
        Runs(path, settings).run_missing(5, run)
    assert made == [0, 1]
    assert Runs(path, settings).missing_seeds(5) == [2, 3, 4]
    Runs(path, settings).run_missing(5, lambda seed: run(seed, until=None))
    assert made == [0, 1, 2, 3, 4]
    Runs(path, settings).run_missing(4, lambda seed: run(seed, until=None))  # all there
    assert made == [0, 1, 2, 3, 4]
    kept = json.loads(path.read_text())
    assert [one["seed"] for one in kept["runs"]] == [0, 1, 2, 3, 4]
    assert kept["runs"][3]["numbers"]["accuracy"] == [0.465, 0.93]


def test_series_leaves_defective_runs_out_unless_asked(tmp_path):
    runs = Runs(tmp_path / "runs.json", {"recipe": "lenet"})
    defect = {"kind": "not learning", "step": 400, "layer": "", "detail": "accuracy 10.0% where chance is 10.0%"}
    for seed, one in enumerate((record(0.9), record(0.1, defect), record(0.94))):
        runs.add({"seed": seed, **one})
    good, everything = runs.summaries(), runs.summaries(include_defects=True)
    assert good["accuracy, epoch 2"].mean == pytest.approx(0.92)
    assert good["accuracy, epoch 1"].maximum == pytest.approx(0.47)
    assert good["seconds"].count == 2
    assert everything["accuracy, epoch 2"].mean == pytest.approx(np.mean([0.9, 0.1, 0.94]))
    text = runs.text()
    assert "3 runs, 1 with a defect, excluded from the statistics" in text
    assert "seed 1: not learning: accuracy 10.0% where chance is 10.0%" in text
    line = next(line for line in text.splitlines() if line.startswith("accuracy, epoch 2"))
    assert line.split()[3:5] == ["92", "%"]
    assert "included in the statistics" in runs.text(include_defects=True)
    assert (tmp_path / "runs.txt").read_text() == text


def test_series_of_defective_runs_alone_has_no_table(tmp_path):
    runs = Runs(tmp_path / "runs.json", {})
    runs.add({"seed": 0, **record(0.1, {"kind": "diverged", "detail": "its weight is not finite"})})
    assert "seed 0: diverged" in runs.text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "contains no readable runs"),
        ("[]", "contains no readable runs"),
        ('{"format": 2, "settings": {}, "runs": []}', "has format 2, expected 1"),
        ('{"format": 1, "settings": {"epochs": 5}, "runs": []}', "holds runs with epochs=5, these have 3"),
    ],
)
def test_series_file_that_does_not_fit_is_refused(tmp_path, content, message):
    path = tmp_path / "runs.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Runs(path, {"epochs": 3})
    assert path.read_text() == content


def test_series_runs_keep_their_own_settings(tmp_path):
    made = Runs(tmp_path / "runs.json", {"recipe": "lenet", "epochs": 3})
    made.add({"seed": 0, **record(0.9)})
    found = Runs.read(tmp_path / "runs.json")
    assert (found.settings, found.records) == (made.settings, made.records)
    with pytest.raises(CheckpointError, match=r"nothing.json: contains no readable runs"):
        Runs.read(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        {},
        {"seed": "0", "numbers": {}},
        {"seed": 0, "numbers": {"a": "b"}},
        {"seed": 0, "numbers": {}, "defect": "x"},
    ],
)
def test_series_with_a_damaged_record_is_refused(wrong, tmp_path):
    held = {"format": 1, "settings": {}, "runs": [{"seed": 0, "numbers": {"a": [1, 2.5], "b": 3}}, wrong]}
    (tmp_path / "runs.json").write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match=r"runs.json: its run 1 is .* where a seed and numbers were expected"):
        Runs.read(tmp_path / "runs.json")
