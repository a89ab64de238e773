"""The page: self-contained, escaped, complete; and the files beside it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report.opening import study_name
from rankscope.report.page import embedded, figures, flattened, render, unbroken, write
from rankscope.report.tables import tables
from simulate import Truth, study

HOSTILE = (
    "<script>alert(1)</script>",
    "a\"b'c&d _%$\\ =1+1",
    "</script><img src=x onerror=alert(2)>",
)


class Reader(HTMLParser):
    """Collects elements, and the text of scripts."""

    def __init__(self):
        super().__init__()
        self.elements, self.scripts, self.inside = [], [], None

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.inside = dict(attributes).get("type", "text/javascript")
            self.scripts.append([self.inside, ""])

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1][1] += data

    def handle_endtag(self, tag):
        if tag == "script":
            self.inside = None


def written(frames, folder, **options):
    conclusions = conclude(Frames(**frames), resamples=60)
    defaults = {
        "study_text": 'name = "lab"',
        "provenance": {"versions": {"torch": "2.13.0"}, "store": "abc"},
    }
    return write(Frames(**frames), conclusions, folder / "report.html", **defaults | options)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    frames = study(Truth(warmup=0.2), tasks=("one", "two"), seeds=2, rates=(1e-4, 1e-3, 1e-2))
    return written(frames, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report):
    reader = Reader()
    reader.feed(report[0].read_text(encoding="utf-8"))
    return reader


def test_nothing_is_loaded_from_anywhere(page, report):
    loading = {"src", "srcset", "data", "action", "poster", "background"}
    assert not [element for element in page.elements if loading & set(element[1])]
    assert not [e for e in page.elements if e[0] in {"link", "iframe", "object", "embed", "base"}]
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert links
    assert all(link.startswith("#") for link in links)
    style = re.search(r"<style>(.*?)</style>", report[0].read_text(encoding="utf-8"), re.DOTALL)
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_links_and_labels_lead_somewhere(page):
    ids = {a["id"] for _, a in page.elements if "id" in a}
    for tag, attributes in page.elements:
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_the_library_is_there_once(page):
    assert sum("vegaEmbed=" in text or "vegaEmbed =" in text for _, text in page.scripts) == 1


def test_figures_are_complete_and_answer_to_filters(page):
    data = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    specs = [one for one in data if "datasets" in one]
    figures = [a for tag, a in page.elements if tag == "figure"]
    assert [a["id"].removeprefix("figure-") for a in figures] == [
        "growth",
        "threshold",
        "loss",
        "steps",
        "curves",
        "contrasts",
        "alignment",
        "performance",
        "rates",
        "optimum",
        "layers",
    ]
    for spec, figure in zip(specs, figures, strict=True):
        rows = spec["datasets"]["rows"]
        assert 0 < len(rows) <= 5000
        for name in figure["data-filters"].split():
            assert any(row.get(name) is not None for row in rows)
    labels = [a["data-label"] for tag, a in page.elements if a.get("class") == "chart"]
    assert all(labels)
    assert len(labels) == len(figures)


def test_tables_have_captions_and_headings(page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") == 12
    assert all(a.get("scope") == "col" for tag, a in page.elements if tag == "th")


def test_verdicts_come_first_and_the_study_last(report):
    text = report[0].read_text(encoding="utf-8")
    order = [
        text.index(word)
        for word in ('id="H1"', 'id="H5"', ">Figures</h2>", ">Tables</h2>", ">Repeat it</h2>")
    ]
    assert order == sorted(order)
    assert "name = &#34;lab&#34;" in text
    assert "versions.torch" in text


def test_every_figure_and_table_is_a_file_too(report):
    by_suffix = {}
    for path in report[1:]:
        assert path.stat().st_size > 100
        by_suffix.setdefault(path.suffix, []).append(path)
    assert {suffix: len(paths) for suffix, paths in by_suffix.items()} == {
        ".svg": 11,
        ".pdf": 11,
        ".csv": 12,
        ".tex": 12,
    }
    for path in by_suffix[".svg"]:
        assert path.read_text(encoding="utf-8").startswith("<svg")
        assert "NaN" not in path.read_text(encoding="utf-8")
    assert all(path.read_bytes().startswith(b"%PDF") for path in by_suffix[".pdf"])


def test_hostile_names_stay_text(tmp_path):
    frames = study(tasks=HOSTILE, models=(HOSTILE[0],), seeds=1, ranks=(1, 8), rates=(1e-3, 1e-2))
    page, *files = written(
        frames, tmp_path, study_text=HOSTILE[2], provenance={HOSTILE[0]: [HOSTILE[1]]}
    )
    text = page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not [tag for tag, _ in reader.elements if tag == "img"]
    assert "alert(1)</script>" not in text
    data = [json.loads(body) for kind, body in reader.scripts if kind == "application/json"]
    specs = [one for one in data if "datasets" in one]
    tasks = {
        row["task"]
        for spec in specs
        for rows in spec["datasets"].values()
        for row in rows
        if "task" in row
    }
    assert tasks == set(HOSTILE)
    assert len(reader.scripts) == len(data) + 3
    for path in files:
        if path.suffix == ".svg":
            assert "<script>" not in path.read_text(encoding="utf-8")


def test_embedded_json_cannot_end_its_script():
    value = {"a": "</script><!--<script>&\u2028"}
    text = embedded(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_numbers_do_not_break_and_powers_are_raised():
    assert unbroken("r = 2, 63 % [0.1, 2]") == "r\u00a0=\u00a02, 63\u00a0% [0.1,\u00a02]"
    assert unbroken("as r^b <i>") == "as r<sup>b</sup> &lt;i&gt;"
    assert unbroken("a [longer list, of words]") == "a [longer list, of words]"


def test_nested_provenance_is_flattened():
    pairs = dict(flattened({"a": {"b": 1, "c": {"d": ["x", "y"]}}, "e": None}))
    assert pairs == {"a.b": "1", "a.c.d": "x, y", "e": "None"}


@pytest.mark.parametrize(
    "options",
    [
        {"ranks": (8,), "rates": (1e-3,), "full": False, "seeds": 1},
        {"ranks": (1, 8), "layers": ("x.query",), "seeds": 1, "evaluations": 1},
        {
            "scalings": ("alpha/r", "alpha/sqrt(r)"),
            "models": ("a", "b"),
            "rates": (1e-3, 1e-2),
            "seeds": 1,
        },
    ],
)
def test_odd_studies_are_rendered(options):
    frames = study(**options)
    held, conclusions = Frames(**frames), conclude(Frames(**frames), resamples=60)
    drawn, listed = figures(held, conclusions), tables(held, conclusions)
    text = render(held, conclusions, drawn, listed, study_text="", provenance={})
    assert all(f'id="figure-{figure.name}"' in text for figure in drawn)
    assert all(f'id="table-{table.name}"' in text for table in listed)


def test_a_study_without_rows_is_written(tmp_path):
    frames = {name: frame.iloc[:0] for name, frame in study(seeds=1).items()}
    page, *files = written(frames, tmp_path)
    assert "No trial has finished yet." in page.read_text(encoding="utf-8")
    assert not files


def test_the_title_is_the_study_and_the_header_counts_the_store(tmp_path):
    """Arms are said; the date is the one that the environment asks for."""
    frames = study(seeds=1, ranks=(1, 8), rates=(1e-3, 1e-2))
    trials = frames["trials"]
    longer = trials["method"].eq("lora") & trials["rank"].eq(8)
    frames["trials"] = trials.assign(budget=np.where(longer, 2.0, 1.0))
    lost = trials["trial"].iloc[0]
    frames["trials"].loc[trials["trial"].eq(lost), "status"] = "diverged"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "86400")
        page = written(frames, tmp_path, provenance={"study": "a <b> study"})[0]
    text = page.read_text(encoding="utf-8")
    assert "<title>a &lt;b&gt; study · rankscope report</title>" in text
    assert "<h1>a &lt;b&gt; study</h1>" in text
    assert "2 January 1970" in text
    said = f"{len(trials)} trials, {longer.sum()} of them in an arm with 2 times the budget, 1 div"
    assert said in text


def test_a_page_is_equal_when_it_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    frames = study(seeds=2, ranks=(1, 8), rates=(1e-3, 1e-2))
    first = written(frames, tmp_path / "a")[0].read_bytes()
    assert written(frames, tmp_path / "b")[0].read_bytes() == first


@pytest.mark.parametrize(
    ("provenance", "text", "name"),
    [({"study": "x"}, 'name = "y"', "x"), ({}, 'name = "y"', "y"), ({}, "[", "a study")],
)
def test_the_name_of_a_study(provenance, text, name):
    assert study_name(text, provenance) == name
