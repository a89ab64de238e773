"""Code that is changed while a run goes on: one line, nothing lost; other errors stay what they
are."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rankscope
from pretend import STUDY, TRIALS, create, pretend, run
from rankscope.sweep.installed import changed_code, code
from rankscope.sweep.processes import run_processes

TAIL = "What had finished is kept. Type the same command again"
WORKER = """
import sys
from pathlib import Path
from rankscope.sweep.worker_process import serve

def visit(job):
    if job["changes"]:
        Path(job["late"]).write_text("new = 1")
    from late import old

sys.exit(serve(visit))
"""


def works(folder: Path, *, changes: bool) -> None:
    """A worker that imports late; the file may change meanwhile."""
    (folder / "worker.py").write_text(WORKER)
    (folder / "late.py").write_text("")
    time.sleep(0.05)  # the worker begins after its file was written, by any clock
    run_processes(
        [sys.executable, str(folder / "worker.py")],
        {"changes": changes, "late": str(folder / "late.py")},
        [{}],
        tick=lambda: True,
        say=print,
    )


def test_a_worker_whose_code_is_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="found it changed since") as caught:
        works(tmp_path, changes=True)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'late.py'}: expected the code that this run began with")
    assert "ImportError: cannot import name 'old'" in line
    assert TAIL in line
    assert capfd.readouterr().err == ""


def test_the_digest_of_our_code_is_that_of_every_file_and_its_name(tmp_path: Path) -> None:
    ours = shutil.copytree(Path(rankscope.__file__).parent, tmp_path / "rankscope")
    program = "from rankscope.sweep.installed import code; print(code())"

    def found() -> str:
        return subprocess.check_output(
            [sys.executable, "-c", program], cwd=tmp_path, text=True
        ).strip()

    assert found() == code()
    with (ours / "linalg" / "norms.py").open("a", encoding="utf-8") as file:
        file.write("# one comment more\n")
    edited = found()
    (ours / "linalg" / "certify.py").rename(ours / "linalg" / "certified.py")
    assert len({code(), edited, found()}) == 3


def late(folder: Path, name: str) -> ImportError:
    """The error of a module of ours that has gone, or of a name that it has not."""
    (folder / "apart.py").write_text("")
    sys.path.insert(0, str(folder))
    try:
        exec(f"from {name} import missing")
    except ImportError as error:
        return error
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("apart", None)
    raise AssertionError


def test_what_was_there_before_is_no_change(tmp_path: Path) -> None:
    error = late(tmp_path, "apart")
    assert changed_code(error, time.time() + 60) is None
    assert "apart.py: expected the code" in (changed_code(error, time.time() - 60) or "")
    assert changed_code(ValueError("of a user"), 0.0) is None


def test_the_trial_is_not_to_blame(tmp_path: Path) -> None:
    """It is given back, not recorded as failed; the next call trains it."""
    store = create(tmp_path / "s", STUDY)

    def train(*args: Any, **settings: Any) -> None:
        time.sleep(0.01)
        raise late(tmp_path, "apart")

    with pytest.raises(OSError, match=TAIL):
        run(store, train)
    store.log.refresh()
    assert not store.log.failures
    assert not store.log.live
    assert len(run(store, pretend)) == len(TRIALS)


def test_the_command_line(tmp_path: Path) -> None:
    """A command of this process, whose late import fails."""
    (tmp_path / "late.py").write_text("")
    program = f"""
import sys, pathlib
sys.path.insert(0, {str(tmp_path)!r})
from rankscope import cli
from rankscope.commands import adapters
def measure(arguments):
    pathlib.Path({str(tmp_path / "late.py")!r}).write_text("new = 1")
    from late import old
cli.COMMANDS["read"][0] = (measure, *cli.COMMANDS["read"][0][1:])
sys.exit(cli.main(["measure", "x"]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"{tmp_path / 'late.py'}: expected the code" in ended.stderr
    assert TAIL in ended.stderr
