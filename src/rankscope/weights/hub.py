"""Where a model lives: a local folder or a repository of the Hugging Face hub, asked for one file at a time.

Only needed files are downloaded; what is in the cache is used, also offline (``HF_HUB_OFFLINE=1``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Place:
    """A folder, or a repository of the hub (``folder`` None) and its files' names (None: out of reach)."""

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
    """The folder or the repository that ``source`` names. ``ValueError``, one line, where it is neither."""
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
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        return frozenset(file.rfilename for file in model_info(repository, timeout=10).siblings or ())
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{repository}: expected a path or a hub id; found neither, and the hub says: {_brief(error)}"
        ) from error
    except (OfflineModeIsEnabled, HTTPError):  # the latter of whichever HTTP client the hub's library uses
        return None


def _download(repository: str, name: str, *, cached: bool) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=cached))
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise ValueError(f"{repository}: {name} can't be downloaded: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """The hub's messages run over many lines: the first sentences of one."""
    return " ".join(str(error).split())[:200]
