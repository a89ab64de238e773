"""Paired changes, dose along a path and losses at a drift, on edited trials whose truth is
known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from rankscope.analysis.interventions import Edited, Resamples, changes, groups, unedited
from rankscope.analysis.paths import dose, loss_at
from rankscope.analysis.threshold import Threshold
from rankscope.analysis.verdicts.interventions import interventions_verdict
from rankscope.analysis.weighted_metrics import METRICS

SCALES = (1.0, 2.0, 3.0, 5.0)


def edited(
    *, shift: float = 0.0, half: float = 1.5, seeds: int = 3, rows: int = 400, seed: int = 0
) -> Edited:
    """4 configurations x seeds. A row is right with probability 0.8; along the path it falls to 0.5
    in proportion to u, half way at u = ``half``; ``restore`` adds ``shift``."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(rows) % 2).astype(float)
    lines, answers = [], []
    for rank in (2, 8, 32, 128):
        for number in range(seeds):
            luck = rng.random(rows)  # the same rows are easy whatever the edit
            own = 0.8 + rng.normal(0, 0.02)
            for family, level in [*(("scale", t) for t in SCALES), ("restore", 0.0)]:
                u = math.log(level) if family == "scale" else 0.1
                right = own - (own - 0.5) * u / half / 2 if family == "scale" else own + shift
                lines.append(
                    {
                        "trial": f"{rank}-{number}", "model": "m", "task": "t", "method": "lora",
                        "rank": rank,
                        "scaling": "alpha/r", "learning_rate": 1e-3, "seed": number,
                        "family": family,
                        "level": level, "log_drift": -u, "rho": level,
                    }
                )  # fmt: skip
                answers.append(np.where(luck < right, labels, 1 - labels))
    return Edited(pd.DataFrame(lines), np.array(answers), labels, "accuracy")


def everyone(given: Edited) -> list[str]:
    return given.table["trial"].unique().tolist()


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_metrics_are_those_of_repeated_rows(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels, answers = rng.integers(0, classes, 50), rng.integers(0, classes, (4, 50))
    weights = rng.integers(0, 4, (3, 50))
    oracles = {
        "accuracy": accuracy_score,
        "matthews_correlation": matthews_corrcoef,
        "f1_macro": lambda truth, answer: f1_score(truth, answer, average="macro"),
    }
    if classes == 2:
        oracles["f1"] = f1_score
    for name, oracle in oracles.items():
        found = METRICS[name](answers.astype(float), labels.astype(float), weights.astype(float))
        wanted = [[oracle(labels.repeat(w), a.repeat(w)) for w in weights] for a in answers]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    scores = rng.normal(size=(4, 50))
    scores[:, :9] = 0.5  # ties
    for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = METRICS[name](scores, labels.astype(float), weights.astype(float))
        wanted = [[of(labels.repeat(w), s.repeat(w))[0] for w in weights] for s in scores]
        np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_the_loss_of_rows_counts_each_token_once() -> None:
    """Two rows of 3 tokens and 1, and one whose answer was cut away."""
    losses, tokens = np.array([[2.0, 6.0, np.nan]]), np.array([3.0, 1.0, 0.0])
    found = METRICS["eval_loss"](losses, tokens, np.array([[1.0, 1, 1], [0, 2, 1], [2, 0, 0]]))
    assert found.tolist() == [[3.0, 6.0, 2.0]]


def test_f1_of_nothing_is_none_and_of_one_class_is_its_own() -> None:
    none, one = np.zeros((1, 4)), np.ones((1, 4))
    assert METRICS["f1"](none, np.zeros(4), one).tolist() == [[0.0]]
    assert METRICS["f1_macro"](none, np.zeros(4), one).tolist() == [[1.0]]
    labels = np.array([0.0, 0.0, 0.0, 1.0])  # the row of class 1 not drawn: class 0 alone counts
    assert METRICS["f1_macro"](labels[None], labels, np.array([[1.0, 1, 1, 0]])).tolist() == [[1.0]]
    assert Edited(pd.DataFrame({"trial": ["a"]}), none, labels, "f1").constant() == 0.4


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson", "spearman"])
def test_a_constant_answer_correlates_with_nothing(name: str) -> None:
    labels = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = METRICS[name](np.full((1, 5), 0.3), labels, np.ones((1, 5)))
    assert found.tolist() == [[0.0]]


def test_rescaled_draws_have_the_variance_of_a_mean() -> None:
    """Three seeds: s^2 / 3 with s^2 over n - 1, where plain resampling gives two thirds of it."""
    trials = edited(seeds=3).table.drop_duplicates("trial").iloc[:3]
    drawn = Resamples.draw(trials, 10, rng=np.random.default_rng(0), resamples=20_000)
    values = np.array([0.0, 1.0, 5.0])
    means = (drawn.trials @ values) / drawn.trials.sum(axis=1)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.05)
    assert drawn.degrees == 2


def test_the_change_of_an_edit_and_its_interval() -> None:
    given = edited(shift=-0.1)
    found = changes(given, everyone(given), rng=np.random.default_rng(1)).set_index("family")
    change = found.loc["restore", "change"]
    own = given.values()[:, 0]
    by_hand = np.mean([own[i + 4] - own[i] for i in range(0, len(own), 5)])
    assert change.estimate == pytest.approx(by_hand)
    assert change.low < -0.1 < change.high < 0
    assert (change.clusters, found.loc["restore", "trials"]) == (12, 12)
    assert found.loc["restore", "ratio"] == pytest.approx(math.exp(-0.1))
    nothing = found.query("level == 1.0").iloc[0]["change"]
    assert (nothing.estimate, nothing.low, nothing.high) == (0, 0, 0)


def test_random_draws_of_one_level_count_once_a_trial() -> None:
    given = edited()
    twice = pd.concat([given.table, given.table.query("family == 'restore'")], ignore_index=True)
    more = given.answers[given.table["family"].eq("restore").to_numpy()]
    doubled = Edited(twice, np.vstack([given.answers, more]), given.labels, given.metric)
    one, two = (
        changes(g, everyone(g), rng=np.random.default_rng(0)).set_index("family").loc["restore"]
        for g in (given, doubled)
    )
    assert one["trials"] == two["trials"] == 12
    assert one["change"] == two["change"]


def test_the_dose_along_the_path() -> None:
    """Own accuracy 0.8 above a constant answer's 0.5: half the gain is 0.15, lost at u = 0.8."""
    given = edited(half=0.8, rows=4000)
    found = dose(given, everyone(given), q=0.5, rng=np.random.default_rng(0), resamples=200)
    assert found.u.low < 0.8 < found.u.high
    assert found.u.estimate == pytest.approx(0.8, abs=0.1)
    assert (found.censored, found.longest) == (0, pytest.approx(math.log(5)))


@pytest.mark.parametrize("seed", [0, 4])
def test_the_interval_of_a_dose_has_students_tails(seed: int) -> None:
    """Against medians of the same redrawn trials, whose 2.5 % and 97.5 % lie further in."""
    given = edited(half=0.8, rows=2000, seed=seed)
    names = everyone(given)
    found = dose(given, names, rng=np.random.default_rng(0), resamples=2000).u
    each = np.array(
        [dose(given, [n], rng=np.random.default_rng(0), resamples=9).u.estimate for n in names]
    )
    order = each.argsort()
    drawn = Resamples.draw(unedited(given), 2000, rng=np.random.default_rng(0), resamples=2000)
    share = drawn.trials[:, order].cumsum(axis=1) / drawn.trials.sum(axis=1, keepdims=True)
    medians = each[order][(share < 0.5).sum(axis=1)]
    tail = stats.norm.sf(stats.t.ppf(0.975, 12 - 4))
    low, inner, outer, high = np.quantile(medians, [tail, 0.025, 0.975, 1 - tail])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-3)
    assert outer - inner < 0.9 * (high - low)


def test_a_dose_of_five_trials_has_no_interval() -> None:
    """The median lies outside the extremes of five with a probability of 2^(1 - 5) = 6 %."""
    given = edited(half=0.8)
    for count in (5, 6):
        found = dose(given, everyone(given)[:count], rng=np.random.default_rng(0), resamples=50).u
        assert found.known == (count == 6)
        assert found.estimate == pytest.approx(0.8, abs=0.2)


def test_a_path_that_loses_nothing_is_censored() -> None:
    given = edited(half=50.0)
    found = dose(given, everyone(given), rng=np.random.default_rng(0), resamples=100)
    assert math.isinf(found.u.estimate)
    assert math.isinf(found.u.high)
    assert found.censored == 12


def test_the_loss_at_a_drift() -> None:
    given = edited(half=0.8, rows=4000)
    found, short = loss_at(given, everyone(given), 0.8, rng=np.random.default_rng(0), resamples=200)
    assert found.low < 0.15 < found.high
    assert short == 0
    _, short = loss_at(given, everyone(given), 9.0, rng=np.random.default_rng(0), resamples=10)
    assert short == 12


def test_good_and_collapsed() -> None:
    given = edited(rows=4000)
    table = given.table.assign(
        log_drift=np.where(given.table["trial"].eq("2-0"), -2.0, given.table["log_drift"])
    )
    answers = given.answers.copy()
    answers[table["trial"].eq("2-0").to_numpy()] = 1.0  # constant
    answers[table["trial"].eq("2-1").to_numpy()] = 1.0  # constant, but not drifted
    found = groups(Edited(table, answers, given.labels, "accuracy"), gain=0.3, near=math.log(1.1))
    assert found.collapsed == ["2-0"]
    assert len(found.good) == 10


def test_one_seed_resamples_all_trials() -> None:
    given = edited(seeds=1)
    found = changes(given, everyone(given), rng=np.random.default_rng(0), resamples=100)
    assert found.set_index("family").loc["restore", "change"].known


def test_a_trial_without_its_own_variant_is_refused() -> None:
    given = edited()
    kept = given.table["family"].ne("scale").to_numpy()
    lacking = Edited(
        given.table[kept].reset_index(drop=True), given.answers[kept], given.labels, "accuracy"
    )
    with pytest.raises(ValueError, match="expected its own variant, scale 1"):
        changes(lacking, everyone(lacking), rng=np.random.default_rng(0))


def collapsed(given: Edited, *, regain: float, seed: int = 1) -> pd.DataFrame:
    """The table of `given`, and as many trials more that drifted to a sixteenth and answer 1
    always; restored they are right in 0.5 + ``regain``."""
    labels = given.labels
    rng = np.random.default_rng(seed)
    good = given.table.assign(answers=list(given.answers))
    bad = good.assign(
        trial="c" + good["trial"], learning_rate=1e-2, log_drift=good["log_drift"] - math.log(4)
    )
    right = [rng.random(len(labels)) < 0.5 + regain for _ in range(len(bad))]
    restored = [np.where(x, labels, 1 - labels) for x in right]
    constant = np.ones(len(labels))
    bad["answers"] = [
        answers if family == "restore" else constant
        for answers, family in zip(restored, bad["family"], strict=True)
    ]
    table = pd.concat([good, bad], ignore_index=True)
    return table.assign(
        scope="all", value=0.5, metric="accuracy", labels=[labels] * len(table), draw=0,
        refit_answers=table["answers"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("half", "regain", "word"),
    [(0.4, 0.28, "supported"), (30.0, 0.0, "contradicted"), (0.4, 0.0, "undecided"),
     (30.0, 0.28, "undecided")],
)  # fmt: skip
def test_drift_as_cause(half: float, regain: float, word: str) -> None:
    """Both must be shown for a cause, both be excluded for none: half of a gain of 0.3."""
    table = collapsed(edited(half=half), regain=regain)
    columns = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
    trials = table.drop_duplicates("trial")[["trial", *columns]]
    found = Threshold("m", "t", "supported", "", gain=0.3)
    verdict = interventions_verdict(
        table.drop(columns=columns), trials, [found], rng=np.random.default_rng(0), resamples=200
    )
    assert verdict.verdict == word
    (numbers,) = verdict.numbers["interventions"]
    assert (numbers["good"], numbers["collapsed"]) == (12, 12)
    assert numbers["regain_own"] == pytest.approx(regain, abs=0.03)
    assert numbers["drift"] == pytest.approx(math.log(4), abs=1e-9)


@pytest.mark.parametrize(
    ("short", "half", "regain", "word", "said"),
    [
        (3, 0.4, 0.28, "supported", "takes at least 0."),
        (3, 30.0, 0.0, "undecided", "(3 of 12 do not reach it)"),  # a lower bound excludes nothing
        (8, 0.4, 0.28, "undecided", "8 of 12 good trials do not reach the same drift at any scale"),
    ],
)
def test_paths_that_end_before_the_drift(
    short: int, half: float, regain: float, word: str, said: str
) -> None:
    """What a larger scale takes without moving the stable rank is no work of drift."""
    table = collapsed(edited(half=half), regain=regain)
    still = sorted(name for name in set(table["trial"]) if not name.startswith("c"))[:short]
    moved = table["log_drift"].where(~table["trial"].isin(still), table["log_drift"] / 100)
    columns = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
    trials = table.drop_duplicates("trial")[["trial", *columns]]
    found = Threshold("m", "t", "supported", "", gain=0.3)
    verdict = interventions_verdict(
        table.assign(log_drift=moved).drop(columns=columns), trials, [found],
        rng=np.random.default_rng(0), resamples=200,
    )  # fmt: skip
    (numbers,) = verdict.numbers["interventions"]
    assert numbers["short_own"] == short
    assert verdict.verdict == word
    assert said in verdict.sentences[0]
    assert said in numbers["reason"]


def test_forgetting_is_a_mean_over_trials_of_the_loss_beyond_the_base() -> None:
    """Intervals of a mean over seeds inside configurations; where it was not taken, there is
    none."""
    given = edited()
    assert "forgetting" not in changes(given, everyone(given), rng=np.random.default_rng(0))
    rng = np.random.default_rng(0)
    table = given.table.assign(lm_loss=3 + rng.random(len(given.table)), base_lm_loss=2.5)
    lines = changes(
        Edited(table, given.answers, given.labels, given.metric),
        everyone(given), rng=np.random.default_rng(0), resamples=2000,
    ).set_index(["family", "level"])  # fmt: skip
    for (family, level), line in lines.iterrows():
        part = table[table["family"].eq(family) & table["level"].eq(level)]
        more = part["lm_loss"] - 2.5
        found = line["forgetting"]
        assert found.estimate == pytest.approx(more.mean())
        inside = more.groupby(part["trial"].str[0]).var().mean()  # of three seeds of each
        reach = stats.t.ppf(0.975, 8) * np.sqrt(inside / len(part))
        assert found.high - found.estimate == pytest.approx(reach, rel=0.1)


def test_the_verdict_tells_what_was_forgotten() -> None:
    table = collapsed(edited(half=30.0), regain=0.0)
    columns = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
    trials = table.drop_duplicates("trial")[["trial", *columns]]
    lost = np.where(table["trial"].str.startswith("c"), 4.0, 0.5)
    lost = np.where(table["family"].eq("restore"), lost / 2, lost)
    table = table.drop(columns=columns).assign(lm_loss=2 + lost, base_lm_loss=2.0)
    given = (table, trials, [Threshold("m", "t", "supported", "", gain=0.3)])
    verdict = interventions_verdict(*given, rng=np.random.default_rng(0), resamples=50)
    (sentence,) = [s for s in verdict.sentences if "language loss" in s]
    assert "collapsed trials is higher by 4.00 [4.00, 4.00], by 2.00 [2.00, 2.00] with" in sentence
    assert "good trials is higher by 0.50 [0.50, 0.50], by 0.25" in sentence
    assert "drift is not the cause of half of the loss" in verdict.sentences[0]


def test_without_collapsed_trials_nothing_is_decided() -> None:
    table = collapsed(edited(), regain=0.0)
    table = table[~table["trial"].str.startswith("c")]
    columns = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
    trials = table.drop_duplicates("trial")[["trial", *columns]]
    verdict = interventions_verdict(
        table.drop(columns=columns), trials, [Threshold("m", "t", "supported", "", gain=0.3)],
        rng=np.random.default_rng(0), resamples=50,
    )  # fmt: skip
    assert verdict.verdict == "undecided"
    assert "12 good and 0 collapsed" in verdict.sentences[0]


def test_a_loss_is_read_the_other_way_round() -> None:
    """A language model whose rows lose 1 - right: the same groups, dose and answer as accuracy
    has, with changes of the other sign."""
    table = collapsed(edited(half=0.4), regain=0.28)
    labels = table["labels"].iloc[0]
    bases = table.drop_duplicates("trial").assign(family="scale", level=0.0, log_drift=0.0)
    bases["answers"] = [np.zeros(len(labels))] * len(bases)
    right = pd.concat([table, bases], ignore_index=True)
    right["refit_answers"] = None
    wrong = right.assign(
        metric="eval_loss",
        answers=[(answers != labels).astype(float) for answers in right["answers"]],
        labels=[np.ones(len(labels))] * len(right),
    )
    columns = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
    trials = right.drop_duplicates("trial")[["trial", *columns]]
    reference = Threshold("m", "t", "supported", "", gain=0.3)
    found = [
        interventions_verdict(
            one.drop(columns=columns), trials, [reference], rng=np.random.default_rng(0),
            resamples=60,
        )
        for one in (right, wrong)
    ]  # fmt: skip
    assert found[1].verdict == found[0].verdict == "supported"
    plain, turned = (verdict.numbers["interventions"][0] for verdict in found)
    for name in ("good", "collapsed", "regain_own", "regain_own_low", "loss_own_high", "half_high"):
        assert turned[name] == pytest.approx(plain[name]), name
    for group in ("changes_good_own", "changes_collapsed_own"):
        for one, other in zip(plain[group], turned[group], strict=True):
            assert other["change"] == pytest.approx(-one["change"])
            assert other["metric"] == pytest.approx(1 - one["metric"])


def test_without_the_base_the_gain_of_a_language_model_is_not_known() -> None:
    table = collapsed(edited(), regain=0.2).assign(metric="eval_loss", refit_answers=None)
    columns = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]
    verdict = interventions_verdict(
        table.drop(columns=columns), table.drop_duplicates("trial")[["trial", *columns]],
        [Threshold("m", "t", "supported", "", gain=0.3)],
        rng=np.random.default_rng(0), resamples=20,
    )  # fmt: skip
    assert "the base alone was not evaluated" in " ".join(verdict.sentences)
