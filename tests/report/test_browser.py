"""The report in a real browser: headless Chromium, opened from disk, with the network watched.

Needs Debian's `chromium` and the extra `browser` (playwright, axe-playwright-python);
skipped without them, except where RANKSCOPE_BROWSER=required says that a skip is a
fault. What CI does: .ci/run.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report.page import figures, render
from rankscope.report.tables import tables
from simulate import Truth, study

pytestmark = pytest.mark.slow

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LACKING = [] if CHROMIUM else ["a chromium on the path (Debian: apt-get install chromium)"]
LACKING += [
    f"{name} (pip install '.[browser]')"
    for name in ("playwright", "axe_playwright_python")
    if not find_spec(name)
]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DESK, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    if LACKING:
        assert os.environ.get("RANKSCOPE_BROWSER") != "required", f"needs {', '.join(LACKING)}"
        pytest.skip(f"needs {', '.join(LACKING)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    frames = study(
        Truth(warmup=0.2),
        tasks=("one", "two <img src=x onerror=alert(1)>"),
        models=("small", "large"),
        scalings=("alpha/r", "alpha/sqrt(r)"),
        ranks=(1, 64),
        rates=(1e-3, 3e-3, 1e-2),
        seeds=2,
    )
    conclusions = conclude(Frames(**frames), resamples=40)
    facts = {"versions": {"torch": "2.13.0"}, "store": "abc"}
    held = Frames(**frames)
    drawn, listed = figures(held, conclusions), tables(held, conclusions)
    page = tmp_path_factory.mktemp("report") / "report.html"
    text = render(held, conclusions, drawn, listed, study_text='name = "lab"', provenance=facts)
    page.write_text(text, encoding="utf-8")
    return page


class Opened:
    """A page, and everything that it should not have done."""

    def __init__(self, browser, path: Path, size: dict[str, int], theme: str = "light"):
        self.context = browser.new_context(viewport=size, color_scheme=theme)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on(
            "console", lambda said: self.faults.append(f"console {said.type}: {said.text}")
        )
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.faults.append("dialog"), dialog.dismiss()))
        self.page.on("request", self.asked)
        self.page.goto(path.as_uri())

    def asked(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"request: {request.url}")

    def draw(self) -> None:
        """Waits until all are there, without scrolling."""
        drawn = "[...document.querySelectorAll('figure')].every(f => f.querySelector('svg.marks'))"
        self.page.wait_for_function(drawn)

    def panels(self, name: str) -> str:
        """The text of a figure: titles of its panels among it."""
        return self.page.inner_text(f"#figure-{name} .chart") or ""


@pytest.fixture(scope="module")
def opened(browser, path):
    opened = Opened(browser, path, DESK)
    opened.draw()
    yield opened
    assert opened.faults == []
    opened.context.close()


def test_it_opens_without_errors_and_without_a_network(opened):
    assert opened.page.title() == "lab · rankscope report"
    assert len(opened.page.query_selector_all("figure svg.marks")) == 11
    assert len(opened.page.query_selector_all(".sketch svg")) == 5
    assert opened.faults == []


def test_a_filter_reaches_figures_and_tables(opened):
    page = opened.page
    two = "document.querySelector('#figure-growth .chart').textContent.includes('two')"
    assert page.evaluate(two)
    page.select_option("[data-filter=task]", "one")
    page.wait_for_function(f"!({two})")
    tasks = (
        "rows => new Set(rows.filter(r => !r.hidden).map(r => r.dataset.task).filter(Boolean)).size"
    )
    assert page.eval_on_selector_all("#table-configurations tbody tr", tasks) == 1
    assert "in all)" in page.inner_text("#table-trials output")
    page.select_option("[data-filter=kind]", "query")
    page.wait_for_function(
        "!document.querySelector('#figure-layers .chart').textContent.includes('value')"
    )
    for name in ("model", "method", "task", "kind"):
        assert page.query_selector(f"[data-filter={name}]")
    page.select_option("[data-filter=kind]", "")
    page.select_option("[data-filter=task]", "")
    page.wait_for_function(two)
    assert page.eval_on_selector_all("#table-configurations tbody tr", tasks) == 2


@pytest.mark.parametrize("table", ["configurations", "layers"])
def test_tables_sort_both_ways(opened, table):
    """A short one, whose rows are all there, and a long one, which is shown in parts."""
    page = opened.page
    page.eval_on_selector(f"#table-{table}", "one => { one.open = true; }")
    heading = page.locator(
        f"#table-{table} th", has=page.get_by_role("button", name="sr(ΔW)", exact=True)
    )
    values = f"""() => {{
      const all = selector => [...document.querySelectorAll(`#table-{table} ${{selector}}`)];
      const at = all('th').findIndex(h => h.textContent.trim() === 'sr(ΔW)');
      return all('tbody tr').map(r => Number(r.cells[at].dataset.value ?? r.cells[at].textContent));
    }}"""
    unsorted = page.evaluate(values)
    assert unsorted != sorted(unsorted)
    heading.get_by_role("button").click()
    rising = page.evaluate(values)
    assert rising == sorted(rising)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    falling = page.evaluate(values)
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > rising[0]
    assert heading.get_attribute("aria-sort") == "descending"


def test_all_trials_can_be_searched_and_turned(opened):
    page = opened.page
    said = lambda: page.inner_text("#table-trials output")  # noqa: E731
    total = int(said().split(" of ")[1])
    assert said() == f"1 to 50 of {total}"
    page.click("#table-trials [data-turn='1']")
    assert said().startswith("51 to ")
    page.fill("#table-trials input", "r=64 task=one rate=1e-2")
    rows = page.eval_on_selector_all(
        "#table-trials tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    assert rows
    assert all({"one", "64", "1e-2"} <= set(row) for row in rows)
    assert said() == f"1 to {len(rows)} of {len(rows)} ({total} in all)"
    page.fill("#table-trials input", "no such trial")
    assert said() == f"none ({total} in all)"
    page.fill("#table-trials input", "")


def test_a_point_leads_to_its_trials(opened):
    page = opened.page
    page.locator("#figure-threshold .mark-symbol path").first.click(force=True)
    page.wait_for_function("!document.querySelector('#table-trials .clear').hidden")
    assert int(page.inner_text("#table-trials output").split()[2]) == 1  # a point is one trial
    assert page.evaluate("document.activeElement.className") == "clear"
    page.keyboard.press("Enter")
    assert page.locator("#table-trials .clear").is_hidden()


def test_the_theme_switches_and_is_remembered(opened):
    page = opened.page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(ground) != light
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.draw()
    page.click("#theme")
    assert page.evaluate(ground) == light


def test_marks_answer_on_hover(opened):
    opened.page.locator("#figure-growth .mark-symbol path").first.scroll_into_view_if_needed()
    opened.page.locator("#figure-growth .mark-symbol path").first.hover(force=True)
    opened.page.wait_for_selector("#vg-tooltip-element.visible")
    assert "median sr" in opened.page.inner_text("#vg-tooltip-element")


def test_the_keyboard_reaches_the_main_part_first(opened):
    page = opened.page
    page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    opened.draw()


def test_a_phone_scrolls_one_way_only(browser, path):
    opened = Opened(browser, path, PHONE)
    opened.draw()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert opened.faults == []
    opened.context.close()


@pytest.mark.parametrize(("size", "theme"), [(DESK, "light"), (PHONE, "dark")])
def test_axe_finds_nothing_serious(browser, path, size, theme):
    from axe_playwright_python.sync_playwright import Axe

    opened = Opened(browser, path, size, theme)
    opened.draw()
    opened.page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    found = Axe().run(opened.page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        (fault["id"], node["html"][:120], node["any"][:1])
        for fault in found
        if fault["impact"] in {"serious", "critical"}
        for node in fault["nodes"][:3]
    ]
    assert serious == []
    opened.context.close()
