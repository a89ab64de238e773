"""A store behind a URL: on an S3 server that the test starts, and in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pretend import SMALL, TRIALS, create, pretend, run
from rankscope.store.place import storage_at
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir


def test_a_store_in_a_bucket_equals_one_on_disk(bucket: str, tmp_path: Path) -> None:
    store = create(bucket, SMALL)
    assert len(run(store)) == 3
    local = create(tmp_path / "s", SMALL)
    run(local)
    opened = Store(bucket)
    assert opened.hash() == local.hash()
    pd.testing.assert_frame_equal(opened.metrics(), local.metrics())
    pd.testing.assert_frame_equal(opened.spectra(), local.spectra())
    assert run(Store(bucket)) == []
    assert opened.storage.names("work") == []
    opened.write_comparison(pd.DataFrame({"trial": ["x"]}))
    assert list(Store(bucket).comparison()["trial"]) == ["x"]


def test_one_of_many_creates(bucket: str) -> None:
    """Six workers, ten names: each is made once, and by the one that was told so."""
    made: list[tuple[int, bytes]] = []

    def work(worker: int) -> None:
        storage = storage_at(bucket)
        for name in range(10):
            if storage.create(f"x/{name}", data := f"{worker} made {name}".encode()):
                made.append((name, data))

    threads = [threading.Thread(target=work, args=(w,)) for w in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in made) == list(range(10))
    assert all(storage_at(bucket).read(f"x/{name}") == data for name, data in made)


def test_an_heir_elsewhere_finds_the_scratch(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one machine wrote for its successor reaches another machine, that is, another mirror."""

    def dies(trials: Any, folders: Any, progress: Any, *, scratch: Path) -> None:
        (scratch / "checkpoint.safetensors").write_bytes(b"half way")
        store.claim(max(store.log.live)).flush_scratch()  # what every heartbeat does
        raise KeyboardInterrupt

    store = create(bucket, SMALL)
    with pytest.raises(KeyboardInterrupt):
        run(store, dies, size=6)
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "another machine"))
    found: list[bytes] = []

    def goes_on(
        trials: Any, folders: Sequence[TrialDir], progress: Callable[[int], None], *, scratch: Path
    ) -> None:
        found.extend(path.read_bytes() for path in scratch.iterdir())
        pretend(trials, folders, progress, scratch=scratch)

    assert len(run(Store(bucket), goes_on, size=6)) == 3
    assert found == [b"half way"]
    assert Store(bucket).storage.names("work") == []


class Disturbed(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory; before each copy the next of ``disturbances`` happens."""

    protocol = "disturbed"
    disturbances: ClassVar[list[Callable[[], None]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("disturbed://"))

    def copy(self, *arguments: Any, **settings: Any) -> None:
        if self.disturbances:
            self.disturbances.pop(0)()
        super().copy(*arguments, **settings)


@pytest.fixture
def disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a store on ``Disturbed``."""
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    fsspec.register_implementation("disturbed", Disturbed, clobber=True)
    return f"disturbed://{tmp_path.name}"


def nothing() -> None: ...


def dies() -> None:
    raise KeyboardInterrupt


def test_killed_between_commit_and_move(disturbed: str) -> None:
    """Committed, half copied, dead: the next worker puts the rest in place, and trains nothing of
    it again."""
    Disturbed.disturbances[:] = [nothing, nothing, dies]
    with pytest.raises(KeyboardInterrupt):
        run(create(disturbed))
    again = run(Store(disturbed))
    assert len(again) == len(TRIALS) - 2
    assert len(Store(disturbed).trials()) == len(TRIALS)


def test_a_peer_that_finishes_the_same_move(disturbed: str) -> None:
    """A worker died between commit and move; of two that go on with it one is faster, and
    removes what the other copies."""
    Disturbed.disturbances[:] = [dies]
    with pytest.raises(KeyboardInterrupt):
        run(create(disturbed))
    slow, fast = Store(disturbed), Store(disturbed)
    Disturbed.disturbances[:] = [lambda: print(fast.recover())]
    slow.recover()
    assert len(slow.done_ids()) == 2
    assert len(run(slow)) == len(TRIALS) - 2


def test_memory_and_what_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSCOPE_CACHE", str(tmp_path / "cache"))
    assert len(run(create("memory://runs"))) == len(TRIALS)
    assert len(Store("memory://runs").trials()) == len(TRIALS)
    with pytest.raises(FileNotFoundError, match="memory://none: expected a store"):
        Store("memory://none")
    with pytest.raises(ValueError, match="expected a URL that fsspec can open"):
        Store("nosuch://runs")
    assert Store(create(f"file://{tmp_path}/s").path).path == tmp_path / "s"
