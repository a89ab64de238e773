"""A validation error as one line: where, what was expected, what was found, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError


def validation_message(error: ValidationError, sections: Mapping[str, type[BaseModel]]) -> str:
    """The validation_message that mends most: an unknown key first (it often explains a missing
    one), else pydantic's first."""
    found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    section, *keys = (str(part) for part in found["loc"])
    name = f"[{section}]"
    if section == "arm" and keys:  # a list of tables: which one
        name, keys = f"[[arm]] {int(keys[0]) + 1}", keys[1:]
    elif section == "fixed" and keys[:1] == ["task"] and len(keys) > 1:  # tables by task
        name, section, keys = f"[fixed.task.{keys[1]}]", "fixed.task", keys[2:]
    if section not in sections:
        place, key = section, ""
    else:
        # pydantic appends the branch of a union ("constrained-int"), which the user did not write
        key = keys[0] if keys else ""
        place = f"{name} {key}".rstrip()
    if found["type"] == "extra_forbidden":
        known = list(sections[section].model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        return f"{place}: unknown key; " + (
            f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        )
    if found["type"] == "missing":
        return f"{place}: expected a value, found none"
    message = (
        found["msg"]
        .removeprefix("Value error, ")
        .removeprefix(f"{key}: ")
        .removeprefix("Input should be ")
    )
    if found["type"] == "value_error":
        return f"{place}: {message}"
    if found["type"] == "string_pattern_mismatch":
        message = "letters, digits, '.', '_' and '-'"
    if found["type"] == "list_type" and section == "arm":
        return f"{place}: expected tables headed [[arm]]; found {found['input']!r}"
    word = {"rank": "d", "eval_every": "epoch"}.get(key)
    if word and not isinstance(found["input"], int):
        message = f"a whole number from 1, or {word!r}"
    return f"{place}: expected {message}; found {found['input']!r}"
