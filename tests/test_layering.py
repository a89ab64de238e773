"""Imports only go down, also inside functions; and the package is light to import."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import rankscope

SOURCE = Path(rankscope.__file__).parent
ROOMS = {
    "linalg", "weights", "measurement", "study", "store", "sweep", "train", "analysis", "report",
    "lab",
    "interventions",
    "evaluation",
    "collect",
    "commands",
}  # fmt: skip
MAY_IMPORT: dict[str, set[str]] = {
    "linalg": set(),
    "analysis": set(),
    "lab": set(),
    "evaluation": {"train", "study", "weights", "linalg"},
    "interventions": {
        "sweep",
        "evaluation",
        "train",
        "store",
        "study",
        "weights",
        "linalg",
        "console",
    },
    "console": set(),
    "notebook": set(),
    "system": set(),
    "process": set(),
    "weights": {"linalg"},
    "measurement": {"weights", "linalg", "console"},
    "study": set(),
    "store": {"study", "system", "measurement", "weights"},
    "train": {"store", "study", "weights", "linalg", "system"},
    "report": {"store", "analysis", "console"},
    "sweep": {
        "evaluation",
        "train",
        "store",
        "study",
        "weights",
        "linalg",
        "analysis",
        "lab",
        "console",
        "system",
        "process",
    },
    "collect": {"sweep", "store", "study"},
    "commands": {
        "collect",
        "interventions",
        "sweep",
        "report",
        "measurement",
        "store",
        "study",
        "console",
        "process",
    },
    "cli": {"commands", "sweep", "console", "process"},
    "__main__": {"cli"},
}
FILES = sorted(SOURCE.rglob("*.py"))


def place(path: Path) -> str:
    """The room that a file belongs to, or its own name at the top."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms and top-level files of ours that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("rankscope.")]
    return {
        name[1]
        for name in parts
        if (SOURCE / name[1]).is_dir() or (SOURCE / f"{name[1]}.py").is_file()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_go_down(path: Path) -> None:
    here = place(path)
    if here != "__init__":
        # whatever is shown in a notebook may use its tables, which import nothing
        assert imported(path) - {here, "notebook"} <= MAY_IMPORT[here]


def files_imported(path: Path) -> set[Path]:
    """The files of ours that a file imports by name, wherever in it; a room's own page of names
    among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            steps = name.split(".")[1:] if name.startswith("rankscope.") else []
            # the longest part of the name that is a file: the rest of it is a name inside
            candidates = [SOURCE.joinpath(*steps[:end]) for end in range(len(steps), 0, -1)]
            files = [
                p
                for c in candidates
                for p in (c.with_suffix(".py"), c / "__init__.py")
                if p.is_file()
            ]
            found |= set(files[:1])
    return found - {path}


def test_no_file_imports_itself_in_a_circle() -> None:
    """Inside a room as well, and also by way of an import inside a function."""
    graph = {path: files_imported(path) for path in FILES}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(str(path.relative_to(SOURCE)) for path in error.args[1]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_is_longer_than_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, "find its second subject"


def test_no_function_is_longer_than_60_lines() -> None:
    assert not [
        f"{path.relative_to(SOURCE)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]


def test_every_room_stands() -> None:
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} >= ROOMS


def test_rooms_without_torch() -> None:
    for path in FILES:
        if place(path) in ("study", "store", "analysis", "report"):
            roots = {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                )
            }  # fmt: skip
            assert not roots & {"torch", "transformers", "peft"}, path


@pytest.mark.parametrize(
    "statement", ["import rankscope", "import rankscope.cli; rankscope.cli.parser().format_help()"]
)
def test_light_import(statement: str) -> None:
    code = (
        f"{statement}; import sys; print([m for m in ('torch', 'pandas', 'transformers') if "
        "m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
