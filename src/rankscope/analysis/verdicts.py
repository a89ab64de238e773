"""What the estimates say about H1, H3 and H4; about H2, threshold_verdict.py.

A hypothesis is *supported* or *contradicted* only where a 95 % interval (or a test at 5 %) says so; else
*undecided*. The rules stand with the functions, and in docs/analysis.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.alignment import Alignment
from rankscope.analysis.bootstrap import Interval
from rankscope.analysis.continued import Continued
from rankscope.analysis.dynamics import Dynamics
from rankscope.analysis.growth import PUBLISHED, SLOW, Growth
from rankscope.analysis.threshold import ERROR_RATE
from rankscope.analysis.verdict import Verdict, about_seeds, answer, counted, entries

SAME = 0.9  # updates with a larger cosine count as the same one


def growth_verdict(found: Growth) -> Verdict:
    """H1. Supported: b lies below one half with its whole interval, and in no group above it (Holm-adjusted).

    Contradicted: b lies above.
    """
    b, points = found.overall, found.points
    numbers = entries("b", b) | entries("b_without_rank_1", found.above_one)
    numbers |= {"published_low": PUBLISHED[0], "published_high": PUBLISHED[1]}
    ranks = np.sort(points["rank"].unique())
    if len(ranks) < 2:
        only = f"Only one rank was tried (r = {ranks[0]:.0f}); growth needs two." if len(ranks) else ""
        return answer("H1", "undecided", [only or "There is no LoRA trial with a measured update."], numbers)
    sentences, described = _growth_sentences(points, ranks, b)
    numbers |= described
    steep = int((found.groups["b"].gt(SLOW) & found.groups["p_holm"].le(ERROR_RATE)).sum())
    word = "undecided"
    if not b.known:
        sentences.append("With one layer and one seed there is no interval.")
    elif b.high < SLOW and not steep:
        word = "supported"
    elif b.low > SLOW:
        word = "contradicted"
    elif steep:
        sentences.append(
            f"In {steep} of {counted(len(found.groups), 'group')} b lies above {SLOW}: there is no common "
            "answer."
        )
    else:
        sentences.append(f"The interval holds values on both sides of {SLOW}.")
    first = f"At r = 1 the stable rank is 1 by definition; without that rank b = {found.above_one}."
    return answer("H1", word, sentences, numbers, about_seeds(b), first if ranks[0] == 1 else "")


def _growth_sentences(
    points: pd.DataFrame, ranks: np.ndarray, b: Interval
) -> tuple[list[str], dict[str, Any]]:
    stable = points.groupby("rank")["stable_rank"].median()
    low, mid, high = points["stable_rank"].quantile([0.1, 0.5, 0.9])
    used = float(points.loc[points["rank"].eq(ranks[-1]), "utilisation"].median())
    sentences = [
        f"From r = {ranks[0]:.0f} to r = {ranks[-1]:.0f} the nominal rank grows "
        f"{ranks[-1] / ranks[0]:.3g}-fold, the median "
        f"stable rank of the update from {stable.iloc[0]:.2f} to {stable.iloc[-1]:.2f}.",
        f"As a power of the rank, sr(ΔW) = c r^b, the exponent is b = {b}.",
        f"Eight in ten updates have a stable rank between {low:.2f} and {high:.2f}; at r = {ranks[-1]:.0f} "
        "they use "
        f"{100 * used:.1f} % of the nominal rank.",
        _beside_published(b),
    ]
    numbers = {
        "ranks": [int(r) for r in ranks],
        "p10": low,
        "p50": mid,
        "p90": high,
        "utilisation_at_highest": used,
    }
    return sentences, numbers


def _beside_published(b: Interval) -> str:
    low, high = PUBLISHED
    if not b.known:
        return ""
    if b.low >= low and b.high <= high:
        place = "lies inside"
    else:
        place = "lies below" if b.high < low else "lies above" if b.low > high else "overlaps"
    published = f"{low:.2f} to {high:.2f} (Yazidi et al. 2026)"
    return f"Its interval {place} the published range on three language models, {published}."


def dynamics_verdict(found: Dynamics, longer: Continued) -> Verdict:
    """H3. Supported: drift rises with the step and the metric falls with drift, both by Holm's p-value.

    Contradicted: one of them the other way. Trials trained for longer count among the others; beside their twins they are
    described, and decide nothing.
    """
    up, down = found.growing, found.falling
    lora = found.trials[found.trials["method"].eq("lora")]
    tracked, after = int(lora["growing"].notna().sum()), int(lora["falling"].notna().sum())
    numbers = entries("drift_with_step", up) | entries("metric_with_drift", down)
    numbers |= {"trials": len(lora), "trials_tracked": tracked, "trials_after_best": after}
    numbers |= {"continued_pairs": len(longer.pairs)} | entries("continued_drift", longer.drift)
    numbers |= entries("continued_best", longer.best) | entries("continued_last", longer.last)
    numbers |= {"p_holm_drift_with_step": found.p_growing, "p_holm_metric_with_drift": found.p_falling}
    if not tracked:
        return answer(
            "H3", "undecided", ["No LoRA trial has its drift measured at three steps or more."], numbers
        )
    sentences = [
        f"Inside a trial, drift and training step have a rank correlation of {up} (mean of "
        f"{counted(tracked, 'trial')})."
    ]
    if after:
        sentences.append(
            f"After the best evaluation, the validation metric and drift have one of {down} (mean of "
            f"{counted(after, 'trial')} with three or more evaluations after it)."
        )
    else:
        sentences.append(
            "No trial has three evaluations after its best one: whether validation falls cannot be said."
        )
    moves, turns = found.p_growing <= ERROR_RATE, found.p_falling <= ERROR_RATE  # NaN: neither
    grows, shrinks = moves and up.estimate > 0, moves and up.estimate < 0
    falls, rises = turns and down.estimate < 0, turns and down.estimate > 0
    word = "contradicted" if shrinks or rises else "supported" if grows and falls else "undecided"
    if shrinks or rises:
        sentences.append("Drift shrinks with training." if shrinks else "Validation rises with drift.")
    elif grows and not falls:
        sentences.append("So drift grows; that validation falls with it is not shown.")
    sentences += _continued_sentences(longer)
    return answer("H3", word, sentences, numbers, about_seeds(up))


def _continued_sentences(found: Continued) -> list[str]:
    pairs = found.pairs
    if pairs.empty:
        return []
    times = " or ".join(f"{budget:g}" for budget in sorted(pairs["budget"].unique()))
    return [
        f"Trained {times} times as long, {counted(len(pairs), 'trial')} ended with a drift whose size changed by "
        f"{found.drift:+.3f} in log sr, a last validation metric that changed by {found.last:+.3f}, and a best one by "
        f"{found.best:+.3f}."
    ]


def alignment_verdict(found: Alignment) -> Verdict:
    """H4. Supported: at a high rank the interval of the two updates' cosine lies below 0.9.

    Contradicted: it lies above. High: at least half of the layers' dimension.
    """
    cosine = found.cosine
    numbers = entries("cosine", cosine) | entries("relative_distance", found.distance)
    numbers |= entries("captured_above_chance", found.captured) | entries(
        "log_stable_ratio", found.stable_ratio
    )
    numbers |= entries("rule_difference", found.rules) | entries("cosine_of_two_full", found.yardstick)
    numbers |= {f"mean_{measure}": mean for measure, mean in found.means.items()}
    numbers |= {
        "rank": found.highest,
        "stable_rank_lora": found.stable_lora,
        "stable_rank_full": found.stable_full,
    }
    if not len(found.points):
        reason = "LoRA was not compared with full fine-tuning; that needs both, for one model, task and seed."
        return answer("H4", "undecided", [reason], numbers)
    sentences = _alignment_sentences(found)
    word = "undecided"
    if not found.high:
        sentences.append("That rank is too low to speak about high ranks.")
    elif not cosine.known:
        sentences.append("With one layer and one seed there is no interval.")
    elif cosine.low <= SAME <= cosine.high:
        sentences.append(f"The interval holds values on both sides of {SAME}.")
    else:
        word = "supported" if cosine.high < SAME else "contradicted"
    partial = "" if found.whole else "The highest rank compared is below the layers' dimension."
    return answer("H4", word, sentences, numbers, about_seeds(cosine), partial, _beside_yardstick(found))


def _beside_yardstick(found: Alignment) -> str:
    """What two full fine-tunings say about the distance between LoRA and one of them."""
    if not found.yardstick.clusters:
        return "The yardstick, how far two full fine-tunings with different seeds lie apart, needs two seeds; there is one."
    if not found.cosine.known or found.cosine.high < found.yardstick.estimate:
        return ""
    return (
        "LoRA's cosine is not shown to be smaller than that of two full fine-tunings with different seeds: "
        "staying away is then no property of LoRA."
    )


def _more_alignment(means: dict[str, float]) -> list[str]:
    """Norms, angles, intruders, and the distance of the weights, where they are measured."""
    said = []
    if np.isfinite(means["norm_ratio"]):
        said.append(f"The LoRA update is {means['norm_ratio']:.2f} times as long as the full one.")
    if np.isfinite(means["weight_distance"]):
        said.append(f"W + ΔW lies {100 * means['weight_distance']:.1f} % of its norm away from W_FT.")
    if np.isfinite(means["left_angle_first"]):
        spans = [
            f"{means[f'{side}_angle_first']:.0f}° to {means[f'{side}_angle_last']:.0f}°"
            for side in ("left", "right")
        ]
        said.append(
            f"Their leading singular subspaces meet at angles of {spans[0]} (left) and {spans[1]} (right)."
        )
    if np.isfinite(means["intruders_lora"]):
        counts = f"{means['intruders_lora']:.1f} (LoRA) and {means['intruders_full']:.1f} (full)"
        said.append(f"Intruder dimensions among the ten leading ones: {counts}, on average.")
    return said


def _alignment_sentences(found: Alignment) -> list[str]:
    place = "the full dimension" if found.whole else "the highest rank compared"
    sentences = [
        f"At r = {found.highest:.0f}, {place}, the LoRA update and the full update have a cosine of "
        f"{found.cosine} and a "
        f"relative distance of {found.distance}."
    ]
    if found.yardstick.clusters:
        sentences.append(
            f"Two full fine-tunings that differ in their seed have a cosine of {found.yardstick}."
        )
    sentences += _more_alignment(found.means)
    if np.isfinite(found.captured.estimate):
        sentences.append(
            f"LoRA's singular subspaces capture {found.captured} of the energy of the full update that "
            "random ones miss."
        )
    if np.isfinite(found.stable_full):
        medians = f"{found.stable_lora:.2f} (LoRA) and {found.stable_full:.2f} (full)"
        sentences.append(f"Median stable ranks of the two updates there: {medians}.")
    if np.isfinite(found.rules.estimate):
        sentences.append(
            f"Scaling by alpha/sqrt(r) instead of alpha/r changes the cosine by {found.rules:+.2f}."
        )
    return sentences
