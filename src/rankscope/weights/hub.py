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
    """A folder (``folder``) or a repository of the hub (``folder`` is None)."""

    source: str
    folder: Path | None

    def find(self, name: str) -> Path | None:
        """The local path of the file ``name``; None where the place has no such file."""
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        return _download(self.source, name)

    def names(self) -> str:
        """What is there instead, for messages."""
        if self.folder is None:
            return "none of them in the repository or, offline, in the cache"
        there = sorted(path.name for path in self.folder.iterdir())
        return f"{', '.join(there[:8])}{', ...' if len(there) > 8 else ''}" if there else "an empty folder"


def place(source: str | Path) -> Place:
    """The folder or the repository that ``source`` names. ``ValueError`` where it can be neither."""
    path = Path(source).expanduser()
    if path.is_dir():
        return Place(str(source), path)
    if isinstance(source, str) and HUB_ID.fullmatch(source) and ".." not in source:
        return Place(source, None)
    raise ValueError(f"{source}: expected a file, a folder or a hub id such as org/name; found nothing there.")


def _download(repository: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repository, name))
    except EntryNotFoundError:  # not in the repository; or not in the cache while the hub is out of reach
        return None
    except (HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split(". ")[0].split())
        raise ValueError(
            f"{repository}: expected a local path or a hub id; found no such path, and the hub says: {reason}."
        ) from error
