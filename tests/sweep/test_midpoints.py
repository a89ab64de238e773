"""Loss barriers and CKA of a store's pairs: against plain transformers on averaged dense weights,
and a formula in numpy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import pretend
from conftest import TARGETS
from rankscope.evaluation.midpoint import linear_cka
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep import midpoints
from rankscope.sweep.inputs import StudyInputs
from rankscope.sweep.run import run
from studies import study_text
from training import encoded

ROWS = 24  # all validation rows of the data


def study(model: str, data: Path, architecture: str) -> Study:
    text = study_text(
        model, "CoLA", rank=[2, "d"], learning_rate=1e-2, seed=[0, 1], data=data, steps=4,
        target_modules=TARGETS[architecture],
    )  # fmt: skip
    return Study.parse(text)


@pytest.fixture(scope="module", params=["roberta", "gpt2"])
def ran(
    request: pytest.FixtureRequest,
    tiny_models: dict[str, str],
    tiny_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Study, Store]:
    path = tiny_models[request.param]
    own = study(path, tiny_data, request.param)
    return request.param, own, run(own, tmp_path_factory.mktemp("store"), quiet=True)


def plain(store: Store, base: str, trial: str) -> Any:
    """A trial's last model by PEFT and transformers alone, in float64."""
    folder = store.folder(trial, weights=True).path / "last"
    if not (folder / "adapter_config.json").is_file():
        return AutoModelForSequenceClassification.from_pretrained(folder).double().eval()
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2).double()
    return PeftModel.from_pretrained(model, folder).double().merge_and_unload().eval()


def features(architecture: str, model: Any, data: Any) -> np.ndarray:
    """What the head reads: the first token's state, or that of the last that is no padding."""
    inputs, _ = data.batch(torch.arange(ROWS))
    with torch.no_grad():
        states = getattr(model, model.base_model_prefix)(**inputs).last_hidden_state
    if architecture == "roberta":
        return states[:, 0].numpy()
    last = inputs["attention_mask"].sum(1) - 1
    return states[torch.arange(ROWS), last].numpy()


def cka(X: np.ndarray, Y: np.ndarray) -> float:
    """By centred Gram matrices (Kornblith et al. 2019, equation 3)."""
    n = len(X)
    H = np.eye(n) - 1 / n
    K, L = H @ X @ X.T @ H, H @ Y @ Y.T @ H
    return float((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))


def test_barriers_are_those_of_averaged_dense_weights(
    ran: tuple[str, Study, Store], tiny_models: dict[str, str], tiny_data: Path
) -> None:
    architecture, _, store = ran
    base = tiny_models[architecture]
    data = encoded(base, tiny_data, "validation")
    inputs, labels = data.batch(torch.arange(ROWS))
    models = {id: plain(store, base, id) for id in store.done_ids()}
    for model in models.values():
        model.config.pad_token_id = 1
    with torch.no_grad():
        losses = {id: float(m(**inputs, labels=labels).loss) for id, m in models.items()}
    pairs = store.comparison().drop_duplicates(["trial", "reference"])
    kinds = store.trials().set_index("trial")["method"]
    found = {(kinds[a], kinds[b]) for a, b in zip(pairs["trial"], pairs["reference"], strict=True)}
    assert found == {("lora", "full"), ("full", "full"), ("lora", "lora")}
    for row in pairs.itertuples():
        a, b = models[row.trial], models[row.reference]
        middle = plain(store, base, row.trial)
        middle.config.pad_token_id = 1
        other = dict(b.named_parameters())
        with torch.no_grad():
            for key, value in middle.named_parameters():
                value.copy_((value + other[key]) / 2)
            loss = float(middle(**inputs, labels=labels).loss)
        assert row.midpoint_loss == pytest.approx(loss, abs=1e-6)
        ends = (losses[row.trial] + losses[row.reference]) / 2
        assert row.barrier == pytest.approx(loss - ends, abs=1e-6)
        wanted = cka(*(features(architecture, model, data) for model in (a, b)))
        assert row.cka == pytest.approx(wanted, abs=1e-5)


def test_what_is_known_is_not_evaluated_again(ran: tuple[str, Study, Store]) -> None:
    """A run that was stopped goes on with the pairs that are left; without a study's rows what is
    known stays."""
    _, own, store = ran
    before = store.comparison()
    pairs = [
        tuple(p) for p in before[["trial", "reference"]].drop_duplicates().itertuples(index=False)
    ]
    inputs = StudyInputs(own)
    cache = midpoints.Kept.read(store)
    gone, marked = pairs[0], pairs[1]
    real = cache.get(marked)
    assert real is not None
    del cache.found[cache.key(gone)]
    cache.add({marked: real | {"barrier": 123.0}})  # evaluated again it would be another number
    assert gone not in _numbers(midpoints.midpoints(store, pairs, None))
    again = _numbers(midpoints.midpoints(store, pairs, inputs))
    assert again[marked]["barrier"] == 123
    cache.add({marked: real})
    known = _numbers(before)
    assert again.keys() == known.keys()
    assert again[gone] == pytest.approx(known[gone], abs=1e-6)


def _numbers(table: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, float]]:
    rows = table.drop_duplicates(["trial", "reference"]).to_dict("records")
    return {(r["trial"], r["reference"]): {c: r[c] for c in midpoints.COLUMNS} for r in rows}


def test_a_budget_takes_what_the_verdict_is_about_first(tmp_path: Path) -> None:
    """Pairs of the highest rank, of different seeds; the others have no number."""
    rows = "1e-3\nseed = [0, 1, 2, 3, 4]"
    text = pretend.TEXT.replace("[1, 2, 4]", "[1, 8]").replace("[1e-4, 1e-3]", rows)
    store = pretend.create(tmp_path, Study.parse(text))
    pretend.run(store)
    trials = {t.id: t for t in store.planned()}
    pairs = list(itertools.permutations(trials, 2))
    cache = midpoints.Kept.read(store)
    cache.add({pair: dict.fromkeys(midpoints.COLUMNS, 0.5) for pair in pairs})
    found = midpoints.midpoints(store, pairs, None)
    assert len(found) == midpoints.PAIRS == 64
    of = [(trials[a], trials[b]) for a, b in zip(found["trial"], found["reference"], strict=True)]
    assert all(a.seed != b.seed for a, b in of)
    assert {a.rank or b.rank for a, b in of} == {None, 8}


def test_an_older_comparison_gets_its_barriers(ran: tuple[str, Study, Store]) -> None:
    _, own, store = ran
    whole = store.comparison()
    store.write_comparison(whole.drop(columns=list(midpoints.COLUMNS)))
    run(own, store.path, quiet=True)
    pd.testing.assert_frame_equal(store.comparison(), whole)


@pytest.mark.parametrize("width", [3, 40])
def test_cka_by_its_formula(width: int) -> None:
    rng = np.random.default_rng(width)
    X, Y = rng.normal(5, 2, (20, 6)), rng.normal(size=(20, width))
    found = linear_cka(torch.from_numpy(X), torch.from_numpy(Y))
    assert found == pytest.approx(cka(X, Y), abs=1e-12)
    turned = 3 * X @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 1  # what it does not depend on
    assert linear_cka(torch.from_numpy(X), torch.from_numpy(turned)) == pytest.approx(1)
    assert math.isnan(linear_cka(torch.ones(20, 3), torch.from_numpy(X)))
