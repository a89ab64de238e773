"""The lines of `calibration.py` as a page of Markdown."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

HEAD = """# Calibration by simulation

Written by `benchmarks/calibration.py`: {studies:,} simulated studies with known truth, {seconds:.2f} s of one core each. What each
scenario is stands in `benchmarks/calibration_scenarios.py` (H2) and `calibration_effects.py`; "real" ones have the drifts and sizes of
[minilm-glue](../minilm-glue/README.md) and a simulated metric. A 95 % interval should hold the truth in 92 to 98 % of the
studies. With n studies a share of 95 % is known to about ± {margin:.1f} points (two standard errors, n = {each})."""


def table(lines: pd.DataFrame) -> str:
    """Coverage, bias and claims of every scenario."""
    each = int(lines.groupby("scenario").size().median())
    margin = 200 * math.sqrt(0.95 * 0.05 / each)
    head = HEAD.format(
        studies=len(lines), seconds=lines["seconds"].mean(), margin=margin, each=each
    )
    order = list(dict.fromkeys(lines["scenario"]))
    parts = [head, _thresholds(lines, order)]
    for name, title in (("b", "H1: the exponent b"),
                        ("slope", "H3: the slope past the knot"), ("contrast", "H4: the contrast"),
                                                      ("exponent", "H5: exponent of the best rate"),
                        ("to_full", "H5: LoRA's best rate over full fine-tuning's")):  # fmt: skip
        parts.append(_intervals(lines, order, name, title))
    return "\n\n".join(part for part in parts if part)


def _thresholds(lines: pd.DataFrame, order: list[str]) -> str:
    rows = []
    for name in order:
        part = lines[
            lines["scenario"].eq(name) & lines.get("half", pd.Series(index=lines.index)).notna()
        ]
        part = (
            part[[isinstance(value, list) and value[0] is not None for value in part["half"]]]
            if len(part)
            else part
        )
        if part.empty:
            continue
        exists = np.isfinite(part["true_half"].astype(float)).all()
        error = [
            found[0] - truth for found, truth in zip(part["half"], part["true_half"], strict=True)
        ]
        finite = [value for value in error if math.isfinite(value)]
        rows.append(
            [
                name,
                str(len(part)),
                _covered(part, "half"),
                f"{np.median(finite):+.3f}".replace("-", "−") if exists and finite else "–",
                _share([math.isfinite(found[2]) for found in part["half"]]),
                _share(part["answer"].eq("supported")),
                _share(part["answer"].eq("contradicted")),
                _covered(part, "loss"),
            ]
        )
    header = ["scenario", "studies", "u*₀.₅ covered", "median error", "upper end finite",
              "supported", "contradicted",
              "loss covered"]  # fmt: skip
    return (
        "## H2: the drift at which half of the gain is lost\n\nWhere no such drift exists "
        "(flat), covered means an "
        "open upper end, and a finite one is a false claim.\n\n" + _markdown(header, rows)
    )


def _intervals(lines: pd.DataFrame, order: list[str], name: str, title: str) -> str:
    if name not in lines:
        return ""
    rows = []
    for scenario in order:
        part = lines[lines["scenario"].eq(scenario)]
        part = part[[isinstance(value, list) for value in part[name]]]
        if part.empty:
            continue
        known = part[[math.isfinite(value[1]) for value in part[name]]]
        error = [
            value[0] - truth for value, truth in zip(part[name], part[f"true_{name}"], strict=True)
        ]
        width = [value[2] - value[1] for value in known[name]]
        rows.append(
            [
                scenario,
                str(len(part)),
                str(len(known)),
                _covered(known, name),
                f"{np.nanmedian(error):+.3f}".replace("-", "−"),
                f"{np.median(width):.3f}" if width else "–",
            ]
        )
    header = ["scenario", "studies", "with an interval", "covered", "median error", "median width"]
    return f"## {title}\n\n" + _markdown(header, rows)


def _covered(rows: pd.DataFrame, name: str) -> str:
    slack = 1e-9
    hits = [
        found[1] - slack <= truth <= found[2] + slack
        for found, truth in zip(rows[name], rows[f"true_{name}"], strict=True)
        if found[1] is not None and not math.isnan(found[1])
    ]
    return f"{100 * np.mean(hits):.1f} %" if hits else "–"


def _share(values: object) -> str:
    return f"{100 * np.mean(np.asarray(values, dtype=float)):.1f} %"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
