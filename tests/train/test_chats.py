"""Chats and texts as they are read: one line for what can't be learnt from, Parquet as JSON lines,
templates of several kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from language import TEMPLATE, chat, inputs_of, save_language_model, study_of
from rankscope.study.study_file import Study
from rankscope.sweep.inputs import StudyInputs
from rankscope.train.chats import chat_columns, tokens_of
from rankscope.train.text_tokens import IGNORED

ASK, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_language_model(tmp_path_factory.mktemp("m") / "llama", "llama")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([ASK], "row 1: expected a message of the role 'assistant'; found none"),
        ("the cat", "expected a list of messages; found 'the cat'"),
        ([], "expected a list of messages; found a list, []"),
        (["the cat"], "expected messages as objects; found 'the cat'"),
        ([ASK, {"role": "assistent", "content": "a"}], "found 'assistent'"),
        (
            [ASK, {"role": "assistant", "content": " "}],
            "expected text as content of 'assistant'; found none",
        ),
        ([ASK, {"role": "assistant"}], "expected text as content of 'assistant'; found none"),
        (
            [ASK, {"role": "assistant", "content": [1]}],
            "expected text as content of 'assistant'; found a list, [1]",
        ),
    ],
)
def test_what_is_no_chat_is_said_in_one_line(row: Any, says: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        chat_columns(pd.DataFrame({"messages": [row]}), "f.jsonl")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def tokens(found: dict[str, Any], tokenizer: Any) -> tuple[list[str], list[str]]:
    """All of them, and those that are learnt."""
    ids, learnt = tokens_of(json.dumps(found), tokenizer)
    words = tokenizer.convert_ids_to_tokens(ids)
    return words, [word for word, answer in zip(words, learnt, strict=True) if answer]


def test_prompts_and_completions_in_every_form(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = ["<s>", "<unk>", "the", "cat", "</s>", "<s>", "<unk>", "a", "dog", "</s>"]
    answer = ["a", "dog", "</s>"]
    in_lists = {"prompt": [ASK], "completion": [ANSWER]}
    assert tokens(in_lists, tokenizer) == (whole, answer)
    assert tokens({"prompt": "the cat", "completion": "a dog"}, tokenizer) == (whole, answer)
    # an answer within the prompt is context
    before = {"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]}
    assert tokens(before, tokenizer)[1] == answer
    assert tokens({"messages": [ASK, ANSWER, ASK, ANSWER]}, tokenizer)[1] == 2 * answer
    tokenizer.chat_template = None
    joined = tokens({"prompt": "the cat ", "completion": "a dog"}, tokenizer)
    assert joined == (
        ["<s>", "the", "cat", "a", "dog", "</s>", "</s>"],
        ["a", "dog", "</s>", "</s>"],
    )


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "expected a tokenizer with a chat template; found none"),
        (
            TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] }} {{ WORDS[-len] }}")
            .replace("WORDS", "['red', 'blue', 'old']")
            .replace("-len", "messages | length"),
            "expected a chat template that writes what comes before message 2 as it writes it",
        ),
        ("{{ raise_exception('no roles here') }}", "can't write these messages: no roles here"),
    ],
)
def test_a_template_that_hides_the_answers_is_refused(
    template: str | None, says: str, model: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    chats = {"messages": [ASK, ANSWER]}
    with pytest.raises(ValueError, match=r"expected|template") as caught:
        tokens(chats, tokenizer)
    assert says in str(caught.value)


def test_parquet_holds_the_same_chats_as_json_lines(model: str, tmp_path: Path) -> None:
    lines = inputs_of(tmp_path / "lines", model, "messages")
    folder = tmp_path / "parquet"
    study = study_of(folder, model, "messages")
    for name in ("train", "validation"):
        rows = pd.read_json(folder / f"{name}.jsonl", lines=True)
        rows.to_parquet(folder / f"{name}.parquet")
    text = study.source.replace(".jsonl", ".parquet")
    tables = StudyInputs(Study.parse(text, folder=folder), workers=1)
    assert tables.fingerprints == lines.fingerprints
    assert tables.split("rows")[0].equals(lines.split("rows")[0])


def test_rows_are_cut_at_the_length_and_that_is_said(model: str, tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path / "a", model, fixed="max_length = 9")
    train = inputs.encoded(inputs.trials[0])[0]
    texts = inputs.split("rows")[0]["text"]
    long = sum(len(text.split()) + 3 > 9 for text in texts)  # <s>, </s>, and the end token's text
    assert 0 < long < len(texts)
    assert train.cut == long
    assert int(train.lengths.max()) == 9
    told = "\n".join(inputs.summaries)
    assert f"{long} of {len(texts)} training and " in told
    assert "validation rows are longer than max_length = 9" in told
    assert ((train.labels != IGNORED).sum(1) == train.lengths).all()
    expected = float(train.lengths.double().mean() - 1)
    assert inputs.rows(inputs.trials[0]).learnt == pytest.approx(expected)


def test_an_answer_beyond_the_length_is_an_error(model: str, tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path / "a", model, "messages", fixed="max_length = 6")
    with pytest.raises(ValueError, match="within max_length = 6 tokens; found none, nor in") as e:
        inputs.encoded(inputs.trials[0])
    assert str(e.value).startswith('[task.rows] row \'{"messages": [{"role": "user", ')
    assert "\n" not in str(e.value)
    assert chat(0)["messages"][0]["role"] == "user"


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_chat_that_is_cut_before_its_answer_is_left_out_and_counted(
    part: str, model: str, tmp_path: Path
) -> None:
    """Its loss would be a mean of nothing."""
    text = study_of(tmp_path, model, "messages", fixed="max_length = 30").source
    study = Study.parse(text.replace("steps = 20", "epochs = 2"), folder=tmp_path)
    before = StudyInputs(study, workers=1)
    whole = before.encoded(before.trials[0])
    question = {"role": "user", "content": "red cat " * 20}
    with (tmp_path / f"{part}.jsonl").open("a") as file:
        for _ in range(5):  # more than a batch
            file.write(json.dumps({"messages": [question, ANSWER]}) + "\n")
    inputs = StudyInputs(study, workers=1)
    for old, new in zip(whole, inputs.encoded(inputs.trials[0]), strict=True):
        assert torch.equal(old.labels, new.labels)
        assert ((new.labels[:, 1:] != IGNORED).sum(1) > 0).all()
    name, rows = {"train": ("training", whole[0]), "validation": ("validation", whole[1])}[part]
    told = f"rows: 5 of {len(rows) + 5} {name} rows have no answer within max_length = 30 tokens of"
    assert [line for line in inputs.summaries if line.startswith(told)]
    assert inputs.steps(inputs.trials[0]) == before.steps(before.trials[0])
    assert inputs.trials[0].total_steps(len(whole[0])) == inputs.steps(inputs.trials[0])


def test_classifiers_and_language_models_are_two_studies(
    model: str, tiny_data: Path, tmp_path: Path
) -> None:
    text = study_of(tmp_path / "a", model).source
    text = text.replace('task = "rows"', 'task = ["rows", "CoLA"]')
    text = text.replace("[fixed]", f'[fixed]\n        data = "{tiny_data}"')
    with pytest.raises(ValueError, match="language models or classifiers, not both") as caught:
        StudyInputs(Study.parse(text, folder=tmp_path / "a"), workers=1)
    assert "found rows (causal-lm) and CoLA" in str(caught.value)
