"""A model's location: a local folder or a repository of the Hugging Face hub, read one file at a
time; and what identifies it.

Only needed files are downloaded; cached files are used, offline as well (``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
BLOCK = 1 << 22  # bytes read at once


@dataclass(frozen=True)
class Place:
    """A folder, or a repository of the hub (``folder`` None) and its files' names (None:
    unreachable).

    ``revision`` and ``subfolder`` are those of a repository.
    """

    source: str
    folder: Path | None
    files: frozenset[str] | None = None
    revision: str | None = None
    subfolder: str = ""

    def find(self, name: str) -> Path | None:
        """The local path of the file ``name``; None if there is no such file."""
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        inside = f"{self.subfolder}/{name}" if self.subfolder else name
        if self.files is not None and inside not in self.files:
            return None
        return _download(self.source, inside, self.revision, cached=self.files is None)

    def below(self, name: str) -> Place:
        """The folder ``name`` inside this place, whether it exists or not."""
        if self.folder is not None:
            return Place(f"{self.source}/{name}", self.folder / name)
        return replace(self, subfolder=f"{self.subfolder}/{name}" if self.subfolder else name)

    def folders_with(self, file: str) -> list[str]:
        """The names of the folders inside this place, one level down, that hold ``file``."""
        if self.folder is not None:
            return sorted(
                path.parent.name for path in self.folder.glob(f"*/{file}") if path.is_file()
            )
        start = f"{self.subfolder}/" if self.subfolder else ""
        parts = [
            name.removeprefix(start).split("/")
            for name in self.files or ()
            if name.startswith(start)
        ]
        return sorted(part[0] for part in parts if len(part) == 2 and part[1] == file)

    def last(self, pattern: str) -> Path | None:
        """The last file, in natural order, whose full name matches the regular expression."""
        if self.folder is not None:
            names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        else:
            start = f"{self.subfolder}/" if self.subfolder else ""
            names = [
                name.removeprefix(start) for name in self.files or () if name.startswith(start)
            ]
        found = sorted(
            (name for name in names if re.fullmatch(pattern, name)),
            key=lambda name: (len(name), name),
        )
        return self.find(found[-1]) if found else None

    def names(self) -> str:
        """What was found instead, for messages."""
        if self.folder is not None:
            there = sorted(path.name for path in self.folder.iterdir())
        elif self.files is None:
            return "none of them in the cache, and the hub cannot be reached"
        else:
            there = sorted(self.files)
        return (
            f"{', '.join(there[:8])}{', ...' if len(there) > 8 else ''}"
            if there
            else "an empty folder"
        )


def place(
    source: str | Path, *, revision: str | None = None, subfolder: str | None = None
) -> Place:
    """The folder or repository that ``source`` names, and the subfolder in it.

    ``ValueError``, one line, if there is neither.
    """
    path = Path(source).expanduser()
    if str(source) and path.is_dir():  # an empty name does not mean the current folder
        if revision is not None:
            raise ValueError(
                f"{source}: expected a hub id with revision {revision}; found a folder."
            )
        found = Place(str(source), path)
    elif isinstance(source, str) and HUB_ID.fullmatch(source) and ".." not in source:
        found = Place(source, None, _listing(source, revision), revision)
    else:
        raise ValueError(
            f"{source}: expected a file, a folder or a hub id such as org/name; found nothing "
            "there."
        )
    return found if subfolder is None else _entered(found, subfolder.strip("/"))


def _entered(whole: Place, subfolder: str) -> Place:
    found = whole.below(subfolder)
    there = found.folder.is_dir() if found.folder is not None else _has(whole.files, subfolder)
    if not subfolder or not there:
        raise ValueError(
            f"{whole.source}: expected a folder {subfolder!r} in it; found {whole.names()}."
        )
    return found


def _has(files: frozenset[str] | None, subfolder: str) -> bool:
    return files is None or any(name.startswith(f"{subfolder}/") for name in files)


def _listing(repository: str, revision: str | None) -> frozenset[str] | None:
    """The names of the repository's files, in one request; None if the hub cannot be reached."""
    from huggingface_hub import model_info
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    try:
        found = model_info(repository, revision=revision, timeout=10).siblings
        return frozenset(file.rfilename for file in found or ())
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{repository}: expected a path or a hub id; found neither, and the hub says: "
            f"{_brief(error)}"
        ) from error
    except (
        OfflineModeIsEnabled,
        HTTPError,
    ):  # the latter from whichever HTTP client the hub's library uses
        return None


def _download(repository: str, name: str, revision: str | None, *, cached: bool) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, name, revision=revision, local_files_only=cached))
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise ValueError(f"{repository}: {name} can't be downloaded: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """The first sentences of a message of the hub, which may run over many lines."""
    return " ".join(str(error).split())[:200]


def fingerprint(model: str | Path) -> str:
    """SHA-256 of a local folder's configuration and weights; the commit of a hub model."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return of_folder(folder)
    found = place(model).find("config.json")  # the cache keeps a file under snapshots/<commit>/
    if found is None:
        raise ValueError(f"{model}: expected a folder or hub id with config.json; found none")
    return found.parent.name


def of_folder(folder: Path) -> str:
    """SHA-256 of the configuration and the weights in that folder."""
    suffixes = (".safetensors", ".bin")
    files = sorted(p for p in folder.iterdir() if p.suffix in suffixes or p.name == "config.json")
    seen = ((p, p.stat()) for p in files)
    return _of_files(tuple((str(p), stat.st_size, stat.st_mtime_ns) for p, stat in seen))


@lru_cache(maxsize=16)  # a base may have many gigabytes, and is asked for once per adapter
def _of_files(seen: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in seen:
        digest.update(Path(path).name.encode())
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
