"""Files and folders that this user may not read or write, on a real file system."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretend import create, edit, sweep
from rankscope.cli import main
from rankscope.report import from_store  # noqa: F401 - Python's own files may be root's alone
from rankscope.store import interventions
from rankscope.store.files import dumps, loads
from rankscope.store.store import Store
from rankscope.sweep import compare, run  # noqa: F401
from rankscope.sweep.check import check

NOBODY = 65534


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """As a user to whom permission bits apply: root reads whatever they say."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A finished store of that user, where others may go."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    sweep(folder / "s")
    edit(Store(folder / "s"))
    check(folder / "s")  # imports what it needs, as above
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    yield folder / "s"
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["cache", "cache/packs", "beats"])
def test_what_can_be_made_again_stops_nothing(name: str, place: Path) -> None:
    whole = Store(place).trials()
    (place / name).mkdir(exist_ok=True)
    (place / name).chmod(0)
    with without_rights():
        assert check(place).is_whole
        assert Store(place).trials().equals(whole)


@pytest.mark.parametrize("name", ["trials", "log"])
def test_what_may_not_be_read_is_named_and_left(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    (place / name).chmod(0)
    with without_rights():
        assert main(["status", str(place)]) == 2
        assert main(["check", str(place), "--repair"]) == 2
        with pytest.raises(PermissionError):
            create(place).recover(thorough=True)
    assert capsys.readouterr().err == f"rankscope: {place / name}: Permission denied\n" * 2
    (place / name).chmod(0o755)
    assert sorted(place.rglob("*")) == before
    assert check(place).is_whole


def test_a_trial_that_may_not_be_read_is_no_harm(place: Path) -> None:
    """Nothing is set aside, and nothing trained again."""
    victim = Store(place).done_ids()[0]
    file = place / "trials" / victim / "best" / "adapter_config.json"
    file.chmod(0)
    named = pytest.raises(PermissionError, match=f"{victim}: best/{file.name}: Perm")
    with without_rights(), named:
        create(place).recover(thorough=True)
    file.chmod(0o644)
    assert create(place).recover(thorough=True) == []
    assert not (place / "harmed").exists()


def contents(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "name", ["interventions", "interventions/settings", "interventions/settings/*.json"]
)
def test_edited_trials_that_may_not_be_read_are_named_and_stay(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Store(place).trials()
    before = contents(place / "interventions")
    (closed,) = sorted(place.glob(name))[:1]
    mode = closed.stat().st_mode
    closed.chmod(0)
    with without_rights():
        named = str(closed).removesuffix(".json")
        assert main(["status", str(place)]) == 0
        assert f"left out, 1; the first: {named}: Permission denied" in capsys.readouterr().out
        assert create(place).recover(thorough=True) == []
        assert Store(place).trials().equals(whole)
        assert main(["analyze", str(place)]) == 3
        said = capsys.readouterr().err
        assert f"left out, 1; the first: {named}: Permission denied" in said
        for more in ([], ["--repair"]):
            assert main(["check", str(place), *more]) == 3
            found = f"found: {named.removeprefix(f'{place}/')}: Permission denied"
            assert found in capsys.readouterr().out
    closed.chmod(mode)
    assert contents(place / "interventions") == before
    assert len(interventions.table(Store(place))) == 4


def test_edited_trials_of_a_newer_version_are_named_and_stay(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = next(place.glob("interventions/settings/*.json"))
    said = loads(newer.read_bytes(), "x")
    newer.write_bytes(dumps(said | {"format": 2}))
    before = newer.read_bytes()
    assert main(["status", str(place)]) == 0
    assert main(["check", str(place), "--repair"]) == 3
    assert f"left: {newer.relative_to(place).with_suffix('')} may be whole" in (
        capsys.readouterr().out
    )
    assert main(["analyze", str(place)]) == 3
    assert f"{newer}: expected format 1 or older; found 2" in capsys.readouterr().err
    assert newer.read_bytes() == before
    with pytest.raises(ValueError, match="pip install --upgrade"):
        interventions.read(Store(place), "settings", newer.stem)


@pytest.mark.parametrize("name", ["", "best", "metrics.jsonl", "last/adapter_model.safetensors"])
def test_a_trial_that_may_not_be_read_is_left_out_and_stays(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Store(place).trials()
    victim, *rest = Store(place).done_ids()
    closed = place / "trials" / victim / name
    mode = closed.stat().st_mode
    closed.chmod(0)
    with without_rights():
        assert list(Store(place).trials()["trial"]) == rest
        assert main(["status", str(place)]) == 3
        assert f"harmed: trial {victim}: " in capsys.readouterr().out
        assert main(["check", str(place), "--repair"]) == 3
        said = capsys.readouterr().out
        assert f"left: {place}/trials/{victim}: " in said
        assert "trials are missing" not in said
        with pytest.raises(PermissionError, match="Let this user read it, then run again"):
            create(place).recover(thorough=True)
    closed.chmod(mode)
    assert not (place / "harmed").exists()
    assert Store(place).trials().equals(whole)


def test_a_folder_of_the_disk_in_trials_stops_no_run(place: Path) -> None:
    """lost+found, where the folder is a disk of its own."""
    (place / "trials" / "lost+found").mkdir(mode=0o700)  # root's, if root tests
    owner = os.geteuid() == 0
    with without_rights():
        (line,) = create(place).recover(thorough=True)
    assert line.endswith("left where it is" if owner else "lost+found-1")


def test_a_store_that_may_not_be_entered(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.chmod(0)
    with without_rights():
        for command in ("status", "analyze", "check", "suggest"):
            assert main([command, str(place)]) == 2
    assert capsys.readouterr().err == (
        f"rankscope: {place}/store.json: Permission denied. Let this user read it\n" * 4
    )
