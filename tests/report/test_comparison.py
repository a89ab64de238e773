"""Several studies on one page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report.comparison import numbers, render
from simulate import Truth, study

HOSTILE = "</td><script>alert(1)</script>"


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows and self.tags[-1] in ("td", "th") and data.strip():
            self.rows[-1].append(data.strip())


def one(name: str, **options):
    frames = Frames(**study(Truth(warmup=0.2), **options))
    said = {"study_text": "", "provenance": {"study": name}}
    return frames, conclude(frames, resamples=60), said


@pytest.fixture(scope="module")
def pair():
    return [one("first", seeds=2), one(HOSTILE, seeds=2, tasks=("task", HOSTILE), seed=4)]


def test_each_study_has_its_column(pair):
    text = render(pair)
    page = Page(text)
    assert "script" not in page.tags
    assert page.rows[0][-2:] == ["first", HOSTILE]
    for at, (_, conclusions, _) in enumerate(pair):
        for (hypothesis, words, group), value in numbers(conclusions):
            row = next(r for r in page.rows if r[:2] == [hypothesis, words] and group in (*r, ""))
            assert row[len(row) - 2 + at] == value
    for name in ("H1", "H2", "H3", "H4", "H5"):
        assert f'id="{name}"' in text
    assert text.count('class="sketch"') == 10


def test_the_numbers_are_those_of_the_verdicts(pair):
    _, conclusions, _ = pair[0]
    said = dict(numbers(conclusions))
    found = conclusions.growth.exponent
    wanted = f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]".replace("-", "−")
    assert said["H1", "b", ""] == wanted
    (t,) = conclusions.thresholds
    key = next(key for key in said if key[1].startswith("loss"))
    assert said[key].startswith(f"{t.loss.estimate:.3f} [".replace("-", "−"))
    assert key[2] == f"{t.model}, {t.task}"


def test_nothing_is_loaded(pair):
    text = render(pair)
    assert not re.search(r'\s(src|srcset|action|href)="(?!#)', text)
    assert "url(http" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_unlike_studies_stand_side_by_side(pair):
    lonely = one("alone", seeds=1, full=False, ranks=(8,), rates=(1e-3,))
    text = render([pair[0], lonely])
    assert "alone" in text
    assert "NaN" not in text
    assert "nan" not in text.lower().replace("nan-", "")
