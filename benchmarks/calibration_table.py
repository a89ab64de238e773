"""The lines of `calibration.py` as a page of Markdown."""

from __future__ import annotations

import numpy as np
import pandas as pd


def table(lines: pd.DataFrame) -> str:
    """Coverage, bias, false claims and power, ours beside the naive estimators'."""
    sets = {name: rows.reset_index(drop=True) for name, rows in lines.groupby("set")}
    parts = [HEAD.format(studies=f"{len(lines):,}", seconds=lines["seconds"].mean())]
    if "threshold" in sets:
        parts += [_main(sets), _strata(sets["threshold"])]
    if "none" in sets:
        parts.append(_claims(sets["none"]))
    if "power" in sets:
        parts.append(_power(sets["power"]))
    if "seeds" in sets:
        parts.append(_seeds(sets["seeds"]))
    return "\n\n".join(parts)


HEAD = """# Calibration by simulation

Written by `benchmarks/calibration.py`; {studies} simulated studies with known truth, {seconds:.2f} s of one core each. A study
has 20 to 100 LoRA trials (4 ranks, 5 learning rates, 1 to 10 seeds) with 5 or 10 evaluations. Random in each: the exponent b
(0 to 1), the direction of the drift, the threshold (0.4 to 1.4 in log drift, of a range near 3), the steepness of the
decline, the noise (0.005 to 0.05), how much of it a trial's evaluations share (none, half, four fifths of the variance),
and whether small updates perform 0.2 below the plateau, a rise whose shape is not the one that is fitted.
Naive: rows count as independent. For b a line through all rows with the percentile bootstrap; for the threshold a
grid search for the kink with the percentile bootstrap over rows and the p-value of the slope as if the kink had been known;
and the t test of a straight line."""


def _main(sets: dict[str, pd.DataFrame]) -> str:
    found, none = sets["threshold"], sets.get("none")
    held = found[found["claimed"]]
    error, naive = _error(held, "t", "threshold"), _error(found, "naive_t", "threshold")
    both = pd.concat([found, none]) if none is not None else found
    rows = [
        [
            "95 % intervals of s*_r that hold the truth, of those reported",
            _covered(held, "t", "threshold"),
            "92 to 98 %",
            _covered(found, "naive_t", "threshold"),
        ],
        ["the same, of all fits", _covered(found, "t", "threshold"), "", ""],
        [
            "bias of s*_r's log drift, in per cent of the range",
            _share(error / held["range"]),
            "below 5 %",
            _share(naive / found["range"]),
        ],
        [
            "median absolute error of it, log drift",
            f"{error.abs().median():.3f}",
            "",
            f"{naive.abs().median():.3f}",
        ],
        ["direction right", f"{100 * held['right_way'].mean():.1f} %", "", ""],
        [
            "95 % intervals of b that hold the truth",
            _covered(both, "b", "true_b"),
            "92 to 98 %",
            _covered(both, "naive_b", "true_b"),
        ],
        [
            "bias of b, in per cent of the range 0 to 1",
            _share(_error(both, "b", "true_b")),
            "below 5 %",
            _share(_error(both, "naive_b", "true_b")),
        ],
    ]
    if none is not None:
        kink = 100 * np.mean([found[3] <= 0.05 for found in none["naive_t"]])
        rows.append(
            [
                "a threshold claimed where there is none",
                f"{100 * none['claimed'].mean():.1f} %",
                "at most 6 %",
                f"{kink:.1f} %",
            ]
        )
    title = f"## What was asked ({len(found):,} studies with a threshold, {0 if none is None else len(none):,} without)"
    return f"{title}\n\n" + _markdown(["", "rankscope", "target", "naive"], rows)


def _strata(found: pd.DataFrame) -> str:
    held = found[found["claimed"]].copy()
    held["noise, sd"] = pd.cut(held["noise"], [0, 0.01, 0.02, 0.05])
    held["slope of the decline"] = pd.cut(held["decline"], [0, 0.15, 0.3, 0.6])
    held["noise shared in a trial"] = (
        (held["trial_noise"] / held["noise"]).round().map({0: "none", 1: "1/2", 2: "4/5"})
    )
    rows = []
    for name in (
        "noise, sd",
        "slope of the decline",
        "noise shared in a trial",
        "warmup",
        "seeds",
        "evaluations",
    ):
        for value, part in held.groupby(name, observed=True):
            bias = _share(_error(part, "t", "threshold") / part["range"])
            rows.append([name, str(value), str(len(part)), _covered(part, "t", "threshold"), bias])
    head = ["", "", "studies", "s*_r covered", "bias, of the range"]
    return "## By kind of study\n\n" + _markdown(head, rows)


def _claims(none: pd.DataFrame) -> str:
    rows = []
    for shape, part in none.groupby("shape"):
        kink = np.mean([found[3] <= 0.05 for found in part["naive_t"]])
        line = (part["naive_line"] <= 0.05).mean()
        rows.append(
            [shape, str(len(part)), *(f"{100 * x:.1f} %" for x in (part["claimed"].mean(), kink, line))]
        )
    head = [
        "what there is instead",
        "studies",
        "threshold claimed",
        "naive: kink claimed",
        "naive: straight line claims a fall",
    ]
    return (
        "## No threshold\n\nA straight line cannot tell a decline from a threshold at all.\n\n"
        + _markdown(head, rows)
    )


def _power(power: pd.DataFrame) -> str:
    cells = power.pivot_table(index="fall", columns="seeds", values="claimed")
    cover = power[power["claimed"]].groupby("fall").apply(lambda rows: _covered(rows, "t", "threshold"))
    rows = [
        [f"{fall:g}", f"{fall / 0.02:g}", *(f"{100 * x:.0f} %" for x in row), cover.get(fall, "")]
        for fall, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    head = ["fall of the metric past the threshold", "in noise sd"]
    head += [f"found, {20 * seeds} trials" for seeds in cells.columns] + ["of these, s*_r covered"]
    return (
        "## Power\n\nNoise 0.02 in each evaluation and as much in each trial, 5 evaluations, threshold 0.9; "
        f"{len(power) // cells.size} studies a cell. Where most thresholds are missed, those that are found are the lucky "
        "ones, and their intervals cover less.\n\n" + _markdown(head, rows)
    )


def _seeds(seeds: pd.DataFrame) -> str:
    rows = [
        [
            str(count),
            part["b_cluster"].iloc[0],
            _covered(part, "b", "true_b"),
            _covered(part, "naive_b", "true_b"),
            f"{np.median([high - low for _, low, high in part['b']]):.3f}",
        ]
        for count, part in seeds.groupby("seeds")
    ]
    head = ["seeds", "clusters", "b covered", "naive", "median width"]
    return (
        "## Repetitions, and the interval of b\n\nWith one seed the interval resamples layers; it speaks for these layers and "
        "this seed, and says so. From two seeds on it is Student's interval over seeds.\n\n"
        + _markdown(head, rows)
    )


def _covered(rows: pd.DataFrame, name: str, truth: str) -> str:
    hits = [
        found is not None and found[1] <= t <= found[2]
        for found, t in zip(rows[name], rows[truth], strict=True)
    ]
    return f"{100 * np.mean(hits):.1f} %" if hits else "–"


def _error(rows: pd.DataFrame, name: str, truth: str) -> pd.Series:
    return pd.Series([found[0] for found in rows[name]], index=rows.index) - rows[truth]


def _share(values: pd.Series) -> str:
    return f"{100 * values.mean():+.2f} %".replace("-", "−")


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
