"""The beginning of the log in one file, so that readers need not open thousands.

Entries never change, so a snapshot is never wrong, only short. It counts while its last entry is the log's own; whoever finds none
or a damaged one reads the log itself.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from rankscope.store.files import loads
from rankscope.store.storage import Storage

SNAPSHOT = "cache/log.jsonl"
LOG = "log"


def entry_name(number: int) -> str:
    return f"{LOG}/{number:08d}.json"


def entries(storage: Storage, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """These entries of the log, all at once: one by one they take long over a network."""
    names = [entry_name(number) for number in numbers]
    storage.fetch(names)
    found = []
    for name in names:
        with open(f"{storage.root}/{name}", "rb") as file:
            found.append(loads(file.read(), f"{storage}/{name}"))
    return found


def read_snapshot(storage: Storage) -> list[dict[str, Any]]:
    """The entries from the first on that it holds."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = storage.read(SNAPSHOT).splitlines()
        found = [loads(line, SNAPSHOT) for line in lines]
        last = loads(storage.read(entry_name(len(found))), LOG)
        if last["nonce"] == found[-1]["nonce"]:
            return found
    return []


def extend_snapshot(storage: Storage, length: int) -> int:
    """Makes it hold the log up to that entry, unless another worker has done about as much. -> how many it holds"""
    known = read_snapshot(storage)
    if is_worth_it(len(known), length):
        with contextlib.suppress(OSError):  # a full disk is no reason to stop: the log is whole without it
            known += entries(storage, range(len(known) + 1, length + 1))
            text = "".join(json.dumps(entry) + "\n" for entry in known)
            storage.write(SNAPSHOT, text.encode(), durable=False)
    return len(known)


def is_worth_it(known: int, length: int) -> bool:
    """Whether the log has grown by a tenth and a hundred: so all that is ever written stays in proportion to the log."""
    return length >= 1.1 * known + 100
