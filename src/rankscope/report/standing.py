"""Compares an update with a study: with its thresholds, and with the drifts of its trials.

A reference is a small JSON object: per model and task of a study, H2's result and the last
checkpoint of every trial. One is in the package, from docs/results/minilm-glue.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from rankscope import __version__
from rankscope.analysis.conclusions import conclude
from rankscope.analysis.frames import Frames
from rankscope.console import grid, number, output, plain
from rankscope.report.from_store import open_frames

SHIPPED = "minilm-glue"
FIELDS = (
    "model", "task", "answer", "reason", "direction", "half_ratio", "half_ratio_low",
    "half_ratio_high", "base", "stable_rank", "stable_rank_low", "stable_rank_high", "constant",
    "gain",
)  # fmt: skip
WARNING = (
    "a threshold holds for its own model and task: for another one it is only a rough guide, and "
    "drift marks a loss there, without being shown to cause it"
)


def reference(store: str | Path) -> dict[str, Any]:
    """The reference from a store, or from the folder ``data`` beside a report."""
    found = open_frames(store)
    return of(str(store), found, conclude(found).to_dict())


def shipped() -> dict[str, Any]:
    """The reference in the package."""
    text = resources.files("rankscope.report").joinpath(f"{SHIPPED}.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def of(name: str, found: Frames, conclusions: Mapping[str, Any]) -> dict[str, Any]:
    """A reference from frames and their conclusions, as ``analyze --json`` prints them."""
    (H2,) = (v for v in conclusions["verdicts"] if v["hypothesis"] == "H2")
    thresholds = [{key: one.get(key) for key in FIELDS} for one in H2["numbers"]["thresholds"]]
    return {"name": name, "thresholds": thresholds, "trials": _trials(found)}


def _trials(found: Frames) -> list[dict[str, Any]]:
    last = found.checkpoints.groupby("trial", sort=True).tail(1)
    columns = {"log_drift": "drift", "rho": "rho", "metric_value": "metric"}
    kept = last[["model", "task", *columns]].rename(columns=columns)
    kept["drift"] = [math.expm1(x) for x in kept["drift"]]
    lines = kept.round(6).to_dict("records")
    return [{str(k): None if v != v else v for k, v in line.items()} for line in lines]


def standing(
    drift: float | None, rho: float | None, against: dict[str, Any]
) -> list[dict[str, Any]]:
    """For each model and task of the reference: ``place`` ("past", "at", "before" s*, or "no
    threshold"), ``sentence``, and the shares of trials that moved less: ``drift_share``,
    ``rho_share``."""
    lines = []
    for one in against["thresholds"]:
        trials = [
            t for t in against["trials"] if (t["model"], t["task"]) == (one["model"], one["task"])
        ]
        place = _place(drift, one)
        shares = {
            "drift_share": _share(_moved(drift), [_moved(t["drift"]) for t in trials]),
            "rho_share": _share(rho, [t["rho"] for t in trials]),
        }
        said = {"model": one["model"], "task": one["task"], "place": place, **shares}
        lines.append(said | {"trials": len(trials), "sentence": _sentence(place, one, shares)})
    return lines


def _place(drift: float | None, one: dict[str, Any]) -> str:
    """The interval of s* decides: inside it is "at"."""
    if one["answer"] != "supported" or one["half_ratio"] is None:
        return "no threshold"
    if drift is None:
        return "no drift"
    ratio, low, high = 1 + drift, one["half_ratio_low"], one["half_ratio_high"]
    if one["direction"] == "falls":
        past, before = low is not None and ratio < low, high is not None and ratio > high
    else:
        past, before = high is not None and ratio > high, low is not None and ratio < low
    return "past" if past else "before" if before else "at"


def _sentence(place: str, one: dict[str, Any], shares: dict[str, float | None]) -> str:
    where = f"{one['model']}, {one['task']}"
    if place == "no threshold":
        said = f"{where}: no threshold is shown there ({one['reason']})"
    elif place == "no drift":
        said = f"{where}: this update has no drift to compare"
    else:
        low, high = (
            "?" if x is None else f"{x:.0%}"
            for x in (one["half_ratio_low"], one["half_ratio_high"])
        )
        said = (
            f"{where}: {place} s*, {one['half_ratio']:.0%} [{low}, {high}] of sr(W), where half of "
            "the gain was lost"
        )
    share = shares["drift_share"]
    return said if share is None else f"{said}; further from W than {share:.0%} of its trials"


def _moved(drift: float | None) -> float | None:
    """|log ratio|; None if unknown."""
    return None if drift is None or drift <= -1 else abs(math.log1p(drift))


def _share(value: float | None, others: list[float | None]) -> float | None:
    known = [x for x in others if x is not None]
    return None if value is None or not known else sum(x < value for x in known) / len(known)


def trajectories(found: Sequence[Any]) -> dict[str, list[Any]]:
    """Run -> its judged checkpoints in the order of their steps, of runs with two or more."""
    runs: dict[str, list[Any]] = {}
    for one in found:
        if one.step is not None:
            runs.setdefault(one.run, []).append(one)
    return {
        run: sorted(own, key=lambda one: one.step)
        for run, own in runs.items()
        if len({one.step for one in own}) > 1
    }


def sentences(found: Sequence[Any]) -> list[str]:
    """A sentence per run: from its first to its last checkpoint."""
    said = []
    for run, own in trajectories(found).items():
        first, last = own[0], own[-1]
        parts = [
            f"{name} {form.format(a)} -> {form.format(b)}"
            for name, form in (("drift", "{:+.1%}"), ("rho", "{:.4g}"), ("stable_rank", "{:.4g}"))
            if (a := getattr(first, name)) is not None and (b := getattr(last, name)) is not None
        ]
        parts = [part.replace("stable_rank", "sr(dW)") for part in parts]
        said.append(f"{run}, step {first.step} -> {last.step}: {', '.join(parts)}")
    return said


def as_dict(found: Sequence[Any], base: str, against: dict[str, Any]) -> dict[str, Any]:
    """What ``judge --json`` prints. ``found``: what ``measurement.judge`` returned."""
    sources = [
        asdict(one)
        | {"run": one.run, "step": one.step, "standing": standing(one.drift, one.rho, against)}
        for one in found
    ]
    return {
        "rankscope": __version__,
        "base": base,
        "against": against["name"],
        "warning": WARNING,
        "sources": sources,
    }


def show(found: Sequence[Any], against: dict[str, Any]) -> None:
    """Prints one line per source, then its position relative to each threshold."""
    out = output()
    columns = ("layers", "drift", "lowest", "rho", "highest", "sr(dW)", "sr/r")
    lines = grid("source (medians of layers)", *columns)
    for one in found:
        cells = (
            str(one.layers), number(one.drift, "+.1%"), number(one.lowest_drift, "+.1%"),
            number(one.rho), number(one.highest_rho), number(one.stable_rank),
            number(one.utilisation, ".0%"),
        )  # fmt: skip
        lines.add_row(*map(plain, (one.source, *cells)))
    out.print(lines)
    for one in found:
        if one.undefined or one.skipped:
            kinds = ((one.undefined, "layers without a drift"), (one.skipped, "not measured"))
            left = ", ".join(f"{count} {what}" for count, what in kinds if count)
            out.print(plain(f"{one.source}: {left}"))
        for line in standing(one.drift, one.rho, against):
            out.print(plain(f"{one.source}: beside {against['name']}, {line['sentence']}"))
    for sentence in sentences(found):
        out.print(plain(sentence))
    out.print(plain(f"note: {WARNING}"))
