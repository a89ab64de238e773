"""A small store of our own, with the weights of every evaluation kept beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
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
    return *stored(study, place), model


def stored(study: rs.Study, place: Path) -> tuple[Store, Path]:
    """-> the study's store; <id>/checkpoint-<step> with the weights of each evaluation."""
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
    return store, place / "saved"


def as_another_trainers_runs(store: Store, saved: Path, out: Path) -> str:
    """Trials of our own as another trainer's runs, and the map that says how they were trained."""
    rows = []
    metrics = store.metrics().drop(columns="metric_value")
    for trial in store.planned():
        folder = out / trial.id
        log: list[dict[str, Any]] = []
        for line in metrics[metrics["trial"].eq(trial.id)].to_dict("records"):
            step, epoch = int(line.pop("step")), line.pop("epoch")
            del line["trial"]
            log += [{"step": step, "epoch": epoch, "loss": line.pop("train_loss")}]
            log += [{"step": step, "epoch": epoch, **{_by_trainer(k): line[k] for k in line}}]
            shutil.copytree(saved / trial.id / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        state = {"global_step": step, "log_history": log, "best_model_checkpoint": None}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
        said = {k: v for k, v in trial.model_dump().items() if v is not None and k != "setting"}
        said["rank_pattern"] = json.dumps(trial.rank_pattern) if trial.rank_pattern else None
        said["target_modules"] = ",".join(trial.target_modules)
        result = store.folder(trial.id).result()
        start = {name: result.get(name) for name in ("constant", "untrained")}
        rows.append({"path": trial.id, **start, **said})
    pd.DataFrame(rows).dropna(axis="columns", how="all").to_csv(out / "map.csv", index=False)
    return str(out / "map.csv")


def _by_trainer(name: str) -> str:
    return name if name.startswith("eval_") else f"eval_{name}"


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
