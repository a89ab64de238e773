"""Settings: the product of the lists in a study beside model, task, rank and scaling rule."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from rankscope.study.sections import Arm, Fixed
from rankscope.study.trial import LISTED, OF_FULL, Trial

MOST = 1_000_000  # trials of a study: a plan of 100,000 takes seconds
_NAMED = 8  # settings that a line names


@dataclass(frozen=True)
class Setting:
    """``values`` replace those of ``[fixed]``; ``listed``: values as the study writes them, if a
    trial has them in another form (``trial.setting_of``)."""

    values: dict[str, Any]
    listed: dict[str, str]


def settings(arm: Arm, fixed: Fixed, method: str) -> Iterator[Setting]:
    """The settings of an arm's trials by that method; a full fine-tune has no settings of
    factors."""
    names = LISTED if method == "lora" else OF_FULL
    lists = {name: values for name in names if (values := getattr(arm, name)) is not None}
    for chosen in itertools.product(*lists.values()):
        values = dict(zip(lists, chosen, strict=True))
        listed = {
            name: _written(values[name])
            for name in ("lora_alpha", "target_modules")
            if name in values
        }
        if values.get("lora_plus_ratio") == 1:
            values["lora_plus_ratio"] = None
        whole = {name: getattr(fixed, name) for name in LISTED} | values
        has_ratio = method == "lora" and whole["lora_plus_ratio"] is not None
        if has_ratio and whole["optimizer"] != "adamw":
            raise ValueError(
                'lora_plus_ratio: expected optimizer = "adamw" in every trial that has it; '
                f"found {whole['optimizer']!r}. Take an [[arm]] for one of them"
            )
        if method == "lora" and whole["rank_pattern"] and whole["optimizer"] == "muon":
            raise ValueError(
                'rank_pattern: expected optimizer = "adamw" or "sgd" in every trial that has it; '
                "found 'muon'. Take an [[arm]] for one of them"
            )
        yield Setting(values, listed)


def check_size(arms: Sequence[Arm]) -> None:
    """``ValueError`` if the lists multiply to more than ``MOST`` trials."""
    count = 0
    for arm in arms:
        lists = ["model", "task", "learning_rate", "seed"]
        lora = _product(arm, "rank", "scaling", *LISTED) if "lora" in arm.method else 0
        full = _product(arm, *OF_FULL) if "full" in arm.method else 0
        count += _product(arm, *lists) * (lora + full)
    if count > MOST:
        raise ValueError(
            f"expected lists that make at most {MOST:,} trials; found {count:,}. Shorten one of "
            "rank, learning_rate, seed"
        )


def _product(arm: Arm, *names: str) -> int:
    return prod(len(getattr(arm, name) or [None]) for name in names)


def compared(trials: Sequence[Trial], done: Collection[str] | None = None) -> list[str]:
    """One line on the settings that a study compares, with the LoRA trials of each (those of full
    fine-tuning in a study of nothing else), and how many of them are ``done``; none where there is
    one setting."""
    counted = [t for t in trials if t.method == "lora"] or trials
    planned = Counter(trial.setting for trial in counted)
    if len(planned) < 2:
        return []
    finished = Counter(trial.setting for trial in counted if done and trial.id in done)
    said = [
        f"{setting or 'default'} ({count if done is None else f'{finished[setting]} of {count}'})"
        for setting, count in planned.items()
    ]
    more = [f"{len(said) - _NAMED} more"] if len(said) > _NAMED else []
    what = "trials" if done is None else "trials done"
    return [f"settings compared ({what}): {'; '.join([*said[:_NAMED], *more])}"]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
