"""What the estimates say about H2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankscope.analysis.bootstrap import Interval
from rankscope.analysis.threshold import NEGLIGIBLE_CHANGE, NEGLIGIBLE_DRIFT, Threshold
from rankscope.analysis.verdict import Verdict, answer


def threshold_verdict(found: Sequence[Threshold]) -> Verdict:
    """H2. Supported: a threshold in at least half of the pairs of model and task, in none a loss excluded.

    Contradicted: a loss is excluded in all of them although the drift was large.
    """
    numbers: dict[str, Any] = {"thresholds": [_threshold_numbers(t) for t in found]}
    if not found:
        return answer("H2", "undecided", ["There is no LoRA trial to look at."], numbers)
    held, flat = sum(t.identified for t in found), sum(t.flat for t in found)
    sentences = [_threshold_sentence(t, several=len({t.model for t in found}) > 1) for t in found]
    if len(found) > 1:
        sentences.insert(0, f"A threshold is identified in {held} of {len(found)} pairs of model and task.")
    if held * 2 >= len(found) and not flat:
        word = "supported"
    else:
        word = "contradicted" if flat == len(found) else "undecided"
    confounded = (
        "Drift, learning rate and training time move together: a threshold says where performance declines, "
        "not that the "
        "drift is the cause."
    )
    tested = (
        f"{len(found)} pairs were tested; a threshold counts as identified where Holm's adjusted p-value is at most 5 %. "
        "The intervals are 95 % each."
        if len(found) > 1
        else ""
    )
    return answer("H2", word, sentences, numbers, tested, confounded)


def _threshold_sentence(t: Threshold, *, several: bool) -> str:
    where = f"{t.task} ({t.model})" if several else t.task
    if t.identified:
        s, low, high = t.stable_rank
        adjusted = f"; {t.p_holm:.3f} by Holm's method" if t.p_holm > t.p else ""
        near, far = sorted(abs(100 * np.expm1(x)) for x in (t.low, t.high))
        return (
            f"{where}: performance declines once sr(W + ΔW) has {'risen' if t.drift > 0 else 'fallen'} by "
            f"{abs(t.percent):.0f} % [{near:.0f}, {far:.0f}], to s* = {s:.1f} [{low:.1f}, {high:.1f}] (p = "
            f"{t.p:.3f}{adjusted}){_left_out(t)}."
        )
    if t.flat:
        change = Interval(t.change, t.change_low, t.change_high, "trial", t.trials)
        return (
            f"{where}: no threshold identified; over a drift of {_percent(t.reach)} the metric changes by "
            f"{change:+.3f}, so a "
            f"loss above {NEGLIGIBLE_CHANGE} is excluded{_left_out(t)}."
        )
    small = abs(t.reach) < NEGLIGIBLE_DRIFT and t.checkpoints
    reached = f" The drift reached only {_percent(t.reach)}." if small else ""
    return f"{where}: no threshold identified: {t.reason}{_left_out(t)}.{reached}"


def _left_out(t: Threshold) -> str:
    """What was too small to have learnt."""
    return (
        f"; {t.learning:,} of {t.checkpoints:,} checkpoints are left out, whose updates ‖ΔW‖ / ‖W‖ are below "
        f"{t.learnt_from:.2g}: up to there performance still rises"
        if t.learning
        else ""
    )


def _percent(drift: float) -> str:
    return f"{100 * np.expm1(drift):+.1f} %".replace("-", "−")


def _threshold_numbers(t: Threshold) -> dict[str, Any]:
    s, low, high = t.stable_rank
    names = [
        "model",
        "task",
        "identified",
        "reason",
        "direction",
        "trials",
        "checkpoints",
        "left_out",
        "reach",
        "base",
        "drift",
        "p_flat",
        "p_straight",
        "p_unlearnt",
        "p_holm",
        "learnt_from",
        "learning",
        "correlation",
        "plateau",
        "change",
        "change_low",
        "change_high",
    ]
    bounds = {"drift_low": min(t.low, t.high), "drift_high": max(t.low, t.high), "percent": t.percent}
    return (
        {n: getattr(t, n) for n in names}
        | bounds
        | {"stable_rank": s, "stable_rank_low": low, "stable_rank_high": high}
    )
