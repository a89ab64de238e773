"""Figures: few enough rows, right marks, readable names."""

from __future__ import annotations

import pandas as pd
import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report.figures import figures
from rankscope.report.maps import short_names
from rankscope.report.theme import MOST_ROWS, inline, ramp, rate_name
from simulate import Truth, study


def drawn(frames):
    return {f.name: f for f in figures(Frames(**frames), conclude(Frames(**frames), resamples=60))}


def rows(figure, part=None):
    table = pd.concat(pd.DataFrame(r) for r in figure.spec["datasets"].values())
    return table if part is None else table[table["part"].eq(part)]


@pytest.fixture(scope="module")
def lab():
    return drawn(study(Truth(warmup=0.2), tasks=("one", "two"), seeds=3, seed=1))


def test_threshold_is_marked_inside_its_band(lab):
    mark = rows(lab["threshold"], "threshold")
    assert len(mark) == 2
    assert (mark[["low", "high"]].min(axis=1) < mark["ratio"]).all()
    assert (mark["ratio"] < mark[["low", "high"]].max(axis=1)).all()
    assert mark["label"].str.contains("% of sr(W), s* =", regex=False).all()


def test_no_threshold_no_mark():
    frames = study(Truth(threshold=None), seeds=2)
    assert not rows(drawn(frames)["threshold"], "threshold")["shown"].any()


def test_growth_has_its_diagonal_and_the_full_update(lab):
    diagonal = rows(lab["growth"], "diagonal")
    assert (diagonal["rank"] == diagonal["p50"]).all()
    assert len(rows(lab["growth"], "full")) == 2


def test_rates_mark_one_choice_per_configuration(lab):
    table = rows(lab["rates"])
    assert table[table["picked"]].groupby(["task", "column"]).size().eq(1).all()
    assert table["below"].max() == 0


def test_without_full_fine_tuning_there_is_no_alignment():
    names = drawn(study(full=False, seeds=1))
    assert "alignment" not in names
    assert "growth" in names


def test_large_studies_are_aggregated():
    layers = tuple(f"layer.{i}.{kind}" for i in range(20) for kind in ("query", "value"))
    frames = study(
        ranks=tuple(2**i for i in range(9)),
        scalings=("alpha/r", "alpha/sqrt(r)"),
        tasks=("a", "b", "c"),
        models=("m", "n"),
        rates=(1e-3, 1e-2),
        seeds=1,
        layers=layers,
        evaluations=12,
    )
    for figure in drawn(frames).values():
        assert 0 < len(rows(figure)) <= MOST_ROWS


def test_too_many_rows_are_refused():
    with pytest.raises(AssertionError, match="aggregate first"):
        inline(pd.DataFrame({"x": range(MOST_ROWS + 1)}))


def test_short_names_keep_what_differs():
    layers = pd.Series(
        [
            f"roberta.encoder.layer.{i}.attention.self.{k}"
            for i in (0, 10)
            for k in ("query", "value")
        ]
    )
    assert short_names(layers).tolist() == ["0 query", "0 value", "10 query", "10 value"]
    assert short_names(layers.iloc[:1]).tolist() == ["query"]


def test_rates_have_short_names():
    assert [rate_name(x) for x in (1e-5, 3.16e-4, 0.01)] == ["1e-5", "3.2e-4", "1e-2"]


def test_ramp_gives_one_colour_per_rate():
    for count in (1, 2, 7):
        assert len(set(ramp(count))) == count
