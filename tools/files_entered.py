"""Which files of ours a command enters, in order: ``python tools/files_entered.py measure
ADAPTER``.

A file is entered when one of its functions runs; importing it does not count, nor what a module's
own body calls meanwhile. Only this process is followed, so give ``run`` the option ``--workers 1``.
"""

from __future__ import annotations

import inspect
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import rankscope
from rankscope.cli import main

SOURCE = Path(rankscope.__file__).parent


def files_entered(arguments: list[str]) -> list[Path]:
    """Files below src/rankscope whose functions ran during the command, in order of first entry."""
    entered: dict[str, None] = {}
    root = str(SOURCE)

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code, caller = frame.f_code, frame.f_back
        a_function = code.co_flags & inspect.CO_OPTIMIZED  # no module's or class's body
        imported = caller is not None and not caller.f_code.co_flags & inspect.CO_OPTIMIZED
        if event == "call" and a_function and not imported and code.co_filename.startswith(root):
            entered.setdefault(code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return [Path(name).relative_to(SOURCE) for name in entered]


if __name__ == "__main__":
    found = files_entered(sys.argv[1:])
    print(len(found), "files entered", file=sys.stderr)
    for path in found:
        print("   ", path, file=sys.stderr)
