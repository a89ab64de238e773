"""What a newcomer types, wrong as well as right: one line, and status 2."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rankscope
from rankscope.cli import COMMANDS, main, parser


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ([], "rankscope: expected COMMAND; found none. Type: rankscope --help"),
        (["mesure", "x"], "found 'mesure'; did you mean 'measure'? Type: rankscope --help"),
        (["help"], "found 'help'. Type: rankscope --help"),
        (["measure"], "rankscope measure: expected ADAPTER_OR_CHECKPOINT; found none."),
        (["run", "lab"], "rankscope run: expected --store; found none. Type: rankscope run --help"),
        (
            ["measure", "x", "--bse", "y"],
            "rankscope measure: expected a known option; found '--bse'; did you mean "
            "'--base'? Type: rankscope measure --help",
        ),
        (["measure", "x", "--bse=y"], "found '--bse'; did you mean '--base'?"),
        (["status", "a", "b"], "rankscope status: expected nothing more; found 'b'."),
        (["measure", "x", "--suggest", "80"], "--suggest: expected one of 90, 95, 99; found '80'"),
        (["measure", "x", "--rtol", "y"], "--rtol: expected a number; found 'y'"),
        (
            ["measure", "x", "--base", "a", "--base=b"],
            "rankscope measure: argument --base: expected once; found 'a' and 'b'. Type: rankscope",
        ),
        (["resize", "x", "--to", "o", "--rank", "2", "--rank", "3"], "once; found 2 and 3"),
        (["resize", "x", "--to", "o", "--rank", "1e9"], "expected a whole number; found '1e9'"),
        (["resize", "x", "--to", "o", "--rank", "0"], "from 1; found 0. Such as --rank 8"),
        (["resize", "x", "--to", "o", "--energy", "95"], "above 0, 1 at most; found 95.0. Such as"),
        (
            ["resize", "x", "--to", "o", "--rank", "2", "--rows", "9"],
            "--rows: expected --task with",
        ),
        (
            ["extract", "x", "--base", "y", "--to", "o", "--rank", "2", "--weights", "last"],
            "--weights: expected --trial with it; found none",
        ),
        (["measure", "x", "--json", "--csv"], "--csv: not allowed with argument --json"),
        (["resize", "x", "--to", "o"], "one of the arguments --energy --rank --error --budget is"),
        (["resize", "a/b/c", "--to", "o", "--budget", "1 mib"], "a/b/c: expected a file, a folder"),
        (["resize", "x", "--to", "o", "--budget", "3QB"], "expected bytes, such as 3000000"),
        (["intervene", "x", "--weights", "bst"], "expected one of last, best; found 'bst'; did"),
        (["demo", "--store"], "rankscope demo: argument --store: expected one argument."),
        (["--print-completion", "ksh"], "expected one of bash, zsh, tcsh, fish; found 'ksh'"),
        (["plan", "labb"], "study 'labb': expected a .toml file or one of lab, paper"),
        (["plan", "none.toml"], "none.toml: no such study file; built-in studies are lab, paper"),
        (["plan", "lab", "--gpus", "0"], "--gpus 0: expected a number from 1, with --device"),
        (["plan", "lab", "--device", "h20"], "found 'h20'; did you mean h200?"),
        (["run", "lab", "--store", "s", "--workers", "0"], "workers: expected a number from 1"),
        *(
            ([command, "none"], "none: expected a store (a folder with store.json); found none.")
            for command in ("status", "check", "analyze", "suggest", "report", "figures")
        ),
        (["intervene", "none"], "none: expected a store (a folder with store.json), or an adapter"),
        (["collect", "none", "--store", "s"], "none: expected the output folder of a trainer"),
        (["figures", "none", "--width", "3"], "--width: expected a width between 1.5in and 30in"),
        (["figures", "none", "--format", "pgn"], "--format: expected some of pdf,svg,png"),
        (
            ["judge", "x", "--base", "y", "--fail-if", "rho"],
            "--fail-if: expected a condition such as",
        ),
    ],
)
def test_one_line_and_status_2(
    typed: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = main(typed)
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert says in err
    assert err.startswith("rankscope")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_help_lists_every_command_once_below_a_heading() -> None:
    lines = parser().format_help().splitlines()
    section, listed = "", []
    for line in lines:
        if line.endswith(":") and not line.startswith(" "):
            section = line[:-1]
        elif section in COMMANDS and line[:4].strip() != line[:3] and line[2:3].isalpha():
            listed.append((section, line.split()[0]))
    assert listed == [
        (heading, command.__name__) for heading, group in COMMANDS.items() for command, *_ in group
    ]


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"rankscope {rankscope.__version__}\n"
    assert importlib.metadata.version("rankscope") == rankscope.__version__


def test_a_shell_completes_commands_options_and_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("shtab", reason="pip install shtab")
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert end.value.code == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "adapter").touch()
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")

    def completed(*words: str) -> list[str]:
        typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        code = f"source ./script; {typed}; _shtab_rankscope; echo ${{COMPREPLY[@]}}"
        said = subprocess.run([bash, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        return said.stdout.split()

    assert completed("rankscope", "me") == ["measure"]
    assert completed("rankscope", "measure", "--ba") == ["--base", "--base-revision"]
    assert completed("rankscope", "measure", "ada") == ["adapter"]


def test_without_shtab_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "shtab.py").write_text("raise ImportError")  # found before the installed one
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "rankscope.cli", "--print-completion", "zsh"]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert ended.returncode == 2
    assert b"Type: pip install shtab" in ended.stderr


def test_every_option_that_takes_files_is_completed_with_files() -> None:
    """A new metavar has to be put among those, or here."""
    from rankscope.cli import PATHS, all_actions

    no_path = {
        "ADDRESS", "BYTES", "COMMAND", "CONDITION", "ID", "K", "LIST", "N", "NAME", "REGEX",
        "SHELL", "TASK", "W", "X", None,
    }  # fmt: skip
    found = {a.metavar for a in all_actions(parser()) if not isinstance(a, argparse._HelpAction)}
    assert found == PATHS | no_path
