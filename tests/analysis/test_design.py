"""The design check says what seeds, ranks, rates and evaluations allow, and its power is right."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.conclusions import conclude
from rankscope.analysis.design import COLUMNS, accuracy_noise, design, power
from rankscope.analysis.frames import Frames
from simulate import study

BALANCED = {"ranks": (2, 8, 32, 128, 384), "rates": tuple(np.geomspace(1e-4, 1e-2, 5))}


def planned(ranks=(8, 64), seeds=(0, 1, 2), rates=(1e-5, 1e-4, 1e-3, 1e-2), full=True, often=8):
    rows = [
        ("m", "t", "lora", rank, "alpha/r", rate, seed, often, 0.02)
        for rank, rate, seed in itertools.product(ranks, rates, seeds)
    ]
    if full:
        rows += [
            ("m", "t", "full", None, None, r / 10, s, often, 0.02) for r in rates for s in seeds
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def answers(table):
    return {check.hypothesis: check.answerable for check in design(table)}


def test_a_balanced_design_can_answer_all():
    assert answers(planned(**BALANCED)) == dict.fromkeys(["H1", "H2", "H3", "H4", "H5"], "yes")


@pytest.mark.parametrize(
    ("table", "hypothesis", "answerable", "reason"),
    [
        (planned(ranks=(1, 8)), "H1", "no", "no two ranks of 2 or more"),
        (planned(seeds=(0,)), "H1", "in part", "says nothing about new seeds"),
        (planned(ranks=(8,), rates=(1e-4,)), "H2", "no", "3 LoRA trials; 6 are needed"),
        (planned(rates=(1e-3, 2e-3, 3e-3)), "H2", "no", "rates span 0.5 decades"),
        (planned(often=1), "H2", "in part", "one evaluation a trial"),
        (planned(often=3), "H3", "no", "lower eval_every"),
        (planned(full=False), "H4", "no", "both needed"),
        (planned(seeds=(0,)), "H4", "no", "two seeds of both"),
        (planned(seeds=(0, 1)), "H4", "in part", "an estimate without an interval"),
        (planned(rates=(1e-4, 1e-2)), "H5", "no", "3 rates"),
        (planned(full=False), "H5", "in part", "no full fine-tuning"),
        # 1.96 times 0.4 ln 10 over the spread of ln 8 and ln 64
        (planned(), "H5", "in part", "may leave the exponent open by ±1.23"),
        # two rules with a rank each: no exponent
        (
            pd.concat([planned(ranks=(8,)), planned(ranks=(64,)).replace("alpha/r", "alpha")]),
            "H5", "no", "fewer than two ranks",
        ),
        # the coarser rule counts
        (
            pd.concat([planned(**BALANCED), planned().replace("alpha/r", "alpha")]),
            "H5", "in part", "open by ±1.23",
        ),
        # grids that lie between each other: 1.96 times 0.4 ln 100 over the same spread
        (
            pd.concat([planned(ranks=(8,), rates=(1e-6, 1e-4, 1e-2)),
                       planned(ranks=(64,), rates=(1e-5, 1e-3, 1e-1))]),
            "H5", "in part", "open by ±2.46",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(table, hypothesis, answerable, reason):
    (check,) = [c for c in design(table) if c.hypothesis == hypothesis]
    assert check.answerable == answerable
    assert reason in check.reason


@pytest.mark.parametrize(("lower", "reaches"), [(2, False), (4, True)])
def test_full_fine_tunings_rates_begin_three_times_below_loras(lower, reaches):
    rates = (1e-4, 1e-3, 1e-2)
    full = planned(rates=[10 * rate * 10 / lower for rate in rates])  # from 1e-3 / lower on
    table = pd.concat([planned(rates=rates, full=False), full[full["method"].eq("full")]])
    (check,) = [c for c in design(table) if c.hypothesis == "H5"]
    assert ("does not reach below LoRA's" in check.reason) is not reaches


def test_ranks_that_some_seeds_lack_are_no_common_ranks():
    """The unbalanced design of docs/results/minilm-glue: seed 0 has all ranks, the others two."""
    table = planned(ranks=(1, 8, 64, 384))
    table = table[table["seed"].eq(0) | ~table["rank"].isin([1, 64])]
    (check,) = [c for c in design(table) if c.hypothesis == "H1"]
    assert check.reason == "r = 8 and 384 with 3 seeds"


@pytest.mark.parametrize(("loss", "near", "deep"), [(0.02, 6, 6), (0.02, 12, 8), (0.05, 4, 4)])
def test_the_power_is_that_of_a_t_interval(loss, near, deep):
    """The obvious oracle: 4,000 two-sample t intervals of simulated trials."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(loss, 0.02, (4000, near)), rng.normal(0, 0.02, (4000, deep))
    interval = stats.ttest_ind(a, b, axis=1).confidence_interval(0.95)
    assert power(loss, 0.02, near, deep) == pytest.approx((interval.low > 0).mean(), abs=0.05)


def test_no_trials_have_no_power():
    assert np.isnan(power(0.02, 0.02, 0, 4))
    assert accuracy_noise(400) == pytest.approx(0.02)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="noise is missing"):
        design(planned().drop(columns="noise"))


def test_the_conclusions_of_a_study_hold_its_design():
    found = conclude(Frames(**study(seeds=2, rates=(1e-4, 1e-3, 1e-2))), resamples=49)
    assert {c.hypothesis for c in found.design} == {"H1", "H2", "H3", "H4", "H5"}
    assert found.to_dict()["design"][0]["answerable"] in ("yes", "in part", "no")
