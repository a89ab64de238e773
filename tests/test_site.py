"""The documents as a site: built without a network and without a broken link; and the tutorial runs
as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rankscope
from rankscope import lab
from rankscope.cli import main

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    missing = [name for name in rankscope.__all__[1:] if f">{name}<" not in page]
    assert missing == []
    loaded = re.findall(r'(?:src|<link[^>]* href)="(https?://[^"]+)"', page)
    assert [url for url in loaded if "canonical" not in url] == []


def steps() -> list[tuple[str, str]]:
    """The fenced blocks of the tutorial, in order: (language, content)."""
    return re.findall(r"^```(\w+)\n(.*?)^```", TUTORIAL, re.M | re.S)


@pytest.mark.slow
def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, content in steps():
        if language == "toml":
            Path("tutorial.toml").write_text(content)
        elif language == "python":
            capsys.readouterr()
            exec(compile(content, "tutorial.md", "exec"), names)
            expected = re.findall(r"^print\(.*\)  # (.*)$", content, re.M)
            assert capsys.readouterr().out.splitlines() == expected
        else:
            for line in content.splitlines():
                words = shlex.split(line.removeprefix("$ rankscope "))
                known = {"ADAPTER": str(names.get("adapter")), "ENCODER": str(lab.ENCODER)}
                assert main([known.get(word, word) for word in words]) == 0, line
    assert Path("runs/report.html").is_file()
    assert Path("smaller/adapter_model.safetensors").is_file()
