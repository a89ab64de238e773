"""What the estimates say about H2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankscope.analysis.inference import Interval
from rankscope.analysis.threshold.threshold import FEWEST, GRADUAL, HALF, UNLEARNT, Threshold
from rankscope.analysis.verdicts.verdict import (
    MOST_NAMED,
    Verdict,
    answer,
    counted,
    named,
    overall,
    records,
    sentence,
    where,
)

PREMISE_FAILS = "the premise fails"
BEFORE = "before training"  # a source of c0
MOSTLY = 0.5  # of the deepest quarter: held at three deviations beyond a constant answer
MARKER = "drift marks the loss here and is not shown to cause it"


def threshold_verdict(found: Sequence[Threshold]) -> Verdict:
    """Supported: in at least half of the pairs of model and task, and contradicted in none; and the
    reverse."""
    numbers: dict[str, Any] = {"thresholds": [_numbers(t) for t in found]}
    if not found:
        return answer("H2", "undecided", ["There is no LoRA trial to look at."], numbers)
    several = len({t.model for t in found}) > 1
    sentences = [_headline(found, several), *(_sentence(t, several) for t in found)]
    guessed = [t for t in found if t.source == "repeated value"]
    pretrained = [t for t in found if t.source == BEFORE]
    return answer(
        "H2",
        overall(t.answer for t in found),
        sentences,
        numbers,
        "Drift, learning rate and training time move together: a threshold says where "
        "performance is lost, not why.",
        "Intervals resample trials, at all rates and seeds of a task together; the share of the "
        "best gain leaves out one configuration at a time. Rules: docs/analysis.md.",
        "The metric of a constant answer was not recorded for "
        f"{named(_name(t, several) for t in guessed)}; it is "
        "taken from the value at which many evaluations stand exactly."
        if guessed
        else "",
        "Gain means what training adds to the pretrained model on "
        f"{named(_name(t, several) for t in pretrained)}: what the model loses beyond that is held "
        "at three standard deviations of an evaluation."
        if pretrained
        else "",
    )


def _headline(found: Sequence[Threshold], several: bool) -> str:
    held = [t for t in found if t.answer == "supported"]
    against = [t for t in found if t.answer == "contradicted"]
    failed = [t for t in against if t.reason.startswith(PREMISE_FAILS)]
    excluded = [t for t in against if t not in failed]
    open_ = [t for t in found if t.answer == "undecided"]
    parts = []
    if held and len(held) <= MOST_NAMED:
        places = named(f"{_share(t, t.half)} of sr(W) on {_name(t, several)}" for t in held)
        way = "below" if held[0].direction == "falls" else "above"
        parts.append(f"half of LoRA's gain over {_start(held)} is lost {way} {places}{_once(held)}")
    elif held:
        parts.append(
            f"half of LoRA's gain over {_start(held)} is lost past a drift on {len(held)} "
            f"of {len(found)} tasks"
        )
    if excluded:
        there = _listed(excluded, several)
        parts.append(f"a loss of a tenth of the gain is excluded on {there}{_once(excluded)}")
    if failed:
        parts.append(
            f"on {_listed(failed, several)} models near sr(W) do not reach the best values, so "
            f"there is no such drift{_once(failed)}"
        )
    gradual = [t for t in open_ if t.reason == GRADUAL]
    if gradual:
        there = _listed(gradual, several)
        if len(gradual) <= MOST_NAMED:
            there = named(f"{_name(t, several)} ({_share(t, t.half)} of sr(W))" for t in gradual)
        parts.append(
            f"on {there} half is lost, too, but no plateau before it is shown"
            if held
            else f"half of LoRA's gain over {_start(gradual)} is lost on {there}, but no plateau "
            "before it is shown, so that a threshold is not told from a steady decline"
        )
    silent = [t for t in open_ if t not in gradual]
    few = [t for t in silent if 0 < t.trials < FEWEST]
    if few:
        parts.append(f"{_listed(few, several)} {'has' if len(few) == 1 else 'have'} too few trials")
    if len(silent) > len(few):
        parts.append(
            f"no place is shown on {_listed([t for t in silent if t not in few], several)}"
        )
    return sentence([*parts, MARKER] if held else parts)


def _once(found: Sequence[Threshold]) -> str:
    """Said where all that an answer rests on is of one seed."""
    return " (one seed)" if all(t.seeds == 1 for t in found) else ""


def _start(found: Sequence[Threshold]) -> str:
    """What the gain is measured from."""
    if all(t.source == BEFORE for t in found):
        return "the pretrained model"
    if any(t.source == BEFORE for t in found):
        return "a constant answer, or the pretrained model,"
    return "a constant answer"


def _listed(found: Sequence[Threshold], several: bool) -> str:
    return (
        named(_name(t, several) for t in found)
        if len(found) <= MOST_NAMED
        else f"{len(found)} tasks"
    )


def _name(t: Threshold, several: bool) -> str:
    return where({"task": t.task, "model": t.model}, several)


def _sentence(t: Threshold, several: bool) -> str:
    """The answer of one model and task with its numbers. The loss wherever there is a gain near
    sr(W) that can be lost, a dose only where it is shown; all of them are in the table."""
    name = _name(t, several)
    if not t.loss.known or t.reason == UNLEARNT:
        return f"{name}: {t.answer}, {t.reason}."
    parts = [f"{name}: {t.answer}, {t.reason.split(':')[0]}"]
    if not t.reason.startswith(PREMISE_FAILS):
        way = "lower" if t.greater_is_better else "higher, which is worse,"
        more = " or more (worse values are held there)" if t.held > MOSTLY else ""
        parts = [
            f"{parts[0]}; beyond {_ratio(t, t.deep)} of sr(W) the metric is {way} by {t.loss:.3f}"
            f"{more}, of a gain of {t.gain:.3f} near sr(W)"
        ]
    if t.answer == "supported" or t.reason == GRADUAL:
        parts.append(f"half of the gain is lost at {_share(t, t.half)} of sr(W)")
        parts.append(f"s* = {_plain(t.stable_rank, '.1f')}")
        parts.append(
            f"drifted models keep {_plain(_percent(t.kept), '.0f')} % of the gain on a plateau "
            f"that ends at {_share(t, t.plateau)}"
        )
    if t.premise.known:
        of = counted(t.premise.clusters, "configuration") + (" of one seed" if t.seeds == 1 else "")
        parts.append(
            f"models near sr(W) reach the best values in all of {of}"
            if t.premise.low == t.premise.high == 1  # no width: nothing is estimated
            else f"models near sr(W) reach {_plain(_percent(t.premise), '.0f')} % of the best gain "
            f"({of})"
        )
    return ", ".join(parts) + "."


def _percent(found: Interval) -> tuple[float, float, float]:
    return 100 * found.estimate, 100 * found.low, 100 * found.high


def _ratio(t: Threshold, u: float) -> str:
    return f"{100 * np.exp(t.sign * u):.0f} %"


def _share(t: Threshold, dose: Interval) -> str:
    """A dose in per cent of sr(W)."""
    if not np.isfinite(dose.estimate):
        return "no visited share"
    mid, low, high = (100 * ratio for ratio in t.ratio(dose))
    ends = f"at most {high:.0f}" if low == 0 else f"{low:.0f}, {high:.0f}"
    return f"{mid:.0f} % [{ends}]"


def _plain(values: tuple[float, float, float], form: str) -> str:
    mid, low, high = (format(value, form).replace("-", "−") for value in values)
    return f"{mid} [{low}, {high}]"


def _numbers(t: Threshold) -> dict[str, Any]:
    row = records(t.to_frame())[0]
    row |= {"identified": t.identified, "half_share": HALF}
    return row | {
        "attained": records(t.attained),
        "brackets": records(t.brackets),
        "line": records(t.line),
    }
