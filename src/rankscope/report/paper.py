"""Figures for a paper: in its column width and font, with text of eight points."""

from __future__ import annotations

import copy
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import vl_convert

from rankscope.report.pdf import to_pdf
from rankscope.report.theme import VEGA_LITE, Figure
from rankscope.store.files import write_whole

FORMATS = ("pdf", "svg", "png")
INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27, "bp": 1 / 72}  # TeX's units
PIXELS = 96  # of an inch, in CSS, SVG and Vega
TEXT = 8 / 72 * PIXELS  # 8 points
NARROWEST = 72  # smallest panel in pixels before a row gets fewer panels
SLACK = 8  # pixels that may stay free at the right: widths jump where an axis changes its labels
ROW = 1.2 * TEXT  # of a heat map, whose rows are named
LETTER = 0.5 * TEXT  # approximate width of a letter
MOST_COLUMNS = 4
PNG_DPI = 300


@dataclass(frozen=True)
class Layout:
    """``columns`` of panels, and of a legend (None: as in the report); whether the title of the
    vertical axis stands once, ``above`` all panels; the ``font`` (None: as in the report)."""

    columns: int
    legend: int | None
    above: bool
    font: str | None


def inches(width: str) -> float:
    """3.25in, 8.3cm, 83mm, 234pt -> inches. ``ValueError``, one line, for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(in|cm|mm|pt|bp)", width.strip())
    if found is None or not 1.5 <= (value := float(found[1]) * INCHES[found[2]]) <= 30:
        raise ValueError(
            f"--width: expected a width between 1.5in and 30in, such as 3.25in, 83mm or 234pt; "
            f"found {width!r:.40}"
        )
    return value


def formats(text: str) -> tuple[str, ...]:
    """pdf,svg,png -> each of them. ``ValueError``, one line, for others."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names or set(names) - set(FORMATS):
        raise ValueError(f"--format: expected some of {','.join(FORMATS)}; found {text!r:.40}")
    return names


def chosen(drawn: Sequence[Figure], names: Sequence[str] | None) -> list[Figure]:
    """The figures with these names, or all. ``ValueError``, one line, for an unknown name."""
    if not names:
        return list(drawn)
    there = {figure.name: figure for figure in drawn}
    for name in names:
        if name not in there:
            raise ValueError(
                f"--panel {name}: expected one of this study's figures, {', '.join(there)}"
            )
    return [there[name] for name in dict.fromkeys(names)]


def add_fonts(folder: str | Path) -> None:
    """Lets figures use the fonts of a folder. ``FileNotFoundError`` if there is none."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of font files; found none")
    vl_convert.register_font_directory(str(folder))


def check_font(name: str) -> None:
    """``ValueError``, one line, if the font is not installed: PDF and PNG would lack text."""

    def drawn(text: str) -> bytes:
        node = f'<text x="2" y="14" font-family={quoteattr(name)} font-size="12">{text}</text>'
        frame = '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="20">'
        return bytes(vl_convert.svg_to_png(f"{frame}{node}</svg>"))

    if drawn("Text") == drawn(""):
        raise ValueError(
            f"--font: expected a font that is installed here; found {name!r:.60}, which is not. "
            "Name its folder with --fonts FOLDER, or type --format svg, which only names it"
        )


def write(
    drawn: Sequence[Figure],
    folder: Path,
    *,
    width: float,
    font: str | None = None,
    kinds: Sequence[str] = ("pdf",),
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[Path]:
    """Writes each figure `width` inches wide into `folder`, one file per kind. -> files written"""
    if font is not None and set(kinds) - {"svg"}:  # an SVG names its font, the others embed it
        check_font(font)
    folder.mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        svg = sized(figure.spec, width, font)
        for kind in kinds:
            path = folder / f"{figure.name}.{kind}"
            if kind == "svg":
                write_whole(path, svg)
            elif kind == "pdf":
                write_whole(path, to_pdf(_in_points(svg)))
            else:
                scale = 72 / PIXELS  # of the points that ppi counts
                write_whole(path, vl_convert.svg_to_png(_on_white(svg), scale=scale, ppi=PNG_DPI))
            yield path
        progress(1 / len(drawn))


def sized(spec: dict[str, Any], width: float, font: str | None = None) -> str:
    """The figure as SVG of `width` inches, all its text 8 points.

    Axes and legends have fixed sizes: panels are narrowed until the whole has the requested width,
    first with as many in a row as fit, then with fewer, and with legends in fewer columns; before
    there are fewer in a row, the title of the vertical axis is set once, above all panels. If even
    one narrow panel is too wide, the SVG is scaled.
    """
    target = width * PIXELS
    best = ""
    for columns in range(_most_columns(spec), 0, -1):
        for above, legend in itertools.product((False, True), (None, 3, 2, 1)):
            layout = Layout(columns, legend, above, font)
            fitted = _fitted(spec, layout, target)
            if fitted is None:
                continue
            best, found = fitted
            if -SLACK <= found - target <= 1:
                return _exactly(best, target)
    return _exactly(best or _drawn(spec, Layout(1, 1, False, font), NARROWEST), target)


def _fitted(spec: dict[str, Any], layout: Layout, target: float) -> tuple[str, float] | None:
    """The figure with panels narrowed to make it `target` wide, and its width; None if such panels
    are too narrow."""
    columns = layout.columns
    panel = target / columns - 60
    slope = float(columns)  # slope of the total width over a panel's; less if a title is wider
    before: tuple[float, float] | None = None
    for _ in range(5):
        if panel < NARROWEST:
            return None
        svg = _drawn(spec, layout, panel)
        found = _width(svg)
        if -SLACK <= found - target <= 1:
            return svg, found
        if before is not None and panel != before[0]:
            slope = min(columns, max(0.8, (found - before[1]) / (panel - before[0])))
        before = panel, found
        panel -= (found - target) / slope
    return svg, found


def _drawn(spec: dict[str, Any], layout: Layout, panel: float) -> str:
    return vl_convert.vegalite_to_svg(restyled(spec, layout, panel), vl_version=VEGA_LITE)


def restyled(spec: dict[str, Any], layout: Layout, panel: float) -> dict[str, Any]:
    """The specification with text of 8 points, and panels `panel` pixels wide."""
    spec = copy.copy(spec)
    spec["config"] = config = copy.deepcopy(spec["config"])
    config["axis"] |= {"labelFontSize": TEXT, "titleFontSize": TEXT, "titlePadding": 4}
    config["legend"] |= {"labelFontSize": TEXT, "titleFontSize": TEXT}
    if layout.legend is not None:
        config["legend"]["columns"] = layout.legend
    # numbers apart: narrow panels would set 0.05 and 0.1 as 0.050.1
    config["axisXQuantitative"] = {"labelOverlap": "greedy", "labelSeparation": 3}
    config["padding"] = 1
    if layout.font is not None:
        config["font"] = layout.font
    names = {row["panel"] for row in spec["datasets"]["rows"]}
    inner = spec["spec"] = copy.deepcopy(spec["spec"])
    inner["width"] = panel
    low = ROW * _rows_of_a_map(inner["layer"][0], spec["datasets"]["rows"])
    inner["height"] = max(low, min(inner["height"], 0.75 * panel + 20))
    if layout.above:
        spec["title"] = {"text": _titles_above(inner["layer"]), "fontSize": TEXT, "offset": 6}
        spec["title"] |= {"fontWeight": "normal", "fontStyle": "italic"}
    for layer in inner["layer"]:
        for name, room in (("x", panel), ("y", inner["height"])):
            _wrap(layer.get("encoding", {}).get(name), room)
        mark = layer["mark"]
        if isinstance(mark, dict) and mark.get("type") == "text" and mark.get("fontSize", 11) > 9:
            mark["fontSize"] = TEXT
    spec["columns"] = min(layout.columns, len(names))
    spec["bounds"] = "full"
    spec["spacing"] = {"column": 12, "row": 14}
    spec["facet"] = copy.deepcopy(spec["facet"])
    spec["facet"]["header"] |= {
        "labelFontSize": TEXT,
        "labelLimit": panel + 40,
    }
    lines = _wrapped(names, int((panel + 30) / (1.1 * LETTER)))  # bold letters are wider
    spec["facet"]["header"]["labelExpr"] = f"({json.dumps(lines)})[datum.label]"
    return spec


def _wrapped(names: Collection[str], letters: int) -> dict[str, list[str]]:
    """Names of panels in lines of so many letters, all in equally many, so that panels are
    level."""
    lines = {name: textwrap.wrap(name, letters) for name in names}
    most = max(map(len, lines.values()))
    return {name: [""] * (most - len(own)) + own for name, own in lines.items()}


def _rows_of_a_map(layer: dict[str, Any], rows: list[dict[str, Any]]) -> int:
    """How many names the vertical axis has; 0 where it has numbers."""
    y = layer.get("encoding", {}).get("y", {})
    return len({row.get(y.get("field")) for row in rows}) if y.get("type") == "ordinal" else 0


def _titles_above(layers: list[dict[str, Any]]) -> str:
    """Takes the title from the vertical axis of every layer. -> the title"""
    taken = ""
    for layer in layers:
        y = layer.get("encoding", {}).get("y")
        if isinstance(y, dict) and isinstance(y.get("title"), str):
            taken = y["title"]
            y["title"] = None
    return taken


def _wrap(encoding: dict[str, Any] | None, room: float) -> None:
    """Fits an axis title into `room` pixels: if it is longer, uses the symbol after its last comma,
    on as many lines as needed."""
    if encoding and isinstance(encoding.get("title"), str):
        letters = max(8, int(room / LETTER))
        words = encoding["title"]
        if len(words) > letters:
            words = words.rsplit(", ", 1)[-1]
        encoding["title"] = textwrap.wrap(words, letters)


def _in_points(svg: str) -> str:
    """The frame in points: PDF reads an SVG's pixels as points."""
    head = re.match(r"(?s).*?<svg[^>]*>", svg)
    assert head is not None

    def scaled(found: re.Match[str]) -> str:
        return f' {found[1]}="{float(found[2]) * 72 / PIXELS:.3f}"'

    return re.sub(r'\s(width|height)="([\d.]+)"', scaled, head[0]) + svg[head.end() :]


def _on_white(svg: str) -> str:
    head = re.match(r"(?s).*?<svg[^>]*>", svg)
    assert head is not None
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return head[0] + ground + svg[head.end() :]


def _most_columns(spec: dict[str, Any]) -> int:
    panels = len({row["panel"] for row in spec["datasets"]["rows"]})
    return min(MOST_COLUMNS, max(1, panels))


def _width(svg: str) -> float:
    found = re.search(r'<svg[^>]*?\swidth="([\d.]+)"', svg)
    assert found is not None, "an SVG without a width"
    return float(found[1])


def _exactly(svg: str, target: float) -> str:
    """The drawing at `target` pixels wide: its frame is adjusted, or it is scaled down if wider."""
    found = _width(svg)
    height = re.search(r'<svg[^>]*?\sheight="([\d.]+)"', svg)
    assert height is not None, "an SVG without a height"
    scale = min(1.0, target / found)
    head = re.match(r"(?s).*?<svg[^>]*>", svg)
    assert head is not None
    frame = f'viewBox="0 0 {target / scale:.2f} {float(height[1]):.2f}"'
    new = re.sub(r'\swidth="[\d.]+"', f' width="{target:.2f}"', head[0], count=1)
    new = re.sub(r'\sheight="[\d.]+"', f' height="{float(height[1]) * scale:.2f}"', new, count=1)
    new = re.sub(r'viewBox="[^"]*"', frame, new, count=1)
    return new + svg[head.end() :]
