"""The command line: what a user types, what is printed, what is left on the disk."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gpucnn
from gpucnn.data.images import is_dark_on_light, read_image
from gpucnn.data.synthetic import synthetic_digits
from gpucnn.errors import BackendUnavailable, DataError

doctor_module = importlib.import_module("gpucnn.cli.doctor")  # the package's `doctor` is the command


@pytest.mark.smoke
def test_train_leaves_a_run(trained):
    left = ["config.json", "defects.json", "history.json", "model.safetensors", "snapshots.safetensors"]
    assert sorted(path.name for path in trained.iterdir()) == ["checkpoint-00006-000000.safetensors", *left]
    settings = json.loads((trained / "config.json").read_text())
    assert settings["network"] == "lenet"
    assert (settings["epochs"], settings["batch_size"], settings["seed"]) == (6, 32, 0)
    assert settings["versions"]["gpucnn"] == gpucnn.__version__
    assert settings["test"]["accuracy"] > 0.6
    history = json.loads((trained / "history.json").read_text())
    assert len(history["loss"]) == 6
    assert history["loss"][-1] < history["loss"][0]
    assert gpucnn.load(trained / "model.safetensors").class_names == list("0123456789")


def test_test_command_finds_the_data_again(run, trained, digits):
    accuracy = json.loads((trained / "config.json").read_text())["test"]["accuracy"]
    status, shown, _ = run("test", trained)
    assert status == 0
    assert shown.splitlines()[-1].startswith(f"test accuracy {100 * accuracy:.2f} %")
    assert "% of 30" in shown  # a line for each class
    status, shown, _ = run("test", trained / "model.safetensors", "--data", "mnist", "--data-dir", digits)
    assert f"test accuracy {100 * accuracy:.2f} %" in shown


def test_test_command_averages_over_views(run, trained, digits):
    (_, _), (x_test, y_test) = gpucnn.datasets.mnist(digits)
    expected = gpucnn.load(trained / "model.safetensors", backend="numpy").evaluate(x_test, y_test, tta="flip+shift")
    status, shown, _ = run("test", trained, "--tta", "flip+shift", "--backend", "numpy")
    assert status == 0
    assert "mean of 6 views per image (flip+shift)" in shown
    assert f"test accuracy {100 * expected['accuracy']:.2f} % (loss {expected['loss']:.4f})" in shown
    status, _, errors = run("test", trained, "--tta", "mirror")
    assert status != 0
    assert "tta must be one of 'flip', 'flip+shift', or a" in " ".join(errors.split())


@pytest.mark.smoke
def test_predict_reads_pictures(run, trained):
    images, labels = synthetic_digits(12, 5)
    files = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = Image.fromarray(image[..., 0] if number % 2 else 255 - image[..., 0])  # every other one on paper
        picture = picture.resize((56, 56)).convert("RGB" if number % 3 else "L")
        files.append(Path(f"{label}-{number}.png"))
        picture.save(files[-1])
    status, shown, _ = run("predict", *files, "--model", trained)
    assert status == 0
    predicted = [line.split()[1] for line in shown.splitlines() if ".png" in line]
    assert [line.split()[0] for line in shown.splitlines() if "centred" in line] == ["inverted,", "centred"] * 6
    right = sum(int(p) == label for p, label in zip(predicted, labels, strict=True))
    assert right >= 10
    status, shown, _ = run("predict", files[0], "--model", trained, "--no-invert")
    assert "inverted" not in shown


def test_predict_takes_the_newest_run(run, digits, tmp_path):
    for seed in (0, 1):
        assert run("train", "--data", "mnist", "--data-dir", digits, "--epochs", 1, "--seed", seed)[0] == 0
    Image.new("L", (28, 28)).save("black.png")
    status, shown, _ = run("predict", "black.png")
    assert status == 0
    assert "lenet-mnist-2/model.safetensors" in shown.replace("\\", "/")
    (tmp_path / "runs" / "lenet-mnist-1" / "model.safetensors").touch()
    assert "lenet-mnist-1/model.safetensors" in run("predict", "black.png")[1].replace("\\", "/")


def test_options_reach_the_training(run, digits, tmp_path):
    options = ("--network", "network-2", "--epochs", 1, "--batch-size", 500, "--learning-rate", 0.02, "--seed", 7)
    status, shown, errors = run(
        "train", "--data", "mnist", "--data-dir", digits, "--backend", "numpy", "--run-dir", "here", *options
    )
    assert (status, errors) == (0, "")
    settings = json.loads((tmp_path / "here" / "config.json").read_text())
    assert (settings["batch_size"], settings["seed"], settings["backend"]) == (500, 7, "numpy")
    assert settings["optimizer"]["learning_rate"]["rate"] == 0.02
    assert gpucnn.load("here/model.safetensors").optimizer.steps == 0
    assert "epoch 1/1: loss" in shown


def test_same_seed_same_weights(run, digits, tmp_path):
    for name in ("a", "b"):
        run("train", "--data", "mnist", "--data-dir", digits, "--epochs", 1, "--run-dir", name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_train_without_data_says_so_and_draws_digits(run, monkeypatch, tmp_path):
    def out_of_reach(name, folder, progress=False):
        raise DataError("MNIST: no mirror answered")

    monkeypatch.setattr("gpucnn.datasets.fetch", out_of_reach)
    monkeypatch.setattr("gpucnn.datasets.synthetic_digits", lambda: few_digits())
    status, shown, errors = run("train", "--epochs", 1)
    assert (status, errors) == (0, "")
    assert "MNIST is not available, so this run uses gpucnn's synthetic digits instead." in shown
    assert "no mirror answered" in shown
    assert shown.splitlines()[-1].endswith("on 100 images (synthetic digits)")
    assert (tmp_path / "runs" / "lenet-synthetic-digits-1").is_dir()
    status, _, errors = run("train", "--data", "mnist")
    assert status == 1  # asked for by name, MNIST is not replaced
    assert "no mirror answered" in errors
    assert run("test")[0] == 0


def few_digits():
    return gpucnn.datasets.Dataset(
        [synthetic_digits(500, 0), synthetic_digits(100, 1)], name="synthetic_digits", class_names="0123456789"
    )


def test_train_on_a_folder_of_images(run, tmp_path):
    generator = np.random.default_rng(0)
    for name, colour in (("red", (200, 0, 0)), ("green", (0, 200, 0)), ("blue", (0, 0, 200))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            noisy = np.clip(colour + generator.integers(-50, 50, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "photos" / name / f"{number}.png")
    options = ("--epochs", 6, "--batch-size", 8, "--learning-rate", 0.02, "--run-dir", "colours")
    status, shown, errors = run("train", "--data", "images", "--data-dir", "photos", "--network", "network-3", *options)
    assert (status, errors) == (0, "")
    assert "test accuracy 100.00 %" in shown
    status, shown, _ = run("predict", "photos/red/0.png", "--model", "colours")
    assert next(word for word in shown.split() if word in ("red", "green", "blue")) == "red"
    assert "test accuracy 100.00 %" in run("test", "colours")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--network", "alexnet"), "there is no network named 'alexnet'; there are lenet, sigmoid-3x3"),
        (("train", "--data", "svhn"), "unknown data set 'svhn'; choose one of mnist, cifar10"),
        (("train", "--data", "images"), "--data images needs --data-dir"),
        (("train", "--data-dir", "nowhere"), "nowhere: does not exist"),
        (("train", "--backend", "torch", "--data", "mnist"), None),
        (("test",), "no folder in runs/ contains a model.safetensors; train one with `gpucnn train`"),
        (("test", "nowhere"), "nowhere: not found"),
        (("predict", "x.png", "--model", "nowhere"), "nowhere: not found"),
    ],
)
def test_errors_end_with_a_message_and_no_trace(run, arguments, message, monkeypatch):
    def out_of_reach(name, folder, progress=False):
        raise DataError("MNIST: no mirror answered")

    monkeypatch.setattr("gpucnn.datasets.fetch", out_of_reach)
    status, _, errors = run(*arguments)
    assert status == 1
    assert "Traceback" not in errors
    assert message is None or message in errors.replace("\n", " ")


def test_run_folder_in_use_is_kept(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    status, _, errors = run("train", "--run-dir", "mine")
    assert status == 1
    assert "--run-dir mine: already exists and is not empty" in errors
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_predict_of_a_file_that_is_not_an_image(run, trained, tmp_path):
    (tmp_path / "page.png").write_text("<html>404</html>")
    status, _, errors = run("predict", "page.png", "--model", trained)
    assert status == 1
    assert "page.png: is not a supported image; it looks like" in errors


def test_version_and_help(run):
    assert run("--version")[1] == f"gpucnn {gpucnn.__version__}\n"
    shown = run("--help")[1]
    assert all(command in shown for command in ("train", "test", "predict", "doctor"))


def test_doctor_says_what_is_here(run, monkeypatch):
    monkeypatch.setenv("GPUCNN_BACKEND", "numpy")
    status, shown, _ = run("doctor")
    assert status == 0
    assert f"NumPy     {np.__version__}" in shown
    assert f"Python    {sys.version.split()[0]}" in shown
    assert "GPUCNN_BACKEND=numpy" in shown
    assert "MNIST     not found" in shown
    assert "BLAS      " in shown


def test_doctor_finds_the_data(run, monkeypatch, digits):
    monkeypatch.setenv("GPUCNN_DATA", str(digits.parent))
    assert str(digits) in run("doctor")[1].replace("\n", "")


def test_doctor_names_the_command_for_a_gpu_without_cupy(monkeypatch):
    monkeypatch.setattr(doctor_module, "cuda_driver_version", lambda: (13, 0))
    monkeypatch.setattr(doctor_module, "_cupy_version", lambda: None)
    found = {what: (text, remedy) for what, text, remedy in doctor_module._gpu()}
    assert "CUDA 13.0" in found["driver"][0]
    assert found["CuPy"][1] == "an NVIDIA GPU was found, but CuPy is not installed: pip install 'cupy-cuda13x[ctk]'"
    monkeypatch.setattr(doctor_module, "cuda_driver_version", lambda: (12, 4))
    assert "cuda12" in {what: remedy for what, _, remedy in doctor_module._gpu()}["CuPy"]


def test_doctor_says_in_short_why_the_probe_failed(monkeypatch):
    def refuses(name):
        raise BackendUnavailable("backend 'cupy'") from ImportError("libcublasLt.so.13: no such file\n  listdir:\n")

    monkeypatch.setattr(doctor_module, "cuda_driver_version", lambda: (13, 0))
    monkeypatch.setattr(doctor_module, "_cupy_version", lambda: "14.2.0")
    monkeypatch.setattr(doctor_module, "get_backend", refuses)
    found = {what: (text, remedy) for what, text, remedy in doctor_module._gpu()}
    assert found["GPU"] == (
        "the probe failed: libcublasLt.so.13: no such file",
        "CuPy and the driver are incompatible: pip install 'cupy-cuda13x[ctk]'",
    )


def blas_found(monkeypatch, kernels, threads=2, flags=()):
    library = {
        "user_api": "blas",
        "internal_api": "openblas",
        "filepath": "/numpy.libs/libopenblas.so",
        "version": "0.3",
        "architecture": kernels,
        "num_threads": threads,
    }
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [library])
    monkeypatch.setattr(doctor_module, "usable_cores", lambda: 2)
    monkeypatch.setattr(doctor_module, "cpu_flags", lambda: set(flags))
    ((_, found, remedy),) = doctor_module._blas()
    return found, remedy


def test_doctor_counts_threads_against_cores(monkeypatch):
    found, remedy = blas_found(monkeypatch, "Zen", threads=64)
    assert found == "openblas 0.3, Zen, 64 threads"
    assert remedy == "BLAS is set to 64 threads on 2 usable cores, which is slower: set OPENBLAS_NUM_THREADS=2"
    gpucnn.set_num_threads(None)  # whatever an earlier test has set
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "5")
    assert doctor_module._engine()[1:] == (
        "gpucnn splits a batch among 5",
        "gpucnn is set to 5 threads on 2 usable cores, which is slower: set GPUCNN_NUM_THREADS=2",
    )
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "all")
    assert "GPUCNN_NUM_THREADS must be a positive integer, not 'all'" in doctor_module._engine()[2]
    monkeypatch.setenv("GPUCNN_NUM_THREADS", "2")
    assert doctor_module._engine()[2] == ""


def test_doctor_sees_a_blas_that_uses_old_instructions(monkeypatch):
    avx512 = ["avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"]
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    _, remedy = blas_found(monkeypatch, "Haswell", flags=avx512)
    assert remedy.startswith("OPENBLAS_CORETYPE=Haswell limits BLAS to its Haswell kernels, but this processor has AVX")
    assert remedy.endswith("unset OPENBLAS_CORETYPE")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert "upgrade NumPy" in blas_found(monkeypatch, "Haswell", flags=avx512)[1]
    assert "has AVX2" in blas_found(monkeypatch, "Nehalem", flags=["avx2"])[1]
    for kernels, flags in (("SkylakeX", avx512), ("Haswell", ["avx2"]), ("Haswell", avx512[:3]), ("Nehalem", [])):
        assert blas_found(monkeypatch, kernels, flags=flags)[1] == ""


def test_doctor_reads_the_flags_of_this_processor():
    flags = doctor_module.cpu_flags()
    assert flags == set() or "sse2" in flags or "asimd" in flags


def test_bench_measures_and_writes(run, tmp_path):
    file = tmp_path / "new" / "bench.json"
    status, shown, _ = run(*f"bench lenet --backend numpy --batch-size 16 --seconds 0.1 --json {file}".split())
    assert status == 0
    assert "lenet" in shown
    assert "speed-up" in shown
    report = json.loads(file.read_text())
    (timing,) = report["timings"]
    assert report["batch_size"] == timing["batch_size"] == 16
    assert min(timing["train_seconds"], timing["inference_seconds"], timing["reference_train_seconds"]) > 0
    assert timing["train_flops"] == 3 * 16 * 2 * (
        28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    )
    status, _, complaint = run("bench", "nonet")
    assert status == 1
    assert "there is no network named 'nonet'" in complaint


@pytest.mark.parametrize("channels", [1, 3])
def test_image_is_converted_to_what_a_model_takes(tmp_path, channels):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (40, 20), 100).save(tmp_path / "grey.png")
    red, grey = (read_image(tmp_path / f"{name}.png", (8, 6), channels) for name in ("red", "grey"))
    assert red.shape == grey.shape == (8, 6, channels)
    assert red.dtype == np.uint8
    assert red[0, 0].tolist() == ([76] if channels == 1 else [255, 0, 0])  # 0.299 · 255
    assert grey[3, 3].tolist() == [100] * channels


def test_image_polarity_of_paper_and_dark_ground():
    paper = np.full((9, 9, 1), 240, np.uint8)
    paper[3:6, 3:6] = 10
    assert is_dark_on_light(paper)
    assert not is_dark_on_light(255 - paper)
