"""Figures for papers: the width that was asked, text of eight points, the font by name."""

from __future__ import annotations

import itertools
import json
import re
import struct
from xml.etree import ElementTree

import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report import paper
from rankscope.report.page import figures
from simulate import Truth, study

EIGHT = 8 * 96 / 72  # points in pixels


@pytest.fixture(scope="module")
def drawn():
    frames = study(
        Truth(warmup=0.2), tasks=("one", "two", "three"), seeds=2, rates=(1e-4, 1e-3, 1e-2)
    )
    return {f.name: f for f in figures(Frames(**frames), conclude(Frames(**frames), resamples=60))}


def sizes(svg: str) -> dict[float, list[str]]:
    """Font size in pixels -> the texts in it."""
    found: dict[float, list[str]] = {}
    for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if (node.text or "").strip():
            size = float(node.attrib["font-size"].removesuffix("px"))
            found.setdefault(round(size, 2), []).append(node.text or "")
    return found


@pytest.mark.parametrize("name", ["growth", "threshold", "curves", "rates", "performance"])
@pytest.mark.parametrize("width", [3.25, 6.75])
def test_width_and_text(drawn, name, width):
    """The frame is the column's width, nothing is scaled to get there, and axes, legends and titles
    have eight points; only numbers in narrow cells of a heat map may be smaller."""
    svg = paper.sized(drawn[name].spec, width)
    root = ElementTree.fromstring(svg)
    assert float(root.attrib["width"]) == pytest.approx(width * 96, abs=0.02)
    _, _, across, down = map(float, root.attrib["viewBox"].split())
    assert across == pytest.approx(width * 96, rel=0.004)  # pixels of the drawing are the paper's
    assert down == pytest.approx(float(root.attrib["height"]), rel=0.004)
    found = sizes(svg)
    small = {size for size in found if abs(size - EIGHT) > 0.05}
    cells = {text for size in small for text in found[size]}
    if name == "rates":
        assert all(re.fullmatch(r"−?\d?\.\d\d[↑↓]?|×", text) for text in cells)
    elif name == "performance":
        assert all(text.isdecimal() for text in cells)  # how many seeds
    else:
        assert not small
    assert len(found[round(EIGHT, 2)]) > 10


def test_the_font_is_named(drawn):
    svg = paper.sized(drawn["growth"].spec, 3.25, "A Font")
    fonts = set(re.findall(r'font-family="([^"]*)"', svg))
    assert fonts == {"A Font"}


def test_the_report_is_not_changed(drawn):
    before = drawn["growth"].spec["spec"]["width"]
    paper.sized(drawn["growth"].spec, 3.25, "A Font")
    assert drawn["growth"].spec["spec"]["width"] == before
    assert drawn["growth"].spec["config"]["font"] != "A Font"


def test_files(drawn, tmp_path):
    told: list[float] = []
    kinds = ("pdf", "svg", "png")
    some = paper.chosen(list(drawn.values()), ["threshold", "rates", "rates"])
    paths = list(paper.write(some, tmp_path, width=3.25, kinds=kinds, progress=told.append))
    assert [path.name for path in paths] == [
        f"{name}.{kind}" for name in ("threshold", "rates") for kind in kinds
    ]
    assert sum(told) == pytest.approx(1)
    pdf = (tmp_path / "rates.pdf").read_bytes()
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", pdf)
    assert box is not None
    assert float(box[1]) == pytest.approx(3.25 * 72, abs=0.1)  # points
    png = (tmp_path / "rates.png").read_bytes()
    assert struct.unpack(">I", png[16:20])[0] == pytest.approx(3.25 * 300, abs=2)


@pytest.mark.parametrize(
    ("text", "inches"),
    [("3.25in", 3.25), ("83mm", 83 / 25.4), ("8.3 cm", 8.3 / 2.54), ("234pt", 234 / 72.27)],
)
def test_widths(text, inches):
    assert paper.inches(text) == pytest.approx(inches)


@pytest.mark.parametrize("text", ["3.25", "wide", "-3in", "0.5in", "400in", "3,25in"])
def test_wrong_widths_are_said(text):
    with pytest.raises(ValueError, match="expected a width between") as error:
        paper.inches(text)
    assert "\n" not in str(error.value)


def test_wrong_formats_and_names_are_said(drawn):
    assert paper.formats("svg, PDF,svg") == ("svg", "pdf")
    for text in ("eps", "", "pdf,eps"):
        with pytest.raises(ValueError, match="expected some of pdf,svg,png"):
            paper.formats(text)
    with pytest.raises(ValueError, match=r"--panel treshold: expected one of .*threshold"):
        paper.chosen(list(drawn.values()), ["treshold"])


def test_a_font_that_is_not_there_is_said(drawn, tmp_path):
    """resvg would leave all text out without a word."""
    some = [drawn["growth"]]
    with pytest.raises(ValueError, match=r"--font: expected a font .* 'No Such Font'"):
        list(paper.write(some, tmp_path, width=3.25, font="No Such Font", kinds=("pdf",)))
    assert not list(tmp_path.iterdir())
    (path,) = paper.write(some, tmp_path, width=3.25, font="No Such Font", kinds=("svg",))
    assert 'font-family="No Such Font"' in path.read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="expected a folder of font files"):
        paper.add_fonts(tmp_path / "none")


def test_long_titles_are_broken(drawn):
    """The longest is wider than a panel of 92 pixels and would decide the figure's width: its
    symbol stays."""

    def title(panel: float) -> list[str]:
        layout = paper.Layout(columns=2, legend=None, above=False, font=None)
        spec = paper.restyled(drawn["threshold"].spec, layout, panel)
        return spec["spec"]["layer"][-1]["encoding"]["x"]["title"]

    assert title(400) == ["stable rank after / before, sr(W + ΔW) / sr(W)"]
    lines = title(92)
    assert len(lines) > 1
    assert max(map(len, lines)) * paper.LETTER <= 92
    assert " ".join(lines) == "sr(W + ΔW) / sr(W)"


SVG = "{http://www.w3.org/2000/svg}"


def gaps(svg: str) -> list[float]:
    """Pixels between neighbours among the numbers under each horizontal axis. A digit of this font
    is 0.556 of its size wide, a point half of that."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if "role-axis-label" not in group.get("class", ""):
            continue
        shown = [t for t in group if t.get("text-anchor") == "middle" and t.get("opacity") != "0"]
        ends = []
        for text in shown:
            x = float(re.search(r"translate\(([-\d.]+)", text.attrib["transform"])[1])
            half = EIGHT * 0.278 * sum(0.5 if letter == "." else 1 for letter in text.text)
            ends.append((x - half, x + half))
        ends.sort()
        found += [b[0] - a[1] for a, b in itertools.pairwise(ends)]
    return found


def test_numbers_of_an_axis_stand_apart(drawn):
    """0.05 and 0.1 touched in narrow panels, and read as one number."""
    layout = paper.Layout(columns=2, legend=None, above=False, font=None)
    found = [
        gap
        for panel in range(76, 160, 12)
        for gap in gaps(paper._drawn(drawn["threshold"].spec, layout, panel))
    ]
    assert len(found) > 20
    assert min(found) > 2


def test_panels_are_level_and_lose_no_name(drawn):
    """A row's panels begin at one height: their names have equally many lines."""
    for name in ("contrasts", "performance"):
        layout = paper.Layout(columns=2, legend=None, above=True, font=None)
        spec = paper.restyled(drawn[name].spec, layout, 76)
        named = json.loads(re.search(r"\((.*)\)", spec["facet"]["header"]["labelExpr"])[1])
        panels = {row["panel"] for row in spec["datasets"]["rows"]}
        assert {" ".join(filter(None, lines)) for lines in named.values()} == panels
        assert len({len(lines) for lines in named.values()}) == 1
        titles = [layer["encoding"].get("y", {}).get("title") for layer in spec["spec"]["layer"]]
        assert not any(titles)
        assert spec["title"]["text"]


def test_pale_marks_need_no_groups(drawn):
    """The PDF of a figure with hundreds of them is a third as large at most, and of each path only
    the way in which its opacity is written changes; one with two paints stays."""
    import vl_convert

    from rankscope.report.pdf import PALE, _ungrouped, to_pdf

    svg = paper.sized(drawn["threshold"].spec, 6.75)
    assert len(to_pdf(svg)) < len(vl_convert.svg_to_pdf(svg)) / 3
    flat = PALE.sub(_ungrouped, svg)
    again = re.sub(r' fill-opacity="([\d.]+)" stroke-opacity="\1"', r' opacity="\1"', flat)
    assert again == svg
    assert flat != svg
    for tag in (
        '<path d="M0,0" fill="red" stroke="blue" opacity="0.5"/>',
        '<path d="M0,0" fill="red" fill-opacity="0.1" opacity="0.5"/>',
    ):
        assert PALE.sub(_ungrouped, tag) == tag
    one = '<path d="M0,0" fill="none" stroke="blue" opacity="0.5"/>'
    assert ' stroke-opacity="0.5"' in PALE.sub(_ungrouped, one)
