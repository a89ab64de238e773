"""What edited trials say about H6: is a drift of the stable rank the cause of a loss?

The rule is that of docs/analysis.md: supported where giving collapsed trials their stable rank back
regains more than half of the gain and scaling good ones to the collapsed ones' drift loses more
than half of it; contradicted where the intervals exclude both, with either head. Where paths of
scaled updates end before that drift, the loss is a lower bound: it excludes nothing, and it is no
loss at that drift where most of them do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rankscope.analysis.inference import Interval
from rankscope.analysis.interventions import Edited, changes, groups
from rankscope.analysis.paths import dose, loss_at
from rankscope.analysis.threshold.evidence import NEAR
from rankscope.analysis.threshold.threshold import HALF, Threshold
from rankscope.analysis.verdicts.verdict import (
    MOST_NAMED,
    Verdict,
    answer,
    entries,
    interval_of,
    overall,
    records,
    sentence,
)
from rankscope.analysis.weighted_metrics import METRICS

HEADS = {"own": "answers", "refitted": "refit_answers"}
FEWEST = 2  # trials of each group


def interventions_verdict(
    table: pd.DataFrame,
    trials: pd.DataFrame,
    found: Sequence[Threshold],
    *,
    rng: np.random.Generator,
    resamples: int,
) -> Verdict:
    """``table``: edited trials (docs/formats.md); ``trials``: their configurations."""
    edited = table[table["scope"].eq("all") & table["value"].notna()]
    numbers, sentences = [], []
    gains = {(t.model, t.task): t for t in found}
    where = trials[["trial", "model", "task", "method", "rank", "scaling", "learning_rate", "seed"]]
    for (model, task), part in edited.merge(where, on="trial").groupby(["model", "task"]):
        reference = gains.get((str(model), str(task)))
        one = _one(part.reset_index(drop=True), reference, rng, resamples)
        numbers.append({"model": model, "task": task, **one})
        sentences.append(f"{task}: {one['answer']}, {one['reason']}.")
        sentences.append(_forgotten(str(task), one))
    return answer(
        "H6",
        overall(one["answer"] for one in numbers),
        [_headline(numbers), *sentences],
        {"interventions": numbers},
        "In this study, of these edits: what an edit does to a trained model need not be what the "
        "same drift does while it trains.",
        "Intervals are for new seeds and new validation rows. Edited weights are those at the end "
        "of training unless interventions/ says otherwise.",
    )


MEANING = {
    "supported": "drift is the cause of more than half of the loss",
    "contradicted": "drift is not the cause of half of the loss",
    "undecided": "drift is neither shown to be the cause of the loss nor excluded",
}


def _headline(numbers: list[dict[str, Any]]) -> str:
    """What restoring the stable rank gives and what taking it costs, and what follows from both."""
    told = [one for one in numbers if "regain_own" in one]
    if not told:
        why = f": {numbers[0]['reason']}" if len(numbers) == 1 else ""
        return f"No model and task can be answered{why}." if numbers else "No trial was edited."
    parts = [
        f"on {one['task']} restoring sr(W) regains {interval_of(one, 'regain_own'):.3f} and "
        f"{_taken(one)}: {MEANING[one['answer']]}"
        for one in told[:MOST_NAMED]
    ]
    return sentence(parts, ", in this study")


def _taken(one: dict[str, Any]) -> str:
    """What the collapsed trials' drift takes from good ones, and how far that is known."""
    loss, gain = f"{interval_of(one, 'loss_own'):.3f}", f"of a gain of {one['gain']:.3f}"
    short, good = one["short_own"], one["good"]
    if _too_short(short, good):
        return (
            f"{short} of {good} good trials do not reach the same drift at any scale (at the "
            f"largest they lose {loss} {gain}), so what it takes is not shown"
        )
    if short:
        return f"the same drift takes at least {loss} {gain} ({short} of {good} do not reach it)"
    return f"the same drift takes {loss} {gain}"


def _too_short(short: int, good: int) -> bool:
    """Most paths end before the drift: their loss is that of a scale, not of the drift."""
    return 2 * short > good


def _forgotten(task: str, one: dict[str, Any]) -> str:
    """The language loss of trained and restored updates, where it was taken."""
    parts = []
    for group in ("collapsed", "good"):
        rows = {(row["family"], row["level"]): row for row in one.get(f"changes_{group}_own", [])}
        own, restored = rows.get(("scale", 1.0), {}), rows.get(("restore", 0.0), {})
        if not np.isfinite(own.get("forgetting", np.nan)):
            continue
        part = f"that of {group} trials is higher by {interval_of(own, 'forgetting'):.2f}"
        if np.isfinite(restored.get("forgetting", np.nan)):
            part += f", by {interval_of(restored, 'forgetting'):.2f} with sr(W) restored"
        parts.append(part)
    if not parts:
        return ""
    return f"{task}: beside the base's language loss, in nats a token, {'; '.join(parts)}."


def _one(
    part: pd.DataFrame, reference: Threshold | None, rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """Answer, reason and numbers of one model and task."""
    metric = str(part["metric"].iloc[0])
    if metric not in METRICS:
        return _open(f"the metric {metric} has no bootstrap here")
    if reference is None or not reference.gain > 0:
        return _open("no gain near sr(W) is known that could be lost")
    labels = np.asarray(part["labels"].iloc[0], dtype=float)
    own = Edited(part, _answers(part, "answers"), labels, metric)
    if not np.isfinite(own.constant()):
        return _open("the base alone was not evaluated, which the edits of the family scale do")
    split = groups(own, gain=reference.gain, near=NEAR)
    counted = {"good": len(split.good), "collapsed": len(split.collapsed)}
    if min(counted.values()) < FEWEST:
        return _open(
            f"{counted['good']} good and {counted['collapsed']} collapsed trials were edited; "
            f"{FEWEST} of each are needed",
            **counted,
        )
    unchanged = part[part["family"].eq("scale") & part["level"].eq(1)].set_index("trial")
    u = float(unchanged.loc[split.collapsed, "log_drift"].abs().median())
    how: dict[str, Any] = {"rng": rng, "resamples": resamples}
    numbers: dict[str, Any] = {**counted, "gain": reference.gain, "drift": u, "share": HALF}
    regains, losses = {}, {}
    for head, column in HEADS.items():
        if part[column].isna().any():
            continue
        edited = Edited(part, _answers(part, column), labels, metric)
        changed = changes(edited, split.collapsed, **how)
        restored = changed[changed["family"].eq("restore")]
        if restored.empty:
            return _open("no trial has the edit restore", **numbers)
        regains[head] = restored["change"].iloc[0].times(edited.sign)
        losses[head], short = loss_at(edited, split.good, u, **how)
        numbers |= entries(f"regain_{head}", regains[head]) | entries(f"loss_{head}", losses[head])
        numbers |= {f"short_{head}": short}
        for name, members in (("good", split.good), ("collapsed", split.collapsed)):
            rows = records(_flat(changes(edited, members, **how)))
            numbers |= {f"changes_{name}_{head}": rows}
    half = dose(own, split.good, q=HALF, **how)
    numbers |= entries("half", half.u) | {"half_censored": half.censored}
    word = _word(
        list(regains.values()), list(losses.values()), HALF * reference.gain,
        short=numbers["short_own"], good=counted["good"],
    )  # fmt: skip
    reason = (
        f"{counted['collapsed']} collapsed trials regain {regains['own']:.3f} with sr(W) restored; "
        f"{_taken(numbers)}"
    )
    if "refitted" in regains:
        reason += f"; with a refitted head {regains['refitted']:.3f} and {losses['refitted']:.3f}"
    return {"answer": word, "reason": reason, **numbers}


def _word(
    regains: list[Interval], losses: list[Interval], needed: float, *, short: int, good: int
) -> str:
    """The first of each is with the trials' own head, which alone can support."""
    if not all(found.known for found in (*regains, *losses)) or _too_short(short, good):
        return "undecided"
    if regains[0].low > needed and losses[0].low > needed:
        return "supported"
    if not short and all(found.high < needed for found in (*regains, *losses)):
        return "contradicted"
    return "undecided"


def _open(reason: str, **numbers: Any) -> dict[str, Any]:
    return {"answer": "undecided", "reason": reason, **numbers}


def _answers(part: pd.DataFrame, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.stack([np.asarray(x, dtype=float) for x in part[column]])


def _flat(changed: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in ("change", "forgetting") if name in changed]
    bounds = [pd.DataFrame([entries(name, found) for found in changed[name]]) for name in names]
    return pd.concat([changed.drop(columns=names), *bounds], axis=1)
