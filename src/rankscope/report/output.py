"""Where a page or a folder of figures may be written: in a folder that is there, so that a typo
makes no tree."""

from __future__ import annotations

from pathlib import Path


def page_at(output: str | Path) -> Path:
    """The page to write. ``ValueError``, one line, where it is a folder, or in none."""
    page = Path(output)
    if page.is_dir():
        raise ValueError(
            f"-o {output}: expected a file's name; found a folder. Type: -o {page / 'report.html'}"
        )
    _in_a_folder(output)
    return page


def folder_at(output: str | Path) -> Path:
    """The folder to make, or to write into. ``ValueError``, one line, where it is a file, or in no
    folder."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"-o {output}: expected a folder; found a file. Name another")
    _in_a_folder(output)
    return folder


def _in_a_folder(output: str | Path) -> None:
    parent = Path(output).absolute().parent
    if not parent.is_dir():
        there = next(above for above in parent.parents if above.exists())
        raise ValueError(
            f"-o {output}: expected a folder that is there; found no {parent.name} in {there}. "
            f"Type: mkdir -p {Path(output).parent}"
        )
