"""On a system without Linux's calls the demo's path works: cores, memory, locks, signals, the fsync
of folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankscope import system
from studies import study_text

ROOT = Path(__file__).parents[1]
STRIPPED = """
import os, signal, subprocess, sys, tempfile, threading
# imported first: these take their own way on other systems, by what they are
import torch, peft, pandas, huggingface_hub, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import PreTrainedModel, RobertaForSequenceClassification
for name in ("sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "sysconf", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGCONT", "SIGUSR1", "SIGUSR2", "SIGALRM"):
    delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
import ctypes
real = ctypes.CDLL
def without_trim(name, *rest, **more):
    if name is None:
        raise OSError("no C library by that name")
    return real(name, *rest, **more)
ctypes.CDLL = without_trim
from pathlib import Path
read = Path.read_text
def without_proc(self, *rest, **more):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(str(self))
    return read(self, *rest, **more)
Path.read_text = without_proc
"""
STUDY = study_text(rank=2, learning_rate=[1e-3, 3e-3, 1e-2], validation_rows=32)


@pytest.mark.slow
def test_the_path_of_the_demo_without_them(tmp_path: Path) -> None:
    """run with two workers, analyze and report, in processes that lack all of these calls."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(STRIPPED)
    (tmp_path / "study.toml").write_text(STUDY)
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT / "src")])
    store = str(tmp_path / "s")
    for words in (
        ["run", str(tmp_path / "study.toml"), "--store", store, "--workers", "2"],
        ["status", store],
        ["check", store],
        ["analyze", store, "--json"],
        ["report", store],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "rankscope.cli", *words],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "RANKSCOPE_CACHE": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert "6 of 6 trials done" in done.stdout or (tmp_path / "s" / "report.html").is_file()


def test_no_other_file_makes_such_calls() -> None:
    calls = (
        "sched_getaffinity",
        "fcntl",
        "getuid",
        "os.sysconf",
        "start_new_session",
        "malloc_trim(",
        "signal.SIGHUP",
        "signal.SIGKILL",
    )
    for path in sorted((ROOT / "src").rglob("*.py")):
        if path.name != "system.py":
            text = path.read_text(encoding="utf-8")
            found = [call for call in calls if call in text]
            assert not [call for call in found if call != "malloc_trim("], path
            assert "ctypes" not in text or "malloc" not in text, path


def test_a_private_folder_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that others can write in is not used."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    code = "from rankscope import system; print(system.private_dir())"

    def found() -> Path:
        return Path(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.strip()
        )

    first = found()
    assert first.parent == tmp_path
    assert first.stat().st_mode & 0o777 == 0o700
    first.chmod(0o777)
    assert found() == tmp_path / "cache" / "locks"
    first.rmdir()
    first.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert found() == tmp_path / "cache" / "locks"


def test_what_is_asked_of_this_one() -> None:
    assert system.cores() >= 1
    assert system.free_memory() > 2**20
    assert system.malloc_trim()(0) in (0, 1)
