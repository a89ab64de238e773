"""Figures: few enough rows, right marks, readable names."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis import Frames, conclude
from rankscope.report.contrasts import contrasts_figure
from rankscope.report.maps import _cell_words, short_names
from rankscope.report.page import figures
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
    figure = drawn(frames)["threshold"]
    assert rows(figure, "threshold").empty
    assert rows(figure, "curve").empty
    assert "No fitted line is drawn" in figure.caption


def test_growth_has_its_diagonal_and_the_full_update(lab):
    diagonal = rows(lab["growth"], "diagonal")
    assert (diagonal["rank"] == diagonal["p50"]).all()
    assert len(rows(lab["growth"], "full")) == 2


def test_rates_mark_one_choice_per_configuration(lab):
    table = rows(lab["rates"])
    assert table[table["picked"]].groupby(["task", "column"]).size().eq(1).all()
    assert table["share"].max() == 1
    best = table.loc[table.groupby("task")["value"].idxmax()]
    assert best["share"].eq(1).all()
    assert best["top"].all()


def test_rates_are_shares_of_the_gain_over_a_constant_answer():
    """By hand: (value - constant) / (best - constant), a task each."""
    frames = study(tasks=("one", "two"), seeds=1, ranks=(1, 8), rates=(1e-3, 1e-2))
    held = Frames(**frames)
    table = rows(drawn(frames)["rates"])
    for task, part in table.groupby("task"):
        constant = held.baselines.set_index("task").loc[task, "constant"]
        floor = part["value"].min() if np.isnan(constant) else constant
        wanted = (part["value"] - floor) / (part["value"].max() - floor)
        assert np.allclose(part["share"], wanted, atol=2e-4)


def test_the_best_rate_of_a_loss_is_the_lowest():
    """The same numbers with the direction turned: the share of the gain turns with it."""
    frames = study(tasks=("one",), seeds=1, ranks=(1, 8), rates=(1e-3, 1e-2))
    frames["trials"] = frames["trials"].assign(greater_is_better=False)
    table = rows(drawn(frames)["rates"])
    assert table.loc[table["value"].idxmin(), "share"] == 1
    assert table.loc[table["value"].idxmin(), "top"]
    assert table.loc[table["value"].idxmax(), "share"] < 1


def test_cells_of_the_map_are_short():
    assert [_cell_words(x) for x in (0.831, -0.02, 1.0, 12.3, np.nan)] == [
        ".83",
        "−.02",
        "1.00",
        "12.30",
        "",
    ]


def test_the_frame_of_growth_shows_the_data(lab):
    """The diagonal ends with it, a little above the largest stable rank to be seen."""
    table = rows(lab["growth"])
    seen = table[table["part"].isin(["lora", "full"])]
    layer = lab["growth"].spec["spec"]["layer"][0]
    low, high = layer["encoding"]["y"]["scale"]["domain"]
    largest = max(2.0, seen["p90"].max(), seen["p50"].max())
    assert high == pytest.approx(1.15 * largest, rel=1e-3)
    assert low <= 1
    assert table.loc[table["part"].eq("diagonal"), "p50"].max() == pytest.approx(
        min(high, table["rank"].max()), rel=1e-3
    )


def test_brackets_are_those_of_the_conclusions(lab):
    frames = study(Truth(warmup=0.2), tasks=("one", "two"), seeds=3, seed=1)
    found = conclude(Frames(**frames), resamples=60).thresholds
    drawn_ones = rows(lab["threshold"], "bracket")
    for t in found:
        closed = t.brackets[np.isfinite(t.brackets["next"])]
        own = drawn_ones[drawn_ones["task"].eq(t.task)]
        assert len(own) == len(closed)
        wanted = np.sort(np.exp(t.sign * closed["next"]))
        assert np.allclose(np.sort(own["low"]), wanted, rtol=1e-4)
        values = rows(lab["threshold"])
        points = values[values["part"].isin(["point", "near"]) & values["task"].eq(t.task)]
        assert own["value"].max() < points["value"].min()  # below what was measured


def test_curves_hold_both_measures_and_mark_the_chosen_rate(lab):
    table = rows(lab["curves"])
    assert table.groupby("task")["panel"].nunique().eq(2).all()
    chosen = table[table["picked"]].groupby(["task", "method", "rank"], dropna=False)["rate"]
    assert chosen.nunique().eq(1).all()


def test_the_optimum_is_that_of_the_table():
    frames = study(tasks=("one",), seeds=3, rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
    found = conclude(Frames(**frames), resamples=60).rates.configurations
    table = rows(drawn(frames)["optimum"])
    inside = table[table["part"].eq("lora")].sort_values("rank")
    wanted = found[found["method"].eq("lora") & found["best"].notna()].sort_values("rank")
    assert np.allclose(inside["value"], wanted["best"], rtol=1e-4)


def test_single_seeds_are_said(lab):
    assert "One seed each" in drawn(study(seeds=1))["growth"].caption
    assert "3 seeds each" in lab["growth"].caption


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


def test_pairs_of_different_seeds_by_every_measure_that_is_known():
    """Cosine, barrier and CKA have a panel each; where only two full fine-tunes are known there is
    nothing to compare, and no panel."""
    row = {"model": "m", "task": "t", "scaling": "alpha/r", "seeds": 2}
    row |= {"lora_full": 0.1, "full_full": 0.2, "lora_lora": 0.3}
    row |= {"barrier_lora_full": 0.5, "barrier_full_full": 0.4, "barrier_lora_lora": np.nan}
    row |= {"cka_lora_full": np.nan, "cka_full_full": 0.9, "cka_lora_lora": np.nan}
    wide = pd.DataFrame([row | {"rank": rank} for rank in (8.0, 64.0)])
    figure = contrasts_figure(None, SimpleNamespace(alignment=SimpleNamespace(contrasts=wide)))
    table = rows(figure)
    panels = table.groupby("panel")["value"].apply(lambda v: sorted(set(v))).to_dict()
    assert panels == {
        "t: cosine of the updates": [0.1, 0.2, 0.3],
        "t: loss barrier at the midpoint": [0.4, 0.5],
    }
    assert set(table["pair"]) == {"LoRA and full", "two full", "two LoRA"}


def test_a_rate_has_one_colour_in_all_figures():
    """The rates of full fine-tuning stand in some of the figures only."""
    frames = study(Truth(warmup=0.2), seeds=1, rates=(1e-3, 1e-2))
    trials = frames["trials"]
    lower = trials["learning_rate"].where(trials["method"].ne("full"), 3e-4)
    shown = drawn(frames | {"trials": trials.assign(learning_rate=lower)})
    colours: dict[str, set[str]] = {}
    for name in ("threshold", "steps", "curves", "loss"):
        layers = shown[name].spec["spec"]["layer"]
        scale = next(
            found["color"]["scale"]
            for layer in layers
            if (found := layer["encoding"]).get("color", {}).get("field") == "rate"
        )
        for rate, colour in zip(scale["domain"], scale["range"], strict=True):
            colours.setdefault(rate, set()).add(colour)
    assert set(colours) == {"3e-4", "1e-3", "1e-2"}
    assert all(len(own) == 1 for own in colours.values())


def test_equal_values_have_an_axis():
    frames = study(Truth(warmup=0.2), seeds=1, rates=(1e-3, 1e-2))
    frames["trials"] = frames["trials"].assign(best=0.9)
    ends = rows(drawn(frames)["performance"], "room")["mean"]
    assert sorted(ends.unique()) == pytest.approx([0.855, 0.945])


def test_a_loss_that_is_the_metric_is_drawn_once():
    frames = study(Truth(), ranks=(1, 4), rates=(1e-3,), seeds=2, full=False)
    lossy = frames["trials"].assign(metric="eval_loss", greater_is_better=False)
    found = drawn(frames | {"trials": lossy})
    assert "loss" not in found
    assert set(rows(found["curves"])["panel"]) == {"paraphrase: eval loss, lower is better"}
    assert "and evaluation loss" not in found["curves"].caption
    assert "loss" in drawn(frames)


def test_one_rank_has_no_growth_to_name():
    found = drawn(study(Truth(), ranks=(4,), rates=(1e-3,), seeds=1, full=False))
    figure = found["growth"]
    assert "Dashed" not in found["performance"].caption
    assert "nan" not in figure.caption + figure.alt
    assert "times the smallest" not in figure.caption
