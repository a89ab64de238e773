"""Reads training_args.bin without unpickling it: its instructions are interpreted here.

The file is a pickle of a class that anybody may have written, and unpickling runs whatever it
names. Here nothing is imported or called: strings, numbers, lists and dictionaries are built, and
every call becomes an inert record of its name and arguments.
"""

from __future__ import annotations

import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BYTES = 2**20  # of the pickle; real ones have about 5,000
STEPS = 200_000
_MARK = object()


@dataclass
class Named:
    """A global that the pickle names."""

    name: str


@dataclass
class Made:
    """The record of a call that was not made."""

    of: Any
    arguments: Any
    state: dict[str, Any] = field(default_factory=dict)


def training_args(path: Path) -> dict[str, Any]:
    """The fields of the ``TrainingArguments`` in that file that are numbers, strings or truth
    values; an enumeration's member is its value. ``ValueError``, one line, for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
            with archive.open(name) as file:
                data = file.read(BYTES + 1)
        if len(data) > BYTES:
            raise ValueError(f"more than {BYTES} bytes")
        found = followed(data)
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise ValueError(f"{path}: expected what torch.save wrote; {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: expected training arguments; found none ({error})") from None
    if not isinstance(found, Made):
        raise ValueError(f"{path}: expected training arguments; found {type(found).__name__}")
    plain = {name: _value(value) for name, value in found.state.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _value(value: Any) -> Any:
    """Numbers, strings and truth values; an enumeration's member, ``Kind("value")``, is its
    value."""
    if isinstance(value, Made) and isinstance(value.arguments, tuple) and len(value.arguments) == 1:
        value = value.arguments[0]
    return value if isinstance(value, str | int | float) else None


def followed(data: bytes) -> Any:
    """What a pickle describes. Nothing in it is imported or called."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > STEPS:
            raise ValueError(f"more than {STEPS} instructions")
        name = opcode.name
        if name == "STOP":
            return stack[-1]
        if name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else int(str(argument))] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        else:
            _follow(name, argument, stack)
    raise ValueError("it does not end")


_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_WORDS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _follow(name: str, argument: Any, stack: list[Any]) -> None:
    if name in ("PROTO", "FRAME"):
        return
    if name in _EMPTY:
        stack.append(_EMPTY[name]())
    elif name in _WORDS:
        stack.append(_WORDS[name])
    elif name == "MARK":
        stack.append(_MARK)
    elif name in _TUPLES:
        count = _TUPLES[name]
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("GLOBAL", "INST"):
        stack.append(Named(str(argument)))
    elif name == "STACK_GLOBAL":
        stack[-2:] = [Named(f"{stack[-2]} {stack[-1]}")]
    elif name in ("REDUCE", "NEWOBJ"):
        stack[-2:] = [Made(*stack[-2:])]
    elif name == "NEWOBJ_EX":
        stack[-3:] = [Made(*stack[-3:-1])]
    elif name == "BINPERSID":
        stack[-1] = Named("persistent")
    elif name == "POP":
        stack.pop()
    elif name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BUILD"):
        _fill(name, stack)
    elif isinstance(argument, str | int | float | bytes):
        stack.append(argument)
    else:
        raise ValueError(f"the instruction {name}")


def _fill(name: str, stack: list[Any]) -> None:
    if name == "BUILD":
        state = stack.pop()
        if isinstance(state, tuple) and state and isinstance(state[0], dict):
            state = state[0]
        if isinstance(stack[-1], Made) and isinstance(state, dict):
            stack[-1].state.update(state)
        return
    count = {"SETITEM": 2, "APPEND": 1}.get(name)
    if count is None:
        given = _since_mark(stack)
    else:
        given = stack[-count:]
        del stack[-count:]
    target = stack[-1]
    if name.startswith("SETITEM"):
        pairs = zip(given[::2], given[1::2], strict=True)
        if isinstance(target, dict):  # what a call would have made may be filled, too
            target.update((key, value) for key, value in pairs if isinstance(key, str))
    elif isinstance(target, list):
        target.extend(given)


def _since_mark(stack: list[Any]) -> list[Any]:
    place = max(i for i, value in enumerate(stack) if value is _MARK)
    given = stack[place + 1 :]
    del stack[place:]
    return given
