"""The wall between the package and the array libraries, and the direction in which its parts depend on each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpucnn

PACKAGE = Path(gpucnn.__file__).parent
ROOT = PACKAGE.parent

HOST_EDGE = (
    "data/",
    "plots/",
    "datasets.py",
    "initializers.py",
    "rng.py",
    "metrics.py",
    "saving/",
    "testing/",
    "networks/whitening.py",
)

# who may import whom: a part may import itself and what stands here for it
ALLOWED = {
    "version": set(),
    "errors": set(),
    "core": {"errors"},
    "backends": {"core", "errors"},
    "rng": {"core", "backends"},
    "initializers": {"core", "errors"},
    # backends for augmentation, which a backend carries out
    "data": {"core", "backends", "errors"},
    "datasets": {"core", "data", "errors"},
    "layers": {"core", "backends", "data", "errors", "initializers", "rng"},
    "losses": {"core", "backends", "errors"},
    "metrics": {"core", "backends", "data", "errors"},
    "schedules": {"core", "errors"},
    "optimizers": {"core", "backends", "errors", "layers", "schedules"},
}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Every module that a file imports, wherever the import stands, except for type checking alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "gpucnn":
                yield from (f"gpucnn.{name.name}" for name in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_it_may(path):
    place = path.relative_to(PACKAGE).as_posix()
    found = list(imports(path))
    libraries = {name.split(".")[0] for name in found}
    if not place.startswith("backends/cupy/"):
        assert not libraries & {"cupy", "cupyx"}, "only backends/cupy/ imports cupy"
    if not place.startswith(("backends/", "cli/", *HOST_EDGE)):
        assert "numpy" not in libraries, "only backends/ and the host edge import numpy"
    if not place.startswith("plots/"):
        assert "matplotlib" not in libraries, "only plots/ imports matplotlib"
    part = place.split("/")[0].removesuffix(".py")
    if part not in ("cli", "__main__"):
        assert not any(name.startswith("gpucnn.cli") for name in found), "the command line is on top of all"
    if part in ALLOWED:
        used = {name.split(".")[1] for name in found if name.startswith("gpucnn.")} - {part}
        assert used <= ALLOWED[part], f"{part} imports {used - ALLOWED[part]}"


def test_every_module_says_what_lives_there():
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_importing_is_light():
    """No CuPy, matplotlib or pooch, nor the command line's libraries, come with `import gpucnn`."""
    heavy = {"cupy", "matplotlib", "jinja2", "pooch", "typer", "rich", "PIL", "scipy", "requests"}
    code = "import sys, gpucnn; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not heavy & set(loaded.stdout.split())


def test_the_doorway_at_the_top_leads_to_the_backends():
    doorway = ROOT / "backends"
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a source tree")
    assert doorway.resolve() == PACKAGE / "backends"


def test_nothing_is_pickled():
    for path in modules():
        assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "shelve", "marshal", "dill"}, path
