"""What may import what: the layers of the package, the libraries that are confined to a part, and the size of files.

An import counts wherever it stands: at the top of a module, inside a function, or for type checking alone.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gpucnn

PACKAGE = Path(gpucnn.__file__).parent
ROOT = PACKAGE.parent

#: what each part may import besides itself; a part is a module at the top of the package, or a folder
MAY_IMPORT = {
    "errors": "",
    "version": "",
    "core": "errors",
    "backends": "core errors",
    "rng": "backends",
    "initializers": "core errors",
    "schedules": "core errors",
    "losses": "backends core errors",
    "data": "backends core errors",  # backends, for augmentation, which a backend carries out
    "metrics": "backends core data errors losses",
    "datasets": "core data errors",
    "optimizers": "backends core errors schedules",
    "layers": "backends core data errors initializers rng",
    "engine": "backends core data errors layers losses metrics optimizers rng",
    "saving": "core engine errors layers",
    "callbacks": "backends core data errors layers metrics optimizers saving schedules",
    "training": "backends callbacks core data engine errors layers metrics optimizers rng saving version",
    "model": "backends callbacks core data engine errors initializers layers losses metrics optimizers saving training",
    "networks": "backends callbacks core data errors initializers layers losses model optimizers schedules training",
    "testing": "backends core data engine errors layers model rng",
    "runs": "backends callbacks core data datasets errors model networks rng training",
    "plots": "backends callbacks core data engine errors layers model rng training",
    "report": "backends callbacks core data engine errors layers model optimizers plots runs schedules training "
    "version",
    "gpucnn": "backends callbacks core datasets errors initializers layers losses metrics model networks optimizers "
    "plots report schedules testing training version",
    "compat": "backends callbacks core data errors gpucnn layers losses metrics optimizers",
    "cli": "backends callbacks core data datasets engine errors layers model networks plots report rng runs saving "
    "schedules testing training version",
    "__main__": "cli core errors",
}

#: libraries that only some places may import
CONFINED = {
    "cupy": "backends/cupy/",
    "cupyx": "backends/cupy/",
    "matplotlib": "plots/ report/",
    "numpy": "backends/ cli/ data/ plots/ saving/ testing/ datasets.py initializers.py metrics.py rng.py "
    "networks/whitening.py",
    "pickle": "",
    "shelve": "",
    "marshal": "",
    "dill": "",
}

MAX_TOP_MODULES, MAX_LINES, MAX_FUNCTION = 12, 450, 60


def modules(package=PACKAGE):
    """Return the files of a package by the names of their modules."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        name = ".".join((package.name, *file.relative_to(package).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = file
    return found


@cache
def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file):
    """Return what a file imports, wherever the import stands: (module, name in it or "")."""
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [(name.name, "") for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import; write the whole name"
            found += [(node.module, name.name) for name in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            assert file == PACKAGE / "__init__.py", f"{file}: an import by a computed name, which cannot be checked"
    return found


def graph(package=PACKAGE):
    """Return which modules of a package each of its modules imports."""
    known = modules(package)
    arrows = {}
    for module, file in known.items():
        named = {f"{source}.{name}" if f"{source}.{name}" in known else source for source, name in imports(file)}
        arrows[module] = {name for name in named if name in known}
    return arrows


def part_of(module):
    return module.split(".")[1] if "." in module else module


def cycle_in(arrows):
    """Return the modules of an import cycle in order, or an empty list."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def forbidden(arrows, may_import):
    """Return the arrows that the table does not allow, and the parts that have no rule."""
    wrong = [f"{part_of(module)} has no rule" for module in arrows if part_of(module) not in may_import]
    for module, targets in arrows.items():
        allowed = {part_of(module), *may_import.get(part_of(module), "").split()}
        wrong += [f"{module} imports {target}" for target in sorted(targets) if part_of(target) not in allowed]
    return wrong


def functions(file):
    """Yield the name of each function of a file, and its lines but for the docstring."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


# --- the order of the package ------------------------------------------------------------------


def test_parts_import_only_what_the_table_allows():
    assert forbidden(graph(), MAY_IMPORT) == []


def test_table_of_parts_has_no_cycle_and_no_stale_row():
    assert cycle_in({part: row.split() for part, row in MAY_IMPORT.items()}) == []
    assert set(MAY_IMPORT) == {part_of(module) for module in modules()}


def test_imports_have_no_cycle():
    assert cycle_in(graph()) == []


@pytest.mark.parametrize("place", ["{}", "def f():\n    {}", "if TYPE_CHECKING:\n    {}"], ids=["top", "lazy", "types"])
def test_checks_find_cycles_arrows_and_parts_without_rule(tmp_path, place):
    package = tmp_path / "some"
    (package / "low").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "low" / "one.py").write_text(place.format("from some.high import thing"))
    (package / "high.py").write_text("from some.low import one")
    arrows = graph(package)
    assert {"some.high", "some.low.one"} <= set(cycle_in(arrows))
    assert forbidden(arrows, {"some": "", "high": "low", "low": ""}) == ["some.low.one imports some.high"]
    assert "high has no rule" in forbidden(arrows, {"some": "", "low": "high"})
    assert cycle_in(arrows | {"some.low.one": set()}) == []


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_are_imported_only_where_they_may(library):
    for file in modules().values():
        place = file.relative_to(PACKAGE).as_posix()
        if not place.startswith(tuple(CONFINED[library].split())):
            assert library not in {source.split(".")[0] for source, _ in imports(file)}, place


def test_import_of_the_package_is_light():
    """No CuPy, matplotlib or pooch, nor the command line's libraries, come with `import gpucnn`."""
    heavy = {"cupy", "matplotlib", "jinja2", "pooch", "typer", "rich", "PIL", "scipy", "requests"}
    code = "import sys, gpucnn; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not heavy & set(loaded.stdout.split())


# --- its size, and what stands where -----------------------------------------------------------


def test_package_has_few_modules_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_TOP_MODULES


def test_files_are_short():
    lengths = {
        file.relative_to(PACKAGE).as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for file in modules().values()
    }
    assert {name for name, lines in lengths.items() if lines > MAX_LINES} == set()


def test_functions_are_short():
    long = {
        f"{file.relative_to(PACKAGE).as_posix()}: {name}"
        for file in modules().values()
        for name, lines in functions(file)
        if lines > MAX_FUNCTION
    }
    assert not long


def test_modules_have_docstrings():
    for file in modules().values():
        assert ast.get_docstring(tree_of(file)), file


def test_backends_at_the_top_of_the_repository_are_those_of_the_package():
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a source tree")
    assert (ROOT / "backends").resolve() == PACKAGE / "backends"
