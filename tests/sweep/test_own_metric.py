"""A metric of the user's own: a function, with its direction, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rankscope as rs
from language import save_language_model, study_of
from rankscope.study.study_file import Study
from studies import study_text


def brier(logits: np.ndarray, labels: np.ndarray) -> float:
    """Of the share of the right class: lower is better."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return float(((1 - shares[np.arange(len(labels)), labels]) ** 2).mean())


def loaded(models: dict[str, str], data: Path) -> Study:
    text = study_text(
        models["roberta"], "CoLA", rank=[1, 4], learning_rate=[1e-3, 1e-1], data=data, steps=24,
        target_modules=["query", "value"],
    )  # fmt: skip
    return Study.parse(text)


def test_it_chooses_checkpoints_and_rates_and_stands_beside_the_tasks_own(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    study = loaded(tiny_models, tiny_data)
    store = rs.run(study, tmp_path / "s", metric=brier, greater_is_better=False, quiet=True)
    trials, metrics = store.trials(), store.metrics()
    assert set(trials["metric"]) == {"brier"}
    assert not trials["greater_is_better"].any()
    for trial in trials.to_dict("records"):
        own = metrics[metrics["trial"].eq(trial["trial"])]
        assert trial["best"] == own["brier"].min()
        assert trial["best_step"] == own.loc[own["brier"].idxmin(), "step"]
        assert own["matthews_correlation"].between(-1, 1).all()
    assert metrics.groupby("trial")["brier"].nunique().gt(1).all()
    # rows are half and half, so a certain answer that is the same for all is wrong in half of them
    shares = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    expected = 0.5 * ((1 - shares[0]) ** 2 + (1 - shares[1]) ** 2)
    assert trials["constant"].to_numpy() == pytest.approx(expected, abs=1e-6)
    found = rs.analyze(store).learning_rates
    trials = trials.assign(rank=trials["rank"].fillna(0).astype(int))
    means = trials.groupby(["method", "rank", "learning_rate"])["best"].mean()
    assert len(found) == 3
    for row in found.fillna({"rank": 0}).to_dict("records"):
        own = means[row["method"], int(row["rank"])]
        assert (row["learning_rate"], row["value"]) == (own.idxmin(), own.min())
        assert own.nunique() == 2


def test_a_store_keeps_its_metric(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    study = loaded(tiny_models, tiny_data)
    study = study.model_copy(update={"fixed": study.fixed.model_copy(update={"steps": 2})})
    rs.run(study, tmp_path / "own", metric=brier, greater_is_better=False, quiet=True)
    with pytest.raises(ValueError, match="the metric of this store, brier, lower"):
        rs.run(study, tmp_path / "own", quiet=True)
    with pytest.raises(ValueError, match="found brier, greater is better"):
        rs.run(study, tmp_path / "own", metric=brier, quiet=True)
    rs.run(study, tmp_path / "own", metric=brier, greater_is_better=False, quiet=True)
    rs.run(study, tmp_path / "plain", quiet=True)
    with pytest.raises(ValueError, match="of this store, that of each task; found brier"):
        rs.run(study, tmp_path / "plain", metric=brier, greater_is_better=False, quiet=True)


def test_what_can_be_no_metric_is_said_before_anything_is_trained(
    tiny_models: dict[str, str], tiny_data: Path, tmp_path: Path
) -> None:
    study = loaded(tiny_models, tiny_data)
    unnamed: Any = lambda logits, labels: 1.0  # noqa: E731
    with pytest.raises(ValueError, match="expected a function with a name of its own"):
        rs.run(study, tmp_path / "s", metric=unnamed, quiet=True)
    with pytest.raises(ValueError, match="expected workers = 1"):
        rs.run(study, tmp_path / "s", metric=brier, workers=2, quiet=True)
    model = save_language_model(tmp_path / "llama", "llama")
    texts = study_of(tmp_path / "data", model)
    with pytest.raises(ValueError, match="rows is causal-lm, whose metric is eval_loss"):
        rs.run(texts, tmp_path / "s", metric=brier, quiet=True)
    assert not (tmp_path / "s").exists()
