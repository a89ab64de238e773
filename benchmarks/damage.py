"""Does a store heal, whatever happens to one of its files, to its disk or to those who write it?

    python benchmarks/damage.py --log harms.jsonl        # all of it, about 50 minutes; typed again, it goes on where it was stopped
    python benchmarks/damage.py files                    # all harms, both ways, with a training that trains nothing
    python benchmarks/damage.py runs                     # crash images, killed and stopped workers, full disks
    python benchmarks/damage.py real                     # every file of a trial, the header and the log, with the lab's encoder and the real commands
    python benchmarks/damage.py bucket                   # the harms to files, of a store in a bucket (moto's S3 server)

Each harm is done to a copy of a finished store (tests/harms has the list). Then ``status`` is
asked, and the store is healed by a run, or by ``check --repair`` and a run. Wanted: all tables and
the comparison equal those of the undisturbed store bit for bit, no trial is trained again but the
harmed one, and no command ends in a traceback. In ``real`` a trial is trained again with those
that it was trained with first, and equals the first one bit for bit, bounds and weights too.
Beside files: workers killed, stopped past their lease and woken again, two drivers at once; and crash images: at a random moment all writes that
were not yet fsynced are cut, emptied or gone.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from damage_healed import Failed, Results, apart, compare, compare_files, quietly, tables
from damage_runs import harms_to_runs

from harms import TRIAL_FILES, Harm, copies, harms, odd
from pretend import STUDY, edit, sweep
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep.check import check

OTHER = Study(
    **{**STUDY.model_dump(), "scientific": {**STUDY.scientific.model_dump(), "rank": [1, 2, 4, 8]}}
)
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
    if harm.training and (status, "7 of 8 trials done" in said) != (0, True):
        raise Failed(f"expected a store in training; status {status}: {said[:80]}")
    if reading == "analyze" and read == 0 and not harm.training:
        same_conclusions(place, whole)
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


def same_conclusions(place: Path, whole: Path) -> None:
    """What is said with status 0 is what the undisturbed store says."""
    status, found, said = apart("analyze", str(place), "--json")
    wanted = conclusions(whole).replace(str(whole), str(place))
    if (status, found) != (0, wanted):
        raise Failed(f"analyze --json ends with {status} and says something else: {said[:80]}")


@functools.cache
def conclusions(whole: Path) -> str:
    return apart("analyze", str(whole), "--json")[1]


def asked(command: str, place: Path) -> tuple[int, str]:
    """A command that only reads: its status, and what it said, in printable lines."""
    status, said = quietly(command, str(place))
    if status not in (0, 2, 3) or (status == 2 and len(said.splitlines()) != 1):
        raise Failed(f"{command} ended with {status}: {said[:100]}")
    if not all(char.isprintable() or char == "\n" for char in said):
        raise Failed(f"{command} prints {said!r:.100}")
    return status, said


def table_of_harms(folder: Path, only: str, results: Results) -> None:
    sweep(folder / "whole")
    edit(Store(folder / "whole"))
    sweep(folder / "other", OTHER, **{"data/RTE": "b"})
    wanted = tables(Store(folder / "whole"))
    kinds = {harm.name: "odd" for harm in odd.harms()}
    kinds |= {harm.name: "copies" for harm in copies.harms()}
    for harm in harms():
        part = kinds.get(harm.name, "plain")
        for how in ("run", "repair")[harm.unseen :]:
            name = f"{harm.name}, {how}"
            if re.search(only, harm.name) and results.lacks(part, name):
                results.attempt(
                    part,
                    name,
                    lambda h=harm, w=how: tried(
                        h, w, folder / "whole", folder / "other", folder / "s", wanted
                    ),
                )
                clear(folder)


def clear(folder: Path) -> None:
    """All but the stores that are copied."""
    for path in folder.iterdir():
        if path.name not in ("whole", "other"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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


def real_table(folder: Path, only: str, results: Results) -> None:
    study = folder / "study.toml"
    study.write_text(REAL)
    rankscope("run", str(study), "--store", str(folder / "real"), "--workers", "1")
    (folder / "other.toml").write_text(REAL.replace("rank = [1, 4]", "rank = [1, 4, 8]"))
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
            results.attempt("real", harm.name, lambda h=harm: really(h, folder, study, wanted))
            shutil.rmtree(folder / "s", ignore_errors=True)


# in a bucket


def in_a_bucket(folder: Path, only: str, results: Results) -> None:
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
    wanted = tables(Store("s3://damage/whole"))
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

        results.attempt("bucket", harm.name, attempt)
        shutil.rmtree(folder / "s", ignore_errors=True)
    server.stop()


PARTS = ("files", "runs", "real", "bucket")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=", ".join(PARTS) + "; default: all"
    )
    parser.add_argument("--log", type=Path, help="results, a line each: go on where it ends")
    parser.add_argument(
        "--only", default="", help="harms whose names match this regular expression"
    )
    parser.add_argument("--images", type=int, default=16, help="crash images")
    options = parser.parse_args()
    if wrong := set(options.parts) - set(PARTS):
        parser.error(f"expected {', '.join(PARTS)}; found {wrong.pop()}")
    try:
        results = Results(options.log)
    except ValueError as error:
        parser.error(str(error))
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "files":
                table_of_harms(folder, options.only, results)
            elif part == "runs":
                sweep(folder / "whole")
                edit(Store(folder / "whole"))
                harms_to_runs(folder, results, images=options.images)
            elif part == "real":
                real_table(folder, options.only, results)
            else:
                in_a_bucket(folder, options.only, results)
    print(f"version {results.version}\n{results.table()}")
    print("\n".join(f"not healed: {name}" for name in results.failed))
    return int(bool(results.failed))


if __name__ == "__main__":
    sys.exit(main())
