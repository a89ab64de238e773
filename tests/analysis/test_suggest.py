"""The smallest rank that is enough: oracles by hand and by scipy, and what is not said."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankscope.analysis.frames import COMPARISON, SPECTRA, Frames
from rankscope.analysis.rate_choice import upper
from rankscope.analysis.suggest import suggest

Values = dict[int, list[float]]  # rank: the best metric of seeds 0, 1, ...


def study(values: Values, *, worse_rate: bool = True, **columns: object) -> Frames:
    """Trials at 1e-3, and, if asked, at 1e-4, where each is worse by 0.1."""
    rows = [
        {"rank": rank, "learning_rate": rate, "seed": seed, "best": value - lost}
        for rank, own in values.items()
        for seed, value in enumerate(own)
        for rate, lost in [(1e-3, 0.0), *([(1e-4, 0.1)] if worse_rate else [])]
    ]
    same = {
        "model": "m", "task": "t", "method": "lora", "scaling": "alpha/r", "status": "done",
        "metric": "accuracy", "best_step": 1, "steps": 1, "diverged_at": np.nan, "seconds": 1.0,
        "constant": 0.5, **columns,
    }  # fmt: skip
    trials = pd.DataFrame(rows).assign(**same)
    trials = trials.assign(last=trials["best"], trial=[f"t{i}" for i in range(len(trials))])
    metrics = trials[["trial"]].assign(
        step=1, epoch=1.0, train_loss=0.0, eval_loss=0.0, metric_value=trials["best"]
    )
    return Frames(trials, metrics, pd.DataFrame(columns=SPECTRA), pd.DataFrame(columns=COMPARISON))


CLEAR: Values = {
    1: [0.700, 0.712, 0.709],
    4: [0.800, 0.811, 0.807],
    16: [0.801, 0.809, 0.808],
    64: [0.802, 0.810, 0.807],
}


def test_the_smallest_of_a_plateau_with_its_rate():
    (one,) = suggest(study(CLEAR), margin=0.01)
    assert (one.rank, one.learning_rate) == (4, 1e-3)
    assert [row.rank for row in one.ranks] == [1, 4, 16, 64]
    # each mean less the best other mean: 0.707, 0.806, 0.806, 0.806 1/3
    worse = [row.worse for row in one.ranks]
    assert worse == pytest.approx([0.0993333, 0.0003333, 0.0003333, -0.0003333], abs=1e-6)


def test_the_bound_is_the_one_of_a_paired_t_test():
    """At most x worse: x is where scipy's one-sided paired test has p = 0.05."""
    (one,) = suggest(study(CLEAR), margin=0.01)
    for row in one.ranks:
        p = [
            stats.ttest_rel(
                CLEAR[j], np.array(CLEAR[row.rank]) + row.at_most, alternative="less"
            ).pvalue
            for j in CLEAR
            if j != row.rank
        ]
        assert max(p) == pytest.approx(0.05, abs=1e-9)


def test_the_upper_end_by_hand():
    # mean 2, standard deviation 1, t(0.95; 2) = 2.9200
    assert upper(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 + 2.919986 / np.sqrt(3), abs=1e-6)


def test_what_seeds_share_does_not_count():
    """A seed that is 0.2 better for every rank changes no difference."""
    shifted = {rank: [own[0] + 0.15, *own[1:]] for rank, own in CLEAR.items()}
    (one,), (other,) = suggest(study(CLEAR)), suggest(study(shifted))
    assert one.rank == other.rank
    assert [r.at_most for r in other.ranks] == pytest.approx([r.at_most for r in one.ranks])


def test_a_loss_is_better_when_it_is_lower():
    mirrored = {rank: [2 - value for value in own] for rank, own in CLEAR.items()}
    found = study(mirrored, worse_rate=False, metric="eval_loss", constant=1.5)
    (one,), (other,) = suggest(found), suggest(study(CLEAR))
    assert one.rank == other.rank == 4
    assert [r.at_most for r in one.ranks] == pytest.approx([r.at_most for r in other.ranks])
    assert one.ranks[0].value == pytest.approx(2 - 0.707)  # as it was measured


def test_the_first_that_is_not_shown_ends_it():
    """Rank 4 is enough, but rank 16 above it scatters: nothing below 64 is suggested."""
    (one,) = suggest(study({**CLEAR, 16: [0.78, 0.83, 0.81]}), margin=0.1)
    assert one.rank == 4
    (one,) = suggest(study({4: CLEAR[4], 16: [0.78, 0.80, 0.79], 64: CLEAR[64]}))
    assert one.rank == 64
    assert "of rank 16 that is not shown" in one.reason


def test_a_largest_rank_that_is_worse_leaves_nothing():
    (one,) = suggest(study({4: CLEAR[4], 16: CLEAR[16], 64: CLEAR[1]}))
    assert (one.rank, one.learning_rate, one.at_most) == (None, None, None)
    assert "already of rank 64" in one.reason


def test_a_wider_margin_never_asks_for_a_larger_rank():
    found = study(CLEAR)
    ranks = [suggest(found, margin=m)[0].rank or np.inf for m in (1e-4, 0.003, 0.01, 0.05, 0.2)]
    assert ranks == sorted(ranks, reverse=True)
    assert (ranks[0], ranks[-1]) == (np.inf, 1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({4: [0.8], 64: [0.8]}, "one seed each"),
        ({4: [0.8, 0.81, 0.8]}, "only rank 4 was tried"),
        ({4: [0.8, 0.81, 0.8], 64: [0.8]}, "only rank 4 has two seeds"),
        ({4: [0.50, 0.49, 0.5], 64: [0.5, 0.5, 0.49]}, "no rank learnt anything"),
    ],
)
def test_what_cannot_be_said_is_one_sentence_without_a_number(values: Values, says: str):
    (one,) = suggest(study(values))
    assert (one.rank, one.learning_rate, one.at_most) == (None, None, None)
    assert says in one.reason
    assert all(np.isnan(row.at_most) for row in one.ranks)
    json.dumps(one.to_dict(), allow_nan=False)


def test_a_rank_of_one_seed_is_left_out_and_named():
    (one,) = suggest(study({**CLEAR, 128: [0.9]}))
    assert one.rank == 4
    assert "128" in one.notes[0]


def test_a_rank_that_lost_a_seed_is_not_suggested():
    """The seed that broke says nothing good of rank 4, whatever the others reach."""
    (one,) = suggest(study({**CLEAR, 4: [0.802, np.nan, 0.808]}))
    assert one.rank == 16
    assert "without any evaluation" in one.reason


def test_two_equal_differences_are_no_certainty():
    (one,) = suggest(study({4: [0.8, 0.81], 64: [0.8, 0.81]}))
    assert one.rank is None


def test_each_task_and_rule_for_itself():
    first, second = study(CLEAR), study({4: CLEAR[1], 64: CLEAR[64]}, task="u")
    trials = second.trials.assign(trial=second.trials["trial"] + "u")
    metrics = second.metrics.assign(trial=second.metrics["trial"] + "u")
    both = [pd.concat([first.trials, trials]), pd.concat([first.metrics, metrics])]
    found = Frames(*both, first.spectra, first.comparison)
    assert [(one.task, one.rank) for one in suggest(found)] == [("t", 4), ("u", 64)]
    assert [one.task for one in suggest(found, task="u")] == ["u"]
    with pytest.raises(ValueError, match="expected one of t, u; found 'v'"):
        suggest(found, task="v")


def test_a_seed_is_compared_at_the_rate_that_is_best_over_the_others():
    """Rank 4 has three rates, each of which shines on one seed: over the other two another rate
    leads, so that no seed counts what chose its own rate. Rank 64 has one rate, and keeps it."""
    lucky = {1e-4: [0.90, 0.70, 0.71], 1e-3: [0.72, 0.91, 0.70], 1e-2: [0.70, 0.71, 0.89]}
    found = study({4: [0.0] * 3, 64: [0.80, 0.81, 0.80]}, worse_rate=False)
    plain = found.trials[found.trials["rank"].eq(64)]
    rows = [
        plain.assign(rank=4, learning_rate=rate, best=values, last=values, trial=names)
        for (rate, values), names in zip(
            lucky.items(), ([f"{a}{s}" for s in range(3)] for a in "abc"), strict=True
        )
    ]
    trials = pd.concat([plain, *rows], ignore_index=True)
    metrics = trials[["trial"]].assign(
        step=1, epoch=1.0, train_loss=0.0, eval_loss=0.0, metric_value=trials["best"]
    )
    split = Frames(trials, metrics, found.spectra, found.comparison)
    (one,) = suggest(split, margin=0.2)
    # over seeds 1 and 2: 0.705, 0.805, 0.80: 1e-3, where seed 0 has 0.72; over seeds 0 and 2:
    # 0.805, 0.71, 0.795: 1e-4, 0.70; over seeds 0 and 1: 0.80, 0.815, 0.705: 1e-3, 0.70
    fair, single = np.array([0.72, 0.70, 0.70]), np.array([0.80, 0.81, 0.80])
    small, large = one.ranks
    assert small.worse == pytest.approx((single - fair).mean())
    assert small.at_most == pytest.approx(upper(single - fair, rates=3))
    assert large.worse == pytest.approx((fair - single).mean())
    assert "at the rate that is best over the others" in " ".join(one.notes)


@pytest.mark.parametrize("margin", [0.0, -0.01, np.nan, np.inf])
def test_a_margin_is_a_positive_number(margin: float):
    with pytest.raises(ValueError, match="expected a positive number"):
        suggest(study(CLEAR), margin=margin)


def test_a_study_of_full_fine_tunes_only_is_one_line():
    with pytest.raises(ValueError, match="expected LoRA trials"):
        suggest(study(CLEAR, method="full"))


def test_it_errs_in_one_study_of_twenty_at_most():
    """Rank 4 is worse by a little more than the margin: 100 tasks of 4 seeds, 5 % is 5, and 12 has
    probability below 0.005. benchmarks/calibration_suggest.py draws more."""
    rng = np.random.default_rng(7)
    parts = []
    for i in range(100):
        own = {rank: 0.8 - lost + rng.normal(scale=0.002, size=4) for rank, lost in
               ((4, 0.0101), (16, 0.0), (64, 0.0))}  # fmt: skip
        values = {rank: list(v) for rank, v in own.items()}
        parts.append(study(values, worse_rate=False, task=f"task{i}"))
    trials, metrics = (
        pd.concat(
            [getattr(p, name).assign(trial=lambda t, i=i: f"{i}-" + t["trial"])
             for i, p in enumerate(parts)], ignore_index=True
        )
        for name in ("trials", "metrics")
    )  # fmt: skip
    found = suggest(Frames(trials, metrics, parts[0].spectra, parts[0].comparison))
    assert len(found) == 100
    assert sum(one.rank == 4 for one in found) < 12
