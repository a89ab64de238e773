"""Builds the wheel, installs it in an environment of its own, and runs the tutorial there.

    python tools/wheel.py    # what .ci/run does; needs pip's registry

The tutorial's Python blocks have to print what stands beside them, its commands to end with 0.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 12e6  # bytes
PIP = ["-m", "pip", "--quiet", "--disable-pip-version-check"]


def build(folder: Path) -> Path:
    """The wheel; an error if it is too large."""
    command = [sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("rankscope-*.whl")
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        sys.exit(f"expected a wheel of at most {LARGEST / 1e6:g} MB; found {size / 1e6:.1f} MB")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """-> the Python of a new environment that has the wheel and what it needs, nothing else."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = str(ROOT / "constraints.txt")
    subprocess.run([python, *PIP, "install", "--constraint", pins, str(wheel)], check=True)
    return python


def tutorial() -> None:
    """Runs in the new environment, in an empty folder."""
    from rankscope import lab

    command = str(Path(sys.executable).with_name("rankscope"))
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```", page, re.M | re.S):
        if language == "toml":
            Path("tutorial.toml").write_text(content, encoding="utf-8")
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(content, "tutorial.md", "exec"), names)
            expected = re.findall(r"^print\(.*\)  # (.*)$", content, re.M)
            assert printed.getvalue().splitlines() == expected, printed.getvalue()
        else:
            known = {"ADAPTER": str(names.get("adapter")), "ENCODER": str(lab.ENCODER)}
            for line in content.splitlines():
                words = shlex.split(line.removeprefix("$ rankscope "))
                subprocess.run([command, *(known.get(word, word) for word in words)], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["tutorial"]:
        tutorial()
    else:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with tempfile.TemporaryDirectory() as folder:
            python = install(build(Path(folder)), Path(folder) / "venv")
            (empty := Path(folder) / "empty").mkdir()
            asked = [python, __file__, "tutorial"]
            subprocess.run(asked, cwd=empty, env=clean, check=True)
