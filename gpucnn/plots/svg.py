"""Figures as inline SVG of an HTML page, with its colours and fonts."""

import io
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK, WHITE = "#000000", "#ffffff"
PAPER = "var(--ground, #fff)"  # background of a legend, so that it can be read over a curve


def inline_svg(figure: "Figure", prefix: str, description: str) -> str:
    """Return a figure as an `<svg>` element for HTML, its labels as text and its background transparent.

    Black becomes the `currentColor` of the page, and white its `--ground`. Other colours are kept as attributes `fill`
    and `stroke`, which a style sheet can override. There is no `style` and no URL in it, so the page can forbid both.

    Arguments:
        prefix: of all ids; a different one for each figure of a page.
        description: the alternative text for screen readers.
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
            element.text = None  # line breaks and indentation
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    labels = {"class": "plot", "role": "img", "aria-label": description}
    root.attrib.update(labels | {"fill": "currentColor"})  # the default is black, also for text
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _local(name: str) -> str:
    """Return a name without its namespace, which is implied in HTML."""
    return name.rpartition("}")[2]


def _rewritten(attributes: dict[str, str], prefix: str) -> dict[str, str]:
    """Return the attributes of an element with its style as attributes, and prefixed ids and references."""
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
    """Return the declarations of a style as attributes, without the font, which is the page's."""
    declared = dict(part.split(":", 1) for part in style.split(";") if ":" in part)
    plain = {name.strip(): value.strip() for name, value in declared.items()}
    plain.pop("font-family", None)
    for name in ("fill", "stroke"):
        if plain.get(name) == BLACK:
            plain[name] = "currentColor"
        elif plain.get(name) == WHITE:
            plain[name] = PAPER
    return plain
