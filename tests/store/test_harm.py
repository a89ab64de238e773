"""Whatever happens to one file of a store: the next run, or check --repair and a run, make it what
it was. ``benchmarks/damage.py`` tries all harms both ways, and the real training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harms import Harm, harms
from pretend import STUDY, create, edit, run, sweep
from rankscope.cli import main
from rankscope.store import interventions
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep.check import check

HARMS = list(harms())
MENDED = {
    "trial's metrics.jsonl rotten", "store.json piped", "store.json made_a_folder",
    "store.json looped", "log: claim piped", "log: claim foreign", "log/ looped",
    "log/ made_a_file",
    "trials/ made_a_file", "an edited trial's .parquet cut", "a folder of interventions looped",
    "cache/verified.json says 5", "cache/packs/index.json says 5", "beside: a name that is no text",
    "a claim left by another host", "work/ with '²'", "store.json sealed with earlier = [5]",
    "trials/ with a folder 'aaaaaaaaaaaa'", "a copy that went on, its log copied back",
    "store.json sealed with study = {}", "trial's best/ a link to itself",
}  # fmt: skip
SOME = (
    [harm for harm in HARMS if harm.name in MENDED]
    + HARMS[5::13]
    + [harm for harm in HARMS if harm.name.startswith(("log", "store"))][1::11]
)
OTHER = Study(
    **{**STUDY.model_dump(), "scientific": {**STUDY.scientific.model_dump(), "rank": [1, 2, 4, 8]}}
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished store, and one of another study of the same name on other data."""
    root = tmp_path_factory.mktemp("stores")
    sweep(root / "whole")
    edit(Store(root / "whole"))
    sweep(root / "other", OTHER, **{"data/RTE": "b"})
    return root / "whole", root / "other"


def tables(store: Store) -> dict[str, pd.DataFrame]:
    return {
        "trials": store.trials(),
        "metrics": store.metrics(),
        "spectra": store.spectra(),
        "comparison": store.comparison(),
        "interventions": interventions.table(store),
    }


def assert_healed(place: Path, whole: Store, trained: list[str], harm: Harm) -> None:
    store = Store(place)
    for name, table in tables(whole).items():
        pd.testing.assert_frame_equal(tables(store)[name], table, check_exact=True)
    assert store.hash() == whole.hash()
    assert len(trained) <= harm.again
    assert store.inspect().left_out == {}
    assert sorted(store.storage.names("trials")) == sorted(store.done_ids())
    for path in whole.path.glob("trials/*/**/*"):
        if path.is_file() and path.name != "done.json":  # which says how long it took
            assert (place / path.relative_to(whole.path)).read_bytes() == path.read_bytes(), path
    if not check(place).is_whole:  # a run goes on beside a lost entry, and leaves it where it is
        assert check(place, repair=True, base_of=str).missing == 0
    assert check(place).is_whole, check(place).text()


@pytest.mark.parametrize("harm", SOME, ids=lambda harm: harm.name)
@pytest.mark.parametrize("how", ["run", "repair"])
def test_it_heals(
    harm: Harm,
    how: str,
    stores: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, other = stores
    place = tmp_path / "s"
    shutil.copytree(whole, place)
    harm.do(place, other)
    if harm.unseen and how == "run":
        how = "repair"  # only check reads what has its size and time
    status = main(["status", str(place)])  # never a traceback
    said = capsys.readouterr()
    if harm.refused:
        assert status == 2
        assert "pip install --upgrade rankscope" in said.err
        with pytest.raises(ValueError, match="pip install --upgrade"):
            sweep(place)
        return
    assert status in (0, 2, 3)
    if status == 2:
        assert str(place) in said.err
    if how == "repair" and status != 2:
        check(place, repair=True, base_of=str)
    trained = sweep(place, patience=harm.patience)
    edit(Store(place))
    assert_healed(place, Store(whole), trained, harm)


@pytest.mark.parametrize("command", ["status", "analyze", "check"])
def test_a_header_that_is_not_ours(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store.json").write_text('{"format": 1, "study": {"name": "x"}}')
    assert main([command, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/store.json is damaged: text is missing or of another kind" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["status", "analyze", "check", "report"])
def test_places_that_are_no_store(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what was found, and no advice to begin a store where none can be."""
    (loop := tmp_path / "loop").symlink_to("loop")
    (file := tmp_path / "file").write_text("x")
    for place, found in (
        (loop, "found a link to itself or to nothing"),
        (loop / "in", "found above it a folder that is a link to itself"),
        (loop.parent / ("n" * 300), "name too long"),
        ("", "'': expected the path of a store; found none"),
        (file, "found a file"),
        ("a\0b", "'a\\x00b': expected the path of a store; found a NUL character in it"),
    ):
        assert main([command, str(place)]) == 2
        said = capsys.readouterr().err
        assert found in said
        assert len(said.splitlines()) == 1
        with pytest.raises((OSError, ValueError), match=r"found (a|none)"):
            create(place)


def test_an_entry_far_ahead_is_none_of_the_log(stores: tuple[Path, Path], tmp_path: Path) -> None:
    place = tmp_path / "s"
    shutil.copytree(stores[0], place)
    log = Store(place).log
    log.refresh()
    for number in ("00010050", "99999999"):
        (place / "log" / f"{number}.json").write_text("{}")
        after = Store(place).log
        after.refresh()
        assert after.length == log.length
        assert after.lost == {}


def test_harm_is_named_and_left_out(stores: tuple[Path, Path], tmp_path: Path) -> None:
    place = tmp_path / "s"
    shutil.copytree(stores[0], place)
    store = Store(place)
    victim, *rest = store.done_ids()
    path = place / "trials" / victim / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.75", "7.50"))  # of the same size
    assert list(store.trials()["trial"]) == rest
    (fault,) = store.inspect().left_out.values()
    assert fault.startswith("metrics.jsonl: expected SHA-256")
    found = check(place)
    assert not found.is_whole
    assert f"trial {victim}: metrics.jsonl: expected SHA-256" in found.text()
    assert (place / "trials" / victim).is_dir()  # nothing was touched
    assert create(place).recover() == []  # workers look at sizes alone
    lines = create(place).recover(thorough=True)
    assert [line.endswith(f"set aside in {place}/harmed/{victim}-1") for line in lines] == [True]
    assert "7.50" in (place / "harmed" / f"{victim}-1" / "metrics.jsonl").read_text()
    assert run(Store(place)) == [victim]


def test_digests_are_read_once_for_each_version(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """A copied store is read once; after that nothing is read until a file changes."""
    place = tmp_path / "s"
    shutil.copytree(stores[0], place, copy_function=shutil.copyfile)
    assert Store(place).inspect().left_out == {}
    verified = place / "cache" / "verified.json"
    before = verified.stat().st_mtime_ns
    assert Store(place).inspect().left_out == {}
    assert verified.stat().st_mtime_ns == before
    path = place / "trials" / Store(place).done_ids()[0] / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.75", "7.50"))
    assert len(Store(place).inspect().left_out) == 1


def test_a_trial_that_is_deleted_while_others_train_is_trained_again(tmp_path: Path) -> None:
    from pretend import TRIALS, pretend

    store, calls = create(tmp_path / "s"), 0

    def train(*arguments: object, **more: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            shutil.rmtree(next((store.path / "trials").iterdir()))
        pretend(*arguments, **more)  # type: ignore[arg-type]

    assert len(run(store, train)) == len(TRIALS) + 1
    assert len(Store(store.path).done_ids()) == len(TRIALS)
