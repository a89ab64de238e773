"""The report: one self-contained page, and every figure and table as files for a paper."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rankscope import __version__
from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.drift import kind
from rankscope.analysis.frames import Frames
from rankscope.analysis.settings import by_setting
from rankscope.report.contrasts import contrasts_figure
from rankscope.report.curves import alignment_figure, growth_figure, performance_figure
from rankscope.report.drifts import steps_figure, threshold_figure
from rankscope.report.interventions import paths_figure
from rankscope.report.maps import layers_figure, rates_figure
from rankscope.report.opening import opening
from rankscope.report.optimum import optimum_figure
from rankscope.report.pdf import to_pdf
from rankscope.report.table import Table, is_long, searched_rows
from rankscope.report.tables import tables
from rankscope.report.theme import VEGA_LITE, Figure, series_names
from rankscope.report.training import continued_figure, curves_figure, loss_figure
from rankscope.store.files import write_whole


def write(
    frames: Frames,
    conclusions: Conclusions,
    output: Path,
    *,
    study_text: str,
    provenance: Mapping[str, Any],
    progress: Callable[[float], None] = lambda share: None,
) -> list[Path]:
    """Write the page to `output`, and beside it ``figures/*.svg``, ``*.pdf``,
    ``tables/*.csv`` and ``*.tex``.

    `study_text` is the study file as it was run, `provenance` what is needed to repeat it
    (hardware, versions, store hash; may be nested). Everything in the frames may be hostile: it is
    escaped. Returns the files written, the page first. `progress` gets shares of the work that add
    up to 1.
    """
    output = Path(output)
    apart = by_setting(frames)
    drawn, listed = figures(apart, conclusions), tables(apart, conclusions)
    page = render(frames, conclusions, drawn, listed, study_text=study_text, provenance=provenance)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, page)
    written = [output]
    for path in itertools.chain(
        _figure_files(drawn, output.parent / "figures"),
        _table_files(listed, output.parent / "tables"),
    ):
        written.append(path)
        progress(1 / (2 * len(drawn) + 2 * len(listed)))
    return written


def render(
    frames: Frames,
    conclusions: Conclusions,
    drawn: list[Figure],
    listed: list[Table],
    *,
    study_text: str,
    provenance: Mapping[str, Any],
) -> str:
    """The page as text."""
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            conclusions=conclusions,
            figures=drawn,
            tables=listed,
            opening=opening(frames, conclusions, study_text=study_text, provenance=provenance),
            filters=filters(by_setting(frames)),
            version=__version__,
            study_text=study_text,
            provenance=list(flattened(provenance)),
            library=library(),
        )
    )


def environment() -> Environment:
    """The templates, with escaping on."""
    found = Environment(
        loader=PackageLoader("rankscope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    found.filters |= {
        "embedded": embedded,
        "unbroken": unbroken,
        "is_long": is_long,
        "searched_rows": searched_rows,
    }
    return found


@cache
def library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, from the installed vl-convert."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return Markup(bundle.replace("</script", "<\\/script"))


def embedded(value: Any) -> Markup:
    """JSON that is safe inside a ``<script>`` element, whatever its strings are."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


TOGETHER = re.compile(r"\b\w+ [=<>] [\d.−-]+|[\d.]+ %|\[[\d.,∞+−% -]+\]|\(p [=<] [\d.]+\)")


def unbroken(text: str) -> Markup:
    """`text`, escaped, in which no line breaks inside ``r = 8``, ``63 %`` or ``[0.71, 1.62]``, and
    ``r^b`` is set as a power."""
    kept = TOGETHER.sub(lambda found: found[0].replace(" ", "\u00a0"), text)
    return Markup(re.sub(r"\br\^(b|\d+)\b", r"r<sup>\1</sup>", str(escape(kept))))


def filters(frames: Frames) -> list[dict[str, Any]]:
    """The page's filters, each with a label and (value, text) options, if there are several."""
    trials = frames.trials
    methods = sorted(set(series_names(trials)))
    ranks = sorted(trials["rank"].dropna().unique())
    choices = (
        ("task", "Task", [(name, name) for name in sorted(trials["task"].unique())]),
        ("model", "Model", [(name, name) for name in sorted(trials["model"].unique())]),
        ("method", "Method", [(name, name) for name in methods]),
        ("rank", "Rank", [(int(r), f"r = {r}") for r in ranks]),
        (
            "kind",
            "Kind of layer",
            [(name, name) for name in sorted(kind(frames.spectra["layer"]).unique())],
        ),
    )
    return [
        {"name": n, "label": label, "options": options}
        for n, label, options in choices
        if len(options) > 1
    ]


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested `values` as (name, text) pairs, names joined by dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
            several = len(value) > 1
            for place, entry in enumerate(value, start=1):
                yield from flattened({f"{name} {place}" if several else name: entry}, prefix)
        else:
            yield (
                f"{prefix}{name}",
                ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value),
            )


def _figure_files(drawn: list[Figure], folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        svg = vl_convert.vegalite_to_svg(figure.spec, vl_version=VEGA_LITE)
        write_whole(folder / f"{figure.name}.svg", svg)
        write_whole(folder / f"{figure.name}.pdf", to_pdf(svg))
        yield from (folder / f"{figure.name}.svg", folder / f"{figure.name}.pdf")


def _table_files(listed: list[Table], folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for table in listed:
        write_whole(folder / f"{table.name}.csv", table.to_csv())
        write_whole(folder / f"{table.name}.tex", table.to_latex())
        yield from (folder / f"{table.name}.csv", folder / f"{table.name}.tex")


DRAWN = (
    growth_figure,
    threshold_figure,
    paths_figure,
    loss_figure,
    steps_figure,
    curves_figure,
    continued_figure,
    contrasts_figure,
    alignment_figure,
    performance_figure,
    rates_figure,
    optimum_figure,
    layers_figure,
)


def figures(frames: Frames, conclusions: Conclusions) -> list[Figure]:
    """The figures for which this study has data."""
    drawn = (draw(frames, conclusions) for draw in DRAWN)
    return [figure for figure in drawn if figure is not None]
