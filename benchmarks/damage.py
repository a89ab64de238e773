"""Does a store heal, whatever happens to one of its files, to its disk or to those who write it?

    python benchmarks/damage.py                  # all harms, both ways, with a training that trains nothing
    python benchmarks/damage.py --bucket         # the harms to files, of a store in a bucket (moto's S3 server)
    python benchmarks/damage.py --real           # every file of a trial, the header and the log, with the lab's encoder and the real commands

Each harm is done to a copy of a finished store (tests/harms has the list). Then ``status`` is
asked, and the store is healed by a run, or by ``check --repair`` and a run. Wanted: all tables and
the comparison equal those of the undisturbed store bit for bit, no trial is trained again but the
harmed one, and no command ends in a traceback. With ``--real`` a trial is trained again with those
that it was trained with first, and equals the first one bit for bit, bounds and weights too.
Beside files: workers killed, stopped past their lease and woken again, two drivers at once; and crash images: at a random moment all writes that
were not yet fsynced are cut, emptied or gone.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from unittest import mock

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harms import TRIAL_FILES, Harm, harms
from pretend import STUDY, create, edit, sweep
from rankscope.cli import main as command
from rankscope.store import interventions
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep.check import check

OTHER = Study(
    **{**STUDY.model_dump(), "scientific": {**STUDY.scientific.model_dump(), "rank": [1, 2, 4, 8]}}
)
DRIVER = Path(__file__).parents[1] / "tests" / "sweep" / "driver.py"
REAL = """
name = "damage"
[scientific]
model = "lab"
task = "acceptability"
rank = [1, 4]
[nuisance]
learning_rate = [1e-3, 1e-2]
[fixed]
data = "lab"
steps = 6
batch_size = 8
validation_rows = 32
lora_alpha = 16
"""


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


def tried(
    harm: Harm, how: str, whole: Path, other: Path, place: Path, wanted: dict[str, pd.DataFrame]
) -> str:
    """Harms a copy, asks the commands that only read, and heals it. -> what ``status`` said of it,
    and the status of ``analyze`` or ``check``"""
    shutil.copytree(whole, place)
    harm.do(place, other)
    status, said = asked("status", place)
    reading = "analyze" if how == "run" else "check"
    read = asked(reading, place)[0]
    line = next((x for x in said.splitlines() if re.search("harmed:|rankscope:|lost", x)), "")
    if harm.refused:
        if status != 2 or "pip install --upgrade" not in said:
            raise Failed(f"expected a refusal; status {status}: {said[:80]}")
        return line
    if how == "repair" and status != 2:
        check(place, repair=True, base_of=str)
    trained = sweep(place, patience=harm.patience)
    if len(trained) > harm.again:
        raise Failed(f"{len(trained)} trials trained again")
    compare(place, wanted)
    compare_files(place, whole)
    if how == "repair" and (fault := check(place).text()) != WHOLE:
        raise Failed(f"check still says: {fault[:100]}")
    return f"{reading} {read}; {line}"


WHOLE = "8 trials are whole, every file as it was committed"


def asked(command: str, place: Path) -> tuple[int, str]:
    """A command that only reads: its status, and what it said, in printable lines."""
    status, said = quietly(command, str(place))
    if status not in (0, 2, 3) or (status == 2 and len(said.splitlines()) != 1):
        raise Failed(f"{command} ended with {status}: {said[:100]}")
    if not all(char.isprintable() or char == "\n" for char in said):
        raise Failed(f"{command} prints {said!r:.100}")
    return status, said


def table_of_harms(folder: Path, only: str) -> int:
    sweep(folder / "whole")
    edit(Store(folder / "whole"))
    sweep(folder / "other", OTHER, **{"data/RTE": "b"})
    wanted, failures, count = tables(Store(folder / "whole")), 0, 0
    kinds = [harm for harm in harms() if re.search(only, harm.name)]
    for harm in kinds:
        for how in ("run", "repair")[harm.unseen :]:
            count += 1
            failures += reported(
                f"{harm.name}, {how}",
                lambda h=harm, w=how: tried(
                    h, w, folder / "whole", folder / "other", folder / "s", wanted
                ),
            )
            clear(folder)
    print(f"{count} harms ({len(kinds)} kinds, two ways): {failures} not healed")
    return failures


def clear(folder: Path) -> None:
    """All but the stores that are copied."""
    for path in folder.iterdir():
        if path.name not in ("whole", "other"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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


# crash images


def crashed(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    """A run, cut off at a random call that makes something lasting; then the disk keeps what was
    fsynced, and of the rest nothing, zeros, a part or all."""
    place, synced, calls = folder / "s", set(), 0
    last = luck.randrange(20, 260)

    class Off(BaseException):
        pass

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls > last:
            raise Off

    fsync, rename, link = os.fsync, os.rename, os.link

    def recorded(descriptor: int) -> None:
        count()
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **more: object) -> None:
            count()
            real(*arguments, **more)

        return call

    with (
        mock.patch("os.fsync", recorded),
        mock.patch("os.rename", counted(rename)),
        mock.patch("os.link", counted(link)),
        suppress(Off),
    ):
        sweep(place)
    lost = Counter()
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.stat().st_ino not in synced:
            how = luck.choice(("kept", "empty", "cut", "gone"))
            lost[how] += 1
            if how == "gone":
                path.unlink()
            elif how != "kept":
                path.write_bytes(
                    path.read_bytes()[: 0 if how == "empty" else path.stat().st_size // 2]
                )
    finished = {path.parent.name for path in place.glob("trials/*/done.json")}
    status, said = quietly("status", str(place))
    if status not in (0, 2, 3):
        raise Failed(f"status {status}: {said[:100]}")
    trained = sweep(place)
    if finished & set(trained):
        raise Failed(f"{len(finished & set(trained))} finished trials trained again")
    compare(place, wanted)
    return f"{len(finished)} finished; unsynced: {dict(lost)}"


# processes


@contextmanager
def drivers(place: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [
        subprocess.Popen([sys.executable, str(DRIVER), str(place), "7"], stderr=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def ended(
    started: list[subprocess.Popen[bytes]], place: Path, wanted: dict[str, pd.DataFrame]
) -> None:
    for process in started:
        if process.wait(timeout=240):
            raise Failed(f"a driver ended with status {process.returncode}")
    log = Store(place).log
    log.refresh()
    store = Store(place)
    if len(store.done_ids()) != len(store.planned()):
        raise Failed(f"{len(store.done_ids())} of {len(store.planned())} trials")
    sweep(place)
    compare(place, wanted)


def while_training(place: Path, act: Callable[[], None]) -> None:
    log, deadline = Store(place).log, time.monotonic() + 60
    while time.monotonic() < deadline:
        log.refresh()
        if log.live:
            return act()
        time.sleep(0.01)
    raise Failed("nobody began to train")


def killed(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    create(folder / "s")
    with drivers(folder / "s", 1) as started:
        for _ in range(3):
            while_training(
                folder / "s", lambda: os.kill(luck.choice(children(started[0])), signal.SIGKILL)
            )
            time.sleep(luck.uniform(0.2, 0.6))
        ended(started, folder / "s", wanted)
    return "3 workers"


def stopped(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    """Both workers of one driver sleep past their lease while another driver
    goes on, and wake up then."""
    create(folder / "s")
    with drivers(folder / "s", 1) as first:
        sleeping: list[int] = []

        def stop() -> None:
            sleeping.extend(children(first[0]))
            for pid in sleeping:
                os.kill(pid, signal.SIGSTOP)

        while_training(folder / "s", stop)
        with drivers(folder / "s", 1) as second:
            time.sleep(15)
            for pid in sleeping:
                os.kill(pid, signal.SIGCONT)
            ended([*first, *second], folder / "s", wanted)
    log = Store(folder / "s").log
    log.refresh()
    return f"{sum(log.deaths.values())} trials taken from sleeping workers"


def two_drivers(folder: Path, luck: random.Random, wanted: dict[str, pd.DataFrame]) -> str:
    create(folder / "s")
    with drivers(folder / "s", 2) as started:
        ended(started, folder / "s", wanted)
    return "four workers"


def full(folder: Path, wanted: dict[str, pd.DataFrame]) -> str:
    """A disk of 200 kB, which grows; then read-only."""
    place = folder / "small"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "none", place], capture_output=True
    ).returncode:
        return full_pretended(folder, wanted)
    try:
        try:
            sweep(place / "s")
            raise Failed("the disk was not full")
        except OSError as error:
            said = str(error)
        subprocess.run(["mount", "-o", "remount,size=60m", place], check=True)
        sweep(place / "s")
        compare(place / "s", wanted)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        compare(place / "s", wanted)
        if sweep(place / "s"):
            raise Failed("trained in a read-only store")
        return said
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def full_pretended(folder: Path, wanted: dict[str, pd.DataFrame]) -> str:
    """Where mounting is not allowed: every write fails from some call on, then none."""
    real, said = os.fsync, ""
    for code, most in ((28, 30), (30, 60)):
        calls = itertools.count()

        def failing(
            descriptor: int, code: int = code, most: int = most, calls: Iterator[int] = calls
        ) -> None:
            if next(calls) > most:
                raise OSError(code, os.strerror(code))
            real(descriptor)

        with mock.patch("os.fsync", failing):
            try:
                sweep(folder / "s")
            except OSError as error:
                said = str(error)
    sweep(folder / "s")
    compare(folder / "s", wanted)
    return f"pretended (mounting needs root): {said}"


def others(folder: Path, *, images: int) -> int:
    wanted, failures = tables(Store(folder / "whole")), 0
    luck = random.Random(0)
    for name, attempt in (
        [(f"crash image {i + 1}", crashed) for i in range(images)]
        + [("kill -9 of workers", killed), ("SIGSTOP past the lease, SIGCONT", stopped),
                                            ("two drivers", two_drivers)]
    ):  # fmt: skip
        failures += reported(name, lambda a=attempt: a(folder, luck, wanted))
        shutil.rmtree(folder / "s", ignore_errors=True)
    failures += reported("disk full, then read-only", lambda: full(folder, wanted))
    shutil.rmtree(folder / "s", ignore_errors=True)
    return failures


# the real training


def rankscope(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "rankscope.cli", *words], capture_output=True, text=True
    )
    if "Traceback" in done.stderr or done.returncode not in (0, 2, 3):
        raise Failed(f"{words[0]} ended with {done.returncode}: {done.stderr[-120:]}")
    return done


def really(harm: Harm, folder: Path, study: Path, wanted: dict[str, pd.DataFrame]) -> str:
    """By the commands that users type: analyze names it, a run heals it."""
    place = folder / "s"
    shutil.copytree(folder / "real", place)
    harm.do(place, folder / "real other")
    seen = rankscope("analyze", str(place), "--json")
    before = {p: p.stat().st_mtime_ns for p in place.glob("trials/*/done.json") if p.exists()}
    healed = rankscope("run", str(study), "--store", str(place), "--workers", "1")
    if healed.returncode:
        raise Failed(f"run ended with {healed.returncode}: {healed.stderr[-120:]}")
    again = {p.parent.name for p, stamp in before.items() if p.stat().st_mtime_ns != stamp}
    again |= {p.parent.name for p in place.glob("trials/*/done.json") if p not in before}
    if len(again) > harm.again:
        raise Failed(f"{len(again)} trials trained again")
    compare(place, wanted)
    compare_files(place, folder / "real")
    if rankscope("analyze", str(place), "--json").returncode:
        raise Failed("analyze still names it")
    last = seen.stderr.strip().splitlines()[-1:] or [""]
    return f"analyze: {seen.returncode} {last[0]}"


def real_table(folder: Path, only: str) -> int:
    study, failures = folder / "study.toml", 0
    study.write_text(REAL)
    rankscope("run", str(study), "--store", str(folder / "real"), "--workers", "1")
    (folder / "other.toml").write_text(
        REAL.replace("seed", "seed").replace("rank = [1, 4]", "rank = [1, 4, 8]")
    )
    rankscope(
        "run", str(folder / "other.toml"), "--store", str(folder / "real other"), "--workers", "1"
    )
    wanted = tables(Store(folder / "real"))
    ways = ("emptied", "cut", "edited", "deleted")
    names = {f"trial's {name} {way}" for i, name in enumerate(TRIAL_FILES) for way in [ways[i % 4]]}
    names |= {
        "trial deleted", "trial's best/ deleted", "trial from another store in its place",
        "store.json emptied",
        "log: commit deleted", "log: claim emptied", "comparison.parquet garbled", "cache/ deleted",
        "copied without times",
    }  # fmt: skip
    for harm in harms():
        if harm.name in names and re.search(only, harm.name):
            failures += reported(
                f"{harm.name}, real", lambda h=harm: really(h, folder, study, wanted)
            )
            shutil.rmtree(folder / "s", ignore_errors=True)
    return failures


# in a bucket


def in_a_bucket(folder: Path, only: str) -> int:
    """Every harm to objects that a name and bytes can say, by check --repair and a run."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "RANKSCOPE_CACHE": str(folder / "cache"),
    }  # fmt: skip
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.mkdir("damage")
    sweep("s3://damage/whole")
    edit(Store("s3://damage/whole"))
    sweep(folder / "other", OTHER, **{"data/RTE": "b"})
    wanted, failures, count = tables(Store("s3://damage/whole")), 0, 0
    files.get("damage/whole", str(folder / "bucket"), recursive=True)
    for harm in harms():
        if harm.refused or harm.local or harm.unseen or not re.search(only, harm.name):
            continue

        def attempt(harm: Harm = harm) -> str:
            shutil.copytree(folder / "bucket", folder / "s")
            harm.do(folder / "s", folder / "other")
            place = f"s3://damage/{abs(hash(harm.name))}"
            files.put(str(folder / "s"), place.removeprefix("s3://"), recursive=True)
            os.environ["RANKSCOPE_CACHE"] = str(folder / "another machine's")
            shutil.rmtree(folder / "another machine's", ignore_errors=True)
            status, said = quietly("status", place)
            if status not in (0, 2, 3):
                raise Failed(f"status {status}: {said[:100]}")
            if status != 2:
                check(place, repair=True, base_of=str)
            trained = sweep(place)
            if len(trained) > harm.again:
                raise Failed(f"{len(trained)} trials trained again")
            compare(place, wanted)
            return f"{len(trained)} trained again"

        count += 1
        failures += reported(f"{harm.name}, in a bucket", attempt)
        shutil.rmtree(folder / "s", ignore_errors=True)
    server.stop()
    print(f"{count} harms to objects: {failures} not healed")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--bucket", action="store_true")
    parser.add_argument(
        "--only", default="", help="harms whose names match this regular expression"
    )
    parser.add_argument("--images", type=int, default=16, help="crash images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.real:
            failures = real_table(folder, options.only)
        elif options.bucket:
            failures = in_a_bucket(folder, options.only)
        else:
            failures = table_of_harms(folder, options.only) + others(folder, images=options.images)
    print(f"not healed: {failures}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
