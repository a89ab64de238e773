"""Whether a study may go on in a store: it may grow, and may not be another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankscope.study.study_file import Fixed, Study


def check_same_study(path: str, header: dict[str, Any], study: Study) -> None:
    old, new = header["study"], study.model_dump(mode="json")
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
