"""Memory that is bounded by the system: predictions get by with what there is, and the batch that is advised fits."""

import json
import subprocess
import sys

import numpy as np
import pytest

from gpucnn import layers
from gpucnn.data.arrays import channel_statistics

resource = pytest.importorskip("resource", reason="only Unix limits the memory of a process")

BOUNDED = """
import json, re, resource, sys
import numpy as np
import gpucnn
from gpucnn import layers as L

gpucnn.set_num_threads(1)  # OpenBLAS ends the process where it finds no memory for a second thread's products
blocks = [layer for _ in range(4) for layer in (L.Conv2D(48, 3, padding="same"), L.BatchNorm(), L.ReLU())]
model = gpucnn.Model([*blocks, L.MaxPool2D(4), L.Flatten(), L.Dense(10), L.Softmax()], (32, 32, 3), backend="numpy")
model.compile(gpucnn.optimizers.SGD(0.01))
x = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
y = np.arange(300) % 10
model.train_on_batch(x[:64], y[:64]), model.predict(x[:64])  # BLAS has what it needs
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20), resource.RLIM_INFINITY))
answers = {}
try:
    answers["predict"] = model.predict(x, 256).shape[0]
    answers["evaluate"] = model.evaluate(x, y, 256)["loss"] > 0
    try:
        model.fit(x, y, batch_size=256, verbose=0)
        answers["fit"] = 256
    except gpucnn.OutOfMemoryError as error:
        size = int(re.search(r"a batch_size of (\\d+) fits", str(error)).group(1))
        model.fit(x[: 3 * size + 1], y[: 3 * size + 1], batch_size=size, verbose=0)
        answers["fit"] = size
except gpucnn.GpucnnError as error:
    answers["error"] = str(error)
print(json.dumps(answers))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what a process uses from /proc")
@pytest.mark.process
@pytest.mark.parametrize("megabytes", [24, 90])
def test_predict_with_little_memory_advises_what_fits(megabytes):
    command = [sys.executable, "-c", BOUNDED, str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    answers = json.loads(done.stdout)
    assert "error" not in answers, answers["error"]
    assert answers["predict"] == 300
    assert answers["evaluate"]
    assert 1 <= answers["fit"] < 256


def test_adapt_takes_the_memory_of_one_part_of_the_data(tmp_path):
    """Also of data that are mapped from a file."""
    import tracemalloc

    data = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (20_000, 16, 16, 3))
    data[...] = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3))
    data[::2] //= 2
    tracemalloc.start()
    layer = layers.Normalization().adapt(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # of 15 MB that would be 123 MB as float64
    assert layer.mean == pytest.approx((np.mean(data[:2], axis=(0, 1, 2)) / 255).tolist(), rel=1e-12)
    assert layer.std == pytest.approx((np.std(data[:2], axis=(0, 1, 2)) / 255).tolist(), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "bool"])
def test_adapt_in_chunks_gives_the_statistics_of_all_data(dtype, monkeypatch):
    """Means far above the deviations lose no digits."""
    monkeypatch.setattr("gpucnn.data.arrays.CHUNK", 100)
    raw = np.random.default_rng(0).standard_normal((50, 3, 3, 2))
    data = (raw > 0 if dtype == "bool" else 100 + 20 * raw if dtype == "uint8" else 1000 + raw).astype(dtype)
    scale = 255 if dtype == "uint8" else 1
    mean, deviation = channel_statistics(data, "data")
    wide = data.astype("float64")
    assert mean == pytest.approx(wide.mean(axis=(0, 1, 2)) / scale, rel=1e-14)
    assert deviation == pytest.approx(wide.std(axis=(0, 1, 2)) / scale, rel=1e-12)
