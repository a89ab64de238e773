"""Where a model lives: a local folder or a repository of the Hugging Face hub, asked for one file at a time.

Only the files that are needed are downloaded; what is in the cache is used, also offline (``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Place:
    """A folder, or a repository of the hub (``folder`` None) with the names of its files (None: out of reach)."""

    source: str
    folder: Path | None
    files: frozenset[str] | None = None

    def find(self, name: str) -> Path | None:
        """The local path of the file ``name``; None where the place has no such file."""
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        if self.files is not None and name not in self.files:
            return None
        return _download(self.source, name, cached=self.files is None)

    def names(self) -> str:
        """What is there instead, for messages."""
        if self.folder is not None:
            there = sorted(path.name for path in self.folder.iterdir())
        elif self.files is None:
            return "none of them in the cache, and the hub is out of reach"
        else:
            there = sorted(self.files)
        return f"{', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else "an empty folder"


def place(source: str | Path) -> Place:
    """The folder or the repository that ``source`` names. ``ValueError``, one line, where it can be neither."""
    path = Path(source).expanduser()
    if path.is_dir():
        return Place(str(source), path)
    if isinstance(source, str) and HUB_ID.fullmatch(source) and ".." not in source:
        return Place(source, None, _listing(source))
    raise ValueError(
        f"{source}: expected a file, a folder or a hub id such as org/name; found nothing there."
    )


def _listing(repository: str) -> frozenset[str] | None:
    """The names of the repository's files, in one request; None where the hub is out of reach."""
    import httpx
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return frozenset(list_repo_files(repository))
    except (OfflineModeIsEnabled, httpx.TransportError):
        return None
    except (HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split("\n\n")[-1].split(". ")[0].split())
        raise ValueError(
            f"{repository}: expected a local path or a hub id; found no such path, and the hub says: {reason}."
        ) from error


def _download(repository: str, name: str, *, cached: bool) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=cached))
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{repository}: {name} can't be downloaded: {reason[:160]}") from error
