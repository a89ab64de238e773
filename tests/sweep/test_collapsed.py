"""A trial that has collapsed, from its training to the report: the metric of a constant answer, and
marked as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import save_tiny_model, sentences, write_tsv
from rankscope.analysis.conclusions import conclude
from rankscope.report.from_store import analyze, frames, text, write_report
from rankscope.report.tables import configurations_table
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep.run import run

SAID = "trials end with one answer for every row"


def pairs(count: int, start: int = 0) -> pd.DataFrame:
    """Rows of STS-B's form; the label is the length of the sentence."""
    first = sentences(count, start=start)["sentence"]
    second = first.str.split().str[::-1].str.join(" ")
    return pd.DataFrame({"sentence1": first, "sentence2": second, "label": first.str.len() / 8.0})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A regression at a rate that learns something and at one that saturates every tanh of the
    head, both in one pack."""
    root = tmp_path_factory.mktemp("collapsed")
    model = save_tiny_model(root / "roberta", "roberta")
    write_tsv(root, "STS-B", "train", pairs(40))
    write_tsv(root, "STS-B", "validation", pairs(24, start=40))
    study = Study.parse(
        f"""
        name = "t"
        scientific = {{model = "{model}", task = "STS-B", method = "lora", rank = 2}}
        nuisance = {{learning_rate = [1e-2, 10]}}
        fixed = {{data = "{root}", steps = 8, batch_size = 8, eval_every = 4}}
        """
    )
    return run(study, root / "store", quiet=True)


def answers(store: Store, id: str) -> np.ndarray:
    """What plain PEFT answers to the validation rows, one by one: (24,) float64"""
    base = store.study.models[0]
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, attn_implementation="eager", ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(model, store.folder(id).path / "last").double().eval()
    tokenizer, rows = AutoTokenizer.from_pretrained(base), pairs(24, start=40)
    with torch.no_grad():
        found = [
            model(**tokenizer(row.sentence1, row.sentence2, return_tensors="pt")).logits.item()
            for row in rows.itertuples()
        ]
    return np.array(found)


def test_the_recorded_metric_is_that_of_a_constant_answer(store: Store) -> None:
    trials = store.trials().set_index("learning_rate")
    metrics = store.metrics().set_index(["trial", "step"])
    truth = pairs(24, start=40)["label"].to_numpy()
    collapsed, learnt = (str(trials.loc[rate, "trial"]) for rate in (10.0, 1e-2))
    assert store.folder(collapsed).metrics()[-1]["is_constant"] is True
    assert metrics.loc[(collapsed, 8), ["pearson", "spearman"]].tolist() == [0.0, 0.0]
    assert trials.loc[10.0, ["best", "last"]].tolist() == [0.0, 0.0]
    # the hazard: by float64 its answers differ, and a correlation is blind to by how little
    found = answers(store, collapsed)
    assert found.std() < 1e-4 * truth.std()
    # the neighbour in the pack learnt, and is what it is
    assert metrics.loc[(learnt, 8), "is_constant"] == 0
    found = answers(store, learnt)
    assert metrics.loc[(learnt, 8), "pearson"] == pytest.approx(
        stats.pearsonr(found, truth)[0], abs=1e-5
    )


def test_analysis_and_report_mark_it(store: Store, tmp_path: Path) -> None:
    conclusions = analyze(store)
    assert f"1 of 2 {SAID}" in text(conclusions)
    assert any(f"1 of 2 {SAID}" in caveat for caveat in conclusions.to_dict()["caveats"])
    page, *_ = write_report(store, tmp_path / "report.html")
    assert f"1 of 2 {SAID}" in page.read_text()


def test_a_configuration_whose_best_answer_is_constant_is_marked(store: Store) -> None:
    """Without the rate that learnt, what is left of the study has collapsed as a whole."""
    found = frames(store)
    table = configurations_table(found, analyze(store))
    assert "one answer" not in [column.heading for column in table.printed]
    alone = found.all_trials[found.all_trials["learning_rate"].eq(10)]
    parts = {
        name: getattr(found, name)[getattr(found, name)["trial"].isin(alone["trial"])]
        for name in ("metrics", "spectra", "drifts")
    }
    left = type(found)(trials=alone, comparison=pd.DataFrame(), **parts)
    table = configurations_table(left, conclude(left, resamples=20))
    (shown,) = table.cells()
    place = [column.heading for column in table.printed].index("one answer")
    assert shown[place] == ("1", 1)
    assert left.one_answer.to_numpy().tolist() == [[True, True]]
    older = left.metrics.drop(columns="is_constant")  # a store of an earlier version
    older_frames = type(found)(
        trials=alone, comparison=pd.DataFrame(), **parts | {"metrics": older}
    )
    assert older_frames.one_answer.to_numpy().tolist() == [[False, False]]
