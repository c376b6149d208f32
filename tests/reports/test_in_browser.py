"""Pages in Chromium: on wide and narrow screens, light and dark, and by keyboard."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import quadranas
from quadranas.reports.bundle_page import bundle_page
from tests.browser import Page, find_browser, open_browser
from tests.commands.test_compare import compared

CONTRAST = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || e.closest('svg, .phase')) continue;
    const pair = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) found.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""
"""The texts with a lower contrast than 4.5 (WCAG 2.1, 1.4.3, level AA)."""

SCROLLED = "[...document.querySelectorAll('.scroll, pre, summary')]"
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BROWSER is not None
    with open_browser(BROWSER, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> dict[str, Path]:
    """A report, runs side by side, and files side by side; with figures as users see them."""
    from matplotlib.figure import Figure

    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(finished_run, folder / "run")
    shutil.copytree(finished_run, folder / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quadranas.reports.page.Figure", Figure)
        written = quadranas.report(folder / "run", compare=[folder / "other"])
        files = [compared("onnx-fp32"), compared("openvino-int8", latency_ms=0.9, accuracy=0.88)]
        text = bundle_page("2 exported networks on host", files, ["Device host."])
    (folder / "files.html").write_text(text, encoding="utf-8")
    assert written.comparison is not None
    return {
        "report": written.report,
        "runs": written.comparison,
        "files": folder / "files.html",
    }


@pytest.mark.parametrize("name", ["report", "runs", "files"])
def test_a_page_on_every_screen(page: Page, pages: dict[str, Path], name: str) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        for width in (1200, 400):
            page.open(pages[name], width, scheme)
            assert page.value("document.scrollingElement.scrollWidth") <= width
            assert page.value(CONTRAST) == []
        grounds[scheme] = page.value("getComputedStyle(document.body).backgroundColor")
    assert grounds == {"light": "rgb(250, 251, 252)", "dark": "rgb(13, 17, 23)"}
    assert page.errors == []


@pytest.mark.parametrize("name", ["report", "runs", "files"])
def test_a_page_by_keyboard(page: Page, pages: dict[str, Path], name: str) -> None:
    page.open(pages[name], 400, "light")
    number = page.value(f"{SCROLLED}.filter(e => e.checkVisibility()).length")
    reached = []
    for _ in range(number):
        page.press("Tab", 9)
        reached.append(page.value(f"{SCROLLED}.indexOf(document.activeElement)"))
        assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == sorted(set(reached))
    assert -1 not in reached
    wide = f"{SCROLLED}.find(e => e.scrollWidth > e.clientWidth)"
    page.value(f"{wide}.focus()")
    page.press("ArrowRight", 39)
    moved = f"new Promise(done => setTimeout(() => done({wide}.scrollLeft), 300))"
    found = page.ask("Runtime.evaluate", expression=moved, awaitPromise=True, returnByValue=True)
    assert found["result"]["value"] > 0


def test_details_open_by_keyboard(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["report"], 1200, "light")
    page.value("document.querySelector('summary').focus()")
    assert page.value("document.querySelector('details').open") is False
    page.press("Enter", 13, "\r")
    assert page.value("document.querySelector('details').open") is True
