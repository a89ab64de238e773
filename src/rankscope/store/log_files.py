"""The files of the log: one per entry, and a snapshot of its beginning, so that readers need not
open thousands.

An entry says its number and its store, and is sealed (files.py). One that can't be read, or says
something else, is lost: readers go on without it. Entries are immutable: a stale snapshot is
incomplete, never incorrect.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from rankscope.store.files import DamagedFile, loads
from rankscope.store.storage import Storage
from rankscope.system import NotAFile, read_file

SNAPSHOT = "cache/log.jsonl"
LOG = "log"
_GAP = 10_000  # entries in a row that may be lost
_NAME = re.compile(r"(\d{8})\.json")


def entry_name(number: int) -> str:
    return f"{LOG}/{number:08d}.json"


def entry_numbers(storage: Storage) -> list[int]:
    """The numbers of all entries; other files in the folder are ignored."""
    return [int(match[1]) for name in storage.names(LOG) if (match := _NAME.fullmatch(name))]


def last_entry(storage: Storage) -> int:
    """The number of the last entry. One far ahead of all others does not belong to this log."""
    last = 0
    for number in sorted(entry_numbers(storage)):
        if number - last > _GAP:
            break
        last = number
    return last


def read_entry(storage: Storage, number: int, store_id: str, data: bytes) -> dict[str, Any]:
    """The entry in these bytes. ``DamagedFile`` when it is not this store's entry of that
    number."""
    name = entry_name(number)
    entry = loads(data, f"{storage}/{name}")
    own = (entry.get("number"), entry.get("store"))
    if own != (number, store_id) and (store_id or own != (None, None)):  # older logs say neither
        raise DamagedFile(
            f"{storage}/{name}: expected entry {number} of this store; found another's"
        )
    if not isinstance(entry.get("event"), str):
        raise DamagedFile(f"{storage}/{name}: expected an event; found none")
    return entry


def read_entries(
    storage: Storage, numbers: Sequence[int], store_id: str, *, again: bool = False
) -> list[dict[str, Any] | DamagedFile]:
    """These entries, or why one is lost, fetched together, which is faster over a network.
    ``again``: fetched anew."""
    names = [entry_name(number) for number in numbers]
    storage.fetch(names, again=again)
    found: list[dict[str, Any] | DamagedFile] = []
    for number, name in zip(numbers, names, strict=True):
        entry = _read(storage, number, name, store_id)
        if isinstance(entry, DamagedFile) and not again:
            storage.fetch([name], again=True)  # it may have been mended since
            entry = _read(storage, number, name, store_id)
        found.append(entry)
    return found


def _read(storage: Storage, number: int, name: str, store_id: str) -> dict[str, Any] | DamagedFile:
    try:
        return read_entry(storage, number, store_id, read_file(f"{storage.root}/{name}"))
    except DamagedFile as error:
        return error
    except NotAFile as error:
        return DamagedFile(str(error))
    except OSError as error:
        return DamagedFile(f"{storage}/{name}: {error.strerror or 'no such file'}")


def read_snapshot(storage: Storage, store_id: str) -> list[dict[str, Any]]:
    """The entries in the snapshot, from the first on; none if it is damaged or of another history
    of the log."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        first, _, rest = storage.read(SNAPSHOT).partition(b"\n")
        head = loads(first, SNAPSHOT)
        if head["store"] != store_id or head["of"] != hashlib.sha256(rest).hexdigest():
            return []
        found = [json.loads(line) for line in rest.splitlines()]
        with contextlib.suppress(OSError, DamagedFile):
            number = len(found)
            last = read_entry(storage, number, store_id, storage.read(entry_name(number)))
            if last["nonce"] != found[-1]["nonce"]:
                return []
        return found
    return []


def extend_snapshot(storage: Storage, store_id: str, length: int) -> int:
    """Extends the snapshot up to that entry, unless another worker has just done so. -> how many
    entries it holds"""
    known = read_snapshot(storage, store_id)
    if is_worth_it(len(known), length):
        more = read_entries(storage, range(len(known) + 1, length + 1), store_id)
        for entry in more:
            if isinstance(entry, DamagedFile):
                break
            known.append(entry)
        write_snapshot(storage, store_id, known)
    return len(known)


def write_snapshot(storage: Storage, store_id: str, entries: Sequence[dict[str, Any]]) -> None:
    rest = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    head = {"format": 1, "store": store_id, "of": hashlib.sha256(rest).hexdigest()}
    with contextlib.suppress(OSError):  # a full disk stops nothing: the log is complete without it
        storage.write(SNAPSHOT, json.dumps(head).encode() + b"\n" + rest, durable=False)


def is_worth_it(known: int, length: int) -> bool:
    """Whether the log has grown by a tenth plus a hundred entries: so the bytes written for
    snapshots stay proportional to the log."""
    return length >= 1.1 * known + 100
