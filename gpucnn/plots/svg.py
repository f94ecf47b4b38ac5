"""Figures as SVG that stands inside an HTML page and follows its colours and its letters."""

import io
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK, WHITE = "#000000", "#ffffff"
PAPER = "var(--ground, #fff)"  # what lies behind a legend, so that it can be read over a curve


def inline_svg(figure: "Figure", prefix: str, description: str) -> str:
    """Return a figure as an `<svg>` element for HTML, its letters as text and its ground transparent.

    What is black takes the `currentColor` of the page, and what is white its `--ground`. Other colours stay in the
    attributes `fill` and `stroke`, where a style sheet can meet them. There is no `style` and no address in it, so the
    page can forbid both.

    Arguments:
        prefix: what all ids begin with; another one for each figure of a page.
        description: what a screen reader says in place of the picture.
    """
    from matplotlib import rc_context

    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = _rewritten(element.attrib, prefix)
        element.tail = None
        if element.tag not in ("text", "tspan"):
            element.text = None  # the lines' ends and blanks that make the file readable
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    words = {"class": "plot", "role": "img", "aria-label": description}
    root.attrib.update(words | {"fill": "currentColor"})  # SVG's own is black, for letters too
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(name: str) -> str:
    """Return a name without its namespace, which HTML knows by itself."""
    return name.rpartition("}")[2]


def _rewritten(attributes: dict[str, str], prefix: str) -> dict[str, str]:
    """Return the attributes of an element with its style as attributes, and ids and references of their own."""
    result: dict[str, str] = {}
    for name, value in attributes.items():
        name = _local(name)
        if name == "style":
            result |= _presentation(value)
        elif name == "id":
            result[name] = f"{prefix}-{value}"
        elif name == "href" and value.startswith("#"):
            result[name] = f"#{prefix}-{value[1:]}"
        else:
            result[name] = " ".join(value.split())
    return {name: value.replace("url(#", f"url(#{prefix}-") for name, value in result.items()}


def _presentation(style: str) -> dict[str, str]:
    """Return the declarations of a style as attributes; letters are those of the page."""
    declared = dict(part.split(":", 1) for part in style.split(";") if ":" in part)
    plain = {name.strip(): value.strip() for name, value in declared.items()}
    plain.pop("font-family", None)
    for name in ("fill", "stroke"):
        if plain.get(name) == BLACK:
            plain[name] = "currentColor"
        elif plain.get(name) == WHITE:
            plain[name] = PAPER
    return plain
