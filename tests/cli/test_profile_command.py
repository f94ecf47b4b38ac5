"""`gpucnn profile`: the table and its JSON."""

import json

import pytest
from typer.testing import CliRunner

from gpucnn import networks
from gpucnn.cli import app
from gpucnn.errors import ConfigurationError


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "100"})


def test_profile_command_of_a_network(tmp_path):
    file = tmp_path / "new" / "profile.json"
    result = invoke("profile", "--network", "network-1", "--backend", "numpy", "--batch-size", 16, "--json", file)
    assert result.exit_code == 0
    report = json.loads(file.read_text())
    conv = next(row for row in report["layers"] if row["path"] == "conv2d")
    assert conv["flops_forward"] == conv["flops_backward"] == 16 * 2 * 26 * 26 * 4 * 9
    assert conv["output_bytes"] == 16 * 26 * 26 * 4 * 4
    assert conv["gflops"] == pytest.approx(2 * conv["flops_forward"] / conv["seconds"] / 1e9)
    assert "26×26×4" in result.output
    assert "44k" in result.output  # 43,994 parameters in all


def test_profile_command_of_a_saved_model(tmp_path):
    networks.lenet(backend="numpy").save(tmp_path / "model.safetensors")
    result = invoke("profile", "--model", tmp_path, "--batch-size", 8, "--repeats", 1)
    assert "average_pool2d_1" in result.output.replace("\n", "")
    with pytest.raises(ConfigurationError, match="--network and --model both select a network"):
        invoke("profile", "--network", "lenet", "--model", tmp_path)
