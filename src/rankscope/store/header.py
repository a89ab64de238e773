"""store.json: the study that a store holds, and which study may go on in it.

cache/ has a copy. If store.json is missing or damaged, the copy is read, and the next run writes
it back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rankscope.store.files import DamagedFile, dumps, loads
from rankscope.store.log_files import LOG, entry_name, entry_numbers
from rankscope.store.storage import LocalStorage, Storage
from rankscope.study.own_task import OwnTask
from rankscope.study.sections import Fixed
from rankscope.study.study_file import Study
from rankscope.system import NotAFile

NAME, COPY = "store.json", "cache/store.json"
KINDS = {"study": dict, "text": str, "largest_rank": dict, "fingerprints": dict, "earlier": list}
PARTS = {"largest_rank": int, "fingerprints": str, "earlier": dict}  # what is in those


def read_header(storage: Storage) -> tuple[dict[str, Any], str | None]:
    """-> the header, and what is wrong with store.json where it comes from its copy"""
    _check_place(storage)
    denied = False
    try:
        header = _read(storage, NAME)
        if _owner(storage) in (None, header.get("id", "")):
            return header, None
        fault = f"{storage}/{NAME} is another store's"
    except (FileNotFoundError, NotADirectoryError):
        fault = f"{storage}/{NAME} is missing"
        if not storage.names(LOG):
            raise FileNotFoundError(
                f"{storage}: expected a store (a folder with store.json); found none. "
                f"Begin one with: rankscope run STUDY --store {storage}"
            ) from None
    except (DamagedFile, NotAFile) as error:
        fault = str(error)
    except OSError as error:
        fault = f"{storage}/{NAME}: {error.strerror or error}"
        denied = isinstance(error, PermissionError)
    with contextlib.suppress(OSError, DamagedFile):
        return _read(storage, COPY), fault
    if denied:
        raise PermissionError(f"{fault}. Let this user read it")
    raise DamagedFile(f"{fault}. Write it again with: rankscope run STUDY --store {storage}")


def _check_place(storage: Storage) -> None:
    """``OSError`` if there is no store and none can be made."""
    if isinstance(storage, LocalStorage):
        try:
            os.stat(storage.root)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise NotADirectoryError(
                    f"{storage!s:.60}...: expected a folder for the store; found a name too long"
                ) from None
            if error.errno == errno.ELOOP and not os.path.islink(storage.root):
                raise NotADirectoryError(
                    f"{storage}: expected a folder for the store; found above it a folder that "
                    "is a link to itself"
                ) from None
    if isinstance(storage, LocalStorage) and os.path.lexists(storage.root):
        if storage.root.is_dir():
            return
        link = os.path.islink(storage.root)
        what = "a link to itself or to nothing" if link and not storage.root.exists() else "a file"
        raise NotADirectoryError(f"{storage}: expected a folder for the store; found {what}")


def _read(storage: Storage, name: str) -> dict[str, Any]:
    header = loads(storage.read(name), f"{storage}/{name}")
    whole = {"earlier": [], "id": "", **header}  # older ones lack these
    wrong = [
        key for key, kind in {**KINDS, "id": str}.items() if not isinstance(whole.get(key), kind)
    ]
    for key, kind in PARTS.items():
        if key not in wrong:
            held = whole[key] if key == "earlier" else whole[key].values()
            wrong += [key] * (not all(isinstance(part, kind) for part in held))
    if "study" not in wrong and not isinstance(whole["study"].get("name"), str):
        wrong.append("study")
    if wrong:
        raise DamagedFile(f"{storage}/{name} is damaged: {wrong[0]} is missing or of another kind")
    return header


def _owner(storage: Storage) -> str | None:
    """The id of the store that the log belongs to, from its first readable entry."""
    for number in range(1, 4):
        with contextlib.suppress(OSError, ValueError):
            return str(loads(storage.read(entry_name(number)), LOG).get("store", ""))
    return None


def begin_or_open(
    storage: Storage,
    study: Study,
    *,
    largest_rank: Mapping[str, int],
    fingerprints: Mapping[str, str],
) -> None:
    """Writes the header of a new store, or makes a store's header that of a study that may go on in
    it: ``ValueError`` where it may not."""
    header = {
        "study": study.model_dump(mode="json"),
        "text": study.source,
        "largest_rank": dict(sorted(largest_rank.items())),
        "fingerprints": dict(sorted(fingerprints.items())),
        "earlier": [],
        "id": uuid.uuid4().hex,
    }
    if _begun(storage, header):
        return
    fault: str | None
    try:
        old, fault = read_header(storage)  # also when another run was just first
    except DamagedFile as error:
        old, fault = _begun_again(storage, header, study, str(error)), "no copy"
    check_same_study(str(storage), old, study)
    check_same_inputs(str(storage), old["fingerprints"], fingerprints)
    header["fingerprints"] = dict(sorted({**old["fingerprints"], **fingerprints}.items()))
    header["largest_rank"] = dict(sorted({**old["largest_rank"], **largest_rank}.items()))
    earlier = old.get("earlier", [])
    header["earlier"] = (
        earlier if old["study"] in (header["study"], *earlier) else [*earlier, old["study"]]
    )
    header["id"] = old.get("id", "")  # stores of older versions have none
    if not header["id"]:
        del header["id"]
    if fault is not None or {"format": old["format"], **header} != old:
        storage.write(NAME, dumps(header))
        _copy(storage, header)
    elif not storage.exists(COPY):
        _copy(storage, header)


def begin_collected(storage: Storage, name: str) -> None:
    """Writes the header of a store for trials that were trained elsewhere. ``ValueError`` where
    another store, or something else, is there."""
    if not re.fullmatch(r"[\w.-]{1,80}", name):
        raise ValueError(
            f"name: expected letters, digits, '.', '_' and '-', 80 at most; found {name!r:.100}"
        )
    header = {
        "study": {"name": name, "collected": True},
        "text": "",
        "largest_rank": {},
        "fingerprints": {},
        "earlier": [],
        "id": uuid.uuid4().hex,
    }
    if _begun(storage, header):
        return
    found = read_header(storage)[0]["study"]
    if not found.get("collected"):
        raise ValueError(
            f"{storage}: this store holds study {found['name']!r}, which rankscope trains; trials "
            "that were trained elsewhere need a store of their own. Name another --store"
        )
    if found["name"] != name:
        raise ValueError(
            f"{storage}: this store was begun as {found['name']!r}; found {name!r}. Name another "
            "--store"
        )


def add_fingerprint(storage: Storage, key: str, value: str) -> None:
    """Notes the fingerprint of a model that trials were trained on; ``ValueError`` where another
    one has its name."""
    header, _ = read_header(storage)
    check_same_inputs(str(storage), header["fingerprints"], {key: value})
    if key not in header["fingerprints"]:
        header.pop("format")
        header["fingerprints"] = dict(sorted({**header["fingerprints"], key: value}.items()))
        storage.write(NAME, dumps(header))
        _copy(storage, header)


def _begun(storage: Storage, header: dict[str, Any]) -> bool:
    """Writes that header if there is no store yet. -> whether it did"""
    _check_place(storage)
    if storage.exists(NAME) or storage.names(LOG):
        return False
    if storage.names(""):  # drafts of ours are hidden
        raise ValueError(
            f"{storage}: expected a store or an empty folder; found other files. Name a new --store"
        )
    if storage.create(NAME, dumps(header)):
        _copy(storage, header)
        return True
    return False


def restore_header(storage: Storage) -> bool:
    """Writes store.json again from its copy. -> whether it was needed"""
    header, fault = read_header(storage)
    if fault is not None:
        header.pop("format")
        if not isinstance(storage, LocalStorage) or not (storage.root / NAME).is_dir():
            storage.write(NAME, dumps(header))
    return fault is not None


def _copy(storage: Storage, header: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # store.json is whole
        storage.write(COPY, dumps(header), durable=False)


def _begun_again(
    storage: Storage, header: dict[str, Any], study: Study, fault: str
) -> dict[str, Any]:
    """The header of a store of which only log and trials are left: that of the given study, if the
    log names trials of it."""
    found = []
    for number in entry_numbers(storage):
        with contextlib.suppress(OSError, DamagedFile):
            found.append(loads(storage.read(entry_name(number)), entry_name(number)))
    known = {trial for entry in found for trial in entry.get("trials", ())}
    if not known & {trial.id for trial in study.trials(header["largest_rank"])}:
        raise DamagedFile(f"{fault}, with the study that its trials belong to")
    return {
        **header,
        "format": 1,
        "id": Counter(e.get("store", "") for e in found).most_common(1)[0][0],
    }


def check_same_study(path: str, header: dict[str, Any], study: Study) -> None:
    old, new = header["study"], study.model_dump(mode="json")
    if old.get("collected"):
        raise ValueError(
            f"{path}: this store holds trials that were trained elsewhere, and none can be trained "
            "into it. Name another --store"
        )
    if old["name"] != new["name"]:
        raise ValueError(
            f"{path}: this store holds study {old['name']!r}; found study {new['name']!r}. "
            "Name another --store"
        )
    # `data` may move to another path: its fingerprint says whether it is the same; retries change
    # no result and what is said of a task that is new here changes nothing either
    before, after = ({**Fixed().model_dump(mode="json"), **study["fixed"]} for study in (old, new))
    for fixed in (before, after):
        fixed["task"] = {
            name: own for name, own in fixed["task"].items() if name in old["scientific"]["task"]
        }
    for name in old.get("task", {}).keys() & new["task"].keys():
        before[f"[task.{name}] metric"], after[f"[task.{name}] metric"] = (
            OwnTask(**side["task"][name]).chosen_metric for side in (old, new)
        )
    changed = [k for k in after if k not in ("data", "retries") and after[k] != before[k]]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{path}: this store was begun with {key} = {before[key]}; found {after[key]}. "
            "Fixed parameters are the same in every trial: name another --store"
        )


def check_same_inputs(path: str, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for key, value in new.items():
        if old.get(key, value) != value:
            raise ValueError(
                f"{path}: {key.replace('/', ' ', 1)} has changed since this store was begun "
                f"(SHA-256 {old[key][:12]}, now {value[:12]}). Restore it, or name another --store"
            )
