"""The loss halfway between two trained trials, and how alike their features are (H4).

The loss barrier of a pair is the loss at the midpoint of its weights minus the mean of both losses
(Frankle et al. 2020, Linear mode connectivity), on the first validation rows, with the weights at
the end of training. Results are cached in the store, so that a pair is evaluated once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankscope.evaluation.evaluate import Evaluation
from rankscope.evaluation.matrices import experts
from rankscope.evaluation.midpoint import Half, halfway, halfway_rest, linear_cka
from rankscope.evaluation.pack import Edited, together
from rankscope.evaluation.trained import Trained, read_trained
from rankscope.store.files import DamagedFile, dumps, loads
from rankscope.store.interventions import weights_of
from rankscope.store.store import Store
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.loading import load_model
from rankscope.train.model import trained_in_full

ROWS = 256  # validation rows, the first ones
PAIRS = 64  # of one model and task
PACK = 8  # midpoints evaluated together at most
HELD = 2**31  # bytes of merged weights in a pack
CACHE = "cache/midpoints.json"
COLUMNS = ("barrier", "midpoint_loss", "cka")

Pair = tuple[str, str]  # trial, reference


class End(NamedTuple):
    """A trained trial: its mean loss, and its pooled features (N, d), if its head has them."""

    loss: float
    features: Tensor | None


@dataclass
class Kept:
    """Pairs that were evaluated before, with the same weights on the same rows."""

    store: Store
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, store: Store) -> Kept:
        try:
            return cls(store, loads(store.storage.read(CACHE), CACHE)["pairs"])
        except (FileNotFoundError, DamagedFile, KeyError):
            return cls(store)

    def key(self, pair: Pair) -> str:
        said = [ROWS, *pair, *(weights_of(self.store, trial) for trial in pair)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def get(self, pair: Pair) -> dict[str, Any] | None:
        return self.found.get(self.key(pair))

    def add(self, found: Mapping[Pair, Mapping[str, float]]) -> None:
        for pair, numbers in found.items():
            finite = {name: x if abs(x) < float("inf") else None for name, x in numbers.items()}
            self.found[self.key(pair)] = finite
        self.store.storage.write(CACHE, dumps({"pairs": self.found}))


def midpoints(
    store: Store,
    pairs: Sequence[Pair],
    inputs: StudyInputs | None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """``trial``, ``reference`` and COLUMNS, for at most PAIRS of each model and task; NaN where a
    number is not finite. Without ``inputs`` what the cache has."""
    kept = Kept.read(store)
    known = {t.id: t for t in store.planned()}
    chosen: dict[tuple[str, str], list[Pair]] = {}
    there = [pair for pair in pairs if known.keys() >= set(pair)]
    for pair in sorted(there, key=lambda pair: _order(*(known[id] for id in pair))):
        trial = known[pair[0]]
        of = chosen.setdefault((trial.model, trial.task), [])
        of += [pair] if len(of) < PAIRS else []
    for members in chosen.values():
        missing = [pair for pair in members if kept.get(pair) is None]
        trial = known[members[0][0]]
        if inputs is None or not missing or inputs.tasks[trial.task].is_language:
            continue
        group = _Group(store, inputs, trial, say)
        for found in group.evaluated(sorted(missing, key=lambda pair: pair[1])):
            kept.add(found)
    rows = [
        {"trial": pair[0], "reference": pair[1], **numbers}
        for members in chosen.values()
        for pair in members
        if (numbers := kept.get(pair)) is not None
    ]
    return pd.DataFrame(rows, columns=["trial", "reference", *COLUMNS])


def _order(trial: Trial, reference: Trial) -> tuple[Any, ...]:
    """Pairs that H4 is judged by come first: of the highest rank, and of different seeds."""
    rank = trial.rank or reference.rank or float("inf")
    return (-rank, trial.seed == reference.seed, trial.seed, reference.seed)


class _Group:
    """Trials of one model and task."""

    def __init__(
        self, store: Store, inputs: StudyInputs, trial: Trial, say: Callable[[str], None]
    ) -> None:
        self.store, self.say = store, say
        self.path, self.task = inputs.model_path(trial.model), inputs.tasks[trial.task]
        self.model = load_model(self.path, self.task)
        self.base = {key: p.detach() for key, p in self.model.named_parameters()}
        self.evaluation = self._evaluation(inputs, trial)
        self.half = lru_cache(maxsize=PACK + 1)(lambda id: Half.of(self.open(id)))

    def _evaluation(self, inputs: StudyInputs, trial: Trial) -> Evaluation:
        heads = trained_in_full(self.model)
        layers = [
            name
            for name, layer in self.model.named_modules()
            if isinstance(layer, nn.Linear | Conv1D) and name not in heads
        ]
        size = sum(4 * self.base[f"{name}.weight"].numel() for name in layers)
        layers += [expert for names in experts(self.base).values() for expert in names]
        return Evaluation(
            lambda: load_model(self.path, self.task),
            layers,
            self.task,
            inputs.encoded(trial)[1].first(ROWS),
            K=min(PACK, max(1, HELD // size)),
            device=inputs.device,
            mixed=trial.precision_on(inputs.device.type) == "bfloat16",
            say=self.say,
        )

    def open(self, id: str) -> Trained:
        folder: Path = self.store.folder(id, weights=True).path / "last"
        return read_trained(folder, self.model, self.task, base_path=self.path, name=id)

    def evaluated(self, pairs: Sequence[Pair]) -> Iterator[dict[Pair, dict[str, float]]]:
        """Barrier, loss at the midpoint and CKA of these pairs, pack by pack. Pairs of trials whose
        last weights can't be evaluated are left out, and named once."""
        ends = self._ends(sorted({id for pair in pairs for id in pair}))
        there = [pair for pair in pairs if ends.keys() >= set(pair)]
        for members, pack in _packs(self._midpoints(there), self.evaluation.pack.K):
            found = {}
            for pair, (loss, _) in zip(members, self.evaluation.losses(pack), strict=True):
                a, b = (ends[id] for id in pair)
                cka = float("nan")
                if a.features is not None and b.features is not None:
                    cka = linear_cka(a.features, b.features)
                found[pair] = {
                    "barrier": loss - (a.loss + b.loss) / 2,
                    "midpoint_loss": loss,
                    "cka": cka,
                }
            yield found

    def _ends(self, ids: Sequence[str]) -> dict[str, End]:
        ends: dict[str, End] = {}
        for members, pack in _packs(self._opened(ids), self.evaluation.pack.K):
            found = self.evaluation.losses(pack)
            ends |= {id: End(*one) for id, one in zip(members, found, strict=True)}
        return ends

    def _opened(self, ids: Sequence[str]) -> Iterator[tuple[str, Edited]]:
        for id in ids:
            try:
                trained = self.open(id)
            except (ValueError, OSError) as error:
                self.say(f"{id} has no loss barrier: {error}")
                continue
            yield id, Edited(trained, trained.updates)

    def _midpoints(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Edited]]:
        """Adapters beside one full fine-tune share its half of the rest, and so a pack."""
        rest: Mapping[str, Tensor] = {}
        of = ""
        for pair in pairs:
            a, b = (self.half(id) for id in pair)
            if a.rest or pair[1] != of:
                rest, of = halfway_rest(a, b, self.base), "" if a.rest else pair[1]
            yield pair, halfway(a, b, rest)


def _packs(found: Iterator[tuple[Any, Edited]], K: int) -> Iterator[tuple[list[Any], list[Edited]]]:
    """Groups of up to K that fit one pack, with their names."""
    names: list[Any] = []
    held: list[Edited] = []
    for name, one in found:
        if held and (len(held) == K or not together(held[0], one)):
            yield names, held
            names, held = [], []
        names.append(name)
        held.append(one)
    if held:
        yield names, held
