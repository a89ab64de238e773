"""Rows to batches: what is padded and cut."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import sentences, write_tsv
from rankscope.study.tasks import TASKS
from rankscope.train.data import check_parts, encode, fingerprint, read_split
from rankscope.train.loading import load_tokenizer


def test_batches_are_padded_to_their_own_longest_row(
    tiny_models: dict[str, str], tiny_data: Path
) -> None:
    tokenizer = load_tokenizer(tiny_models["roberta"])
    frame = read_split(str(tiny_data), TASKS["CoLA"], "train")
    encoded = encode(frame, TASKS["CoLA"], tokenizer, max_length=32)
    rows = torch.tensor([3, 0, 7])
    inputs, labels = encoded.batch(rows)
    expected = tokenizer(
        [frame["sentence"][i] for i in rows.tolist()], padding=True, return_tensors="pt"
    )
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(inputs[name], expected[name])
    assert labels.tolist() == frame["label"][rows.tolist()].tolist()


def test_rows_by_length_are_all_rows(tiny_models: dict[str, str], tiny_data: Path) -> None:
    frame = read_split(str(tiny_data), TASKS["CoLA"], "train")
    encoded = encode(frame, TASKS["CoLA"], load_tokenizer(tiny_models["roberta"]), max_length=32)
    found = list(encoded.by_length(7))
    assert sorted(torch.cat([rows for rows, _ in found]).tolist()) == list(range(len(frame)))
    widths = [inputs["input_ids"].shape[1] for _, inputs in found]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_long_rows_are_cut(tiny_models: dict[str, str], tiny_data: Path) -> None:
    tokenizer = load_tokenizer(tiny_models["roberta"])
    encoded = encode(
        read_split(str(tiny_data), TASKS["CoLA"], "train"), TASKS["CoLA"], tokenizer, max_length=5
    )
    assert int(encoded.lengths.max()) == encoded.inputs["input_ids"].shape[1] == 5


@pytest.mark.parametrize(("longest", "cut"), [(4, 2), (5, 1), (6, 1), (7, 0)])
def test_rows_that_are_cut_are_counted(tiny_models: dict[str, str], longest: int, cut: int) -> None:
    texts = [
        "the",
        "the cat",
        "the cat sees",
        "the cat sees a dog",
    ]  # with <s> and </s>: 3, 4, 5, 7
    frame = pd.DataFrame({"sentence": texts, "label": [0, 1, 0, 1]})
    tokenizer = load_tokenizer(tiny_models["roberta"])
    assert encode(frame, TASKS["CoLA"], tokenizer, max_length=longest).cut == cut


def test_pairs_are_joined(tiny_models: dict[str, str], tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"sentence1": ["the cat", "a dog"], "sentence2": ["a bird sees", "the"], "label": [0, 1]}
    )
    write_tsv(tmp_path, "RTE", "train", frame)
    tokenizer = load_tokenizer(tiny_models["roberta"])
    encoded = encode(
        read_split(str(tmp_path), TASKS["RTE"], "train"), TASKS["RTE"], tokenizer, max_length=32
    )
    assert (
        encoded.inputs["input_ids"][0].tolist() == tokenizer("the cat", "a bird sees")["input_ids"]
    )


def test_a_second_validation_split_follows_the_first(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """MNLI's mismatched rows; a folder may lack them."""
    one = pd.DataFrame(
        {"premise": ["a cat"] * 3, "hypothesis": ["it sees"] * 3, "label": [0, 1, 2]}
    )
    write_tsv(tmp_path, "MNLI", "validation", one)
    tokenizer = load_tokenizer(tiny_models["roberta"])
    for expected in (0, 2):
        frame = read_split(str(tmp_path), TASKS["MNLI"], "validation", rows=2)
        assert frame["label"].tolist() == [0, 1, 2, 1][: 2 + expected]
        assert encode(frame, TASKS["MNLI"], tokenizer, max_length=32).beside == expected
        write_tsv(tmp_path, "MNLI", "validation_mismatched", one[::-1])


def test_quotes_and_na_are_text(tmp_path: Path) -> None:
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text(
        'sentence\tlabel\n"He said\t0\nNA\t1\n', encoding="utf-8"
    )
    assert read_split(str(tmp_path), TASKS["CoLA"], "train")["sentence"].tolist() == [
        '"He said',
        "NA",
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "expected rows; found an empty file"), ("sentence\tlabel\n\xff", "CoLA")],
)
def test_damaged_files_are_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=says):
        read_split(str(tmp_path), TASKS["CoLA"], "train")


def test_a_file_in_the_place_of_a_folder_is_told_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence,label\na,1\n")
    with pytest.raises(ValueError, match=r"found the file .*\[task.NAME\] with data = \"a.csv\""):
        read_split(str(tmp_path / "a.csv"), TASKS["CoLA"], "train")


def test_fingerprint_is_of_the_rows() -> None:
    assert fingerprint(sentences(5)) == fingerprint(sentences(5).reset_index(drop=True))
    assert fingerprint(sentences(5)) != fingerprint(sentences(6))


def test_regression_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0.5, 4.75]})
    write_tsv(tmp_path, "STS-B", "train", frame)
    assert read_split(str(tmp_path), TASKS["STS-B"], "train")["label"].tolist() == [0.5, 4.75]


@pytest.mark.parametrize(
    ("task", "labels", "says"),
    [
        ("STS-B", [1.5] * 7 + [2.5], "found 1.5 in all 4 of those that"),
        ("CoLA", [0] * 7 + [1], "found 'unacceptable' in all 4 of those that"),
        ("CoLA", [0], "found 'unacceptable' in all 1 of those that choose"),
        ("STS-B", list(range(8)), ""),
        ("CoLA", [0, 1] * 8, ""),
    ],
)
def test_both_parts_of_validation_have_labels_that_differ(
    task: str, labels: list[float], says: str
) -> None:
    frame = pd.DataFrame({"label": labels})
    check_parts(TASKS[task], frame, None)
    if not says:
        check_parts(TASKS[task], frame, 0.5)
        return
    with pytest.raises(ValueError, match="validation_split: expected rows whose labels") as error:
        check_parts(TASKS[task], frame, 0.5)
    assert says in str(error.value)
