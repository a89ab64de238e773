"""What damage.py asks of a store that was healed, and how it reports it."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import rankscope
from pretend import edit
from rankscope.cli import main as command
from rankscope.store import interventions
from rankscope.store.store import Store

LONGEST = 300  # seconds for one harm and what heals it, unless told
SOURCE = Path(rankscope.__file__).parent


class Failed(Exception):
    """What is not as wanted, in a few words."""


def tables(store: Store) -> dict[str, pd.DataFrame]:
    trials = store.trials().drop(columns="seconds")
    found = {"trials": trials, "metrics": store.metrics(), "spectra": store.spectra()}
    found["interventions"] = interventions.table(store)
    return found | {"comparison": store.comparison()}


def compare(place: Path | str, wanted: dict[str, pd.DataFrame]) -> None:
    """Bit for bit."""
    if len(wanted["interventions"]):
        edit(Store(place))  # what is left of edited trials stays, the rest is made again
    for name, table in tables(Store(place)).items():
        try:
            pd.testing.assert_frame_equal(table, wanted[name], check_exact=True)
        except AssertionError as error:
            raise Failed(f"{name}: {str(error).splitlines()[0]}") from None
    if left_out := Store(place).inspect().left_out:
        raise Failed(f"left out: {left_out}")


def compare_files(place: Path, whole: Path) -> None:
    """All of a trial but done.json, which says how long it took."""
    for path in whole.glob("trials/*/**/*"):
        name = path.relative_to(whole)
        if (
            path.is_file()
            and path.name != "done.json"
            and (place / name).read_bytes() != path.read_bytes()
        ):
            raise Failed(f"{name} is another file")


def quietly(*words: str) -> tuple[int, str]:
    """-> the status of that command, and all that it printed"""
    status, out, err = apart(*words)
    return status, out + err


def apart(*words: str) -> tuple[int, str, str]:
    """-> status, standard output, standard error"""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = command(list(words))
    if status >= 128:  # this program was asked to stop: no result
        raise KeyboardInterrupt
    return status, out.getvalue(), err.getvalue()


def version() -> str:
    """A digest of the source that is tried: results of another one do not count for it."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class Results:
    """What was tried, a line of JSON each. A later call with the same file goes on where this one
    stopped; ``ValueError`` if the file's results are of another version of the source."""

    def __init__(self, path: Path | None, *, longest: int = LONGEST) -> None:
        self.path, self.version, self.longest = path, version(), longest
        self.known: dict[tuple[str, str], dict[str, Any]] = {}
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        for line in map(json.loads, lines):
            if line["version"] != self.version:
                raise ValueError(
                    f"{path}: expected results of version {self.version}; found some of "
                    f"{line['version']}. Name another --log"
                )
            self.known[line["part"], line["harm"]] = line

    def lacks(self, part: str, harm: str) -> bool:
        return (part, harm) not in self.known

    def attempt(self, part: str, harm: str, attempt: Callable[[], str]) -> None:
        """Tries it, unless it was tried; a command that waits for ever has failed."""
        if not self.lacks(part, harm):
            return

        def late(*_: object) -> None:
            raise Failed(f"took more than {self.longest} s")

        signal.signal(signal.SIGALRM, late)
        signal.alarm(self.longest)
        began, healed = time.monotonic(), True
        try:
            said = attempt()
        except Exception as error:  # noqa: BLE001 - a traceback is a failure like any other
            healed, said = False, f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        print(f"{'healed     ' if healed else 'NOT HEALED '} {harm:58} {said[:160]}", flush=True)
        line = {"part": part, "harm": harm, "healed": healed, "said": said[:300]}
        line |= {"seconds": round(time.monotonic() - began, 1), "version": self.version}
        self.known[part, harm] = line
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    @property
    def failed(self) -> list[str]:
        return [
            f"{part}: {harm}" for (part, harm), line in self.known.items() if not line["healed"]
        ]

    def table(self) -> str:
        """Of the parts, in Markdown."""
        parts = Counter(part for part, _ in self.known)
        failed = Counter(part for (part, _), line in self.known.items() if not line["healed"])
        rows = [f"| {part} | {tried} | {tried - failed[part]} |" for part, tried in parts.items()]
        return "\n".join(["| part | harms tried | healed |", "|---|---|---|", *rows])
