"""All figures of a report, in reading order."""

from __future__ import annotations

from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.frames import Frames
from rankscope.report.continued import continued_figure
from rankscope.report.contrasts import contrasts_figure
from rankscope.report.curves import alignment_figure, growth_figure, performance_figure
from rankscope.report.drifts import steps_figure, threshold_figure
from rankscope.report.interventions import paths_figure
from rankscope.report.maps import layers_figure, rates_figure
from rankscope.report.optimum import optimum_figure
from rankscope.report.theme import Figure
from rankscope.report.training import curves_figure, loss_figure

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
    """The figures that this study has data for."""
    drawn = (draw(frames, conclusions) for draw in DRAWN)
    return [figure for figure in drawn if figure is not None]
