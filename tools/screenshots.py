"""The pictures of docs/report.md: ``python tools/screenshots.py REPORT.html FOLDER``.

Desktop, phone, dark and print, each the first screen, and two figures. Needs Debian's chromium and
the extra `browser` (playwright).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DESK, PHONE, PAPER = (1200, 900), (390, 844), (794, 1123)  # the last is A4 at 96 pixels an inch
SCREENS = {
    "desktop": (DESK, "light"),
    "phone": (PHONE, "light"),
    "dark": (DESK, "dark"),
    "print": (PAPER, "light"),
}
FIGURES = ("threshold", "rates")
DRAWN = "[...document.querySelectorAll('figure')].every(f => f.querySelector('svg.marks'))"


def screen(browser: Any, report: Path, folder: Path, name: str) -> None:
    """One screen; the desktop's page gives the figures, too. ``AssertionError`` if the page says
    anything on its console."""
    (width, height), theme = SCREENS[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.resolve().as_uri())
    page.wait_for_function(DRAWN, timeout=120_000)
    if name == "print":
        page.emulate_media(media="print")
    page.screenshot(path=str(folder / f"{name}.png"))
    if name == "desktop":
        page.add_style_tag(content=".filters { position: static !important; }")
        for figure in FIGURES:
            page.locator(f"#figure-{figure}").screenshot(path=str(folder / f"{figure}.png"))
    assert not said, said
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tools/screenshots.py", description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("needs a chromium on the path (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
        for name in SCREENS:
            screen(browser, options.report, options.folder, name)
        browser.close()


if __name__ == "__main__":
    main()
