"""Training runs of which the tests draw reports."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import gpucnn
from gpucnn import layers, optimizers, schedules
from gpucnn.callbacks.snapshots import Snapshots
from gpucnn.runs.folder import remember_data
from tests.helpers import write_digits

CLASS_NAMES = ["<script>alert(1)</script>", 'a $x^2$ & "b"', "<img src=x onerror=alert(1)>"]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A small MNIST of synthetic digits."""
    return write_digits(tmp_path_factory.mktemp("data") / "mnist", 600, 200)


@pytest.fixture(scope="session")
def run_folder(data, tmp_path_factory):
    """The folder of a run of three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    command = f"train --data mnist --epochs 3 --batch-size 50 --backend numpy --data-dir {data} --run-dir {folder}"
    subprocess.run([sys.executable, "-m", "gpucnn", *command.split()], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """The folder of a run on coloured images whose folders, classes and settings have names to be wary of."""
    data = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for k in range(3):
        (data / f"<i>{k}&{k}").mkdir()
        for n in range(20):
            picture = rng.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            picture[..., k] += np.uint8(20 if n == 0 else 150)  # one of each is hardly to be told
            Image.fromarray(picture).save(data / f"<i>{k}&{k}" / f"{n}.png")
    folder = tmp_path_factory.mktemp("coloured") / '<b>run & "more"'
    folder.mkdir()
    model = gpucnn.Model(
        [
            layers.Conv2D(5, 3, padding="same"),
            layers.ReLU(),
            layers.MaxPool2D(2),
            layers.Sequential([layers.Conv2D(40, 3), layers.ReLU()]),
            layers.Sequential([layers.Conv2D(4, 1), layers.ReLU()]),
            layers.Flatten(),
            layers.Dense(3),
            layers.Softmax(),
        ],
        (8, 8, 3),
        backend="numpy",
        name="<em>network</em>",
    )
    model.compile(optimizer=optimizers.Adam(schedules.Cosine(0.01)))
    model.class_names = CLASS_NAMES
    (x, y), _ = gpucnn.datasets.image_folder(data)
    history = model.fit(x, y, epochs=4, batch_size=16, callbacks=[Snapshots(folder)], verbose=0)
    history.save(folder / "history.json")
    model.save(folder / "model.safetensors")
    settings = {"data": "images", "data_dir": str(data), "source": "<u>here</u>", "versions": {"<s>": "1"}}
    (folder / "config.json").write_text(json.dumps(settings))
    remember_data(data)
    return folder
