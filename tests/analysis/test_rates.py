"""H5: the top of a parabola in the logarithm of the rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.frames import Frames
from rankscope.analysis.rates import curve, rates
from rankscope.analysis.verdicts.rates import rates_verdict

GRID = np.geomspace(1e-5, 1e-1, 13)


def frames(exponent, times=10.0, seeds=3, noise=0.0, grid=GRID):
    rng = np.random.default_rng(0)
    rows = []
    for rank in (4, 16, 64, None):
        top = np.log(1e-4) + (0 if rank is None else np.log(times) + exponent * np.log(rank / 16))
        for seed in range(seeds):
            rows += [
                (rank, x, seed, 0.8 - 0.02 * (np.log(x) - top) ** 2 + noise * rng.normal())
                for x in grid
            ]
    table = pd.DataFrame(rows, columns=["rank", "learning_rate", "seed", "best"])
    lora = table["rank"].notna()
    table = table.assign(
        trial=[f"t{i}" for i in range(len(table))], model="m", task="t", metric="accuracy",
        constant=0.5, status="done",
        method=np.where(lora, "lora", "full"), scaling=np.where(lora, "alpha/r", None),
        rank=table["rank"].astype("Int64"),
        best_step=1, last=table["best"], steps=1, diverged_at=pd.NA, seconds=1.0,
    )  # fmt: skip
    return Frames(table, pd.DataFrame(), pd.DataFrame(), pd.DataFrame())


def test_tops_exponent_and_ratio_are_recovered():
    found = rates(frames(-0.5))
    row = found.groups.iloc[0]
    assert row["exponent"] == pytest.approx(-0.5)
    assert row["to_full"] == pytest.approx(10)
    tops = found.configurations.set_index("rank")["best"]
    assert tops[16.0] == pytest.approx(1e-3)
    assert tops[64.0] == pytest.approx(5e-4)
    assert rates_verdict(rates(frames(-0.5, noise=0.002))).verdict == "contradicted"
    assert rates_verdict(rates(frames(0.0, noise=0.002))).verdict == "supported"


def test_one_of_many_groups_outside_by_chance_contradicts_nothing():
    """Five seeds: t with 4 degrees. Alone the exponent lies outside +-0.25 (p = 0.03), as one of
    three groups it is not shown to."""
    one = rates(frames(-0.5, noise=0.002, seeds=5))
    error = 0.25 / stats.t.isf(0.015, 4)
    reach = stats.t.ppf(0.975, 4) * error
    row = one.groups.assign(exponent=0.5, exponent_low=0.5 - reach, exponent_high=0.5 + reach)
    calm = row.assign(exponent=0.0, exponent_low=-0.9, exponent_high=0.9)
    for calms, word, p in ((0, "contradicted", 0.03), (2, "undecided", 0.09)):
        groups = pd.concat([row, *[calm] * calms], ignore_index=True)
        said = rates_verdict(replace(one, groups=groups))
        assert said.verdict == word
        assert said.numbers["groups"][0]["exponent_p_holm"] == pytest.approx(p)
        assert ("not shown among so many groups" in " ".join(said.sentences)) is bool(calms)
        mirrored = groups.assign(
            exponent=-groups["exponent"],
            exponent_low=-groups["exponent_high"],
            exponent_high=-groups["exponent_low"],
        )
        assert rates_verdict(replace(one, groups=mirrored)).verdict == word


def test_the_edge_of_the_grid_is_said_and_nothing_is_extrapolated():
    found = rates(frames(0.0, grid=GRID[:6]))
    lora = found.configurations[found.configurations["method"].eq("lora")]
    assert set(lora["edge"]) == {"largest tried"}
    assert lora["best"].isna().all()
    said = rates_verdict(found)
    assert said.verdict == "undecided"
    assert any("edge of the grid" in text for text in (*said.sentences, *said.caveats))


def test_a_top_stays_inside_the_rates_it_was_fitted_to():
    trials = pd.DataFrame(
        {"seed": 0, "learning_rate": [1e-4, 1e-3, 1e-2], "best": [0.7, 0.80001, 0.8]}
    )
    found = curve(trials, 0.5)
    assert np.log(1e-4) <= found.best(found.seeds) <= np.log(1e-2)
    assert curve(trials.iloc[:2], 0.5).edge == "fewer than three rates"


def test_a_collapsed_rate_beside_the_best_closes_the_window():
    grid = [3e-4, 1e-3, 3e-3, 1e-2]
    best = pd.DataFrame({"seed": 0, "learning_rate": grid, "best": [0.78, 0.82, 0.84, 0.60]})
    found = curve(best, 0.5)
    assert list(np.exp(found.values.columns)) == pytest.approx(grid[1:])
    # the parabola through three points, by Lagrange's formula
    (a, b, c), (p, q, r) = np.log(grid[1:]), (0.82, 0.84, 0.60)
    top = (p * (c**2 - b**2) + q * (a**2 - c**2) + r * (b**2 - a**2)) / 2
    top /= p * (c - b) + q * (a - c) + r * (b - a)
    assert found.best([0]) == pytest.approx(top)
    assert found.error == pytest.approx(0.4 * (c - a) / 2)
    kept = curve(best.assign(best=[0.78, 0.82, 0.84, 0.80]), 0.5)
    assert len(kept.values.columns) == 4
    assert kept.error == pytest.approx(0.4 * np.log(1e-2 / 3e-4) / 3)  # too few for residuals


def test_the_error_of_the_top_is_that_of_the_residuals_where_rates_are_many():
    x, noise = np.arange(-3.0, 4.0), np.array([1, -2, 1, 0, 2, -1, -1]) / 100
    y = 0.8 - 0.01 * (x - 0.5) ** 2 + noise
    found = curve(pd.DataFrame({"seed": 0, "learning_rate": np.exp(x), "best": y}), 0.5)
    design = np.stack([x**2, x, x**0], axis=1)
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = ((y - design @ fit) ** 2).sum() / (len(x) - 3)
    rng = np.random.default_rng(0)
    spread = np.linalg.cholesky(variance * np.linalg.inv(design.T @ design))
    drawn = fit + 0.01 * rng.normal(size=(4000, 3)) @ spread.T  # small, so that it is linear
    assert found.error == pytest.approx(100 * np.std(-drawn[:, 1] / (2 * drawn[:, 0])), rel=0.05)


def test_without_a_parabola_the_best_rate_is_known_to_the_grid():
    grid = np.geomspace(1e-5, 1e-1, 5)
    up = pd.DataFrame({"seed": 0, "learning_rate": grid, "best": [0.78, 0.70, 0.80, 0.70, 0.79]})
    found = curve(up, 0.5)
    assert found.best([0]) == pytest.approx(np.log(1e-3))  # it opens upwards: the best tried
    assert found.error == pytest.approx(0.4 * np.log(10))


def test_intervals_include_the_grid():
    coarse, fine = (rates(frames(0.0, noise=0.002, grid=GRID[::n])).groups.iloc[0] for n in (3, 1))
    # three rates a tenfold apart keep half of the gain; ranks 4, 16 and 64
    reach = 1.96 * 0.4 * np.log(10) / np.log(4) / np.sqrt(2)
    assert coarse["exponent_high"] - coarse["exponent_low"] >= 2 * reach * 0.999
    assert fine["exponent_high"] - fine["exponent_low"] < reach
    # ranks share the error of their tops, full fine-tuning has one of its own
    widths = [np.log(row["to_full_high"] / row["to_full_low"]) for row in (coarse, fine)]
    assert widths[0] >= 2 * 1.96 * 0.4 * np.log(10) * np.sqrt(2) * 0.999
    assert widths[1] < widths[0] / 4


def test_one_seed_has_no_interval():
    row = rates(frames(0.0, seeds=1)).groups.iloc[0]
    assert np.isfinite(row["exponent"])
    assert np.isnan(row["exponent_low"])
    headline = rates_verdict(rates(frames(0.0, seeds=1))).sentences[0]
    assert "0 seeds" not in headline
    assert headline.endswith("with one seed there is no interval.")
