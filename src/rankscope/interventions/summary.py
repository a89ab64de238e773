"""Summarises edits by means over trials, for a terminal and as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid

from rankscope.console import output, plain
from rankscope.interventions.settings import OWN

_WHERE = ["model", "task", "method", "rank", "scaling", "setting", "learning_rate"]
_HIDDEN = ("answers", "refit_answers")
SHOWN = 2000  # lines on a terminal


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over draws and trials of one configuration: ``value``; ``change`` from each trial's
    unedited value (scale 1); ``forgotten``, the rise of the language loss over the base's; medians
    of ``ratio`` = sr(W + dW) / sr(W) and ``rho``. One line per configuration, scope, family and
    level, in the order of the families."""
    where = [name for name in _WHERE if name in table]
    trial = table["trial"] if "trial" in table else pd.Series(0, index=table.index)
    own = table["family"].eq(OWN[0]) & table["level"].eq(OWN[1]) & table["scope"].eq("all")
    lines = table.assign(trial=trial, ratio=np.exp(table["log_drift"]), order=np.arange(len(table)))
    for name in ("value", "refit_value"):
        before = lines[own].set_index("trial")[name].astype(float)
        change = "change" if name == "value" else "refit_change"
        lines[change] = lines[name].astype(float) - lines["trial"].map(before)
    if "lm_loss" in lines:
        lines["forgotten"] = lines["lm_loss"] - lines["base_lm_loss"]
    else:
        lines["forgotten"] = np.nan
    found = lines.groupby([*where, "scope", "family", "level"], dropna=False, as_index=False).agg(
        trials=("trial", "nunique"), ratio=("ratio", "median"), rho=("rho", "median"),
        value=("value", "mean"), change=("change", "mean"), loss=("loss", "mean"),
        refit_value=("refit_value", "mean"), refit_change=("refit_change", "mean"),
        feature_sd=("feature_sd", "median"), forgotten=("forgotten", "mean"),
        order=("order", "min"),
    )  # fmt: skip
    return found.sort_values([*where, "order"], ignore_index=True).drop(columns="order")


def show(table: pd.DataFrame) -> None:
    """Prints the summary. Names come from untrusted files: they are printed as plain text."""
    lines = summary(table)
    out = output()
    several = [c for c in _WHERE if c in lines and lines[c].nunique(dropna=False) > 1]
    scopes = ["scope"] if lines["scope"].nunique() > 1 else []
    refits = [] if lines["refit_value"].isna().all() else ["refit_value", "refit_change"]
    forgotten = [] if lines["forgotten"].isna().all() else ["forgotten"]
    columns = [
        *several, *scopes, "family", "level", "trials", "ratio", "rho", "value", "change", "loss",
        *refits, "feature_sd", *forgotten,
    ]  # fmt: skip
    grid = Grid(*(name.replace("_", " ") for name in columns), box=SIMPLE_HEAD)
    for line in lines[columns].head(SHOWN).itertuples(index=False):
        grid.add_row(*(plain(_shown(value)) for value in line))
    out.print(grid)
    if len(lines) > SHOWN:
        out.print(f"{len(lines) - SHOWN} more lines: type --json")
    if forgotten:
        loss = table["base_lm_loss"].iloc[0]
        out.print(
            f"language loss of the base: {loss:.4g} nats a token; forgotten: the rise over it"
        )
    if lower := sorted(set(table["metric"]) & {"eval_loss"}):
        out.print(f"{lower[0]}: lower is better, in nats a token; a change above 0 is a loss")
    base = table["base_feature_sd"].dropna()
    if len(base):
        out.print(f"pooled features of the base: standard deviation {base.iloc[0]:.3g}")


def as_json(table: pd.DataFrame) -> str:
    """All lines without the answers; unknown values are null."""
    kept = table.drop(columns=[name for name in _HIDDEN if name in table])
    rows: list[dict[str, Any]] = json.loads(kept.to_json(orient="records", double_precision=15))
    return json.dumps({"rows": rows}, indent=1)


def _shown(value: Any) -> str:
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
