"""The examples in docstrings, which `pytest --doctest-modules gpucnn` runs: each in a folder of its own.

They are written for a session that has begun with these two lines:

    import numpy as np
    from gpucnn import *
"""

import numpy as np  # noqa: TID251
import pytest

import gpucnn

collect_ignore_glob = ["gpucnn/backends/cupy/*", "gpucnn/report/test_*"]  # it imports CuPy; its name alone is a test's


@pytest.fixture(autouse=True)
def folder_of_an_example(request, doctest_namespace):
    """Run an example in an empty folder, into which it may write."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
        doctest_namespace.update(np=np, **{name: getattr(gpucnn, name) for name in gpucnn.__all__})
