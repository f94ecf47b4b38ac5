"""The HTML page: the sections of a run, rendered by templates and written as one file."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gpucnn.backends import Backend
from gpucnn.core import checks
from gpucnn.core.files import explained, user_path, why_not_written, write_atomic
from gpucnn.core.text import printable
from gpucnn.errors import ConfigurationError, GpucnnError
from gpucnn.report.all_runs import all_runs
from gpucnn.report.curves import curves
from gpucnn.report.defects import BOX, defects
from gpucnn.report.feature_maps import feature_maps
from gpucnn.report.filters import filters
from gpucnn.report.layers import layers
from gpucnn.report.overview import facts, final_scores, headline
from gpucnn.report.run import Run, open_run
from gpucnn.report.test_results import test_results
from gpucnn.runs.folder import MODEL, Predictions, beside, find_model, predict_test_set

REPORT = "report.html"
IMAGES = 6  # test images with feature maps, by default


def write(
    run: str | Path | None = None,
    path: str | Path | None = None,
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    backend: str | Backend = "auto",
    images: int | Sequence[int] = IMAGES,
) -> Path:
    """Write the report of a run as one HTML page, and return its path.

    Arguments:
        run: a run folder or a .safetensors file; None is the newest run below `runs`.
        path: of the page; None is `report.html` in the run folder.
        data, data_dir: the test set, as the commands take it; None is that of the data it was trained on.
        images: the number of test images with feature maps, or their indices.

    Raises:
        CheckpointError: there is no such run, or something in it is damaged.
        ConfigurationError: an argument is invalid, or the page cannot be written.
        DataError: the requested data are not available; without a request, the page reports that.

    Example:
        >>> networks.lenet().save("lenet.safetensors")
        >>> report.write("lenet.safetensors", "report.html").name
        'report.html'
    """
    model = find_model(run)
    target = _target(model, None if path is None else user_path(path))
    page = render(model, data=data, data_dir=data_dir, backend=backend, images=images)
    with explained(target, ConfigurationError):
        write_atomic(target, page.encode(errors="replace"))
    return target


def render(
    run: str | Path | None = None,
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    backend: str | Backend = "auto",
    images: int | Sequence[int] = IMAGES,
) -> str:
    """Return the report of a run as HTML; arguments and errors are those of `write`."""
    requested = _check_images(images)
    opened = open_run(run, backend)
    predicted = _predicted(opened, data, data_dir)
    scores = final_scores(opened, predicted)
    return _page(
        run=opened,
        headline=headline(opened, scores),
        facts=facts(opened, predicted),
        curves=curves(opened, scores),
        layers=layers(opened),
        test_results=test_results(predicted),
        filters=filters(opened),
        feature_maps=feature_maps(opened.model, predicted, requested),
        defects=defects(opened),
        all_runs=all_runs(opened),
    )


def _target(model: Path, path: Path | None) -> Path:
    """Return the path of the page, checked before any work is done."""
    if path is None:
        path = beside(model, REPORT if model.name == MODEL else f"{model.stem}-{REPORT}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"{path}: reports are written as HTML; expected a file name that ends with .html")
    if not path.parent.is_dir():
        raise ConfigurationError(why_not_written(path, FileNotFoundError(2, "No such file or directory")))
    return path


def _check_images(images: Any) -> int | list[int]:
    """Return the number of test images to show, or their indices."""
    if not isinstance(images, list | tuple):
        name = "images, the number of test images to show or a list of their indices,"
        return checks.integer(images, name, minimum=1)
    if not images:
        raise ConfigurationError(
            "images is an empty list; expected the number of test images to show, or their indices"
        )
    return [checks.integer(index, "the index of a test image", minimum=0) for index in images]


def _predicted(run: Run, data: str | None, data_dir: str | Path | None) -> Predictions | str:
    """Return the predictions on the test set, or the reason why there are none; requested data must be available."""
    try:
        return predict_test_set(run.model, run.path, data, data_dir)
    except GpucnnError as error:
        if data is not None or data_dir is not None:
            raise
        return f"The test results are not available: {str(error).rstrip('.')}."


def _page(**contents: Any) -> str:
    """Render the template, with a policy that lets a browser use this style and script and no other."""
    from gpucnn.version import __version__

    style, script = _text("page.css"), _text("page.js")
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
    policy += "base-uri 'none'; form-action 'none'"
    marked = {"policy": Markup(policy), "style": Markup(style), "script": Markup(script)}
    template = _environment().get_template("page.html")
    return template.render(contents | marked, written=datetime.now().astimezone(), version=__version__, box=BOX)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gpucnn.report"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # for `inline_svg` only, which escapes its content
    return environment


def _printable(value: Any) -> Any:
    """Return the value of an expression of the template with unprintable characters escaped."""
    return printable(value, lines=True) if type(value) is str else value


@cache
def _text(name: str) -> str:
    """Return a style sheet or a script exactly: the browser compares its digest."""
    source = PackageLoader("gpucnn.report").get_source(_environment(), name)[0]
    return source.replace("\r\n", "\n")  # as a browser reads it


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
