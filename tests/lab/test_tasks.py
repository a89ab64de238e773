"""The generated tasks: the same rows everywhere, balanced, and no shortcut through single words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from rankscope.lab import TASKS
from rankscope.lab.tasks import rows, write

COLUMNS = {
    "acceptability": ["sentence", "label"],
    "agreement": ["sentence", "label"],
    "reference": ["sentence1", "sentence2", "label"],
}
DIGESTS = {
    "acceptability": "6889f89b199b8edb",
    "agreement": "be92861da24433d0",
    "reference": "362df07d51ad45d5",
}


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_the_same_everywhere(task: str) -> None:
    text = json.dumps([rows(task, split) for split in ("train", "validation")])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[task]
    assert rows(task, "train", seed=1) != rows(task, "train")


@pytest.mark.parametrize("task", TASKS)
def test_sizes_columns_balance_and_no_text_twice(task: str) -> None:
    train, validation = rows(task, "train"), rows(task, "validation")
    assert (len(train), len(validation)) == (2000, 500)
    for split in (train, validation):
        assert all(list(row) == COLUMNS[task] for row in split)
        assert sum(int(row["label"]) for row in split) == len(split) // 2
    texts = [tuple(v for k, v in row.items() if k != "label") for row in train + validation]
    assert len(set(texts)) == len(texts)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="task: expected one of acceptability"):
        rows("grammar", "train")
    with pytest.raises(ValueError, match="split: expected one of train"):
        rows("reference", "test")


def test_written_files_read_back(tmp_path: Path) -> None:
    write(tmp_path)
    for task in TASKS:
        for split in ("train", "validation"):
            frame = pd.read_csv(
                tmp_path / task / f"{split}.tsv", sep="\t", quoting=3, keep_default_na=False
            )
            assert frame.to_dict("records") == rows(task, split)


def bag_of_words(task: str, *, joint: bool, ngrams: int = 1) -> float:
    """Validation accuracy of a logistic regression on word counts, of the joined text or of each
    side apart."""
    text = COLUMNS[task][:-1]
    frames = {split: pd.DataFrame(rows(task, split)) for split in ("train", "validation")}
    sides = [
        [" ".join(row) for row in frame[text].to_numpy()] if joint else None
        for frame in frames.values()
    ]
    columns = (
        [sides] if joint else [[frame[name].tolist() for frame in frames.values()] for name in text]
    )
    train, validation = [], []
    for known, held_out in columns:
        counter = CountVectorizer(ngram_range=(1, ngrams), token_pattern=r"\w+")
        train.append(counter.fit_transform(known))
        validation.append(counter.transform(held_out))
    model = LogisticRegression(max_iter=2000).fit(hstack(train), frames["train"]["label"])
    return float(np.mean(model.predict(hstack(validation)) == frames["validation"]["label"]))


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_bag_of_words_stays_below_65_per_cent(task: str, joint: bool) -> None:
    assert bag_of_words(task, joint=joint) < 0.65
