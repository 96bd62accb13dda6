"""The page in a browser: on a wide screen and on a phone, in light and dark, and printed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspected import contents, inspection

from davi import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

OVERFLOWING = """() => {
  const found = [];
  const wide = document.documentElement;
  if (wide.scrollWidth > innerWidth) found.push(`the page: ${wide.scrollWidth} > ${innerWidth}`);
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest("svg") !== element && element.closest("svg")) continue;
    if (element.matches(".skip")) continue;
    const scrolls = element.closest(".scroll, pre");
    const box = element.getBoundingClientRect();
    if (!scrolls || scrolls === element) {
      if (box.right > innerWidth + 0.5 || box.left < -0.5)
        found.push(`${element.tagName} ${element.className}: ${box.left} to ${box.right}`);
    }
    const parent = element.parentElement.getBoundingClientRect();
    if (!scrolls && box.width > parent.width + 0.5)
      found.push(`${element.tagName} is wider than its parent: ${box.width} > ${parent.width}`);
  }
  return found;
}"""

FOLDED = """() => document.querySelectorAll("details:not([open])").length"""
UNFOLD = """() => document.querySelectorAll("details").forEach(element => { element.open = true; })"""
CLIPPED = """() => [...document.querySelectorAll(".scroll")].filter(
  element => element.scrollWidth > element.clientWidth + 1).map(element => element.ariaLabel)"""

FAINT = """() => {
  const channels = text => text.match(/[0-9.]+/g).map(Number);
  const light = color => {
    const [r, g, b] = color.slice(0, 3).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  let checked = 0;
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own) continue;
    const drawn = element.closest("svg");
    // Numbers in the cells of a matrix stand on the color of the cell, which is the same in every theme.
    if (drawn && !(element.getAttribute("style") || "").includes("var(--")) continue;
    const style = getComputedStyle(element);
    const color = channels(drawn ? style.fill : style.color);
    const [a, b] = [light(color), light(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    checked += 1;
    if (contrast < 4.5) found.add(`${element.tagName} "${element.textContent.slice(0, 30)}": ${contrast.toFixed(2)}`);
  }
  return [checked, [...found]];
}"""

IMAGES = (
    """() => [...document.images].map(image => [image.alt, image.naturalWidth, image.getBoundingClientRect().width])"""
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    named = os.environ.get("CHROMIUM")
    path = named or next((found for found in map(shutil.which, BROWSERS) if found), None)
    if path is None:
        pytest.skip(f"needs a Chromium browser (CHROMIUM, or one of {', '.join(BROWSERS)} on the path)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright, of the extra dev")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a deep model with names, steps and values as long as they get."""
    folder = tmp_path_factory.mktemp("page")
    made = contents(
        inspection=inspection(latents=14, shape=(3, 32, 48), levels=256),
        levels=256,
        title="a-run-with-a-name-that-is-far-longer-than-the-screen-of-any-phone-" * 2,
        recipe="data:\n  root: /" + "folder/" * 40 + "\n",
    )
    page.write(made, folder / "inspection.html")
    return folder / "inspection.html"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_on_a_screen(browser: Any, written: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        tab = context.new_page()
        requests: list[str] = []
        complaints: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(written.as_uri())
        assert [url for url in requests if not url.startswith("data:")] == [written.as_uri()]
        assert complaints == []
        assert tab.evaluate(FOLDED) > 20
        assert tab.evaluate(OVERFLOWING) == []
        tab.evaluate(UNFOLD)
        assert tab.evaluate(OVERFLOWING) == []
        assert tab.evaluate(CLIPPED) == []
        checked, faint = tab.evaluate(FAINT)
        assert checked > 200
        assert faint == []
        images = tab.evaluate(IMAGES)
        assert len(images) > 100
        assert [image for image in images if not image[0].strip() or image[1] == 0 or image[2] < 16] == []
        # The skip link comes first and shows itself.
        tab.keyboard.press("Tab")
        box = tab.locator(".skip").bounding_box()
        assert box is not None
        assert box["x"] >= 0
    finally:
        context.close()


def test_the_page_in_print(browser: Any, written: Path) -> None:
    context = browser.new_context(viewport={"width": 794, "height": 1123}, color_scheme="dark")  # A4 at 96 dots an inch
    try:
        tab = context.new_page()
        tab.goto(written.as_uri())
        tab.emulate_media(media="print", color_scheme="dark")
        style = tab.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
        assert style == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
        checked, faint = tab.evaluate(FAINT)
        assert checked > 200
        assert faint == []
        cut = tab.evaluate(
            """() => [...document.querySelectorAll("svg.chart, img, pre, table")].filter(
                 element => element.getBoundingClientRect().right > innerWidth + 0.5).map(element => element.tagName)"""
        )
        assert cut == []
        assert tab.pdf(format="A4").startswith(b"%PDF-")
    finally:
        context.close()
