"""A small store of our own, with the weights of every evaluation kept beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rankscope as rs
from rankscope.store.store import Store
from rankscope.train.run import Run
from studies import study_text


def own_store(
    model: str, data: Path, place: Path, *, own: str = "", **settings: Any
) -> tuple[Store, Path, str]:
    """-> a store, by default of twelve trials; <id>/checkpoint-<step> with the weights of each
    evaluation; the model. ``own``, ``settings``: of ``study_text``"""
    shape = {"rank": [1, 4], "learning_rate": [1e-3, 3e-2], "seed": [0, 1], "steps": 12}
    study = rs.Study.parse(study_text(model, "CoLA", data=data, own=own, **(shape | settings)))
    evaluate = Run.evaluate

    def saving(self: Run, step: int, *, epoch: float) -> None:
        evaluate(self, step, epoch=epoch)
        for k in self.alive.nonzero().flatten().tolist():
            weights = [group.values for group in self.pack.params]
            folder = place / "saved" / self.pack.trials[k].id / f"checkpoint-{step}"
            self.pack.save(k, weights, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "evaluate", saving)
        store = rs.run(study, place / "store", workers=1, quiet=True)
    return store, place / "saved", model


def assert_alike(one: Any, other: Any, where: str = "") -> None:
    """Equal up to the last digits: training measures trials in batches, which add in another
    order."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_alike(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_alike(a, b, f"{where}[{i}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9), where
    else:
        assert one == other, where
