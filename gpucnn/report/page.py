"""The page itself: sections from a run, laid into a template, and written as one file."""

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
from gpucnn.core.files import explained, user_path, why_not_written, write_whole
from gpucnn.core.text import printable
from gpucnn.errors import ConfigurationError, GpucnnError
from gpucnn.report.all_runs import statistics
from gpucnn.report.curves import training
from gpucnn.report.defects import BOX, defects
from gpucnn.report.feature_maps import maps
from gpucnn.report.filters import kernels
from gpucnn.report.layers import layers
from gpucnn.report.overview import facts, final_scores, headline
from gpucnn.report.run import Run, open_run
from gpucnn.report.test_results import answers
from gpucnn.runs.folder import MODEL, Predicted, beside, find_model, predict_test_set

REPORT = "report.html"
IMAGES = 6  # test images that are shown on their way, unless others are asked for


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
        data, data_dir: what it is tested on, as the commands take it; None is what it was trained on.
        images: how many test images are shown on their way through the layers, or which.

    Raises:
        CheckpointError: there is no such run, or something in it is damaged.
        ConfigurationError: an argument makes no sense, or the page cannot be written.
        DataError: the data that were asked for cannot be had; where none were, the page says so.
    """
    model = find_model(run)
    target = _target(model, None if path is None else user_path(path))
    page = render(model, data=data, data_dir=data_dir, backend=backend, images=images)
    with explained(target, ConfigurationError):
        write_whole(target, page.encode(errors="replace"))
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
    wanted = _checked(images)
    opened = open_run(run, backend)
    on_test = _predicted(opened, data, data_dir)
    scores = final_scores(opened, on_test)
    return _page(
        run=opened,
        headline=headline(opened, scores),
        facts=facts(opened, on_test),
        training=training(opened, scores),
        layers=layers(opened),
        answers=answers(on_test),
        kernels=kernels(opened),
        maps=maps(opened.model, on_test, wanted),
        defects=defects(opened),
        statistics=statistics(opened),
    )


def _target(model: Path, path: Path | None) -> Path:
    """Return where the page goes, and see before any work that it can go there."""
    if path is None:
        path = beside(model, REPORT if model.name == MODEL else f"{model.stem}-{REPORT}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"{path}: a report is written as HTML; name a file that ends with .html")
    if not path.parent.is_dir():
        raise ConfigurationError(why_not_written(path, FileNotFoundError(2, "No such file or directory")))
    return path


def _checked(images: int | Sequence[int]) -> int | list[int]:
    whole = [images] if isinstance(images, int) else list(images)
    if not whole or any(isinstance(number, bool) or not isinstance(number, int) for number in whole) or images == 0:
        raise ConfigurationError(
            f"images must be how many test images to show, from 1 up, or a list of which, not {images!r}"
        )
    if isinstance(images, int) and images < 1:
        raise ConfigurationError(f"images must be a positive number of test images, not {images!r}")
    return images if isinstance(images, int) else whole


def _predicted(run: Run, data: str | None, data_dir: str | Path | None) -> Predicted | str:
    """Return what the model makes of the test set, or why that is not known; what was asked for must be had."""
    try:
        return predict_test_set(run.model, run.path, data, data_dir)
    except GpucnnError as error:
        if data is not None or data_dir is not None:
            raise
        return f"The network was not tested for this report: {str(error).rstrip('.')}."


def _page(**contents: Any) -> str:
    """Lay the sections into the template, with a policy that lets a browser run this style and script and no other."""
    from gpucnn.version import __version__

    style, script = _text("page.css"), _text("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_digest(style)}",
            f"script-src {_digest(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            contents,
            policy=Markup(policy),
            style=Markup(style),
            script=Markup(script),
            made=datetime.now().astimezone(),
            version=__version__,
            box=BOX,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gpucnn.report"),
        autoescape=True,
        finalize=_as_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # of `inline_svg` alone, which escapes what it holds
    return environment


def _as_shown(value: Any) -> Any:
    """Return what stands in an expression of the template: names with what cannot be shown, or written, escaped."""
    return printable(value, lines=True) if type(value) is str else value


@cache
def _text(name: str) -> str:
    """Return a style sheet or a script to the letter: its digest must be that of what the browser runs."""
    source = PackageLoader("gpucnn.report").get_source(_environment(), name)[0]
    return source.replace("\r\n", "\n")  # as a browser reads it


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
