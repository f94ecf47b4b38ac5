"""The examples in docstrings, which `pytest --doctest-modules gpucnn` runs: each in a folder of its own."""

import pytest

collect_ignore_glob = ["gpucnn/backends/cupy/*", "gpucnn/report/test_*"]  # it imports CuPy; its name alone is a test's


@pytest.fixture(autouse=True)
def folder_of_an_example(request):
    """Run an example in an empty folder, into which it may write."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
