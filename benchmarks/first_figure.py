"""How soon a report shows its first figure in Chromium: below 1 s for a study of the demo's size, below 2 s for 5,000 trials.

    python benchmarks/first_figure.py [--trials 60 5000] [--repeats 5]

Simulated studies (tests/simulate.py) are written as pages and opened from disk in headless Chromium, each
time in a new profile. Printed, medians in milliseconds after navigation: the first paint with content (the first screen's
pictures are in it), the first interactive figure, and all of them; and the page's size. Needs Debian's chromium and
`pip install .[browser]`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from rankscope.analysis.conclusions import conclude
from rankscope.analysis.frames import Frames
from rankscope.report.page import figures, render
from rankscope.report.tables import tables

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from simulate import Truth, study

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const drawn = document.querySelectorAll('figure svg.marks').length;
  while (window.seen.length < drawn) window.seen.push(performance.now());
}).observe(document, { childList: true, subtree: true });
"""


def page(trials: int, folder: Path) -> Path:
    """A report of about so many trials."""
    tasks = ("one", "two", "three")
    rates = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    ranks = tuple(2**i for i in range(max(2, min(9, trials // 30))))
    seeds = max(1, round(trials / (len(tasks) * len(rates) * (len(ranks) + 1))))
    layers = tuple(f"layer.{i}.{kind}" for i in range(6) for kind in ("query", "value"))
    frames = Frames(
        **study(
            Truth(warmup=0.2), tasks=tasks, rates=rates, ranks=ranks, seeds=seeds, layers=layers
        )
    )
    started = time.perf_counter()
    conclusions = conclude(frames, resamples=200)
    drawn, listed = figures(frames, conclusions), tables(frames, conclusions)
    text = render(
        frames, conclusions, drawn, listed, study_text="", provenance={"study": "simulated"}
    )
    path = folder / f"{trials}.html"
    path.write_text(text, encoding="utf-8")
    print(
        f"{len(frames.trials)} trials: page of {path.stat().st_size / 1e6:.2f} MB, written in "
        f"{time.perf_counter() - started:.1f} s"
    )
    return path


def opened(path: Path, chromium: str) -> tuple[float, float, float]:
    """First paint, first figure, all figures: milliseconds after navigation."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
        view = browser.new_page(viewport={"width": 1200, "height": 900})
        view.add_init_script(WATCH)
        view.goto(path.as_uri())
        count = view.evaluate("document.querySelectorAll('figure').length")
        view.wait_for_function(f"window.seen.length >= {count}", timeout=120_000)
        paint = view.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN"
        )
        seen = view.evaluate("window.seen")
        browser.close()
    return paint, seen[0], seen[-1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trials", type=int, nargs="+", default=[60, 5000])
    options.add_argument("--repeats", type=int, default=5)
    chosen = options.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("needs a chromium on the path")
    with tempfile.TemporaryDirectory() as folder:
        for trials in chosen.trials:
            path = page(trials, Path(folder))
            runs = [opened(path, chromium) for _ in range(chosen.repeats)]
            names = ("first paint", "first figure", "all figures")
            for name, values in zip(names, zip(*runs, strict=True), strict=True):
                print(
                    f"  {name}: {statistics.median(values):.0f} ms "
                    f"({min(values):.0f} to {max(values):.0f} of {len(values)})"
                )


if __name__ == "__main__":
    main()
