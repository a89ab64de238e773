"""JSON as rankscope writes it: with a format number and a seal, and refused where it is damaged or
newer."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from rankscope.store.storage import LocalStorage
from rankscope.system import naming, read_file

FORMAT = 1


class DamagedFile(ValueError):
    """A file of ours that does not hold what was written."""


def dumps(content: dict[str, Any]) -> bytes:
    """The object as a file: with ``sha256``, a digest of all the rest."""
    whole = {"format": FORMAT, **content}
    return (
        json.dumps({**whole, "sha256": _seal(whole)}, indent=1, allow_nan=False) + "\n"
    ).encode()


def loads(data: bytes, where: str) -> dict[str, Any]:
    """The object in these bytes, without its seal; ``where`` names the file in errors.

    ``DamagedFile`` when it is not what was written; ``ValueError`` when a newer rankscope wrote it.
    Files of older versions have no seal.
    """
    try:
        content = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(
            f"{where}: expected JSON that rankscope wrote; found damage ({error})"
        ) from None
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise DamagedFile(f'{where}: expected an object with a "format" number; found none')
    if content["format"] > FORMAT:
        raise ValueError(
            f"{where}: expected format {FORMAT} or older; found {content['format']}. Type: pip "
            "install --upgrade rankscope"
        )
    seal = content.pop("sha256", None)
    if seal is not None and seal != _seal(content):
        raise DamagedFile(
            f"{where}: expected content with the SHA-256 that it states; found other content"
        )
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ``ValueError`` where a key is in it twice, of which readers take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """For readers the file is the old one or the new one, never half."""
    LocalStorage(path.parent).write(path.name, dumps(content), durable=False)


def write_whole(path: Path, content: str | bytes) -> None:
    """Makes or replaces a file outside of a store: the old one or the new one, never a part, even
    on a full disk."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            draft.write_bytes(content.encode() if isinstance(content, str) else content)
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in that file. See ``loads``."""
    return loads(read_file(path), str(path))


def finite(value: Any) -> Any:
    """The value, or None for a float that is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
