"""Claim: a report on 5,000 trials stays below 15 MB and answers within 3 s;
conclusions on 10,000 take below 10 s.

    python benchmarks/report_at_scale.py [--trials 5000] [--layers 24]
    [--resamples 1000] [--to report.html]

Simulated studies (tests/simulate.py); seconds of the whole analysis by hypothesis, of the page, its
size, and, where Chromium and the extra `browser` are, the time from opening the page in a new
browser to its first figures, and from a choice in a filter to the redrawn figure.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from rankscope.analysis import Frames, conclude
from rankscope.report.page import figures, render
from rankscope.report.tables import tables
from simulate import Truth, study

PARTS = ("H1 and learning rates", "H2", "H3", "H4")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def simulated(trials: int, layers: int) -> Frames:
    """About `trials` of them: 4 tasks, 2 models, 2 scaling rules, 10 ranks, 6 rates,
    full fine-tuning beside them."""
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2)
    shape = {"tasks": ("CoLA", "MRPC", "RTE", "SST-2"), "models": ("base", "large"), "rates": rates}
    ranks = tuple(2**i for i in range(10))
    seeds = max(1, round(trials / (4 * 2 * (2 * len(ranks) + 1) * len(rates))))
    names = tuple(
        f"encoder.layer.{i}.attention.self.{kind}"
        for i in range(layers // 2)
        for kind in ("query", "value")
    )
    rules = ("alpha/r", "alpha/sqrt(r)")
    frames = study(
        Truth(warmup=0.2), seeds=seeds, ranks=ranks, scalings=rules, layers=names, size=512, **shape
    )
    return Frames(**frames)


def opened(path: Path, times: int = 3) -> tuple[float, float]:
    """Median seconds, each in a new browser: from opening to the first figure that answers;
    from a filter to its figure."""
    from playwright.sync_api import sync_playwright

    first, filtered = [], []
    with sync_playwright() as play:
        for _ in range(times):
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            start = time.perf_counter()
            page.goto(path.as_uri() + "#figures")
            page.wait_for_selector("#figure-growth svg.marks")
            page.evaluate(
                "new Promise(done => requestIdleCallback(done))"
            )  # nothing left to do but wait for the reader
            first.append(time.perf_counter() - start)
            start = time.perf_counter()
            page.select_option("[data-filter=task]", "MRPC")
            gone = "!document.querySelector('#figure-growth .chart').textContent.includes('RTE')"
            page.wait_for_function(gone)
            filtered.append(time.perf_counter() - start)
            browser.close()
    return statistics.median(first), statistics.median(filtered)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--to", type=Path, default=Path(tempfile.gettempdir()) / "report.html")
    options = parser.parse_args()
    frames = simulated(options.trials, options.layers)
    print(
        f"{len(frames.trials):,} trials, {len(frames.metrics):,} evaluations, "
        f"{len(frames.spectra):,} rows of spectra"
    )
    marks = [time.perf_counter()]
    found = conclude(
        frames,
        resamples=options.resamples,
        progress=lambda share: marks.append(time.perf_counter()),
    )
    parts = ", ".join(
        f"{name} {b - a:.1f}" for name, a, b in zip(PARTS, marks, marks[1:], strict=False)
    )
    print(f"analysis: {marks[-1] - marks[0]:.1f} s ({parts})")
    start = time.perf_counter()
    drawn, listed = figures(frames, found), tables(frames, found)
    text = render(frames, found, drawn, listed, study_text="", provenance={})
    options.to.write_text(text, encoding="utf-8")
    print(f"page: {time.perf_counter() - start:.1f} s, {options.to.stat().st_size / 1e6:.1f} MB")
    if shutil.which("chromium"):
        print(
            "first figures after {:.2f} s, a filter answers in {:.2f} s".format(*opened(options.to))
        )


if __name__ == "__main__":
    main()
