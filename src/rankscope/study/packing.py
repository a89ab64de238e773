"""Groups trials into packs that train together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from rankscope.study.trial import Trial

# settings that all trials of a pack share, besides the target modules
_SHARED = {
    "lora": attrgetter(
        *Trial.model_fields.keys()
        - {"rank", "rank_pattern", "scaling", "learning_rate", "lora_alpha"}
        - {"target_modules", "setting"}
    ),
    "full": attrgetter("id"),
}


def no_share(trial: Trial) -> float:
    """For unlimited memory."""
    return 0.0


def packs(
    trials: Iterable[Trial], *, size: int, share: Callable[[Trial], float] = no_share
) -> list[list[Trial]]:
    """Groups of at most ``size`` trials that can train together, of similar rank so that little is
    padded.

    Members share model, task, seed, batches and budget; rank, scaling and learning rate differ.
    Full fine-tunes train alone: they share no frozen weight. ``share`` is the part of the memory
    that a trial takes: that of a pack of several is at most 1.
    """
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        shared = _SHARED[trial.method](trial)
        key = (*shared, *trial.target_modules)
        groups.setdefault(key, []).append(trial)
    result: list[list[Trial]] = []
    for group in groups.values():
        group.sort(key=lambda t: (t.largest_rank, t.scaling or "", t.learning_rate))
        result += _cut(group, size, [share(trial) for trial in group])
    return result


def _cut(group: list[Trial], size: int, shares: list[float]) -> list[list[Trial]]:
    """As few parts as possible: of nearly equal length if that fits (9 trials are 5 + 4, not 8 +
    1), else filled in turn."""

    def fits(part: slice) -> bool:
        length = part.stop - part.start
        return length == 1 or (length <= size and sum(shares[part]) <= 1)

    filled = [slice(0, 1)]
    for i in range(1, len(group)):
        longer = slice(filled[-1].start, i + 1)
        filled[-1:] = [longer] if fits(longer) else [filled[-1], slice(i, i + 1)]
    bounds = [round(i * len(group) / len(filled)) for i in range(len(filled) + 1)]
    even = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    return [group[part] for part in (even if all(map(fits, even)) else filled)]
