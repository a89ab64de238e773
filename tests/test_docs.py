"""The documents say what is true: commands as --help prints them, README's code runs, links lead
somewhere."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import rankscope
from rankscope.cli import main, parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cli_page() -> str:
    """docs/cli.md, from the parser."""
    top = parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# The command line\n\nWritten by `make docs`; a test keeps it equal to `--help`.\n"]
    for name, sub in [
        ("rankscope", top),
        *((f"rankscope {n}", p) for n, p in commands.choices.items()),
    ]:
        sub.formatter_class = lambda prog: argparse.HelpFormatter(
            prog, width=100, max_help_position=30
        )
        parts.append(f"## {name}\n\n```\n{sub.format_help()}```\n")
    return "\n".join(parts)


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="argparse lays options out in another way from 3.13 on"
)
def test_cli_page_equals_help() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == cli_page(), "type: make docs"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_readme_python_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = [line.split("# ")[-1] for line in code.splitlines() if line.startswith("print(")]
    assert done.stdout.split("\n")[: len(said)] == said


@pytest.mark.parametrize("session", blocks("console"))
def test_readme_commands_print_what_is_shown(
    session: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *shown = session.splitlines()
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command.removeprefix("$ rankscope "))) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    for line in shown:
        if line.strip() not in ("", "..."):
            assert line.split() in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 100


def test_the_file_tree_of_the_architecture_is_the_tree() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```text\n(src/rankscope/.*?)^(?:tools|```)", page, re.M | re.S)
    named = {word for line in tree.splitlines()[1:] if (word := line.split()[0].rstrip("/"))}
    there = {p.name for p in (ROOT / "src" / "rankscope").iterdir() if not p.name.startswith("_")}
    assert named - {"__init__.py"} == there - {"py.typed"}


def test_the_picture_of_the_floors_is_drawn_from_the_imports() -> None:
    """Draw it again: python tools/architecture.py"""
    drawn = runpy.run_path(str(ROOT / "tools" / "architecture.py"))["picture"]()
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == drawn


def test_no_page_bears_a_path_of_one_machine() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    machine = re.compile("/" + "work/|/" + "tmp/|/" + "root/|/" + "home/")
    for name in tracked:
        if (
            name.endswith((".md", ".toml", ".py", ".json", ".csv", ".html"))
            and (ROOT / name).is_file()
        ):
            found = machine.search((ROOT / name).read_text(encoding="utf-8"))
            assert not found, f"{name}: {found}"


if __name__ == "__main__":
    os.environ["NO_COLOR"] = "1"
    sys.stdout.write(cli_page())


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == rankscope.__version__
