"""H1: the exponent of simulated studies is recovered, and its interval is the one it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.frames import Frames
from rankscope.analysis.growth import band, exponent, growth
from rankscope.analysis.inference import holm, interval, mean_interval, mean_intervals
from rankscope.analysis.verdicts.growth import growth_verdict
from simulate import Truth, study


def fitted(frames, resamples=400):
    return growth(Frames(**frames), rng=np.random.default_rng(0), resamples=resamples)


@pytest.mark.parametrize("b", [0.0, 0.25, 0.9])
def test_exponent_is_recovered(b):
    found = fitted(study(Truth(b=b), seeds=5, seed=3)).exponent
    assert found.cluster == "seed"
    assert found.clusters == 5
    assert abs(found.estimate - b) < 0.05
    assert found.low < b < found.high


def test_exponent_equals_ordinary_least_squares():
    points = fitted(study(seeds=1, layers=("encoder.query",))).points
    points = points[points["rank"].gt(1)]
    oracle = stats.linregress(np.log(points["rank"]), np.log(points["stable_rank"])).slope
    found = exponent(points, rng=np.random.default_rng(0), resamples=50)
    assert found.estimate == pytest.approx(oracle, abs=1e-12)


def test_unbalanced_ranks_need_one_intercept_per_layer():
    """The hazard: a layer with a high level that was measured at high ranks only. The cure: its own
    intercept."""
    ranks = np.array([1.0, 2, 4, 8, 16, 32, 64])
    low = pd.DataFrame({"layer": "a", "rank": ranks, "stable_rank": ranks**0.2})
    high = pd.DataFrame({"layer": "b", "rank": ranks[4:], "stable_rank": 5 * ranks[4:] ** 0.2})
    points = pd.concat([low, high]).assign(model="m", task="t", scaling="alpha/r", seed=0)
    pooled = stats.linregress(np.log(points["rank"]), np.log(points["stable_rank"])).slope
    assert pooled > 0.4
    found = exponent(points, rng=np.random.default_rng(0), resamples=50)
    assert found.estimate == pytest.approx(0.2, abs=1e-12)


def test_few_seeds_fall_back_to_layers_and_say_so():
    one, two = fitted(study(seeds=1)), fitted(study(seeds=2))
    assert one.exponent.cluster == "layer"
    assert one.exponent.clusters == 4
    assert two.exponent.cluster == "seed"
    assert growth_verdict(one).sentences[0].endswith("4 layers of one seed).")
    assert growth_verdict(two).sentences[0].endswith("2 seeds).")


def test_one_layer_and_few_seeds_give_no_interval():
    found = fitted(study(seeds=1, layers=("encoder.query",))).exponent
    assert np.isfinite(found.estimate)
    assert not found.known
    assert "no interval: 1 layer" in f"{found}"


def test_every_kind_of_layer_has_its_exponent():
    found = fitted(study(Truth(b=0.9), tasks=("one", "two"), seeds=3))
    assert list(found.groups["kind"]) == ["all", "query", "value"] * 2
    assert (found.groups["b_low"] > 0.5).all()
    assert (found.groups["p_holm"] >= found.groups["p"]).all()
    assert (found.groups["p_holm"] <= 0.05).all()
    query = found.points[
        found.points["kind"].eq("query") & found.points["task"].eq("one") & found.points["used"]
    ]
    oracle = exponent(query, rng=np.random.default_rng(0), resamples=50)
    assert found.groups["b"][1] == pytest.approx(oracle.estimate)


def test_p_value_agrees_with_the_interval():
    values = pd.Series(np.random.default_rng(1).normal(size=6))
    found = mean_interval(
        values, pd.Series(range(6)), "seed", rng=np.random.default_rng(1), resamples=40_000
    )
    assert found.p(found.low) == pytest.approx(0.05)
    assert found.p(0.0) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.1)


def test_interval_of_a_mean_is_the_t_interval():
    rng = np.random.default_rng(1)
    values = pd.Series(rng.normal(size=6))
    found = mean_interval(values, pd.Series(range(6)), "seed", rng=rng, resamples=40_000)
    low, high = stats.t.interval(0.95, 5, loc=values.mean(), scale=stats.sem(values))
    assert found.low == pytest.approx(low, rel=0.03)
    assert found.high == pytest.approx(high, rel=0.03)


def test_columns_together_are_columns_alone():
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.normal(size=(12, 3)), columns=list("abc"))
    table.loc[[0, 1], "b"] = np.nan
    table.loc[:, "d"] = np.nan
    clusters = pd.Series(np.repeat(range(6), 2))
    together = mean_intervals(table, clusters, "seed", rng=rng, resamples=20_000)
    for name in "abc":
        alone = mean_interval(table[name], clusters, "seed", rng=rng, resamples=20_000)
        assert together[name].estimate == pytest.approx(table[name].mean())
        assert together[name].low == pytest.approx(alone.low, abs=0.05)
        assert together[name].clusters == alone.clusters == (5 if name == "b" else 6)
    assert not together["d"].known


def test_three_clusters_cover_where_the_percentile_bootstrap_does_not():
    rng = np.random.default_rng(2)
    hits = {"ours": 0, "percentile": 0}
    for _ in range(400):
        values = rng.normal(size=3)
        replicates = rng.choice(values, size=(300, 3)).mean(axis=1)
        ours = interval(values.mean(), replicates, "seed", 3)
        low, high = np.quantile(replicates, [0.025, 0.975])
        hits["ours"] += ours.low < 0 < ours.high
        hits["percentile"] += low < 0 < high
    assert hits["percentile"] < 0.85 * 400
    assert 0.92 * 400 < hits["ours"] < 0.98 * 400


def test_band_and_utilisation():
    frames = study(seeds=3)
    found = fitted(frames)
    points = found.points[found.points["rank"].eq(16)]
    table = band(found.points, ["model", "task", "scaling", "rank"])
    row = table[table["rank"].eq(16)].iloc[0]
    assert row["p50"] == pytest.approx(points["stable_rank"].median())
    assert row["utilisation"] == pytest.approx(points["stable_rank"].median() / 16)
    assert row["count"] == 3 * 4


def test_a_rank_of_one_and_ranks_that_some_seeds_lack_do_not_bend_the_slope():
    """The hazard: seed 0 alone has r = 1, where sr = 1, and a rank with another level. The cure:
    common ranks."""
    frames = study(Truth(b=0.5, threshold=None), seeds=3, ranks=(1, 8, 16, 64))
    trials = frames["trials"]
    kept = trials[trials["seed"].eq(0) | trials["rank"].isin([8, 64]) | trials["method"].eq("full")]
    found = fitted(frames | {"trials": kept})
    assert found.primary["ranks"].tolist() == ["8, 64"]
    assert found.exponent.clusters == 3
    used = found.points[found.points["used"]]
    logs = (
        np.log(used["stable_rank"].astype(float))
        .groupby([used["rank"], used["seed"]])
        .mean()
        .unstack()
    )
    change = logs.loc[64.0] - logs.loc[8.0]
    half = stats.t.ppf(0.975, 2) * change.std(ddof=1) / np.sqrt(3)
    assert np.log(found.ratio.estimate) == pytest.approx(change.mean())
    assert np.log(found.ratio.high / found.ratio.estimate) == pytest.approx(half)
    assert found.exponent.estimate == pytest.approx(change.mean() / np.log(8))


def test_tasks_that_learnt_nothing_are_named_and_not_pooled():
    frames = study(tasks=("one", "two"), seeds=2)
    trials = frames["trials"]
    idle = trials["task"].eq("two")
    found = fitted(frames | {"trials": trials.assign(best=trials["best"].where(~idle, 0.5))})
    assert set(found.groups["task"]) == {"one"}
    assert found.left_out == ["two, alpha/r"]


def test_designs_that_differ_are_not_pooled():
    frames = study(tasks=("one", "two"), seeds=3)
    trials = frames["trials"]
    found = fitted(frames | {"trials": trials[trials["task"].eq("one") | trials["seed"].eq(0)]})
    assert found.primary["task"].tolist() == ["one"]
    assert found.ratio.clusters == 3


def test_holm_steps_down():
    assert holm(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06], nan_ok=True
    )


def test_where_growth_is_steep_is_named_once():
    """All kinds of layer together, or the one kind where these are not steep."""
    slow = fitted(study(Truth(b=0.1, b_seeds=0.005), tasks=("one", "two")), resamples=99)
    steep = (slow.groups["task"] + " " + slow.groups["kind"]).isin(
        ["one all", "one query", "two query"]
    )
    told = replace(slow, groups=slow.groups.assign(b=np.where(steep, 0.6, 0.1), p_holm=0.01))
    said = growth_verdict(told)
    assert (said.verdict, growth_verdict(slow).verdict) == ("undecided", "supported")
    assert "On one, alpha/r and two, alpha/r, query b lies above 0.5" in said.sentences[-1]


def test_groups_on_both_sides_have_no_common_answer():
    """One optimiser grows as r^0.6, the other as r^0.1: neither speaks for both."""
    steep = fitted(study(Truth(b=0.6, b_seeds=0.005), tasks=("one", "two")), resamples=99)
    flat = replace(steep, groups=steep.groups.assign(b=0.1, p_holm=0.01, primary=False))
    both = replace(steep, groups=pd.concat([steep.groups, flat.groups.assign(task="three")]))
    said = growth_verdict(both)
    assert (said.verdict, growth_verdict(steep).verdict) == ("undecided", "contradicted")
    assert "On three, alpha/r b lies below 0.5: there is no common answer." in said.sentences
