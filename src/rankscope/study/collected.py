"""Trials that were trained elsewhere: a ``Trial`` with None for unknown settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankscope.study.sections import Fixed, Nuisance, Scientific
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial, setting_of

# settings that the analysis needs
NEEDED = ("model", "task", "method", "learning_rate", "seed")
# settings that may be unknown: placeholders while the others are validated
_STAND_IN: dict[str, Any] = {
    "rank": None,
    "scaling": None,
    "batch_size": 1,
    "epochs": None,
    "steps": None,
    "max_length": 4,
    "train_rows": None,
    "validation_rows": None,
    "eval_every": 1,
    "target_modules": [],
    "lora_alpha": None,
    "lora_dropout": 0.0,
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "max_grad_norm": 1.0,
    "adam_betas": (0.9, 0.999),
    "adam_epsilon": 1e-8,
}


def trial_of(settings: Mapping[str, Any]) -> Trial:
    """A trial from its known settings. Unknown ones are None, except the optimiser's, which take
    the defaults of ``Trial``.

    ``ValueError``, one line, for a name that no trial has, for a value of another kind, and where
    one of ``NEEDED``, or LoRA's rank, is missing.
    """
    given = {name: _plain(value) for name, value in settings.items() if value is not None}
    for name in given:
        if name not in Trial.model_fields:
            near = difflib.get_close_matches(name, Trial.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name}: no setting of a trial has this name{hint}")
    needed = (*NEEDED, "rank") if given.get("method") == "lora" else NEEDED
    for name in needed:
        if name not in given:
            raise ValueError(f"{name}: expected a value, found none")
    if given["method"] == "full" and given.keys() & {"rank", "scaling", "lora_alpha"}:
        raise ValueError("rank, scaling and lora_alpha: expected none with method = 'full'")
    if given["method"] == "lora":
        given.setdefault("scaling", "alpha/r")
    try:
        checked = Trial(**(_STAND_IN | given))
    except ValidationError as error:
        first = error.errors()[0]
        where = first["loc"][0] if first["loc"] else "trial"
        message = first["msg"].removeprefix("Input should be ")
        raise ValueError(f"{where}: expected {message}; found {first['input']!r:.80}") from None
    if checked.rank is not None and checked.rank < 1:
        raise ValueError(f"rank: expected a whole number from 1; found {checked.rank}")
    if not checked.learning_rate > 0:
        raise ValueError(f"learning_rate: expected a number above 0; found {checked.learning_rate}")
    known = {name: getattr(checked, name) for name in Trial.model_fields}
    return Trial.model_construct(**(known | dict.fromkeys(_STAND_IN.keys() - given.keys())))


def settings_of(trials: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The setting of each trial (``setting_of``) from its configuration. ``lora_alpha`` and
    ``target_modules``, which a study names where it lists them, are named where adapters differ in
    nothing else, and then the layers at which full fine-tunes are measured: they are never
    pooled."""
    adapters = {id: values for id, values in trials.items() if values["method"] == "lora"}
    alphas = {v.get("lora_alpha") for v in adapters.values()} - {None}
    shares = {v["lora_alpha"] / v["rank"] for v in adapters.values() if v.get("lora_alpha")}
    by_rank = len(shares) <= len(alphas)

    def told(name: str, values: Mapping[str, Any]) -> str:
        value = values.get(name)
        if value is None:
            return "unknown"
        if name == "lora_alpha":
            return f"{value / values['rank']:g}r" if by_rank else f"{value:g}"
        return "+".join(value)

    listed = []
    for name in ("lora_alpha", "target_modules"):
        seen: dict[tuple[Any, ...], set[str]] = {}
        for values in adapters.values():
            same = tuple(values.get(key) for key in ("model", "task", "rank", "scaling"))
            seen.setdefault((*same, setting_of(values)), set()).add(told(name, values))
        if any(len(kinds) > 1 for kinds in seen.values()):
            listed.append(name)
    layers = {told("target_modules", v) for v in trials.values() if v["method"] == "full"}
    of_full = ["target_modules"] if "target_modules" in listed or len(layers) > 1 else []
    return {
        id: setting_of(
            values, {name: told(name, values) for name in (listed if id in adapters else of_full)}
        )
        for id, values in trials.items()
    }


def _plain(value: Any) -> Any:
    """numpy scalars as Python numbers."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def study_of(name: str, trials: Sequence[Trial]) -> Study:
    """The study of a store of such trials: its name, and lists of the trials' settings. The trials
    are not the product of these lists: ask the store for them."""

    def every(key: str) -> list[Any]:
        return list(dict.fromkeys(x for t in trials if (x := getattr(t, key)) is not None))

    scientific = Scientific.model_construct(
        model=every("model"),
        task=every("task"),
        method=every("method"),
        rank=every("rank"),
        scaling=every("scaling"),
    )
    nuisance = Nuisance.model_construct(learning_rate=every("learning_rate"), seed=every("seed"))
    return Study.model_construct(
        name=name,
        scientific=scientific,
        nuisance=nuisance,
        fixed=Fixed(),
        arm=[],
        task={},
        source=text_of(name, trials),
        folder=Path("."),
    )


def text_of(name: str, trials: Sequence[Trial]) -> str:
    """The same as text for a report."""
    lines = [f"# {name}: {len(trials)} trials that were trained elsewhere, and collected"]
    for key in ("model", "task", "method", "rank", "scaling", "learning_rate", "seed"):
        found = {x for t in trials if (x := getattr(t, key)) is not None}
        if found:
            lines.append(f"# {key}: {', '.join(map(str, sorted(found)))}")
    return "\n".join(lines) + "\n"
