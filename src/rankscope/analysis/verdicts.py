"""What the estimates say about each hypothesis, in words and in numbers.

A hypothesis is *supported* or *contradicted* only where a 95 % interval (or a test at 5 %) says so; else *undecided*.
The rules stand with the functions, the constants they use stand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankscope.analysis.alignment import Alignment
from rankscope.analysis.bootstrap import Interval
from rankscope.analysis.dynamics import Dynamics
from rankscope.analysis.growth import PUBLISHED, Growth
from rankscope.analysis.threshold import NEGLIGIBLE_CHANGE, NEGLIGIBLE_DRIFT, Threshold

SLOW = 0.5  # "much more slowly than r": slower than the square root of r
SAME = 0.9  # updates with a larger cosine count as the same one

QUESTIONS = {
    "H1": "Does the stable rank of the update grow much more slowly than the nominal rank?",
    "H2": "Is there a drift of the stable rank past which validation performance declines?",
    "H3": "Does the drift grow with training, and does validation fall with it?",
    "H4": "Does LoRA at high rank stay away from the update that full fine-tuning learns?",
}


@dataclass(frozen=True)
class Verdict:
    """The answer to one hypothesis: ``verdict`` is "supported", "contradicted" or "undecided"."""

    hypothesis: str
    question: str
    verdict: str
    sentences: tuple[str, ...]
    numbers: dict[str, Any]
    caveats: tuple[str, ...] = ()


def _verdict(
    hypothesis: str, verdict: str, sentences: Sequence[str], numbers: dict[str, Any], *caveats: str
) -> Verdict:
    spoken = tuple(s for s in sentences if s)
    return Verdict(
        hypothesis, QUESTIONS[hypothesis], verdict, spoken, numbers, tuple(c for c in caveats if c)
    )


def as_numbers(name: str, found: Interval) -> dict[str, Any]:
    """An interval as entries of a flat dictionary."""
    bounds = {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
    return bounds | {f"{name}_clusters": f"{found.clusters} {_plural(found.clusters, found.cluster)}"}


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _new_seeds(found: Interval) -> str:
    if found.cluster == "seed" or not found.known:
        return ""
    return (
        f"Fewer than three seeds: the interval resamples the {found.clusters} {found.cluster}s of this study "
        "and does not speak for new seeds."
    )


def growth_verdict(found: Growth) -> Verdict:
    """H1. Supported: b lies below one half with its whole interval, overall and in no group above it. Contradicted: above."""
    b, points = found.overall, found.points
    numbers = as_numbers("b", b) | as_numbers("b_without_rank_1", found.above_one)
    numbers |= {"published_low": PUBLISHED[0], "published_high": PUBLISHED[1]}
    ranks = np.sort(points["rank"].unique()) if len(points) else np.array([])
    if len(ranks) < 2:
        reason = (
            "No LoRA trial with a measured update."
            if not len(ranks)
            else f"Only one rank was tried (r = {ranks[0]:.0f}); growth needs two."
        )
        return _verdict("H1", "undecided", [reason], numbers)
    low, mid, high = points["stable_rank"].quantile([0.1, 0.5, 0.9])
    ends = [points.loc[points["rank"].eq(r), "stable_rank"].median() for r in (ranks[0], ranks[-1])]
    used = points.loc[points["rank"].eq(ranks[-1]), "utilisation"].median()
    numbers |= {
        "ranks": [int(r) for r in ranks],
        "p10": low,
        "p50": mid,
        "p90": high,
        "utilisation_at_highest": used,
    }
    steep = int((found.groups["b_low"] > SLOW).sum())
    sentences = [
        f"From r = {ranks[0]:.0f} to r = {ranks[-1]:.0f} the nominal rank grows {ranks[-1] / ranks[0]:.0f}-fold, the median "
        f"stable rank of the update from {ends[0]:.2f} to {ends[1]:.2f}.",
        f"As a power of the rank, sr(dW) = c r^b, the exponent is b = {b}.",
        f"Eight in ten layers have a stable rank between {low:.2f} and {high:.2f}; at r = {ranks[-1]:.0f} the update "
        f"uses {100 * used:.1f} % of its nominal rank.",
        _beside_published(b),
    ]
    if b.known and b.high < SLOW and not steep:
        verdict = "supported"
    else:
        verdict = "contradicted" if b.known and b.low > SLOW else "undecided"
        if verdict == "undecided":
            sentences.append(
                f"In {steep} of {len(found.groups)} groups b lies above {SLOW}, so there is no common answer."
                if steep
                else f"The interval does not lie on one side of {SLOW}."
            )
    return _verdict("H1", verdict, sentences, numbers, _new_seeds(b), _first_rank(found, ranks))


def _beside_published(b: Interval) -> str:
    if not b.known:
        return ""
    low, high = PUBLISHED
    if b.low >= low and b.high <= high:
        place = "lies inside"
    else:
        place = "lies below" if b.high < low else "lies above" if b.low > high else "overlaps with"
    return (
        f"The interval {place} the published range on three language models, {low:.2f} to {high:.2f} "
        "(Yazidi et al. 2026)."
    )


def _first_rank(found: Growth, ranks: np.ndarray) -> str:
    if ranks[0] > 1 or not np.isfinite(found.above_one.estimate):
        return ""
    return f"At r = 1 the stable rank is 1 by definition; without that rank b = {found.above_one}."


def threshold_verdict(found: Sequence[Threshold]) -> Verdict:
    """H2. Supported: a threshold in at least half of the models and tasks, and none where a loss is excluded.

    Contradicted: a loss is excluded in all of them although the drift was large.
    """
    numbers: dict[str, Any] = {"thresholds": [_threshold_numbers(t) for t in found]}
    if not found:
        return _verdict("H2", "undecided", ["No LoRA trial to look at."], numbers)
    held, flat = [t for t in found if t.identified], [t for t in found if t.flat]
    sentences = [_threshold_sentence(t) for t in found]
    if len(held) * 2 >= len(found) and held and not flat:
        verdict = "supported"
    else:
        verdict = "contradicted" if len(flat) == len(found) else "undecided"
    if len(found) > 1:
        sentences.insert(
            0, f"A threshold is identified in {len(held)} of {len(found)} pairs of model and task."
        )
    several = f"{len(found)} pairs were tested at 5 % each, without adjustment." if len(found) > 1 else ""
    confounded = (
        "Drift, learning rate and training time move together: the threshold says where performance declines, not that "
        "the drift is the cause."
    )
    return _verdict("H2", verdict, sentences, numbers, several, confounded)


def _threshold_sentence(t: Threshold) -> str:
    where = f"{t.task} ({t.model})"
    if t.identified:
        s, low, high = t.stable_rank
        return (
            f"{where}: performance declines once sr(W + dW) has {'risen' if t.drift > 0 else 'fallen'} by "
            f"{abs(t.percent):.0f} % [{_percents(t)}], to s* = {s:.1f} [{low:.1f}, {high:.1f}]; {t.reason}."
        )
    if t.flat:
        return (
            f"{where}: no threshold identified; over a drift of {100 * np.expm1(t.reach):+.0f} % the metric changes by "
            f"{t.change:+.3f} [{t.change_low:+.3f}, {t.change_high:+.3f}], so a loss above {NEGLIGIBLE_CHANGE} is excluded."
        )
    small = (
        f" The drift never exceeded {100 * np.expm1(abs(t.reach)):.1f} %."
        if abs(t.reach) < NEGLIGIBLE_DRIFT
        else ""
    )
    return f"{where}: no threshold identified: {t.reason}.{small}"


def _percents(t: Threshold) -> str:
    low, high = sorted(abs(100 * np.expm1(x)) for x in (t.low, t.high))
    return f"{low:.0f}, {high:.0f}"


def _threshold_numbers(t: Threshold) -> dict[str, Any]:
    s, low, high = t.stable_rank
    names = "model task identified reason direction trials checkpoints left_out reach base drift p_flat p_straight".split()
    names += "plateau change change_low change_high".split()
    bounds = {"drift_low": min(t.low, t.high), "drift_high": max(t.low, t.high), "percent": t.percent}
    return (
        {n: getattr(t, n) for n in names}
        | bounds
        | {"stable_rank": s, "stable_rank_low": low, "stable_rank_high": high}
    )


def dynamics_verdict(found: Dynamics) -> Verdict:
    """H3. Supported: drift rises with the step and the metric falls with drift. Contradicted: one of them the other way."""
    up, down = found.growing, found.falling
    lora = found.trials[found.trials["method"].eq("lora")]
    numbers = as_numbers("drift_with_step", up) | as_numbers("metric_with_drift", down)
    numbers |= {"trials": len(lora), "trials_after_best": int(lora["falling"].notna().sum())}
    if not lora["growing"].notna().any():
        reason = "No LoRA trial has its drift measured at three steps or more."
        return _verdict("H3", "undecided", [reason], numbers)
    tracked = int(lora["growing"].notna().sum())
    sentences = [
        f"Inside a trial, drift and training step have the rank correlation {up} (mean of {tracked} trials)."
    ]
    if numbers["trials_after_best"]:
        sentences.append(
            f"After the best evaluation, drift and the validation metric have {down} (mean of "
            f"{numbers['trials_after_best']} trials with three or more evaluations after it)."
        )
    else:
        sentences.append(
            "No trial has three evaluations after its best one, so whether validation falls cannot be said."
        )
    grows, falls = up.known and up.low > 0, down.known and down.high < 0
    against = (up.known and up.high < 0) or (down.known and down.low > 0)
    verdict = "supported" if grows and falls else "contradicted" if against else "undecided"
    if verdict == "undecided" and grows:
        sentences.append("So the drift grows; that validation falls with it is not shown.")
    if against:
        sentences.append(
            "The drift shrinks with training." if up.known and up.high < 0 else "Validation rises with drift."
        )
    return _verdict("H3", verdict, sentences, numbers, _new_seeds(up))


def alignment_verdict(found: Alignment) -> Verdict:
    """H4. Supported: the cosine of the two updates at the highest rank lies below 0.9 with its interval. Contradicted: above."""
    numbers = as_numbers("cosine", found.cosine) | as_numbers("relative_distance", found.distance)
    numbers |= as_numbers("captured_above_chance", found.captured) | as_numbers(
        "log_stable_ratio", found.stable_ratio
    )
    numbers |= as_numbers("rule_difference", found.rules)
    numbers |= {
        "rank": found.highest,
        "stable_rank_lora": found.stable_lora,
        "stable_rank_full": found.stable_full,
    }
    if not len(found.points):
        reason = "LoRA was not compared with full fine-tuning (both are needed, with the same model, task and seed)."
        return _verdict("H4", "undecided", [reason], numbers)
    cosine = found.cosine
    full = "the full dimension" if found.whole else "the highest rank compared"
    sentences = [
        f"At r = {found.highest:.0f}, {full}, the LoRA update and the full update have a cosine of {cosine} "
        f"and a relative distance of {found.distance}.",
        f"Beyond what random subspaces would, LoRA's singular subspaces capture {found.captured} of the full update's energy."
        if np.isfinite(found.captured.estimate)
        else "",
        f"Median stable ranks of the two updates there: {found.stable_lora:.2f} (LoRA) and {found.stable_full:.2f} (full)."
        if np.isfinite(found.stable_full)
        else "",
        f"Under alpha/sqrt(r) the cosine is higher than under alpha/r by {found.rules}."
        if np.isfinite(found.rules.estimate)
        else "",
    ]
    verdict = "undecided"
    if not found.high:
        sentences.append("That rank is too low to speak about high ranks.")
    elif cosine.known and not (cosine.low <= SAME <= cosine.high):
        verdict = "supported" if cosine.high < SAME else "contradicted"
    partial = "" if found.whole else "The highest rank compared is below the layers' dimension."
    yardstick = (
        "The yardstick, how far two full fine-tunings with different seeds lie apart, is not measured here."
    )
    return _verdict("H4", verdict, sentences, numbers, _new_seeds(cosine), partial, yardstick)
