"""The report in a real browser: what a reader sees, presses and hears, and that nothing is fetched or goes wrong."""

import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from gpucnn import report
from gpucnn.callbacks.snapshots import load_snapshots
from tests import chromium

pytestmark = pytest.mark.skipif(bool(chromium.why_not()), reason=f"not tested in a browser: {chromium.why_not()}")

WIDE, PHONE = 1200, 360
LEFT, RIGHT, HOME, END, TAB = ("ArrowLeft", 37), ("ArrowRight", 39), ("Home", 36), ("End", 35), ("Tab", 9)

# every piece of text that is shown, with the contrast of its colour against what lies behind it
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const mixed = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script")) continue;
    const style = getComputedStyle(element);
    const grounds = [];
    for (let one = element; one; one = one.parentElement) grounds.unshift(getComputedStyle(one).backgroundColor);
    const behind = mixed(grounds);
    const letters = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [a, b] = [luminance(mixed([...grounds, letters])), luminance(behind)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
})()
"""

SHOWN = "[...document.querySelectorAll('#{0} figure')].filter((f) => f.checkVisibility())"


@pytest.fixture(scope="module")
def pages(run_folder, coloured, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {
        "digits": report.write(run_folder, folder / "digits.html", backend="numpy"),
        "coloured": report.write(coloured, folder / "coloured.html", backend="numpy"),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = chromium.Chromium(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture
def reader(browser):
    """The browser, wide and light."""
    browser.look(WIDE)
    return browser


def shown(reader, part):
    """The pictures that are shown in a section: the words below each, and its source."""
    found = f"{SHOWN.format(part)}.map((f) => [f.querySelector('figcaption').innerText, f.querySelector('img').src])"
    return [tuple(one) for one in reader.run(found)]


def picture(png):
    """A screenshot's grey levels."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L")).astype(int)


def focus(reader, selector):
    reader.run(f"document.querySelector({json.dumps(selector)}).focus()")


@pytest.mark.parametrize("name", ["digits", "coloured"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_page_opens_without_errors_or_requests(reader, pages, name, width):
    reader.look(width)
    reader.open(pages[name])
    for key in (TAB, TAB, RIGHT):
        reader.press(*key)
    assert reader.console == []
    assert reader.exceptions == []
    fetched = [url for url in reader.requests if not url.startswith("data:")]
    assert fetched == [pages[name].absolute().as_uri()]
    assert reader.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert reader.run("document.scripts.length") == 1


def test_policy_forbids_injected_content(reader, pages, tmp_path):
    text = pages["digits"].read_text(encoding="utf-8")
    added = "<script>document.title = 'taken over'</script><img src='http://127.0.0.1:9/x.png'></body>"
    (tmp_path / "page.html").write_text(text.replace("</body>", added), encoding="utf-8")
    reader.open(tmp_path / "page.html")
    assert reader.run("document.title").startswith("digits: lenet")
    assert sum("Content Security Policy" in line for line in reader.console) == 2


def test_slider_selects_epochs_by_keyboard(reader, pages, run_folder):
    reader.open(pages["digits"])
    epochs = len(load_snapshots(run_folder))
    focus(reader, "#filters-epoch")
    said = "document.querySelector('#filters output').innerText"
    heard = "document.querySelector('#filters-epoch').getAttribute('aria-valuetext')"
    seen = []
    reader.press(*HOME)
    for _ in range(epochs):
        ((caption, source),) = shown(reader, "filters")
        assert reader.run(said) == reader.run(heard) == caption
        seen.append((caption, source))
        reader.press(*RIGHT)
    assert [caption for caption, _ in seen] == ["before training", *(f"after epoch {n}" for n in range(1, epochs))]
    assert len({source for _, source in seen}) == epochs  # another picture for each
    assert shown(reader, "filters") == [seen[-1]]  # the end is the end
    reader.press(*LEFT)
    assert shown(reader, "filters") == [seen[-2]]
    reader.press(*END)
    assert shown(reader, "filters") == [seen[-1]]
    node = reader.call("Runtime.evaluate", expression="document.querySelector('#filters output')")["result"]["objectId"]
    heard = reader.call("Accessibility.getPartialAXTree", objectId=node, fetchRelatives=False)["nodes"][0]
    assert heard["role"]["value"] == "status"  # what a screen reader says when it changes


def test_filters_layer_is_chosen_by_keyboard(reader, pages):
    reader.open(pages["digits"])
    focus(reader, "input[name=filters-layer]:checked")
    first = shown(reader, "filters")
    reader.press(*RIGHT)
    second = shown(reader, "filters")
    assert [len(first), len(second)] == [1, 1]
    assert first[0][1] != second[0][1]
    headings = (
        "[...document.querySelectorAll('#filters h3')].filter((h) => h.checkVisibility()).map((h) => h.innerText)"
    )
    assert reader.run(headings) == ["conv2d_1"]
    focus(reader, "#filters-epoch")
    reader.press(*HOME)
    reader.run("document.querySelector('input[name=filters-layer]').click()")
    assert shown(reader, "filters")[0][0] == "before training"  # the epoch stays when the layer changes
    assert reader.run(headings) == ["conv2d"]


def test_feature_maps_are_chosen_by_keyboard(reader, pages):
    reader.open(pages["digits"])
    headings = (
        "[...document.querySelectorAll('#feature-maps h3')].filter((h) => h.checkVisibility()).map((h) => h.innerText)"
    )
    layers, images, sources = [], [], set()
    focus(reader, "input[name=feature-maps-layer]:checked")
    for _ in range(8):
        ((caption, source),) = shown(reader, "feature-maps")
        layers.append(caption.split()[0])
        sources.add(source)
        reader.press(*RIGHT)
    start = layers.index("input")
    assert layers[start:] + layers[:start] == [
        "input",
        "normalization",
        "conv2d",
        "relu",
        "average_pool2d",
        "conv2d_1",
        "relu_1",
        "average_pool2d_1",
    ]
    assert layers[0] == "conv2d"
    assert len(sources) >= 6
    focus(reader, "input[name=feature-maps-image]:checked")
    for _ in range(6):
        images += reader.run(headings)
        sources.add(shown(reader, "feature-maps")[0][1])
        reader.press(*RIGHT)
    assert len(set(images)) == 6
    assert len(sources) >= 11


def test_controls_are_reachable_and_show_focus(reader, pages):
    reader.open(pages["digits"])
    reached = []
    for _ in range(40):
        reader.press(*TAB)
        where = "(document.activeElement.name || document.activeElement.id || document.activeElement.className)"
        reached.append(reader.run(where))
        outline = """(() => {
          const one = document.activeElement;
          const drawn = one.matches("[type=radio]") ? one.nextElementSibling : one;
          return getComputedStyle(drawn).outlineStyle;
        })()"""
        if reader.run("document.activeElement !== document.body"):
            assert reader.run(outline) == "solid"
    assert {"filters-layer", "filters-epoch", "feature-maps-image", "feature-maps-layer", "scroll"} <= set(reached)


@pytest.mark.parametrize("name", ["digits", "coloured"])
def test_colours_of_light_and_dark_are_readable(reader, pages, name):
    grounds = []
    for dark in (False, True):
        reader.look(WIDE, dark=dark)
        reader.open(pages[name])
        grounds.append(np.median(picture(reader.screenshot())))
        reader.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        ratios = reader.run(CONTRAST)
        assert len(ratios) > 200
        assert [one for one in ratios if one[0] < 4.5] == []
    assert grounds[0] > 240
    assert grounds[1] < 40


@pytest.mark.parametrize("name", ["digits", "coloured"])
@pytest.mark.parametrize("script", [True, False])
def test_page_fits_a_phone(reader, pages, name, script):
    for width in (PHONE, 320, 768):
        reader.look(width, 740, script=script)
        reader.open(pages[name])
        size = reader.call("Page.getLayoutMetrics")
        assert size["cssContentSize"]["width"] <= size["cssLayoutViewport"]["clientWidth"] <= width
    reader.look(PHONE, script=True)


def test_tables_scroll_in_their_own_box(reader, pages):
    reader.look(PHONE)
    reader.open(pages["digits"])
    box = "document.querySelector('#layers .scroll')"
    assert reader.run(f"{box}.scrollWidth > {box}.clientWidth")
    focus(reader, "#layers .scroll")
    for _ in range(3):
        reader.press(*RIGHT)
    reader.run("new Promise((done) => setTimeout(() => done(true), 400))")
    assert reader.run(f"{box}.scrollLeft") > 0


def test_page_without_scripts_is_complete(reader, pages, run_folder):
    reader.look(WIDE, script=False)
    reader.open(pages["digits"])
    document = reader.call("DOM.getDocument")["root"]["nodeId"]
    figures = reader.call("DOM.querySelectorAll", nodeId=document, selector="#filters figure, #feature-maps figure")[
        "nodeIds"
    ]
    assert len(figures) == 2 * len(load_snapshots(run_folder)) + 6 * 8
    for figure in figures:
        assert reader.call("DOM.getBoxModel", nodeId=figure)["model"]["height"] > 20
    controls, _ = reader.call("DOM.querySelectorAll", nodeId=document, selector=".controls")["nodeIds"]
    with pytest.raises(AssertionError, match="box model"):  # it takes no place
        reader.call("DOM.getBoxModel", nodeId=controls)
    reader.look(WIDE, script=True)


def test_page_prints(reader, pages):
    reader.look(WIDE, dark=True)
    reader.open(pages["digits"])
    printed = reader.print()
    assert printed.startswith(b"%PDF")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    reader.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert reader.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [one for one in reader.run(CONTRAST) if one[0] < 4.5] == []  # on paper, whatever the screen is
    assert reader.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert reader.run("[...document.querySelectorAll('figcaption')].some((one) => one.innerText === 'after epoch 3')")


def test_browser_images_are_not_blurred(reader, pages):
    """A pixel of a filter is a square of one grey on the screen."""
    reader.open(pages["digits"])
    image = "document.querySelector('#filters figure:not([hidden]) img')"
    reader.run(f"{image}.scrollIntoView({{ behavior: 'instant' }})")
    place = "(({ x, y, width, height }) => [x + scrollX, y + scrollY, width, height])"
    box = reader.run(f"{place}({image}.getBoundingClientRect())")
    drawn = picture(reader.screenshot(clip=dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)))
    side = round(box[2] / reader.run(f"{image}.naturalWidth"))
    for row, column in itertools.product(range(5), range(5)):
        square = drawn[row * side + 2 : (row + 1) * side - 2, column * side + 2 : (column + 1) * side - 2]
        assert np.ptp(square) <= 1
