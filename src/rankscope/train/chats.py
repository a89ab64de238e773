"""Reads chats (messages, or a prompt and its completion) and tokenises them with the tokenizer's
own template, marking which tokens are answers.

A chat is held as JSON, ``{"messages": [...]}`` or ``{"prompt": ..., "completion": ...}``: messages
are objects with a ``role`` and a ``content``. A prompt and its completion may also be plain text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rankscope.train.labels import said

ANSWERS = "assistant"  # the role whose messages are learnt
_ROLES = ("system", "user", ANSWERS, "tool", "developer")


def chat_columns(frame: pd.DataFrame, where: str) -> list[str]:
    """One chat a row, as JSON.

    ``ValueError``, one line, for a row without an answer, or with an invalid message.
    """
    chats = []
    for row, values in enumerate(frame.itertuples(index=False, name=None), 1):
        try:
            chats.append(json.dumps(_chat([_plain(value) for value in values])))
        except ValueError as error:
            raise ValueError(f"{where}: row {row}: {error}") from None
    return chats


def _chat(values: Sequence[Any]) -> dict[str, Any]:
    if len(values) == 1:
        return {"messages": _answered(_messages(values[0]))}
    prompt, completion = values
    if isinstance(prompt, str) and isinstance(completion, str):
        for name, text in (("prompt", prompt), ("completion", completion)):
            if not text.strip():
                raise ValueError(f"expected a {name}; found none")
        return {"prompt": prompt, "completion": completion}
    prompt, completion = (
        _messages([{"role": role, "content": value}] if isinstance(value, str) else value)
        for role, value in (("user", prompt), (ANSWERS, completion))
    )
    return {"prompt": prompt, "completion": _answered(completion)}


def _answered(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    if not any(message["role"] == ANSWERS for message in messages):
        raise ValueError(f"expected a message of the role {ANSWERS!r}; found none")
    return messages


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of messages; found {said(value)}")
    for message in value:
        if not isinstance(message, dict):
            raise ValueError(f"expected messages as objects; found {said(message)}")
        if "role" not in message:
            names = ", ".join(map(repr, message))[:80] or "none"
            raise ValueError(f"expected messages with 'role' and 'content'; found {names}")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise ValueError(f"expected a role, one of {', '.join(_ROLES)}; found {role!r}")
        if not isinstance(content, str) or (role == ANSWERS and not content.strip()):
            raise ValueError(f"expected text as content of {role!r}; found {said(content)}")
    return value


def _plain(value: Any) -> Any:
    """Arrays, which Parquet returns, as lists; keys without a value are left out."""
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if entry is not None}
    return value


def tokens_of(chat: str, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """The tokens of a chat and which of them are answers.

    Messages go through the tokenizer's chat template: the answers are what it adds to the messages
    before each of the role ``ANSWERS``, after its prompt for generation; of a prompt and
    completion, the completion alone. Plain prompts and completions are a user's and an answer;
    without a template they stand one after the other, with the end token behind.

    ``ValueError`` without a template, or where what comes before an answer is written in another
    way once the answer is there.
    """
    found = json.loads(chat)
    if "messages" in found:
        messages, first = found["messages"], 0
    elif isinstance(found["prompt"], str) and not tokenizer.chat_template:
        return _joined(found["prompt"], found["completion"], tokenizer)
    else:
        if isinstance(found["prompt"], str):
            found = _chat(
                [
                    [{"role": "user", "content": found["prompt"]}],
                    [{"role": ANSWERS, "content": found["completion"]}],
                ]
            )
        messages, first = found["prompt"] + found["completion"], len(found["prompt"])
    if not tokenizer.chat_template:
        raise ValueError(
            "expected a tokenizer with a chat template; found none: take a model that has one, or "
            "prompts and completions as plain text"
        )
    whole = _templated(messages, tokenizer)
    answers = [False] * len(whole)
    for i, message in enumerate(messages):
        if message["role"] != ANSWERS or i < first:
            continue
        before = _templated(messages[:i], tokenizer, add_generation_prompt=True) if i else []
        after = whole if i == len(messages) - 1 else _templated(messages[: i + 1], tokenizer)
        if whole[: len(before)] != before or whole[: len(after)] != after:
            raise ValueError(
                f"expected a chat template that writes what comes before message {i + 1} as it "
                "writes it alone; found another text. Take prompt and completion, or another "
                "template"
            )
        answers[len(before) : len(after)] = [True] * (len(after) - len(before))
    return whole, answers


def _templated(messages: list[dict[str, str]], tokenizer: Any, **settings: Any) -> list[int]:
    try:
        found = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, **settings
        )["input_ids"]
    except Exception as error:  # noqa: BLE001 - templates raise what they like
        line = " ".join(str(error).split())[:160]
        raise ValueError(f"its chat template can't write these messages: {line}") from None
    return list(found)


def _joined(prompt: str, completion: str, tokenizer: Any) -> tuple[list[int], list[bool]]:
    before = tokenizer(prompt)["input_ids"]
    whole = tokenizer(with_end(prompt + completion, tokenizer))["input_ids"]
    shared = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
        min(len(before), len(whole)),
    )
    return whole, [i >= shared for i in range(len(whole))]


def with_end(text: str, tokenizer: Any) -> str:
    """With the end token, if the tokenizer has one, as TRL adds it."""
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end
