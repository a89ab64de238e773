"""A suggested rank's pattern from the weights of a store's trials, and its validation: the pattern,
a uniform rank and shuffled patterns of equal parameters, trained as a study of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankscope.analysis.rank_pattern import (
    DESIGNS,
    Layer,
    RankPattern,
    Validation,
    pattern_of,
    shuffled,
    validation,
)
from rankscope.analysis.suggest import Suggestion
from rankscope.linalg import singular_values
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.study.trial import LISTED, Trial
from rankscope.sweep.run import run
from rankscope.weights.lora_pairs import open_pairs

SEEDS = 5


def layers_of(store: Store, trials: Sequence[str]) -> dict[str, Layer]:
    """Each layer's energies, mean over the trials' best adapters.

    ``ValueError`` or ``OSError``, one line, where the weights are gone or no update is s B A.
    """
    found: dict[str, list[np.ndarray]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for id in trials:
        folder = store.folder(id, weights=True).path / "best"
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected the weights of trial {id}; found none")
        pairs = open_pairs(folder)
        for pair in pairs.pairs:
            update = pairs.read([pair])
            energy = singular_values(update)[0].square().numpy()
            shapes[pair.layer] = (update.shape[-2], update.shape[-1])
            found.setdefault(pair.layer, []).append(energy)
    return {name: Layer(*shapes[name], np.mean(values, axis=0)) for name, values in found.items()}


def rank_patterns(store: Store, suggestions: Sequence[Suggestion]) -> list[RankPattern | str]:
    """The pattern at each suggested rank, or why there is none."""
    found: list[RankPattern | str] = []
    for one in suggestions:
        try:
            found.append(_with_layers(store, one)[0])
        except (ValueError, OSError) as error:
            found.append(str(error))
    return found


def _with_layers(store: Store, one: Suggestion) -> tuple[RankPattern, dict[str, Layer]]:
    if one.rank is None:
        raise ValueError("no rank is suggested")
    trial = _trial(store, one)
    if trial.rank_pattern:
        raise ValueError("these trials have a rank_pattern already")
    layers = layers_of(store, one.trials)
    return pattern_of(layers, rank=one.rank, trials=len(one.trials)), layers


def _trial(store: Store, one: Suggestion) -> Trial:
    return next(trial for trial in store.planned() if trial.id == one.trials[0])


def validate(
    store: Store,
    suggestions: Sequence[Suggestion],
    *,
    to: str | Path | None = None,
    seeds: int = SEEDS,
    folder: Path | None = None,
    workers: int | None = 1,
    quiet: bool = False,
) -> list[Validation | str]:
    """Trains each suggestion's pattern beside a uniform rank and shuffled patterns. Safe to stop
    and call again.

    Args:
        to: the store of these trials; default: STORE-rank-pattern, beside the given one.
        seeds: how many; they follow the store's largest, since the pattern and the rate were
            chosen on those. Each has a shuffled pattern of its own.
        folder: what relative paths of models and data are relative to; default: this folder.
        workers: as in ``run``.

    -> per suggestion what was found, or why it has no pattern. ``ValueError``, one line, if none
    has one, or the trials were trained elsewhere.
    """
    if store.is_collected:
        raise ValueError(
            f"{store}: expected a store that rankscope trained; found collected trials, whose "
            "training cannot be repeated. Drop --validate"
        )
    if seeds < 2:
        raise ValueError(f"seeds: expected 2 or more, since an interval needs them; found {seeds}")
    first = 1 + max(max(part.seed) for part in (store.study.nuisance, *store.study.arm))
    designs: list[_Designs | str] = []
    for one in suggestions:
        try:
            designs.append(_Designs(store, one, range(first, first + seeds)))
        except ValueError as error:
            designs.append(str(error))
    able = [one for one in designs if isinstance(one, _Designs)]
    if not able:
        raise ValueError(f"{store}: nothing to validate: {designs[0]}")
    study = _study(store, able, folder)
    place = f"{store}-rank-pattern" if to is None else to
    trained = run(study, place, workers=workers, quiet=quiet)
    return [one if isinstance(one, str) else one.result(trained) for one in designs]


class _Designs:
    """The three designs of one suggestion: the ``rank_pattern`` of each, by seed."""

    def __init__(self, store: Store, one: Suggestion, seeds: Sequence[int]) -> None:
        found, layers = _with_layers(store, one)
        self.trial, self.seeds = _trial(store, one), seeds
        self.parameters = {
            "pattern": found.parameters,
            "uniform": found.uniform_parameters,
            "shuffled": found.parameters,
        }
        self.of: dict[str, dict[int, dict[str, int]]] = {
            "pattern": {seed: dict(found.ranks) for seed in seeds},
            "uniform": {seed: {} for seed in seeds},
            "shuffled": {seed: shuffled(found.ranks, layers, seed) for seed in seeds},
        }

    def arms(self, listed: Sequence[str]) -> list[dict[str, Any]]:
        """Arms of a study, with ``listed`` as this trial has it."""
        t = self.trial
        same: dict[str, Any] = {
            "model": t.model, "task": t.task, "method": "lora", "rank": t.rank,
            "scaling": t.scaling, "learning_rate": t.learning_rate,
        }  # fmt: skip
        for name in listed:
            value = getattr(t, name)
            same[name] = [1 if value is None else value]
        seeds = list(self.seeds)
        found = [
            same | {"seed": seeds, "rank_pattern": self.of[design][seeds[0]]}
            for design in ("uniform", "pattern")
        ]
        return found + [
            same | {"seed": seed, "rank_pattern": self.of["shuffled"][seed]} for seed in seeds
        ]

    def result(self, trained: Store) -> Validation:
        """Read from the trials' own files."""
        where = {}
        for trial in trained.planned():
            if self._is_own(trial):
                for design in DESIGNS:
                    if trial.rank_pattern == self.of[design].get(trial.seed):
                        where[trial.id] = design, trial.seed
        table = trained.trials()
        table = table[table["trial"].isin(list(where))]
        reported = table["held_out"].fillna(table["best"]).astype(float)
        values: dict[str, dict[int, float]] = {
            d: dict.fromkeys(self.seeds, float("nan")) for d in DESIGNS
        }
        for id, value in zip(table["trial"], reported, strict=True):
            design, seed = where[id]
            values[design][seed] = value
        return validation(
            values,
            sign=1 if bool(table["greater_is_better"].all()) else -1,
            store=str(trained),
            metric=str(table["metric"].iloc[0]) if len(table) else "",
            parameters=self.parameters,
        )

    def _is_own(self, trial: Trial) -> bool:
        mine = self.trial.model_copy(
            update={"rank_pattern": trial.rank_pattern, "seed": trial.seed, "setting": ""}
        )
        return mine.canonical() == trial.canonical()


def _study(store: Store, designs: Sequence[_Designs], folder: Path | None) -> Study:
    """A study of these arms alone, with the store's fixed parameters."""
    old = store.study
    parts = (old.scientific, *old.arm)
    listed = [
        name
        for name in LISTED
        if name != "rank_pattern" and any(getattr(part, name) is not None for part in parts)
    ]
    (first, *arms) = [arm for one in designs for arm in one.arms(listed)]
    nuisance = ("learning_rate", "seed")
    study = Study(
        name=f"{old.name[:60]}-rank-pattern",
        scientific={key: value for key, value in first.items() if key not in nuisance},
        nuisance={key: first[key] for key in nuisance},
        fixed=old.fixed,
        arm=arms,
        task=old.task,
    )
    return study if folder is None else study.model_copy(update={"folder": folder})
