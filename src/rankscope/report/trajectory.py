"""A figure of how far a run moved its model, by the step of each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from rankscope.report import paper
from rankscope.report.standing import trajectories
from rankscope.report.theme import (
    PANEL_HEIGHT,
    REFERENCE,
    SERIES,
    Figure,
    faceted,
    named_colours,
    tooltips,
)

WIDTH = 6.75  # inches: two columns of a paper
RATIO, RHO = "sr(W + dW) / sr(W)", "rho = sigma_1(dW) / sigma_1(W)"
MEDIAN, OUTERMOST = "median of layers", "lowest and highest layer"
# of what ``measurement.judge`` returned: panel, line, attribute
LINES = (
    (RATIO, MEDIAN, "drift"),
    (RATIO, OUTERMOST, "lowest_drift"),
    (RATIO, OUTERMOST, "highest_drift"),
    (RHO, MEDIAN, "rho"),
    (RHO, OUTERMOST, "highest_rho"),
)


def check_figure(path: str | Path, sources: Sequence[str]) -> Path:
    """The file to write. ``ValueError``, one line, where it cannot be one."""
    place = Path(path).expanduser()
    if place.suffix.removeprefix(".") not in paper.FORMATS or place.is_dir():
        raise ValueError(
            f"--figure: expected a file that ends in .{', .'.join(paper.FORMATS)}; found "
            f"{str(path)!r:.80}"
        )
    if not place.parent.is_dir():
        raise ValueError(f"--figure: expected a folder that exists; found {str(place.parent)!r}")
    if len(sources) < 2:
        raise ValueError(
            "--figure: expected two or more checkpoint-N of one run; found one source. Type the "
            "run's folder"
        )
    return place


def write_figure(found: Sequence[Any], path: str | Path) -> Path:
    """Draws drift and rho of what ``measurement.judge`` returned by step into a file, SVG, PDF or
    PNG by its name. ``ValueError``, one line, without two checkpoints of one run."""
    place = check_figure(path, [one.source for one in found])
    drawn = figure(found, place.stem)
    (written,) = paper.write(
        [drawn], place.parent, width=WIDTH, kinds=[place.suffix.removeprefix(".")]
    )
    return written


def figure(found: Sequence[Any], name: str = "trajectory") -> Figure:
    """Drift and rho by step, a line a run; the lowest and highest layers dashed."""
    rows = _rows(found)
    if rows.empty:
        names = ", ".join(Path(one.source).name for one in found[:3])
        raise ValueError(
            f"--figure: expected two or more checkpoint-N of one run, with a drift or a rho; "
            f"found {names}"
        )
    several = rows["run"].nunique() > 1
    tips = tooltips(
        ("run", "run"), ("line", "of"), ("step", "step", "d"), ("value", "value", ".4~g")
    )
    x = alt.X("step:Q", title="step", scale=alt.Scale(zero=False), axis=alt.Axis(grid=False))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    colour = named_colours(rows["run"], "run", "run") if several else alt.value(SERIES[0])
    dash = alt.StrokeDash(
        "line:N",
        title=None,
        scale=alt.Scale(domain=[MEDIAN, OUTERMOST], range=[[1, 0], [4, 3]]),
    )
    line = alt.Chart().transform_filter("datum.line != null").mark_line(strokeWidth=1.5)
    points = alt.Chart().transform_filter("datum.line != null").mark_point(size=22, filled=True)
    rule = alt.Chart().transform_filter("datum.line == null").mark_rule(color=REFERENCE)
    layers = [
        rule.encode(y="value:Q"),
        line.encode(x=x, y=y, color=colour, strokeDash=dash, detail="detail:N"),
        points.encode(x=x, y=y, color=colour, tooltip=tips),
    ]
    reference = {"panel": RATIO, "run": rows["run"].iloc[0], "value": 1.0}
    drawn = pd.concat([rows, pd.DataFrame([reference])], ignore_index=True)
    order = [panel for panel in (RATIO, RHO) if rows["panel"].eq(panel).any()]
    spec = faceted(layers, drawn, own_scales=("y",), order=order, height=PANEL_HEIGHT)
    caption = "Drift and rho by training step; grey: where the stable rank is W's own."
    return Figure(name, "How far the run moved its model", caption, caption, spec, filters=())


def _rows(found: Sequence[Any]) -> pd.DataFrame:
    """``panel``, ``run``, ``line``, ``detail`` (what one line joins), ``step``, ``value``."""
    lines = []
    for run, own in trajectories(found).items():
        for one in own:
            for panel, line, name in LINES:
                value = getattr(one, name)
                if value is not None:
                    lines.append(
                        {
                            "panel": panel,
                            "run": run,
                            "line": line,
                            "detail": f"{run} {name}",
                            "step": one.step,
                            "value": 1 + value if panel == RATIO else value,
                        }
                    )
    return pd.DataFrame(lines)
