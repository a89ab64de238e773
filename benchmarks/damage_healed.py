"""What damage.py asks of a store that was healed, and how it reports it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pretend import edit
from rankscope.cli import main as command
from rankscope.store import interventions
from rankscope.store.store import Store

LONGEST = 300  # seconds for one harm and what heals it


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
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = command(list(words))
    return status, out.getvalue() + err.getvalue()


def reported(name: str, attempt: Callable[[], str]) -> int:
    """Whether it failed; a command that waits for ever does."""

    def late(*_: object) -> None:
        raise Failed(f"took more than {LONGEST} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        said = attempt()
    except Exception as error:  # noqa: BLE001 - a traceback is a failure like any other
        print(f"NOT HEALED  {name:58} {type(error).__name__}: {str(error)[:160]}", flush=True)
        return 1
    finally:
        signal.alarm(0)
    print(f"healed      {name:58} {said[:110]}", flush=True)
    return 0
