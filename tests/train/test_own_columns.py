"""The columns of a task: found by their names, or one line that says what to type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankscope.study.own_task import OwnTask
from rankscope.train.data_summary import summary
from rankscope.train.own_data import read_own_task

ASK, ANSWER = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a dog"}


def read(folder: Path, content: str, name: str = "a.csv", **settings: Any) -> Any:
    (folder / name).write_text(content, encoding="utf-8")
    given = {"text": "text", "validation": 0.5} | settings
    return read_own_task("mine", OwnTask(data=name, **given), folder)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("text, label", "no column 'label' among 'text', ' label': write ' label' as it stands"),
        ("Text,label", "write 'Text' as it stands there, blanks and case included"),
        ("nice,x", "give the names of its columns in text and label; its first line must hold"),
    ],
)
def test_a_name_that_is_nearly_there(tmp_path: Path, header: str, says: str) -> None:
    with pytest.raises(ValueError, match="expected the columns 'text', 'label'") as error:
        read(tmp_path, f"{header}\na,x\nb,y\nc,x\nd,y\n")
    assert says in str(error.value)


def test_accents_written_apart_are_the_same_name(tmp_path: Path) -> None:
    content = "te\u0301xt,label\na,x\nb,y\nc,x\nd,y\n"
    _, train, validation = read(tmp_path, content, text="t\u00e9xt")
    assert sorted([*train["text"], *validation["text"]]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_texts_that_are_blank_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    lines = ["one", "", "two", "  ", "three", "four"]
    content = "\n".join(lines if name == "a.txt" else [json.dumps({"text": x}) for x in lines])
    found = read(tmp_path, content, name, kind="causal-lm", text=None)
    texts = [text for part in found[1:] for text in part["text"]]
    assert sorted(texts) == ["four", "one", "three", "two"]
    assert "mine: 2 rows without text are left out" in summary(*found)
    with pytest.raises(ValueError, match="expected text in 'text'; found none in any row"):
        read(tmp_path, '{"text": ""}\n{"text": " "}', "b.jsonl", kind="causal-lm")


def chats(folder: Path, *rows: dict[str, Any], text: Any = None) -> Any:
    content = "\n".join(map(json.dumps, rows))
    return read(folder, content, "a.jsonl", kind="sft", text=text)


def test_chats_that_stand_in_two_forms(tmp_path: Path) -> None:
    messages, pair = {"messages": [ASK, ANSWER]}, {"prompt": "p", "completion": "c"}
    with pytest.raises(ValueError, match='text = "messages" or text = ') as error:
        chats(tmp_path, messages | pair, messages | pair)
    assert "\n" not in str(error.value)
    for text in ("messages", ["prompt", "completion"]):
        train = chats(tmp_path, messages | pair, messages | pair, text=text)[1]
        assert json.loads(train["text"][0]) == (messages if text == "messages" else pair)
    # a prompt beside the messages is no second form
    train = chats(tmp_path, *[messages | {"prompt": "p"}] * 2)[1]
    assert json.loads(train["text"][0]) == messages


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": [ASK], "completion": [ASK]}, "a message of the role 'assistant'; found none"),
        ({"messages": [{"from": "human", "value": "a"}]}, "'content'; found 'from', 'value'"),
        ({"prompt": "p", "completion": ""}, "row 1: expected a completion; found none"),
        ({"prompt": "p", "answer": "c"}, "no column 'completion' among 'prompt', 'answer'"),
    ],
)
def test_chats_of_another_kind(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        chats(tmp_path, row, row)
    assert says in str(error.value)


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_share_that_leaves_no_row_says_why(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match="of every class one row at least is trained on") as error:
        read(tmp_path, "text,label\na,x\nb,y\nc,z\n", validation=share)
    assert f"none in a share of {share:g} of 3 rows" in str(error.value)
