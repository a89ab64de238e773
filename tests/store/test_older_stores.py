"""A store that version 0.1.0 wrote, before commits bore digests: five trials done, one failed."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pretend import TEXT, create, run
from rankscope.store.store import Store
from rankscope.study.study_file import Study
from rankscope.sweep.check import check
from rankscope.sweep.status import status

# by that version's Store.hash
HASH = "c7985eec1aee89e76e64cbd5abc2d6f05c8bf7ccea6bcef04f33fc19e2546c3d"
STUDY = Study.parse(TEXT.replace("[1, 2, 4]", "[1, 2]") + "retries = 0\n")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("before_digests.tar.xz")) as archive:
        archive.extractall(tmp_path / "s", filter="data")
    return tmp_path / "s"


def test_it_opens(old: Path) -> None:
    store = Store(old)
    assert store.hash() == HASH
    assert (len(store.trials()), len(store.metrics()), len(store.spectra())) == (5, 5, 5)
    assert list(store.comparison()["cosine"]) == [0.5]
    assert store.comparison_fault() is None
    seen = status(store)
    assert (seen.done, seen.planned, seen.left_out, seen.notes) == (5, 6, {}, [])
    assert list(seen.failed.values()) == ["RuntimeError: no luck"]
    assert check(old).is_whole


def test_it_goes_on(old: Path) -> None:
    store = create(old, STUDY)
    assert store.id == ""
    store.log.forget([t.id for t in store.planned() if t.id not in store.done_ids()])
    assert len(run(store)) == 1
    again = Store(old)
    assert len(again.done_ids()) == 6
    assert run(again) == []
    assert check(old, repair=True, base_of=str).faults == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("done.json", b"", "done.json is damaged"),
        ("metrics.jsonl", b'{"step": 1, "acc', "metrics.jsonl is damaged"),
        ("spectra.parquet", b"PAR1", "spectra.parquet is damaged"),
        ("trial.json", None, "trial.json: No such file or directory"),
    ],
)
def test_harm_is_seen_without_digests(
    old: Path, name: str, content: bytes | None, says: str
) -> None:
    store = Store(old)
    victim, *rest = store.done_ids()
    path = old / "trials" / victim / name
    path.unlink() if content is None else path.write_bytes(content)
    assert Store(old).inspect().left_out == {victim: says}
    assert list(Store(old).trials()["trial"]) == rest
    assert victim in run(create(old, STUDY))
    assert (old / "harmed" / f"{victim}-1" / "best" / "adapter_model.safetensors").is_file()


def test_another_trial_in_its_folder_is_seen(old: Path) -> None:
    one, other, *_ = Store(old).done_ids()
    (old / "trials" / one / "trial.json").write_bytes(
        (old / "trials" / other / "trial.json").read_bytes()
    )
    assert Store(old).inspect().left_out == {one: "trial.json describes another trial"}
