"""The examples run as their first lines say, and learn."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path):
    done = subprocess.run(
        [sys.executable, "-W", "error", path, "--smoke", "--backend", "numpy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"^test accuracy (\S+) %", done.stdout, re.MULTILINE)
    assert accuracy, done.stdout
    assert float(accuracy[1]) > 20


def test_examples_exist():
    assert {path.stem for path in EXAMPLES} >= {"mnist_lenet", "cifar10_small"}
