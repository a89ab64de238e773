"""What is given of a trial that was trained elsewhere, checked: settings, weights, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from rankscope.study.collected import trial_of
from rankscope.study.trial import ALL_LINEAR, CHANGES_BASE, Init, Trial
from rankscope.weights.checkpoints import read_json

CONFIG = "adapter_config.json"
_NOT_METRICS = ("trial", "metric_value")  # what ``Store.metrics`` adds
_LINE = ("step", "epoch", "train_loss", "eval_loss")
LOWER = ("loss", "perplexity", "error", "wer", "cer")  # ends of names of metrics


@dataclass(frozen=True)
class Added:
    """What is to be added: the trial, step -> weights in order, a line per evaluation, done.json's
    content, and what else trial.json says."""

    trial: Trial
    weights: Mapping[int, Path]
    lines: Sequence[dict[str, Any]]
    result: Mapping[str, Any]
    base: str | Path | None
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        adapter: str | Path | Mapping[int, str | Path],
        metrics: pd.DataFrame,
        metric: str,
        greater_is_better: bool | None,
        base: str | Path | None,
        result: Mapping[str, Any] | None,
        about: Mapping[str, Any] | None,
        settings: Mapping[str, Any],
    ) -> Added:
        """See ``Store.add_trial``."""
        lines = _lines(metrics, metric)
        said = dict(result or {})
        if isinstance(adapter, Mapping):
            weights = {int(step): Path(path).expanduser() for step, path in adapter.items()}
        else:
            weights = {_last_step(lines, said): Path(adapter).expanduser()}
        if not weights:
            raise ValueError("adapter: expected weights of at least one step; found none")
        weights = dict(sorted(weights.items()))
        for path in weights.values():
            if not path.is_dir():
                raise ValueError(f"{path}: expected a folder with weights; found none")
        trial = trial_of(_settings(weights, settings, base))
        if greater_is_better is None:
            greater_is_better = not metric.endswith(LOWER)
        found = _result(lines, metric, greater_is_better, weights)
        return cls(trial, weights, lines, found | said, base, dict(about or {}))

    @property
    def kept(self) -> dict[str, Path]:
        """What ``best`` and ``last`` are copies of: the weights at the best evaluation, where they
        were saved, else those of the last step."""
        last = self.weights[max(self.weights)]
        return {"best": self.weights.get(self.result["best_step"], last), "last": last}


def _settings(
    weights: Mapping[int, Path], settings: Mapping[str, Any], base: str | Path | None
) -> dict[str, Any]:
    """What is given, and what the adapter's configuration says beside it; ``ValueError`` where they
    disagree."""
    path = weights[max(weights)] / CONFIG
    said = {k: v for k, v in settings.items() if v is not None}
    if not path.is_file():
        if said.get("method") != "full":
            raise ValueError(
                f'{path.parent}: expected {CONFIG}, or method = "full" for a full checkpoint'
            )
        own: dict[str, Any] = {}
    else:
        own = _as_said(adapter_settings(path), said)
    for name in own.keys() & said.keys():
        if not _same(own[name], said[name]) and name != "model":
            raise ValueError(
                f"{name}: expected {own[name]!r}, as {path} says; found {said[name]!r:.80}"
            )
    found = own | said
    if found.get("method") == "full" and not found.get("target_modules"):
        found["target_modules"] = [ALL_LINEAR]
    if base is not None and "model" not in said:
        found["model"] = str(base)
    return found


def _as_said(own: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's settings in the words of ``said``, where these give the same scale: PEFT has no
    rule "alpha", whose adapters are saved with alpha = c r; and saves adapters of PiSSA and OLoRA
    for the pretrained base with twice their rank (its ``subtract_mutated_init``)."""
    found = dict(own)
    rank, alpha = said.get("rank"), found.get("lora_alpha")
    if said.get("init_lora_weights") in CHANGES_BASE and rank and found["rank"] == 2 * rank:
        found |= {"rank": rank, "init_lora_weights": said["init_lora_weights"]}
        if alpha is not None:
            root = found["scaling"] == "alpha/sqrt(r)"
            found["lora_alpha"] = alpha = alpha / (2**0.5 if root else 2)
        if pattern := found.get("rank_pattern"):
            found["rank_pattern"] = {name: r // 2 for name, r in pattern.items()}
    if said.get("scaling") == "alpha" and found["scaling"] == "alpha/r" and alpha is not None:
        found |= {"scaling": "alpha", "lora_alpha": alpha / found["rank"]}
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list | tuple):
        return sorted(map(str, one)) == sorted(map(str, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def adapter_settings(path: Path) -> dict[str, Any]:
    """What adapter_config.json says of a trial. ``ValueError``, one line, for what is no PEFT
    LoRA."""
    content = read_json(path)
    rank, alpha = content.get("r"), content.get("lora_alpha")
    if content.get("peft_type") != "LORA" or not isinstance(rank, int):
        kind = content.get("peft_type")
        raise ValueError(
            f"{path}: expected the configuration of a LoRA adapter; found {kind!r:.40}"
        )
    start = content.get("init_lora_weights", True)
    start = start.lower() if isinstance(start, str) else True
    targets, pattern = content.get("target_modules") or [], content.get("rank_pattern") or {}
    return {
        "method": "lora",
        "rank": rank,
        "scaling": "alpha/sqrt(r)" if content.get("use_rslora") else "alpha/r",
        **({"rank_pattern": pattern} if pattern else {}),
        **({"use_dora": True} if content.get("use_dora") is True else {}),
        **({"init_lora_weights": start} if start in get_args(Init) and start is not True else {}),
        **({"lora_alpha": float(alpha)} if isinstance(alpha, int | float) else {}),
        **({"lora_dropout": content["lora_dropout"]} if "lora_dropout" in content else {}),
        "target_modules": [targets] if isinstance(targets, str) else sorted(map(str, targets)),
        **(
            {"model": content["base_model_name_or_path"]}
            if isinstance(content.get("base_model_name_or_path"), str)
            else {}
        ),
    }


def _lines(metrics: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    """A line per evaluation, by step. ``ValueError`` if the table is not one of evaluations."""
    columns = [str(name) for name in metrics.columns]
    if "step" not in columns:
        raise ValueError(f"metrics: expected a column step; found {', '.join(columns) or 'none'}")
    if len(metrics) and metric not in columns:
        raise ValueError(f"metrics: expected a column {metric}; found {', '.join(columns)}")
    steps = pd.to_numeric(metrics["step"], errors="coerce")
    if (
        not (steps.notna() & steps.ge(0) & steps.eq(steps.round())).all()
        or steps.duplicated().any()
    ):
        raise ValueError("metrics: expected one row per step, whole numbers from 0")
    names = [*_LINE, *(n for n in columns if n not in (*_LINE, *_NOT_METRICS))]
    ordered = metrics.assign(step=steps.astype("int64")).sort_values("step").reindex(columns=names)
    lines = []
    for values in ordered.itertuples(index=False, name=None):
        line = dict(zip(names, values, strict=True))
        known = {name: _number(name, value) for name, value in line.items()}
        lines.append(known | {"step": int(line["step"])})
    return lines


def _number(name: str, value: Any) -> float | bool | None:
    if value is None or pd.isna(value):
        return None
    if isinstance(value, bool) or name == "is_constant":
        return bool(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"metrics: {name}: expected numbers; found {value!r:.40}") from None


def _last_step(lines: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> int:
    if "steps" in said:
        return int(said["steps"])
    if not lines:
        raise ValueError(
            "adapter: expected {step: folder}, since metrics has no row to say the step"
        )
    return int(lines[-1]["step"])


def _result(
    lines: Sequence[Mapping[str, Any]], metric: str, greater: bool, weights: Mapping[int, Path]
) -> dict[str, Any]:
    """done.json: the best evaluation, the first of several."""
    scored = [line for line in lines if line[metric] is not None]
    best = None
    if scored:
        best = (max if greater else min)(scored, key=lambda line: line[metric])
    last = lines[-1][metric] if lines else None
    steps = max([*weights, *(line["step"] for line in lines)])
    return {
        "status": "done",
        "metric": metric,
        "best": best and best[metric],
        "best_step": best["step"] if best else max(weights),
        "last": last,
        "constant": None,
        "steps": steps,
        "diverged_at": None,
        "seconds": None,
        **({} if greater else {"greater_is_better": False}),
    }
